"""A context: what is known of a picture without seeing it, its captions and where the things in it are.

It is what a teacher language model reads that writes visual instructions (`data/instructions/visual_instructions.py`). One
schema for all sources, a JSON object:

    {"id": "000000296284", "image": "000000296284.jpg",
     "captions": ["A donut shop is full of different flavors of donuts.", ...],
     "instances": [{"category": "donut", "bbox": [0.37, 0.584, 0.504, 0.709]}, ...],
     "regions": [{"phrase": "a glass case", "bbox": [0.1, 0.2, 0.9, 0.95]}, ...]}

`bbox` is x1, y1, x2, y2: left, top, right and bottom as fractions of the picture's width and height, to three decimals.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3, and the record form of its code's
    llava/eval/table/caps_boxes_coco2014_val_80.jsonl.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom, each in [0, 1]; left < right, top < bottom


@dataclass(frozen=True)
class Instance:
    """A thing in a picture: `category`, in words, and its `box`; `is_crowd` where the box holds several of them uncounted."""

    category: str
    box: Box
    is_crowd: bool = False


@dataclass(frozen=True)
class Region:
    """A part of a picture: `phrase`, what someone said of it, and its `box`."""

    phrase: str
    box: Box


@dataclass(frozen=True)
class Context:
    """What is known of a picture.

    Attributes:
        id: unique in a set.
        image: the picture's name, relative to a folder of pictures; None where there is none.
        captions: what people said of the whole picture.
        instances: the things in it.
        regions: what people said of parts of it.
        source: where it was read: file, and line, row or key.
    """

    id: str
    image: str | None
    captions: tuple[str, ...] = ()
    instances: tuple[Instance, ...] = ()
    regions: tuple[Region, ...] = ()
    source: str = ""

    def caption_lines(self) -> str:
        """The captions, one a line, as a teacher reads them."""
        return "\n".join(self.captions)

    def box_lines(self) -> str:
        """The things, then the regions, one a line: `category: [x1, y1, x2, y2]`, three decimals."""
        named = [(one.category, one.box) for one in self.instances] + [(one.phrase, one.box) for one in self.regions]
        return "\n".join(f"{name}: [{', '.join(f'{side:.3f}' for side in box)}]" for name, box in named)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object above; empty fields are left out, `source` too."""
        told: dict[str, Any] = {"id": self.id}
        if self.image is not None:
            told["image"] = self.image
        if self.captions:
            told["captions"] = list(self.captions)
        if self.instances:
            told["instances"] = [
                {"category": one.category, "bbox": list(one.box)} | ({"iscrowd": 1} if one.is_crowd else {})
                for one in self.instances
            ]
        if self.regions:
            told["regions"] = [{"phrase": one.phrase, "bbox": list(one.box)} for one in self.regions]
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, Any], source: str = "") -> "Context":
        """The context of an object that `to_dict` made; what others made is read by `context_files.read_contexts`."""
        return cls(
            id=told["id"],
            image=told.get("image"),
            captions=tuple(told.get("captions", ())),
            instances=tuple(
                Instance(one["category"], _box(one["bbox"]), bool(one.get("iscrowd")))
                for one in told.get("instances", ())
            ),
            regions=tuple(Region(one["phrase"], _box(one["bbox"])) for one in told.get("regions", ())),
            source=source,
        )


def _box(sides: list[float]) -> Box:
    left, top, right, bottom = sides
    return left, top, right, bottom
