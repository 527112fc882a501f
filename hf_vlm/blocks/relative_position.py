"""Relative position bias: what attention adds to a score for the way from one patch to another.

A table holds one number a head for every (row, column) offset within a window of patches: float
((2 * rows - 1) * (2 * columns - 1) + extra, heads). BEiT appends three more rows, because its CLS token has no offset:
CLS to patch, patch to CLS, CLS to CLS. Swin has windows without CLS, hence no extra rows.

Source: Liu et al. 2021 (Swin), section 3.2, https://arxiv.org/abs/2103.14030; Bao et al. 2022 (BEiT),
https://arxiv.org/abs/2106.08254
"""

import torch
from torch import nn


def num_relative_offsets(window: tuple[int, int]) -> int:
    """How many different offsets two patches of a (rows, columns) window can have."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def relative_position_index(
    window: tuple[int, int],
    table_window: tuple[int, int] | None = None,
    with_cls: bool = False,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Which row of the table holds the bias from each token to each other.

    Args:
        window: (rows, columns) of patches.
        table_window: window that the table was made for, at least as large; by default the same. A smaller window
            reads the middle of a larger table.
        with_cls: whether a CLS token comes before the patches.

    Returns: int64 (tokens, tokens), query by key.
    """
    rows, columns = window
    table_rows, table_columns = table_window or window
    row = torch.arange(rows, device=device).repeat_interleave(columns)  # (patches,)
    column = torch.arange(columns, device=device).repeat(rows)
    row_offset = row[:, None] - row[None, :] + table_rows - 1  # (patches, patches), at least 0
    column_offset = column[:, None] - column[None, :] + table_columns - 1
    index = row_offset * (2 * table_columns - 1) + column_offset
    if with_cls:
        cls_to_patch = num_relative_offsets((table_rows, table_columns))
        index = nn.functional.pad(index, (0, 0, 1, 0), value=cls_to_patch)
        index = nn.functional.pad(index, (1, 0, 0, 0), value=cls_to_patch + 1)  # patch to CLS
        index[0, 0] = cls_to_patch + 2  # CLS to CLS
    return index


def resample_relative_table(
    table: torch.Tensor, window: tuple[int, int], stored_window: tuple[int, int], mode: str = "bilinear"
) -> torch.Tensor:
    """The table stretched from `stored_window` to `window`; rows beyond the offsets (CLS) stay as they are.

    Args:
        table: float (stored offsets + extra, heads).
        window, stored_window: (rows, columns) of patches.
        mode: how to interpolate: BEiT's home implementation uses `bilinear`, Swin V1's `bicubic`.

    Returns: float (offsets + extra, heads).
    """
    if window == stored_window:
        return table
    num_stored = num_relative_offsets(stored_window)
    offsets, extra = table[:num_stored], table[num_stored:]
    offsets = offsets.unflatten(0, (2 * stored_window[0] - 1, 2 * stored_window[1] - 1))
    offsets = offsets.permute(2, 0, 1)[None].float()  # (1, heads, 2 * rows - 1, 2 * columns - 1)
    size = (2 * window[0] - 1, 2 * window[1] - 1)
    offsets = nn.functional.interpolate(offsets, size=size, mode=mode, align_corners=False)
    return torch.cat((offsets[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype), extra))


class RelativePositionBias(nn.Module):
    """A learned bias for every offset within a window, one table for all heads of a layer.

    Args:
        window: (rows, columns) of patches.
        with_cls: whether the table has BEiT's three rows for a CLS token.
        resampling: how the table is stretched to another window, as in `resample_relative_table`.
    """

    def __init__(
        self, window: tuple[int, int], num_heads: int, with_cls: bool = False, resampling: str = "bilinear"
    ) -> None:
        super().__init__()
        self.window = window
        self.with_cls = with_cls
        self.resampling = resampling
        self.table = nn.Parameter(torch.zeros(num_relative_offsets(window) + 3 * with_cls, num_heads))

    def forward(self, index: torch.Tensor, resampled_to: tuple[int, int] | None = None) -> torch.Tensor:
        """The bias for the tokens of `index`.

        Args:
            index: int64 (tokens, tokens), from `relative_position_index`.
            resampled_to: (rows, columns) that the table is to be stretched to before `index` reads it.

        Returns: float (1, heads, tokens, tokens), contiguous.
        """
        table: torch.Tensor = self.table
        if resampled_to is not None:
            table = resample_relative_table(table, resampled_to, self.window, self.resampling)
        return table[index].permute(2, 0, 1)[None].contiguous()  # as a GPU's fused kernels take it

    @torch.no_grad()
    def resize(self, window: tuple[int, int]) -> None:
        """Stretch the table to another window for good."""
        resampled = resample_relative_table(self.table, window, self.window, self.resampling)
        self.table = nn.Parameter(resampled.clone(), requires_grad=self.table.requires_grad)
        self.window = window
