"""Turn an encoder-only text model (RoBERTa, XLM-R, CamemBERT, BERT, MiniLM) into weights of the TrOCR decoder.

The tables are literal: left the name in the source's file, right ours. What has no place in the decoder is listed with
the reason; a tensor that no table names is an error, so that nothing is lost unseen. Cross-attention is in no source:
it stays as the decoder initialised it.

Both families are post-norm and add word, position and segment embeddings before one LayerNorm, so the self-attending
half of the decoder computes exactly what the source computes under a causal mask. Two differences are mapped:

- A decoder has one segment: row 0 of the source's segment embedding, added to every token, goes into the positions.
- RoBERTa counts positions from `pad_token_id + 1`; our row 0 is the first token's, so the rows before are dropped.

Source: Li et al. 2023, section 3.1.2, https://arxiv.org/abs/2109.10282 (last layers of the source, output layer tied
to the input embedding); the authors' name map in unilm/trocr/trocr_models.py. Theirs copies MiniLM's positions one row
too far to the right for our counting and freezes the key bias at zero; neither is done here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

# model_type -> the prefix that models with a head put before the encoder's names
SOURCE_PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "camembert": "roberta."}

# Families that count positions from `pad_token_id + 1`; the others count from 0.
POSITIONS_FOLLOW_PADDING = {"roberta", "xlm-roberta", "camembert"}

CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
SEGMENTS = "embeddings.token_type_embeddings.weight"

EMBEDDING_MODULES = {"embeddings.LayerNorm": "model.embedding_norm"}

# Within one layer: `encoder.layer.{i}.` of the source, `model.layers.{j}.` of the decoder; a weight and a bias each.
LAYER_MODULES = {
    "attention.self.query": "self_attention.q_proj",
    "attention.self.key": "self_attention.k_proj",
    "attention.self.value": "self_attention.v_proj",
    "attention.output.dense": "self_attention.o_proj",
    "attention.output.LayerNorm": "self_attention_norm",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "mlp_norm",
}

_HEAD = "the decoder's output layer is tied to its input embedding, without the source's head"
_TASK = "the head of another task"

# First part of a name -> why it is not needed.
DROPPED = {
    "lm_head.": _HEAD,
    "cls.": _HEAD,
    "classifier.": _TASK,
    "qa_outputs.": _TASK,
    "pooler.": "the decoder reads every token, not a pooled one",
    "embeddings.position_ids": "a counter that old files stored, not a weight",
}

_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # files of 2018-2019


@dataclass
class MappedDecoder:
    """Weights of the decoder that came from a text encoder, and what became of every tensor of the source.

    `copied`, `folded` and `dropped` together name each source tensor exactly once.

    Attributes:
        config_fields: fields of the decoder's config.
        weights: our name -> tensor, in the source's dtype.
        copied: source name -> our name.
        folded: source name -> where its values went.
        dropped: source name -> why it was not needed.
    """

    config_fields: dict[str, Any]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def map_text_config(
    source_config: Mapping[str, Any] | PreTrainedConfig, *, num_layers: int | None = None
) -> dict[str, Any]:
    """Give back the fields of the decoder's config that a text encoder of this config fills.

    Args:
        source_config: the source's `config.json`, or its config object.
        num_layers: layers that the decoder keeps, the source's last ones; None keeps all.

    Raises:
        ValueError: if the source is of no family that the tables know, has relative positions, or fewer layers.
    """
    config = _full_config(source_config)
    relative = getattr(config, "position_embedding_type", None) or "absolute"
    if relative != "absolute":
        raise ValueError(
            f'The text encoder must have `position_embedding_type` "absolute", got "{relative}". '
            "Take one with learned absolute positions, such as a RoBERTa or BERT."
        )
    fields = {ours: getattr(config, theirs) for theirs, ours in CONFIG_FIELDS.items()}
    if config.model_type in POSITIONS_FOLLOW_PADDING:
        fields["max_position_embeddings"] -= config.pad_token_id + 1
    if num_layers is not None:
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ValueError(
                f"`num_layers` must be from 1 to the text encoder's {config.num_hidden_layers}, got {num_layers}. "
                "Ask for fewer layers, or leave it out to keep all."
            )
        fields["num_hidden_layers"] = num_layers
    return fields | {
        "norm_position": "post",
        "position_embedding": "learned",
        "embedding_norm": True,
        "scale_embedding": False,
        "tie_word_embeddings": True,
    }


def map_text_weights(
    source_config: Mapping[str, Any] | PreTrainedConfig,
    source_weights: Mapping[str, torch.Tensor],
    *,
    num_layers: int | None = None,
) -> MappedDecoder:
    """Give back the decoder's weights that a text encoder has, with every source tensor accounted for.

    Args:
        source_config: the source's `config.json`, or its config object.
        source_weights: names as in the source's file, with the head's prefix (`roberta.`) or without -> tensor.
        num_layers: layers that the decoder keeps, the source's last ones; None keeps all.

    Returns: a `MappedDecoder`; its weights are complete but for cross-attention and the tied `lm_head.weight`.

    Raises:
        ValueError: as `map_text_config`; if a tensor is in no table, a needed one is missing, or config and weights
            disagree about vocabulary or positions.
    """
    mapped = MappedDecoder(config_fields=map_text_config(source_config, num_layers=num_layers))
    config = _full_config(source_config)
    prefix = SOURCE_PREFIXES[config.model_type]
    names = {_plain_name(name, prefix): name for name in source_weights}  # name in the tables -> name in the file
    targets = _targets(config.num_hidden_layers, mapped.config_fields["num_hidden_layers"])

    missing = [name for name in (WORDS, POSITIONS, *targets) if name not in names]
    if missing:
        raise ValueError(
            f"The text encoder must have `{missing[0]}` (and {len(missing) - 1} more that its files lack), got "
            f"{len(names)} other tensors. Give a complete `{config.model_type}` checkpoint whose config fits it."
        )
    for setting, plain in (("vocab_size", WORDS), ("max_position_embeddings", POSITIONS)):
        rows, wanted = source_weights[names[plain]].shape[0], getattr(config, setting)
        if rows != wanted:
            raise ValueError(
                f"`{names[plain]}` must have `{setting}` = {wanted} rows, got {rows}. "
                "Mend the text encoder's config.json or save the model again, so that config and weights agree."
            )

    first_layer = config.num_hidden_layers - mapped.config_fields["num_hidden_layers"]
    unknown = []
    for plain, name in names.items():
        tensor = source_weights[name]
        layer = re.match(r"encoder\.layer\.(\d+)\.", plain)
        if plain in targets:
            mapped.weights[targets[plain]] = tensor
            mapped.copied[name] = targets[plain]
        elif plain == WORDS:
            mapped.weights["model.embed_tokens.weight"] = tensor
            mapped.copied[name] = "model.embed_tokens.weight"
        elif plain == POSITIONS:
            mapped.copied[name] = "model.embed_positions.weight"
        elif plain == SEGMENTS:
            mapped.folded[name] = "row 0, added to each row of model.embed_positions.weight; a decoder has one segment"
        elif layer and int(layer[1]) < first_layer:
            mapped.dropped[name] = f"only the last {config.num_hidden_layers - first_layer} layers are kept"
        elif reason := next((reason for start, reason in DROPPED.items() if plain.startswith(start)), None):
            mapped.dropped[name] = reason
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"Every tensor of the text encoder must be in the tables of `{config.model_type}`, got `{unknown[0]}` (and "
            f"{len(unknown) - 1} more). Give a plain {config.model_type} checkpoint, without adapters or additions."
        )

    first_row = config.pad_token_id + 1 if config.model_type in POSITIONS_FOLLOW_PADDING else 0
    positions = source_weights[names[POSITIONS]][first_row:]  # (max_position_embeddings, hidden_size)
    if SEGMENTS in names:
        # In float32: a half-precision sum would round twice.
        segment = source_weights[names[SEGMENTS]][0].float()
        positions = (positions.float() + segment).to(positions.dtype)
    mapped.weights["model.embed_positions.weight"] = positions.contiguous()
    return mapped


def _full_config(source_config: Mapping[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """Fill in the defaults that the source's own config class has, after a check that the tables know the family."""
    if isinstance(source_config, PreTrainedConfig):
        source_config = source_config.to_dict()
    model_type = source_config.get("model_type")
    if model_type not in SOURCE_PREFIXES:
        raise ValueError(
            f"A text encoder of `model_type` {', '.join(sorted(SOURCE_PREFIXES))} can be made a decoder, got "
            f"{model_type!r}. Take one of these, or a model with cross-attention of its own (GPT-2, BART, TrOCR); "
            "a causal language model without it goes with the projector model, `llava`."
        )
    return CONFIG_MAPPING[model_type].from_dict(dict(source_config))


def _targets(num_source_layers: int, num_layers: int) -> dict[str, str]:
    """Spell the tables out: name in the source -> our name, for the last `num_layers` layers."""
    modules = dict(EMBEDDING_MODULES)
    for layer in range(num_layers):
        source_layer = num_source_layers - num_layers + layer
        for theirs, ours in LAYER_MODULES.items():
            modules[f"encoder.layer.{source_layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}


def _plain_name(name: str, prefix: str) -> str:
    """Take the head's prefix and names of old files out of a tensor's name."""
    name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name
