import pytest
import torch

from hf_vlm.blocks.relative_position import (
    RelativePositionBias,
    num_relative_offsets,
    relative_position_index,
    resample_relative_table,
)


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 4)])
def test_tokens_share_a_row_of_the_table_exactly_if_their_offsets_agree(window: tuple[int, int]) -> None:
    rows, columns = window
    index = relative_position_index(window)
    row_of_offset: dict[tuple[int, int], int] = {}
    for query in range(rows * columns):
        for key in range(rows * columns):
            offset = (query // columns - key // columns, query % columns - key % columns)
            assert row_of_offset.setdefault(offset, int(index[query, key])) == int(index[query, key])
    assert sorted(row_of_offset.values()) == list(range(num_relative_offsets(window)))


def test_cls_token_has_three_rows_of_its_own() -> None:
    index = relative_position_index((2, 2), with_cls=True)
    assert index[0].tolist() == [11, 9, 9, 9, 9]  # CLS to CLS, CLS to patches
    assert index[:, 0].tolist() == [11, 10, 10, 10, 10]  # patches to CLS
    assert torch.equal(index[1:, 1:], relative_position_index((2, 2)))


@pytest.mark.parametrize("with_cls", [False, True])
def test_smaller_window_reads_the_same_bias_as_that_part_of_the_larger(with_cls: bool) -> None:
    bias = RelativePositionBias((3, 4), num_heads=2, with_cls=with_cls)
    torch.nn.init.normal_(bias.table)
    full = bias(relative_position_index((3, 4), with_cls=with_cls))
    part = bias(relative_position_index((2, 3), (3, 4), with_cls=with_cls))
    tokens = [4 * row + column + with_cls for row in range(2) for column in range(3)]
    tokens = [0, *tokens] if with_cls else tokens
    assert part.shape == (1, 2, len(tokens), len(tokens))
    assert torch.equal(part, full[:, :, tokens][:, :, :, tokens])


def test_resampling_keeps_the_rows_of_the_cls_token_and_the_centre() -> None:
    table = torch.randn(num_relative_offsets((3, 3)) + 3, 2)
    resampled = resample_relative_table(table, (5, 4), (3, 3))
    assert resampled.shape == (num_relative_offsets((5, 4)) + 3, 2)
    assert torch.equal(resampled[-3:], table[-3:])
    centre, stored_centre = num_relative_offsets((5, 4)) // 2, num_relative_offsets((3, 3)) // 2
    torch.testing.assert_close(resampled[centre], table[stored_centre])  # offset (0, 0) stays offset (0, 0)


def test_resampling_keeps_rows_and_columns_apart() -> None:
    table = torch.arange(5.0)[:, None].expand(5, 3).reshape(15, 1)  # window 3 x 2, grows with the row offset only
    resampled = resample_relative_table(table, (4, 3), (3, 2)).view(7, 5)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(7, 5))
    assert torch.all(resampled[1:] > resampled[:-1])


def test_resize_equals_resampling_at_run_time() -> None:
    bias = RelativePositionBias((3, 3), num_heads=2, with_cls=True)
    torch.nn.init.normal_(bias.table)
    index = relative_position_index((2, 5), with_cls=True)
    expected = bias(index, resampled_to=(2, 5))
    bias.resize((2, 5))
    assert bias.window == (2, 5)
    assert torch.equal(bias(index), expected)


def test_bias_is_contiguous_as_fused_kernels_of_a_gpu_need_it() -> None:
    assert RelativePositionBias((2, 3), num_heads=2)(relative_position_index((2, 3))).is_contiguous()
