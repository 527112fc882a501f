"""Data sets as they were published, as rows of `task_rows.py`, where each layout is told; here NLVR2 and Multi30k.

Questions are read by `published_vqa.py`, captions by `published_captions.py`.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.tasks.published_captions import published_captions
from hf_vlm.data.tasks.published_vqa import published_questions
from hf_vlm.data.tasks.source_rows import SourceRows, head_of

_TOKENISED = ".lc.norm.tok"  # Multi30k's lower-cased, normalised, tokenised files


def published_rows(
    path: Path, split: str | None, task: str, columns: Mapping[str, str], image_folder: Path | None = None
) -> SourceRows | None:
    """The rows of a set as it was published, or None where it is laid out otherwise.

    Raises:
        ValueError: if a file is damaged, files that belong together don't fit, or answers are not published.
    """
    if task == "translate" and (sides := _multi30k_sides(path, split, columns)):
        return _multi30k(split or "", columns["question"], columns["answer"], *sides)
    if task == "nlvr" and (file := _nlvr2_file(path, split)):
        return SourceRows(_nlvr2(file), file.parent)
    if task == "vqa":
        return published_questions(path, split, image_folder)
    if task == "caption":
        return published_captions(path, split)
    return None


def _nlvr2_file(path: Path, split: str | None) -> Path | None:
    if path.is_file():
        candidates = [path] if path.suffix.lower() in (".json", ".jsonl") else []
    else:
        candidates = sorted([*path.glob(f"{split or ''}*.json"), *path.glob(f"{split or ''}*.jsonl")])
    found = []
    for file in candidates:
        head = head_of(file)
        if head.startswith("{") and '"identifier"' in head and '"sentence"' in head:
            found.append(file)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(
            f"{path} must hold one file of the split, got {names}. Name the split, such as `dev`, or the file."
        )
    return found[0] if found else None


def _nlvr2(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows with the names of their two pictures; not all of the pictures that are called .png are PNG."""
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                row = json.loads(line)
                pair, sentence = row["identifier"].rsplit("-", 1)[0], row["sentence"]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                told = f"{place}: wanted a row of NLVR2, got {line[:60].rstrip()!r} ({error}). Correct it."
                yield place, ValueError(told)
                continue
            folder = f"{row['directory']}/" if row.get("directory") is not None else ""
            pictures = [f"{folder}{pair}-img0.png", f"{folder}{pair}-img1.png"]
            yield place, {**row, "images": pictures, "id": row["identifier"], "group": sentence}


def _multi30k_sides(path: Path, split: str | None, columns: Mapping[str, str]) -> tuple[Path, Path] | None:
    if not path.is_dir() or split is None or not {"question", "answer"} <= columns.keys():
        return None
    for folder in (path, path / "raw", path / "tok"):
        for kind in ("", _TOKENISED):
            sides = []
            for language in (columns["question"], columns["answer"]):
                name = f"{split}{kind}.{language}"
                sides += [file for file in (folder / name, folder / f"{name}.gz") if file.is_file()][:1]
            if len(sides) == 2:
                return sides[0], sides[1]
    return None


def _multi30k(split: str, source: str, target: str, source_file: Path, target_file: Path) -> SourceRows:
    folder = source_file.parent
    places = (folder / "image_splits", folder.parent / "image_splits", folder)
    names_files = [place / f"{split}.txt" for place in places if (place / f"{split}.txt").is_file()]
    sides = [_lines(file) for file in (source_file, target_file, *names_files[:1])]
    if len({len(side) for side in sides}) > 1:
        raise ValueError(
            f"The files of `{split}` in {folder} must have as many lines, got {', '.join(str(len(side)) for side in sides)}. "
            "Take them of one release."
        )
    rows = []
    for at, (said, translated) in enumerate(zip(*sides[:2], strict=True)):
        row = {source: said, target: translated, "id": f"{split}-{at}"}
        row |= {"file_name": sides[2][at].split("#")[0]} if names_files else {}
        rows.append((f"{source_file}, line {at + 1}", row))
    return SourceRows(rows, folder)


def _lines(file: Path) -> list[str]:
    """The lines of a file, parted by newlines only: `splitlines` would also part at rarer marks inside of sentences."""
    try:
        text = gzip.decompress(file.read_bytes()).decode("utf-8-sig") if file.suffix == ".gz" else None
        text = file.read_text(encoding="utf-8-sig") if text is None else text
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} must be whole UTF-8 text, got something else ({error}). Copy it again.") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines
