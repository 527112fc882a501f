import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from hf_vlm.blocks.variational import (
    bits_per_dim,
    evidence_lower_bound,
    fit_gaussian,
    forward_kl,
    free_energy,
    importance_weighted_bound,
    picture_loss,
    reverse_kl,
    trapezoid_weights,
)

GRID = torch.linspace(-20, 20, 4001, dtype=torch.float64)


def normal(mean: float, deviation: float) -> Normal:
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64))


def double_well(z: torch.Tensor) -> torch.Tensor:
    return z**4 / 4 - 2 * z**2 + z / 2


def two_modes(share: float, deviation: float = 0.5) -> MixtureSameFamily:
    """A mixture of Gaussians around -3 and 3, the latter with `share`."""
    means, deviations = torch.tensor([-3.0, 3.0]).double(), torch.full((2,), deviation).double()
    return MixtureSameFamily(Categorical(torch.tensor([1 - share, share]).double()), Normal(means, deviations))


class LinearGaussian:
    """z ~ N(0, 1), x | z ~ N(2 z + 1, 0.5), seen at x = 2.2: evidence and posterior are Gaussian."""

    x = torch.tensor(2.2, dtype=torch.float64)
    log_evidence = normal(1.0, math.sqrt(2**2 + 0.5**2)).log_prob(x)
    posterior = normal(float(x - 1) * 2 / 0.25 / (1 + 4 / 0.25), math.sqrt(1 / (1 + 4 / 0.25)))

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        return normal(0.0, 1.0).log_prob(z) + Normal(2 * z + 1, 0.5).log_prob(self.x)


def test_free_energy_of_the_target_itself_is_minus_log_z_for_each_sample() -> None:
    covariance = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]]).double()
    mean, precision = torch.tensor([1.0, -2.0, 3.0]).double(), covariance.inverse()
    log_z = 1.5 * math.log(2 * math.pi) + covariance.logdet() / 2
    for _ in range(5):
        one = free_energy(
            lambda z: ((z - mean) @ precision * (z - mean)).sum(-1) / 2, MultivariateNormal(mean, covariance), 1
        )
        torch.testing.assert_close(one, -log_z)


def test_free_energy_is_minus_log_z_and_the_kl_to_a_gaussian() -> None:
    q = normal(0.5, 0.7)
    got = free_energy(lambda z: (z - 1) ** 2 / 8, q, 200_000, torch.Generator().manual_seed(0))
    log_z = math.log(2 * math.sqrt(2 * math.pi))
    assert got.item() == pytest.approx(kl_divergence(q, normal(1.0, 2.0)).item() - log_z, abs=0.01)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-2.0, 0.5), (2.0, 0.3), (0.0, 3.0)])
def test_free_energy_of_a_double_well_is_above_minus_log_z_by_the_kl(mean: float, deviation: float) -> None:
    q = normal(mean, deviation)
    log_z = (-double_well(GRID)).exp().sum().log() + math.log(0.01)
    density = q.log_prob(GRID)
    kl = (density.exp() * (density + double_well(GRID) + log_z)).sum() * 0.01
    got = free_energy(double_well, q, 400_000, torch.Generator().manual_seed(0))
    assert got > -log_z
    torch.testing.assert_close(got + log_z, kl, rtol=0.02, atol=0)


def test_descent_on_the_free_energy_ends_at_minus_log_z() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_deviation = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    wanted = Independent(Normal(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])), 1)
    log_z = 4.2
    optimizer = torch.optim.Adam([mean, log_deviation], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    losses = []
    for _ in range(300):
        q = Independent(Normal(mean, log_deviation.exp()), 1)
        loss = free_energy(lambda z: -wanted.log_prob(z) - log_z, q, 32, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[0] > -log_z + 5
    assert losses[-1] == pytest.approx(-log_z, abs=0.02)
    assert [*mean.tolist(), *log_deviation.exp().tolist()] == pytest.approx([2, -1, 0.5, 3], abs=0.1)


def test_free_energy_of_a_discrete_q_has_the_exact_sums_value_and_gradient() -> None:
    energies = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    logits = torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(0)
    exact = (log_q.exp() * (energies + log_q)).sum()
    got = free_energy(lambda z: energies[z], Categorical(logits=logits), 400_000, torch.Generator().manual_seed(0))
    assert got.item() == pytest.approx(exact.item(), abs=0.01)
    (wanted,), (gradient,) = torch.autograd.grad(exact, logits), torch.autograd.grad(got, logits)
    torch.testing.assert_close(gradient, wanted, atol=0.01, rtol=0)


def test_free_energy_draws_by_the_generator_and_leaves_torchs_own_alone() -> None:
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = (free_energy(double_well, normal(0.0, 1.0), 4, generator) for _ in range(2))
    assert first != second
    assert first == free_energy(double_well, normal(0.0, 1.0), 4, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    free_energy(double_well, normal(0.0, 1.0), 4)
    assert not torch.equal(torch.get_rng_state(), state)


def test_elbo_and_kl_to_the_posterior_sum_to_the_evidence() -> None:
    model, q = LinearGaussian(), normal(0.2, 0.4)
    noise = torch.randn(50, 3, dtype=torch.float64)
    noise = (noise - noise.mean(0)) / noise.std(0, correction=0)  # a quadratic in it has its exact expectation
    z = q.mean + q.stddev * noise
    elbo = evidence_lower_bound(model.log_joint(z), q.log_prob(z), dim=0)
    assert elbo.shape == (3,)
    torch.testing.assert_close(elbo + kl_divergence(q, model.posterior), model.log_evidence.expand(3))


def test_bounds_by_the_posterior_itself_are_the_evidence() -> None:
    model = LinearGaussian()
    z = model.posterior.sample((4, 3))
    log_joint, log_posterior = model.log_joint(z), model.posterior.log_prob(z)
    torch.testing.assert_close(evidence_lower_bound(log_joint, log_posterior, 1), model.log_evidence.expand(4))
    torch.testing.assert_close(importance_weighted_bound(log_joint - log_posterior, 1), model.log_evidence.expand(4))


def test_importance_weighted_bound_rises_from_the_elbo_to_the_evidence() -> None:
    torch.manual_seed(0)
    model, q = LinearGaussian(), normal(0.2, 0.4)
    z = q.sample((1 << 18,))
    log_joint, log_posterior = model.log_joint(z), q.log_prob(z)
    log_weights = log_joint - log_posterior
    means = [importance_weighted_bound(log_weights.view(-1, k), dim=1).mean() for k in (1, 2, 8, 64, 1024)]
    assert all(low < high for low, high in zip(means, means[1:], strict=False))
    torch.testing.assert_close(means[0], evidence_lower_bound(log_joint, log_posterior, dim=0))
    assert means[-2] < model.log_evidence
    assert means[-1].item() == pytest.approx(model.log_evidence.item(), abs=0.01)


def test_importance_weighted_bound_survives_large_weights() -> None:
    log_weights = torch.tensor([-5000.0, -5000.0 + math.log(3.0)], dtype=torch.float64)
    assert importance_weighted_bound(log_weights, 0).item() == pytest.approx(-5000 + math.log(2))


def test_trapezoid_weights_integrate_on_an_uneven_grid() -> None:
    assert trapezoid_weights(torch.tensor([0.0, 1.0, 3.0, 3.5])).tolist() == [0.5, 1.5, 1.25, 0.25]
    uneven = GRID.sign() * GRID**2 / 20
    torch.testing.assert_close((uneven.cos() * trapezoid_weights(uneven)).sum(), torch.trapezoid(uneven.cos(), uneven))


def test_kl_on_a_grid_is_the_closed_form_of_two_gaussians() -> None:
    p, q = normal(-1.0, 0.8), normal(0.5, 1.7)
    uneven = GRID.sign() * GRID**2 / 20
    for grid in (GRID, uneven):
        log_p, log_q, weights = p.log_prob(grid) + 7, q.log_prob(grid) - 3, trapezoid_weights(grid)  # unnormalised
        torch.testing.assert_close(forward_kl(log_p, log_q, weights), kl_divergence(p, q), rtol=1e-3, atol=0)
        torch.testing.assert_close(reverse_kl(log_p, log_q, weights), kl_divergence(q, p), rtol=1e-3, atol=0)


def test_kl_where_a_density_is_zero() -> None:
    half, full = torch.tensor([0.0, 0.0, -math.inf, -math.inf]), torch.zeros(4, requires_grad=True)
    assert forward_kl(half, full, torch.ones(4)).item() == pytest.approx(math.log(2))
    assert reverse_kl(half, full, torch.ones(4)).item() == math.inf
    (gradient,) = torch.autograd.grad(forward_kl(half, full, torch.ones(4)), full)
    assert gradient.tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])  # q - p
    third = torch.tensor([0.0, math.log(2.0), -1e4, -1e4], requires_grad=True)  # exp of it is 0 where `half` is
    kl = reverse_kl(half, third, torch.ones(4))
    assert kl.item() == pytest.approx(math.log(2 / 3) + 2 / 3 * math.log(2))
    kl.backward()
    slope = 2 / 9 * math.log(2)  # q_1 q_2 log(q_2 / q_1)
    assert third.grad.tolist() == pytest.approx([-slope, slope, 0, 0])


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_forward_fit_has_the_moments_of_both_modes(share: float) -> None:
    target = two_modes(share)
    fit = fit_gaussian(lambda z: target.log_prob(z) + 7, GRID, "forward", 2.0, 1.0)
    assert (fit.mean, fit.deviation) == pytest.approx((target.mean.item(), target.stddev.item()), abs=1e-6)

    def kl(mean: float, deviation: float) -> float:
        log_p = target.log_prob(GRID)
        return (log_p.exp() * (log_p - normal(mean, deviation).log_prob(GRID))).sum().item() * 0.01

    assert fit.kl_nats == pytest.approx(kl(fit.mean, fit.deviation), abs=1e-6)
    for mean, deviation in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert kl(fit.mean + mean, fit.deviation + deviation) > fit.kl_nats


@pytest.mark.parametrize(("start", "share_there"), [(-1.0, 0.8), (2.0, 0.2)])
def test_reverse_fit_sits_on_the_mode_near_the_start(start: float, share_there: float) -> None:
    fit = fit_gaussian(two_modes(0.2).log_prob, GRID, "reverse", start, 1.0)
    assert (fit.mean, fit.deviation) == pytest.approx((math.copysign(3, start), 0.5), abs=1e-3)
    assert fit.kl_nats == pytest.approx(-math.log(share_there), abs=1e-3)


def test_reverse_fit_from_between_two_modes_is_a_worse_minimum() -> None:
    fit = fit_gaussian(two_modes(0.5).log_prob, GRID, "reverse", 0.0, 1.0)
    assert fit.mean == pytest.approx(0, abs=1e-3)
    assert fit.kl_nats > 2 * math.log(2)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_fit_of_a_gaussian_is_itself_at_any_scale(direction: str, scale: float) -> None:
    target = normal(1.5 * scale, 0.5 * scale)
    with torch.no_grad():
        fit = fit_gaussian(target.log_prob, GRID.float() * scale, direction, 0.0, scale)
    assert (fit.mean / scale, fit.deviation / scale, fit.kl_nats) == pytest.approx((1.5, 0.5, 0), abs=1e-4)


def test_picture_loss_and_bits_by_hand() -> None:
    # 120 nats and 2 x 30 nats over 3 x 2 x 2 values; 12 values of 8 bits, all levels as likely.
    loss = picture_loss(torch.tensor(120.0), torch.tensor(30.0, requires_grad=True), 2.0, 12)
    assert loss.item() == pytest.approx(15.0)
    loss.backward()
    assert bits_per_dim(12 * 8 * math.log(2), 12, 0.0) == pytest.approx(8)
    # A density of 1 over [0, 1] makes a level 1/255 likely.
    assert bits_per_dim(0.0, 12, math.log(255)) == pytest.approx(math.log2(255))
    of_two = bits_per_dim(torch.tensor([0.0, 12 * math.log(2)]), 12, math.log(255))
    assert of_two.tolist() == pytest.approx([math.log2(255), math.log2(255) + 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: free_energy(double_well, normal(0.0, 1.0), 0), "`num_samples` must be 1 or more, got 0"),
        (lambda: free_energy(lambda z: z.sum(-1), Normal(torch.zeros(2), 1.0), 5), r"shape \(5, 2\), got \(5,\)"),
        (lambda: evidence_lower_bound(torch.zeros(4, 2), torch.zeros(2), 0), r"got \(4, 2\) and \(2,\)"),
        (lambda: evidence_lower_bound(torch.zeros(0, 2), torch.zeros(0, 2), 0), r"along axis 0, got shape \(0, 2\)"),
        (lambda: importance_weighted_bound(torch.zeros(2, 0), -1), r"along axis -1, got shape \(2, 0\)"),
        (lambda: trapezoid_weights(torch.tensor([0.0, 1.0, 1.0])), "each above the one before"),
        (lambda: trapezoid_weights(torch.tensor([0.0])), "two numbers or more"),
        (lambda: forward_kl(torch.zeros(4), torch.zeros(4), torch.ones(3)), r"`weights` .* got \(3,\)"),
        (lambda: forward_kl(torch.zeros(4), torch.zeros(4), torch.tensor([1.0, 1, 1, 0])), "`weights` must be above 0"),
        (lambda: reverse_kl(torch.full((4,), -math.inf), torch.zeros(4), torch.ones(4)), "`log_target` must be below"),
        (lambda: reverse_kl(torch.zeros(2), torch.tensor([0.0, math.nan]), torch.ones(2)), "`log_density` must be"),
        (lambda: fit_gaussian(torch.cos, GRID, "both", 0.0, 1.0), "`forward` or `reverse`, got `both`"),
        (lambda: fit_gaussian(torch.cos, GRID.flip(0), "forward", 0.0, 1.0), "each above the one before"),
        (lambda: fit_gaussian(torch.cos, GRID, "forward", 21.0, 1.0), r"in \[-20, 20\].*got 21.0, 1.0 and 200"),
        (lambda: fit_gaussian(torch.cos, GRID, "forward", 0.0, 0.0), "above 0 .* got 0.0, 0.0"),
        (lambda: fit_gaussian(torch.cos, GRID, "forward", 0.0, 1.0, 0), "`num_steps` of 1 or more"),
        (lambda: fit_gaussian(lambda z: (z.abs() < 1).log(), GRID, "reverse", 0.0, 1.0), "reverse KL must be finite, got inf"),
        (lambda: fit_gaussian(torch.zeros_like, GRID, "forward", 0.0, 1.0), "Widen the grid"),
        (lambda: fit_gaussian(normal(0.105, 0.001).log_prob, GRID[::20], "reverse", 0.1, 0.2), "use more points"),
        (lambda: fit_gaussian(lambda z: (z.abs() < 0.005).log(), GRID, "forward", 0.0, 1.0), "use more points"),
        (lambda: picture_loss(torch.zeros(2), torch.tensor(0.0), 1.0, 12), r"scalars, got shapes \(2,\) and \(\)"),
        (lambda: picture_loss(torch.tensor(0.0), torch.tensor(0.0), 1.0, 0), "`num_values` must be 1 or more, got 0"),
        (lambda: bits_per_dim(1.0, 0, 0.0), "`num_values` must be 1 or more, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
