"""Files of conversations, row by row, in every layout that people have; what a row means is told in `conversations.py`."""

import codecs
import itertools
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from hf_vlm.data.lines.image_text import load_saved
from hf_vlm.data.lines.line_tables import plain_name

FIELDS = ("messages", "conversations")
PICTURE_FIELDS = ("images", "image")
SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")
HELD = object()  # a picture whose bytes are in its row
_CHARACTERS = 1 << 22  # of a JSON file, read at a time
_ROWS = 1000  # of a table, read at a time
_SPACE = re.compile(r"[ \t\n\r]*")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<total>\d+)\.parquet", re.IGNORECASE)


class ConversationError(ValueError):
    """What is wrong with a conversation.

    Attributes:
        kind: in a few words, for counting.
    """

    def __init__(self, message: str, kind: str = "bad rows") -> None:
        super().__init__(message)
        self.kind = kind


class StoredPath(str):
    """A picture's path as `datasets` keeps it, which may be absolute."""


def open_rows(
    files: Sequence[Path],
    split: str | None,
    wanted: Sequence[str] | None = None,
    needed: Sequence[str] = (),
    picture_column: str | None = None,
) -> tuple[Iterable[Any], "Places", "HeldPictures"]:
    """The rows of files, where they stand, and the pictures held in them.

    Args:
        wanted: columns of tables that are read; None for all.
        needed: of which a table must have one.
        picture_column: of a table: the column of pictures, where it is not called `image` or `images`; it is then `image`.
    """
    suffix = files[0].suffix.lower()
    if files[0].name in SAVED_BY_DATASETS:
        table = load_saved(files[0].parent, split)
        splits = saved_splits(files[0])
        place = files[0].parent / (split or splits[0]) if splits else files[0].parent
        places = Places([str(place)], [0])
    elif suffix == ".parquet":
        table, starts = _load_parquet(files)
        places = Places([str(file) for file in files], starts)
    elif suffix in (".json", ".jsonl"):
        lines = array("q") if suffix == ".jsonl" else None
        rows = read_json_list(files[0]) if lines is None else read_json_lines(files[0], lines)
        return rows, Places([str(files[0])], [0], lines), HeldPictures(None)
    else:
        raise ValueError(f"`path` must be a file .json, .jsonl or .parquet, or a folder, got {files[0]}. Convert it.")
    if picture_column in table.column_names and picture_column not in PICTURE_FIELDS:
        table = table.remove_columns([name for name in PICTURE_FIELDS if name in table.column_names])
        table = table.rename_column(picture_column, "image")
    columns = [name for name in table.column_names if wanted is None or name in wanted]
    if needed and not set(needed) & set(columns):
        named = " or ".join(f"`{name}`" for name in needed)
        raise ValueError(
            f"{named_files(files)} must have a column {named}, got {', '.join(table.column_names)}. Rename one."
        )
    return _read_table(table, columns), places, HeldPictures(table)


def _read_table(table: datasets.Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a table, `HELD` in place of pictures' bytes, which are not read."""
    for batch in table.select_columns(list(columns)).with_format("arrow").iter(batch_size=_ROWS):
        for part in batch.to_batches():
            read = {
                name: _marks(part.column(name)) if name in PICTURE_FIELDS else part.column(name).to_pylist()
                for name in columns
            }
            for values in zip(*read.values(), strict=True):
                yield dict(zip(read, values, strict=True))


def _marks(pictures: Any) -> list[Any]:
    """Of an arrow array of pictures, or of lists of them: `HELD`, the name, or None for each."""
    kind, types = pictures.type, pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items = iter(_marks(pyarrow.compute.list_flatten(pictures)))
        numbers = pyarrow.compute.list_value_length(pictures).to_pylist()
        return [None if number is None else list(itertools.islice(items, number)) for number in numbers]
    if types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        nothing = [None] * len(pictures)
        held = pyarrow.compute.struct_field(pictures, "bytes").is_valid().to_pylist() if "bytes" in names else nothing
        paths = pyarrow.compute.struct_field(pictures, "path").to_pylist() if "path" in names else nothing
        return [HELD if is_held else path and StoredPath(path) for is_held, path in zip(held, paths, strict=True)]
    if types.is_binary(kind) or types.is_large_binary(kind):
        return [HELD if is_held else None for is_held in pictures.is_valid().to_pylist()]
    return pictures.to_pylist()


def _load_parquet(files: Sequence[Path]) -> tuple[datasets.Dataset, list[int]]:
    """The rows of parquet files as one table, and the number of each file's first."""
    try:
        sizes = [pyarrow.parquet.read_metadata(file).num_rows for file in files]
        if sum(sizes):
            table = datasets.Dataset.from_parquet([str(file) for file in files])
            return table, [0, *itertools.accumulate(sizes[:-1])]
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{named_files(files)}: wanted parquet data, got {error.__cause__ or error}. Copy or download it again."
        ) from error
    raise ValueError(f"{named_files(files)} must hold conversations, got no rows. Check the file.")


def read_json_lines(file: Path, lines: array) -> Iterator[Any]:
    """Each row of a JSON-lines file, or what is wrong with it, its line's number put into `lines` before."""
    with file.open(encoding="utf-8-sig") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                lines.append(number)
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    told = f"{file}, line {number}: wanted a JSON object, got {line[:60]!r} ({error}). Correct it."
                    yield ConversationError(told)
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error


def read_json_list(file: Path) -> Iterator[Any]:
    """Each item of a JSON list, without holding all of them.

    Raises:
        ValueError: if the file is none, or damaged; names the row, after which no other can be told.
    """
    decoder, row = json.JSONDecoder(), 0
    with file.open(encoding="utf-8-sig") as stream:
        try:
            text = stream.read(_CHARACTERS)
            start = _end_of_space(text, 0)
            if text[start : start + 1] != "[":
                raise ValueError(
                    f"{file} must hold a JSON list of conversations, got {text[start : start + 60]!r}. Put `[` and `]` around "
                    "the rows with commas between them, or name a file with one object a line `.jsonl`."
                )
            position, is_parted, reason = start + 1, True, "the end of the file"
            while True:
                position = _end_of_space(text, position)
                if text[position : position + 1] == "]":
                    return
                if position < len(text) and not is_parted:
                    if text[position] != ",":
                        raise _cut_list(file, row, repr(text[position : position + 60]))
                    position, is_parted = position + 1, True
                    continue
                if position < len(text):
                    try:
                        item, position = decoder.raw_decode(text, position)
                    except (ValueError, RecursionError) as error:  # or it goes on in the next part of the file
                        reason = f"{text[position : position + 60]!r} ({getattr(error, 'msg', error)})"
                    else:
                        yield item
                        row, is_parted, reason = row + 1, False, "the end of the file"
                        continue
                more = stream.read(max(_CHARACTERS, len(text) - position))  # twice as much each time: linear in all
                if not more:
                    raise _cut_list(file, row, reason)
                text, position = text[position:] + more, 0
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None  # it matches nothing, too
    return match.end()


def _cut_list(file: Path, row: int, got: str) -> ValueError:
    return ValueError(f"{file}, row {row}: wanted a JSON object, got {got}. Correct it, or copy or download it again.")


def not_utf8(file: Path) -> ValueError:
    """What to say of a file in another encoding."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as stream:
        try:
            while part := stream.read(_CHARACTERS):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:  # its bytes begin with those of a character that the last part left open
            place = stream.tell() - len(error.object) + error.start
    return ValueError(f"{file} must be UTF-8 text, got byte {place} that is not. Convert it.")


def saved_splits(mark: Path) -> list[str]:
    """The splits that a mark of `save_to_disk` tells of, if any."""
    try:
        return [str(split) for split in json.loads(mark.read_text(encoding="utf-8")).get("splits", [])]
    except (ValueError, AttributeError, TypeError):
        return []  # `load_saved` says what is wrong


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder with these suffixes in small or capital letters, in order."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(suffixes))
    return [folder / name for name in names if (folder / name).is_file()]


def find_layout(folder: Path, split: str | None, fields: Sequence[str] = FIELDS) -> list[Path]:
    """The files of one split: the mark of `save_to_disk`, one JSON file, any number of parquet files, or none.

    Where several files could be meant, it is the one whose first row has one of the `fields`.

    Raises:
        ValueError: if files of several splits could be meant, or parquet files are missing by what the others are called.
    """
    saved = [folder / name for name in SAVED_BY_DATASETS if (folder / name).is_file()]
    if saved:
        return saved[:1]
    if split is None:
        tables = files_in(folder, ".json", ".jsonl")
        shards = files_in(folder, ".parquet") or files_in(folder / "data", ".parquet")
        if len(tables) > 1 or shards:  # others may be there, such as of settings
            tables = [file for file in tables if has_fields(file, fields)]
        names = {file.name.split(".")[0].split("-")[0] for file in shards}
        if len(tables) > 1 or (not tables and len(names) > 1):
            raise ValueError(
                f"`split` must say which part of {folder} to read, got None and {_some(file.name for file in tables or shards)}. "
                "Name one, such as `split='train'`, or give the file."
            )
        return tables or _all_there(shards)
    tables = [
        file for file in files_in(folder, ".json", ".jsonl") if plain_name(file) in (f"{split}.json", f"{split}.jsonl")
    ]
    if not tables and (tables := files_in(folder / split, ".json", ".jsonl"))[1:]:
        tables = [file for file in tables if has_fields(file, fields)]
    if len(tables) > 1:
        raise ValueError(
            f"{folder} must hold one file of the split `{split}`, got {_some(map(str, tables))}. Give the file."
        )
    if tables:
        return tables
    # `val` is not `validation` nor `val2017`, `test` not `test_2016`; `train_0` and `train_00` are parts of `train`
    named = re.compile(rf"{re.escape(split)}(_?(0\d*|\d{{1,3}}))?[-.]")
    for place in (folder, folder / "data"):
        if shards := [file for file in files_in(place, ".parquet") if named.match(file.name)]:
            return _all_there(shards)
    return _all_there(files_in(folder / split, ".parquet"))


def _all_there(shards: list[Path]) -> list[Path]:
    """The same files, of which none is missing by what their names say."""
    sets: dict[tuple[str, str], set[int]] = {}
    for file in shards:
        if match := _PART.fullmatch(file.name):
            sets.setdefault((match["stem"], match["total"]), set()).add(int(match["number"]))
    for (stem, total), numbers in sets.items():
        if len(numbers) < int(total):
            absent = min(set(range(int(total))) - numbers)
            raise ValueError(
                f"{shards[0].parent} must hold {int(total)} files {stem}-*-of-{total}.parquet, as their names say, got "
                f"{len(numbers)}, not {stem}-{absent:0{len(total)}}-of-{total}.parquet. Copy or write the others, or "
                "give one file."
            )
    return shards


def no_layout(folder: Path, split: str | None) -> ValueError:
    """What to say of a folder without such files."""
    wanted = "one *.json or *.jsonl, or *.parquet" if split is None else (
        f"{split}.json, {split}.jsonl, {split}.parquet, {split}-*.parquet or {split}/*.parquet"
    )  # fmt: skip
    there = sorted(entry.name for entry in folder.iterdir())[:8]
    return ValueError(
        f"{folder} must hold {wanted}, got {', '.join(there) or 'an empty folder'}. Add one, or check `split`."
    )


def has_fields(file: Path, fields: Sequence[str] = FIELDS) -> bool:
    """Whether the first row of a file has one of the fields, those of a conversation by default."""
    try:
        if file.suffix.lower() == ".parquet":
            return bool(set(fields) & set(pyarrow.parquet.read_schema(file).names))
        rows = read_json_list(file) if file.suffix.lower() == ".json" else read_json_lines(file, array("q"))
        first = next((row for row in itertools.islice(rows, 10) if isinstance(row, Mapping)), {})
    except (ValueError, OSError):
        return False
    return bool(set(fields) & set(first))


# What rows are kept in


class Texts(Sequence[str]):
    """Many texts in one block of memory, which workers share as it is, where a list's are copied by their counts."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array("q", [0])

    def append(self, text: bytes) -> None:
        """Add a text, in UTF-8."""
        self._data += text
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self._data[self._ends[index] : self._ends[index + 1]].decode()


class Places:
    """Where rows stand: `FILE, row 3`, counted from 0 in each file, or `FILE, line 4` by a list of lines."""

    def __init__(self, files: Sequence[str], starts: Sequence[int], lines: array | None = None) -> None:
        self._files, self._starts, self._lines = files, np.array(starts), lines

    def __getitem__(self, index: int) -> str:
        if self._lines is not None:
            return f"{self._files[0]}, line {self._lines[index]}"
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._files[file]}, row {index - self._starts[file]}"


class HeldPictures:
    """The pictures that a table holds, a row's read when asked for, undecoded.

    Attributes:
        features: what `datasets` knows of the columns of a table, such as names of classes; empty for other files.
    """

    def __init__(self, table: datasets.Dataset | None) -> None:
        self._columns = []
        self.features: Mapping[str, Any] = {} if table is None else table.features
        if table is not None:
            names = [name for name in PICTURE_FIELDS if name in table.column_names]
            self._columns = [table.select_columns([name]).with_format("arrow") for name in names]

    def __getitem__(self, row: int) -> list[Any]:
        for column in self._columns:
            value = column[row].column(0)[0].as_py()
            if value:
                values = value if isinstance(value, list) else [value]
                return [item["bytes"] if isinstance(item, Mapping) else item for item in values]
        return []


class Chosen(Sequence[str]):
    """Where the chosen rows stand, each told when asked for."""

    def __init__(self, items: Places | Sequence[str] | Mapping[int, str], rows: np.ndarray) -> None:
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self._items[int(self._rows[index])]


def named_files(files: Sequence[Path]) -> str:
    """What an error calls these files."""
    if files[0].name in SAVED_BY_DATASETS:
        return str(files[0].parent)
    return ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def cut(text: str, length: int) -> str:
    """A text for a message, which any stream takes, shortened if it's long."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else f"{text[:length]}..."
