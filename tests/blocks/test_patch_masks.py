import pytest
import torch

from hf_vlm.blocks.patch_masks import block_patch_mask, num_masked_patches, random_patch_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize(("grid", "ratio", "wanted"), [((14, 14), 0.75, 147), ((14, 14), 0.4, 79), ((2, 5), 0.9, 9)])
def test_number_of_hidden_patches(grid: tuple[int, int], ratio: float, wanted: int) -> None:
    # MAE keeps int(196 * 0.25) = 49 of 196 patches.
    assert num_masked_patches(grid, ratio) == wanted
    for draw in (random_patch_mask, block_patch_mask):
        masks = draw(5, grid, ratio, CPU)
        assert masks.dtype == torch.bool and masks.shape == (5, grid[0] * grid[1])
        assert masks.sum(dim=1).tolist() == [wanted] * 5


def test_at_least_one_patch_is_hidden_and_one_is_seen() -> None:
    assert num_masked_patches((4, 4), 0.001) == 1
    assert num_masked_patches((4, 4), 0.999) == 15


def test_every_patch_is_hidden_as_often() -> None:
    torch.manual_seed(0)
    share = random_patch_mask(4000, (3, 4), 0.5, CPU).float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((12,), 0.5), atol=0.04, rtol=0)


def test_blocks_lie_together() -> None:
    # Neighbours along a row are of one kind in 84 % of the pairs; scattered patches are in 52 %.
    torch.manual_seed(0)
    shares = []
    for draw in (block_patch_mask, random_patch_mask):
        masks = draw(200, (14, 14), 0.4, CPU).view(-1, 14, 14)
        shares.append((masks[:, :, 1:] == masks[:, :, :-1]).float().mean())
    assert shares[0] > 0.75 and abs(shares[1] - (0.4**2 + 0.6**2)) < 0.02
