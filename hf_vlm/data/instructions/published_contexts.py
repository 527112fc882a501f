"""Captions and boxes as they were published, picture by picture: COCO's and Visual Genome's files.

Each picture becomes a row of `context_files.py`: `id`, `image`, `width` and `height`, `captions`, `instances` and `regions`,
whose boxes are left, top, width and height in pixels, and say under `source` where they stand.

COCO's files are read item by item, and what is kept of them is little: captions, and seven numbers a box, as outlines make
up most of the 450 MB of instances_train2017.json. Of Visual Genome the sizes of the pictures are kept, and the rest is read
as it is asked for, as long as objects.json has the order of region_descriptions.json, which the published ones have.

Sources: Lin et al. 2014 (COCO), https://arxiv.org/abs/1405.0312; Chen et al. 2015 (its captions),
    https://arxiv.org/abs/1504.00325; Krishna et al. 2017 (Visual Genome), https://arxiv.org/abs/1602.07332.
"""

import itertools
import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from hf_vlm.data.conversations.conversation_files import ConversationError, cut, files_in, not_utf8, read_json_list
from hf_vlm.data.tasks.source_rows import only_one

Rows = Iterable[tuple[str, Any]]  # where each stands, and a row, or what is wrong with it
OnBadRow = Callable[[Exception], None]
_CHARACTERS = 1 << 20  # of a file, read at a time
_NUMBERS = 7  # kept of a box: annotation, category, left, top, width, height, whether it is a crowd
_SAMPLE = 100  # rows, one of which should have a region


def coco_files(folder: Path, split: str | None) -> list[Path]:
    """captions_*SPLIT*.json and instances_*SPLIT*.json of a folder or its `annotations/`, one of each, if there are any.

    Raises:
        ValueError: if there are several of one kind.
    """
    wanted = re.compile(rf"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])" if split else "")  # `val` is not `minival`
    for place in (folder, folder / "annotations"):
        found = []
        for kind in ("captions_", "instances_"):
            files = [file for file in files_in(place, ".json") if file.name.startswith(kind)]
            files = [file for file in files if wanted.search(file.stem.removeprefix(kind)) and is_coco(file)]
            found.append(only_one(files, place, f"{kind}*.json of the split"))
        if any(found):
            return [file for file in found if file is not None]
    return []


def is_coco(file: Path) -> bool:
    """Whether a file may be one of COCO's: JSON, and no list."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return stream.read(_CHARACTERS).lstrip().startswith("{")
    except UnicodeDecodeError as error:
        raise not_utf8(file) from error


def with_its_pair(file: Path) -> list[Path]:
    """A file of COCO's and, of captions_* and instances_* of one name, the other, if it is beside it; captions first."""
    for one, other in (("captions_", "instances_"), ("instances_", "captions_")):
        beside = file.with_name(other + file.name.removeprefix(one))
        if file.name.startswith(one) and beside.is_file():
            return sorted((file, beside), key=lambda found: found.name)
    return [file]


def is_visual_genome(file: Path) -> bool:
    """Whether a list has the regions of Visual Genome, which tell `x` and `y` and no `bbox`."""
    for row in itertools.islice(read_json_list(file), _SAMPLE):
        regions = row.get("regions") if isinstance(row, Mapping) else None
        if isinstance(regions, list) and regions and isinstance(regions[0], Mapping):
            return "bbox" not in regions[0] and {"phrase", "x", "y"} <= regions[0].keys()
    return False


# COCO


def coco_rows(files: Sequence[Path], on_bad_row: OnBadRow) -> Rows:
    """Rows of the pictures that have captions or boxes, in the order of `images`.

    Args:
        files: captions, instances, or both; a picture of the second adds to that of the first.
        on_bad_row: called for annotations that mean nothing; what is wrong with a picture comes in its place.

    Raises:
        ValueError: if a file is damaged, or no file of COCO's.
    """
    told = [_CocoFile(file, on_bad_row) for file in files]
    images: dict[Any, Any] = {}
    for one in told:
        for name, image in one.images.items():
            images.setdefault(name, image)
    for name, image in images.items():
        captions = [text for one in told for text in one.captions.pop(name, ())]
        instances = [box for one in told for box in one.take_boxes(name)]
        if captions or instances:
            row = dict(zip(("image", "width", "height"), image, strict=True))
            yield f"{files[0]}, image {name}", {"id": name, **row, "captions": captions, "instances": instances}
    for one in told:
        for name in dict.fromkeys((*one.captions, *one.boxes)):
            told_of = f"wanted the picture {name!r} of annotations among `images`, got none. Add or remove it."
            yield f"{one.file}, image {name}", ConversationError(told_of, "missing pictures")


class _CocoFile:
    """What is kept of a file: `images`, the name and size of each; `captions` and `boxes` of each; names of categories."""

    def __init__(self, file: Path, on_bad_row: OnBadRow) -> None:
        self.file, self._on_bad_row = file, on_bad_row
        self.images: dict[Any, tuple[Any, Any, Any]] = {}
        self.captions: dict[Any, list[Any]] = {}
        self.boxes: dict[Any, array] = {}
        self._names: dict[Any, Any] = {}
        self._categories: dict[Any, int] = {}  # number of each that annotations name, in order
        adders = {"images": self._add_image, "annotations": self._add_annotation, "categories": self._add_category}
        keys = dict[str, int]()
        for key, item in _members(file):
            number = keys[key] = keys.get(key, -1) + 1
            if key in adders and item is not _EMPTY:
                try:
                    adders[key](item)
                except ConversationError as error:
                    on_bad_row(ConversationError(f"{file}, `{key}[{number}]`: {error}", error.kind))
        if not {"images", "annotations"} <= keys.keys():
            got = ", ".join(f"`{cut(key, 40)}`" for key in list(keys)[:6]) or "nothing"
            raise ValueError(
                f"{file} must hold COCO's `images` and `annotations`, or a list of rows, got {got}. Convert it to .jsonl, a row "
                "a line."
            )
        self._known = list(self._categories)

    def _add_image(self, told: Any) -> None:
        name = _key(told, "id")
        self.images[name] = told.get("file_name"), told.get("width"), told.get("height")

    def _add_category(self, told: Any) -> None:
        name = _key(told, "id")
        self._names[name] = told.get("name")

    def _add_annotation(self, told: Any) -> None:
        image = _key(told, "image_id")
        if "caption" in told:
            self.captions.setdefault(image, []).append(told["caption"])
        elif "bbox" in told:
            box = told["bbox"]
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                raise ConversationError(
                    f"wanted four numbers as `bbox`, got {cut(repr(box), 60)}. Correct it.", "bad boxes"
                )
            category = self._categories.setdefault(_key(told, "category_id"), len(self._categories))
            number = told.get("id")
            number = number if isinstance(number, int) and abs(number) < 1 << 53 else math.nan
            kept = (number, category, *box, bool(told.get("iscrowd")))
            self.boxes.setdefault(image, array("d")).extend(kept)
        else:
            got = ", ".join(f"`{cut(str(key), 40)}`" for key in list(told)[:6])
            raise ConversationError(
                f"wanted a `caption` or a `bbox`, got {got}. Take captions_*.json or instances_*.json.", "bad rows"
            )

    def take_boxes(self, image: Any) -> Iterator[dict[str, Any]]:
        """The instances of a picture, which are then forgotten."""
        kept = self.boxes.pop(image, ())
        for start in range(0, len(kept), _NUMBERS):
            number, category, *box, is_crowd = kept[start : start + _NUMBERS]
            told = self._known[int(category)]
            place = f"annotation {number:.0f}" if number == number else f"an annotation of image {image}"
            source = f"{self.file}, {place}"
            if told not in self._names:
                error = f"{source}: wanted the category {told!r} among `categories`, got none. Add or remove it."
                self._on_bad_row(ConversationError(error, "missing categories"))
            else:
                yield {"category": self._names[told], "bbox": box, "iscrowd": is_crowd, "source": source}


def _key(told: Any, name: str) -> Any:
    value = told.get(name) if isinstance(told, Mapping) else None
    if not isinstance(value, int | str):
        raise ConversationError(
            f"wanted an object with a number or text as `{name}`, got {cut(repr(told), 80)}. Correct it.", "missing ids"
        )
    return value


def _is_number(side: Any) -> bool:
    try:
        return isinstance(side, int | float) and not isinstance(side, bool) and math.isfinite(side)
    except OverflowError:  # an integer that no float holds
        return False


_EMPTY = object()  # in place of the items of an empty list


def _members(file: Path) -> Iterator[tuple[str, Any]]:
    """Key and item for every item of the lists of a JSON object, key and value for what is no list; never held whole.

    Raises:
        ValueError: if the file is damaged, or goes on behind the object.
    """
    with file.open(encoding="utf-8-sig") as stream:
        text = _Json(file, stream)
        try:
            text.take("{")
            while not text.is_next("}"):
                key = text.value()
                if not isinstance(key, str):
                    raise text.error(f"the key {key!r}")
                text.take(":")
                if text.is_next("["):
                    text.take("[")
                    text.place = key
                    if text.is_next("]"):
                        yield key, _EMPTY
                    while not text.is_next("]"):
                        yield key, text.value()
                        if not text.is_next("]"):
                            text.take(",")
                    text.take("]")
                else:
                    yield key, text.value()
                if not text.is_next("}"):
                    text.take(",")
            text.take("}")
            if text.peek():
                raise ValueError(
                    f"{file} must hold one JSON object or list, got more behind the object. Name a file with one object a line "
                    "`.jsonl`."
                )
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error


class _Json:
    """A place in a JSON text that is read in parts."""

    def __init__(self, file: Path, stream: TextIO) -> None:
        self.place = ""  # the key that is read
        self._file, self._stream = file, stream
        self._text, self._position = "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            while self._position < len(self._text):
                if (character := self._text[self._position]) not in " \t\n\r":
                    return character
                self._position += 1
            if not self._read_more():
                return ""

    def is_next(self, character: str) -> bool:
        """Whether this character is next; the end is an error."""
        if not (found := self.peek()):
            raise self.error("the end of the file")
        return found == character

    def take(self, character: str) -> None:
        """Go on behind this character, which must be next."""
        if not self.is_next(character):
            raise self.error(repr(self._text[self._position : self._position + 60]))
        self._position += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:  # or it goes on in the next part of the file
                got = f"{self._text[self._position : self._position + 60]!r} ({getattr(error, 'msg', error)})"
                if not self._read_more():
                    raise self.error(got) from None
            else:
                if end < len(self._text) or not self._read_more():  # else a number may go on
                    self._position = end
                    return found

    def error(self, got: str) -> ValueError:
        """What to say where this came."""
        place = f", in `{cut(self.place, 40)}`" if self.place else ""
        return ValueError(f"{self._file}{place}: wanted JSON, got {got}. Correct it, or copy or download it again.")

    def _read_more(self) -> bool:
        rest = self._text[self._position :]
        more = self._stream.read(max(_CHARACTERS, len(rest)))  # twice as much each time: linear in all
        self._text, self._position = rest + more, 0
        return bool(more)


# Visual Genome


def visual_genome_rows(file: Path, on_bad_row: OnBadRow) -> Rows:
    """Rows of region_descriptions.json, with the sizes of image_data.json and the things of objects.json beside it.

    Raises:
        FileNotFoundError: if there is no image_data.json.
        ValueError: if a file is damaged.
    """
    data_file, objects_file = file.with_name("image_data.json"), file.with_name("objects.json")
    if not data_file.is_file():
        raise FileNotFoundError(
            f"{data_file} is wanted for the pictures' sizes, got no such file. Put it beside {file.name}."
        )
    images = dict[Any, tuple[str, Any, Any]]()
    for number, told in enumerate(read_json_list(data_file)):
        if (name := _genome_id(told)) is None:
            got = cut(repr(told), 80)
            on_bad_row(
                ConversationError(
                    f"{data_file}, row {number}: wanted an `image_id`, got {got}. Correct it.", "missing ids"
                )
            )
            continue
        places = str(told.get("url") or "").split("/")
        picture = "/".join(places[-2:]) if len(places) > 2 else f"{name}.jpg"  # as VG_100K_2/1.jpg
        images[name] = picture, told.get("width"), told.get("height")
    things = _Things(objects_file, on_bad_row)
    for number, told in enumerate(read_json_list(file)):
        source, name = f"{file}, row {number}", _genome_id(told)
        if name is None or name not in images:
            error = f"wanted a picture of {data_file.name}, got {cut(repr(name), 40)}. Take both of one release."
            yield source, ConversationError(error, "missing pictures")
            continue
        regions = told.get("regions")
        if not isinstance(regions, list):
            error = f"wanted a list as `regions`, got {cut(repr(regions), 60)}. Correct it."
            yield source, ConversationError(error, "bad boxes")
            continue
        picture, width, height = images[name]
        described = [
            {
                "phrase": region.get("phrase"),
                "bbox": [region.get(key) for key in ("x", "y", "width", "height")],
                "source": f"{source}, region {region.get('region_id')}",
            }
            for region in regions
            if isinstance(region, Mapping)
        ]
        row = {"id": name, "image": picture, "width": width, "height": height}
        yield source, {**row, "instances": things.take(name), "regions": described}


def _genome_id(told: Any) -> int | str | None:
    name = told.get("image_id", told.get("id")) if isinstance(told, Mapping) else None
    return name if isinstance(name, int | str) else None


class _Things:
    """The things of objects.json, picture by picture; those that come before they are asked for wait, as text."""

    def __init__(self, file: Path, on_bad_row: OnBadRow) -> None:
        self._file, self._on_bad_row = file, on_bad_row
        self._rows = enumerate(read_json_list(file)) if file.is_file() else iter(())
        self._waiting: dict[Any, str] = {}

    def take(self, name: Any) -> list[dict[str, Any]]:
        """The instances of a picture."""
        while name not in self._waiting and (found := next(self._rows, None)) is not None:
            number, told = found
            things = told.get("objects") if isinstance(told, Mapping) else None
            if (other := _genome_id(told)) is None or not isinstance(things, list):
                error = f"wanted an `image_id` and `objects`, got {cut(repr(told), 80)}. Correct it."
                self._on_bad_row(ConversationError(f"{self._file}, row {number}: {error}"))
                continue
            kept = [self._kept(thing) for thing in things if isinstance(thing, Mapping)]
            self._waiting[other] = json.dumps([number, kept])
        number, kept = json.loads(self._waiting.pop(name, "[0, []]"))
        return [
            {"category": category, "bbox": box, "source": f"{self._file}, row {number}, object {thing}"}
            for thing, category, box in kept
        ]

    def _kept(self, thing: Mapping[str, Any]) -> tuple[Any, Any, list[Any]]:
        names = thing.get("names")
        category = names[0] if isinstance(names, list) and names else thing.get("name")
        return thing.get("object_id"), category, [thing.get(key) for key in ("x", "y", "w", "h")]
