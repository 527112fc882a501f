"""Attention within windows of a patch map, shifted by half a window in every second layer.

hidden_states float (batch, rows * columns, hidden_size)
  -> gathered into windows, (windows, window patches, hidden_size)
  -> queries, keys, values of each window, scores + relative position bias (+ mask where a shift joined two borders)
  -> gathered back to their places, (batch, rows * columns, hidden_size)

A shift rolls the map, so that the windows of the last row and of the last column hold patches from opposite borders, which
must not see each other. There are hence four kinds of windows and four masks, whatever the size of the map: the windows are
ordered by kind, and each kind attends with one small bias, broadcast over batch and windows, where the reference builds one
mask for each window of each picture.

Source: Liu et al. 2021, section 3.2, https://arxiv.org/abs/2103.14030
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ...blocks.attention import attention_kernel
from ...blocks.relative_position import RelativePositionBias, relative_position_index


@dataclass(frozen=True)
class WindowLayout:
    """Where the patches of a batch of maps go, and how they come back.

    Attributes:
        order: int64 (batch * padded patches,), the place in the padded maps of each patch of the windows.
        restored: int64 (batch * patches,), the place in the windows of each patch of the maps.
        num_windows: how many windows there are of each kind: plain, last column, last row, corner.
    """

    order: torch.Tensor
    restored: torch.Tensor
    num_windows: tuple[int, ...]


def window_layout(
    batch: int, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> WindowLayout:
    """The layout for `batch` maps of `grid` = (rows, columns) patches; all windows are plain where nothing is shifted.

    Args:
        window: (rows, columns) of a window. A map that is no multiple of it is padded at the bottom and on the right.
        shift: patches, (up, left).
    """
    with torch.inference_mode(False):  # what is kept for later must serve training too
        return _kept_window_layout(batch, grid, window, shift, device)


def _window_layout(
    batch: int, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> WindowLayout:
    rows, columns = padded_size(grid, window)
    down, across = rows // window[0], columns // window[1]  # windows along each axis
    last_rows, last_columns = int(shift[0] > 0), int(shift[1] > 0)  # how many of them hold two borders
    of_a_picture = (
        (down - last_rows) * (across - last_columns),
        (down - last_rows) * last_columns,
        last_rows * (across - last_columns),
        last_rows * last_columns,
    )
    pictures = torch.arange(batch, device=device)[:, None]
    places = torch.arange(rows * columns, device=device).view(rows, columns).roll((-shift[0], -shift[1]), (0, 1))
    places = places.view(down, window[0], across, window[1]).transpose(1, 2)  # (down, across, *window)
    order = torch.cat([(pictures * (rows * columns) + of_kind).flatten() for of_kind in _kinds(places, shift)])
    restored = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    restored = restored.view(batch, rows, columns)[:, : grid[0], : grid[1]].flatten()
    return WindowLayout(order, restored, tuple(batch * count for count in of_a_picture))


def _kinds(windows: torch.Tensor, shift: tuple[int, int]) -> list[torch.Tensor]:
    """Something of each window, (down, across, ...), flattened by kind: plain, last column, last row, corner."""
    down, across = windows.shape[0] - (shift[0] > 0), windows.shape[1] - (shift[1] > 0)
    return [
        part.flatten()
        for of_rows in (windows[:down], windows[down:])
        for part in (of_rows[:, :across], of_rows[:, across:])
    ]


_kept_window_layout = lru_cache(maxsize=16)(_window_layout)


def padded_size(grid: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The least multiple of `window`, (rows, columns), that holds `grid`."""
    return (-(-grid[0] // window[0]) * window[0], -(-grid[1] // window[1]) * window[1])


def shift_masks(window: tuple[int, int], shift: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Which patches of a window may see each other, for each kind of window: bool (4, patches, patches)."""
    rows = torch.arange(window[0], device=device) >= window[0] - shift[0]  # rows that came from the top of the map
    columns = torch.arange(window[1], device=device) >= window[1] - shift[1]
    row = rows.repeat_interleave(window[1])  # (patches,)
    column = columns.repeat(window[0])
    same_row, same_column = row[:, None] == row[None, :], column[:, None] == column[None, :]
    return torch.stack((torch.ones_like(same_row), same_column, same_row, same_row & same_column))


class WindowAttention(nn.Module):
    """Every patch attends to the patches of its window.

    Args:
        config: read for `_attn_implementation` only.
        hidden_size: width of the patches; `num_heads` must divide it.
        window: (rows, columns) of a window. Along an axis on which the map is smaller, the window is the map; where the
            map is no larger than the window along either axis, nothing is shifted, as in the home implementation.
        is_shifted: whether the windows lie half a window further down and right.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        hidden_size: int,
        num_heads: int,
        window: tuple[int, int],
        is_shifted: bool,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_shifted = is_shifted
        self.is_causal = False
        self.dropout = dropout
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.relative_position_bias = RelativePositionBias(window, num_heads, resampling="bicubic")

    def window_and_shift(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of the windows on a map of that size, and how far they are shifted."""
        whole = self.relative_position_bias.window
        window = (min(whole[0], grid[0]), min(whole[1], grid[1]))
        is_shifted = self.is_shifted and grid[0] > whole[0] and grid[1] > whole[1]
        return window, (window[0] // 2, window[1] // 2) if is_shifted else (0, 0)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        grid: tuple[int, int],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix the patches of each window.

        Args:
            hidden_states: float (batch, rows * columns, hidden_size).
            attention_mask: must be None.
            grid: (rows, columns) of the map.
            kwargs: passed to the kernel.

        Returns: float (batch, rows * columns, hidden_size) and the attention weights, float (batch * windows, heads,
            window patches, window patches), the windows of a picture row by row as they lie after the shift; None but
            for the eager kernel.
        """
        assert attention_mask is None
        batch, _, width = hidden_states.shape
        window, shift = self.window_and_shift(grid)
        padded = padded_size(grid, window)
        if padded != grid:
            hidden_states = hidden_states.view(batch, *grid, width)
            hidden_states = nn.functional.pad(
                hidden_states, (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0])
            ).flatten(1, 2)
        if torch.compiler.is_compiling() or self.config._attn_implementation == "eager":
            return self._mix_rolled(hidden_states, grid, window, shift, **kwargs)
        return self._mix_gathered(hidden_states, grid, window, shift, **kwargs)

    def _mix_gathered(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int],
        window: tuple[int, int],
        shift: tuple[int, int],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Windows of one kind after the other: a pass over memory to gather them, one to bring them back."""
        batch, _, width = hidden_states.shape
        layout = window_layout(batch, grid, window, shift, hidden_states.device)
        windows = hidden_states.flatten(0, 1).index_select(0, layout.order).view(-1, window[0] * window[1], width)
        parts = self._project(windows)
        bias = self._bias(window, windows.device)
        if shift == (0, 0):
            mixed, _ = self._attend(*parts, bias, **kwargs)
        else:
            biases = bias.masked_fill(~shift_masks(window, shift, bias.device)[:, None], -torch.inf)
            of_kinds = zip(*(part.split(layout.num_windows) for part in parts), biases[:, None], strict=True)
            mixed = torch.cat([self._attend(*of_kind, **kwargs)[0] for of_kind in of_kinds if len(of_kind[0])])
        mixed = self.o_proj(mixed.reshape(-1, width)).index_select(0, layout.restored)
        return mixed.view(batch, -1, width), None

    def _mix_rolled(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int],
        window: tuple[int, int],
        shift: tuple[int, int],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Windows row by row of each picture, a mask for each: as attention weights are to be read, and as a compiler likes
        it, which fuses a roll into whatever reads it, but not a gather by a table.
        """
        batch, _, width = hidden_states.shape
        rows, columns = padded_size(grid, window)
        down, across, patches = rows // window[0], columns // window[1], window[0] * window[1]
        maps = hidden_states.view(batch, rows, columns, width).roll((-shift[0], -shift[1]), (1, 2))
        windows = maps.view(batch, down, window[0], across, window[1], width).transpose(2, 3)
        bias = self._bias(window, windows.device)
        if shift != (0, 0):
            # Rows of windows that are not the last may mix all rows of patches, and so for columns.
            _, same_column, same_row, _ = shift_masks(window, shift, bias.device)
            is_plain_row = torch.arange(down, device=bias.device)[:, None, None, None] < down - 1
            is_plain_column = torch.arange(across, device=bias.device)[:, None, None] < across - 1
            allowed = (is_plain_row | same_row) & (is_plain_column | same_column)  # (down, across, patches, patches)
            bias = bias.masked_fill(~allowed.flatten(0, 1)[:, None], -torch.inf)  # (windows, heads, patches, patches)
            bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        mixed, weights = self._attend(*self._project(windows.reshape(-1, patches, width)), bias, **kwargs)
        mixed = self.o_proj(mixed.reshape(-1, patches, width))
        mixed = mixed.view(batch, down, across, *window, width).transpose(2, 3).reshape(batch, rows, columns, width)
        mixed = mixed.roll(shift, (1, 2))[:, : grid[0], : grid[1]]
        return mixed.reshape(batch, -1, width), weights

    def _project(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of float (windows, patches, hidden_size): each (windows, heads, patches, head_dim)."""
        projected = self.qkv_proj(windows).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _bias(self, window: tuple[int, int], device: torch.device) -> torch.Tensor:
        """What is added to the scores, float (1, heads, patches, patches); of a smaller window the table's middle."""
        table = self.relative_position_bias
        index = relative_position_index(window, table.window, device=device)
        return table(index)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend = attention_kernel(self, query)  # Liu eq. 4: softmax(q k / sqrt(head_dim) + bias) v
        dropout = self.dropout if self.training else 0.0
        return attend(self, query, key, value, bias.to(query.dtype), dropout=dropout, scaling=self.scaling, **kwargs)
