import pytest
import torch
from torch.distributions import Normal, kl_divergence

from hf_vlm.blocks.gaussian import DiagonalGaussian

MEAN = torch.tensor([[0.0, -1.5, 3.0], [0.2, 8.0, -0.01]])
LOG_VARIANCE = torch.tensor([[0.0, 1.5, -4.0], [-12.0, 6.0, 0.3]])


def oracle(mean: torch.Tensor, log_variance: torch.Tensor) -> Normal:
    return Normal(mean.double(), (log_variance.double() / 2).exp())


def test_kl_equals_torch_distributions() -> None:
    got = DiagonalGaussian(MEAN, LOG_VARIANCE).kl_from_standard_normal()
    standard = Normal(torch.zeros(2, 3).double(), torch.ones(2, 3).double())
    torch.testing.assert_close(got.double(), kl_divergence(oracle(MEAN, LOG_VARIANCE), standard), rtol=1e-5, atol=1e-6)


def test_kl_is_never_negative_near_the_standard_normal() -> None:
    log_variance = torch.linspace(-1e-3, 1e-3, 10_001)
    kl = DiagonalGaussian(torch.zeros_like(log_variance), log_variance).kl_from_standard_normal()
    assert kl.min() == 0  # rounding of exp(v) - 1 - v leaves less than nothing
    torch.testing.assert_close(kl.double(), log_variance.double() ** 2 / 4, rtol=0, atol=1e-9)


def test_log_prob_equals_torch_distributions() -> None:
    values = torch.randn(5, 2, 3) * 3
    got = DiagonalGaussian(MEAN, LOG_VARIANCE).log_prob(values)
    assert got.shape == (5, 2, 3)
    torch.testing.assert_close(got.double(), oracle(MEAN, LOG_VARIANCE).log_prob(values.double()), rtol=1e-5, atol=1e-5)


def test_sample_is_the_mean_moved_by_deviations() -> None:
    noise = torch.randn(4, 2, 3)
    got = DiagonalGaussian(MEAN, LOG_VARIANCE).sample(4, noise=noise)
    torch.testing.assert_close(got, oracle(MEAN, LOG_VARIANCE).icdf(Normal(0.0, 1.0).cdf(noise.double())).float())


def test_samples_have_the_mean_and_the_deviation() -> None:
    number = 100_000
    samples = DiagonalGaussian(MEAN, LOG_VARIANCE).sample(number).double()
    assert samples.shape == (number, 2, 3)
    errors = (samples.mean(0) - MEAN) / (LOG_VARIANCE.double() / 2).exp() * number**0.5
    assert errors.abs().max() < 5  # standard errors of a mean
    torch.testing.assert_close(samples.var(0).log(), LOG_VARIANCE.double(), rtol=0, atol=5 * (2 / number) ** 0.5)


def test_samples_are_independent_of_each_other() -> None:
    samples = DiagonalGaussian(torch.zeros(2), torch.zeros(2)).sample(100_000).double()
    assert torch.corrcoef(samples.T)[0, 1].abs() < 5 / 100_000**0.5


def test_sample_gradients_equal_finite_differences() -> None:
    noise = torch.randn(3, 4)
    weights = torch.randn(3, 4)

    def value(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return (DiagonalGaussian(mean, log_variance).sample(3, noise=noise) * weights).sum()

    inputs = [torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)]
    gradients = torch.autograd.grad(value(*inputs), inputs)
    step = 1e-2
    for which, gradient in enumerate(gradients):
        for place in range(4):
            moved = [[each.detach().clone() for each in inputs] for _ in range(2)]
            moved[0][which][place] += step
            moved[1][which][place] -= step
            difference = (value(*moved[0]) - value(*moved[1])) / (2 * step)
            assert gradient[place].item() == pytest.approx(difference.item(), rel=2e-3, abs=2e-3)


def test_half_precision_is_left_before_squares_and_exponentials_overflow() -> None:
    q = DiagonalGaussian(torch.tensor([300.0, -1.0]).half(), torch.tensor([15.0, 1.0]).half())
    wanted = oracle(torch.tensor([300.0, -1.0]), torch.tensor([15.0, 1.0]))
    assert q.mean.dtype == q.log_variance.dtype == q.sample().dtype == torch.float32
    standard = Normal(torch.zeros(2).double(), torch.ones(2).double())
    torch.testing.assert_close(q.kl_from_standard_normal().double(), kl_divergence(wanted, standard))
    values = torch.tensor([-300.0, 5.0])
    torch.testing.assert_close(q.log_prob(values.half()).double(), wanted.log_prob(values.double()))


@pytest.mark.parametrize("log_variance", [-1e4, 1e4])
def test_absurd_log_variances_leave_all_finite(log_variance: float) -> None:
    mean = torch.zeros(2, requires_grad=True)
    q = DiagonalGaussian(mean, torch.full((2,), log_variance))
    assert (q.deviation > 0).all()
    for result in (q.sample(), q.kl_from_standard_normal(), q.log_prob(torch.ones(2))):
        assert result.isfinite().all()
        (gradient,) = torch.autograd.grad(result.sum(), mean)
        assert gradient.isfinite().all()
