"""Read line pictures with their texts from the layouts people have, into one example schema.

`{"image": PIL picture, "text": str, "source": str}`: text in NFC with whitespace collapsed; `source` says where the row
came from (file and line or row), so that whatever is wrong with it can be found.

Layouts, tried in this order in a folder:
    gt_SPLIT.txt           `file<TAB>text` lines, pictures in `image/` or beside (the TrOCR authors' STR, IAM, receipts)
    SPLIT/metadata.*       `file_name,text` as JSON lines or CSV (the Hub's ImageFolder); without a split, metadata.*
    SPLIT*.parquet         `image` and `text` columns, also in `data/` (the Hub's own form); without a split, *.parquet
    lines.txt              IAM's own, in the folder or in `ascii/`, pictures in `lines/`; SPLIT.uttlist, .lst or .txt says
                           which forms or lines are of a split, such as the Aachen partition's
    *.csv                  without a split, the only CSV file of the folder, such as `hf-vlm read --below` writes
    annotation_SPLIT.txt   MJSynth's own, `./2425/1/115_Lube_45484.jpg 45484`, the word in the file's name; pictures beside
    SPLIT/data.mdb         LMDB of MJSynth, SynthText, scene text: see `data/lines/lmdb_lines.py`; without a split, data.mdb
    SPLIT/*.xml            PAGE or ALTO beside the pages' pictures, SPLIT/*.txt SROIE's boxes: see `data/lines/page_lines.py`;
                           without a split, in the folder itself
Suffixes may be in capital letters.
SynthText's own gt.mat is not read: cut its words out into one of these, as its LMDB has them.
A folder written by `datasets`' `save_to_disk` is read as what it says it is; a data set that knows no split is `train`'s. A
metadata file beside all pictures serves a split by its column `split`, or by file names that begin with the split's folder,
whatever the case of either.
"""

import glob
import io
import os
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from PIL import Image

from hf_vlm.data.lines.line_tables import IAM, MJSYNTH, plain_name, read_table
from hf_vlm.data.lines.lmdb_lines import LmdbPictures, is_lmdb
from hf_vlm.data.lines.page_lines import PageLine, is_page_folder, read_pages
from hf_vlm.data.pictures import open_picture

_METADATA = ("metadata.jsonl", "metadata.csv")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


class TextLines(Sequence[dict[str, Any]]):
    """Line pictures and their texts: `lines[i]` is `{"image": PIL, "text": str, "source": str}`, opened when asked for.

    Attributes:
        texts: every text, cleaned.
        sources: where every row came from.
    """

    def __init__(self, pictures: Sequence[Any], texts: Sequence[str], sources: Sequence[str]) -> None:
        """`pictures`: paths, bytes, lines of pages, or rows `{"bytes", "path"}` as `datasets` has undecoded pictures."""
        self._pictures, self.texts, self.sources = pictures, texts, sources

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return {"image": self._open(index), "text": self.texts[index], "source": self.sources[index]}

    def select(self, indices: Iterable[int]) -> "TextLines":
        """The lines of these indices, in their order."""
        indices = list(indices)
        texts, sources = ([column[index] for index in indices] for column in (self.texts, self.sources))
        return TextLines(_Chosen(self._pictures, indices), texts, sources)

    def alone(self) -> "TextLines":
        """The same lines; of pictures in a list, without those of others that they were chosen from."""
        chosen = self._pictures
        if isinstance(chosen, _Chosen) and isinstance(chosen.items, list):
            chosen = [chosen.items[index] for index in chosen.indices]
        return TextLines(chosen, self.texts, self.sources)

    def aspect(self, index: int) -> float:
        """Width by height of picture `index`, read from its head only where that suffices."""
        picture = self._picture(index)
        if isinstance(picture, PageLine):
            return picture.aspect
        if isinstance(picture, str | Path | bytes):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", Image.DecompressionBombWarning)
                    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as head:
                        return head.width / head.height
            except (OSError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError):
                pass  # `_open` says what is wrong
        image = self._open(index)
        return image.width / image.height

    def _picture(self, index: int) -> Any:
        picture = self._pictures[index]
        if isinstance(picture, Mapping):
            return picture["bytes"] if picture.get("bytes") is not None else picture.get("path")
        return picture

    def _open(self, index: int) -> Image.Image:
        picture = self._picture(index)
        if picture is None:
            raise ValueError(f"{self.sources[index]}: wanted a picture, got none. Fill or remove the row.")
        if isinstance(picture, PageLine):
            return picture.crop()
        name = self.sources[index]
        if not isinstance(picture, bytes):
            name += f", {_cut(str(picture), 255 if isinstance(picture, str | Path) else 80)}"
        try:
            return open_picture(picture, name=name)
        except FileNotFoundError:
            raise
        except OSError as error:  # such as of a path that is too long
            raise ValueError(
                f"{name}: wanted a picture, got an error ({error.strerror}). Correct the column."
            ) from error
        except TypeError as error:
            raise ValueError(f"{name}: wanted a picture, got {type(picture).__name__}. Correct the column.") from error


def read_lines(
    path: str | Path,
    split: str | None = None,
    *,
    where: Mapping[str, str | Collection[str]] | None = None,
    on_bad_row: Callable[[Exception], None] | None = None,
) -> TextLines:
    """The lines of a data set on disk.

    Args:
        path: a folder in one of the layouts above, or one file: .parquet, .jsonl, .csv, .xml, or tab-separated .txt or
            .tsv.
        split: such as `train`; picks the file or folder of that name.
        where: column -> wanted value or values; other rows are left out. Needs a layout with columns. `*`, `?` and `[]`
            match as in file names; a value after `!` is unwanted: `{"document": ["!letters/*", "!page 7"]}`.
        on_bad_row: called with the error of each bad row, which is left out; None raises the first.

    Raises:
        FileNotFoundError: if `path` or a picture that a row names is missing.
        ValueError: if no layout fits, nothing is left, or a row is bad; names the file and the row.
    """
    on_bad_row = on_bad_row or _raise
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a folder or file of lines, got {path}, which does not exist. Check it."
        )
    if path.is_file() and path.suffix.lower() == ".xml":
        return _read_pages(path, where, on_bad_row)
    files = [path] if path.is_file() else _layout(path, split)
    if not files:
        folder = path if split is None else path / split
        if is_lmdb(folder):
            return _read_lmdb(folder, where, on_bad_row)
        if is_page_folder(folder):
            return _read_pages(folder, where, on_bad_row)
        raise _no_layout(path, split)
    wanted = {
        key: [str(item) for item in ([value] if isinstance(value, str) or not isinstance(value, Iterable) else value)]
        for key, value in (where or {}).items()
    }
    if files[0].suffix.lower() == ".parquet":
        return _read_columns(_load_parquet(files), files, wanted, on_bad_row)
    if files[0].name in _SAVED_BY_DATASETS:
        return _read_columns(load_saved(files[0].parent, split), files, wanted, on_bad_row)
    of_all_splits = None
    if path.is_dir() and (plain_name(files[0]) == IAM or _is_beside_all(files[0], path)):
        of_all_splits = split
    members = _iam_split(path, of_all_splits) if of_all_splits and plain_name(files[0]) == IAM else set()
    pictures, texts, sources = [], [], []
    has_split = False
    for source, row in read_table(files[0]):
        try:
            if isinstance(row, ValueError):
                raise row
            if not row.get("file_name") or not isinstance(row["file_name"], str):
                raise ValueError(f"{source}: wanted a `file_name` and a `text`, got {dict(row)}. Name the columns so.")
            if plain_name(files[0]) == IAM:
                if of_all_splits and not members & {row["line"], row["form"]}:
                    continue
            elif of_all_splits and _split_of(row) != of_all_splits.lower():
                continue
            has_split = True
            if not _is_wanted(row, wanted, source):
                continue
            picture = _find_picture(files[0], row["file_name"])
            if picture is None:
                raise FileNotFoundError(
                    f"{source}: wanted the picture {_cut(row['file_name'], 255)}, got no such file in {files[0].parent}. "
                    "Add the file or remove the row."
                )
            text = _clean(row.get("text"), source)
        except (ValueError, OSError) as error:
            on_bad_row(error)
            continue
        pictures.append(str(picture))
        texts.append(text)
        sources.append(source)
    if not texts and of_all_splits and not has_split:
        raise ValueError(
            f"{files[0]} must say which rows are of the split `{split}`, by a column `split` or by `file_name`s that begin "
            f"with `{split}/`, got none. Add the column, or put the rows into {path / of_all_splits / files[0].name}."
        )
    if not texts:
        raise ValueError(f"{files[0]} must hold lines, got none{f' where {where}' if where else ''}. Check the file.")
    return TextLines(pictures, texts, sources)


def find_splits(path: str | Path) -> list[str | None]:
    """The splits of the usual names that a folder holds, or `[None]` where it is a file or has none of them."""
    path = Path(path)
    found: list[str | None] = []
    for split in _SPLITS if path.is_dir() else ():
        if any(str(known).startswith(split) for known in found):
            continue  # `val` would find the files of `validation` again
        try:
            files = _layout(path, split)
            if not files and not is_lmdb(path / split) and not is_page_folder(path / split):
                continue
            if files and plain_name(files[0]) == IAM:
                _iam_split(path, split)
            elif files and files[0].name in _SAVED_BY_DATASETS:
                load_saved(files[0].parent, split)
            elif files and _is_beside_all(files[0], path) and split not in _splits_of(files[0]).values():
                continue
        except (ValueError, OSError):
            continue
        found.append(split)
    return found or [None]


def rows_of_no_split(path: str | Path, splits: Iterable[str | None]) -> list[str]:
    """What is wrong with the rows that are of none of the splits, where a metadata file beside all pictures has such."""
    path, known = Path(path), [split for split in splits if split is not None]
    tables = dict.fromkeys(file for split in known for file in _layout(path, split) if _is_beside_all(file, path))
    return [
        f"{source}: wanted a row of {' or '.join(known)}, got the split {_cut(split, 80)!r}. Correct its `split` or folder."
        for table in tables
        for source, split in _splits_of(table).items()
        if split not in known
    ]


def _raise(error: Exception) -> None:
    raise error


def _read_pages(pages: Path, where: Mapping[str, Any] | None, on_bad_row: Callable[[Exception], None]) -> TextLines:
    if where:
        raise ValueError(
            f"`where` chooses by columns, got {dict(where)} for {pages}, whose pages have none. Leave it out."
        )
    lines = read_pages(pages, on_bad_row)
    if not lines:
        raise ValueError(f"{pages} must hold lines with text, got none. Check the files.")
    return TextLines(lines, [_clean(line.text, line.source) for line in lines], [line.source for line in lines])


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose `_name` fits a pattern, in order."""
    if not folder.is_dir():
        return []
    files = (folder / name for name in sorted(os.listdir(folder)) if fnmatchcase(plain_name(Path(name)), pattern))
    return [file for file in files if file.is_file()]


def _is_beside_all(file: Path, folder: Path) -> bool:
    """Whether a file is the metadata of all splits of a folder."""
    return file.parent == folder and plain_name(file) in _METADATA


def _split_of(row: Mapping[str, Any]) -> str:
    """The split that a row of such a file is of, in small letters; empty for none."""
    folder = next(iter(Path(str(row.get("file_name") or "")).parts), "")
    return str(row.get("split", folder) or "").strip().lower()


def _splits_of(table: Path) -> dict[str, str]:
    """Where each row of such a file stands -> its split, rows that can't be read left out."""
    return {source: _split_of(row) for source, row in read_table(table) if not isinstance(row, ValueError)}


def _layout(folder: Path, split: str | None) -> list[Path]:
    """The files of one split: one table, any number of parquet files, the mark of `Dataset.save_to_disk`, or none."""
    saved = [folder / name for name in _SAVED_BY_DATASETS if (folder / name).is_file()]
    if saved:
        return saved[:1]
    if split is None:
        tables = [*_files(folder, "gt_*.txt"), *_files(folder, f"{MJSYNTH}_*.txt")]
        places = [folder]
        parquet = "*.parquet"
    else:
        named = glob.escape(split)
        tables = [file for name in ("gt", MJSYNTH) for file in _files(folder, f"{name}_{named}.txt")]
        places = [folder / split, folder]
        parquet = f"{named}*.parquet"
    tables += [file for place in (folder, folder / "ascii") for file in _files(place, IAM)]
    tables += [file for place in places for name in _METADATA for file in _files(place, name)]
    if split is None and not tables and len(csv_files := _files(folder, "*.csv")) == 1:
        tables = csv_files
    if split is not None and tables:
        return tables[:1]
    if len(tables) == 1:
        return tables
    found = tables or next((f for place in (folder, folder / "data") if (f := _files(place, parquet))), [])
    if split is None and len({file.name.split(".")[0].split("-")[0] for file in found}) > 1:
        raise ValueError(
            f"`split` must say which part of {folder} to read, got None and {', '.join(f.name for f in found)}. "
            "Name one, such as `split='train'`."
        )
    return found


def _no_layout(folder: Path, split: str | None) -> ValueError:
    wanted = "gt_*.txt, metadata.jsonl, metadata.csv or *.parquet" if split is None else (
        f"gt_{split}.txt, {split}/metadata.jsonl, {split}/metadata.csv or {split}*.parquet"
    )  # fmt: skip
    there = sorted(entry.name for entry in folder.iterdir())[:8]
    return ValueError(
        f"{folder} must hold {wanted}, got {', '.join(there) or 'an empty folder'}. Add one, or check `split`."
    )


def _iam_split(folder: Path, split: str) -> set[str]:
    """The forms and lines that a split's list names."""
    for suffix in (".uttlist", ".lst", ".txt"):
        for place in (folder, folder / "splits"):
            if (place / f"{split}{suffix}").is_file():
                return set((place / f"{split}{suffix}").read_text(encoding="utf-8-sig").split())
    raise ValueError(
        f"{folder} must say which forms are of the split `{split}`, in {split}.uttlist, {split}.lst or {split}.txt, got none. "
        "Add the list, one form or line a row."
    )


def _read_lmdb(folder: Path, where: Mapping[str, Any] | None, on_bad_row: Callable[[Exception], None]) -> TextLines:
    if where:
        raise ValueError(f"`where` chooses by columns, got {dict(where)} for {folder}, which has none. Leave it out.")
    pictures = LmdbPictures(folder)
    good, texts, sources = [], [], []
    for index, label in enumerate(pictures.labels):
        source = f"{folder}, sample {index + 1}"
        try:
            if isinstance(label, ValueError):
                raise label
            text = _clean(label, source)
        except ValueError as error:
            on_bad_row(error)
            continue
        good.append(index)
        texts.append(text)
        sources.append(source)
    if not texts:
        raise ValueError(f"{folder} must hold lines with text, got none. Make it again.")
    return TextLines(_Chosen(pictures, good), texts, sources)


class _Chosen(Sequence[Any]):
    """Some of a sequence's items, each taken when asked for."""

    def __init__(self, items: Sequence[Any], indices: Sequence[int]) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        return self.items[self.indices[index]]


def _load_parquet(files: Sequence[Path]) -> datasets.Dataset:
    names = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
    try:
        if any(pyarrow.parquet.read_metadata(file).num_rows for file in files):
            return datasets.Dataset.from_parquet([str(file) for file in files])
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{names}: wanted parquet data, got {error.__cause__ or error}. Copy or download it again."
        ) from error
    raise ValueError(f"{names} must hold lines, got no rows. Check the file.")


def load_saved(folder: Path, split: str | None) -> datasets.Dataset:
    """One split of what `save_to_disk` wrote.

    Raises:
        ValueError: if the files are damaged, or there is no such split.
    """
    try:
        saved = datasets.load_from_disk(str(folder))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{folder} must hold what `save_to_disk` writes, got damaged files ({error}). Write or copy it again."
        ) from error
    if isinstance(saved, datasets.Dataset):
        if split is not None and saved.split is not None and str(saved.split) != split:
            raise ValueError(f"`split` must be {saved.split}, all that {folder} holds, got {split}. Correct it.")
        if split not in (None, "train") and saved.split is None:  # else training data would be validated on
            raise ValueError(
                f"`split` must be train or None, as {folder} holds one data set that knows no split, got {split}. "
                "Save a `DatasetDict` of all splits."
            )
        return saved
    if split is None and len(saved) == 1:
        return next(iter(saved.values()))
    if split not in saved:
        raise ValueError(
            f"`split` must be one of {', '.join(map(str, saved))} in {folder}, got {split}. Name one of them."
        )
    return saved[split]


def _read_columns(
    rows: datasets.Dataset,
    files: Sequence[Path],
    wanted: Mapping[str, Sequence[str]],
    on_bad_row: Callable[[Exception], None],
) -> TextLines:
    name = str(files[0]) if len(files) == 1 else f"{files[0].parent}/({len(files)} parquet files)"
    if not len(rows):
        raise ValueError(f"{name} must hold lines, got no rows. Check the file.")
    for column in ("image", "text", *wanted):
        if column not in rows.column_names:
            raise ValueError(f"{name} must have a column `{column}`, got {', '.join(rows.column_names)}. Rename one.")
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    columns = {column: rows[column] for column in {"text", *wanted}}
    keep = [
        index
        for index in range(len(rows))
        if all(is_chosen(columns[key][index], patterns) for key, patterns in wanted.items())
    ]
    if not keep:
        raise ValueError(f"{name} must hold lines, got none where {dict(wanted)}. Check the columns' values.")
    texts = list(columns["text"])
    good, cleaned = [], []
    for index in keep:
        try:
            cleaned.append(_clean(texts[index], f"{name}, row {index}"))
        except ValueError as error:
            on_bad_row(error)
            continue
        good.append(index)
    return TextLines(_Column(rows.select(good), "image"), cleaned, [f"{name}, row {index}" for index in good])


class _Column(Sequence[Any]):
    """One column of a `datasets.Dataset`, a row at a time."""

    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        self._rows, self._name = rows.select_columns([name]), name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        return self._rows[index][self._name]


def _is_wanted(row: Mapping[str, Any], wanted: Mapping[str, Sequence[str]], source: str) -> bool:
    for column in wanted:
        if column not in row:
            raise ValueError(f"{source}: wanted a column `{column}` to choose by, got {', '.join(row)}. Add it.")
    return all(is_chosen(row[column], patterns) for column, patterns in wanted.items())


def is_chosen(value: Any, patterns: Iterable[str]) -> bool:
    """Whether a value is one of `where`'s patterns, those after `!` taken out; with none but such, all others are."""

    def fits(pattern: str) -> bool:
        return str(value) == pattern or fnmatchcase(str(value), pattern)

    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    return (not wanted or any(map(fits, wanted))) and not any(map(fits, unwanted))


def _find_picture(table: Path, file_name: str) -> Path | None:
    """The picture beside its table, in `image/` as the authors' STR and IAM sets have it, or in IAM's own `lines/`."""
    folder = table.parent
    places: tuple[Path, ...] = (folder,)
    if plain_name(table) == IAM:
        places = (folder / "lines", folder.parent / "lines", folder, folder.parent)
    elif table.suffix.lower() in (".txt", ".tsv"):
        places = (folder / "image", folder)
    for place in places:
        if os.path.isfile(place / file_name):  # unlike `Path.is_file` false for a name that is too long
            return place / file_name
    return None


def _cut(text: str, length: int) -> str:
    """A text for a message, which any stream takes, shortened if it's long."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else f"{text[:80]}..."


def _clean(text: Any, source: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{source}: wanted a `text`, got {text!r}. Fill or remove the row.")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if not text:
        raise ValueError(f"{source}: wanted a `text`, got an empty one. Fill or remove the row.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{source}: wanted a `text` of whole characters, got half of one in {text[:60]!r}. Correct it."
        ) from error
    return text
