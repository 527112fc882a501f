"""Oracle: attention over the whole map, with a mask worked out patch by patch from the paper's words."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from hf_vlm.blocks.attention import SelfAttention
from hf_vlm.models.swin.window_attention import WindowAttention, padded_size, window_layout


def attention(window: tuple[int, int], is_shifted: bool, kernel: str = "sdpa", width: int = 8) -> WindowAttention:
    torch.manual_seed(0)
    config = PreTrainedConfig(attn_implementation=kernel)
    layer = WindowAttention(config, hidden_size=width, num_heads=2, window=window, is_shifted=is_shifted).eval()
    torch.nn.init.normal_(layer.relative_position_bias.table)
    return layer


def brute_force(layer: WindowAttention, hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Every patch of the padded map looks for those that it may see: of its shifted window, and not across a border."""
    (rows, columns), shift = layer.relative_position_bias.window, [0, 0]
    window = (min(rows, grid[0]), min(columns, grid[1]))
    if layer.is_shifted and grid[0] > rows and grid[1] > columns:
        shift = [rows // 2, columns // 2]
    height, width = padded_size(grid, window)
    padded = torch.zeros(height, width, hidden.shape[-1])
    padded[: grid[0], : grid[1]] = hidden.view(*grid, -1)
    places = list(itertools.product(range(height), range(width)))

    def window_of(place):
        # Windows begin `shift` further down and right; what lies before the first one is a window of its own.
        return tuple((place[axis] - shift[axis]) // window[axis] for axis in (0, 1))

    heads, head_dim = layer.num_heads, layer.head_dim
    query, key, value = layer.qkv_proj(padded.flatten(0, 1)).chunk(3, dim=-1)
    out = torch.zeros(len(places), hidden.shape[-1])
    for i, place in enumerate(places):
        seen = [j for j, other in enumerate(places) if window_of(other) == window_of(place)]
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = []
            for j in seen:
                down, right = (place[axis] - places[j][axis] for axis in (0, 1))
                row = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
                bias = layer.relative_position_bias.table[row, head]
                scores.append(query[i, part] @ key[j, part] / head_dim**0.5 + bias)
            out[i, part] = torch.stack(scores).softmax(0) @ value[seen][:, part]
    return layer.o_proj(out).view(height, width, -1)[: grid[0], : grid[1]].flatten(0, 1)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((8, 8), (4, 4)),
        ((6, 9), (4, 4)),
        ((4, 9), (4, 4)),
        ((3, 2), (4, 4)),
        ((6, 6), (2, 3)),
        ((5, 7), (3, 3)),
        ((1, 1), (7, 7)),
    ],
)
@torch.no_grad()
def test_every_patch_sees_its_window_only(grid, window, is_shifted, kernel) -> None:
    layer = attention(window, is_shifted, kernel)
    hidden = torch.randn(2, grid[0] * grid[1], 8)
    mixed, weights = layer(hidden, grid=grid)
    for picture in range(2):
        torch.testing.assert_close(mixed[picture], brute_force(layer, hidden[picture], grid), atol=1e-5, rtol=1e-5)
    assert (weights is None) == (kernel == "sdpa")


def test_layout_is_a_permutation_that_comes_back() -> None:
    layout = window_layout(3, (6, 9), (4, 4), (2, 2), torch.device("cpu"))
    assert sorted(layout.order.tolist()) == list(range(3 * 8 * 12))
    restored = layout.order[layout.restored].view(3, 6, 9)
    wanted = torch.arange(3 * 8 * 12).view(3, 8, 12)[:, :6, :9]
    assert torch.equal(restored, wanted)
    assert layout.num_windows == (3 * 1 * 2, 3 * 1 * 1, 3 * 1 * 2, 3 * 1 * 1)


def test_layout_made_for_inference_serves_training() -> None:
    layer = attention((4, 4), True)
    hidden = torch.randn(1, 100, 8)
    with torch.inference_mode():
        layer(hidden, grid=(10, 10))
    mixed, _ = layer(hidden.clone().requires_grad_(), grid=(10, 10))
    mixed.sum().backward()
    assert layer.relative_position_bias.table.grad.abs().sum() > 0


@pytest.mark.parametrize(("rows", "columns", "window", "width"), [(56, 56, 7, 96), (28, 28, 7, 192), (64, 32, 8, 32)])
def test_cost_is_the_papers(rows: int, columns: int, window: int, width: int) -> None:
    """Equations 1 and 2 count multiply-adds; torch's counter counts a multiply and an add each."""
    patches = rows * columns
    config = PreTrainedConfig(attn_implementation="eager")
    hidden = torch.zeros(1, patches, width, device="meta")

    def flops(layer, **arguments) -> int:
        with FlopCounterMode(display=False) as counter:
            layer.eval().to("meta")(hidden, **arguments)
        return counter.get_total_flops()

    whole = SelfAttention(config, hidden_size=width, num_heads=2)
    assert flops(whole) == 2 * (4 * patches * width**2 + 2 * patches**2 * width)
    for is_shifted in (False, True):
        windows = attention((window, window), is_shifted, "eager", width)
        assert flops(windows, grid=(rows, columns)) == 2 * (4 * patches * width**2 + 2 * window**2 * patches * width)
