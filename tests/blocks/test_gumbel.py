import math

import pytest
import torch
from torch.distributions import Categorical, Gumbel, kl_divergence

from hf_vlm.blocks.gumbel import gumbel_max, gumbel_noise, gumbel_softmax, kl_from_uniform
from hf_vlm.blocks.straight_through import straight_through

LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0, -3.0, 1.0])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_follows_the_gumbel_distribution() -> None:
    number = 100_000
    noise = gumbel_noise(torch.empty(number, dtype=torch.float16), seeded())
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    for value in (-1.5, -0.5, 0.0, 1.0, 3.0):
        share = Gumbel(0.0, 1.0).cdf(torch.tensor(value)).item()
        seen = (noise <= value).double().mean().item()
        assert abs(seen - share) < 5 * math.sqrt(share * (1 - share) / number)


@pytest.mark.parametrize("dim", [0, -1])
def test_gumbel_max_frequencies_pass_a_chi_square_test(dim: int) -> None:
    number = 60_000
    logits = LOGITS.expand(number, 6) if dim == -1 else LOGITS[:, None].expand(6, number)
    samples = gumbel_max(logits, dim, generator=seeded())
    assert samples.shape == (number,) and samples.dtype == torch.int64
    seen = samples.bincount(minlength=6).double()
    wanted = number * Categorical(logits=LOGITS.double()).probs
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    assert statistic < 25.74  # the quantile of chi-square, 5 degrees of freedom, at p = 1e-4


def test_softmax_tends_to_the_one_hot_of_gumbel_max_as_temperature_falls() -> None:
    logits = LOGITS.repeat(200, 1)
    one_hot = torch.nn.functional.one_hot(gumbel_max(logits, generator=seeded()), 6)
    errors = []
    for temperature in (10.0, 1.0, 0.1, 0.01, 1e-4):
        soft = gumbel_softmax(logits, temperature, generator=seeded())
        torch.testing.assert_close(soft.sum(-1), torch.ones(200))
        assert torch.equal(soft.argmax(-1), one_hot.argmax(-1))
        errors.append((soft - one_hot).abs().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2 and errors[-1] < 1e-4


def test_softmax_of_large_temperature_is_even() -> None:
    soft = gumbel_softmax(LOGITS.repeat(200, 1), 1e6, generator=seeded())
    torch.testing.assert_close(soft, torch.full_like(soft, 1 / 6), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dim", [1, -1])
def test_hard_sample_is_exactly_one_hot_with_the_soft_gradient(dim: int) -> None:
    logits = torch.randn(3, 5, 4, requires_grad=True)
    weights = torch.randn(3, 5, 4)
    soft = gumbel_softmax(logits, 0.7, dim=dim, generator=seeded())
    hard = gumbel_softmax(logits, 0.7, dim=dim, is_hard=True, generator=seeded())
    assert set(hard.detach().unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.sum(dim), torch.ones_like(hard.sum(dim)))
    assert torch.equal(hard.argmax(dim), soft.argmax(dim))
    wanted = torch.autograd.grad((soft * weights).sum(), logits)[0]
    got = torch.autograd.grad((hard * weights).sum(), logits)[0]
    assert torch.equal(got, wanted) and got.abs().max() > 0


def test_softmax_gradient_equals_finite_differences() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    weights = torch.randn(3, 4)

    def value(at: torch.Tensor) -> torch.Tensor:
        return (gumbel_softmax(at, 0.8, generator=seeded()) * weights).sum()

    (gradient,) = torch.autograd.grad(value(logits), logits)
    step = 1e-2
    for place in torch.eye(12).view(12, 3, 4) * step:
        difference = (value(logits.detach() + place) - value(logits.detach() - place)) / (2 * step)
        assert (gradient * place).sum().item() / step == pytest.approx(difference.item(), abs=1e-3)


def test_half_precision_logits_give_fp32_samples() -> None:
    soft = gumbel_softmax(torch.randn(4, 5, dtype=torch.float16), 0.01)
    assert soft.dtype == torch.float32 and soft.isfinite().all()


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan])
def test_temperature_that_is_not_above_zero_raises(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got .*\. Anneal"):
        gumbel_softmax(LOGITS, temperature)


def test_temperature_as_a_tensor_is_taken() -> None:
    number, tensor = (gumbel_softmax(LOGITS, each, generator=seeded()) for each in (0.5, torch.tensor(0.5)))
    assert torch.equal(number, tensor)


@pytest.mark.parametrize("dim", [1, -1])
def test_kl_from_uniform_equals_torch_distributions(dim: int) -> None:
    logits = 4 * torch.randn(3, 5, 7)
    q = Categorical(logits=logits.double().movedim(dim, -1))
    got = kl_from_uniform(logits, dim)
    wanted = kl_divergence(q, Categorical(logits=torch.zeros_like(q.logits)))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_kl_from_uniform_is_zero_when_even_and_log_k_when_certain() -> None:
    torch.testing.assert_close(kl_from_uniform(torch.full((8,), 3.0)), torch.tensor(0.0), rtol=0, atol=1e-6)
    certain = torch.tensor([1e4] + [0.0] * 7, dtype=torch.float16)
    torch.testing.assert_close(kl_from_uniform(certain), torch.tensor(math.log(8)))


def test_straight_through_gives_values_bitwise_and_their_gradient_to_the_other() -> None:
    values = (torch.randn(1000) * 10.0 ** torch.randint(-6, 6, (1000,))).requires_grad_()
    choice_of = torch.randn(1000).mul(1e4).requires_grad_()
    passed = straight_through(values, gradient_to=choice_of)
    assert torch.equal(passed.view(torch.int32), values.view(torch.int32))
    gradient = torch.randn(1000)
    to_values, to_choice = torch.autograd.grad(passed, (values, choice_of), gradient, allow_unused=True)
    assert to_values is None
    assert torch.equal(to_choice, gradient)
