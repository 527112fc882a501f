"""Captions as they were published: COCO's, TextCaps' and Karpathy's files; tables of captions reads `task_tables.py`."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import ConversationError, cut
from hf_vlm.data.tasks.source_rows import VALIDATION_NAMES, SourceRows, head_of, load_json, only_one


def published_captions(path: Path, split: str | None) -> SourceRows | None:
    """The rows of a set of captions as it was published, or None where it is laid out otherwise."""
    if path.is_dir():
        found = _files(path, split)
        if found is None:
            return None
        path = found
    if path.suffix.lower() != ".json" or not head_of(path, 200).startswith("{"):
        return None
    content = load_json(path)
    if not isinstance(content, dict):
        return None
    images, data = content.get("images"), content.get("data")
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        return SourceRows(_coco(path, content), _coco_pictures(path))
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return SourceRows(_karpathy(path, _of_split(path, images, split)), path.parent)
    if (
        isinstance(data, list)
        and data
        and isinstance(data[0], dict)
        and {"caption_str", "reference_strs"} & set(data[0])
    ):
        return SourceRows(_textcaps(path, data), path.parent)
    keys = ", ".join(f"`{cut(str(key), 40)}`" for key in list(content)[:6]) or "nothing"
    raise ValueError(
        f"{path} must hold COCO's `images` and `annotations`, TextCaps' `data`, or a list of rows, got {keys}. Convert it to "
        ".jsonl, a row a line."
    )


def _files(folder: Path, split: str | None) -> Path | None:
    wanted = re.compile(rf"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])" if split else "")  # `val` is not `minival`
    for place in (folder, folder / "annotations"):
        for kind in ("captions_", "TextCaps"):
            files = [
                file for file in sorted(place.glob(f"{kind}*.json")) if wanted.search(file.stem.removeprefix(kind))
            ]
            if file := only_one(files, place, f"{kind}*.json of the split"):
                return file
        karpathy = [file for file in sorted(place.glob("dataset*.json")) if '"sentences"' in head_of(file)]
        if file := only_one(karpathy, place, "dataset*.json with `sentences`"):
            return file
    return None


def _coco_pictures(file: Path) -> Path:
    """`val2017/` near `annotations/captions_val2017.json`, as COCO is unpacked, else the file's own folder."""
    subset = file.stem.removeprefix("captions_")
    near = [place / subset for place in (file.parent, file.parent.parent, file.parent.parent / "images")]
    return next((folder for folder in near if folder.is_dir()), file.parent)


def _coco(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        told = annotation.get("caption") if isinstance(annotation, Mapping) else None
        if not isinstance(told, str) or "image_id" not in annotation:
            raise ValueError(
                f"{path}: wanted annotations with a `caption` and an `image_id`, got {cut(repr(annotation), 80)}. Take "
                "captions_*.json."
            )
        captions.setdefault(annotation["image_id"], []).append(told)
    for index, image in enumerate(content["images"]):
        if not isinstance(image, Mapping) or not {"id", "file_name"} <= image.keys():
            yield (
                f"{path}, `images[{index}]`",
                ConversationError(f"wanted an `id` and a `file_name`, got {cut(repr(image), 80)}. Fill them."),
            )
        elif image["id"] in captions:
            row = {"id": image["id"], "file_name": image["file_name"], "captions": captions.pop(image["id"])}
            yield f"{path}, image {image['id']}", row
    for name in captions:
        yield (
            f"{path}, image {name}",
            ConversationError(f"wanted the picture {name} of annotations among `images`, got none. Add or remove it."),
        )


def _of_split(path: Path, images: list[Any], split: str | None) -> list[Any]:
    """The pictures of a split of Karpathy's; its `restval` is for training, too."""
    there = list(dict.fromkeys(image.get("split") for image in images))
    if split is None and len(there) > 1:
        raise ValueError(f"`split` must be one of {', '.join(map(str, there))} of {path}, got None. Name one.")
    wanted = {split} if split not in VALIDATION_NAMES else set(VALIDATION_NAMES)
    wanted |= {"restval"} if split == "train" else set()
    chosen = [image for image in images if split is None or image.get("split") in wanted]
    if not chosen:
        raise ValueError(f"`split` must be one of {', '.join(map(str, there))} of {path}, got `{split}`. Name one.")
    return chosen


def _karpathy(path: Path, images: list[Any]) -> Iterator[tuple[str, Any]]:
    for index, image in enumerate(images):
        name = image.get("cocoid", image.get("imgid", index))
        folder = f"{image['filepath']}/" if image.get("filepath") else ""
        captions = [one.get("raw") for one in image.get("sentences") or [] if isinstance(one, Mapping)]
        row = {"id": name, "file_name": f"{folder}{image.get('filename')}", "captions": captions}
        yield f"{path}, image {name}", row


def _textcaps(path: Path, data: list[Any]) -> Iterator[tuple[str, Any]]:
    """One row a picture; the file has one a caption."""
    captions: dict[Any, list[str]] = {}
    for row in data:
        told = row["reference_strs"] if row.get("caption_str") is None else [row["caption_str"]]
        captions.setdefault(row.get("image_id"), []).extend(told)
    for name, said in captions.items():
        yield f"{path}, image {name}", {"id": name, "file_name": f"{name}.jpg", "captions": list(dict.fromkeys(said))}
