"""Write conversations as the files that other tools read, and tell what is lost on the way.

    llava           SPLIT.json
                    any conversation; notes are lost, and where between words a picture stands: it moves to the front of its turn
    messages        SPLIT.jsonl
                    any conversation; nothing is lost
    coco-captions   annotations/captions_SPLIT.json, SPLIT/
                    one answer to one picture; questions, kinds, ids of captions are lost
    coco-results    captions_SPLIT_results.json
                    likewise; and pictures, and all captions but the answer
    multi30k        SPLIT.en, SPLIT.de, image_splits/SPLIT.txt
                    a sentence and its translation, at most one picture; references but the answer are lost, and ids
    imagefolder     SPLIT/metadata.jsonl
                    one question, or captions, of one picture; nothing is lost
    csv             SPLIT/metadata.csv
                    likewise; of questions all references but the answer are lost, of captions the ids
    webdataset      SPLIT-00000.tar, ...
                    likewise; names of pictures are lost
    class-folders   SPLIT/CLASS/
                    one picture, a class as the answer; questions, ids, kinds are lost

Those of questions are told in `question_writers.py`. Pictures of `llava` lie in `images/`, as LLaVA's `--image_folder` wants it
(our readers' `image_folder`); those of the others where the format's readers look. Format prompts are taken off questions,
but for the formats that have them inside: `llava`, `messages` and `questions`.

Sources: as in `task_rows.py`; webdataset, https://github.com/webdataset/webdataset.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_vlm.data.conversations.conversation_files import cut
from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.format_writer import (
    ConversationRow,
    FormatWriter,
    JsonItems,
    StoredPicture,
    as_number,
    without_format_prompt,
)
from hf_vlm.data.tasks.question_writers import QUESTION_WRITERS

_LLAVA_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_TAR_BYTES = 500_000_000
_LAST_NUMBER = re.compile(r"([0-9]{1,18})$")


class LlavaWriter(FormatWriter):
    """LLaVA's list of conversations."""

    name = "llava"
    keeps_prompts = True

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_list(f"{split}.json")

    def add(self, row: ConversationRow) -> None:
        """Add a conversation."""
        turns = []
        for message in row.messages:
            text, content = text_of(message), message["content"]
            number = 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)
            if message["role"] == "user":
                text = without_format_prompt(text, self.prompt) if self.prompt else text
            text = "\n".join([*["<image>"] * number, *([text] if text else [])])
            turns.append({"from": _LLAVA_ROLES[message["role"]], "value": text})
        told: dict[str, Any] = {"id": row.id if row.id is not None else f"{self.split}-{self.num_rows}"}
        names = [self.put(picture) for picture in row.pictures]
        if names:
            told["image"] = names[0] if len(names) == 1 else names
        self._file.add(told | {"conversations": turns})
        self.done()


class MessagesWriter(FormatWriter):
    """Our own form, a row a line."""

    name = "messages"
    keeps_prompts = True

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_lines(f"{split}.jsonl")

    def add(self, row: ConversationRow) -> None:
        """Add a conversation."""
        messages = row.messages
        if self.prompt:
            messages = [self._without_prompt(message) for message in messages]
        told: dict[str, Any] = {} if row.id is None else {"id": row.id}
        told["messages"] = messages
        if row.pictures:
            told["images"] = [self._put(picture) for picture in row.pictures]
        self._file.add(told | {name: note for name, note in row.notes.items() if note is not None and name not in told})
        self.done()

    def _put(self, picture: StoredPicture) -> str | None:
        """Into `images/`, named from beside the file."""
        if picture.data is None:
            return picture.name
        name = picture.name.removeprefix("images/") if picture.name else None  # of a set that was written like this one
        return f"{self.pictures}/{self.put(StoredPicture(picture.data, name))}"

    def _without_prompt(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message["role"] != "user":
            return dict(message)
        content = message["content"]
        text = without_format_prompt(text_of(message), self.prompt)
        if isinstance(content, str):
            return {"role": "user", "content": text}
        if text == text_of(message).strip():
            return dict(message)
        pictures = [part for part in content if part["type"] == "image"]
        return {"role": "user", "content": [*pictures, *([{"type": "text", "text": text}] if text else [])]}


class CocoCaptionsWriter(FormatWriter):
    """COCO's captions."""

    name = "coco-captions"
    pictures = "{split}"

    def begin(self, split: str) -> None:
        """Begin the split's file; annotations wait in one of their own, as they stand behind all pictures."""
        super().begin(split)
        self._images = JsonItems(self.folder / "annotations" / f"captions_{split}.json", '{"info": {}, "images": [', "")
        self._waiting = JsonItems(self.folder / "annotations" / f".captions_{split}.unfinished", "", "")
        self._open = [self._images, self._waiting]
        self._num_captions = 0
        self._last: tuple[Any, set[str]] = (None, set())

    def add(self, row: ConversationRow) -> None:
        """Add a picture with its captions, or further captions of the picture before."""
        said = self.exchange(row, question=False)
        name = _image_id(row, self.num_rows)
        is_new = name != self._last[0]
        if is_new:
            self.unique(name)
        picture = row.pictures[0]
        if picture.name is not None:  # COCO's names have no folders
            picture = StoredPicture(picture.data, PurePosixPath(picture.name).name)
        told: dict[str, Any] = {"id": name, "file_name": self.put(picture)}
        if picture.data is not None:
            told["width"], told["height"] = picture.size()
        if is_new:
            self._images.add(told)
            self._last = (name, set())
        known = set(self._last[1])
        for caption in said.references:
            if caption not in known:  # a caption that two people gave is written twice, one of the row before isn't
                self._num_captions += 1
                self._waiting.add({"image_id": name, "id": self._num_captions, "caption": caption})
        self._last[1].update(said.references)
        self.done(name)

    def end(self) -> None:
        """Put the annotations behind the pictures."""
        self._waiting.end()
        images = self._images
        images.write('\n], "annotations": [')
        images.append_file(self._waiting.file)
        images.write('\n], "licenses": []}\n')
        self._open = [images]
        super().end()


class CocoResultsWriter(FormatWriter):
    """What COCO's evaluation reads as a model's captions."""

    name = "coco-results"

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_list(f"captions_{split}_results.json")

    def add(self, row: ConversationRow) -> None:
        """Add the answer as a picture's caption."""
        said = self.exchange(row, question=False)
        name = self.unique(_image_id(row, self.num_rows))
        self._file.add({"image_id": name, "caption": said.answer})
        self.done(name)


class Multi30kWriter(FormatWriter):
    """Multi30k's two files of lines, and the pictures' names; `columns` names the languages as `question` and `answer`."""

    name = "multi30k"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """As of any writer."""
        super().__init__(*arguments, **settings)
        missing = [name for name in ("question", "answer") if not self.columns.get(name)]
        if missing or self.columns["question"] == self.columns["answer"]:
            raise ValueError(
                f"`multi30k` wants languages, `columns: {{question: en, answer: de}}`, got {self.columns or 'none'}. Name both."
            )

    def begin(self, split: str) -> None:
        """Begin the split's files."""
        super().begin(split)
        self._sides = [_Lines(self.folder / f"{split}.{self.columns[side]}") for side in ("question", "answer")]
        self._names: _Lines | None = None
        self._open = [*self._sides]

    def add(self, row: ConversationRow) -> None:
        """Add a sentence and its translation."""
        said = self.exchange(row, (0, 1))
        for text in (said.question, said.answer):
            if "\n" in text or "\r" in text:
                raise self.beyond("sentences of one line", cut(repr(text), 60))
        if self.num_rows and bool(row.pictures) != (self._names is not None):
            raise self.beyond("pictures of all rows or of none", "a row that differs from the first")
        if row.pictures:
            name = self.put(row.pictures[0])
            if self._names is None:
                self._names = _Lines(self.folder / "image_splits" / f"{self.split}.txt")
                self._open.append(self._names)
            self._names.add(name)
        self._sides[0].add(said.question)
        self._sides[1].add(said.answer)
        self.done()


class ImageFolderWriter(FormatWriter):
    """A folder of pictures with a table, as `datasets.load_dataset("imagefolder")` reads it."""

    name = "imagefolder"
    pictures = "{split}"

    def begin(self, split: str) -> None:
        """Begin the split's folder."""
        super().begin(split)
        self._has_questions: bool | None = None
        self.open_table()

    def open_table(self) -> None:
        """Begin the table."""
        self._file = self.json_lines(f"{self.split}/metadata.jsonl")

    def add(self, row: ConversationRow) -> None:
        """Add a picture's question, or its captions."""
        said = self.exchange(row, question=False)
        if row.pictures[0].data is None:
            raise self.beyond("the picture itself", f"its name alone, {cut(str(row.pictures[0].name), 60)}")
        if self._has_questions not in (None, bool(said.question)):
            raise self.beyond("questions in all rows of a split or in none", "a row that differs from the first")
        file_name = self.put(row.pictures[0])
        self._has_questions = bool(said.question)
        if said.question:
            asked = {"question": said.question, "answer": said.answer, "answers": said.references}
            notes = {name: row.notes.get(name) for name in ("kind", "group")}
            self.write_row({"file_name": file_name, "id": row.id, **asked, **notes})
        else:
            self.write_row({"file_name": file_name, "id": row.id, "captions": said.references})
        self.done()

    def write_row(self, told: dict[str, Any]) -> None:
        """Add a row to the table."""
        self._file.add(told)


class CsvWriter(ImageFolderWriter):
    """A folder of pictures with a table that spreadsheets read; of captions one row each."""

    name = "csv"

    def open_table(self) -> None:
        """Begin the table; its head waits for the first row."""
        self._lines = _Lines(self.folder / self.split / "metadata.csv")
        self._open.append(self._lines)
        self._columns: list[str] = []

    def write_row(self, told: dict[str, Any]) -> None:
        """Add a row, or a row a caption."""
        if "captions" in told:
            rows = [{"file_name": told["file_name"], "caption": caption} for caption in told["captions"]]
        else:
            rows = [{name: told[name] for name in ("file_name", "id", "question", "answer", "kind", "group")}]
        if not self._columns:
            self._columns = list(rows[0])
            self._lines.write(_csv_line(self._columns))
        for row in rows:
            self._lines.write(_csv_line([row[name] for name in self._columns]))


class WebDatasetWriter(FormatWriter):
    """Tar files of some 500 MB: a picture and what is said of it, under one key."""

    name = "webdataset"

    def begin(self, split: str) -> None:
        """Begin a split."""
        super().begin(split)
        self._tar: tarfile.TarFile | None = None
        self._num_tars = 0

    def __exit__(self, *error: Any) -> None:
        """Close what is open."""
        if getattr(self, "_tar", None) is not None:
            self._tar.fileobj.close()  # type: ignore[union-attr]
        super().__exit__(*error)

    def add(self, row: ConversationRow) -> None:
        """Add a picture with its question, or its captions."""
        said = self.exchange(row, question=False)
        data = row.pictures[0].read()
        told: dict[str, Any] = {} if row.id is None else {"id": row.id}
        if said.question:
            told |= {"question": said.question, "answer": said.answer, "answers": said.references}
            told |= {name: row.notes[name] for name in ("kind", "group") if row.notes.get(name)}
        else:
            told |= {"captions": said.references}
        if self._tar is None or self._tar.offset > _TAR_BYTES:
            self._end_tar()
            self._tar = tarfile.open(self.folder / f"{self.split}-{self._num_tars:05}.tar", "w")  # noqa: SIM115
            self._num_tars += 1
        key = f"{self.num_rows:09}"
        self._put_file(f"{key}{row.pictures[0].suffix(data)}", data)
        self._put_file(f"{key}.json", json.dumps(told, ensure_ascii=False).encode())
        self.num_files += 1
        self.num_bytes += len(data)
        self.done()

    def end(self) -> None:
        """End the last tar."""
        self._end_tar()
        super().end()

    def _put_file(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        told = tarfile.TarInfo(name)
        told.size, told.mode = len(data), 0o644
        self._tar.addfile(told, io.BytesIO(data))

    def _end_tar(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


class ClassFoldersWriter(FormatWriter):
    """ImageNet's folders: a class a folder."""

    name = "class-folders"
    pictures = "{split}"

    def add(self, row: ConversationRow) -> None:
        """Add a picture to the folder of its answer."""
        said = self.exchange(row, question=False)
        folder = said.answer.replace(" ", "_")
        if not re.fullmatch(r"[^\W_][^/\\:\x00-\x1f]{0,99}", folder):
            raise self.beyond("the name of a class as the answer", cut(repr(said.answer), 60))
        picture = row.pictures[0]
        if picture.data is None:
            raise self.beyond("the picture itself", f"its name alone, {cut(str(picture.name), 60)}")
        name = PurePosixPath(picture.name).stem if picture.name else f"{self.num_rows:09}"
        data = picture.read()
        self.put(StoredPicture(data, f"{folder}/{name}{picture.suffix(data)}"))
        self.done()


class _Lines(JsonItems):
    """A file of lines."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "", "")

    def add(self, item: Any, key: str | None = None) -> None:
        """Add a line."""
        self.write(f"{item}\n")


def _csv_line(values: list[Any]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def _image_id(row: ConversationRow, number: int) -> int | str:
    """The number that COCO's files know a picture by: the row's id, or that at the end of the picture's name."""
    if row.id is not None and isinstance(as_number(row.id), int):
        return as_number(row.id)
    found = _LAST_NUMBER.search(PurePosixPath(row.pictures[0].name or "").stem)
    return int(found[1]) if found else number


_ALL: tuple[type[FormatWriter], ...] = (
    LlavaWriter,
    MessagesWriter,
    CocoCaptionsWriter,
    CocoResultsWriter,
    *QUESTION_WRITERS,
    Multi30kWriter,
    ImageFolderWriter,
    CsvWriter,
    WebDatasetWriter,
    ClassFoldersWriter,
)
WRITERS = {writer.name: writer for writer in _ALL}
FORMATS = ("conversations", *WRITERS)


def format_writer(
    name: str, folder: Path, *, prompt: str | None = None, columns: Mapping[str, str] | None = None
) -> FormatWriter:
    """The writer of a format by its name, for a `with` block.

    Args:
        folder: new or empty.
        prompt: format prompt that is taken off questions.
        columns: of `multi30k`: `question` and `answer` -> their languages.

    Raises:
        ValueError: if there is no such format, or it wants something more.
    """
    if name not in WRITERS:
        known = ", ".join(f"`{one}`" for one in FORMATS)
        raise ValueError(f"The format must be one of {known}, got {name!r}. Correct it.")
    return WRITERS[name](folder, prompt=prompt, columns=columns)
