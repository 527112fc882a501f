"""Our Swin transformer as transformers' own."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel

from hf_vlm.blocks.patch_embed import as_pair
from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.modeling_swin import (
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
    merged_grid,
)
from hf_vlm.models.swin.weights_swin import SETTINGS, weights_from_elsewhere
from hf_vlm.sharing.stock.pictures import stock_image_processor
from hf_vlm.sharing.stock.weights import Tensors, fill_stock, output_difference

CLASSES: dict[Any, Any] = {
    SwinTransformerModel: SwinModel,
    SwinTransformerForImageClassification: SwinForImageClassification,
    SwinTransformerBackbone: SwinBackbone,
}


def to_stock(model: Any) -> tuple[PreTrainedModel, list[str]]:
    """Transformers' Swin of the same mathematics, weights in it, in the dtype of ours.

    Args:
        model: one of our three: features, classes, feature maps.

    Returns: that model in evaluation mode; notes, what came out in another form.

    Raises:
        ValueError: if there is none; it names the setting.
    """
    config = model.config
    stock_class = next(stock for own, stock in CLASSES.items() if isinstance(model, own))
    _check(config, model, stock_class.__name__)
    settings = {theirs: getattr(config, ours) for theirs, ours in SETTINGS.items()}
    settings["window_size"] = as_pair(config.window_size)[0]
    for name in ("image_size", "patch_size"):
        height, width = as_pair(settings[name])
        settings[name] = height if height == width else [height, width]
    stock = stock_class(SwinConfig(**settings, out_features=list(config.out_features))).to(model.dtype).eval()
    reading_config = copy.deepcopy(config)

    def read(weights: Tensors) -> Tensors:
        return type(model).place_weights(*weights_from_elsewhere(reading_config, weights))

    fill_stock(stock, model.state_dict(), read)
    notes = []
    if config.drop_path_rate:
        notes.append("in training, drop path acts on the attention's branch alone, where ours acts on the MLP's too")
    return stock, notes


def to_stock_processor(processor: Any, model: Any) -> tuple[Any, list[str]]:
    """Transformers' image processor of the same pixels; see `stock_image_processor`."""
    return stock_image_processor(processor)


@torch.no_grad()
def largest_difference(model: Any, stock: Any) -> float:
    """The largest difference of what both make of two random pictures, as `output_difference` counts it.

    Args:
        model, stock: in fp32, in evaluation mode.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, config.num_channels, *as_pair(config.image_size), generator=generator)
    ours, theirs = model(pixels), stock(pixels)
    if isinstance(model, SwinTransformerBackbone):
        return max(output_difference(*pair) for pair in zip(ours.feature_maps, theirs.feature_maps, strict=True))
    names = ("logits",) if hasattr(ours, "logits") else ("last_hidden_state", "pooler_output")
    return max(output_difference(ours[name], theirs[name]) for name in names)


def _check(config: SwinTransformerConfig, model: Any, stock_class: str) -> None:
    """Checks that transformers' class can compute what the config says."""
    do = "`hf-vlm export-code` carries the model as it is."
    rows, columns = as_pair(config.window_size)
    if rows != columns:
        raise ValueError(
            f"`window_size` must be a square for transformers' `{stock_class}`, got {rows} x {columns} patches. {do}"
        )
    grid = model.base_model.embeddings.grid_size(*as_pair(config.image_size))
    for stage in range(len(config.depths)):
        if min(grid) < rows:
            raise ValueError(
                f"`window_size` must be at most a stage's map for transformers' `{stock_class}`, which fails where a picture "
                f"is smaller, got {rows} for {grid[0]} x {grid[1]} patches in stage {stage + 1}, at pictures of "
                f"{config.image_size} pixels. {do}"
            )
        grid = merged_grid(grid)
    if stock_class == "SwinForImageClassification" and config.num_linear_layers != 1:
        raise ValueError(
            f"`num_linear_layers` must be 1 for transformers' `{stock_class}`, got {config.num_linear_layers}. {do}"
        )
