"""Swin folders of the home implementation (microsoft/swin-*), and the authors' `.pth` files -> ours.

The tables say it all: each setting, and each tensor's name in the file.
"""

import math
import re
from collections.abc import Mapping

import torch
from transformers import AutoConfig

from ...blocks.patch_embed import as_pair
from ...blocks.relative_position import num_relative_offsets
from .configuration_swin import SwinTransformerConfig

# Settings that mean the same, theirs -> ours.
SETTINGS = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_attention_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_dropout",
    "drop_path_rate": "drop_path_rate",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "num_channels": "num_channels",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "use_absolute_embeddings": "use_absolute_positions",
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
}

# Names in the home implementation's files, after the prefix `swin.` is taken off, -> ours. `#` stands for a stage's number,
# then a layer's. Of the queries', keys' and values' projections ours is one.
HOME_NAMES = {
    "embeddings.patch_embeddings.projection.weight": "embeddings.patch_embedding.projection.weight",
    "embeddings.patch_embeddings.projection.bias": "embeddings.patch_embedding.projection.bias",
    "embeddings.norm.weight": "embeddings.norm.weight",
    "embeddings.norm.bias": "embeddings.norm.bias",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "encoder.layers.#.blocks.#.layernorm_before.weight": "stages.#.layers.#.attention_norm.weight",
    "encoder.layers.#.blocks.#.layernorm_before.bias": "stages.#.layers.#.attention_norm.bias",
    "encoder.layers.#.blocks.#.attention.self.query.weight": "stages.#.layers.#.attention.qkv_proj.weight 0",
    "encoder.layers.#.blocks.#.attention.self.query.bias": "stages.#.layers.#.attention.qkv_proj.bias 0",
    "encoder.layers.#.blocks.#.attention.self.key.weight": "stages.#.layers.#.attention.qkv_proj.weight 1",
    "encoder.layers.#.blocks.#.attention.self.key.bias": "stages.#.layers.#.attention.qkv_proj.bias 1",
    "encoder.layers.#.blocks.#.attention.self.value.weight": "stages.#.layers.#.attention.qkv_proj.weight 2",
    "encoder.layers.#.blocks.#.attention.self.value.bias": "stages.#.layers.#.attention.qkv_proj.bias 2",
    "encoder.layers.#.blocks.#.attention.self.relative_position_bias_table": (
        "stages.#.layers.#.attention.relative_position_bias.table"
    ),
    "encoder.layers.#.blocks.#.attention.output.dense.weight": "stages.#.layers.#.attention.o_proj.weight",
    "encoder.layers.#.blocks.#.attention.output.dense.bias": "stages.#.layers.#.attention.o_proj.bias",
    "encoder.layers.#.blocks.#.layernorm_after.weight": "stages.#.layers.#.mlp_norm.weight",
    "encoder.layers.#.blocks.#.layernorm_after.bias": "stages.#.layers.#.mlp_norm.bias",
    "encoder.layers.#.blocks.#.intermediate.dense.weight": "stages.#.layers.#.mlp.fc1.weight",
    "encoder.layers.#.blocks.#.intermediate.dense.bias": "stages.#.layers.#.mlp.fc1.bias",
    "encoder.layers.#.blocks.#.output.dense.weight": "stages.#.layers.#.mlp.fc2.weight",
    "encoder.layers.#.blocks.#.output.dense.bias": "stages.#.layers.#.mlp.fc2.bias",
    "encoder.layers.#.downsample.norm.weight": "stages.#.merging.norm.weight",
    "encoder.layers.#.downsample.norm.bias": "stages.#.merging.norm.bias",
    "encoder.layers.#.downsample.reduction.weight": "stages.#.merging.reduction.weight",
    "layernorm.weight": "final_norm.weight",
    "layernorm.bias": "final_norm.bias",
}

# Names in the authors' files -> ours.
ORIGINAL_NAMES = {
    "patch_embed.proj.weight": "embeddings.patch_embedding.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.projection.bias",
    "patch_embed.norm.weight": "embeddings.norm.weight",
    "patch_embed.norm.bias": "embeddings.norm.bias",
    "absolute_pos_embed": "embeddings.position_embedding",
    "layers.#.blocks.#.norm1.weight": "stages.#.layers.#.attention_norm.weight",
    "layers.#.blocks.#.norm1.bias": "stages.#.layers.#.attention_norm.bias",
    "layers.#.blocks.#.attn.qkv.weight": "stages.#.layers.#.attention.qkv_proj.weight",
    "layers.#.blocks.#.attn.qkv.bias": "stages.#.layers.#.attention.qkv_proj.bias",
    "layers.#.blocks.#.attn.relative_position_bias_table": "stages.#.layers.#.attention.relative_position_bias.table",
    "layers.#.blocks.#.attn.proj.weight": "stages.#.layers.#.attention.o_proj.weight",
    "layers.#.blocks.#.attn.proj.bias": "stages.#.layers.#.attention.o_proj.bias",
    "layers.#.blocks.#.norm2.weight": "stages.#.layers.#.mlp_norm.weight",
    "layers.#.blocks.#.norm2.bias": "stages.#.layers.#.mlp_norm.bias",
    "layers.#.blocks.#.mlp.fc1.weight": "stages.#.layers.#.mlp.fc1.weight",
    "layers.#.blocks.#.mlp.fc1.bias": "stages.#.layers.#.mlp.fc1.bias",
    "layers.#.blocks.#.mlp.fc2.weight": "stages.#.layers.#.mlp.fc2.weight",
    "layers.#.blocks.#.mlp.fc2.bias": "stages.#.layers.#.mlp.fc2.bias",
    "layers.#.downsample.norm.weight": "stages.#.merging.norm.weight",
    "layers.#.downsample.norm.bias": "stages.#.merging.norm.bias",
    "layers.#.downsample.reduction.weight": "stages.#.merging.reduction.weight",
    "norm.weight": "final_norm.weight",
    "norm.bias": "final_norm.bias",
}

# Heads beside the base model, by the start of the name in the file.
HEADS = {
    "classifier.": "classifier.output_layer.",
    "head.": "classifier.output_layer.",  # the authors' files
    "hidden_states_norms.": "feature_norms.",
}
# What is left out, by the start or the end of the name in the file.
LEFT_OUT = ("decoder.", "embeddings.mask_token")  # head of masked image modelling
COMPUTED = ("relative_position_index", "attn_mask")  # buffers
# Names that give other families away, which look alike from afar.
OTHER_FAMILIES = {
    r"logit_scale|cpb_mlp|continuous_position_bias_mlp": "Swin V2",
    r"^head\.fc\.|^layers\.\d+\.downsample\.\d": "timm's Swin",
    r"^blocks\.\d+\.attn\.": "timm's ViT",
    r"^(\w+\.)?encoder\.layer\.\d+\.": "ViT",
    r"^(\w+\.)?(encoder\.)?stages\.\d+\.": "ConvNeXt or the like",
}


def config_from_home(config: dict) -> SwinTransformerConfig | None:
    """Our settings for a `config.json` of model type `swin`; None for other model types."""
    if config.get("model_type") != "swin":
        return None
    home = AutoConfig.for_model(**config)  # fills in what an old file leaves to the defaults
    settings = {ours: getattr(home, theirs) for theirs, ours in SETTINGS.items()}
    return SwinTransformerConfig(**settings, out_features=home.out_features)


def config_from_original(weights: Mapping[str, torch.Tensor]) -> SwinTransformerConfig:
    """Our settings for the authors' files, which bring none: all that matters is in the tensors' shapes.

    The picture's size, which only absolute positions depend on, is that of the masks in the file, or of a smaller table; 224
    where there is neither.

    Raises:
        ValueError: if the tensors are of another family, or don't fit each other.
    """
    _refuse_other_families(weights)
    try:
        patches = weights["patch_embed.proj.weight"]
        depths: list[int] = []
        while f"layers.{len(depths)}.blocks.0.norm1.weight" in weights:
            stage = f"layers.{len(depths)}.blocks."
            depths.append(1 + max(int(name.split(".")[3]) for name in weights if name.startswith(stage)))
        tables = [weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))]
        mlp_ratio = len(weights["layers.0.blocks.0.mlp.fc1.weight"]) / len(patches)
        norm = weights["norm.weight"]
        _ = tables[0]
    except (KeyError, IndexError, ValueError) as error:
        missing = error if isinstance(error, KeyError) else "layers"
        raise ValueError(
            f"A Swin file of its authors must hold {missing}, got {len(weights)} tensors without it, such as "
            f"{', '.join(f'`{name}`' for name in list(weights)[:3])}. Load it with the class of its own family."
        ) from error
    window = (math.isqrt(len(tables[0])) + 1) // 2
    if num_relative_offsets((window, window)) != len(tables[0]) or len(norm) != len(patches) * 2 ** (len(depths) - 1):
        raise ValueError(
            f"The bias table of a window of n x n patches must have (2n - 1)^2 rows, got {len(tables[0])}; the last "
            f"stage must be {len(patches) * 2 ** (len(depths) - 1)} wide, got {len(norm)}. The file is not a Swin V1."
        )
    patch_size = (patches.shape[2], patches.shape[3])
    grid = 224 // patch_size[0]
    masks = weights.get("layers.0.blocks.1.attn_mask")
    if "absolute_pos_embed" in weights:
        grid = math.isqrt(weights["absolute_pos_embed"].shape[1])
    elif masks is not None:
        grid = math.isqrt(len(masks)) * window
    else:  # a stage whose map is smaller than the window has a smaller table
        clamped = next((stage for stage, table in enumerate(tables) if len(table) < len(tables[0])), None)
        if clamped is not None:
            grid = (math.isqrt(len(tables[clamped])) + 1) // 2 * 2**clamped
    settings = {}
    if "head.weight" in weights:
        settings["num_labels"] = len(weights["head.weight"])
    return SwinTransformerConfig(
        embed_dim=len(patches),
        depths=depths,
        num_attention_heads=[table.shape[1] for table in tables],
        window_size=window,
        mlp_ratio=mlp_ratio,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in weights,
        num_channels=patches.shape[1],
        patch_size=patch_size if patch_size[0] != patch_size[1] else patch_size[0],
        image_size=grid * patch_size[0],
        use_absolute_positions="absolute_pos_embed" in weights,
        **settings,
    )


def weights_from_elsewhere(
    config: SwinTransformerConfig, weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a Swin folder or of an authors' file under our names: those of the base model, and those of heads.

    Raises:
        ValueError: if a tensor is neither in a table nor left out for a reason, or a bias table has another size than
            the config's window.
    """
    _refuse_other_families(weights)
    names = ORIGINAL_NAMES if "patch_embed.proj.weight" in weights else HOME_NAMES
    base: dict[str, torch.Tensor] = {}
    of_heads: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    unknown = []
    for name, tensor in weights.items():
        own_name = name.removeprefix("swin.")
        if name.endswith(COMPUTED) or own_name.startswith(LEFT_OUT):
            continue
        numbers = re.findall(r"\.(\d+)(?=\.)", own_name)
        ours = names.get(re.sub(r"\.\d+(?=\.)", ".#", own_name))
        if ours is not None:
            for number in numbers:
                ours = ours.replace("#", number, 1)
            whole, _, part = ours.partition(" ")
            if part:
                thirds.setdefault(whole, {})[int(part)] = tensor
            else:
                base[whole] = tensor
            continue
        head = next((head for head in HEADS if name.startswith(head)), None)
        if head is None:
            unknown.append(name)
        else:
            of_heads[HEADS[head] + name.removeprefix(head)] = tensor
    if unknown:
        raise ValueError(
            f"Every tensor of a Swin file must have its place, got {len(unknown)} without: "
            f"{', '.join(f'`{name}`' for name in unknown[:5])}. Load it with the class of its own family."
        )
    for whole, parts in thirds.items():
        if len(parts) < 3:
            raise ValueError(
                f"Queries, keys and values must all be in a Swin file, got {len(parts)} of them for `{whole}`. Copy or "
                "download it again."
            )
        base[whole] = torch.cat([parts[part] for part in sorted(parts)])
    for name, tensor in base.items():
        if name.endswith("relative_position_bias.table"):
            base[name] = _fitted_table(name, tensor, config)
    return base, of_heads


def _fitted_table(name: str, table: torch.Tensor, config: SwinTransformerConfig) -> torch.Tensor:
    """A bias table for the config's window.

    The authors' code makes a smaller table where a stage's map is smaller than the window; ours reads the middle of a
    whole one there, so that is where it goes.
    """
    rows, columns = as_pair(config.window_size)
    wanted = num_relative_offsets((rows, columns))
    if len(table) == wanted:
        return table
    side, heads = math.isqrt(len(table)), table.shape[-1]
    merged = as_pair(config.patch_size)[0] * 2 ** int(name.split(".")[1])  # pixels along a patch of that stage
    map_side = -(-as_pair(config.image_size)[0] // merged)
    if map_side >= rows or rows != columns or len(table) != num_relative_offsets((map_side, map_side)):
        raise ValueError(
            f"`{name}` must have {wanted} rows for windows of {rows} x {columns} patches, got {len(table)}. Give the "
            "`window_size` that the weights were trained with; change it afterwards with `resize(window_size=...)`."
        )
    whole = table.new_zeros(2 * rows - 1, 2 * columns - 1, heads)
    top, left = (2 * rows - 1 - side) // 2, (2 * columns - 1 - side) // 2
    whole[top : top + side, left : left + side] = table.view(side, side, heads)
    return whole.flatten(0, 1)


def _refuse_other_families(weights: Mapping[str, torch.Tensor]) -> None:
    for pattern, family in OTHER_FAMILIES.items():
        found = next((name for name in weights if re.search(pattern, name)), None)
        if found is not None:
            raise ValueError(
                f"Weights of Swin V1, in the layout of its authors or of transformers, are wanted, got those of {family}: "
                f"a tensor is named `{found}`. Load them with their own class."
            )
