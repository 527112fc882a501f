import math

import pytest
import torch

from hf_vlm.blocks.rounding import RoundedLevels


def test_codes_are_counted_like_digits_the_last_coordinate_fastest() -> None:
    grid = RoundedLevels([3, 2, 4])
    assert (grid.num_codes, grid.code_dim) == (24, 3)
    far = 20.0  # tanh of it is 1
    third = math.atanh(1 / 3)
    latents = torch.tensor(
        [
            [-far, -far, -far],
            [-far, -far, far],
            [-far, far, -far],
            [0.0, -far, -far],
            [far, far, third],
            [0, far, -third],
        ]
    )
    latents = latents.view(3, 2, 3)
    discrete = grid(latents)
    assert discrete.code_ids.tolist() == [[0, 3], [4, 8], [16 + 4 + 2, 8 + 4 + 1]]
    wanted = torch.tensor([[-1, -1, -1], [-1, -1, 1], [-1, 1, -1], [0, -1, -1], [1, 1, 1 / 3], [0, 1, -1 / 3]])
    torch.testing.assert_close(discrete.quantized, wanted.view(3, 2, 3))


@pytest.mark.parametrize("levels", [[2], [2, 2, 2, 2], [3, 2, 4], [8, 5], [7, 3, 2]])
def test_every_code_is_reached_and_looked_up_as_its_own_point(levels: list[int]) -> None:
    grid = RoundedLevels(levels)
    axes = [torch.linspace(-1, 1, size).clamp(-0.999, 0.999).atanh() for size in levels]
    latents = torch.cartesian_prod(*axes).view(-1, len(levels))  # the last coordinate fastest
    discrete = grid(latents)
    assert torch.equal(discrete.code_ids, torch.arange(math.prod(levels)))
    points = grid.lookup(discrete.code_ids)
    assert torch.equal(points, discrete.quantized)
    assert len(points.unique(dim=0)) == grid.num_codes
    assert points.amin() == -1 and points.amax() == 1


def test_codes_are_those_of_the_nearest_point_to_tanh() -> None:
    grid = RoundedLevels([4, 5, 2])
    latents = 1.5 * torch.randn(200, 3)
    points = torch.cartesian_prod(*(torch.linspace(-1, 1, size, dtype=torch.float64) for size in (4, 5, 2)))
    nearest = (latents.double().tanh()[:, None] - points).square().sum(-1).argmin(1)
    discrete = grid(latents)
    assert torch.equal(discrete.code_ids, nearest)
    assert torch.equal(grid.lookup(discrete.code_ids), discrete.quantized)
    distances = (latents.double().tanh() - points[nearest]).square().mean()
    torch.testing.assert_close(discrete.commitment_loss.double(), distances)
    assert discrete.codebook_loss == 0


def test_two_levels_are_the_bits_of_the_signs() -> None:
    latents = torch.randn(5, 4, 6)
    discrete = RoundedLevels([2] * 6)(latents)
    assert torch.equal(discrete.quantized, latents.sign())
    bits = [int("".join("1" if value > 0 else "0" for value in vector), 2) for vector in latents.flatten(0, 1)]
    assert discrete.code_ids.flatten().tolist() == bits


def test_gradient_of_quantized_is_that_of_tanh() -> None:
    latents = torch.randn(7, 3, requires_grad=True)
    gradient = torch.randn(7, 3)
    (got,) = torch.autograd.grad(RoundedLevels([4, 3, 2])(latents).quantized, latents, gradient)
    torch.testing.assert_close(got, gradient / latents.detach().cosh() ** 2)


def test_commitment_loss_draws_latents_to_their_points() -> None:
    latents = torch.tensor([[math.atanh(0.4)], [math.atanh(0.9)]], requires_grad=True)
    (gradient,) = torch.autograd.grad(RoundedLevels([3])(latents).commitment_loss, latents)
    assert gradient[0] > 0 and gradient[1] < 0  # 0.4 to 0, 0.9 to 1


def test_half_precision_latents_give_fp32_points() -> None:
    latents = torch.randn(50, 2).half()
    discrete = RoundedLevels([40, 40])(latents)
    assert discrete.quantized.dtype == torch.float32
    assert torch.equal(discrete.code_ids, RoundedLevels([40, 40])(latents.float()).code_ids)


def test_grid_has_no_state() -> None:
    assert not RoundedLevels([4, 4]).state_dict()


def test_channels_first_latents_raise() -> None:
    with pytest.raises(ValueError, match=r"channels-last with 3 channels, got shape \(2, 3, 5, 5\)\. Move"):
        RoundedLevels([4, 4, 4])(torch.randn(2, 3, 5, 5))
