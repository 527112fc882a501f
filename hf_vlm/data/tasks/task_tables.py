"""Tables of captions and questions, row by row: CSV as programs and spreadsheets write it, Flickr's, MMBench's.

    file_name,caption                        also `image`, `image_name`, `filename`, and any columns of a task; parted by commas,
                                             tabs, semicolons or `|`, which the first line shows
    image_name| comment_number| comment      Flickr30k's results.csv
    NAME.jpg#0<TAB>CAPTION                   Flickr8k.token.txt, results_20130124.token: no first line of names
    index<TAB>...<TAB>image                  MMBench's: a picture in base64, or the `index` of the row that has it

Rows of captions that follow each other and are about one picture are one row. A file is never held as a whole.

Sources: Hodosh et al. 2013 (Flickr8k), Young et al. 2014 (Flickr30k), https://aclanthology.org/Q14-1006; Liu et al. 2023
    (MMBench), https://arxiv.org/abs/2307.06281
"""

import base64
import binascii
import csv
import re
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import HELD, ConversationError, HeldPictures, cut, files_in
from hf_vlm.data.lines.line_tables import plain_name
from hf_vlm.data.tasks.source_rows import PICTURE_SUFFIXES, VALIDATION_NAMES, SourceRows, only_one

_SUFFIXES = (".csv", ".tsv", ".txt", ".token")
_OWN_NAMES = (
    "captions.txt",
    "results.csv",
    "results_20130124.token",
    "flickr8k.token.txt",
)  # of Flickr8k and Flickr30k
_RENAMED = {"image_name": "file_name", "filename": "file_name", "image_path": "file_name", "comment": "caption"}
_KNOWN = ("file_name", "image", "images", "question", "source", *_RENAMED)  # one of which the first line must have
_TOKEN_LINE = re.compile(r"[^\t]+#\d+\t")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64}")
_SHORTEST_PICTURE = 64  # characters of base64; a shorter value is the index of another row


def find_table(path: Path, split: str | None) -> Path | None:
    """The table that a path means, if any."""
    if path.is_file():
        return path if path.suffix.lower() in _SUFFIXES else None
    if split is not None:
        named = [
            file for file in files_in(path, ".csv", ".tsv") if plain_name(file) in (f"{split}.csv", f"{split}.tsv")
        ]
        beside = [file for file in files_in(path / split, ".csv") if plain_name(file) == "metadata.csv"]
        if file := only_one([*named, *beside], path, f"table of the split `{split}`"):
            return file
    metadata = [file for file in files_in(path, ".csv") if plain_name(file) == "metadata.csv"]
    own = [file for file in files_in(path, *_SUFFIXES) if file.name.lower() in _OWN_NAMES]
    tables = files_in(path, ".csv", ".tsv") if split is None else []
    return only_one(metadata or own or tables, path, "table")


def table_rows(file: Path, split: str | None, task: str, columns: Mapping[str, str]) -> SourceRows:
    """The rows of a table.

    Raises:
        ValueError: if the file is not UTF-8, or its first line names no columns; bad rows are given as errors.
    """
    table = _Table(file, columns.values())
    rows: Iterable[tuple[str, Any]] = _part(file, split, table.rows())
    if task == "caption" and not table.holds_pictures:
        rows = _joined(rows, columns)
    folder = next(
        (file.parent / name for name in ("Images", "images", "flickr30k_images") if _has(file.parent / name)), None
    )
    own = file.name.lower() in _OWN_NAMES
    return SourceRows(rows, folder if own and folder is not None else file.parent, table)


def _has(folder: Path) -> bool:
    return folder.is_dir()


class _Table(HeldPictures):
    """The rows of a table, and the pictures in its rows, which are read again when asked for."""

    def __init__(self, file: Path, named: Collection[str]) -> None:
        super().__init__(None)
        self.file, self._starts, self._row_of_index = file, array("q"), dict[str, int]()
        with file.open("rb") as stream:
            head = _decoded(file, 1, stream.readline()).removeprefix("\ufeff").rstrip("\r\n")
        self._has_names = not _TOKEN_LINE.match(head)
        self._separator = "\t"
        self.names = ["file_name", "caption"]
        if self._has_names:
            self._separator, self.names = _columns(file, head, named)
        self.holds_pictures = False
        if {"index", "image"} <= set(self.names):
            self._index()

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Where each row stands, and the row or what is wrong with it."""
        for number, (place, _, fields) in enumerate(self._read()):
            yield place, fields if isinstance(fields, ValueError) else self._row(number, fields)

    def __getitem__(self, row: int) -> list[bytes]:
        value = self._picture_of(row)
        if len(value) < _SHORTEST_PICTURE:
            value = self._picture_of(self._row_of_index[value])
        try:
            return [base64.b64decode(value)]
        except binascii.Error as error:
            raise ValueError(f"{self.file}, row {row}: wanted a picture in base64, got an error ({error}).") from error

    def _picture_of(self, row: int) -> str:
        with self.file.open("rb") as stream:
            stream.seek(self._starts[row])
            fields = next(_records(self.file, stream, self._separator))[2]
        return "" if isinstance(fields, ValueError) else fields[self.names.index("image")].strip()

    def _index(self) -> None:
        """Where each row begins, if pictures are in rows at all."""
        at, picture = self.names.index("index"), self.names.index("image")
        for number, (_, start, fields) in enumerate(self._read()):
            self._starts.append(start)
            if isinstance(fields, list) and len(fields) == len(self.names):
                value = fields[picture].strip()
                if len(value) >= _SHORTEST_PICTURE and _BASE64.match(value):
                    self._row_of_index[fields[at].strip()] = number
        self.holds_pictures = bool(self._row_of_index)

    def _read(self) -> Iterator[tuple[str, int, list[str] | ValueError]]:
        with self.file.open("rb") as stream:
            records = _records(self.file, stream, self._separator, is_plain=not self._has_names)
            if self._has_names:
                next(records)
            yield from records

    def _row(self, number: int, fields: list[str]) -> Any:
        if len(fields) != len(self.names):
            return ConversationError(
                f"wanted {len(self.names)} values parted by {self._separator!r}, got {len(fields)}. Correct the row; quote texts "
                "that hold the mark."
            )
        row: dict[Any, Any] = {name: field.strip() for name, field in zip(self.names, fields, strict=True) if name}
        if not self._has_names:
            row["file_name"] = row["file_name"].rpartition("#")[0]
        if self.holds_pictures:
            if len(row["image"]) < _SHORTEST_PICTURE and row["image"] not in self._row_of_index:
                return ConversationError(
                    f"wanted a picture in base64 or the `index` of a row that has it, got {cut(repr(row['image']), 40)}. Correct "
                    "the row."
                )
            row |= {"image": HELD, HELD: number}
        return row


def _columns(file: Path, head: str, named: Collection[str]) -> tuple[str, list[str]]:
    """The separator and the names of the columns by the first line."""
    for separator in ("\t", ",", "|", ";"):
        names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
        if len(names) > 1 and (set(_KNOWN) | set(named)) & set(names):
            taken = {*names, *named}
            names = [_RENAMED[name] if name in _RENAMED and not {name, _RENAMED[name]} & (taken - {name}) else name
                     for name in names]  # fmt: skip
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise ValueError(f"{file} must name each column once, got `{twice[0]}` twice. Rename or remove one.")
            return separator, names
    cells = head.split("\t")
    if len(cells) == 2 and cells[1].startswith(("http://", "https://")):
        raise ValueError(
            f"{file} must name files of pictures, got URLs, such as {cut(cells[1], 60)}. Download them, for instance into tar "
            "files by img2dataset, which are read."
        )
    if len(cells) == 2 and cells[0].lower().endswith(PICTURE_SUFFIXES):
        raise ValueError(
            f"{file} must name its columns in its first line, got {cut(repr(head), 80)}. Put `file_name<TAB>caption` above it."
        )
    raise ValueError(
        f"{file} must name its columns in its first line, one of them `file_name` or `image`, got {cut(repr(head), 80)}. Add "
        "it, or say which is which by `columns`."
    )


def _records(
    file: Path, stream: Any, separator: str, is_plain: bool = False
) -> Iterator[tuple[str, int, list[str] | ValueError]]:
    """Place, first byte and fields of each record from where a stream stands; `is_plain`: two fields, parted at the first tab."""
    lines = _Lines(file, stream)
    if separator == "|":  # Flickr30k's captions have quotes of their own
        reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        start, number = lines.end, lines.number + 1
        place = f"{file}, line {number}"
        try:
            if is_plain:
                fields = next(lines).rstrip("\r\n").split("\t", 1)
            else:
                limit = csv.field_size_limit(sys.maxsize)  # a picture in base64 is longer than Python's usual limit
                try:
                    fields = next(reader)
                finally:
                    csv.field_size_limit(limit)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, start, ConversationError(
                f"wanted a row whose texts are quoted, with quotes in them doubled, got one that is not ({error}). Correct it."
            )  # fmt: skip
            continue
        if any(field.strip() for field in fields):
            yield place, start, fields


class _Lines:
    """Lines of a file for `csv.reader`, with the byte and the line at which the last one ended."""

    def __init__(self, file: Path, stream: Any) -> None:
        self._file, self._stream, self.end, self.number = file, stream, stream.tell(), 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line: bytes = self._stream.readline()
        if not line:
            raise StopIteration
        self.number += 1
        self.end += len(line)
        text = _decoded(self._file, self.number, line)
        return text.removeprefix("\ufeff") if self.number == 1 else text


def _decoded(file: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}: wanted UTF-8 text, got byte {error.start} of the line that is not. Save it as UTF-8."
        ) from error


def _part(file: Path, split: str | None, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The rows of a split: of a table of that name, all; else by a column, a list of names beside, or a folder's name."""
    if split is None or split in (file.stem, file.parent.name):
        yield from rows
        return
    names = {split} if split not in VALIDATION_NAMES else set(VALIDATION_NAMES)
    lists = [file.parent / form for name in names for form in (f"Flickr_8k.{name}Images.txt", f"{name}.txt")]
    wanted: set[str] | None = None
    if found := next((one for one in lists if one.is_file() and one != file), None):
        wanted = {
            Path(line.strip()).stem for line in found.read_text(encoding="utf-8-sig").splitlines() if line.strip()
        }
    is_own, any_row = file.name.lower() in _OWN_NAMES, False
    for place, row in rows:
        if isinstance(row, Mapping):
            name = str(row.get("file_name") or row.get("image") or "")
            if wanted is not None:
                is_in = Path(name).stem in wanted
            elif "split" in row:
                is_in = row["split"] in names
            elif is_own or not _has_split_folders(file.parent, name):
                is_in = split == "train"  # a set that knows no split is for training
            else:
                is_in = Path(name).parts[0] in names
            if not is_in:
                continue
            any_row = True
        yield place, row
    if not any_row:
        raise ValueError(
            f"`split` must be one that {file} tells, by its column `split`, a list of names such as {lists[0].name} beside it, "
            f"or folders of pictures, got `{split}`. Name another, or None for all."
        )


def _has_split_folders(folder: Path, name: str) -> bool:
    return len(Path(name).parts) > 1 and Path(name).parts[0] in ("train", "test", *VALIDATION_NAMES)


def _joined(rows: Iterable[tuple[str, Any]], columns: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Rows of captions about one picture that follow each other, as one."""
    names = [columns[name] for name in ("image",) if name in columns] or ["file_name", "image"]
    answers = [columns[name] for name in ("answer",) if name in columns] or ["caption", "text"]
    held: tuple[str, dict[str, Any], str, str] | None = None
    for place, row in rows:
        name = next((row[key] for key in names if row.get(key)), None) if isinstance(row, Mapping) else None
        answer = next((key for key in answers if key in row), None) if isinstance(row, Mapping) else None
        if name is not None and held is not None and (name, answer) == held[2:]:
            held[1][held[3]].append(row[held[3]])
            continue
        if held is not None:
            yield held[0], held[1]
        held = None
        if name is None or answer is None:
            yield place, row
        else:
            held = place, {**row, answer: [row[answer]]}, name, answer
    if held is not None:
        yield held[0], held[1]
