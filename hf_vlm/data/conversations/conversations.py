"""Read conversations about pictures from the layouts people have, into one example schema.

`{"messages": [{"role", "content"}, ...], "images": [PIL, ...], "source": str, "id": str or None}`: `role` is `system`, `user`
or `assistant`; `content` is a text, or parts `{"type": "image"}` and `{"type": "text", "text": str}`. Pictures are in the
reading order of their parts. A system message may come first, then user and assistant take turns; the assistant has the last
word. `source` says where the row came from (file and line or row), so that whatever is wrong with it can be found. For scoring,
a row may also say which last answers are right (`references`, a list of texts), what is asked (`kind`), and which rows are only
right together (`group`, such as a statement with all its pictures).

A row is of one of two forms:
    `messages`, with `images` or one `image`     Hugging Face's
    `conversations`, with `image` if there is one   LLaVA's: `{"from": "human" | "gpt" | "system", "value": text}` a turn,
                                                 `<image>` in a human turn for a picture, which moves to the turn's front
Layouts, tried in this order in a folder:
    what `save_to_disk` of `datasets` writes, with splits or without
    SPLIT.json, SPLIT.jsonl   a list of rows, or one a line; also the only such file in SPLIT/
    SPLIT*.parquet            also in `data/`, or any parquet files in SPLIT/
Without a split, the only one of them. Pictures are bytes in the rows, or files named relative to `image_folder`.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, and the data files of its code,
    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

import hashlib
import json
import os
import pickle
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hf_vlm.data.conversations.conversation_files import (
    FIELDS,
    HELD,
    PICTURE_FIELDS,
    SAVED_BY_DATASETS,
    Chosen,
    ConversationError,
    HeldPictures,
    Places,
    StoredPath,
    Texts,
    cut,
    files_in,
    find_layout,
    has_fields,
    named_files,
    no_layout,
    open_rows,
    saved_splits,
)
from hf_vlm.data.pictures import open_picture

ROLES = ("system", "user", "assistant")
_LLAVA_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_IMAGE_MARKER = "<image>"  # in LLaVA's files, whatever a processor's image token is
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_NOTES = ("id", "references", "kind", "group")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")


class Conversations(Sequence[dict[str, Any]]):
    """Conversations with their pictures, which are opened when asked for.

    `conversations[i]` is `{"messages", "images": [PIL, ...], "source", "id"}`. May be pickled, as workers of a data loader
    want it. Made by `read_conversations`.

    Attributes:
        sources: where every row came from.
        image_counts: int32 (rows,), pictures of every row.
    """

    def __init__(
        self,
        texts: "Texts | Mapping[int, str]",
        sources: "Places | Sequence[str] | Mapping[int, str]",
        folder: Path,
        held: "HeldPictures",
        rows: np.ndarray,
        image_counts: np.ndarray,
    ) -> None:
        """`texts`: each row as JSON; `folder`: of pictures with names; `rows`: int64, which of all these are meant."""
        self._texts, self._places, self._folder, self._held, self._rows = texts, sources, folder, held, rows
        self.image_counts = image_counts
        self.sources: Sequence[str] = Chosen(sources, rows)
        self._changes: tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], ...] = ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Row `index`; raises as `images` does."""
        row = self._row(index)
        return {
            "messages": row["messages"],
            "images": self.images(index),
            "source": self.sources[index],
            "id": row["id"],
        }

    def messages(self, index: int) -> list[dict[str, Any]]:
        """The messages of row `index`; no picture is opened."""
        return self._row(index)["messages"]

    def question(self, index: int) -> str:
        """The words of the last question of row `index`."""
        return text_of(self.messages(index)[-2])

    def references(self, index: int) -> list[str]:
        """The right last answers of row `index`, one or more."""
        row = self._row(index)
        return row.get("references") or [text_of(row["messages"][-1])]

    def kind(self, index: int) -> str | None:
        """What row `index` asks, if it says so."""
        return self._row(index).get("kind")

    def group(self, index: int) -> str | None:
        """Which rows count as right only together with row `index`, if it says so."""
        return self._row(index).get("group")

    def name(self, index: int) -> str | None:
        """The `id` of row `index`, if it has one."""
        return self._row(index)["id"]

    def num_images(self, index: int) -> int:
        """How many pictures row `index` has."""
        return int(self.image_counts[index])

    def images(self, index: int) -> list[Image.Image]:
        """The pictures of row `index`, as stored.

        Raises:
            FileNotFoundError: if a picture's file is missing.
            ValueError: if there is no picture that can be read; every message names file and row.
        """
        row, source = self._row(index), self.sources[index]
        names = row["pictures"]
        held = self._held[row.get("held", int(self._rows[index]))] if None in names else []
        pictures = []
        for number, name in enumerate(names):
            picture: Any = self._folder / name if name is not None else held[number]
            where = f"{source}, {f'picture {number}' if name is None else cut(name, 255)}"
            try:
                pictures.append(open_picture(picture, name=where))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise ValueError(
                    f"{where}: wanted a picture, got an error ({error.strerror}). Check the file."
                ) from error
        return pictures

    def distinct_pictures(self) -> tuple["Conversations", np.ndarray]:
        """The first conversation of each set of pictures, and int64 (rows,), which of these has the pictures of each row."""
        first: dict[str, int] = {}
        rows: list[int] = []
        of_row = np.empty(len(self), np.int64)
        for index in range(len(self)):
            row = self._row(index)
            place = row.get("held", int(self._rows[index])) if None in row["pictures"] else None
            key = json.dumps([row["pictures"], place])
            if key not in first:
                first[key] = len(rows)
                rows.append(index)
            of_row[index] = first[key]
        return self.select(rows), of_row

    def stored_images(self, index: int) -> list[bytes]:
        """The pictures of row `index` as their files, unopened; of one that can't be read, nothing."""
        row = self._row(index)
        held = self._held[row.get("held", int(self._rows[index]))] if None in row["pictures"] else []
        stored = []
        for number, name in enumerate(row["pictures"]):
            place = self._folder / name if name is not None else held[number]
            try:
                stored.append(place if isinstance(place, bytes) else Path(place).read_bytes())
            except OSError:
                stored.append(b"")
        return stored

    def select(self, indices: Iterable[int]) -> "Conversations":
        """The conversations of these indices, in their order."""
        indices = np.fromiter(indices, np.int64)
        rows, image_counts = self._rows[indices], self.image_counts[indices]
        chosen = Conversations(self._texts, self._places, self._folder, self._held, rows, image_counts)
        chosen._changes = self._changes
        return chosen

    def alone(self) -> "Conversations":
        """The same conversations without the others of their files: light to be sent to another process."""
        numbers = self._rows.tolist()
        texts, places = ({number: items[number] for number in numbers} for items in (self._texts, self._places))
        alone = Conversations(texts, places, self._folder, self._held, self._rows, self.image_counts)
        alone._changes = self._changes
        return alone

    def hash_words(self) -> str:
        """SHA-256 in hex of the words of all rows, where they stand, and how they are changed; pictures don't count."""
        digest = hashlib.sha256(pickle.dumps(self._changes))
        for number in self._rows.tolist():
            digest.update(f"{self._places[number]}\n{self._texts[number]}\n".encode())
        return digest.hexdigest()

    def spread(self, number: int) -> "Conversations":
        """So many of the conversations, spread evenly over all; all where there are no more."""
        if number >= len(self):
            return self
        return self.select(np.unique(np.linspace(0, len(self) - 1, number).round().astype(int)).tolist())

    def map_messages(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> "Conversations":
        """The same conversations, their messages changed whenever they are asked for; the pictures stay as many."""
        changed = self.select(range(len(self)))
        changed._changes = (*self._changes, change)
        return changed

    def _row(self, index: int) -> dict[str, Any]:
        row = json.loads(self._texts[int(self._rows[index])])
        for change in self._changes:
            row["messages"] = change(row["messages"])
        return row


def read_conversations(
    path: str | Path,
    split: str | None = None,
    *,
    image_folder: str | Path | None = None,
    on_bad_row: Callable[[Exception], None] | None = None,
) -> Conversations:
    """The conversations of a data set on disk.

    Rows are checked when they are read, but for what is in their pictures. A large set is kept as text: the 665K
    conversations of LLaVA-1.5 take about as much memory as their file.

    Args:
        path: a folder in one of the layouts above, or one file: .json, .jsonl or .parquet.
        split: such as `train`; picks the file or folder of that name.
        image_folder: that the names of pictures are relative to; by default the one of the file. A name such as `a.png` is
            also found as `a.jpg`, as some sets are saved so.
        on_bad_row: called with the error of each bad row, which is left out; None raises the first.

    Raises:
        FileNotFoundError: if `path`, `image_folder` or a picture that a row names is missing.
        ValueError: if no layout fits, a file is damaged, nothing is left, or a row is bad; names the file and the row.
    """
    on_bad_row = on_bad_row or _raise
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a folder or file of conversations, got {path}, which does not exist. Check it."
        )
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"`image_folder` must be a folder, got {image_folder}, which is none. Check it.")
    files = [path] if path.is_file() else find_layout(path, split)
    if not files:
        raise no_layout(path, split)
    finder = PictureFinder(Path(image_folder) if image_folder is not None else files[0].parent)
    rows, places, held = open_rows(files, split, (*FIELDS, *PICTURE_FIELDS, *_NOTES), FIELDS)
    texts, numbers, counts = Texts(), array("q"), array("i")
    for number, row in enumerate(rows):
        try:
            if isinstance(row, ValueError):
                raise row
            text, num_pictures = conversation_record(row, places[number], finder)
        except (ValueError, OSError) as error:
            on_bad_row(error)
            texts.append(b"")  # its place, so that numbers are those of the file
            continue
        texts.append(text)
        numbers.append(number)
        counts.append(num_pictures)
    if not numbers:
        raise ValueError(f"{named_files(files)} must hold conversations, got none. Check the file.")
    return Conversations(texts, places, finder.folder, held, np.array(numbers, np.int64), np.array(counts, np.int32))


def check_messages(messages: Sequence[Mapping[str, Any]], num_images: int, image_token: str = "<image>") -> None:
    """Checks that messages are a conversation to learn from, with as many pictures as it has places for.

    Args:
        messages: `{"role", "content"}` each, as above.
        num_images: pictures that come with them.
        image_token: what a processor puts for a picture; no text may hold it.

    Raises:
        ValueError: if roles are unknown, out of order or don't take turns, an answer is empty, a picture is not in a user's
            message, a text holds the image token or half of a character, or numbers differ. Row and file are not named.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        got = "none" if messages is None or messages == [] else cut(repr(messages), 60)
        raise ConversationError(f"wanted a list of messages, got {got}. Fill or remove the row.")
    before, num_places = None, 0
    for index, message in enumerate(messages):
        place = f"`messages[{index}]`"
        role = _role(message, "role", ROLES, index)
        _check_order(role, before, place)
        before = role
        parts = _parts(message.get("content"), place)
        words = "".join(part["text"] for part in parts if part["type"] == "text")
        pictures = sum(part["type"] == "image" for part in parts)
        num_places += pictures
        if pictures and role != "user":
            raise ConversationError(
                f"wanted pictures in messages of `user`, got one in {place} of `{role}`. Move it.", "misplaced pictures"
            )
        if image_token in words:
            raise ConversationError(
                f"wanted no `{image_token}` in texts, as it stands for a picture, got one in {place} of `{role}`, "
                f'{_around(words, image_token)}. Make it a part {{"type": "image"}} of a user\'s message, or take it out.',
                "image tokens in texts",
            )
        if not words.strip() and not pictures:
            kind = {"assistant": "empty answers"}.get(role, "empty messages")
            raise ConversationError(f"wanted words in {place} of `{role}`, got none. Fill or remove the row.", kind)
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise ConversationError(
                f"wanted whole characters, got half of one in {place}, {cut(repr(words), 60)}. Correct it."
            ) from error
    if before != "assistant":
        raise ConversationError(
            f"wanted the last word from `assistant`, got it from `{before}`. Add an answer, or remove the message.",
            "role order",
        )
    if num_places != num_images:
        raise ConversationError(
            f"wanted as many pictures as places for them, got {num_images} pictures and {num_places} places. Put one "
            f'{{"type": "image"}} part (in LLaVA\'s form one `{_IMAGE_MARKER}`) a picture into the user\'s messages.',
            "pictures without places",
        )


def text_of(message: Mapping[str, Any]) -> str:
    """The words of a message, without its pictures."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def holds_conversations(path: str | Path) -> bool:
    """Whether data has the fields of conversations, `messages` or `conversations`; a file .json is taken to have."""
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() == ".json" or has_fields(path)
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in SAVED_BY_DATASETS):
        try:
            saved = datasets.load_from_disk(str(path))
        except (ValueError, OSError, KeyError):
            return False
        tables = [saved] if isinstance(saved, datasets.Dataset) else list(saved.values())
        return any(set(FIELDS) & set(table.column_names) for table in tables)
    places = [path, path / "data", *(path / split for split in _SPLITS)]
    return any(has_fields(file) for place in places for file in files_in(place, ".json", ".jsonl", ".parquet"))


def find_conversation_splits(path: str | Path) -> list[str | None]:
    """The splits that a folder holds, or `[None]` where it is a file or knows none."""
    path = Path(path)
    if not path.is_dir():
        return [None]
    for name in SAVED_BY_DATASETS:
        if (path / name).is_file():
            return [*saved_splits(path / name)] or [None]
    found: list[str | None] = []
    for split in _SPLITS:
        try:
            if find_layout(path, split):
                found.append(split)
        except ValueError:  # too many files, which reading the split tells
            found.append(split)
    return found or [None]


def _raise(error: Exception) -> None:
    raise error


# Rows of either form -> checked messages


def conversation_record(row: Mapping[str, Any], source: str, finder: "PictureFinder") -> tuple[bytes, int]:
    """A row as JSON `{"messages", "pictures", "id", ...}` and its number of pictures; raises with the source in front.

    Args:
        row: in one of the two forms; also `held`, the row of a table that holds its pictures, where that is another.
    """
    if not isinstance(row, Mapping):
        raise ConversationError(f"{source}: wanted a JSON object, got {type(row).__name__}. Write one object a row.")
    try:
        if row.get("messages") is not None:
            messages = _from_messages(row["messages"])
        elif row.get("conversations") is not None:
            messages = _from_llava(row["conversations"])
        else:
            given = ", ".join(f"`{cut(str(key), 80)}`" for key in list(row)[:8]) or "nothing"
            raise ConversationError(f"wanted `messages` or `conversations`, got {given}. Name the field so.")
        pictures = _pictures(row)
        check_messages(messages, len(pictures), _IMAGE_MARKER)
        names = [None if picture is HELD else finder.find(picture) for picture in pictures]
        _check_notes(row)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}") from error
    except ConversationError as error:
        raise ConversationError(f"{source}: {error}", error.kind) from error
    name = row.get("id")
    record = {"messages": messages, "pictures": names, "id": None if name is None else str(name)}
    record |= {key: row[key] for key in (*_NOTES, "held") if key != "id" and row.get(key) is not None}
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(), len(names)
    except UnicodeEncodeError as error:
        raise ConversationError(
            f"{source}: wanted whole characters, got half of one in its `id` or a picture's name. Correct it."
        ) from error


def _check_notes(row: Mapping[str, Any]) -> None:
    references = row.get("references")
    if references is not None and not (
        isinstance(references, list)
        and references
        and all(isinstance(text, str) and text.strip() for text in references)
    ):
        raise ConversationError(
            f"wanted a list of texts as `references`, got {cut(repr(references), 60)}. Fill it, or leave it out."
        )
    for key in ("kind", "group"):
        if row.get(key) is not None and not isinstance(row[key], str):
            raise ConversationError(f"wanted a text as `{key}`, got {cut(repr(row[key]), 60)}. Correct it.")


def _from_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages without the empty keys that tables add to parts."""
    if not isinstance(messages, list) or not messages:
        got = "none" if messages == [] else f"{type(messages).__name__} {cut(repr(messages), 60)}"
        raise ConversationError(f"wanted a list `messages`, got {got}. Fill or remove the row.")
    plain, num_pictures = [], 0
    for index, message in enumerate(messages):
        role, content = _role(message, "role", ROLES, index), message.get("content")
        parts = _parts(content, f"`messages[{index}]`")
        for part in parts:
            if part["type"] != "image":
                continue
            if part.get("index") not in (None, num_pictures):
                raise ConversationError(
                    f"wanted pictures in reading order, got picture {part['index']} as number {num_pictures} in "
                    f"`messages[{index}]`. Put the pictures into the order of their parts.",
                    "pictures without places",
                )
            num_pictures += 1
        if not isinstance(content, str):
            content = [
                {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}
                for part in parts
            ]
        plain.append({"role": role, "content": content})
    return plain


def _from_llava(turns: Any) -> list[dict[str, Any]]:
    """LLaVA's turns as messages; a human turn's pictures move to its front, as its `preprocess_multimodal` has it."""
    if not isinstance(turns, list) or not turns:
        got = "none" if turns == [] else f"{type(turns).__name__} {cut(repr(turns), 60)}"
        raise ConversationError(f"wanted a list `conversations`, got {got}. Fill or remove the row.")
    messages = []
    for index, turn in enumerate(turns):
        role = _LLAVA_ROLES[_role(turn, "from", list(_LLAVA_ROLES), index)]
        text = turn.get("value")
        if not isinstance(text, str):
            got = f"{type(text).__name__} {cut(repr(text), 60)}"
            raise ConversationError(f"wanted a text as `value` of `conversations[{index}]`, got {got}. Correct it.")
        content: Any = text
        if role == "user" and (num_pictures := text.count(_IMAGE_MARKER)):
            content = [{"type": "image"}] * num_pictures
            if text := text.replace(_IMAGE_MARKER, "").strip():
                content.append({"type": "text", "text": text})
        messages.append({"role": role, "content": content})
    return messages


def _role(message: Any, key: str, known: Sequence[str], index: int) -> str:
    place = f"`{'messages' if key == 'role' else 'conversations'}[{index}]`"
    if not isinstance(message, Mapping):
        raise ConversationError(f"wanted {place} to be an object, got {cut(repr(message), 60)}. Correct it.")
    role = message.get(key)
    if role not in known:
        names = ", ".join(f"`{name}`" for name in known)
        raise ConversationError(
            f"wanted `{key}` of {place} to be one of {names}, got {cut(repr(role), 60)}. Rename it.", "unknown roles"
        )
    return str(role)


def _check_order(role: str, before: str | None, place: str) -> None:
    if role == "system" and before is not None:
        raise ConversationError(f"wanted `system` first if at all, got it as {place}. Move it.", "role order")
    if role == "assistant" and before in (None, "system"):
        raise ConversationError(
            f"wanted `user` to speak first, got `assistant` as {place}. Remove the message, or add a question.",
            "role order",
        )
    if role == before:
        raise ConversationError(
            f"wanted `user` and `assistant` by turns, got `{role}` again as {place}. Join the two, or remove one.",
            "role order",
        )


def _parts(content: Any, place: str) -> list[Mapping[str, Any]]:
    """A message's content as parts, checked one by one."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content or ""}]
    if not isinstance(content, list):
        raise ConversationError(
            f"wanted a text or a list of parts as `content` of {place}, got {cut(repr(content), 60)}. Correct it."
        )
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "text"):
            raise ConversationError(
                f"wanted parts of `type` `image` or `text` in {place}, got {cut(repr(part), 60)}. Correct it."
            )
        if kind == "text" and not isinstance(part.get("text"), str):
            raise ConversationError(f"wanted a `text` in a part of {place}, got {cut(repr(part), 60)}. Fill it.")
        inside = [key for key in ("image", "url", "path", "base64") if part.get(key) is not None]
        if inside:
            raise ConversationError(
                f"wanted pictures in the row's `images`, got one in a part of {place} as `{inside[0]}`. Move it there, and "
                'leave {"type": "image"} in its place.',
                "misplaced pictures",
            )
    return content


def _pictures(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row: names, or `HELD`."""
    given = [key for key in PICTURE_FIELDS if row.get(key) is not None and row[key] not in ("", [])]
    if len(given) > 1:
        raise ConversationError("wanted pictures as `images` or as `image`, got both. Leave one out.")
    if not given:
        return []
    value = row[given[0]]
    pictures = []
    for picture in value if isinstance(value, list) else [value]:
        if isinstance(picture, Mapping) and picture.get("bytes") is None:
            picture = picture.get("path")
        if picture is not HELD and not isinstance(picture, str):
            got = "none" if picture is None else cut(repr(picture), 60)
            raise ConversationError(f"wanted a picture's name in `{given[0]}`, got {got}. Fill or remove the row.")
        pictures.append(picture)
    return pictures


def check_picture_name(name: str) -> None:
    """Raises ConversationError unless a picture's name is one of a file inside a folder."""
    if "://" in name or name.startswith("data:"):
        raise ConversationError(
            f"wanted a picture's file in the folder, got the URL {cut(name, 80)}. Download it, and name the file.",
            "unwanted names of pictures",
        )
    windows = PureWindowsPath(name)  # takes both `/` and `\` as separators
    if windows.anchor or windows.drive or PurePosixPath(name).is_absolute() or ".." in windows.parts:
        raise ConversationError(
            f"wanted a picture's name inside the folder, got {cut(name, 255)}. Make it relative to `image_folder`.",
            "unwanted names of pictures",
        )


class PictureFinder:
    """Finds the files of pictures by their names; a folder is listed once, as sets have many pictures in few folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str:
        """The name that the file has, relative to the folder; raises without the source."""
        if isinstance(name, StoredPath) and os.path.isabs(name):
            if os.path.isfile(name):
                return str(name)
            raise FileNotFoundError(f"wanted the picture {cut(name, 255)}, got no such file. Check the path.")
        check_picture_name(name)
        parent, base = os.path.split(os.path.normpath(name))
        if parent not in self._listed:
            try:
                self._listed[parent] = frozenset(os.listdir(self.folder / parent))
            except (OSError, ValueError):  # no such folder, or no name for one
                self._listed[parent] = frozenset()
        stem, suffix = os.path.splitext(base)
        others = [stem + other for other in _SUFFIXES] if suffix.lower() in _SUFFIXES else []
        for candidate in (base, *others):
            if candidate in self._listed[parent]:
                return os.path.join(parent, candidate)
        if os.path.isfile(self.folder / parent / base):  # where a file system takes names as equal that differ
            return os.path.join(parent, base)
        raise FileNotFoundError(
            f"wanted the picture {cut(name, 255)}, got no such file in {self.folder}. Add the file, give the right "
            "`image_folder`, or remove the row."
        )


def _around(text: str, word: str) -> str:
    start = text.index(word)
    return repr(cut(text[max(start - 20, 0) : start + len(word) + 20], 80))
