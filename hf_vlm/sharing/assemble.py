"""A whole model of pretrained parts, as a folder to train: what `from_pretrained_parts` makes, saved, and what is left to learn.

vision folder, text folder -> processor, which settles what a picture and a text are
  -> model: the parts' weights, and new ones between them at random
  -> OUT: model, processor, `weight_report.json`, licences of the parts

The parts' weights are written once, into OUT, and OUT is there whole or not at all.
"""

import dataclasses
import inspect
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_vlm.models.cnn_lstm import assembly as cnn_lstm_assembly
from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.llava import assembly as llava_assembly
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.trocr import assembly as trocr_assembly
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.licences import copy_licence
from hf_vlm.parts.settings import refuse_unknown
from hf_vlm.parts.vision_features import describe_vision_model, needed_weights, read_vision_config
from hf_vlm.parts.weight_report import WeightReport
from hf_vlm.sharing.new_folder import check_is_new, new_folder

_TO_PROCESSOR = ("image_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy")  # a LLaVA's, too


@dataclass(frozen=True)
class _Architecture:
    """How a model is made of parts, and the shipped recipe that teaches what is new in it."""

    model: Any
    processor: Any
    config: Any
    assembly: Any
    recipe: str
    learns: str


ARCHITECTURES: dict[str, _Architecture] = {
    "trocr": _Architecture(
        TrOCREncoderDecoderForConditionalGeneration,
        TrOCREncoderDecoderProcessor,
        TrOCREncoderDecoderConfig,
        trocr_assembly,
        "trocr-dinov2-minilm",
        "lines",
    ),
    "llava": _Architecture(
        LlavaVisionLanguageForConditionalGeneration,
        LlavaVisionLanguageProcessor,
        LlavaVisionLanguageConfig,
        llava_assembly,
        "llava-projector",
        "captions",
    ),
    "cnn_lstm": _Architecture(
        CnnLstmForConditionalGeneration,
        CnnLstmProcessor,
        CnnLstmConfig,
        cnn_lstm_assembly,
        "caption-cnn-lstm",
        "captions",
    ),
}


@dataclass
class Assembled:
    """What was assembled.

    Attributes:
        out: its folder.
        architecture: `trocr`, `llava` or `cnn_lstm`.
        model_class: name of the model's class.
        num_parameters: numbers in its weights, tied ones once.
        num_new: of these, numbers that no part had and that a picture's way to the text goes through: they are to be learnt.
        report: where every tensor came from.
        next_command: teaches the new weights by a shipped recipe; "" where nothing is new.
    """

    out: str
    architecture: str
    model_class: str
    num_parameters: int
    num_new: int
    report: WeightReport
    next_command: str

    @property
    def new_parts(self) -> dict[str, int]:
        """Part -> its numbers that are to be learnt, of the parts that have such."""
        return {part: sum(new.values()) for part, new in _new_weights(self.report).items() if new}

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, for JSON."""
        return {
            "out": self.out,
            "architecture": self.architecture,
            "model_class": self.model_class,
            "num_parameters": self.num_parameters,
            "num_new": self.num_new,
            "new_parts": self.new_parts,
            "parts": [
                {
                    "name": part.name,
                    "source": part.source,
                    "license": part.license,
                    "copied": sum(part.copied.values()),
                    "new": sum(part.new.values()),
                    "sha256": part.sha256,
                }
                for part in self.report.parts
            ],
            "next_command": self.next_command,
        }

    def __str__(self) -> str:
        lines = [
            self.report.table(),
            f"{self.model_class} of {self.num_parameters:,} parameters with its processor: {self.out}",
        ]
        if not self.num_new:
            return "\n".join([*lines, "Every weight came from a part: it can be used as it is."])
        told = ", ".join(f"{number:,} of `{part}`" for part, number in self.new_parts.items())
        learns = ARCHITECTURES[self.architecture].learns
        check = "`hf-vlm audit DATA` checks them" if learns == "lines" else "`--dry-run` behind it checks them"
        return "\n".join(
            [
                *lines,
                f"Still random, to be learnt: {told}. Teach them on your {learns} ({check}):",
                f"  {self.next_command}",
            ]
        )


def assemble(
    architecture: str,
    vision: str | os.PathLike,
    text: str | os.PathLike,
    out: str | os.PathLike,
    *,
    chat_template: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Assembled:
    """Join pretrained parts into a whole model, and save it with its processor in a folder.

    The folder is one for `model.pretrained` of a recipe, `hf-vlm read` and `hf-vlm chat`. The model is the one of the class's
    `from_pretrained_parts`, in fp32.

    Args:
        architecture: `trocr`, `llava` or `cnn_lstm`.
        vision: folder or Hub name of a vision encoder with its image processor.
        text: folder or Hub name of a text model with its tokenizer; for `cnn_lstm` of a tokenizer alone.
        out: a new or an empty folder.
        chat_template: for `llava`: `llava_v1` and the like, or Jinja; None means the tokenizer's own.
        image_size: for `trocr` and `llava`: pixels, one number or (height, width); None means the vision encoder's own.
        settings: fields of the model's config and settings of its `load_parts`, such as `num_linear_layers` or
            `num_decoder_layers`.

    Raises:
        ValueError: before any weight is loaded, if there is no such architecture or setting, `out` holds something, or the
            parts don't fit each other; while they load, if a part's weights are incomplete.
        FileNotFoundError: if a part is not there.
        OSError: if the disk has no room for the model.
    """
    if architecture not in ARCHITECTURES:
        names = ", ".join(f"`{name}`" for name in ARCHITECTURES)
        raise ValueError(f"`architecture` must be one of {names}, got {architecture!r}. Correct it.")
    kind = ARCHITECTURES[architecture]
    settings, image_size = _checked_settings(architecture, dict(settings or {}), chat_template, image_size)
    check_is_new(out)
    describe_vision_model(read_vision_config(vision))  # one that gives no tokens is told before the text model is read
    processor = _processor(architecture, kind, vision, text, chat_template, image_size, settings)
    if architecture == "cnn_lstm":
        model = kind.model.from_pretrained_parts(os.fspath(vision), processor.tokenizer, **settings)
    else:
        model = kind.model.from_pretrained_parts(
            os.fspath(vision), os.fspath(text), processor=processor, image_size=image_size, **settings
        )
    with new_folder(out) as written:
        model.save_pretrained(written)
        processor.save_pretrained(written)
        for part in (vision, text):
            copy_licence(part, written)
    report: WeightReport = model.weight_report
    num_new = sum(sum(new.values()) for new in _new_weights(report).values())
    return Assembled(
        os.fspath(out),
        architecture,
        type(model).__name__,
        sum(parameter.numel() for parameter in model.parameters()),
        num_new,
        report,
        _next_command(kind.recipe, out) if num_new else "",
    )


def _checked_settings(
    architecture: str, settings: dict[str, Any], chat_template: str | None, image_size: int | tuple[int, int] | None
) -> tuple[dict[str, Any], int | tuple[int, int] | None]:
    """Settings that the architecture knows, and the picture size, which may stand among them."""
    kind = ARCHITECTURES[architecture]
    known = {field.name for field in dataclasses.fields(kind.config)}
    known |= set(inspect.signature(kind.assembly.load_parts).parameters) - {"config_fields"}
    known -= {"processor", "vision", "text", "vision_config", "text_config"}
    refuse_unknown(settings, sorted(known), of=f"`{kind.config.__name__}` or of the joining of its parts")
    if chat_template is not None and architecture != "llava":
        raise ValueError(
            f"`chat_template` is for `llava`, which converses, got it with `{architecture}`. Leave it out."
        )
    if "image_size" in settings:
        if image_size is not None:
            raise ValueError(
                f"`image_size` is wanted once, got {image_size} and {settings['image_size']} in `settings`. Leave one out."
            )
        image_size = settings.pop("image_size")
    if image_size is not None and architecture == "cnn_lstm":
        raise ValueError(
            f"`image_size` is for `trocr` and `llava`, got {image_size} with `cnn_lstm`, whose encoder sees pictures of its "
            "own size. Leave it out."
        )
    return settings, tuple(image_size) if isinstance(image_size, list) else image_size


def _processor(
    architecture: str,
    kind: _Architecture,
    vision: str | os.PathLike,
    text: str | os.PathLike,
    chat_template: str | None,
    image_size: int | tuple[int, int] | None,
    settings: Mapping[str, Any],
) -> Any:
    """The processor that goes with the model."""
    if architecture == "llava":
        shared = {name: settings[name] for name in _TO_PROCESSOR if name in settings}
        return kind.processor.from_pretrained_parts(
            vision, text, image_size=image_size, chat_template=chat_template, **shared
        )
    if architecture == "trocr":
        return kind.processor.from_pretrained_parts(vision, text, image_size=image_size)
    return kind.processor.from_pretrained_parts(vision, text)


def _new_weights(report: WeightReport) -> dict[str, dict[str, int]]:
    """Part -> names and sizes of what is to be learnt: a vision encoder's heads, which nothing reads, are not."""
    return {
        part.name: {name: part.new[name] for name in needed_weights(part.new)} if part.name == "vision" else part.new
        for part in report.parts
    }


def _next_command(recipe: str, out: str | os.PathLike) -> str:
    model = shlex.quote(f"model={{pretrained: {json.dumps(os.fspath(Path(out)), ensure_ascii=False)}}}")
    return f"hf-vlm train {recipe} {model} data.folder=DATA"
