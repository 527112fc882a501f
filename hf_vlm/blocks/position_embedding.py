"""Positions of a patch grid, learned or fixed: cropped to a part of the canvas, resampled to another grid.

A table is float (1, num_prefix_tokens + rows * columns, hidden_size): first the prefix tokens (CLS, distillation),
which have no place in the picture, then the grid row by row.

Source: Dosovitskiy et al. 2021, sections 3.1 and 3.2 (resampling), https://arxiv.org/abs/2010.11929
"""

from typing import Literal

import torch
from torch import nn

Resampling = Literal["linear_1d", "bilinear", "bicubic", "bicubic_antialias"]


def crop_positions(
    table: torch.Tensor, grid: tuple[int, int], canvas_grid: tuple[int, int], num_prefix_tokens: int
) -> torch.Tensor:
    """The positions of the top-left `grid` of the table's `canvas_grid`.

    Args:
        table: float (1, num_prefix_tokens + canvas rows * columns, hidden_size).
        grid, canvas_grid: (rows, columns); `grid` fits into `canvas_grid`.

    Returns: float (1, num_prefix_tokens + rows * columns, hidden_size).
    """
    if grid == canvas_grid:
        return table
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    patches = patches.unflatten(1, canvas_grid)[:, : grid[0], : grid[1]].flatten(1, 2)
    return torch.cat((prefix, patches), dim=1)


def resample_positions(
    table: torch.Tensor,
    grid: tuple[int, int],
    stored_grid: tuple[int, int],
    num_prefix_tokens: int,
    mode: Resampling = "bicubic",
) -> torch.Tensor:
    """The table stretched from `stored_grid` to `grid`; the prefix tokens' rows stay as they are.

    Args:
        table: float (1, num_prefix_tokens + stored rows * columns, hidden_size).
        grid, stored_grid: (rows, columns).
        mode: `bicubic` as in transformers, `bicubic_antialias` as in timm, `bilinear`, or `linear_1d`: along the
            sequence of patches, row after row, without regard to the grid.

    Returns: float (1, num_prefix_tokens + rows * columns, hidden_size).
    """
    if grid == stored_grid:
        return table
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:].float()
    if mode == "linear_1d":
        patches = nn.functional.interpolate(patches.transpose(1, 2), size=grid[0] * grid[1], mode="linear")
        patches = patches.transpose(1, 2)  # (1, rows * columns, hidden_size)
    else:
        patches = patches.unflatten(1, stored_grid).permute(0, 3, 1, 2)  # (1, hidden_size, stored rows, columns)
        patches = nn.functional.interpolate(
            patches, size=grid, mode=mode.removesuffix("_antialias"), antialias=mode.endswith("_antialias")
        )
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)  # (1, rows * columns, hidden_size)
    return torch.cat((prefix, patches.to(table.dtype)), dim=1)


def resample_axis(positions: torch.Tensor, length: int, mode: Resampling) -> torch.Tensor:
    """Positions along one axis stretched to `length`: what `resample_positions` does to a table of both axes' sums.

    Args:
        positions: float (1, stored length, width).
        mode: any but `linear_1d`.

    Returns: float (1, length, width).
    """
    return resample_positions(positions, (1, length), (1, positions.shape[1]), 0, mode)


def sincos_positions(grid: tuple[int, int], num_prefix_tokens: int, hidden_size: int) -> torch.Tensor:
    """Fixed positions: sines and cosines of the column, then of the row, at hidden_size / 4 frequencies each.

    Args:
        grid: (rows, columns).
        num_prefix_tokens: tokens in front, which have no place: zeros.
        hidden_size: a multiple of 4.

    Returns: float32 (1, num_prefix_tokens + rows * columns, hidden_size).

    Source: Vaswani et al. 2017, section 3.5; on a grid: He et al. 2022 (MAE), whose released weights have the columns first,
        https://arxiv.org/abs/2111.06377
    """
    frequencies = 10000.0 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    waves = []
    for places in (torch.arange(grid[1]).repeat(grid[0]), torch.arange(grid[0]).repeat_interleave(grid[1])):
        angles = places.double()[:, None] * frequencies  # (rows * columns, hidden_size / 4)
        waves += [angles.sin(), angles.cos()]
    patches = torch.cat(waves, dim=1).float()
    return torch.cat((patches.new_zeros(num_prefix_tokens, hidden_size), patches))[None]
