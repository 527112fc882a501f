"""Write conversations about pictures as a folder that the Hub, `datasets` and training read, however large it gets.

    FOLDER/data/SPLIT-00000-of-00003.parquet, ...
        id         text, or null
        messages   list of {"role", "content": list of {"type": "image" | "text", "text"}}
        images     list of {"bytes", "path"}, in the reading order of their parts: a feature `Image` of `datasets`
        ...        notes of the caller's, such as `kind` and `references`

Rows are kept in groups of some 32 MB, so that a reader need not hold a file, and a picture that comes several times in a group is
stored once. Until all is well the files are `.SPLIT-00000.parquet.unfinished`, which no reader takes for data.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import datasets
import pyarrow
import pyarrow.parquet

from hf_vlm.data.conversations.conversation_files import SAVED_BY_DATASETS, ConversationError, cut
from hf_vlm.data.conversations.conversations import check_messages
from hf_vlm.data.picture_checks import check_picture

_MB = 1_000_000
_GROUP_BYTES = 32 * _MB  # of pictures and texts in a row group
_GROUP_ROWS = 5000  # as short texts take more in memory than they have bytes
_FIELDS = ("id", "messages", "images")
_TYPES = ("string", "int64", "float64", "bool")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` takes for one


class ConversationWriter:
    """Adds conversations to one split of a folder, in a `with` block, at whose end they are there, all or none.

    Args:
        folder: made if it is not there; it may hold other splits, and other files.
        split: such as `train`.
        notes: further columns: name -> `string`, `int64`, `float64`, `bool`, or `list<...>` of one of these. A row need not have
            all of them.
        max_shard_mb: megabytes a file, about; a row is never parted.
        replace: whether a split of this name that is there gives way at the end; else it is an error.

    Attributes:
        num_rows, num_images, num_bytes: of what was added; the bytes are those of the files, so far as they are written.
        files: once the block is left without an error, in order.

    Raises:
        FileExistsError: if the split is there and isn't to be replaced, or the folder holds something that a reader would take
            in its place.
        OSError: if a file can't be written, such as on a full disk; nothing is left of it.
        ValueError: if an argument is none of these.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        notes: Mapping[str, str] | None = None,
        max_shard_mb: float = 200,
        replace: bool = False,
    ) -> None:
        if not _SPLIT_NAME.fullmatch(split):
            raise ValueError(
                f"`split` must be of letters, digits, `_` and single dots, got {split!r}. Give it another name."
            )
        if not max_shard_mb > 0:
            raise ValueError(f"`max_shard_mb` must be above 0, got {max_shard_mb}. Leave it out for 200.")
        self.folder, self.split, self.notes = Path(folder), split, dict(notes or {})
        self._features = _features(self.notes)
        self._schema = self._features.arrow_schema
        self._shard_bytes = round(max_shard_mb * _MB)
        self._group_bytes = min(_GROUP_BYTES, self._shard_bytes)
        self._data = self.folder / "data"
        self._refuse_others(replace)
        self.num_rows = self.num_images = self.num_bytes = 0
        self.files: list[Path] = []
        self._rows: list[dict[str, Any]] = []
        self._rows_bytes = 0
        self._unfinished: list[Path] = []
        self._checked: bytes | None = None  # rows about one picture mostly follow each other
        self._sink: Any = None
        self._writer: Any = None
        try:
            self._data.mkdir(parents=True, exist_ok=True)
            for file in self._data.glob(f".{split}-*.parquet.unfinished"):  # of a run that was killed
                file.unlink()
        except OSError as error:
            raise self._told(self._data, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._remove()
            return
        try:
            self._finish()
        except BaseException:
            self._remove()
            raise

    def add(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Path | bytes | str] = (),
        *,
        id: str | int | None = None,  # noqa: A002, the column's name
        names: Sequence[str | None] | None = None,
        **notes: Any,
    ) -> None:
        """Add a conversation; an error leaves all as it was before.

        Args:
            messages: as in `conversations.py`, with one `{"type": "image"}` a picture.
            images: a file, which is read and stored; a picture file's bytes, which are stored; or a text, a picture's name
                alone, which a reader then looks for in its `image_folder`.
            id: of the row.
            names: what the stored pictures are called, one each; None for the file's own name, or none for bytes.
            notes: of those given to the writer.

        Raises:
            FileNotFoundError: if a picture's file is missing.
            OSError: if the rows can't be written.
            ValueError: if messages are no conversation, pictures don't fit their places, are none, or are cut short, or a note
                is of another kind; a `ConversationError` with its `kind`.
            TypeError: if a picture is none of these, or a note is unknown.
        """
        messages = [_plain(message) for message in messages] if _is_list(messages) else messages
        check_messages(messages, len(images))
        if names is not None and len(names) != len(images):
            raise ValueError(f"`names` must be one a picture, got {len(names)} for {len(images)}. Mend the call.")
        row: dict[str, Any] = {"id": None if id is None else str(id), "messages": messages, "images": []}
        for number, picture in enumerate(images):
            row["images"].append(_stored(picture, names[number] if names is not None else None))
            data = row["images"][-1]["bytes"]
            if data is not None and data != self._checked:
                check_picture(data, str(picture) if isinstance(picture, Path) else row["images"][-1]["path"])
                self._checked = data
        for name in notes:
            if name not in self.notes:
                known = ", ".join(f"`{one}`" for one in self.notes) or "none"
                raise TypeError(
                    f"Notes of this writer are {known}, got `{name}`. Give it to the writer's `notes`, too."
                )
        for name, kind in self.notes.items():
            row[name] = _checked_note(name, kind, notes.get(name))
        size = sum(len(picture["bytes"] or b"") for picture in row["images"])
        try:
            size += sum(len(part["text"] or "") for message in messages for part in message["content"])
            for text in (row["id"], *(picture["path"] for picture in row["images"])):
                (text or "").encode()
        except UnicodeEncodeError as error:
            raise ConversationError(
                "wanted whole characters, got half of one in the `id` or a picture's name. Correct it."
            ) from error
        if self._rows and (self._rows_bytes + size > self._group_bytes or len(self._rows) >= _GROUP_ROWS):
            self._flush()
        self._rows.append(row)
        self._rows_bytes += size
        self.num_rows += 1
        self.num_images += len(images)

    def _refuse_others(self, replace: bool) -> None:
        shadows = [*SAVED_BY_DATASETS, f"{self.split}.json", f"{self.split}.jsonl"]
        for file in [self.folder / name for name in shadows] + sorted(self.folder.glob(f"{self.split}*.parquet")):
            if file.exists():
                raise FileExistsError(
                    f"A folder without other data of the split `{self.split}` is wanted, got {file}, which readers would take "
                    "instead. Name another folder, or move the file away."
                )
        there = self._there()
        if there and not replace:
            raise FileExistsError(
                f"A folder without the split `{self.split}` is wanted, got {there[0]}. Name another folder, or remove it."
            )

    def _there(self) -> list[Path]:
        """The finished files of this split."""
        if not self._data.is_dir():
            return []
        named = re.compile(rf"{re.escape(self.split)}(-.*)?\.parquet")
        return sorted(file for file in self._data.iterdir() if named.fullmatch(file.name))

    def _flush(self) -> None:
        """Write the rows that wait as a group; a file that has its size is closed."""
        try:
            if self._writer is None:
                file = self._data / f".{self.split}-{len(self._unfinished):05}.parquet.unfinished"
                self._unfinished.append(file)
                self._sink = pyarrow.OSFile(str(file), "wb")
                self._writer = pyarrow.parquet.ParquetWriter(
                    self._sink,
                    self._schema,
                    compression="snappy",
                    use_dictionary=True,
                    dictionary_pagesize_limit=2 * _GROUP_BYTES,  # so that a picture is stored once a group
                    write_page_checksum=True,
                )
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
            if self._sink.tell() >= self._shard_bytes:
                self._close()
        except OSError as error:
            raise self._told(self._unfinished[-1], error) from error
        self._rows, self._rows_bytes = [], 0

    def _close(self) -> None:
        """End the open file; what is buffered is written now, so a full disk may first be met here."""
        if self._writer is None:
            return
        writer, sink, self._writer, self._sink = self._writer, self._sink, None, None
        try:
            writer.close()
        finally:
            sink.close()
        self.num_bytes += self._unfinished[-1].stat().st_size

    def _finish(self) -> None:
        if self._rows or not self._unfinished:  # a split without rows is a file without rows
            self._flush()
        try:
            self._close()
            for file in self._unfinished:
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            total = len(self._unfinished)
            files = [self._data / f"{self.split}-{number:05}-of-{total:05}.parquet" for number in range(total)]
            for file in self._there():
                if file not in files:
                    file.unlink()
            for unfinished, file in zip(self._unfinished, files, strict=True):
                os.replace(unfinished, file)
        except OSError as error:
            raise self._told(self._data, error) from error
        self.files, self._unfinished = files, []

    def _remove(self) -> None:
        """Leave nothing of what isn't finished."""
        with contextlib.suppress(OSError, pyarrow.ArrowException):
            self._close()
        for file in self._unfinished:
            with contextlib.suppress(OSError):
                file.unlink()
        for folder in (self._data, self.folder):  # where they are empty, they are of no use
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _told(self, file: Path, error: OSError) -> OSError:
        return type(error)(
            f"{file} must be written, got: {error.strerror or error}. Make room there, or give another folder."
        )


def _features(notes: Mapping[str, str]) -> datasets.Features:
    columns: dict[str, Any] = {
        "id": datasets.Value("string"),
        "messages": datasets.List(
            {
                "role": datasets.Value("string"),
                "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
            }
        ),
        "images": datasets.List(datasets.Image()),
    }
    for name, kind in notes.items():
        item = kind.removeprefix("list<").removesuffix(">") if kind.startswith("list<") else kind
        if name in _FIELDS or name in ("names", "conversations", "image"):
            raise ValueError(f"`notes` must have names of their own, got `{name}`. Give it another.")
        if item not in _TYPES:
            raise ValueError(
                f"`notes` must be of {', '.join(f'`{one}`' for one in _TYPES)} or `list<...>` of one, got {kind!r} for `{name}`. "
                "Correct it."
            )
        columns[name] = datasets.Value(item) if item == kind else datasets.List(datasets.Value(item))
    return datasets.Features(columns)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _plain(message: Any) -> Any:
    """A message with its content as parts of the same fields; what is none is left to the check."""
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif _is_list(content):
        content = [
            {**part, "type": part.get("type"), "text": part.get("text")} if isinstance(part, Mapping) else part
            for part in content
        ]
    return {"role": message.get("role"), "content": content}


def _stored(picture: Any, name: str | None) -> dict[str, Any]:
    """A picture as `datasets` stores it."""
    if isinstance(picture, str):
        if not picture:
            raise ConversationError("wanted a picture's name, got an empty text. Fill or remove the row.")
        return {"bytes": None, "path": picture}
    if isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
    elif isinstance(picture, Path):
        name = name or picture.name
        try:
            data = picture.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"wanted the picture {cut(str(picture), 255)}, got no such file. Add the file, or remove the row."
            ) from error
        except OSError as error:
            raise ConversationError(
                f"wanted the picture {cut(str(picture), 255)}, got an error ({error.strerror}). Check the file.",
                "unreadable pictures",
            ) from error
    else:
        raise TypeError(
            f"`images` must be paths, bytes or names, got {type(picture).__name__}. Save a picture to bytes first."
        )
    return {"bytes": data, "path": name}


def _checked_note(name: str, kind: str, value: Any) -> Any:
    """A note that can be stored, and that a reader of conversations takes; an empty list is none."""
    if value is None or (_is_list(value) and not value):
        return None
    is_list = kind.startswith("list<")
    items: list[Any] = list(value) if is_list and _is_list(value) else [value]
    item_kind = kind.removeprefix("list<").removesuffix(">")
    fits = is_list == _is_list(value) and all(_fits(item, item_kind) for item in items)
    if not fits or (name == "references" and not all(str(item).strip() for item in items)):
        raise ConversationError(
            f"wanted a note `{name}` of the type `{kind}`, got {cut(repr(value), 60)}. Correct it, or leave it out."
        )
    try:
        for item in items:
            if isinstance(item, str):
                item.encode()
    except UnicodeEncodeError as error:
        raise ConversationError(f"wanted whole characters, got half of one in `{name}`. Correct it.") from error
    return items if is_list else value


def _fits(value: Any, kind: str) -> bool:
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "int64":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, str if kind == "string" else int | float)
