"""ViT, DeiT and BEiT folders of the home implementation (google/vit-*, facebook/deit-*, microsoft/beit-*) -> ours.

The tables say it all: each setting, and each tensor's name in the file.
"""

import re

import torch
from transformers import AutoConfig

from .configuration_vit import VisionTransformerConfig

MODEL_TYPES = ("vit", "deit", "beit")

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

# What is left out, by the start of the name in the file, and why.
LEFT_OUT = {
    "classifier.": "classification head",
    "cls_classifier.": "classification head",
    "distillation_classifier.": "classification head",
    "decoder.": "head of masked image modelling (pixels)",
    "lm_head.": "head of masked image modelling (visual words)",
    "layernorm.": "norm of the masked image modelling head, beside the base model",
    "decode_head.": "segmentation head",
    "auxiliary_head.": "segmentation head",
    "fpn": "segmentation head",
}
# A buffer of older BEiT files.
COMPUTED = "relative_position_index"


def config_from_home(config: dict) -> VisionTransformerConfig | None:
    """Our settings for a ViT, DeiT or BEiT `config.json`; None for other model types.

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
    else:
        if home.pooler_act != "tanh" or home.pooler_output_size != home.hidden_size:
            raise ValueError(
                f"The pooler must be tanh over {home.hidden_size} channels, got `{home.pooler_act}` over "
                f"{home.pooler_output_size}. Load the folder with transformers' own class."
            )
        settings |= {"pooling": "cls", "use_distillation_token": model_type == "deit"}
    return VisionTransformerConfig(**settings)


def weights_from_home(config: VisionTransformerConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a ViT, DeiT or BEiT file under our names.

    Whether there is a pooler and a mask token only the file tells (models with a head mostly have none of the former):
    `config` is set accordingly, so that no weight is left to chance.

    Args:
        config: from `config_from_home`; its `pooling` and `use_mask_token` may change.
        weights: by their names in the file.

    Raises:
        ValueError: if a tensor is neither in the table nor left out for a reason.
    """
    prefix = next((f"{name}." for name in MODEL_TYPES if any(key.startswith(f"{name}.") for key in weights)), "")
    ours: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        if name.endswith(COMPUTED):
            continue
        if name.startswith(prefix):
            layer = re.search(r"\.layer\.(\d+)\.", name)
            pattern = re.sub(r"\.layer\.\d+\.", ".layer.#.", name.removeprefix(prefix))
            if pattern in NAMES:
                ours[NAMES[pattern].replace("#", layer[1] if layer else "#")] = tensor
                continue
        if not name.startswith(tuple(LEFT_OUT)):
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"Every tensor of a ViT, DeiT or BEiT file must have its place, got {len(unknown)} without: "
            f"{', '.join(f'`{name}`' for name in unknown[:5])}. Load the folder with transformers' own class."
        )

    _place_shared_table(config, ours)
    if config.pooling in ("cls", "mean") and not any(name.startswith("pooler.") for name in ours):
        config.pooling = "none"
    config.use_mask_token = "embeddings.mask_token" in ours
    return ours


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
