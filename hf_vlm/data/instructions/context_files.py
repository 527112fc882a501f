"""Read what is known of pictures, captions and boxes, from the files that people have, as contexts.

| layout | what it is |
|---|---|
| .jsonl, .json (a list), .parquet, `save_to_disk` | rows of our schema (`contexts.py`); the only file, or SPLIT.*, of a folder |
| captions_*.json, instances_*.json | COCO's, either or both, of one SPLIT; also in `annotations/`; a file takes the other along |
| region_descriptions.json | Visual Genome's regions, with image_data.json beside it; objects.json too, if it is there |

Rows may say `caption` for one caption, `file_name` for `image`, `objects` for `instances`, `iscrowd` of an instance; without
an `id` it is `image_id` or the picture's name. `objects` may be columns, `{"bbox": [...], "category": [...]}`, as detection
sets of the Hub have it, with categories as text or as a `ClassLabel`.

Boxes of rows are corners as fractions of the picture, x1, y1, x2, y2, unless `bbox_format` says otherwise: `xywh` (left, top,
width, height), `xyxy-pixels`, `xywh-pixels`; pixels want the row's `width` and `height`. Small things near the right or the
bottom give left, top, width and height away, as they are no corners. A file in which each x, y, width, height happens to be
corners too can't be told from one of corners: look at a sample.

Files of lines, lists and tables are read as they are asked for, however long; of COCO's and Visual Genome's little is held
(`published_contexts.py`).

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3, and the record form of its code's
    llava/eval/table/caps_boxes_coco2014_val_80.jsonl.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_vlm.data.conversations.conversation_files import (
    HELD,
    SAVED_BY_DATASETS,
    ConversationError,
    cut,
    find_layout,
    no_layout,
    open_rows,
)
from hf_vlm.data.conversations.conversations import PictureFinder, check_picture_name
from hf_vlm.data.instructions.contexts import Box, Context, Instance, Region
from hf_vlm.data.instructions.published_contexts import (
    OnBadRow,
    Rows,
    coco_files,
    coco_rows,
    is_coco,
    is_visual_genome,
    visual_genome_rows,
    with_its_pair,
)

BBOX_FORMATS = ("xyxy", "xywh", "xyxy-pixels", "xywh-pixels")
FIELDS = ("captions", "caption", "instances", "objects", "regions")  # one of which a row must have
_NOTES = ("id", "image_id", "image", "file_name", "width", "height")
_SLACK = 0.002  # by which a fraction that was rounded elsewhere may be outside the picture
_SLACK_PX = 2.0  # by which a box in pixels may be; COCO's and Visual Genome's are at times
_LONGEST = 2000  # characters of a caption, phrase or category
_SMALLEST = 0.001  # side of a box that is rounded to three decimals
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters


def read_contexts(
    path: str | Path,
    split: str | None = None,
    *,
    image_folder: str | Path | None = None,
    bbox_format: str | None = None,
    allow_urls: bool = False,
    on_bad_row: Callable[[Exception], None] | None = None,
) -> Iterator[Context]:
    """The contexts of a file or folder, one by one. That no `id` comes twice is for the caller to see to.

    Args:
        path: in one of the layouts above, which is told by what the files hold.
        split: such as `train` or `val2014`; picks the files of that name.
        image_folder: where every picture must lie, as a file of its name, or of its name with another suffix; COCO's and
            Visual Genome's may lie in it without the folders that they were published in.
        bbox_format: of `BBOX_FORMATS`, of rows; COCO's and Visual Genome's are known.
        allow_urls: whether the name of a picture may be a URL.
        on_bad_row: called with the error of each bad row, which is left out; None raises the first. Of COCO and Visual Genome
            a bad box is told as well, and leaves out the box alone.

    Raises:
        FileNotFoundError: if `path` or `image_folder` is missing; while reading, if a picture is.
        ValueError: if no layout fits or `bbox_format` is none; while reading, if a file is damaged or not UTF-8, a row is bad (a
            `ConversationError`, whose `kind` can be counted), or nothing is left. Names file and line, row or key.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a file or folder of contexts, got {path}, which does not exist. Check it."
        )
    if bbox_format is not None and bbox_format not in BBOX_FORMATS:
        raise ValueError(f"`bbox_format` must be one of {', '.join(BBOX_FORMATS)}, got {bbox_format!r}. Correct it.")
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"`image_folder` must be a folder, got {image_folder}, which is none. Check it.")
    finder = PictureFinder(Path(image_folder)) if image_folder is not None else None
    rows, reader = _open(path, split, on_bad_row or _raise, _RowReader(bbox_format, allow_urls, finder))
    return _contexts(path, rows, reader, on_bad_row or _raise)


def _raise(error: Exception) -> None:
    raise error


def _contexts(path: Path, rows: Rows, reader: "_RowReader", on_bad_row: OnBadRow) -> Iterator[Context]:
    is_empty, first = True, None
    for source, row in rows:
        try:
            if isinstance(row, Exception):
                raise row
            context = reader.read(row, source)
        except FileNotFoundError as error:
            fault: Exception = FileNotFoundError(f"{source}: {error}")
        except ValueError as error:
            told = str(error) if str(error).startswith(source) else f"{source}: {error}"
            fault = ConversationError(told, getattr(error, "kind", "bad rows"))
        else:
            is_empty = False
            yield context
            continue
        first = first or fault
        on_bad_row(fault)
    if is_empty:
        why = "Check the file and the split." if first is None else f"The first was left out: {first}"
        raise ValueError(f"{path} must hold contexts, got none that can be used. {why}")


def _open(path: Path, split: str | None, on_bad_row: OnBadRow, reader: "_RowReader") -> tuple[Rows, "_RowReader"]:
    """The rows of the files that a path means, and what reads them."""
    published = _RowReader("xywh-pixels", reader.allow_urls, reader.finder, on_bad_box=on_bad_row)
    if path.is_dir():
        if files := coco_files(path, split):
            return coco_rows(files, on_bad_row), published
        genome = path / "region_descriptions.json"
        if genome.is_file() and is_visual_genome(genome):
            return visual_genome_rows(genome, on_bad_row), published
        files = find_layout(path, split, FIELDS)
        if not files:
            raise no_layout(path, split)
    else:
        files = [path]
    if files[0].suffix.lower() == ".json" and files[0].name not in SAVED_BY_DATASETS:
        if is_coco(files[0]):
            return coco_rows(with_its_pair(files[0]), on_bad_row), published
        if is_visual_genome(files[0]):
            return visual_genome_rows(files[0], on_bad_row), published
    rows, places, held = open_rows(files, split, (*FIELDS, *_NOTES), FIELDS)
    reader.class_names = _class_names(held.features.get("instances", held.features.get("objects")))
    return ((places[number], row) for number, row in enumerate(rows)), reader


def _class_names(feature: Any) -> Sequence[str]:
    """The names of categories that a table gives as numbers, if it does."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.names
    if isinstance(feature, Mapping):
        return _class_names(feature.get("category", feature.get("categories")))
    if isinstance(feature, list):
        return _class_names(feature[0])
    return _class_names(feature.feature) if hasattr(feature, "feature") else ()


# Rows -> contexts


@dataclass
class _RowReader:
    """Makes contexts of rows.

    Attributes:
        bbox_format: of `BBOX_FORMATS`; None where nobody has said.
        allow_urls: whether a picture's name may be a URL.
        finder: of pictures' files, if they must be there.
        on_bad_box: called for a bad box of a published set, which has thousands and is used none the less; else None.
        class_names: of categories that are numbers.
    """

    bbox_format: str | None
    allow_urls: bool
    finder: PictureFinder | None
    on_bad_box: OnBadRow | None = None
    class_names: Sequence[str] = ()

    def read(self, row: Any, source: str) -> Context:
        """The context of a row; raises ValueError or FileNotFoundError, without the source."""
        if not isinstance(row, Mapping):
            raise ConversationError(f"wanted a JSON object, got {type(row).__name__}. Write one object a row.")
        given = _image(row)
        name = next((row[key] for key in ("id", "image_id") if row.get(key) is not None), given)
        captions = [_line(text, "captions", may_be_empty=True) for text in _captions(row)]
        size = (row.get("width"), row.get("height"))
        instances = [
            Instance(name, box, bool(thing.get("iscrowd")))
            for thing, name, box in self._named(_things(row), "category", size)
        ]
        regions = [Region(phrase, box) for _, phrase, box in self._named(_objects(row, "regions"), "phrase", size)]
        kept = tuple(dict.fromkeys(caption for caption in captions if caption))
        if not (kept or instances or regions):
            raise ConversationError(
                "wanted captions, instances or regions, got none. Give the picture a caption, or leave it out.",
                "missing captions",
            )
        if isinstance(name, bool) or not isinstance(name, int | str | None):
            raise ConversationError(f"wanted a text as `id`, got {cut(repr(name), 60)}. Correct it.", "bad ids")
        if name is None or not str(name).strip():
            raise ConversationError("wanted an `id` or an `image`, got neither. Give one.", "missing ids")
        _check_characters(str(name), "id")
        image = self._picture(given) if given is not None else None
        return Context(str(name), image, kept, tuple(instances), tuple(regions), source)

    def _picture(self, name: str) -> str:
        _check_characters(name, "image")
        if self.allow_urls and name.startswith(("http://", "https://")):
            return name
        if "://" in name:
            raise ConversationError(
                f"wanted a picture's file, got the URL {cut(name, 80)}. Download it and name the file, or allow URLs.",
                "unwanted names of pictures",
            )
        if self.finder is None:
            check_picture_name(name)
            return name
        try:
            return self.finder.find(name)
        except FileNotFoundError:
            base = os.path.basename(name)
            if self.on_bad_box is None or base == name:
                raise
            try:
                return self.finder.find(base)
            except FileNotFoundError:
                pass  # the whole name tells more
            raise

    def _named(
        self, things: Sequence[Mapping[str, Any]], key: str, size: tuple[Any, Any]
    ) -> Iterator[tuple[Mapping[str, Any], str, Box]]:
        """Each thing, its name and its box; bad ones raise, or are told and left out."""
        for thing in things:
            try:
                name, box = self._name(thing.get(key), key), self._box(thing.get("bbox"), size)
            except ConversationError as error:
                if self.on_bad_box is None:
                    raise
                self.on_bad_box(ConversationError(f"{thing['source']}: {error}", error.kind))
            else:
                yield thing, name, box

    def _name(self, given: Any, key: str) -> str:
        if key == "category" and isinstance(given, int) and self.class_names:
            if not 0 <= given < len(self.class_names):
                raise ConversationError(
                    f"wanted a `category` below {len(self.class_names)}, as so many have names, got {given}. Correct it.",
                    "bad texts",
                )
            given = self.class_names[given]
        return _line(given, key)

    def _box(self, given: Any, size: tuple[Any, Any]) -> Box:
        """Left, top, right and bottom as fractions of the picture, three decimals."""
        got = cut(repr(given), 60)
        sides = [_number(side) for side in given] if isinstance(given, list | tuple) else []
        if len(sides) != 4 or not all(map(math.isfinite, sides)):
            raise ConversationError(f"wanted four numbers as `bbox`, got {got}. Correct it.", "bad boxes")
        style, is_pixels = self.bbox_format or "xyxy", (self.bbox_format or "").endswith("pixels")
        corners = [sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]] if style.startswith("xywh") else sides
        slack = (_SLACK, _SLACK)
        if is_pixels:
            width, height = _number(size[0]), _number(size[1])
            if not (0 < width < math.inf and 0 < height < math.inf):
                told = (
                    f"wanted `width` and `height` in pixels, got {cut(repr(size[0]), 40)} and {cut(repr(size[1]), 40)}."
                )
                raise ConversationError(f"{told} Give them, or boxes as fractions.", "missing sizes")
            corners = [corner / (width, height)[at % 2] for at, corner in enumerate(corners)]
            slack = (_SLACK_PX / width, _SLACK_PX / height)
        elif self.bbox_format is None and max(sides) > 1 + _SLACK:
            raise ConversationError(
                f"wanted a `bbox` of fractions of the picture, got {got}. If it is in pixels, say so by `bbox_format`, "
                "`xyxy-pixels` or `xywh-pixels`, and give the row's `width` and `height`.",
                "boxes in pixels",
            )
        left, top, right, bottom = corners
        if left >= right or top >= bottom:
            is_plausible = (
                self.bbox_format is None
                and min(sides) >= 0 < min(sides[2:])
                and sides[0] + sides[2] <= 1 + _SLACK
                and sides[1] + sides[3] <= 1 + _SLACK
            )
            hint = (
                "It looks like left, top, width and height: say `bbox_format` `xywh`."
                if is_plausible
                else "Correct it."
            )
            raise ConversationError(
                f"wanted a `bbox` whose right and bottom are beyond left and top, got {got}. {hint}",
                "xywh given as corners" if is_plausible else "empty boxes",
            )
        if left < -slack[0] or top < -slack[1] or right > 1 + slack[0] or bottom > 1 + slack[1]:
            raise ConversationError(
                f"wanted a `bbox` inside the picture, got {got}. Correct it, or check `bbox_format`, `width` and `height`.",
                "boxes outside the picture",
            )
        left, right = _rounded(left, right)
        top, bottom = _rounded(top, bottom)
        return left, top, right, bottom


def _rounded(start: float, end: float) -> tuple[float, float]:
    """Both inside the picture, to three decimals, and not the same."""
    start, end = (round(min(max(side, 0.0), 1.0), 3) for side in (start, end))
    if start == end:
        start = min(start, 1 - _SMALLEST)
        end = start + _SMALLEST
    return round(start, 3), round(end, 3)


def _number(given: Any) -> float:
    """NaN where it is none."""
    try:
        return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    except OverflowError:  # an integer that no float holds
        return math.nan


def _image(row: Mapping[str, Any]) -> str | None:
    """The picture's name, as the row says it."""
    names = [row[key] for key in ("image", "file_name") if row.get(key) is not None]
    given = next((name for name in names if isinstance(name, str)), names[0] if names else None)
    if given is not None and not isinstance(given, str):
        got = "the picture itself" if given is HELD else type(given).__name__
        raise ConversationError(
            f"wanted a picture's name as `image`, got {got}. Save the pictures as files, and name them as `file_name`.",
            "unwanted names of pictures",
        )
    return given if given and given.strip() else None


def _captions(row: Mapping[str, Any]) -> list[Any]:
    given: Any = next((row[key] for key in ("captions", "caption") if row.get(key)), [])
    if not isinstance(given, str | list):
        raise ConversationError(f"wanted texts as `captions`, got {cut(repr(given), 60)}. Correct it.", "bad captions")
    return [given] if isinstance(given, str) else given


def _things(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    key = "instances" if row.get("instances") is not None else "objects"
    if not isinstance(columns := row.get(key), Mapping):
        return _objects(row, key)
    boxes, names = columns.get("bbox"), columns.get("category", columns.get("categories"))
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        got = " and ".join(f"{len(one)}" if isinstance(one, list) else cut(repr(one), 40) for one in (names, boxes))
        raise ConversationError(
            f"wanted as many of `category` as of `bbox` in `{key}`, got {got}. Correct it.", "bad boxes"
        )
    crowds = columns.get("iscrowd")
    crowds = crowds if isinstance(crowds, list) and len(crowds) == len(boxes) else [0] * len(boxes)
    return [
        {"category": name, "bbox": box, "iscrowd": is_crowd}
        for name, box, is_crowd in zip(names, boxes, crowds, strict=True)
    ]


def _objects(row: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ConversationError(
            f"wanted a list of objects as `{key}`, got {cut(repr(value), 60)}. Correct it.", "bad boxes"
        )
    return value


def _line(text: Any, key: str, may_be_empty: bool = False) -> str:
    """A text in one line, single spaces."""
    if not isinstance(text, str):
        hint = "Give its name." if key == "category" else "Correct it."
        raise ConversationError(f"wanted a text as `{key}`, got {cut(repr(text), 60)}. {hint}", "bad texts")
    line = " ".join(text.split())
    if not line and not may_be_empty:
        raise ConversationError(f"wanted words as `{key}`, got none. Fill it.", "bad texts")
    if len(line) > _LONGEST:
        told = f"wanted at most {_LONGEST} characters as `{key}`, got {len(line)}. Shorten it."
        raise ConversationError(told, "bad texts")
    _check_characters(line, key)
    return line


def _check_characters(text: str, key: str) -> None:
    if found := _CONTROL.search(text):
        got = cut(repr(text[max(found.start() - 20, 0) : found.end() + 20]), 80)
        raise ConversationError(f"wanted a `{key}` without control characters, got {got}. Clean it.", "bad texts")
