"""A pretrained vision encoder and a tokenizer, and the captioner that is built for both."""

import copy
import dataclasses
import inspect
import logging
import os
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...parts.picture_text_processor import end_token_id, load_tokenizer, start_token_id
from ...parts.settings import refuse_unknown
from ...parts.vision_features import describe_vision_model, load_vision_model, needed_weights
from ...parts.weight_report import PartSource, WeightReport, describe_part, part_source
from .configuration_cnn_lstm import CnnLstmConfig

logger = logging.getLogger(__name__)


@dataclass
class CnnLstmParts:
    """The loaded encoder and the decisions taken about it, ready to be placed into a new model.

    Attributes:
        config: of the whole.
        generation: generation settings that follow from the tokenizer.
        vision: the vision model, and the report of its loading.
    """

    config: CnnLstmConfig
    generation: dict[str, Any]
    vision: PreTrainedModel
    vision_report: dict[str, list[str]]
    vision_source: PartSource

    def place(self, vision_model: nn.Module) -> None:
        """Copy the weights into a new model's encoder."""
        missing, unexpected = vision_model.load_state_dict(self.vision.state_dict(), strict=False)
        if unexpected or needed_weights(missing):
            raise ValueError(
                f"`vision` must be a model that `AutoModel` makes of its config, got `{type(self.vision).__name__}`, of "
                f"other weights: {', '.join([*unexpected, *missing][:3])}. Give its folder, or load it with `AutoModel`."
            )
        self.vision_report["new"] = sorted({*self.vision_report["new"], *missing})  # an unused pooler

    def report(self, model: Any) -> WeightReport:
        """Where every tensor of the assembled model came from; also logged."""
        vision = describe_part(
            "vision",
            model.encoder.vision_model,
            source=self.vision_source,
            new=self.vision_report["new"],
            dropped=dict.fromkeys(self.vision_report["dropped"], "the vision encoder alone does not have it"),
        )
        new = [describe_part(role, model.get_submodule(role)) for role in ("projector", "decoder")]
        report = WeightReport([vision, *new])
        logger.info("Assembled a captioner:\n%s", report.table())
        return report


def load_parts(
    vision: str | os.PathLike | PreTrainedModel,
    text: str | os.PathLike | PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 20,
    num_beams: int = 3,
    **config_fields: Any,
) -> CnnLstmParts:
    """Load a vision encoder, and settle the config of a captioner that writes a tokenizer's words.

    Args:
        vision: Hub name, folder or loaded model.
        text: a tokenizer, or Hub name or folder of one.
        max_new_tokens: default length limit of generation, in tokens.
        num_beams: default beams of generation; Show and Tell's authors found 3 better than 20 later on.
        config_fields: fields of `CnnLstmConfig`, such as `attention` or `dropout`.

    Raises:
        ValueError: if a setting is unknown, or the tokenizer has no token to end a caption with.

    Source: Vinyals et al. 2016, section 5.1, https://arxiv.org/abs/1609.06647
    """
    known = [field.name for field in dataclasses.fields(CnnLstmConfig)]
    refuse_unknown(
        config_fields, known, also=inspect.signature(load_parts).parameters, of="`load_parts` or of `CnnLstmConfig`"
    )
    tokenizer = load_tokenizer(text) if isinstance(text, str | os.PathLike) else text
    end = end_token_id(tokenizer)
    if end is None:
        raise ValueError(
            "The tokenizer must have an end token (`eos_token` or `sep_token`), got none. Set `tokenizer.eos_token` and "
            "pass the tokenizer as `text`."
        )
    start = start_token_id(tokenizer)
    tokens: dict[str, Any] = {
        "decoder_start_token_id": start,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
    }
    vision_model, vision_report = load_vision_model(vision)
    seen = describe_vision_model(vision_model.config)
    sizes = {"vision_hidden_size": seen.hidden_size, "num_prefix_tokens": seen.num_prefix_tokens}
    vocab_size = {"vocab_size": len(tokenizer)}
    vision_config = copy.deepcopy(vision_model.config)
    source = part_source(vision)
    vision_config.name_or_path = source.name  # a folder of this machine means nothing elsewhere
    config = CnnLstmConfig(vision_config=vision_config, **(vocab_size | sizes | tokens | config_fields))
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"`vocab_size` must be at least the tokenizer's {len(tokenizer)} tokens, got {config.vocab_size}. Leave it out."
        )
    generation = {name: getattr(config, name) for name in tokens}
    generation |= {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in tokens.values():
        generation["suppress_tokens"] = [unknown]  # a caption is to be made of words
    return CnnLstmParts(config, generation, vision_model, vision_report, source)
