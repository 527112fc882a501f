"""Variational inference: a hard distribution p(z) replaced by an easy one q(z), and how good the exchange is.

Given p(z) = exp(-E(z)) / Z with Z out of reach, every q has

    F(q) = E_q[E(z)] - H[q] = KL(q || p) - log Z >= -log Z        the free energy, an upper bound of -log Z

A variational autoencoder is the case E(z) = -log p(x, z): then Z = p(x), p(z) is the posterior p(z | x), and -F is the evidence
lower bound (ELBO). More samples make the bound tighter; the direction of the KL decides what an imperfect q looks like.

Source: Kingma and Welling 2014, section 2, https://arxiv.org/abs/1312.6114; Blei et al. 2017, section 2,
    https://arxiv.org/abs/1601.00670
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

Nats = TypeVar("Nats", float, torch.Tensor)


def free_energy(
    energy: Callable[[torch.Tensor], torch.Tensor],
    distribution: Distribution,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Monte Carlo estimate of F(q) = E_q[E(z)] - H[q], in nats: float, of q's batch shape.

    F(q) = KL(q || p) - log Z >= -log Z, with equality if and only if q = p; there every single sample gives -log Z, as the
    entropy is estimated from the same samples. An estimate can lie below the bound by chance, its expectation can't.

    Gradients reach q's parameters through the samples where q is reparameterised (`has_rsample`), and elsewhere by the score
    function: unbiased, of higher variance. Source: Mohamed et al. 2020, sections 4 and 5, https://arxiv.org/abs/1906.10652

    Args:
        energy: E(z) of p(z) = exp(-E(z)) / Z, from float (num_samples, *batch_shape, *event_shape) to float
            (num_samples, *batch_shape).
        distribution: q.
        num_samples: how many, 1 or more.
        generator: seeds the samples; by default they come from torch's own.

    Raises:
        ValueError: if there is no sample, or not one energy for each: broadcasting would mix the samples.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be 1 or more, got {num_samples}. One is enough for an unbiased estimate.")
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    # torch's distributions take no generator: where one is given, it seeds torch's own for this draw.
    with torch.random.fork_rng(range(torch.cuda.device_count()), enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        samples = draw(torch.Size([num_samples]))  # (num_samples, *batch_shape, *event_shape)
    log_density, energies = distribution.log_prob(samples), energy(samples)  # (num_samples, *batch_shape)
    if energies.shape != log_density.shape:
        raise ValueError(
            f"`energy` must give one number a sample, shape {tuple(log_density.shape)}, got {tuple(energies.shape)}. Sum over "
            "the axes of a point, and wrap `distribution` in `torch.distributions.Independent` where a point is a vector."
        )
    costs = energies + log_density
    if not distribution.has_rsample:
        # Adds 0, and the gradient that the samples don't carry: E_q[cost * grad log q].
        costs = costs + costs.detach() * (log_density - log_density.detach())
    return costs.mean(dim=0)


def evidence_lower_bound(log_joint: torch.Tensor, log_posterior: torch.Tensor, dim: int) -> torch.Tensor:
    """The ELBO, E_q[log p(x, z) - log q(z | x)], in nats: the mean over samples z of q(z | x).

    log p(x) = ELBO + KL(q(z | x) || p(z | x)): the ELBO is log p(x) where q is the posterior, and less elsewhere.

    Args:
        log_joint, log_posterior: float, log p(x, z) and log q(z | x) of each sample, such as (num_samples, batch).
        dim: the axis of the samples, which the bound is without.

    Raises:
        ValueError: if the shapes differ, or there is no sample.
    """
    if log_joint.shape != log_posterior.shape:
        raise ValueError(
            "`log_joint` and `log_posterior` must be of one shape, one number a sample, got "
            f"{tuple(log_joint.shape)} and {tuple(log_posterior.shape)}. Sum each over the axes of a picture or a latent."
        )
    _check_samples(log_joint, dim)
    return (log_joint - log_posterior).mean(dim)


def importance_weighted_bound(log_weights: torch.Tensor, dim: int) -> torch.Tensor:
    """log((w_1 + ... + w_K) / K), in nats: in expectation log p(x) or less, rising with K; with one sample, the ELBO.

    Args:
        log_weights: float, log w = log p(x, z) - log q(z | x) of K samples z of q(z | x), such as (num_samples, batch).
        dim: the axis of the samples, which the bound is without.

    Raises:
        ValueError: if there is no sample.

    Source: Burda et al. 2016, eq. 8 and theorem 1, https://arxiv.org/abs/1509.00519
    """
    _check_samples(log_weights, dim)
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def trapezoid_weights(grid: torch.Tensor) -> torch.Tensor:
    """Weights (num_points,) by which values at the points of a grid sum to an integral: the trapezoid rule.

    Raises:
        ValueError: if `grid`, float (num_points,), isn't increasing, or has fewer than two points.
    """
    if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()):
        raise ValueError(
            f"`grid` must be two numbers or more, each above the one before, got {grid}. Use `torch.linspace`."
        )
    spacings = grid.diff()
    return (F.pad(spacings, (1, 0)) + F.pad(spacings, (0, 1))) / 2  # half of the spacing on either side


def forward_kl(log_target: torch.Tensor, log_density: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """KL(p || q) by quadrature, in nats, 0 or more: an expectation under the target p, infinite if q misses a part of it.

    The best q covers all of p ("mean-seeking"). Both densities may be unnormalised: each is divided by its own sum over the
    points, so what lies off them does not count.

    Args:
        log_target, log_density: float (..., num_points), log p and log q at each point, -inf where one is 0.
        weights: float (num_points,) above 0, such as `trapezoid_weights(grid)`.

    Returns: float (...).

    Raises:
        ValueError: if shapes differ, a weight isn't above 0, or a density is NaN, infinite, or 0 at every point.

    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 10.1.2
    """
    log_p, log_q = _log_masses(log_target, weights, "log_target"), _log_masses(log_density, weights, "log_density")
    return _kl(log_p, log_q)


def reverse_kl(log_target: torch.Tensor, log_density: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """KL(q || p) by quadrature, in nats: an expectation under q, infinite if q is where the target p is not.

    The best q keeps to one part of p ("mode-seeking"). This is the KL of the free energy and of the ELBO, as only it needs
    neither samples of p nor Z. Arguments, result and errors are those of `forward_kl`.
    """
    log_p, log_q = _log_masses(log_target, weights, "log_target"), _log_masses(log_density, weights, "log_density")
    return _kl(log_q, log_p)


@dataclasses.dataclass(frozen=True)
class GaussianFit:
    """A normal distribution that was fitted: its mean, its standard deviation, and the KL that is left, in nats."""

    mean: float
    deviation: float
    kl_nats: float


def fit_gaussian(
    log_target: Callable[[torch.Tensor], torch.Tensor],
    grid: torch.Tensor,
    direction: Literal["forward", "reverse"],
    start_mean: float,
    start_deviation: float,
    num_steps: int = 200,
) -> GaussianFit:
    """The one-dimensional Gaussian q with the least KL from a target p.

    Forward has a closed form, whatever the start: p's mean and deviation. Reverse is descent (L-BFGS on mean and log
    deviation) to a local minimum: on a target of two modes the one near the start, or from between them neither.

    Args:
        log_target: from points (num_points,) to log p at them, up to a constant.
        grid: float (num_points,), increasing: wide enough for p and q, with several points a deviation.
        direction: `forward` minimises KL(p || q), `reverse` KL(q || p).
        start_mean, start_deviation: on the grid; above 0.
        num_steps: of descent, at most; 1 or more.

    Raises:
        ValueError: if an argument is out of its range, the KL is infinite, or the grid too narrow or coarse for the fit.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"`direction` must be `forward` or `reverse`, got `{direction}`. `reverse` is that of a VAE.")
    points = grid.detach().double()
    weights, log_p = trapezoid_weights(points), log_target(grid.detach()).detach().double()
    if not points[0] <= start_mean <= points[-1] or not 0 < start_deviation < math.inf or num_steps < 1:
        raise ValueError(
            f"A `start_mean` in [{points[0]:g}, {points[-1]:g}], a `start_deviation` above 0 and `num_steps` of 1 or more are "
            f"wanted, got {start_mean}, {start_deviation} and {num_steps}. Start near a mode of the target."
        )
    if direction == "forward":
        masses = _log_masses(log_p, weights, "log_target").exp()
        mean = (masses * points).sum()
        variance = (masses * (points - mean) ** 2).sum()
        fitted = Normal(mean, variance.sqrt().clamp(min=1e-100))  # 0 on a grid that is too coarse, as told below
    else:
        fitted = _descend_reverse_kl(log_p, points, weights, Normal(start_mean, start_deviation), num_steps)
    log_q = fitted.log_prob(points)
    mass = (log_q.exp() * weights).sum().item()
    if not abs(mass - 1) < 0.01:
        raise ValueError(
            f"The fit's mass on `grid` must be 1, got {mass:.3g} by {fitted}. Widen the grid, use more points, or start nearer "
            "to the target."
        )
    kl = (forward_kl if direction == "forward" else reverse_kl)(log_p, log_q, weights)
    return GaussianFit(fitted.mean.item(), fitted.stddev.item(), kl.item())


def _descend_reverse_kl(
    log_p: torch.Tensor, points: torch.Tensor, weights: torch.Tensor, start: Normal, num_steps: int
) -> Normal:
    # In units of the start, so that one size of step is right for targets of any scale.
    shift, log_stretch = (points.new_zeros((), requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([shift, log_stretch], max_iter=num_steps, line_search_fn="strong_wolfe")

    def gaussian() -> Normal:
        return Normal(start.mean + start.stddev * shift, start.stddev * log_stretch.exp())

    def kl_with_gradients() -> torch.Tensor:
        optimizer.zero_grad()
        kl = reverse_kl(log_p, gaussian().log_prob(points), weights)
        if not kl.isfinite():
            raise ValueError(
                f"The reverse KL must be finite, got {kl.item()} by {gaussian()}. Cut `grid` to where the target is above 0, or "
                "start nearer to it."
            )
        kl.backward()
        return kl

    optimizer.step(kl_with_gradients)
    fitted = gaussian()
    return Normal(fitted.mean.detach(), fitted.stddev.detach())


def picture_loss(
    reconstruction_nats: torch.Tensor, kl_nats: torch.Tensor, weight: float | torch.Tensor, num_values: int
) -> torch.Tensor:
    """The loss of a VAE, VQ-VAE or dVAE, (reconstruction + weight * KL) / num_values: a scalar, in nats a pixel value.

    With weight 1 it is the negative ELBO, shared out over a picture's values so that sizes of pictures compare; another
    weight is the beta of beta-VAE. Source: Higgins et al. 2017, eq. 4, https://openreview.net/forum?id=Sy2fzU9gl

    Args:
        reconstruction_nats, kl_nats: float scalars, -log p(x | z) and KL(q(z | x) || p(z)) of a picture, means over pictures.
        weight: of the KL, 0 or more.
        num_values: channels x height x width of a picture.

    Raises:
        ValueError: if a term isn't a scalar, or a picture has no value.
    """
    if reconstruction_nats.ndim or kl_nats.ndim:
        raise ValueError(
            f"`reconstruction_nats` and `kl_nats` must be scalars, got shapes {tuple(reconstruction_nats.shape)} and "
            f"{tuple(kl_nats.shape)}. Sum over a picture, then take the mean over pictures."
        )
    _check_values(num_values)
    if isinstance(weight, torch.Tensor):  # a model's parts may lie on several devices
        weight = weight.to(reconstruction_nats.device)
    # Kingma eq. 3 with the sign turned round; with a weight, Higgins eq. 4; Ramesh eq. 1
    return (reconstruction_nats + weight * kl_nats.to(reconstruction_nats.device)) / num_values


def bits_per_dim(nats: Nats, num_values: int, level_nats: float) -> Nats:
    """(nats / num_values + level_nats) / ln 2: the bits that a pixel value costs, given -log p(x) or a bound on it.

    Args:
        nats: of a whole picture: a number, or float of any shape.
        num_values: channels x height x width of a picture.
        level_nats: ln 255 turns a density over pixel values in [0, 1] into the probability of an 8-bit level, which is 1/255
            wide; 0 for a discrete likelihood.

    Raises:
        ValueError: if a picture has no value.

    Source: Theis et al. 2016, section 3.1, https://arxiv.org/abs/1511.01844
    """
    _check_values(num_values)
    return (nats / num_values + level_nats) / math.log(2)


def _check_samples(values: torch.Tensor, dim: int) -> None:
    if values.shape[dim] < 1:
        raise ValueError(f"One sample or more is wanted along axis {dim}, got shape {tuple(values.shape)}. Draw some.")


def _check_values(num_values: int) -> None:
    if num_values < 1:
        raise ValueError(f"`num_values` must be 1 or more, got {num_values}. Give channels x height x width.")


def _log_masses(log_values: torch.Tensor, weights: torch.Tensor, name: str) -> torch.Tensor:
    """Log of the share of the whole that each point stands for: (..., num_points)."""
    if log_values.shape[-1:] != weights.shape or not bool((weights > 0).all()):
        raise ValueError(
            f"`weights` must be above 0 and one a point, got {tuple(weights.shape)} for `{name}` of {tuple(log_values.shape)}, "
            "or one that is not. Use `trapezoid_weights(grid)`."
        )
    log_masses = (log_values + weights.log()).log_softmax(dim=-1)
    if log_masses.isnan().any():
        raise ValueError(
            f"`{name}` must be below infinity at all points and above -infinity at one, got {log_values}. Give log densities."
        )
    return log_masses


def _kl(log_first: torch.Tensor, log_second: torch.Tensor) -> torch.Tensor:
    masses = log_first.exp()
    # 0 log 0 is 0, and so is its gradient: chosen before the product, not after it.
    return (masses * torch.where(masses > 0, log_first - log_second, 0.0)).sum(dim=-1)
