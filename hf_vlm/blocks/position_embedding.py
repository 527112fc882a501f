"""Learned positions of a patch grid: added, cropped to a part of the canvas, resampled to another grid.

A table is float (1, num_prefix_tokens + rows * columns, hidden_size): first the prefix tokens (CLS, distillation),
which have no place in the picture, then the grid row by row.

Source: Dosovitskiy et al. 2021, sections 3.1 and 3.2 (resampling), https://arxiv.org/abs/2010.11929
"""

import torch
from torch import nn


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
    table: torch.Tensor, grid: tuple[int, int], stored_grid: tuple[int, int], num_prefix_tokens: int
) -> torch.Tensor:
    """The table stretched from `stored_grid` to `grid`, bicubic; the prefix tokens' rows stay as they are.

    Args:
        table: float (1, num_prefix_tokens + stored rows * columns, hidden_size).
        grid, stored_grid: (rows, columns).

    Returns: float (1, num_prefix_tokens + rows * columns, hidden_size).
    """
    if grid == stored_grid:
        return table
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    patches = patches.unflatten(1, stored_grid).permute(0, 3, 1, 2)  # (1, hidden_size, stored rows, stored columns)
    patches = nn.functional.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False)
    patches = patches.to(table.dtype).permute(0, 2, 3, 1).flatten(1, 2)  # (1, rows * columns, hidden_size)
    return torch.cat((prefix, patches), dim=1)
