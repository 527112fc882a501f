"""Which patches of a picture are hidden for masked pre-training: scattered, or whole blocks.

A mask is bool (batch, rows * columns), True for hidden patches; every picture of a batch hides the same number.

Source: He et al. 2022 (MAE), section 3, https://arxiv.org/abs/2111.06377; Bao et al. 2022 (BEiT), algorithm 1,
https://arxiv.org/abs/2106.08254
"""

import math

import torch

_SMALLEST_BLOCK = 16  # patches (BEiT, algorithm 1), on grids where as many are to be hidden
_FLATTEST_BLOCK = 0.3  # height / width


def num_masked_patches(grid: tuple[int, int], ratio: float) -> int:
    """How many patches of a (rows, columns) grid are hidden: at least one, and at least one is left.

    Raises:
        ValueError: if there is only one patch.
    """
    num_patches = grid[0] * grid[1]
    if num_patches < 2:
        raise ValueError(
            f"Two patches or more are wanted to hide some, got {grid[0]} x {grid[1]}. Use smaller patches."
        )
    # What is left is rounded down, as MAE's code has it; the small term undoes binary fractions such as 1 - 0.9.
    return min(max(num_patches - int(num_patches * (1 - ratio) + 1e-9), 1), num_patches - 1)


def random_patch_mask(batch: int, grid: tuple[int, int], ratio: float, device: torch.device) -> torch.Tensor:
    """Hidden patches scattered over each picture.

    Args:
        grid: (rows, columns).
        ratio: share of the patches to hide, in (0, 1).

    Returns: bool (batch, rows * columns).
    """
    num_hidden = num_masked_patches(grid, ratio)
    order = torch.rand(batch, grid[0] * grid[1], device=device).argsort(dim=1)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :num_hidden], True)


def block_patch_mask(batch: int, grid: tuple[int, int], ratio: float, device: torch.device) -> torch.Tensor:
    """Hidden patches in rectangles of random size and shape, laid over each other until enough are hidden.

    Of the last rectangle only as many patches are hidden as are still wanted, drawn at random.

    Args and returns: as `random_patch_mask`.
    """
    rows, columns = grid
    num_hidden = num_masked_patches(grid, ratio)
    masks = torch.zeros(batch, rows, columns, dtype=torch.bool)
    for mask in masks:
        while (missing := num_hidden - int(mask.sum())) > 0:
            draws = torch.rand(4).tolist()
            smallest = min(_SMALLEST_BLOCK, missing)
            area = smallest + draws[0] * (missing - smallest)
            aspect = math.exp(
                (2 * draws[1] - 1) * -math.log(_FLATTEST_BLOCK)
            )  # log-uniform: lying as often as standing
            height = min(max(round(math.sqrt(area * aspect)), 1), rows)
            width = min(max(round(math.sqrt(area / aspect)), 1), columns)
            top, left = int(draws[2] * (rows - height + 1)), int(draws[3] * (columns - width + 1))
            block = torch.zeros_like(mask)
            block[top : top + height, left : left + width] = True
            new = (block & ~mask).nonzero()
            new = new[torch.randperm(len(new))[:missing]]
            mask[new[:, 0], new[:, 1]] = True
    return masks.flatten(1).to(device)
