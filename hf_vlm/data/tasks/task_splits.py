"""Which splits a data set has, in any of the layouts that `task_rows.py` reads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import SAVED_BY_DATASETS, files_in, saved_splits
from hf_vlm.data.tasks.source_rows import PICTURE_SUFFIXES
from hf_vlm.data.tasks.task_rows import stream_task

VALIDATION_NAMES = ("val", "validation", "valid", "dev")  # of one thing, of which a set has one
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")  # a file of a split, as the Hub names them


def find_task_splits(
    path: Path, *, task: str, languages: Mapping[str, str] | None = None, **settings: Any
) -> tuple[list[str | None], dict[str, str]]:
    """The splits that a set has, `[None]` where it is a file or knows none; and split -> why it can't be read.

    A split is there if a row of it can be asked for. One that can't be read is told of only if a file is called like it.

    Args:
        languages: of the task translate: `question` and `answer` -> the suffixes of the files.
        settings: of `stream_task`.
    """
    if path.is_file():
        return [None], {}
    for name in SAVED_BY_DATASETS:
        if (path / name).is_file():
            return [*saved_splits(path / name)] or [None], {}
    shards = [SHARD.fullmatch(file.name) for place in (path / "data", path) for file in files_in(place, ".parquet")]
    if names := {shard[1] for shard in shards if shard}:
        return [*sorted(names, key=_order)], {}
    if task == "translate" and languages and "question" in languages:
        return [*_multi30k_splits(path, languages["question"])] or [None], {}
    there = " ".join(file.name.lower() for place in (path, path / "annotations") for file in _entries(place))
    mentioned = [
        name for name in ("train", *VALIDATION_NAMES, "test") if re.search(rf"(?<![a-z]){name}(?![a-z])", there)
    ]
    found: list[str | None] = []
    sources: dict[str, str] = {}
    failed: dict[str, str] = {}
    for split in ("train", *sorted(VALIDATION_NAMES, key=lambda name: name not in mentioned), "test"):
        if split in VALIDATION_NAMES and set(found) & set(VALIDATION_NAMES):
            continue
        try:
            first = next(stream_task(path, split, task=task, on_bad_row=_found, **settings), None)
            sources[split] = first.source if first is not None else ""
            found.append(split)
        except _FoundError as error:
            sources[split] = str(error.__cause__).split(": ")[0]
            found.append(split)
        except (ValueError, OSError) as error:
            if split in mentioned:
                failed[split] = str(error)
    if len(found) > 1 and found[0] == "train" and _is_picture(sources["train"]) and not (path / "train").exists():
        found = found[1:]  # other splits' folder of pictures was taken for a class of `train`
    if not found:
        return [None], {}  # reading without a split tells better what is wrong
    return found, failed


def _order(split: str) -> tuple[bool, bool, str]:
    return split != "train", split not in VALIDATION_NAMES, split


def _multi30k_splits(path: Path, language: str) -> list[str]:
    names = []
    for place in (path, path / "raw", path / "tok"):
        for file in _entries(place):
            name = file.name.removesuffix(".gz")
            if name.endswith(f".{language}"):
                names.append(name.removesuffix(f".{language}").removesuffix(".lc.norm.tok"))
    return sorted(set(names), key=_order)


class _FoundError(Exception):
    """A split has a row, if a bad one."""


def _found(error: Exception) -> None:
    raise _FoundError from error


def _is_picture(source: str) -> bool:
    """Whether a row came from a folder of pictures, not from a file of rows."""
    return source.lower().endswith(PICTURE_SUFFIXES)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
