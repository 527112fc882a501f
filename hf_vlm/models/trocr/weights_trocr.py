"""Names and config fields of transformers' TrOCR folders (`vision-encoder-decoder` with a `trocr` decoder) -> ours.

The tables are literal: left the name in the file, right ours. A tensor in no table is an error. The encoder's names are
left as they are, behind `encoder.vision_model.`: transformers knows the layout of its own vision models.

Two things are not mere names. A learned position table has two rows in front that no token reads, a legacy of fairseq,
where positions began after the padding id: they are cut off. The output layer is in the file only where it is not tied.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrOCRConfig

from .configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig

# TrOCRConfig -> TrOCREncoderDecoderTextConfig. `activation_dropout` and `decoder_layerdrop` act in training alone and
# are not carried over (published folders have both at 0).
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "decoder_layers": "num_hidden_layers",
    "decoder_attention_heads": "num_attention_heads",
    "decoder_ffn_dim": "intermediate_size",
    "activation_function": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_embedding": "embedding_norm",
    "scale_embedding": "scale_embedding",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}

WORDS = "model.decoder.embed_tokens.weight"
POSITIONS = "model.decoder.embed_positions.weight"
EMBEDDING_NORM = {"model.decoder.layernorm_embedding": "model.embedding_norm"}
OUTPUT = "output_projection.weight"

# Within one layer: `model.decoder.layers.{i}.` in the file, `model.layers.{i}.` here; each has a weight and a bias.
LAYER_MODULES = {
    "self_attn.q_proj": "self_attention.q_proj",
    "self_attn.k_proj": "self_attention.k_proj",
    "self_attn.v_proj": "self_attention.v_proj",
    "self_attn.out_proj": "self_attention.o_proj",
    "self_attn_layer_norm": "self_attention_norm",
    "encoder_attn.q_proj": "cross_attention.q_proj",
    "encoder_attn.k_proj": "cross_attention.k_proj",
    "encoder_attn.v_proj": "cross_attention.v_proj",
    "encoder_attn.out_proj": "cross_attention.o_proj",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "final_layer_norm": "mlp_norm",
}

# Names that may be in a file and are not needed -> why.
DROPPED = {
    "model.decoder.embed_positions._float_tensor": "an empty marker that old files stored beside sinusoidal positions",
}

# Rows of a learned position table before that of the first token.
POSITION_OFFSET = 2

# Beside the decoder: the layer that brings the picture's features to the decoder's width.
PROJECTION = {
    "enc_to_dec_proj.weight": "encoder.projection.weight",
    "enc_to_dec_proj.bias": "encoder.projection.bias",
}


def config_from_vision_encoder_decoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give back fields of `TrOCREncoderDecoderConfig` for the config.json of a `vision-encoder-decoder` folder.

    A `trocr` decoder becomes ours; any other is kept as it is, told to cross-attend. Token ids that the folder gives
    for the whole model win over those of its decoder.

    Raises:
        ValueError: if the encoder's or the decoder's section is missing.
    """
    for section in ("encoder", "decoder"):
        if not isinstance(config.get(section), Mapping) or "model_type" not in config[section]:
            raise ValueError(
                f"The config.json of a `vision-encoder-decoder` folder must have a section `{section}` with a "
                f"`model_type`, got {sorted(config)}. Copy or download the folder again."
            )
    decoder = dict(config["decoder"])
    if decoder["model_type"] == "trocr":
        text_config = text_config_from_trocr(decoder) | {"model_type": TrOCREncoderDecoderTextConfig.model_type}
        decoder.setdefault("decoder_start_token_id", TrOCRConfig.decoder_start_token_id)
    else:
        text_config = decoder | {"is_decoder": True, "add_cross_attention": True}
    fields: dict[str, Any] = {"vision_config": dict(config["encoder"]), "text_config": text_config}
    for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        fields[name] = value if value is not None else text_config.get(name, decoder.get(name))
    return fields


def weights_from_vision_encoder_decoder(
    weights: Mapping[str, torch.Tensor], config: TrOCREncoderDecoderConfig
) -> dict[str, torch.Tensor]:
    """Give back the weights of a `vision-encoder-decoder` folder under our names.

    Args:
        weights: names as in the file (`encoder.*`, `decoder.*`, `enc_to_dec_proj.*`) -> tensor.
        config: made of what `config_from_vision_encoder_decoder` gave.

    Returns: `encoder.vision_model.*` with the vision model's own names as in the file, `encoder.projection.*` where the
        widths differ, `decoder.*`.

    Raises:
        ValueError: as `decoder_weights_from_trocr`; if a tensor belongs to none of the three parts.
    """
    ours = {}
    decoder = {}
    for name, tensor in weights.items():
        if name in PROJECTION:
            ours[PROJECTION[name]] = tensor
        elif name.startswith("encoder."):
            ours[f"encoder.vision_model.{name.removeprefix('encoder.')}"] = tensor
        elif name.startswith("decoder."):
            decoder[name.removeprefix("decoder.")] = tensor
        else:
            raise ValueError(
                f"A `vision-encoder-decoder` file must hold `encoder.`, `decoder.` and `enc_to_dec_proj.` tensors, got "
                f"`{name}`. Give a folder written by transformers' VisionEncoderDecoderModel."
            )
    if isinstance(config.text_config, TrOCREncoderDecoderTextConfig):
        decoder = decoder_weights_from_trocr(decoder, config.text_config)
    return ours | {f"decoder.{name}": tensor for name, tensor in decoder.items()}


def text_config_from_trocr(decoder_config: Mapping[str, Any]) -> dict[str, Any]:
    """Give back fields of `TrOCREncoderDecoderTextConfig` for the `decoder` section of a TrOCR folder's config.

    Fields that the file leaves out have transformers' defaults.

    Raises:
        ValueError: if the section is not of `model_type` trocr.
    """
    if decoder_config.get("model_type") != "trocr":
        raise ValueError(
            f"A decoder config of `model_type` 'trocr' wanted, got {decoder_config.get('model_type')!r}. "
            "Load other decoders as they are, through AutoModelForCausalLM."
        )
    config = TrOCRConfig.from_dict(dict(decoder_config))
    learned = config.use_learned_position_embeddings
    return {ours: getattr(config, theirs) for theirs, ours in CONFIG_FIELDS.items()} | {
        "norm_position": "post",
        "layer_norm_eps": 1e-5,  # torch's default, which transformers' TrOCR does not change
        "position_embedding": "learned" if learned else "sinusoidal",
        "first_position": 0 if learned else config.pad_token_id + 1,
        "cross_attention_size": config.cross_attention_hidden_size or config.d_model,
    }


def decoder_weights_from_trocr(
    weights: Mapping[str, torch.Tensor], text_config: TrOCREncoderDecoderTextConfig
) -> dict[str, torch.Tensor]:
    """Give back a TrOCR decoder's weights under our names.

    Args:
        weights: names as in a file of `TrOCRForCausalLM` (`model.decoder.layers.0.fc1.weight`, ...) -> tensor.
        text_config: made of what `text_config_from_trocr` gave.

    Returns: our names (`model.layers.0.mlp.fc1.weight`, ...) -> tensor; `lm_head.weight` only where the file has it.

    Raises:
        ValueError: if a tensor is in no table, or one that the config asks for is missing.
    """
    modules = dict(EMBEDDING_NORM) if text_config.embedding_norm else {}
    for layer in range(text_config.num_hidden_layers):
        for theirs, ours in LAYER_MODULES.items():
            modules[f"model.decoder.layers.{layer}.{theirs}"] = f"model.layers.{layer}.{ours}"
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    names[WORDS] = "model.embed_tokens.weight"
    if text_config.position_embedding == "learned":
        names[POSITIONS] = "model.embed_positions.weight"
    names[OUTPUT] = "lm_head.weight"

    unknown = sorted(set(weights) - set(names) - set(DROPPED))
    if unknown:
        raise ValueError(
            f"Every tensor of the TrOCR decoder must be in its table, got `{unknown[0]}` (and {len(unknown) - 1} "
            "more). Check that config.json belongs to these weights (layers, `layernorm_embedding`, positions)."
        )
    optional = {OUTPUT} if text_config.tie_word_embeddings else set()
    missing = sorted(set(names) - set(weights) - optional)
    if missing:
        raise ValueError(
            f"The TrOCR decoder must have {len(names) - len(optional)} tensors, got none named `{missing[0]}` (and "
            f"{len(missing) - 1} more). Copy or download the checkpoint again; check that config.json belongs to it."
        )
    mapped = {names[name]: tensor for name, tensor in weights.items() if name in names}
    if text_config.position_embedding == "learned":
        mapped["model.embed_positions.weight"] = mapped["model.embed_positions.weight"][POSITION_OFFSET:].contiguous()
    return mapped
