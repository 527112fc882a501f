"""The files of COCO captions, VQAv2, GQA, TextVQA, NLVR2 and Multi30k as rows of `task_rows.py`; each layout is told there."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.conversation_files import cut

Rows = tuple[list[dict[str, Any]], list[str], Path]  # rows, where each stands, the folder of the pictures


def published_rows(path: Path, split: str | None, task: str, columns: Mapping[str, str]) -> Rows | None:
    """The rows of a set as it was published, or None where it is laid out otherwise.

    Raises:
        ValueError: if a file is damaged, or files that belong together don't fit.
    """
    if task == "translate" and (sides := _multi30k_sides(path, split, columns)):
        return _multi30k(path, split or "", *sides)
    if task == "vqa" and path.is_dir() and (pair := _vqav2_files(path, split)):
        return _vqav2(*pair)
    if task == "nlvr" and (file := _nlvr2_file(path, split)):
        return _nlvr2(file)
    if task == "caption" and path.is_dir():
        found = sorted(path.glob(f"captions_*{split}*.json" if split else "captions_*.json"))
        if len(found) > 1:
            raise ValueError(
                f"{path} must hold one captions_*.json of the split, got {len(found)}. Name the split or the file."
            )
        path = found[0] if found else path
    if path.is_file() and path.suffix.lower() == ".json" and task in ("caption", "vqa"):
        content = _load(path) if _starts_with_brace(path) else None
        if isinstance(content, dict):
            return _of_object(path, content, task)
    return None


def _of_object(path: Path, content: dict[str, Any], task: str) -> Rows:
    """A published file that is one JSON object: COCO's, TextVQA's or GQA's."""
    if task == "caption" and {"images", "annotations"} <= content.keys():
        return _coco_captions(path, content)
    if task == "vqa" and isinstance(content.get("data"), list):  # TextVQA
        rows = [{**row, "file_name": f"{row.get('image_id')}.jpg"} for row in content["data"]]
        return rows, [f"{path}, row {index} of `data`" for index in range(len(rows))], path.parent
    if task == "vqa" and content and all(isinstance(row, dict) and "imageId" in row for row in content.values()):  # GQA
        rows = [{**row, "id": name, "file_name": f"{row['imageId']}.jpg"} for name, row in content.items()]
        return rows, [f"{path}, question {name}" for name in content], path.parent
    keys = ", ".join(f"`{cut(str(key), 40)}`" for key in list(content)[:6]) or "nothing"
    wanted = "COCO's `images` and `annotations`" if task == "caption" else "GQA's questions or TextVQA's `data`"
    raise ValueError(f"{path} must hold {wanted}, or a list of rows, got {keys}. Convert it to .jsonl, a row a line.")


def _coco_captions(path: Path, content: dict[str, Any]) -> Rows:
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        if not isinstance(annotation.get("caption"), str):
            raise ValueError(
                f"{path}: wanted annotations with a `caption`, got {cut(repr(annotation), 80)}. Take captions_*.json."
            )
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    rows, places = [], []
    for image in content["images"]:
        if image["id"] in captions:
            rows.append({"id": image["id"], "file_name": image["file_name"], "captions": captions[image["id"]]})
            places.append(f"{path}, image {image['id']}")
    return rows, places, path.parent


def _vqav2_files(folder: Path, split: str | None) -> tuple[Path, Path] | None:
    named = f"*{split}*" if split else "*"
    pairs = [sorted(folder.glob(f"{named}{kind}.json")) for kind in ("questions", "annotations")]
    if not all(pairs):
        return None
    for found in pairs:
        if len(found) > 1:
            raise ValueError(f"{folder} must hold one {found[0].name}-like file, got {len(found)}. Name the split.")
    return pairs[0][0], pairs[1][0]


def _vqav2(questions_file: Path, annotations_file: Path) -> Rows:
    questions, annotations = _load(questions_file), _load(annotations_file)
    known = {one["question_id"]: one for one in annotations.get("annotations", [])}
    subtype = annotations.get("data_subtype") or questions.get("data_subtype")  # `val2014`: part of the pictures' names
    rows, places = [], []
    for question in questions.get("questions", []):
        name, picture = question["question_id"], question["image_id"]
        if name not in known:
            raise ValueError(
                f"{annotations_file} must hold the answers to every question of {questions_file.name}, got none for {name}. Take "
                "both of one split."
            )
        stem = f"COCO_{subtype}_{picture:012d}" if subtype and isinstance(picture, int) else str(picture)
        notes = {"question": question["question"], "question_id": name, "kind": known[name].get("answer_type")}
        rows.append({**notes, "answers": known[name]["answers"], "file_name": f"{stem}.jpg"})
        places.append(f"{questions_file}, question {name}")
    return rows, places, questions_file.parent


def _nlvr2_file(path: Path, split: str | None) -> Path | None:
    if path.is_file():
        candidates = [path] if path.suffix.lower() in (".json", ".jsonl") else []
    else:
        candidates = sorted([*path.glob(f"{split or ''}*.json"), *path.glob(f"{split or ''}*.jsonl")])
    found = []
    for file in candidates:
        with file.open(encoding="utf-8-sig") as stream:
            head = stream.read(4000)
        if head.lstrip().startswith("{") and '"identifier"' in head and '"sentence"' in head:
            found.append(file)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(
            f"{path} must hold one file of the split, got {names}. Name the split, such as `dev`, or the file."
        )
    return found[0] if found else None


def _nlvr2(file: Path) -> Rows:
    rows, places = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = row["identifier"].rsplit("-", 1)[0]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: wanted a row of NLVR2, got {line[:60]!r} ({error}). Correct it."
            ) from error
        folder = f"{row['directory']}/" if row.get("directory") is not None else ""
        pictures = [f"{folder}{pair}-img0.png", f"{folder}{pair}-img1.png"]
        rows.append({**row, "images": pictures, "id": row["identifier"], "group": row["sentence"]})
        places.append(f"{file}, line {number}")
    return rows, places, file.parent


def _multi30k_sides(path: Path, split: str | None, columns: Mapping[str, str]) -> tuple[Path, Path] | None:
    if not path.is_dir() or split is None or not {"question", "answer"} <= columns.keys():
        return None
    sides = []
    for language in (columns["question"], columns["answer"]):
        found = [file for file in (path / f"{split}.{language}", path / f"{split}.{language}.gz") if file.is_file()]
        if not found:
            return None
        sides.append(found[0])
    return sides[0], sides[1]


def _multi30k(folder: Path, split: str, source_file: Path, target_file: Path) -> Rows:
    places = (folder / "image_splits", folder.parent / "image_splits", folder)
    names_files = [place / f"{split}.txt" for place in places if (place / f"{split}.txt").is_file()]
    sides = [_lines(file) for file in (source_file, target_file, *names_files[:1])]
    if len({len(side) for side in sides}) > 1:
        raise ValueError(
            f"The files of `{split}` in {folder} must have as many lines, got {', '.join(str(len(side)) for side in sides)}. "
            "Take them of one release."
        )
    languages = (source_file.name.split(".")[1], target_file.name.split(".")[1])
    rows = []
    for at, (source, target) in enumerate(zip(*sides[:2], strict=True)):
        row = {languages[0]: source, languages[1]: target, "id": f"{split}-{at}"}
        rows.append(row | ({"file_name": sides[2][at].split("#")[0]} if names_files else {}))
    return rows, [f"{source_file}, line {number}" for number in range(1, len(rows) + 1)], folder


def _lines(file: Path) -> list[str]:
    if file.suffix == ".gz":
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            return stream.read().splitlines()
    return file.read_text(encoding="utf-8").splitlines()


def _starts_with_brace(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        return file.read(200).lstrip().startswith("{")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: wanted JSON, got something else ({error}). Copy or download it again.") from error
