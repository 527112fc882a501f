import torch

from hf_vlm.blocks.position_embedding import crop_positions, resample_positions


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
