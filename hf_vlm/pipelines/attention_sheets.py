"""Sheets that show what a vision transformer looks at, as PNG files: `hf-vlm explain`.

Of a captioner that looks anew for every word (CNN + LSTM) what is drawn is where it looks for each word of its caption.

picture
  -> image processor                               pixel_values, float (1, channels, height, width)
  -> `attention_maps` of the vision model          float (1, layers, heads, rows, columns), and rollout
  -> `attention_sheet`                             one picture with a panel a map
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.parts.attention_pictures import overlay_map, seen_picture
from hf_vlm.parts.checkpoint_files import naming_faults, read_config
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.vision_features import load_vision_model, show_every_patch
from hf_vlm.pipelines.attention_maps import AttentionMaps, NoAttentionMapError, attention_maps, bias_maps
from hf_vlm.pipelines.picture_files import listed_pictures, open_picture_file

logger = logging.getLogger(__name__)

_NUM_CLASSES = 5  # told of a classifier

# Layout of a sheet, px. A panel keeps the picture's aspect; a line of text is as wide as the sheet if it is long enough.
_PANEL_HEIGHT, _LINE_PANEL_HEIGHT, _SHEET_WIDTH = 192, 96, 1536
_WIDE = 2.5  # aspect from which a picture is laid out as a line
_BIAS_PANEL, _MIN_BIAS_HEIGHT = 96, 12
_GAP, _LINE = 10, 18

Panel = tuple[str, Image.Image]  # caption and picture


@dataclass
class Sheet:
    """What stands on a sheet.

    Attributes:
        lines: of text, which come first.
        sections: title, "" for none -> panels.
    """

    lines: list[str]
    sections: dict[str, list[Panel]]

    def draw(self, title: str) -> Image.Image:
        """All of it below a title: the panels of a section in rows of like length, under their captions. PIL "RGB"."""
        return _draw([title, *self.lines], self.sections)


def attention_sheet(picture: Image.Image, maps: AttentionMaps) -> Sheet:
    """The sheet of a picture: itself, its rollout, the last layer's heads, and every layer's mean over heads.

    Args:
        picture: as the model sees it, in mode RGB; of its padding nothing is shown but what fills the last patches.
        maps: of this picture, the first of the batch.
    """
    rows, columns = maps.real_grid()
    all_rows, all_columns = maps.real.shape[1:]
    width, height = round(picture.width * columns / all_columns), round(picture.height * rows / all_rows)
    panel_height = _PANEL_HEIGHT if width < _WIDE * height else _LINE_PANEL_HEIGHT
    scale = min(panel_height / height, _SHEET_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    enlarged = picture.crop((0, 0, width, height)).resize(size, Image.Resampling.BICUBIC)

    def panel(name: str, shares: torch.Tensor) -> Panel:
        shares = shares[:rows, :columns]
        caption = f"{name}{100 * float(shares.min()):.2f} to {100 * float(shares.max()):.2f} %"
        return caption, overlay_map(enlarged, shares)

    layers, heads = maps.heads.shape[1:3]
    looks = "by the CLS token" if maps.is_from_cls else "by all patches on average (there is no CLS token)"
    lines = [
        f"Attention paid to each of {rows} x {columns} patches {looks}. Spread evenly it would be "
        f"{100 / (rows * columns):.2f} % each.",
        "Every panel has its own range: clear is its least, dark red its most.",
    ]
    sections = {
        "": [
            ("the picture as the model sees it", enlarged),
            panel("rollout, all layers: ", maps.rollout[0]),
        ],
        f"Layer {layers}, the last, head by head": [
            panel(f"head {head + 1}: ", maps.heads[0, -1, head]) for head in range(heads)
        ],
        "Layer by layer, mean over heads": [
            panel(f"layer {layer + 1}: ", maps.heads[0, layer].mean(dim=0)) for layer in range(layers)
        ],
    }
    return Sheet(lines, sections)


def caption_sheet(picture: Image.Image, words: Sequence[str], maps: torch.Tensor) -> Sheet:
    """The sheet of a caption: the picture, and where the captioner looked for each word.

    Args:
        picture: as the model sees it, in mode RGB.
        words: of the caption.
        maps: float (words, rows, columns), each of which sums to 1.
    """
    scale = _PANEL_HEIGHT / picture.height
    enlarged = picture.resize((max(1, round(picture.width * scale)), _PANEL_HEIGHT), Image.Resampling.BICUBIC)
    panels = [
        (f"{word}: {100 * float(shares.min()):.2f} to {100 * float(shares.max()):.2f} %", overlay_map(enlarged, shares))
        for word, shares in zip(words, maps, strict=True)
    ]
    rows, columns = maps.shape[1:]
    lines = [
        " ".join(words),
        f"Attention paid to each of {rows} x {columns} places for every word; evenly it would be "
        f"{100 / (rows * columns):.2f} % each. Every panel has its own range: clear is its least, dark red its most.",
    ]
    return Sheet(lines, {"": [("the picture as the model sees it", enlarged), *panels]})


def bias_sheet(biases: dict[str, torch.Tensor]) -> Sheet:
    """The sheet of a model: a panel a layer and head.

    Args:
        biases: as `bias_maps` gives them.
    """
    lines = [
        "What is added to the attention that a patch pays to another, by where the other lies, seen from the patch in the "
        "middle.",
        "White is 0, red more, blue less. The heads of a layer share one scale: the strongest colours stand for plus and "
        "minus its largest number.",
    ]
    sections = {}
    for number, (name, maps) in enumerate(biases.items(), start=1):
        window = [side // 2 + 1 for side in maps.shape[1:]]
        head = f"{number}. {name}, window {window[0]} x {window[1]}: {float(maps.min()):.3g} to {float(maps.max()):.3g}"
        limit = float(maps.abs().max())
        sections[head] = [(f"head {index + 1}", _bias_panel(bias, limit)) for index, bias in enumerate(maps)]
    return Sheet(lines, sections)


def _bias_panel(bias: torch.Tensor, limit: float) -> Image.Image:
    """Float (rows, columns) in [-limit, limit] as squares from blue over white to red."""
    levels = 127 + 127 * bias / (limit or 1.0)
    panel = Image.fromarray(levels.round().cpu().numpy().astype(np.uint8))
    panel = ImageOps.colorize(panel, black="#2166ac", mid="white", white="#b2182b", midpoint=127, whitepoint=254)
    scale = max(1, _BIAS_PANEL // max(panel.size))
    size = (panel.width * scale, max(panel.height * scale, _MIN_BIAS_HEIGHT))
    return panel.resize(size, Image.Resampling.NEAREST)


def _draw(lines: Sequence[str], sections: dict[str, list[Panel]]) -> Image.Image:
    font = ImageFont.load_default(size=13)
    texts: list[tuple[int, int, str]] = []
    pictures: list[tuple[int, int, Image.Image]] = []
    top, right = _GAP, 0
    for line in lines:
        texts.append((_GAP, top, line))
        top += _LINE
    for title, panels in sections.items():
        top += _GAP
        if title:
            texts.append((_GAP, top, title))
            top += _LINE
        width = max(picture.width for _, picture in panels)
        width = max(width, *(round(font.getlength(caption)) for caption, _ in panels)) + _GAP
        num_rows = -(-len(panels) // max(1, (_SHEET_WIDTH + _GAP) // width))
        columns = -(-len(panels) // num_rows)
        for index, (caption, picture) in enumerate(panels):
            row, column = divmod(index, columns)
            left = _GAP + column * width
            height = row * (_LINE + picture.height + _GAP)
            texts.append((left, top + height, caption))
            pictures.append((left, top + height + _LINE, picture))
            right = max(right, left + picture.width)
        top += num_rows * (_LINE + panels[0][1].height + _GAP)
    right = max(right, *(round(left + font.getlength(text)) for left, _, text in texts))
    sheet = Image.new("RGB", (right + _GAP, top), "#f4f4f4")
    brush = ImageDraw.Draw(sheet)
    for left, upper, text in texts:
        brush.text((left, upper), text, fill="black", font=font)
    for left, upper, picture in pictures:
        sheet.paste(picture, (left, upper))
    return sheet


@dataclass
class ExplainedFile:
    """What was found out about one picture, or about the model itself.

    Attributes:
        file: the path as it was given, or as it was found in a folder; for the model's own sheet the model.
        files: the sheets that were written.
        rows, columns: of the patch grid, padding left out; 0 where there is no map.
        rollout: `rows` lists of `columns` shares in [0, 1]; empty where there is no map.
        classes: `{"label", "probability"}` of the likeliest classes, if the model is an image classifier.
        caption: what a captioner wrote; None for other models. `rollout` is then the mean over its words.
        error: why the picture could not be explained; None if it could.
    """

    file: str
    files: list[str] = field(default_factory=list)
    rows: int = 0
    columns: int = 0
    rollout: list[list[float]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    caption: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        classes = [f"{row['label']}\t{100 * row['probability']:.2f} %" for row in self.classes]
        return "\n".join(
            f"{self.file}\t{told}" for told in (*self.files, *classes, *([self.caption] if self.caption else []))
        )

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without `error`."""
        told = {name: value for name, value in asdict(self).items() if name != "error"}
        if self.caption is None:
            del told["caption"]
        return told


class PictureExplainer:
    """A vision model that tells what it looks at, loaded once.

    Args:
        model: folder or Hub name of a vision model, of an image classifier, or of a whole model with a vision model in
            it, such as TrOCR or CLIP; None means the OCR model that comes with the package.

    Raises:
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if the model's files are damaged or do not belong together, or there is no vision model in it.
    """

    def __init__(self, model: str | os.PathLike | None = None) -> None:
        source = str(default_ocr_model() if model is None else model)
        self.name = Path(source).resolve().name
        device = "cuda" if torch.cuda.is_available() else "cpu"
        vision_model, self.classifier = _load_model(source)
        show_every_patch(vision_model.config)
        self.vision_model = vision_model.to(device).eval()
        if self.classifier is not None:
            self.classifier.to(device).eval()
        try:
            self.image_processor = AutoImageProcessor.from_pretrained(source)
        except Exception as error:  # whatever a file with other content makes its loader raise
            raise ValueError(
                f"{source} must hold an image processor, `preprocessor_config.json`, got none that loads "
                f"({str(error).splitlines()[0]}). Copy the file there."
            ) from error

    def prepare(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        """`pixel_values`, float (1, channels, height, width), and from some image processors `pixel_mask`."""
        inputs = self.image_processor([to_rgb(picture)], return_tensors="pt")
        names = ("pixel_values", "pixel_mask")
        return {name: inputs[name].to(self.vision_model.device) for name in names if name in inputs}

    def seen_picture(self, pixel_values: torch.Tensor) -> Image.Image:
        """The first picture of a batch as the model sees it, padding included, in mode RGB."""
        return seen_picture(self.image_processor, pixel_values[0])

    @torch.no_grad()
    def classes(self, **inputs: torch.Tensor) -> list[dict[str, Any]]:
        """`{"label", "probability"}` of the likeliest classes of what `prepare` gave; empty if the model is no classifier."""
        if self.classifier is None:
            return []
        config = self.classifier.config
        logits = self.classifier(**inputs).logits[0].float()
        chances = logits.sigmoid() if config.problem_type == "multi_label_classification" else logits.softmax(dim=-1)
        best = chances.topk(min(_NUM_CLASSES, len(chances)))
        return [
            {"label": config.id2label[index], "probability": chance}
            for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _load_model(source: str) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The vision model, and the image classifier that it is part of, if it is."""
    whole: Any = None
    settings = {"dtype": torch.float32}
    stored = read_config(source)
    if TrOCREncoderDecoderForConditionalGeneration.foreign_config(stored) is not None:  # microsoft/trocr-*
        whole = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(source, **settings)
        return load_vision_model(whole)[0], None
    with naming_faults(source):
        config = AutoConfig.from_pretrained(source)
        classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
        classes = classes if isinstance(classes, tuple) else (classes,)
        if not {one.__name__ for one in classes} & set(config.architectures or ()):
            return load_vision_model(source)[0], None
        whole, report = AutoModelForImageClassification.from_pretrained(source, output_loading_info=True, **settings)
    if report["missing_keys"]:
        raise ValueError(
            f"Every weight of the classifier must come from {source}, got none for {sorted(report['missing_keys'])}. Check "
            "that config and weights are of one model."
        )
    return load_vision_model(whole)[0], whole


def explain_files(
    files: Iterable[str | os.PathLike], *, model: str | os.PathLike | None = None, out: str | os.PathLike = "."
) -> Iterator[ExplainedFile]:
    """Write the sheets of a model and of every picture, a bad picture among them told in its `error`.

    A model with relative position biases comes first, with `MODEL-relative-position-bias.png`. Then each picture comes
    with `NAME-attention.png`; the second of a name has a number, `NAME-2-attention.png`. Files of that name are
    overwritten. A model such as Swin, which attends in windows, has no map over a picture.

    Args:
        files: picture files, and folders whose picture files are taken in natural order of their names.
        model: as for `PictureExplainer`.
        out: folder to write to, made if it is not there.

    Raises:
        OSError: if there is no such model, its folder lacks a file, or `out` can't be made.
        ValueError: if the model's files are damaged, or it has neither maps nor biases to show.
    """
    captioner = _load_captioner(model)
    explainer = PictureExplainer(model) if captioner is None else None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"A folder to write to is wanted, got {folder}, which can't be made ({error.strerror}). Name another."
        ) from error
    biases = bias_maps(explainer.vision_model) if explainer is not None else {}
    if explainer is not None and biases:
        target = folder / f"{explainer.name}-relative-position-bias.png"
        bias_sheet(biases).draw(f"{explainer.name}: relative position bias").save(target)
        yield ExplainedFile(explainer.name, [str(target)])
    written: set[Path] = set()
    warned = False
    for file, fault in listed_pictures(files):
        result = ExplainedFile(file, error=fault)
        target, again = folder / f"{Path(file).stem}-attention.png", 1
        while target in written:
            again += 1
            target = folder / f"{Path(file).stem}-{again}-attention.png"
        written.add(target)
        if result.error is None:
            try:
                if captioner is not None:
                    _explain_caption(captioner, result, target)
                else:
                    assert explainer is not None
                    _explain(explainer, result, target)
            except NoAttentionMapError:
                if explainer is None or not biases:
                    raise
                if not warned:
                    logger.warning(
                        "%s does not attend over whole pictures: only its relative position biases are drawn.",
                        explainer.name,
                    )
                warned = True
            except (ValueError, OSError) as error:
                result.error = str(error)
        yield result


def _load_captioner(model: str | os.PathLike | None) -> tuple[CnnLstmForConditionalGeneration, CnnLstmProcessor] | None:
    """A captioner that looks anew for every word, and its processor; None for any other model."""
    stored = {} if model is None else read_config(model)
    if stored.get("model_type") != CnnLstmForConditionalGeneration.config_class.model_type:
        return None
    if stored.get("attention") != "additive":
        return None  # its vision encoder may still have attention to show
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captioner = CnnLstmForConditionalGeneration.from_pretrained(model, dtype=torch.float32).to(device).eval()
    return captioner, CnnLstmProcessor.from_pretrained(str(model))


@dataclass
class SaidWords:
    """A caption, and where its words were looked for.

    Attributes:
        caption: the whole text.
        words: as many as there are maps.
        maps: float (words, rows, columns), each of which sums to 1.
        seen: the picture as the model sees it, in mode RGB.
    """

    caption: str
    words: list[str]
    maps: torch.Tensor
    seen: Image.Image


@torch.no_grad()
def say_words(model: CnnLstmForConditionalGeneration, processor: CnnLstmProcessor, picture: Image.Image) -> SaidWords:
    """What a captioner that looks anew for every word says of a picture.

    Raises:
        ValueError: if it says no word.
    """
    inputs = processor(images=[picture]).to(model.device)
    token_ids = model.generate(**inputs)[:, 1:]
    special = set(processor.tokenizer.all_special_ids)
    said = [(at, token) for at, token in enumerate(token_ids[0].tolist()) if token not in special]
    if not said:
        raise ValueError("A caption with words is wanted, got none. Train the model for longer.")
    return SaidWords(
        caption=processor.tokenizer.decode(token_ids[0], skip_special_tokens=True),
        words=[processor.tokenizer.decode([token]).strip() for _, token in said],
        maps=model.attention_over_words(inputs["pixel_values"], token_ids)[0, [at for at, _ in said]],
        seen=seen_picture(processor.image_processor, inputs["pixel_values"][0]),
    )


def _explain_caption(
    captioner: tuple[CnnLstmForConditionalGeneration, CnnLstmProcessor], result: ExplainedFile, target: Path
) -> None:
    """Write a picture's caption, and the sheet of where each of its words was looked for."""
    model, processor = captioner
    picture = open_picture_file(result.file)
    try:
        said = say_words(model, processor, picture)
    except ValueError as error:
        raise ValueError(f"{result.file}: {error}") from error
    result.rows, result.columns = said.maps.shape[1:]
    result.rollout = said.maps.mean(dim=0).tolist()
    result.caption = said.caption
    name = Path(getattr(model, "name_or_path", "") or "model").resolve().name
    title = os.fsencode(f"{Path(result.file).name}, described by {name}").decode(errors="replace")
    caption_sheet(said.seen, said.words, said.maps).draw(title).save(target)
    result.files = [str(target)]


def _explain(explainer: PictureExplainer, result: ExplainedFile, target: Path) -> None:
    """Fill in what is found out about a picture, and write its sheet."""
    inputs = explainer.prepare(open_picture_file(result.file))
    result.classes = explainer.classes(**inputs)
    maps = attention_maps(explainer.vision_model, **inputs)
    result.rows, result.columns = maps.real_grid()
    result.rollout = maps.rollout[0, : result.rows, : result.columns].tolist()
    title = os.fsencode(f"{Path(result.file).name}, seen by {explainer.name}").decode(errors="replace")
    attention_sheet(explainer.seen_picture(inputs["pixel_values"]), maps).draw(title).save(target)
    result.files = [str(target)]
