"""Bring a data set into conversations to train on, or into the files of another tool, split by split and row by row.

    any set that `task_rows.stream_task` reads -> `ConversationWriter`'s folder, or a format of `published_writers.py`

What is written is put in place when it is whole: until then it is in a folder `.OUT.*.unfinished` beside, each run's own. A bad
row is left out and told of; it never costs the others. Memory stays flat where the source can be read row by row.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from hf_vlm.data.conversations.conversation_files import (
    FIELDS,
    HELD,
    PICTURE_FIELDS,
    ConversationError,
    StoredPath,
    cut,
    find_layout,
    has_fields,
)
from hf_vlm.data.conversations.conversation_writer import ConversationWriter
from hf_vlm.data.conversations.conversations import PictureFinder, conversation_record, holds_conversations, text_of
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS, with_format_prompt
from hf_vlm.data.tasks.format_writer import BEYOND, ConversationRow, StoredPicture
from hf_vlm.data.tasks.picture_archives import find_tars
from hf_vlm.data.tasks.published_writers import FORMATS, WRITERS, format_writer
from hf_vlm.data.tasks.task_rows import TASKS, stream_task
from hf_vlm.data.tasks.task_splits import SHARD, VALIDATION_NAMES, find_task_splits

_NOTES = {"references": "list<string>", "kind": "string", "group": "string"}
_SAMPLES = 5  # of each kind of fault, in the report
_SECONDS = 0.5  # between two calls of `progress`
_ROWS = 32  # of a table with pictures, read at a time
_WITHOUT_NAMES = ("conversations", "messages", "imagefolder", "csv", "webdataset", "mmbench", "class-folders")


@dataclass
class ConversionReport:
    """What a conversion came to.

    Attributes:
        out: the folder that was written.
        to: its format.
        num_rows: split -> conversations that were written.
        num_pictures: of these conversations.
        num_bytes: of all files.
        bad_rows: kind of fault -> how many rows were left out, and the first messages.
        failed_splits: split -> why nothing of it could be read.
        remarks: what one should know before using it.
        seconds: that it took.
    """

    out: str
    to: str
    num_rows: dict[str, int] = field(default_factory=dict)
    num_pictures: int = 0
    num_bytes: int = 0
    bad_rows: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    failed_splits: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_bad_rows(self) -> int:
        """Of all kinds; a split that could not be read counts as one."""
        return sum(number for number, _ in self.bad_rows.values()) + len(self.failed_splits)

    @property
    def bad_share(self) -> float:
        """Share in [0, 1] of rows that were left out."""
        return self.num_bad_rows / max(self.num_bad_rows + sum(self.num_rows.values()), 1)

    def add_bad_row(self, error: Exception) -> None:
        """Count a row that is left out."""
        kind = getattr(error, "kind", "missing pictures" if isinstance(error, FileNotFoundError) else "bad rows")
        number, messages = self.bad_rows.get(kind, (0, []))
        self.bad_rows[kind] = (number + 1, [*messages, str(error)] if number < _SAMPLES else messages)

    def to_dict(self) -> dict[str, Any]:
        """The attributes and properties by name."""
        return {**asdict(self), "num_bad_rows": self.num_bad_rows, "bad_share": self.bad_share}

    def __str__(self) -> str:
        lines = [f"{split}: {number} conversations" for split, number in self.num_rows.items()]
        for split, told in self.failed_splits.items():
            lines.append(f"{split}: not read: {told}")
        for kind, (number, messages) in self.bad_rows.items():
            lines.append(f"left out, {kind}: {number}")
            lines += [f"  {message}" for message in messages]
            if number > len(messages):
                lines.append(f"  ... and {number - len(messages)} more")
        if self.bad_rows:
            lines.append(f"left out in all: {100 * self.bad_share:.1f} % of rows")
        lines += self.remarks
        size = f"{self.num_bytes / 1e6:.1f} MB in {self.seconds:.1f} s"
        lines.append(f"{self.num_pictures} pictures, {size}: {self.out} ({self.to})")
        return "\n".join(lines)


def convert(
    path: str | Path,
    out: str | Path,
    *,
    task: str,
    to: str = "conversations",
    split: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    image_folder: str | Path | None = None,
    every_answer: bool = False,
    max_exchanges: int = 1,
    on_bad_row: Callable[[Exception], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ConversionReport:
    """Write a data set in another format, and tell what became of its rows.

    Args:
        path: a folder or file that `task_rows.stream_task` reads.
        out: a new folder, or an empty one.
        task: what a row is; `chat` for conversations.
        to: one of `published_writers.FORMATS`.
        split: None for all that are found.
        prompt: preset or text of a format prompt. It is put behind the questions of sets that aren't conversations yet, and
            of all that become `conversations`; formats that have bare questions are written without it; and conversations that
            become another format lose it.
        columns: as in `stream_task`; for `multi30k`, `question` and `answer` also name the languages that are written.
        image_folder, every_answer, max_exchanges: as in `stream_task`.
        on_bad_row: called with the error of each row that is left out, besides the report.
        progress: called now and then with split, rows written and rows left out.

    Raises:
        FileExistsError: if `out` holds something, or does so at the end, as another run was faster.
        FileNotFoundError: if `path` or `image_folder` is missing.
        OSError: if it can't be written, such as on a full disk; nothing is left of it.
        ValueError: if an argument is unknown or has no use, no layout fits, a file is damaged, or not one row could be converted;
            nothing is left.
    """
    path, out, begun = Path(path), Path(out), time.monotonic()
    if to not in FORMATS:
        raise ValueError(f"`to` must be one of {', '.join(f'`{one}`' for one in FORMATS)}, got {to!r}. Correct it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"A new or empty folder is wanted, got {out}, which is there. Name another.")
    if not path.exists():
        raise FileNotFoundError(f"`path` must be a folder or file, got {path}, which does not exist. Check it.")
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(f'`{one}`' for one in TASKS)}, got {task!r}. Correct it.")
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"`image_folder` must be a folder, got {image_folder}, which is none. Check it.")
    report = ConversionReport(str(out), to)
    run = _Conversion(path, task, to, prompt, columns, image_folder, every_answer, max_exchanges, report, progress)
    run.on_bad_row = on_bad_row
    splits: list[str | None] = [split]
    if split is None:
        splits, report.failed_splits = run.splits()
    others = sorted(out.parent.glob(f".{glob.escape(out.name)}.*unfinished"))
    own: Path | None = None
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            own = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".unfinished", dir=out.parent))
            staging = own / out.name  # as the other is for its owner alone
            staging.mkdir()
            run.write(staging, splits)
            if not sum(report.num_rows.values()):
                first = next((messages[0] for _, messages in report.bad_rows.values()), "none came")
                raise ValueError(f"{path} must hold rows that become `{to}`, got none. The first was left out: {first}")
            report.num_bytes = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
            _put_in_place(staging, out)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise OSError(
                f"{out} must be written, got: {error.strerror or error}. Make room there, or name another folder."
            ) from error
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
    report.remarks += run.remarks(out)
    if others:
        told = ", ".join(map(str, others[:3])) + (", ..." if len(others) > 3 else "")
        report.remarks.append(f"{told}: of runs that were killed, or still write; remove what no run writes")
    report.seconds = time.monotonic() - begun
    return report


def _put_in_place(staging: Path, out: Path) -> None:
    """Give a whole folder its name, unless another run has taken it meanwhile."""
    try:
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # an empty one
        os.replace(staging, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FileExistsError(
            f"{out} must be new or empty, got files that came while this was written. Name another folder."
        ) from error


class _Conversion:
    """The rows of one source on their way."""

    on_bad_row: Callable[[Exception], None] | None = None

    def __init__(
        self,
        path: Path,
        task: str,
        to: str,
        prompt: str | None,
        columns: Mapping[str, str] | None,
        image_folder: str | Path | None,
        every_answer: bool,
        max_exchanges: int,
        report: ConversionReport,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        with_format_prompt("", prompt)  # an unknown one is told at once
        self._path, self._task, self._to, self._prompt = path, task, to, prompt
        self._languages = dict(columns or {})
        self._is_chat = task == "chat" or (
            (to == "multi30k" or not columns) and (has_fields(path) if path.is_file() else holds_conversations(path))
        )
        if self._is_chat and not find_tars(path, None):
            useless = [name for name in columns or {} if to != "multi30k" or name not in ("question", "answer")]
            if useless:
                raise ValueError(
                    "`columns` must be left out for conversations, whose fields have fixed names, got "
                    f"{', '.join(f'`{name}`' for name in useless)}. Leave it out, or name the task whose columns they are."
                )
        if self._is_chat and to == "multi30k":
            columns = None  # they name what is written
        self._image_folder, self._report, self._progress = image_folder, report, progress
        self._settings: dict[str, Any] = {
            "task": task,
            "columns": columns,
            "image_folder": image_folder,
            "every_answer": every_answer,
            "max_exchanges": max_exchanges,
        }
        self._told = time.monotonic()
        self._prompts_kept: dict[str, int] = {}
        self._has_pictures_apart = False
        self._num_named = 0  # pictures of which the source has the name alone

    def splits(self) -> tuple[list[str | None], dict[str, str]]:
        """The splits that the source has, and why others can't be read."""
        languages = None if self._is_chat else self._languages
        return find_task_splits(self._path, languages=languages, **self._settings)

    def write(self, folder: Path, splits: list[str | None]) -> None:
        """Write all splits into a folder."""
        if self._to == "conversations":
            for split in splits:
                with ConversationWriter(folder, self._name(split), notes=_NOTES) as writer:
                    for row in self._rows(split):
                        images = [picture.data or str(picture.name) for picture in row.pictures]
                        names = [picture.name for picture in row.pictures]
                        notes = {name: row.notes.get(name) for name in _NOTES}
                        with self._left_out(row):
                            writer.add(row.messages, images, id=row.id, names=names, **notes)
                            self._count(row, split)
            return
        take_off = self._prompt if self._is_chat or not self._keeps_prompts() else None
        with format_writer(self._to, folder, prompt=take_off, columns=self._languages) as writer:
            for split in splits:
                writer.begin(self._name(split))
                for row in self._rows(split):
                    with self._left_out(row):
                        writer.add(row)
                        self._count(row, split)
                writer.end()
            writer.finish()

    def remarks(self, out: Path) -> list[str]:
        """What the reader of the report should know."""
        told = []
        if self._num_named:
            number = self._num_named if self._num_named < self._report.num_pictures else "none"
            carried = f"{number} of the pictures were not" if number != "none" else "no picture was"
            told.append(
                f"{carried} carried along, as the source has their names alone: give their folder as `image_folder`, here or "
                "when reading"
            )
        if self._has_pictures_apart and (out / "images").is_dir() and self._to not in (*_WITHOUT_NAMES, "ocrvqa"):
            told.append(f"pictures are named from {out / 'images'}: give it as `image_folder` when reading")
        for name, number in self._prompts_kept.items():
            told.append(f"{number} questions end with the format prompt `{name}`; `prompt={name}` takes it off")
        return told

    def _keeps_prompts(self) -> bool:
        return WRITERS[self._to].keeps_prompts

    def _name(self, split: str | None) -> str:
        """What a split is called when it is written."""
        if split is not None:
            return re.sub(r"\W+", "_", split)
        words = re.split(r"[^a-z]+", self._path.stem.lower())
        return next((name for name in ("train", *VALIDATION_NAMES, "test") if name in words), "train")

    def _count(self, row: ConversationRow, split: str | None) -> None:
        name = self._name(split)
        self._report.num_rows[name] = self._report.num_rows.get(name, 0) + 1
        self._report.num_pictures += len(row.pictures)
        self._num_named += sum(picture.data is None for picture in row.pictures)
        self._has_pictures_apart = self._has_pictures_apart or bool(row.pictures)
        if self._to not in ("conversations",) and not self._prompt and not self._keeps_prompts():
            question = text_of(row.messages[-2])
            ends = [name for name, words in FORMAT_PROMPTS.items() if words and question.endswith(f"\n{words}")]
            for preset in ends[-1:]:
                self._prompts_kept[preset] = self._prompts_kept.get(preset, 0) + 1
        if self._progress is not None and time.monotonic() - self._told > _SECONDS:
            self._told = time.monotonic()
            self._progress(name, self._report.num_rows[name], self._report.num_bad_rows)

    def _bad_row(self, error: Exception) -> None:
        self._report.add_bad_row(error)
        if self.on_bad_row is not None:
            self.on_bad_row(error)

    @contextlib.contextmanager
    def _left_out(self, row: ConversationRow) -> Iterator[None]:
        """A row that can't be written is counted and told with its source."""
        try:
            yield
        except ConversationError as error:
            told = f"{row.source}: {error}"
            if (
                error.kind == BEYOND
                and len(row.messages) > 2
                and self._settings["max_exchanges"] > 1
                and not self._is_chat
            ):
                told += " Or convert with `max_exchanges=1`."
            self._bad_row(ConversationError(told, error.kind))
        except FileNotFoundError as error:
            self._bad_row(FileNotFoundError(f"{row.source}: {error}"))

    def _reading(self, rows: Iterator[Any]) -> Iterator[Any]:
        """The same rows; that they can't be read is not taken for a folder that can't be written."""
        try:
            yield from rows
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ValueError(
                f"{self._path}: wanted a source that can be read, got {_line_of(error)}. Check it, or copy it again."
            ) from error

    def _rows(self, split: str | None) -> Iterator[ConversationRow]:
        """The rows of a split, pictures read."""
        self._report.num_rows.setdefault(self._name(split), 0)
        adds_prompt = not self._is_chat or self._to == "conversations"
        files = self._shards(split) if self._is_chat and not (self._prompt and adds_prompt) else []
        if files:
            yield from self._stored_rows(files)
            return
        prompt = self._prompt if adds_prompt else None
        rows = stream_task(self._path, split, prompt=prompt, on_bad_row=self._bad_row, **self._settings)
        for one in self._reading(rows):
            notes = {name: note for name, note in one.notes.items() if name != "id"}
            try:
                pictures = [self._read(image, split) for image in one.images]
            except OSError as error:
                self._bad_row(ConversationError(f"{one.source}: {error}", "unreadable pictures"))
                continue
            yield ConversationRow(one.messages, pictures, one.source, one.notes.get("id"), notes)

    def _read(self, image: Path | bytes, split: str | None) -> StoredPicture:
        if isinstance(image, bytes):
            return StoredPicture(image)
        root = Path(self._image_folder) if self._image_folder is not None else self._path
        root = root.parent if root.is_file() else root
        try:
            name = image.relative_to(root)
        except ValueError:
            name = Path(image.name)
        if len(name.parts) > 1 and name.parts[0] == split:  # the folder of a split is no part of names
            name = Path(*name.parts[1:])
        return StoredPicture(image.read_bytes(), name.as_posix())

    def _shards(self, split: str | None) -> list[Path]:
        """The files of conversations in parquet, whose pictures' names and further notes `stream_task` does not give."""
        path = self._path
        files = [path] if path.is_file() else find_layout(path, split)
        if not files or any(file.suffix.lower() != ".parquet" for file in files):
            return []
        if split is not None:  # `test` is not `test_2016`
            exact = [file for file in files if (shard := SHARD.fullmatch(file.name)) and shard[1] == split]
            files = exact or files
        return files if has_fields(files[0]) else []

    def _stored_rows(self, files: list[Path]) -> Iterator[ConversationRow]:
        root = Path(self._image_folder) if self._image_folder is not None else files[0].parent
        finder = PictureFinder(root)
        for file in files:
            for number, row in enumerate(_table_rows(file)):
                try:
                    one = _stored_row(row, f"{file}, row {number}", finder, self._image_folder is not None)
                except (ValueError, OSError) as error:
                    self._bad_row(error)
                    continue
                yield one


def _table_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, few at a time."""
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{file}: wanted parquet data, got a damaged file ({_line_of(error)}). Copy or download it again."
        ) from error


def _line_of(error: Exception) -> str:
    """What an error says, in a line."""
    return cut(" ".join(str(error).split()), 200)


def _stored_row(row: dict[str, Any], source: str, finder: PictureFinder, finds: bool) -> ConversationRow:
    """A row of a table, checked; pictures that it has by name alone are read where there is a folder of pictures."""
    column = next((name for name in PICTURE_FIELDS if row.get(name)), None)
    value = row[column] if column is not None else []
    found: list[tuple[bytes | None, str | None]] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bytes):
            found.append((item, None))
        elif isinstance(item, Mapping):
            found.append((item.get("bytes"), item.get("path")))
        else:
            found.append((None, item))
    if any(data is None for data, _ in found) and not finds and all(name for _, name in found):
        stand_ins = [HELD] * len(found)  # their names go on as they are
    else:
        stand_ins = [HELD if data is not None else StoredPath(name or "") for data, name in found]
    fields = {name: row[name] for name in (*FIELDS, "id", *_NOTES) if row.get(name) is not None}
    text, _ = conversation_record({**fields, "images": stand_ins}, source, finder)
    record = json.loads(text)
    pictures = []
    for (data, name), known in zip(found, record["pictures"], strict=True):
        data = data if data is not None or known is None else (finder.folder / known).read_bytes()
        pictures.append(StoredPicture(data, name))
    notes = {
        name: note for name, note in row.items() if name not in (*FIELDS, *PICTURE_FIELDS, "id") and note is not None
    }
    return ConversationRow(record["messages"], pictures, source, record["id"], notes)
