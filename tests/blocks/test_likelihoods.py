import math
from typing import get_args

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Distribution,
    Laplace,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
)

from hf_vlm.blocks.likelihoods import LikelihoodName, PixelLikelihood, map_pixels, unmap_pixels

SCALED = ["gaussian", "laplace", "logit_laplace"]
SCALE_KINDS = ["fixed", "shared", "predicted"]


def oracle(name: str, location: torch.Tensor, log_scale: torch.Tensor | float) -> Distribution:
    location, scale = location.double(), torch.as_tensor(log_scale).double().exp()
    if name == "gaussian":
        return Normal(location, scale)
    laplace = Laplace(location, scale)
    if name == "laplace":
        return laplace
    return TransformedDistribution(laplace, [SigmoidTransform(), AffineTransform(-0.125, 1.25)])


@pytest.mark.parametrize("scale_kind", SCALE_KINDS)
@pytest.mark.parametrize("name", SCALED)
def test_log_prob_equals_torch_distributions(name: LikelihoodName, scale_kind: str) -> None:
    likelihood = PixelLikelihood(name, 3, scale=0.3, scale_kind=scale_kind)
    assert likelihood.num_maps == (6 if scale_kind == "predicted" else 3)
    maps, pixel_values = torch.randn(2, likelihood.num_maps, 4, 5), torch.rand(2, 3, 4, 5)
    log_scale = math.log(0.3) + (maps[:, 3:] if scale_kind == "predicted" else 0.0)
    got = likelihood(maps).log_prob(pixel_values)
    wanted = oracle(name, maps[:, :3], log_scale).log_prob(pixel_values.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale_kind", SCALE_KINDS)
def test_bernoulli_log_prob_is_that_of_each_level_weighted_by_grey(scale_kind: str) -> None:
    likelihood = PixelLikelihood("bernoulli", 3, scale_kind=scale_kind)
    assert likelihood.num_maps == 3 and not list(likelihood.parameters())
    maps, grey = 3 * torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    p = maps.double().sigmoid()
    for pixel_values in (grey, grey.round()):
        wanted = pixel_values * p.log() + (1 - pixel_values) * (1 - p).log()
        torch.testing.assert_close(likelihood(maps).log_prob(pixel_values).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (1.7, 0.4), (-4.0, 0.1), (0.5, 0.02)])
def test_logit_laplace_has_the_mass_of_the_pixel_range(location: float, scale: float) -> None:
    likelihood = PixelLikelihood("logit_laplace", 1, scale=scale)
    pixel_values = torch.linspace(0, 1, 20_001)
    density = likelihood(torch.full((1, 1, 1, 20_001), location)).log_prob(pixel_values).exp().flatten().double()
    mass = torch.trapezoid(density, dx=1 / 20_000)
    base = Laplace(torch.tensor(location).double(), scale)
    wanted = base.cdf(torch.tensor(math.log(9)).double()) - base.cdf(torch.tensor(-math.log(9)).double())
    torch.testing.assert_close(mass, wanted, rtol=1e-4, atol=1e-6)
    assert mass < 1 + 1e-4


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_mode_is_the_likeliest_value(name: LikelihoodName) -> None:
    pixels = PixelLikelihood(name, 3, scale=0.2)(torch.randn(2, 3, 4, 5))
    for step in (-1e-2, 1e-2):
        assert (pixels.log_prob(pixels.mode) > pixels.log_prob(pixels.mode + step)).all()


def test_bernoulli_mode_is_the_probability_of_one() -> None:
    pixels = PixelLikelihood("bernoulli", 1)(torch.tensor([-math.log(3), 0.0, math.log(9)]).view(1, 1, 1, 3))
    torch.testing.assert_close(pixels.mode.flatten(), torch.tensor([0.25, 0.5, 0.9]))


def test_logit_laplace_mode_is_the_median_cut_to_pixels() -> None:
    location = torch.tensor([-9.0, -2.0, 0.3, 2.0, 9.0])
    mode = PixelLikelihood("logit_laplace", 1, scale=0.7)(location.view(1, 1, 1, 5)).mode.flatten()
    assert mode[0] == 0 and mode[4] == 1
    below = oracle("logit_laplace", location, math.log(0.7)).cdf(mode.double())
    torch.testing.assert_close(below[1:4], torch.full((3,), 0.5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_samples_follow_torch_distributions(name: LikelihoodName) -> None:
    number, location, log_scale = 100_000, 0.3, -1.0
    maps = torch.tensor([location, log_scale]).view(1, 2, 1, 1).expand(1, 2, 1, number)
    samples = PixelLikelihood(name, 1, scale_kind="predicted")(maps).sample().flatten()
    distribution = oracle(name, torch.tensor(location), log_scale)
    for value in (0.0, 0.1, 0.3, 0.5, 0.8, 0.999):
        share = distribution.cdf(torch.tensor(value).double()).item()
        seen = (samples <= value).double().mean().item()  # at 0, of logit_laplace: all that is cut
        assert abs(seen - share) < 5 * math.sqrt(share * (1 - share) / number), value
    if name == "logit_laplace":
        assert samples.min() == 0 and samples.max() == 1
    else:
        assert samples.mean().item() == pytest.approx(location, abs=5 * distribution.stddev.item() / math.sqrt(number))
        assert samples.std().item() == pytest.approx(distribution.stddev.item(), rel=0.02)


def test_bernoulli_samples_are_zeros_and_ones_of_the_right_share() -> None:
    samples = PixelLikelihood("bernoulli", 1)(torch.full((1, 1, 100, 1000), math.log(3))).sample()
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert samples.mean().item() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 100_000))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_shared_scale_learns_the_spread_of_the_residuals(name: LikelihoodName) -> None:
    likelihood = PixelLikelihood(name, 1, scale=0.5, scale_kind="shared")
    assert list(likelihood.state_dict()) == ["log_scale"]
    residuals = 0.1 * torch.randn(1, 1, 50, 50)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-likelihood(torch.zeros_like(residuals)).log_prob(residuals).mean()).backward()
        optimizer.step()
    wanted = residuals.pow(2).mean().sqrt() if name == "gaussian" else residuals.abs().mean()  # maximum likelihood
    torch.testing.assert_close(likelihood.log_scale.detach().exp(), wanted, rtol=1e-2, atol=0)


def test_fixed_scale_has_no_parameters_and_predicted_scale_none_of_its_own() -> None:
    for scale_kind in ("fixed", "predicted"):
        assert not PixelLikelihood("gaussian", 1, scale_kind=scale_kind).state_dict()


@pytest.mark.parametrize("name", get_args(LikelihoodName))
def test_large_half_precision_maps_give_finite_log_probs_and_gradients(name: LikelihoodName) -> None:
    likelihood = PixelLikelihood(name, 2, scale_kind="predicted")
    maps = torch.tensor([6e4, -6e4, 6e4, -6e4]).half()[: likelihood.num_maps].view(1, -1, 1, 1).requires_grad_()
    for value in (0.0, 1.0):
        log_prob = likelihood(maps).log_prob(torch.full((1, 2, 1, 1), value).half())
        assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), maps)
        assert not gradient.isnan().any()


@pytest.mark.parametrize("name", get_args(LikelihoodName))
def test_half_precision_pixels_are_compared_in_fp32(name: LikelihoodName) -> None:
    pixels = PixelLikelihood(name, 2, scale=0.1)(torch.randn(1, 2, 8, 8))
    pixel_values = torch.rand(1, 2, 8, 8).bfloat16()
    torch.testing.assert_close(pixels.log_prob(pixel_values), pixels.log_prob(pixel_values.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bernoulli", "logit_laplace"])
@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_pixels_outside_the_domain_raise(name: LikelihoodName, value: float) -> None:
    likelihood = PixelLikelihood(name, 1)
    pixel_values = torch.rand(1, 1, 2, 2)
    likelihood.check_domain(pixel_values.round())
    pixel_values[0, 0, 1, 1] = value
    with pytest.raises(
        ValueError, match=rf"in \[0, 1\] for the likelihood `{name}`, got .*{value}.*\. Use the model's"
    ):
        likelihood.check_domain(pixel_values)
    PixelLikelihood("gaussian", 1).check_domain(pixel_values)
    PixelLikelihood("laplace", 1).check_domain(pixel_values)


@pytest.mark.parametrize("name", SCALED)
def test_level_nats_make_a_density_the_probability_of_a_level(name: LikelihoodName) -> None:
    likelihood = PixelLikelihood(name, 1, scale=0.5)
    location, value, half_level = torch.tensor(0.2), torch.tensor(0.6), 0.5 / 255
    nats = -likelihood(location.view(1, 1, 1, 1)).log_prob(value).double().squeeze() + likelihood.level_nats
    distribution = oracle(name, location, math.log(0.5))
    mass = distribution.cdf(value.double() + half_level) - distribution.cdf(value.double() - half_level)
    torch.testing.assert_close(nats, -mass.log(), rtol=0, atol=1e-3)
    assert PixelLikelihood("bernoulli", 1).level_nats == 0


def test_pixel_map_goes_to_its_inner_range_and_back() -> None:
    pixel_values = torch.linspace(0, 1, 256)
    mapped = map_pixels(pixel_values)
    torch.testing.assert_close(mapped[[0, -1]], torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(unmap_pixels(mapped), pixel_values)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
