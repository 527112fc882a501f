import math

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from transformers import ViTConfig, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hf_vlm.blocks.position_embedding import crop_positions, resample_axis, resample_positions, sincos_positions


def test_crop_is_the_top_left_of_the_canvas() -> None:
    table = torch.tensor([[[100.0], [0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]])  # a prefix token, then 2 x 3
    assert crop_positions(table, (2, 2), (2, 3), 1).flatten().tolist() == [100, 0, 1, 10, 11]
    assert crop_positions(table, (1, 3), (2, 3), 1).flatten().tolist() == [100, 0, 1, 2]
    assert crop_positions(table, (2, 3), (2, 3), 1) is table


def test_resampling_keeps_prefix_tokens_and_constant_tables() -> None:
    table = torch.cat((torch.randn(1, 2, 4), torch.full((1, 6, 4), 0.7)), dim=1)
    resampled = resample_positions(table, (4, 5), (2, 3), 2)
    assert resampled.shape == (1, 22, 4)
    assert torch.equal(resampled[:, :2], table[:, :2])
    torch.testing.assert_close(resampled[:, 2:], torch.full((1, 20, 4), 0.7))


def test_resampling_keeps_rows_and_columns_apart() -> None:
    rows = torch.arange(4.0)[:, None].expand(4, 6).reshape(1, 24, 1)  # grows downwards, the same along a row
    resampled = resample_positions(rows, (8, 3), (4, 6), 0).view(8, 3)
    assert torch.all(resampled[1:] > resampled[:-1])
    torch.testing.assert_close(resampled, resampled[:, :1].expand(8, 3))


def test_resampling_to_the_same_grid_is_the_table_itself() -> None:
    table = torch.randn(1, 7, 4)
    assert resample_positions(table, (2, 3), (2, 3), 1) is table


def test_resampling_a_half_precision_table_keeps_its_type() -> None:
    assert resample_positions(torch.randn(1, 6, 4).bfloat16(), (4, 4), (2, 3), 0).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(7, 7), (24, 24), (5, 9)])
def test_antialiased_resampling_is_timms(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + 14 * 14, 8)
    expected = resample_abs_pos_embed(table, grid, old_size=(14, 14), num_prefix_tokens=1)
    got = resample_positions(table, grid, (14, 14), 1, "bicubic_antialias")
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(7, 7), (24, 24), (5, 9)])
def test_bicubic_resampling_is_that_of_transformers(grid: tuple[int, int]) -> None:
    model = ViTModel(ViTConfig(image_size=112, patch_size=8, hidden_size=8, num_hidden_layers=0, num_attention_heads=2))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    height, width = grid[0] * 8, grid[1] * 8
    patches = torch.zeros(1, 1 + grid[0] * grid[1], 8)
    expected = model.embeddings.interpolate_pos_encoding(patches, height, width)
    got = resample_positions(model.embeddings.position_embeddings, grid, (14, 14), 1, "bicubic")
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_linear_resampling_goes_along_the_sequence() -> None:
    # np.interp at the centres of 6 equal parts of a line of 4.
    table = torch.tensor([5.0, 1.0, 2.0, 4.0, 8.0])[None, :, None]
    got = resample_positions(table, (2, 3), (2, 2), 1, "linear_1d").flatten().tolist()
    centres = (np.arange(6) + 0.5) * 4 / 6 - 0.5
    assert got == pytest.approx([5, *np.interp(centres, range(4), [1, 2, 4, 8])])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "bicubic_antialias"])
def test_sum_of_axes_is_resampled_axis_by_axis(mode: str) -> None:
    rows, columns = torch.randn(1, 4, 3), torch.randn(1, 6, 3)

    def both(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return (rows[:, :, None] + columns[:, None]).flatten(1, 2)

    expected = resample_positions(both(rows, columns), (7, 3), (4, 6), 0, mode)
    got = both(resample_axis(rows, 7, mode), resample_axis(columns, 3, mode))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_fixed_positions_are_those_of_mae() -> None:
    rows_first = build_2d_sinusoidal_position_embedding(5, 3, 16, cls_token=True)
    expected = torch.cat((rows_first[:, 8:], rows_first[:, :8]), dim=1)[None]
    torch.testing.assert_close(sincos_positions((5, 3), 1, 16), expected)
    wide = sincos_positions((2, 3), 0, 4)[0]
    assert wide[4].tolist() == pytest.approx([math.sin(1), math.cos(1), math.sin(1), math.cos(1)])  # row 1, column 1
    assert wide[2].tolist() == pytest.approx([math.sin(2), math.cos(2), 0, 1])  # row 0, column 2
