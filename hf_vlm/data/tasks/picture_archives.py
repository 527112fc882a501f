"""Tar files of pictures with texts, and pictures in folders or zip files of their classes, as rows of tasks.

    000.tar: KEY.jpg, KEY.txt, KEY.json       WebDataset's, as img2dataset writes them; the files of a key follow each other
    SPLIT/CLASS/PICTURE                       ImageNet's
    SPLIT.zip, SPLIT_map.txt                  Swin's: `PATH<TAB>NUMBER` a line, PATH in the zip

Classes are asked for: `What is shown here?` -> the class. Classes that are called by WordNet's ids (`n01440764`) are named by
ImageNet's LOC_synset_mapping.txt beside them, numbers by the lines of that file or of classes.txt; all names of a class are
right, the first is the answer.

Sources: https://github.com/webdataset/webdataset; Russakovsky et al. 2015 (ImageNet), https://arxiv.org/abs/1409.0575; the zip
    layout, https://github.com/microsoft/Swin-Transformer/blob/main/get_started.md
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import HELD, ConversationError, cut, files_in
from hf_vlm.data.tasks.source_rows import PICTURE_SUFFIXES, VALIDATION_NAMES, FilePieces, SourceRows, ZipPictures

CLASS_QUESTION = "What is shown here?"
_WORDNET_ID = re.compile(r"n\d{8}")
_NO_CLASSES = {"train", "test", *VALIDATION_NAMES, "data", "image", "images"}  # other layouts' folders of pictures
_LEFT_OUT = ("key", "url", "sha256", "status", "error_message", "exif")  # img2dataset's own notes


# Tar files


def find_tars(path: Path, split: str | None) -> list[Path]:
    """The tar files of a split: SPLIT*.tar or SPLIT/*.tar; those with numbers for names are of `train`."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    here = files_in(path, ".tar")
    if split is None:
        return here
    named = re.compile(rf"(.*[-_.])?{re.escape(split)}(?![A-Za-z])")
    found = [file for file in here if named.match(file.name)] or files_in(path / split, ".tar")
    return found or [file for file in here if split == "train" and not re.search("[A-Za-z]", file.stem)]


def tar_rows(files: Sequence[Path]) -> SourceRows:
    """A row a key: the fields of its .json, `text` of its .txt or .caption, and its pictures."""
    held = FilePieces()
    held.files = [str(file) for file in files]
    return SourceRows(_tar_rows(files, held), files[0].parent, held)


def _tar_rows(files: Sequence[Path], held: FilePieces) -> Iterator[tuple[str, Any]]:
    for number, file in enumerate(files):
        key: str | None = None
        row: dict[str, Any] | ConversationError = {}
        pieces: list[tuple[str, int, int]] = []
        for name, field, start, size, content in _members(file):
            if name != key:
                if key is not None:
                    yield _tar_row(file, key, row, pieces, number, held)
                key, row, pieces = name, {}, []
            if f".{field}".endswith(PICTURE_SUFFIXES):
                pieces.append((field, start, size))
            elif isinstance(row, dict) and content is not None:
                row = _with_field(row, field, content)
        if key is not None:
            yield _tar_row(file, key, row, pieces, number, held)


def _members(file: Path) -> Iterator[tuple[str, str, int, int, bytes | None]]:
    """Key, field, first byte and bytes of each file in a tar, and the content of texts."""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                folder, base = os.path.split(member.name)
                if not member.isfile() or base.startswith(".") or "." not in base:
                    continue
                stem, field = base.split(".", 1)
                is_text = field.lower() in ("json", "txt", "caption")
                stream = tar.extractfile(member) if is_text else None
                content = stream.read() if stream is not None else None
                yield os.path.join(folder, stem), field.lower(), member.offset_data, member.size, content
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{file}: wanted a whole tar file that is not compressed, got an error ({error}). Copy or download it again."
        ) from error


def _with_field(row: dict[str, Any], field: str, content: bytes) -> dict[str, Any] | ConversationError:
    try:
        if field != "json":
            return {**row, "text": content.decode("utf-8-sig")}
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("no object")
    except ValueError as error:
        return ConversationError(
            f"wanted UTF-8 text, as JSON an object, in its .{field}, got another ({error}). Correct it."
        )
    return {**row, **{name: value for name, value in fields.items() if name not in _LEFT_OUT}}


def _tar_row(
    file: Path,
    key: str,
    row: dict[str, Any] | ConversationError,
    pieces: Sequence[tuple[str, int, int]],
    number: int,
    held: FilePieces,
) -> tuple[str, Any]:
    pieces = sorted(pieces)  # `KEY.0.jpg`, `KEY.1.jpg`
    held.add_row([(number, start, size) for _, start, size in pieces])
    if isinstance(row, dict):
        row = {name: value for name, value in row.items() if name not in ("image", "images")}
        row |= {"images": [HELD] * len(pieces)} if pieces else {}
        row.setdefault("id", key)
    return f"{file}, {key}", row


# Classes


def class_rows(path: Path, split: str | None) -> SourceRows | None:
    """A row a picture of a folder or zip file of classes, or None where it is laid out otherwise.

    Raises:
        ValueError: if classes are numbers or WordNet's ids and nothing names them.
    """
    if (
        path.is_dir()
        and split is not None
        and (path / f"{split}.zip").is_file()
        and (path / f"{split}_map.txt").is_file()
    ):
        return _zip_rows(path / f"{split}.zip", path / f"{split}_map.txt")
    if not path.is_dir():
        return None
    place = path / split if split is not None and (path / split).is_dir() else path
    if place == path and split not in (None, "train"):
        return None
    classes = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
    if place == path and {name.lower() for name in classes} & _NO_CLASSES:
        return None
    if not any(files_in(place / name, *PICTURE_SUFFIXES) for name in classes):
        return None
    return SourceRows(_folder_rows(place, classes, _names_of(place, classes)), place)


def _folder_rows(place: Path, classes: Sequence[str], names: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    for name in classes:
        for file in files_in(place / name, *PICTURE_SUFFIXES):
            row = {"file_name": f"{name}/{file.name}", "question": CLASS_QUESTION, "answers": names[name]}
            yield str(file), row


def _zip_rows(file: Path, labels: Path) -> SourceRows:
    held = ZipPictures(file)
    named = _mapped(file.parent)
    if not named:
        raise ValueError(
            f"{file.parent} must name the classes that {labels.name} has numbers of, in classes.txt or LOC_synset_mapping.txt, a "
            "class a line, got neither. Add one."
        )
    names = list(named.values())

    def rows() -> Iterator[tuple[str, Any]]:
        with labels.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                place = f"{labels}, line {number}"
                picture, tab, label = line.rstrip("\r\n").rpartition("\t")
                held.add_row(picture)
                if not tab or not label.strip().isdigit() or int(label) >= len(names):
                    told = f"wanted `path<TAB>number` of one of {len(names)} classes, got {cut(repr(line), 80)}. Correct it."
                    yield place, ConversationError(told)
                elif picture not in held:
                    told = f"wanted {cut(picture, 255)} in {file.name}, got no such file. Copy both again."
                    yield place, ConversationError(told, "missing pictures")
                else:
                    answers = names[int(label)]
                    yield place, {"image": HELD, "question": CLASS_QUESTION, "answers": answers, "id": picture}

    return SourceRows(rows(), file.parent, held)


def _names_of(place: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """The names of each folder's class."""
    if classes and all(_WORDNET_ID.fullmatch(name) for name in classes):
        mapped = _mapped(place) or _mapped(place.parent)
        if unnamed := [name for name in classes if name not in mapped]:
            raise ValueError(
                f"{place} must have ImageNet's LOC_synset_mapping.txt beside it, which names its classes, got none for "
                f"`{unnamed[0]}`. Add it, or rename the folders."
            )
        return mapped
    return {name: [name.replace("_", " ")] for name in classes}


def _mapped(folder: Path) -> dict[str, list[str]]:
    """Names by WordNet's id or, of classes.txt, by the line itself; in the order of the classes' numbers."""
    for file in (folder / "LOC_synset_mapping.txt", folder / "classes.txt"):
        if file.is_file():
            found = {}
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                first, _, rest = line.strip().partition(" ")
                if _WORDNET_ID.fullmatch(first) and rest:
                    found[first] = [name.strip() for name in rest.split(",") if name.strip()]
                elif line.strip():
                    found[line.strip()] = [line.strip().replace("_", " ")]
            return found
    return {}
