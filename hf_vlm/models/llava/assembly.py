"""Which parts fit together, and where each tensor of the assembled assistant comes from."""

import copy
import dataclasses
import difflib
import inspect
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ...parts.checkpoint_files import read_config
from ...parts.language_model import check_language_model, load_language_model
from ...parts.vision_features import (
    describe_vision_model,
    load_vision_model,
    needed_weights,
    num_selected_tokens,
    read_vision_config,
    usual_feature_layer,
)
from ...parts.weight_report import PartSource, WeightReport, describe_part, part_source
from .configuration_llava import LlavaVisionLanguageConfig
from .processing_llava import LlavaVisionLanguageProcessor

logger = logging.getLogger(__name__)


@dataclass
class LlavaParts:
    """Loaded parts and the decisions taken about them, ready to be placed into a new model.

    Attributes:
        config: of the whole.
        generation: generation settings that follow from the parts.
        vision: the vision model, and the report of its loading.
        language_model: with a row for the image token.
        num_new_rows: rows that its vocabulary got.
    """

    config: LlavaVisionLanguageConfig
    generation: dict[str, Any]
    vision: PreTrainedModel
    vision_report: dict[str, list[str]]
    vision_source: PartSource
    language_model: PreTrainedModel
    text_source: PartSource
    num_new_rows: int

    def place(self, model: Any) -> None:
        """Copy the weights into a new model's parts; the projector starts at the scale of words."""
        missing, unexpected = model.vision_model.load_state_dict(self.vision.state_dict(), strict=False)
        if unexpected or needed_weights(missing):
            raise ValueError(
                f"`vision` must be a model that `AutoModel` makes of its config, got `{type(self.vision).__name__}`, of "
                f"other weights: {', '.join([*unexpected, *missing][:3])}. Give its folder, or load it with `AutoModel`."
            )
        self.vision_report["new"] = sorted({*self.vision_report["new"], *missing})  # an unused pooler
        missing, unexpected = model.language_model.load_state_dict(self.language_model.state_dict(), strict=False)
        tied = getattr(model.language_model, "all_tied_weights_keys", {})
        if unexpected or set(missing) - set(tied):
            raise ValueError(
                "`text` must be a model that `AutoModelForCausalLM` makes of its config, got "
                f"`{type(self.language_model).__name__}`, of other weights: {', '.join([*unexpected, *missing][:3])}. Give "
                "its folder, or load it with `AutoModelForCausalLM`."
            )
        model.language_model.tie_weights()
        match_scale(model)

    def report(self, model: Any) -> WeightReport:
        """Where every tensor of the assembled model came from; also logged."""
        parts = [
            describe_part(
                "vision",
                model.vision_model,
                source=self.vision_source,
                new=self.vision_report["new"],
                dropped=dict.fromkeys(self.vision_report["dropped"], "the vision encoder alone does not have it"),
            ),
            describe_part("projector", model.projector),
            describe_part("language", model.language_model, source=self.text_source),
        ]
        report = WeightReport(parts)
        more = f"\nlanguage: {self.num_new_rows} row for the image token" if self.num_new_rows else ""
        logger.info("Assembled a LLaVA:\n%s%s", report.table(), more)
        return report


def load_parts(
    vision: str | os.PathLike | PreTrainedModel,
    text: str | os.PathLike | PreTrainedModel,
    *,
    processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    max_new_tokens: int = 256,
    **config_fields: Any,
) -> LlavaParts:
    """Check that a vision and a language model fit, load them, and settle the config of the whole.

    Args:
        processor: the `LlavaVisionLanguageProcessor` that goes with the model; by default one is made of the files beside
            `vision` and `text`, as its own `from_pretrained_parts` makes it. Where a part is a loaded model it is wanted.
        image_size: pixels, one number or (height, width), of the pictures; the vision encoder's own by default.
        max_new_tokens: default length limit of an answer, in tokens.
        config_fields: fields of `LlavaVisionLanguageConfig`, such as `num_linear_layers` or `vision_feature_layer`.

    Raises:
        ValueError: if a setting is unknown, a part can't do what it must, or tokenizer and vocabulary disagree.
    """
    known = [field.name for field in dataclasses.fields(LlavaVisionLanguageConfig)]
    for name in config_fields:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *inspect.signature(load_parts).parameters], n=1)
            raise ValueError(
                f"`{name}` must be a setting of `load_parts` or of `LlavaVisionLanguageConfig`, got an unknown one. "
                + (f"Did you mean `{near[0]}`?" if near else "Leave it out.")
            )
    for name in ("vision_hidden_size", "num_prefix_tokens", "num_image_tokens"):
        if name in config_fields:
            raise ValueError(
                f"`{name}` follows from the vision encoder, got {config_fields[name]!r}. Leave it out; `image_size`, "
                "`vision_feature_layer` and `vision_feature_select_strategy` decide it."
            )
    text_config = _text_config(text)
    check_language_model(text_config)
    vision_config = read_vision_config(vision)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    layer = config_fields.pop("vision_feature_layer", None)
    if layer is None:
        layer = usual_feature_layer(vision_config, size)
    strategy = config_fields.get("vision_feature_select_strategy", "default")
    if processor is None:
        if isinstance(vision, PreTrainedModel) or isinstance(text, PreTrainedModel):
            raise ValueError(
                "`processor` is wanted with loaded models, which have no tokenizer beside them, got none. Make it with "
                "`LlavaVisionLanguageProcessor.from_pretrained_parts`, from the tokenizer and the image processor."
            )
        processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
            vision,
            text,
            image_size=size,
            image_aspect_ratio=config_fields.get("image_aspect_ratio", "pad"),
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
        )
    size = size or processor.image_size
    seen = describe_vision_model(vision_config, size, layer)

    rows = _num_rows(text, text_config)
    if processor.num_text_tokens > rows:
        raise ValueError(
            f"The tokenizer must have at most the language model's {rows} rows of embeddings, got "
            f"{processor.num_text_tokens} tokens. Take the tokenizer of that model, or make room with "
            "`resize_token_embeddings` first."
        )
    config = LlavaVisionLanguageConfig(
        vision_config=copy.deepcopy(vision_config),
        text_config=copy.deepcopy(text_config),
        **{
            "image_size": list(seen.image_size),
            "image_aspect_ratio": processor.image_aspect_ratio,
            "vision_feature_layer": layer,
            "image_token_id": processor.image_token_id,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "eos_token_id": processor.end_token_ids,
            "pad_token_id": processor.tokenizer.pad_token_id,
            **config_fields,
        },
    )
    check_processor(config, processor, num_selected_tokens(seen, strategy))

    vision_model, vision_report = load_vision_model(vision if isinstance(vision, PreTrainedModel) else str(vision))
    language_model = load_language_model(text if isinstance(text, PreTrainedModel) else str(text))
    num_rows = max(rows, processor.image_token_id + 1)
    if num_rows > rows:
        add_rows(language_model, num_rows)
    config.vision_config = copy.deepcopy(vision_model.config)
    config.text_config = copy.deepcopy(language_model.config)
    generation = {
        **language_model.generation_config.to_diff_dict(),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "max_new_tokens": max_new_tokens,
        "suppress_tokens": [config.image_token_id],  # a picture can't be said
    }
    generation.pop("max_length", None)
    return LlavaParts(
        config,
        generation,
        vision_model,
        vision_report,
        part_source(vision),
        language_model,
        part_source(text),
        num_rows - rows,
    )


def check_processor(config: LlavaVisionLanguageConfig, processor: Any, num_image_tokens: int) -> None:
    """Checks that processor and model speak of the same pictures.

    Raises:
        ValueError: if they differ in the number of tokens a picture takes, its shape, or in the image token.
    """
    if processor.num_image_tokens != num_image_tokens:
        raise ValueError(
            f"Processor and model must agree on the tokens of a picture, got {processor.num_image_tokens} and "
            f"{num_image_tokens}. Make both with the same `image_size`, `vision_feature_layer` and "
            "`vision_feature_select_strategy`."
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"Processor and model must agree on the image token, got {processor.image_token_id} and "
            f"{config.image_token_id}. Take the processor that belongs to the model."
        )
    if processor.image_aspect_ratio != config.image_aspect_ratio:
        raise ValueError(
            f"Processor and model must agree on `image_aspect_ratio`, got {processor.image_aspect_ratio!r} and "
            f"{config.image_aspect_ratio!r}. Give it to the processor; in a recipe it is `model.image_aspect_ratio`."
        )


def add_rows(language_model: PreTrainedModel, num_rows: int) -> None:
    """Give a vocabulary more rows, each the mean of the old: none is likelier to be said than a word."""
    language_model.resize_token_embeddings(num_rows, mean_resizing=False)
    layers = (language_model.get_input_embeddings(), language_model.get_output_embeddings())
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
            weight[-1] = weight[:-1].float().mean(dim=0)


def match_scale(model: Any) -> None:
    """Scale a new projector so that pictures come out as large as words do (root mean square).

    Only the start is set: whether a model multiplies its embeddings afterwards or not, pictures are then no louder than words.
    """
    config = model.config
    height, width = config.image_size
    generator = torch.Generator().manual_seed(0)
    channels = getattr(config.vision_config, "num_channels", 3)
    noise = torch.randn(1, channels, height, width, generator=generator)
    words = model.get_input_embeddings()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.arange(min(words.weight.shape[0], 4096))
        wanted = words(ids).float().square().mean().sqrt()
        came = model.projector(model.vision_features(noise)).float().square().mean().sqrt()
        if torch.isfinite(came) and came > 0 and torch.isfinite(wanted) and wanted > 0:
            last: nn.Linear = model.projector.linears[-1]
            last.weight.mul_(wanted / came)
    model.train(was_training)


def _text_config(text: str | os.PathLike | PreTrainedModel) -> PreTrainedConfig:
    if isinstance(text, PreTrainedModel):
        return text.config
    read_config(text)  # says what is wrong where there is none
    return AutoConfig.from_pretrained(text)


def _num_rows(text: str | os.PathLike | PreTrainedModel, text_config: PreTrainedConfig) -> int:
    if isinstance(text, PreTrainedModel):
        return text.get_input_embeddings().weight.shape[0]
    return text_config.get_text_config().vocab_size
