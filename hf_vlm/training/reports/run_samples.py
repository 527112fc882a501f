"""Samples of a run, and what is known of its model: what every architecture's answers are shown by."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from hf_vlm.parts.pictures import to_rgb
from hf_vlm.training.reports.answer_errors import Edit, nearest
from hf_vlm.training.reports.label_masks import LabelMask
from hf_vlm.training.reports.word_attention import WordMap
from hf_vlm.training.scores.metrics import exact_match
from hf_vlm.training.scores.task_metrics import read_yes_no, vqa_accuracy

_PICTURE_SIDE = 320  # px
_SHORT_ANSWER = 3  # words; a longer one may be right in other words


@dataclass
class Sample:
    """A row and what the model answered.

    Attributes:
        source: where the row stands.
        pictures: at most 320 px wide and high.
        turns: (role, words) before the answer; empty for pictures without a question.
        references: right answers; empty where nothing is asked.
        answer: the model's.
        is_right: whether it is one of the references; None where that can't be told, as of long answers.
        error_rate: edited characters per character of the nearest reference; None without references.
        edits: between the two.
        num_characters: of the nearest reference.
        kind: what is asked, if the row says so.
        maps: where the model looked, a word each.
    """

    source: str
    pictures: list[Image.Image]
    turns: list[tuple[str, str]]
    references: list[str]
    answer: str
    is_right: bool | None = None
    error_rate: float | None = None
    edits: list[Edit] = field(default_factory=list)
    num_characters: int = 0
    kind: str | None = None
    maps: list[WordMap] = field(default_factory=list)


@dataclass
class PartSize:
    """Parameters of a part of a model, all and those that train."""

    name: str
    num_parameters: int
    num_trained: int


@dataclass
class Findings:
    """What a trained model was found to do.

    Attributes:
        architecture: the model's class, and its adapters if there are some.
        parts: its parts.
        asked_of: which rows were answered.
        samples: all that were answered.
        shown: indices of those to be shown, which have maps.
        unit: what is compared with references: `characters` of lines that are read, `answers` or `classes`; "" for nothing.
        masks: training items; `masks_note` says why there are none.
        maps_note: why there are no maps, or how to read them.
        problems: what could not be done, rows with broken pictures among them.
    """

    architecture: str
    parts: list[PartSize]
    asked_of: str = ""
    samples: list[Sample] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    unit: str = ""
    masks: list[LabelMask] = field(default_factory=list)
    masks_note: str = ""
    maps_note: str = ""
    problems: list[str] = field(default_factory=list)


def spread(number: int, wanted: int) -> list[int]:
    """At most `wanted` of `number` rows, evenly: the first, the last, and those between."""
    wanted = min(number, wanted)
    if wanted < 2:
        return list(range(wanted))
    return [round(place * (number - 1) / (wanted - 1)) for place in range(wanted)]


def choose_rows(
    sets: dict[str, Any], wanted: int, pictures_of: Callable[[Any, int], Any], problems: list[str]
) -> tuple[dict[str, list[int]], str]:
    """Rows of each set whose pictures can be read, evenly spread, and a sentence about them.

    Args:
        sets: by name, of a length.
        wanted: rows of all sets together.
        pictures_of: opens the pictures of a row.
        problems: gets what is wrong with others.
    """
    share = -(-wanted // max(len(sets), 1))
    chosen: dict[str, list[int]] = {}
    told = []
    for name, rows in sets.items():
        chosen[name] = []
        for index in spread(len(rows), share):
            try:
                pictures_of(rows, index)
                chosen[name].append(index)
            except (ValueError, OSError) as error:
                problems.append(str(error))
        told.append(f"{name}: {len(chosen[name])} of {len(rows)} rows")
    return chosen, "; ".join(told)


def picture_for_page(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, scaled down to 320 px where it is larger."""
    picture = to_rgb(picture)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return picture


def judge(sample: Sample, task: str, ignore_case: bool = False) -> Sample:
    """The sample with its edits, and whether its answer is right, as the scores of its task count it.

    Args:
        task: one of `hf_vlm.training.scores.task_metrics.TASK_METRICS`. Of `ocr` every character counts.
        ignore_case: whether lines are compared with case folded.
    """
    wanted, sample.edits = nearest(sample.references, sample.answer, ignore_case)
    sample.num_characters = len(wanted)
    sample.error_rate = len(sample.edits) / max(len(wanted), 1)
    if task == "ocr":
        sample.is_right = not sample.edits
    elif any(reference.strip() for reference in sample.references):
        sample.is_right = _is_right(task, sample.references, sample.answer)
    return sample


def _is_right(task: str, references: list[str], answer: str) -> bool | None:
    if task == "nlvr":
        said = read_yes_no(answer)
        return said is not None and any(read_yes_no(reference) == said for reference in references)
    if task == "vqa":
        return vqa_accuracy([references], [answer]) >= 0.5  # what half of people's answers agree with
    if exact_match([references], [answer]) == 1:
        return True
    return None if any(len(reference.split()) > _SHORT_ANSWER for reference in references) else False


def architecture_of(model: Any) -> str:
    """The class of a model, and what it is made of."""
    kinds = [getattr(getattr(model.config, f"{part}_config", None), "model_type", None) for part in ("vision", "text")]
    parts = " and ".join(f"`{kind}`" for kind in kinds if kind)
    return type(model).__name__ + (f" of {parts}" if parts else "")


def part_sizes(model: torch.nn.Module, trained: Collection[str] | None = None) -> list[PartSize]:
    """Parameters by part.

    Args:
        trained: names of parts that train as a whole; None asks each parameter.
    """
    paths = {path: role for role, path in getattr(model, "part_paths", {}).items()}
    by_part: dict[str, PartSize] = {}
    for name, parameter in model.named_parameters():
        path = next((path for path in paths if name.startswith(f"{path}.")), None)
        part = paths[path] if path is not None else name.split(".")[0]
        size = by_part.setdefault(part, PartSize(part, 0, 0))
        size.num_parameters += parameter.numel()
        if part in trained if trained is not None else parameter.requires_grad:
            size.num_trained += parameter.numel()
    return list(by_part.values())
