"""Which parts fit together, and where each tensor of the assembled reader comes from.

A text model takes one of three ways:

- an encoder-only model that the tables of `parts/decoder_weights.py` know becomes our decoder;
- a decoder that can cross-attend (GPT-2, BART's, BERT as a decoder, ours) is kept as it is;
- any other is refused, before a weight is loaded.
"""

import copy
import dataclasses
import functools
import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...parts.checkpoint_files import naming_faults, read_config, read_weights
from ...parts.decoder_weights import SOURCE_PREFIXES, MappedDecoder, map_text_config, map_text_weights
from ...parts.picture_text_processor import load_tokenizer
from ...parts.settings import refuse_unknown
from ...parts.vision_features import describe_vision_model, load_vision_model, needed_weights
from ...parts.weight_report import PartSource, WeightReport, describe_part, part_source, source_name
from .configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig

logger = logging.getLogger(__name__)


@dataclass
class TrOCRParts:
    """Loaded parts and the decisions taken about them, ready to be placed into a new model.

    Attributes:
        config: of the whole.
        generation: generation settings that follow from the parts.
        vision: the vision model, and the report of its loading.
        decoder_weights: our or the text model's own names -> tensor.
        decoder_sources: `source`, `folded` and `dropped` for the weight report.
    """

    config: TrOCREncoderDecoderConfig
    generation: dict[str, Any]
    vision: PreTrainedModel
    vision_report: dict[str, list[str]]
    vision_source: PartSource
    decoder_weights: Mapping[str, torch.Tensor]
    decoder_sources: dict[str, Any] = field(default_factory=dict)

    def place(self, vision_model: nn.Module, decoder: Any) -> None:
        """Copy the weights into a new model's parts; what no source has keeps its fresh initialisation."""
        missing, unexpected = vision_model.load_state_dict(self.vision.state_dict(), strict=False)
        if unexpected or needed_weights(missing):
            raise ValueError(
                f"`vision` must be a model that `AutoModel` makes of its config, got `{type(self.vision).__name__}`, of "
                f"other weights: {', '.join([*unexpected, *missing][:3])}. Give its folder, or load it with `AutoModel`."
            )
        self.vision_report["new"] = sorted({*self.vision_report["new"], *missing})  # an unused pooler
        missing, unexpected = decoder.load_state_dict(self.decoder_weights, strict=False)
        assert not unexpected, unexpected
        self.decoder_sources["new"] = [name for name in missing if name not in decoder.all_tied_weights_keys]
        if hasattr(decoder, "tie_weights"):
            decoder.tie_weights()

    def report(self, model: Any) -> WeightReport:
        """Where every tensor of the assembled model came from; also logged."""
        encoder = model.encoder
        parts = [
            describe_part(
                "vision",
                encoder.vision_model,
                source=self.vision_source,
                new=self.vision_report["new"],
                dropped=dict.fromkeys(self.vision_report["dropped"], "the vision encoder alone does not have it"),
            )
        ]
        if not isinstance(encoder.projection, nn.Identity):
            parts.append(describe_part("projector", encoder.projection))
        parts.append(describe_part("decoder", model.decoder, **self.decoder_sources))
        if hasattr(model, "ctc_head"):
            parts.append(describe_part("ctc_head", model.ctc_head))
        report = WeightReport(parts)
        logger.info("Assembled a TrOCR reader:\n%s", report.table())
        return report


def load_parts(
    vision: str | os.PathLike | PreTrainedModel,
    text: str | os.PathLike | PreTrainedModel,
    *,
    processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    num_decoder_layers: int | None = None,
    keep_text_model: bool | None = None,
    max_new_tokens: int = 128,
    num_beams: int = 1,
    **config_fields: Any,
) -> TrOCRParts:
    """Check that a vision and a text model fit, load them, and settle the config of the whole.

    Args:
        processor: a `TrOCREncoderDecoderProcessor` to check the vocabulary against and to take start, end and padding
            token from; by default the tokenizer beside `text`.
        image_size: pixels, one number or (height, width), if the vision encoder is to be resized (ours can be).
        num_decoder_layers: keep the last so many layers of an encoder-only text model; None for all. The paper keeps 6 of
            RoBERTa-base's 12, 12 of RoBERTa-large's 24 and all of MiniLM's (Li et al. 2023, trocr_models.py).
        keep_text_model: False copies the text model into our decoder, True keeps it as it is; None copies what the
            tables know.
        max_new_tokens: default length limit of generation, in tokens; at most what the decoder's positions allow.
        num_beams: default beams of generation; the paper scores with 10.
        config_fields: fields of `TrOCREncoderDecoderConfig`, such as `label_smoothing` or `decoder_start_token_id`.

    Raises:
        ValueError: if a setting is unknown, the text model can't cross-attend, or the tokenizer and its vocabulary
            disagree.
    """
    known = [field.name for field in dataclasses.fields(TrOCREncoderDecoderConfig)]
    refuse_unknown(
        config_fields,
        known,
        also=inspect.signature(load_parts).parameters,
        of="`load_parts` or of `TrOCREncoderDecoderConfig`",
    )
    text_source = text if isinstance(text, PreTrainedModel) else None
    if text_source is None:
        read_config(text)  # says what is wrong where there is none
    source_config = text_source.config if text_source is not None else AutoConfig.from_pretrained(text)
    copied = _reads_as_source(source_config) if keep_text_model is None else not keep_text_model
    if copied:
        fields = map_text_config(source_config, num_layers=num_decoder_layers)
        text_config: PreTrainedConfig = TrOCREncoderDecoderTextConfig(**fields)
    else:
        if num_decoder_layers is not None:
            raise ValueError(
                f"`num_decoder_layers` chooses layers of a text model that is copied into our decoder, got it with a "
                f"`{source_config.model_type}` that is kept as it is. Leave it out."
            )
        text_config = cross_attending_config(source_config)

    tokenizer = processor.tokenizer if processor is not None else _tokenizer_beside(text)
    if tokenizer is not None:
        _check_vocabulary(len(tokenizer), text_config.vocab_size)
        config_fields = _special_tokens(tokenizer, text_config) | config_fields
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if config_fields.get(name) is not None:
            setattr(text_config, name, config_fields[name])

    vision_model, vision_report = load_vision_model(vision)
    if image_size is not None:
        if not hasattr(vision_model, "resize"):
            raise ValueError(
                f"`image_size` needs a vision encoder that can be resized, got `{type(vision_model).__name__}`. Leave it "
                "out, and let the image processor make pictures of the encoder's own size."
            )
        vision_model = copy.deepcopy(vision_model)  # a model that was handed over stays as it is
        vision_model.resize(image_size=image_size)
    width = describe_vision_model(vision_model.config).hidden_size
    if isinstance(text_config, TrOCREncoderDecoderTextConfig) and copied:
        text_config.cross_attention_size = width
    config = TrOCREncoderDecoderConfig(
        vision_config=copy.deepcopy(vision_model.config),
        text_config=text_config,
        vision_hidden_size=width,
        **config_fields,
    )

    if copied:
        weights = text_source.state_dict() if text_source is not None else read_weights(text)
        mapped: MappedDecoder = map_text_weights(source_config, weights, num_layers=num_decoder_layers)
        decoder_weights: Mapping[str, torch.Tensor] = mapped.weights
        sources: dict[str, Any] = {"folded": mapped.folded, "dropped": mapped.dropped}
    else:
        decoder_weights, sources = _kept_decoder(text, source_config, text_config)
    limit = getattr(text_config, "max_position_embeddings", None)
    generation = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "max_new_tokens": min(max_new_tokens, limit - 1) if limit else max_new_tokens,
        "num_beams": num_beams,
    }
    sources["source"] = part_source(text)
    return TrOCRParts(config, generation, vision_model, vision_report, part_source(vision), decoder_weights, sources)


def cross_attending_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a text model with its cross-attention switched on.

    Raises:
        ValueError: if the model has none to switch on.
    """
    config = type(config).from_dict(config.to_dict())
    config.is_decoder = True
    config.add_cross_attention = True
    if config.is_encoder_decoder and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"`text` must be a model whose decoder transformers builds alone (`AutoModelForCausalLM`), got "
            f"`{config.model_type}`, whose decoder it builds with its encoder only. Use BART, mBART, or an encoder-only "
            "model such as RoBERTa."
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(_cannot_cross_attend(config)) from error
    if "encoder_hidden_states" not in inspect.signature(model.forward).parameters:
        raise ValueError(_cannot_cross_attend(config))
    return config


def _cannot_cross_attend(config: PreTrainedConfig) -> str:
    return (
        f"`text` must be a model that can cross-attend (GPT-2, BART, BERT, RoBERTa, ...), got `{config.model_type}`, which "
        "cannot. A causal language model without cross-attention sees pictures through a projector: use the projector "
        "model, LLaVA."
    )


def _reads_as_source(config: PreTrainedConfig) -> bool:
    """Whether a text model is an encoder that the tables know, not one that was made a cross-attending decoder already."""
    cross_attends = getattr(config, "is_decoder", False) and getattr(config, "add_cross_attention", False)
    return config.model_type in SOURCE_PREFIXES and not cross_attends


def _kept_decoder(
    text: str | os.PathLike | PreTrainedModel, source_config: PreTrainedConfig, text_config: PreTrainedConfig
) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Weights of a decoder that is kept as it is, without those that the checkpoint doesn't have."""
    whole = text if isinstance(text, PreTrainedModel) else None
    if whole is None and source_config.is_encoder_decoder:
        # A whole BART keeps its words in one table for both halves, where the decoder alone doesn't look.
        with naming_faults(text):
            whole = AutoModelForSeq2SeqLM.from_pretrained(text, dtype=torch.float32)
    load = functools.partial(
        MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)].from_pretrained,
        config=text_config,
        output_loading_info=True,
        dtype=torch.float32,
    )
    if whole is not None:
        decoder, info = load(None, state_dict=whole.state_dict())
    else:
        with naming_faults(text):
            decoder, info = load(text)
    missing = set(info["missing_keys"])
    if needed := _needed(missing, decoder):
        raise ValueError(
            f"Every weight of the text model but cross-attention must come from {source_name(text)}, got none for "
            f"`{needed[0]}`. Check that the folder holds a complete checkpoint."
        )
    weights = {name: tensor for name, tensor in decoder.state_dict().items() if name not in missing}
    dropped = dict.fromkeys(sorted(info["unexpected_keys"]), "the decoder alone does not have it")
    return weights, {"dropped": dropped}


def _needed(missing: set[str], decoder: PreTrainedModel) -> list[str]:
    """Tensors that may not be new: all but cross-attention and the output layers behind the body."""
    new = ("cross", "encoder_attn")
    body = f"{decoder.base_model_prefix}." if decoder.base_model is not decoder else ""
    return sorted(name for name in missing if name.startswith(body) and not any(word in name.lower() for word in new))


def _tokenizer_beside(text: str | os.PathLike | PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a text model's folder, if there is one."""
    if isinstance(text, PreTrainedModel):
        return None
    try:
        return load_tokenizer(text)
    except (OSError, ValueError):
        return None


def _special_tokens(tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig) -> dict[str, int]:
    """Start, end and padding token, those that there are; a text model that says itself how it starts is believed."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    bos = next((t for t in (tokenizer.bos_token_id, tokenizer.cls_token_id, end) if t is not None), None)
    own_start = getattr(text_config, "decoder_start_token_id", None)
    tokens = {
        "decoder_start_token_id": own_start if own_start is not None else bos,
        "bos_token_id": bos,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
    }
    return {name: token for name, token in tokens.items() if token is not None}


def _check_vocabulary(num_tokens: int, vocab_size: int) -> None:
    if num_tokens > vocab_size:
        raise ValueError(
            f"The tokenizer must have at most the text model's {vocab_size} tokens, got {num_tokens}. Take the tokenizer of "
            "that model, or make room with `resize_token_embeddings` first."
        )
