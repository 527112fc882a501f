"""What the writers of published formats have in common: rows of conversations in, files of other tools out, item by item.

A writer gets a new folder and the rows of one split after another. A row that the format can't hold is refused before anything of
it is written, so it can be left out. Memory stays flat but for the ids that a format wants to be unique.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, ClassVar, Self

from hf_vlm.data.conversations.conversation_files import ConversationError, cut
from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.picture_checks import check_picture, open_head
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS, format_prompt

_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
}
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
BEYOND = "rows that the format can't hold"


@dataclass(frozen=True)
class StoredPicture:
    """A picture of a row.

    Attributes:
        data: its bytes, or its file; None where the set has its name alone.
        name: as the set calls it, relative to its folder of pictures, if it does.
    """

    data: bytes | Path | None
    name: str | None = None

    def read(self) -> bytes:
        """The picture's bytes; raises FileNotFoundError or ConversationError where there are none that are a picture."""
        if self.data is None:
            raise ConversationError(
                f"wanted the picture {cut(self.name or '', 255)} itself, got its name alone. Give its folder as `image_folder`.",
                "missing pictures",
            )
        data = self.data.read_bytes() if isinstance(self.data, Path) else self.data
        check_picture(data, self.name)
        return data

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the head of the file."""
        return open_head(self.read(), self.name).size

    def suffix(self, data: bytes) -> str:
        """What a file with this content is called by, such as `.png`."""
        return _SUFFIXES.get(open_head(data, self.name).format or "", ".img")


@dataclass(frozen=True)
class ConversationRow:
    """A conversation with its pictures, undecoded; `notes` are `references`, `kind`, `group` and whatever else a set has."""

    messages: list[dict[str, Any]]
    pictures: list[StoredPicture]
    source: str
    id: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question with its answer; `references` are all right answers, `answer` among them or not."""

    question: str
    answer: str
    references: list[str]
    num_pictures: int


class JsonItems:
    """A JSON list, or an object with a key an item, written as items come.

    Args:
        head, tail: what stands before and behind the items.
    """

    def __init__(self, file: Path, head: str = "[", tail: str = "\n]\n") -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self._tail, self._is_empty = file, tail, True
        self._stream = file.open("w", encoding="utf-8")
        self._stream.write(head)

    def add(self, item: Any, key: str | None = None) -> None:
        """Add an item, under a key where the file is an object."""
        told = "" if key is None else f"{json.dumps(key, ensure_ascii=False)}: "
        self._stream.write(("\n  " if self._is_empty else ",\n  ") + told + json.dumps(item, ensure_ascii=False))
        self._is_empty = False

    def write(self, text: str) -> None:
        """Write a text as it is."""
        self._stream.write(text)

    def end(self) -> None:
        """Write the tail; the file is whole."""
        self._stream.write(self._tail)
        self._stream.close()

    def close(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):
            self._stream.close()

    def append_file(self, file: Path) -> None:
        """Add the content of a file as it is, and remove it."""
        with file.open(encoding="utf-8") as stream:
            shutil.copyfileobj(stream, self._stream)
        file.unlink()


class JsonLines(JsonItems):
    """JSON objects, one a line."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "", "")

    def add(self, item: Any, key: str | None = None) -> None:
        """Add a line."""
        self._stream.write(json.dumps(item, ensure_ascii=False) + "\n")


class FormatWriter:
    """Writes rows in one format; subclasses say which.

        with Writer(folder, prompt="short-answer") as writer:
            writer.begin("train")
            writer.add(row)
            ...
            writer.end()        # of the split
            writer.finish()     # of all

    Args:
        folder: made if it is not there; should be empty.
        prompt: preset or text of a format prompt that is taken off the end of questions.
        columns: names of what is called differently from set to set, of formats that have such.

    Attributes:
        num_files: pictures that were written.
    """

    name: ClassVar[str]
    keeps_prompts: ClassVar[bool] = False  # whether the format has questions as they are asked
    pictures: ClassVar[str] = (
        "images"  # the folder of pictures, `{split}` in it stands for the split; empty for beside the rows
    )

    def __init__(self, folder: Path, *, prompt: str | None = None, columns: Mapping[str, str] | None = None) -> None:
        format_prompt(prompt)  # an unknown one is told before anything is written
        self.folder, self.prompt, self.columns = folder, prompt, dict(columns or {})
        self.split, self.num_rows, self.num_files, self.num_bytes = "", 0, 0, 0
        self._open: list[JsonItems] = []
        self._ids: set[Any] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._open:
            file.close()

    def begin(self, split: str) -> None:
        """Begin a split."""
        self.split, self.num_rows, self._ids = split, 0, set()

    def add(self, row: ConversationRow) -> None:
        """Add a row.

        Raises:
            ConversationError: if the format can't hold it, or its picture can't be read; nothing of it is written then.
            FileNotFoundError: if a picture's file is missing.
            OSError: if a file can't be written.
        """
        raise NotImplementedError

    def end(self) -> None:
        """End the split: its files are whole."""
        for file in self._open:
            file.end()
        self._open = []

    def finish(self) -> None:
        """End all."""

    # What subclasses take rows apart with

    def exchanges(self, row: ConversationRow) -> list[AnsweredQuestion]:
        """Questions, without the format prompt, and answers; a system message is refused."""
        if row.messages[0]["role"] == "system":
            raise self.beyond("no system message", "one")
        found = []
        for asked, answered in zip(row.messages[::2], row.messages[1::2], strict=True):
            content, answer = asked["content"], text_of(answered).strip()
            number = 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)
            found.append(AnsweredQuestion(without_format_prompt(text_of(asked), self.prompt), answer, [answer], number))
        if row.notes.get("references"):  # of the last
            last = found[-1]
            found[-1] = AnsweredQuestion(last.question, last.answer, list(row.notes["references"]), last.num_pictures)
        return found

    def exchange(self, row: ConversationRow, pictures: Sequence[int] = (1,), question: bool = True) -> AnsweredQuestion:
        """The only exchange of a row, with so many pictures, and words in its question if they are wanted."""
        found = self.exchanges(row)
        if len(found) != 1:
            raise self.beyond("one question a row", str(len(found)))
        if len(row.pictures) not in pictures:
            wanted = " or ".join(map(str, pictures))
            raise self.beyond(
                f"{wanted} picture{'s' if wanted not in ('1', '0 or 1') else ''} a row", f"{len(row.pictures)}"
            )
        if question and not found[0].question:
            raise self.beyond("a question with words in `messages[0]`", "none but the format prompt")
        return found[0]

    def beyond(self, wanted: str, got: str) -> ConversationError:
        """What to say of a row that the format has no place for."""
        return ConversationError(
            f"wanted {wanted}, as `{self.name}` has no place for others, got {got}. Leave the row out, or write `llava` or "
            "`messages`.",
            BEYOND,
        )

    def unique(self, name: Any) -> Any:
        """An id that no row of the split had before."""
        if name in self._ids:
            raise ConversationError(
                f"wanted an `id` of its own, as `{self.name}` finds rows by it, got {cut(repr(name), 80)} again. Rename it.",
                "duplicate ids",
            )
        return name

    def id_of(self, row: ConversationRow) -> Any:
        """The id of a row, a whole number where it is one, or the row's number in the split."""
        name = as_number(row.id) if row.id is not None else self.num_rows
        return self.unique(name)

    def done(self, name: Any = None) -> None:
        """Count a row, and keep its id."""
        self.num_rows += 1
        if name is not None:
            self._ids.add(name)

    def put(self, picture: StoredPicture, stem: str | None = None) -> str:
        """Write a picture into the folder of pictures, and return its name there.

        It is called as the set calls it, or `stem` with the suffix that fits, or by its content. Of two different pictures with
        one name the second gets a number. A picture of which the set has the name alone is not written.
        """
        if picture.data is None and stem is None and picture.name:
            return picture.name
        data = picture.read()
        name = _safe(picture.name) if stem is None else None
        if name is None:
            name = f"{stem or hashlib.sha256(data).hexdigest()[:16]}{picture.suffix(data)}"
        plain = PurePosixPath(name)
        for number in range(1, 10_000):
            file = self.folder / self.pictures.format(split=self.split) / name
            if not file.exists():
                self.write(file, data)
                self.num_files += 1
                return name
            if file.stat().st_size == len(data) and file.read_bytes() == data:
                return name
            if stem is not None:
                break
            name = str(plain.with_name(f"{plain.stem}-{number + 1}{plain.suffix}"))
        raise ConversationError(
            f"wanted one picture called {cut(name, 255)}, got another of this name. Give the row another `id`.",
            "duplicate ids",
        )

    def write(self, file: Path, data: bytes) -> None:
        """Write a file whole, its folder made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.num_bytes += len(data)

    def json_list(self, name: str, head: str = "[", tail: str = "\n]\n") -> JsonItems:
        """A JSON file of the split, ended with it."""
        self._open.append(JsonItems(self.folder / name, head, tail))
        return self._open[-1]

    def json_lines(self, name: str) -> JsonItems:
        """A file of JSON lines of the split, ended with it."""
        self._open.append(JsonLines(self.folder / name))
        return self._open[-1]


def without_format_prompt(question: str, name_or_text: str | None) -> str:
    """A question without the format prompt that `with_format_prompt` put behind it.

    Of a question that is nothing but a preset, as those that captions answer, nothing is left even if none is named.
    """
    words, question = format_prompt(name_or_text), question.strip()
    if question == words or question in FORMAT_PROMPTS.values():
        return ""
    return question.removesuffix(f"\n{words}").strip() if words else question


def as_number(name: str) -> int | str:
    """An id as a whole number, where it reads as one and would be written the same."""
    return int(name) if _WHOLE_NUMBER.fullmatch(name) else name


def ten_answers(references: Sequence[str]) -> list[str]:
    """Ten answers, as the score of VQA wants them: those given if they are ten, else these in turn, again and again."""
    return [references[number % len(references)] for number in range(10)]


def _safe(name: str | None) -> str | None:
    """A picture's name that stays in its folder and is not hidden, or None."""
    if not name or "\0" in name or "\\" in name or ":" in name:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or any(part == ".." or part.startswith(".") for part in path.parts) or not path.suffix:
        return None
    return str(path) if all(len(part.encode()) < 240 for part in path.parts) else None
