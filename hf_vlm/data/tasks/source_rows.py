"""What the readers of published data sets give: rows one by one, and the pictures that lie in archives.

(where it stands, the row or what is wrong with it), ...   `SourceRows.rows`, read as they are asked for
name of a picture                                          relative to `SourceRows.folder`
`HELD` in a row                                            its pictures are `SourceRows.held[number of the row]`, counted
                                                           from 0, or of the number that the row has under the key `HELD`
"""

import json
import zipfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import ConversationError, HeldPictures, Texts

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # which of these a set says is its makers' choice
_ROW_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class SourceRows:
    """Rows of a set in the making.

    Attributes:
        rows: where each stands, and the row or the error that tells what is wrong with it.
        folder: that names of pictures are relative to.
        held: the pictures of rows that hold them.
    """

    rows: Iterable[tuple[str, Any]]
    folder: Path
    held: HeldPictures = field(default_factory=lambda: HeldPictures(None))


class FilePieces(HeldPictures):
    """Pictures that are stretches of uncompressed files, as in a tar, each read when asked for."""

    def __init__(self) -> None:
        super().__init__(None)
        self.files: list[str] = []
        self._file, self._start, self._size, self._ends = array("l"), array("q"), array("q"), array("q", [0])

    def add_row(self, pieces: Sequence[tuple[int, int, int]]) -> None:
        """Add the pictures of the next row: number of the file, first byte, bytes."""
        for file, start, size in pieces:
            self._file.append(file)
            self._start.append(start)
            self._size.append(size)
        self._ends.append(len(self._file))

    def __getitem__(self, row: int) -> list[bytes]:
        pictures = []
        for at in range(self._ends[row], self._ends[row + 1]):
            with open(self.files[self._file[at]], "rb") as stream:
                stream.seek(self._start[at])
                pictures.append(stream.read(self._size[at]))
        return pictures


class ZipPictures(HeldPictures):
    """One picture a row, in a zip file; `None` in place of a worker's open file when pickled."""

    def __init__(self, file: Path) -> None:
        super().__init__(None)
        self._path, self._names = file, Texts()
        self._zip: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def add_row(self, name: str) -> None:
        """Add the picture of the next row by its name."""
        self._names.append(name.encode())

    def __contains__(self, name: str) -> bool:
        return name in self._opened().NameToInfo

    def __getitem__(self, row: int) -> list[bytes]:
        try:
            return [self._opened().read(self._names[row])]
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(
                f"{self._path}, {self._names[row]}: wanted a whole file, got an error ({error}). Copy it again."
            ) from error

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self._path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self._path} must be a zip file, got another ({error}). Copy it again.") from error
        return self._zip


def load_json(path: Path) -> Any:
    """What a JSON file holds; raises ValueError with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: wanted JSON, got something else ({error}). Copy or download it again.") from error


def head_of(path: Path, characters: int = 4000) -> str:
    """The first characters of a text file, without space before; none where it is no text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(characters).lstrip()
    except (UnicodeDecodeError, OSError):
        return ""


def first_object(path: Path) -> dict[str, Any]:
    """The first line of a file of JSON lines, empty where it is no object in itself, or too long to be a row."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            row = json.loads(file.readline(_ROW_CHARACTERS).strip() or file.readline(_ROW_CHARACTERS))
    except (ValueError, OSError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def only_one(found: Sequence[Path], folder: Path, what: str) -> Path | None:
    """The file, if there is one; ValueError if there are several."""
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise ValueError(f"{folder} must hold one {what}, got {names}. Name the split or the file.")
    return found[0] if found else None


def missing(error: KeyError | TypeError | AttributeError, wanted: str) -> ConversationError:
    """What to say of a row that lacks a field."""
    return ConversationError(f"wanted {wanted}, got a row without ({error}). Mend or remove the row.", "missing fields")
