"""Folders of the home implementation -> ours: ViT, DeiT, BEiT and ViT-MAE (google/vit-*, facebook/deit-*, microsoft/beit-*,
facebook/vit-mae-*).

The tables say it all: each setting, and each tensor's name in the file.
"""

import re

import torch
from transformers import AutoConfig

from .configuration_vit import VisionTransformerConfig

MODEL_TYPES = ("vit", "deit", "beit", "vit_mae")

# Settings that mean the same, theirs -> ours.
SETTINGS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "num_channels",
    "qkv_bias": "qkv_bias",  # ViT and DeiT
    "layer_scale_init_value": "layer_scale_init_value",  # BEiT
    "drop_path_rate": "drop_path_rate",  # BEiT
    "norm_pix_loss": "normalize_target_pixels",  # ViT-MAE
    "mask_ratio": "mask_ratio",
    "decoder_hidden_size": "decoder_hidden_size",
    "decoder_num_hidden_layers": "decoder_num_hidden_layers",
    "decoder_num_attention_heads": "decoder_num_attention_heads",
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
}

# Names in the file, after the base model's prefix is taken off, -> ours. `#` stands for a layer's number.
NAMES = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.distillation_token": "embeddings.distillation_token",
    "embeddings.mask_token": "embeddings.mask_token",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection.weight": "embeddings.patch_embedding.projection.weight",
    "embeddings.patch_embeddings.projection.bias": "embeddings.patch_embedding.projection.bias",
    "encoder.layer.#.layernorm_before.weight": "layers.#.attention_norm.weight",
    "encoder.layer.#.layernorm_before.bias": "layers.#.attention_norm.bias",
    "encoder.layer.#.attention.attention.query.weight": "layers.#.attention.q_proj.weight",
    "encoder.layer.#.attention.attention.query.bias": "layers.#.attention.q_proj.bias",
    "encoder.layer.#.attention.attention.key.weight": "layers.#.attention.k_proj.weight",
    "encoder.layer.#.attention.attention.key.bias": "layers.#.attention.k_proj.bias",
    "encoder.layer.#.attention.attention.value.weight": "layers.#.attention.v_proj.weight",
    "encoder.layer.#.attention.attention.value.bias": "layers.#.attention.v_proj.bias",
    "encoder.layer.#.attention.output.dense.weight": "layers.#.attention.o_proj.weight",
    "encoder.layer.#.attention.output.dense.bias": "layers.#.attention.o_proj.bias",
    "encoder.layer.#.lambda_1": "layers.#.attention_scale",
    "encoder.layer.#.lambda_2": "layers.#.mlp_scale",
    "encoder.layer.#.layernorm_after.weight": "layers.#.mlp_norm.weight",
    "encoder.layer.#.layernorm_after.bias": "layers.#.mlp_norm.bias",
    "encoder.layer.#.intermediate.dense.weight": "layers.#.mlp.fc1.weight",
    "encoder.layer.#.intermediate.dense.bias": "layers.#.mlp.fc1.bias",
    "encoder.layer.#.output.dense.weight": "layers.#.mlp.fc2.weight",
    "encoder.layer.#.output.dense.bias": "layers.#.mlp.fc2.bias",
    "encoder.layer.#.attention.attention.relative_position_bias.relative_position_bias_table": (
        "relative_position_biases.#.table"
    ),
    "encoder.relative_position_bias.relative_position_bias_table": "relative_position_biases.shared.table",
    "layernorm.weight": "final_norm.weight",
    "layernorm.bias": "final_norm.bias",
    "pooler.dense.weight": "pooler.dense.weight",
    "pooler.dense.bias": "pooler.dense.bias",
    "pooler.layernorm.weight": "pooler.norm.weight",
    "pooler.layernorm.bias": "pooler.norm.bias",
}

# Of heads beside the base model. A decoder's layers are laid out as the encoder's.
HEAD_NAMES = {
    "classifier.": "classifier.output_layer.",
    "cls_classifier.": "classifier.output_layer.",  # DeiT with a teacher
    "distillation_classifier.": "distillation_classifier.output_layer.",
    "lm_head.": "code_head.output_layer.",  # BEiT's visual words
    "layernorm.": "code_head.norm.",  # beside the base model
    "decoder.decoder_embed.": "pixel_decoder.embedding.",  # ViT-MAE
    "decoder.mask_token": "pixel_decoder.mask_token",
    "decoder.decoder_pos_embed": "pixel_decoder.positions",
    "decoder.decoder_norm.": "pixel_decoder.norm.",
    "decoder.decoder_pred.": "pixel_decoder.output_layer.",
}
DECODER_LAYER = "decoder.decoder_encoder.layer."

# What is left out, by the start of the name in the file, and why.
LEFT_OUT = {
    "decoder.": "head of masked image modelling by mask tokens (SimMIM)",
    "decode_head.": "segmentation head",
    "auxiliary_head.": "segmentation head",
    "fpn": "segmentation head",
}
# A buffer of older BEiT files.
COMPUTED = "relative_position_index"


def config_from_home(config: dict) -> VisionTransformerConfig | None:
    """Our settings for a `config.json` of one of `MODEL_TYPES`; None for other model types.

    Raises:
        ValueError: if the folder uses a setting that our model has not.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        return None
    home = AutoConfig.for_model(**config)  # fills in what an old file leaves to the defaults
    settings = {ours: getattr(home, theirs) for theirs, ours in SETTINGS.items() if hasattr(home, theirs)}
    if model_type == "beit":
        settings |= {
            "key_bias": False,
            "position_embedding": "learned" if home.use_absolute_position_embeddings else "none",
            "use_mask_token": home.use_mask_token,
            "final_norm": not home.use_mean_pooling,
            "pooling": "mean" if home.use_mean_pooling else "cls_token",
        }
        if home.use_relative_position_bias:
            settings["relative_position_bias"] = "per_layer"
        elif home.use_shared_relative_position_bias:
            settings["relative_position_bias"] = "shared"
        settings |= {"masked_image_target": "codes", "num_codes": home.vocab_size, "out_features": home.out_features}
    elif model_type == "vit_mae":
        if home.decoder_intermediate_size != 4 * home.decoder_hidden_size:
            raise ValueError(
                f"A decoder's MLP must be 4 times as wide as its tokens, got {home.decoder_intermediate_size} for "
                f"{home.decoder_hidden_size}. Load the folder with transformers' own class."
            )
        settings |= {"position_embedding": "sincos", "pooling": "none"}
    else:
        if home.pooler_act != "tanh" or home.pooler_output_size != home.hidden_size:
            raise ValueError(
                f"The pooler must be tanh over {home.hidden_size} channels, got `{home.pooler_act}` over "
                f"{home.pooler_output_size}. Load the folder with transformers' own class."
            )
        settings |= {"pooling": "cls", "use_distillation_token": model_type == "deit"}
    return VisionTransformerConfig(**settings)


def weights_from_home(
    config: VisionTransformerConfig, weights: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a file of one of `MODEL_TYPES` under our names: those of the base model, and those of heads.

    Whether there is a pooler, a mask token and a head for the distillation token only the file tells (models with a head
    mostly have no pooler): `config` is set accordingly, so that no weight is left to chance.

    Args:
        config: from `config_from_home`; its `pooling`, `use_mask_token` and `use_distillation_head` may change.
        weights: by their names in the file.

    Raises:
        ValueError: if a tensor is neither in the tables nor left out for a reason.
    """
    prefix = next((f"{name}." for name in MODEL_TYPES if any(key.startswith(f"{name}.") for key in weights)), "")
    base: dict[str, torch.Tensor] = {}
    of_heads: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        if name.endswith(COMPUTED):
            continue
        if name.startswith(prefix) and (ours := _named(name.removeprefix(prefix))):
            base[ours] = tensor
        elif name.startswith(DECODER_LAYER) and (ours := _named(name.removeprefix("decoder.decoder_"))):
            of_heads[f"pixel_decoder.{ours}"] = tensor
        elif head := next((head for head in HEAD_NAMES if name.startswith(head)), None):
            of_heads[HEAD_NAMES[head] + name.removeprefix(head)] = tensor
        elif not name.startswith(tuple(LEFT_OUT)):
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"Every tensor of a ViT, DeiT, BEiT or ViT-MAE file must have its place, got {len(unknown)} without: "
            f"{', '.join(f'`{name}`' for name in unknown[:5])}. Load the folder with transformers' own class."
        )

    _place_shared_table(config, base)
    if config.pooling in ("cls", "mean") and not any(name.startswith("pooler.") for name in base):
        config.pooling = "none"
    config.use_mask_token = "embeddings.mask_token" in base
    config.use_distillation_head = any(name.startswith("distillation_classifier.") for name in of_heads)
    return base, of_heads


def _named(name: str) -> str | None:
    """Our name for a tensor of the base model, None if it has none."""
    layer = re.search(r"\.layer\.(\d+)\.", name)
    ours = NAMES.get(re.sub(r"\.layer\.\d+\.", ".layer.#.", name))
    return ours.replace("#", layer[1]) if ours and layer else ours


def _place_shared_table(config: VisionTransformerConfig, weights: dict[str, torch.Tensor]) -> None:
    """Give BEiT's table for all layers its place; beside tables of the layers' own, adding it to each is the same."""
    shared = weights.pop("relative_position_biases.shared.table", None)
    if shared is None:
        return
    if config.relative_position_bias == "shared":
        weights["relative_position_biases.0.table"] = shared
        return
    for layer in range(config.num_hidden_layers):
        name = f"relative_position_biases.{layer}.table"
        weights[name] = weights[name] + shared
