"""What a vision transformer looks at: its attention laid over the picture's patches, and its relative position biases.

A map tells where information is taken from, not why: a bright patch need not have decided anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vlm.blocks.relative_position import RelativePositionBias, num_relative_offsets
from hf_vlm.parts.vision_features import configured_image_size, describe_vision_model, vision_features


class NoAttentionMapError(ValueError):
    """A model whose attention can't be laid over the picture."""


@dataclass
class AttentionMaps:
    """Where a vision transformer looks, patch by patch, row by row.

    With a CLS token a map is the attention that this token pays to the patches, without one the attention that each patch
    receives, averaged over the patches that look. Prefix tokens are not shown, so that a map may sum to less than 1.

    Attributes:
        heads: float (batch, layers, heads, rows, columns), in [0, 1], 0 on padding.
        rollout: float (batch, rows, columns), in [0, 1], 0 on padding; see `attention_rollout`.
        real: bool (batch, rows, columns), False for padding.
        is_from_cls: whether the CLS token is the one that looks.
    """

    heads: torch.Tensor
    rollout: torch.Tensor
    real: torch.Tensor
    is_from_cls: bool

    def real_grid(self, index: int = 0) -> tuple[int, int]:
        """(rows, columns) of one picture of the batch, padding, which is right of and below it, left out."""
        real = self.real[index]
        return int(real.any(dim=1).sum()), int(real.any(dim=0).sum())


def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much of each input token is in each output token, if attention and the residual branch count half each.

    Args:
        attentions: float (batch, heads, tokens, tokens) a layer, query by key, the first layer first.

    Returns: float (batch, tokens, tokens), output by input; rows sum to 1.

    Source: Abnar & Zuidema 2020, section 3, https://arxiv.org/abs/2005.00928
    """
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    rollout = identity.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        mixed = 0.5 * (attention.float().mean(dim=1) + identity)  # (batch, tokens, tokens)
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    return rollout


@torch.no_grad()
def attention_maps(
    model: PreTrainedModel, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
) -> AttentionMaps:
    """Where a vision model looks in each picture.

    The model runs with the eager kernel, the only one that tells its attention, and gets its own back afterwards. All
    layers' attention is held in memory: 4 bytes * layers * heads * tokens^2 a picture.

    Args:
        model: a vision model of the Hub or ours, in evaluation mode.
        pixel_values: float (batch, channels, height, width).
        pixel_mask: int64 (batch, height, width), 0 for padding right of and below the picture.

    Raises:
        NoAttentionMapError: if the model has no attention between all patches, such as Swin, which attends in windows.
        ValueError: if the pictures don't suit the model.
    """
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    layout = describe_vision_model(model.config, size)
    attentions, mask = _attentions(model, pixel_values, pixel_mask)
    # YOLOS puts questions about objects behind the patches
    num_tokens = layout.num_tokens + getattr(model.config, "num_detection_tokens", 0)
    shapes = {tuple(attention.shape) for attention in attentions}
    if [(shape[0], *shape[2:]) for shape in shapes] != [(len(pixel_values), num_tokens, num_tokens)]:
        told = f"attention of shape {', '.join(map(str, sorted(shapes)))}" if shapes else "none that it tells of"
        raise NoAttentionMapError(
            f"Attention to all {num_tokens} tokens of a picture in every layer is wanted, got {told} from "
            f"`{model.config.model_type}`. Use a vision transformer such as ViT, DeiT, BEiT, DINOv2, SigLIP or CLIP, or, for "
            "its relative position biases alone, Swin."
        )
    patches = slice(layout.num_prefix_tokens, layout.num_tokens)
    is_from_cls = getattr(model.config, "use_cls_token", layout.num_prefix_tokens > 0)  # ours may have registers only
    if getattr(model.config, "pooling", None) == "mean" or getattr(model.config, "use_mean_pooling", False):
        is_from_cls = False  # BEiT's answer comes from the mean of the patches
    real = pixel_values.new_ones(len(pixel_values), layout.num_tokens).bool() if mask is None else mask
    real = real[:, patches]  # (batch, rows * columns)

    def over_picture(attention: torch.Tensor) -> torch.Tensor:
        """Float (batch, ..., tokens, tokens) -> (batch, ..., rows, columns)."""
        weights = real.float().view(len(real), *[1] * (attention.dim() - 3), -1)
        if is_from_cls:
            received = attention[..., 0, patches]
        else:
            shares = weights / weights.sum(dim=-1, keepdim=True)
            received = (shares[..., None, :] @ attention[..., patches, patches].float())[..., 0, :]
        return (received * weights).unflatten(-1, layout.grid)

    return AttentionMaps(
        heads=torch.stack([over_picture(attention) for attention in attentions], dim=1),
        rollout=over_picture(attention_rollout(attentions)),
        real=real.unflatten(-1, layout.grid),
        is_from_cls=is_from_cls,
    )


def _attentions(
    model: PreTrainedModel, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Attention of every layer that tells it, and bool (batch, tokens), which tokens are real, or None for all."""
    outputs: list[Any] = []
    kernel = model.config._attn_implementation
    resized = tuple(pixel_values.shape[-2:]) != configured_image_size(model.config)
    watch = model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        model.set_attn_implementation({"": "eager"})  # a backbone within keeps its own
        seen = vision_features(
            model,
            pixel_values,
            pixel_mask,
            interpolate_pos_encoding=resized and pixel_mask is None,
            output_attentions=True,
        )
    finally:
        watch.remove()
        model.set_attn_implementation({"": kernel})
    attentions = getattr(outputs[-1], "attentions", None) or ()
    return [attention for attention in attentions if attention is not None], seen.mask


def bias_maps(model: nn.Module) -> dict[str, torch.Tensor]:
    """The relative position biases of a model by the name of their module: ours, and those of the Hub's Swin and BEiT.

    Returns: float (heads, 2 * rows - 1, 2 * columns - 1) a table, for a window of rows x columns patches. The middle is
        what a patch's score for itself is changed by; `dy` rows below and `dx` columns right of it is what its score for
        the patch at that place is changed by. BEiT's three numbers for the CLS token are left out.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RelativePositionBias):
            table, window = module.table, module.window
        elif isinstance(getattr(module, "relative_position_bias_table", None), nn.Parameter):
            table, window = module.relative_position_bias_table, module.window_size
        else:
            continue
        offsets = table.detach().float()[: num_relative_offsets(window)]
        offsets = offsets.unflatten(0, (2 * window[0] - 1, 2 * window[1] - 1)).permute(2, 0, 1)
        found[name] = offsets.flip(1, 2)  # tables count from the patch looked at to the one that looks
    return found
