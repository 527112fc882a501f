"""Oracles: `torch.distributions` for every density, and probabilistic PCA, whose likelihood is known, for the bound.

Source: Tipping and Bishop 1999, https://www.jstor.org/stable/2680726
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Distribution,
    Laplace,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    kl_divergence,
)

from hf_vlm.models.vae.configuration_vae import VAEConfig
from hf_vlm.models.vae.modeling_vae import VAEModel
from tests.model_contract import ModelContract
from tests.models.tokenizer_contract import IMAGE_SIZE, TokenizerContract, pictures, randomise

TINY = {"image_size": IMAGE_SIZE, "hidden_channels": (8, 16), "num_residual_blocks": (0, 1), "latent_channels": 6}
LIKELIHOODS = [
    ("gaussian", "fixed"), ("gaussian", "shared"), ("gaussian", "predicted"), ("laplace", "fixed"),
    ("laplace", "shared"), ("laplace", "predicted"), ("bernoulli", "fixed"), ("logit_laplace", "fixed"),
    ("logit_laplace", "shared"), ("logit_laplace", "predicted"),
]  # fmt: skip


class TestVAEModel(TokenizerContract, ModelContract):
    model_class = VAEModel

    def config(self) -> VAEConfig:
        return VAEConfig(**TINY, likelihood_scale=0.1)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        return [(2, 8, 8, 12), (2, 16, 4, 6)]


class TestBetaVAE(TestVAEModel):
    def config(self) -> VAEConfig:
        return VAEConfig(
            **TINY,
            beta=4.0,
            num_latent_samples=3,
            likelihood="logit_laplace",
            likelihood_scale=0.5,
            likelihood_scale_kind="predicted",
            residual_channels=4,
            hidden_act="silu",
        )


class TestAutoencoder(TestVAEModel):
    def config(self) -> VAEConfig:
        return VAEConfig(**TINY, beta=0, likelihood="laplace", likelihood_scale=0.2, likelihood_scale_kind="shared")


def tiny_vae(**settings: object) -> VAEModel:
    torch.manual_seed(0)
    return randomise(VAEModel(VAEConfig(**{**TINY, **settings})))


def pixel_distribution(name: str, kind: str, maps: torch.Tensor, scale: float, log_scale: torch.Tensor) -> Distribution:
    """p(x | z) by torch's own distributions, from a decoder's maps."""
    if name == "bernoulli":
        return Bernoulli(logits=maps, validate_args=False)  # grey values
    if kind == "predicted":
        maps, offset = maps[:, :3], maps[:, 3:]
        scales = (scale * offset.exp()).clamp(math.exp(-7), math.exp(7))  # no narrower than a quarter of a level
    else:
        scales = torch.tensor(scale) if kind == "fixed" else log_scale.exp()
    if name == "gaussian":
        return Normal(maps, scales)
    if name == "laplace":
        return Laplace(maps, scales)
    to_pixels = [SigmoidTransform(), AffineTransform(-0.1 / 0.8, 1 / 0.8)]  # y = 0.8 x + 0.1
    return TransformedDistribution(Laplace(maps, scales), to_pixels, validate_args=False)


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize(("name", "kind"), LIKELIHOODS)
@pytest.mark.parametrize("is_training", [False, True])
@torch.no_grad()
def test_loss_is_the_two_terms_over_the_number_of_pixel_values(
    name: str, kind: str, num_samples: int, is_training: bool
) -> None:
    model = tiny_vae(
        likelihood=name,
        likelihood_scale_kind=kind,
        likelihood_scale=1.0 if name == "bernoulli" else 0.3,
        num_latent_samples=num_samples,
        beta=2.5,
    ).train(is_training)
    decoded = []
    model.decoder.register_forward_hook(lambda module, inputs, maps: decoded.append((inputs[0], maps)))
    outputs = model(pictures())
    [(latents, maps)] = decoded
    assert latents.shape == (num_samples * 3, 6, 4, 4)

    log_scale = model.likelihood.log_scale
    distribution = pixel_distribution(name, kind, maps, 0.3, log_scale)
    log_prob = distribution.log_prob(pictures().repeat(num_samples, 1, 1, 1)).sum(dim=(1, 2, 3))
    reconstruction_nats = -log_prob.view(num_samples, 3).mean(0).mean()
    mean, log_variance = model.encoder(2 * pictures() - 1).chunk(2, dim=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0))
    torch.testing.assert_close(outputs.last_hidden_state, mean)
    torch.testing.assert_close(outputs.log_variance, log_variance)
    torch.testing.assert_close(outputs.reconstruction_nats, reconstruction_nats, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(outputs.kl_nats, kl.sum(dim=(1, 2, 3)).mean())
    torch.testing.assert_close(outputs.kl_per_channel, kl.sum(dim=(2, 3)).mean(0))
    num_values = 3 * IMAGE_SIZE * IMAGE_SIZE
    expected = (reconstruction_nats + 2.5 * outputs.kl_nats) / num_values
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-4, atol=1e-5)
    # A level of 8 bits is 1 / 255 wide; a Bernoulli gives probabilities, and needs no width.
    level_nats = 0 if name == "bernoulli" else math.log(255)
    bits = ((reconstruction_nats + outputs.kl_nats) / num_values + level_nats) / math.log(2)
    torch.testing.assert_close(outputs.bits_per_dim, bits, rtol=1e-4, atol=1e-4)
    if name == "logit_laplace":  # the median: of the logit, mapped back and cut to pixels
        mode = ((maps[:3, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    else:
        mode = distribution.mean[:3]
    torch.testing.assert_close(outputs.reconstruction, mode)


@torch.no_grad()
def test_what_is_decoded_in_training_are_samples_of_the_posterior() -> None:
    model = tiny_vae(num_latent_samples=400).train()
    decoded = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: decoded.append(inputs[0]))
    outputs = model(pictures())
    posterior = Normal(outputs.last_hidden_state, (0.5 * outputs.log_variance).exp())
    latents = decoded[0].view(400, 3, 6, 4, 4)
    noise = (latents - posterior.mean) / posterior.stddev
    number = noise.numel()
    assert abs(noise.mean()) < 5 / number**0.5 and abs(noise.var() - 1) < 5 * (2 / number) ** 0.5
    # Another sample of each latent, picture and place: not one noise for all.
    for dim in range(5):
        assert noise.std(dim=dim).min() > 0


@torch.no_grad()
def test_training_samples_differ_from_call_to_call() -> None:
    model = tiny_vae().train()
    assert model(pictures()).loss != model(pictures()).loss
    model = tiny_vae(beta=0).train()
    assert model(pictures()).loss == model(pictures()).loss


def gradients(model: VAEModel, of: torch.Tensor) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(of, list(model.parameters()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True)
    }


def test_beta_enters_the_kl_term_only() -> None:
    model = tiny_vae(beta=0, is_deterministic=False)
    without = gradients(model, model(pictures()).loss)
    model.anneal(beta=3.0)
    outputs = model(pictures())
    with_beta, of_kl = gradients(model, outputs.loss), gradients(model, outputs.kl_nats)
    assert any(gradient.any() for gradient in of_kl.values())
    for name, gradient in with_beta.items():
        expected = 3.0 * of_kl[name] / (3 * IMAGE_SIZE * IMAGE_SIZE)
        torch.testing.assert_close(gradient - without[name], expected, rtol=1e-3, atol=1e-6, msg=name)


@torch.no_grad()
def test_beta_of_zero_is_a_plain_autoencoder() -> None:
    model = tiny_vae(beta=0)
    assert model.config.is_deterministic and model.encoder.output_layer.out_channels == 6
    outputs = model.train()(pictures())
    assert outputs.kl_nats == 0 and not outputs.kl_per_channel.any() and outputs.log_variance is None
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_nats / (3 * IMAGE_SIZE * IMAGE_SIZE))
    assert torch.equal(outputs.reconstruction, model.reconstruct(pictures()))
    for call in (model.posterior, model.log_likelihood_bound):
        with pytest.raises(ValueError, match="A posterior is wanted, got a deterministic autoencoder"):
            call(pictures())
    with pytest.raises(ValueError, match="has no KL term, got `beta=1.0` for it"):
        model.anneal(beta=1.0)


@torch.no_grad()
def test_beta_of_zero_may_keep_its_variance() -> None:
    model = tiny_vae(beta=0, is_deterministic=False)
    assert model.encoder.output_layer.out_channels == 12
    outputs = model(pictures())
    assert outputs.log_variance is not None and outputs.kl_nats > 0
    torch.testing.assert_close(outputs.loss, outputs.reconstruction_nats / (3 * IMAGE_SIZE * IMAGE_SIZE))


@torch.no_grad()
def test_annealed_weight_counts_at_once_and_is_saved(tmp_path) -> None:
    model = tiny_vae(beta=0, is_deterministic=False)
    for beta in (0.5, 0):
        model.anneal(beta=beta)
        outputs = model(pictures())
        expected = (outputs.reconstruction_nats + beta * outputs.kl_nats) / (3 * IMAGE_SIZE * IMAGE_SIZE)
        torch.testing.assert_close(outputs.loss, expected)
        model.save_pretrained(tmp_path)
        reloaded = VAEModel.from_pretrained(tmp_path)
        assert reloaded.config.beta == beta and reloaded(pictures()).loss == outputs.loss
    for beta in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`beta` must be 0 or more, got {beta}"):
            model.anneal(beta=beta)
    assert model.config.beta == 0 and model.beta == 0


@pytest.mark.parametrize("settings", [{}, {"beta": 0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_interpolation_goes_from_one_reconstruction_to_the_other(settings: dict, dtype: torch.dtype) -> None:
    model = tiny_vae(**settings).to(dtype)
    first, second = pictures(), pictures().flip(0).flip(3)
    path = model.interpolate(first, second, num_steps=5)
    assert path.shape == (3, 5, 3, IMAGE_SIZE, IMAGE_SIZE)
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 0.05, "rtol": 0}
    torch.testing.assert_close(path[:, 0], model.reconstruct(first), **tolerance)
    torch.testing.assert_close(path[:, -1], model.reconstruct(second), **tolerance)
    quarter = 0.75 * model.encode(first) + 0.25 * model.encode(second)
    torch.testing.assert_close(path[:, 1], model.decode(quarter), **tolerance)
    with pytest.raises(ValueError, match="`num_steps` must be 2 or more, the ends are two, got 1"):
        model.interpolate(first, second, num_steps=1)
    with pytest.raises(ValueError, match=r"must be of one shape, got \(3, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        model.interpolate(first, second[:1], num_steps=2)


@torch.no_grad()
def test_new_pictures_are_decoded_from_standard_normal_latents() -> None:
    model = tiny_vae()
    decoded = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: decoded.append(inputs[0]))
    model.sample(200)
    latents = decoded[0]
    assert latents.shape == (200, 6, 4, 4)
    assert abs(latents.mean()) < 5 / latents.numel() ** 0.5
    assert abs(latents.var() - 1) < 5 * (2 / latents.numel()) ** 0.5


def test_latents_of_another_shape_are_refused() -> None:
    model = tiny_vae()
    for latents in (torch.zeros(1, 5, 4, 4), torch.zeros(6, 4, 4)):
        with pytest.raises(ValueError, match=r"`latents` must be \(batch, 6, rows, columns\), got"):
            model.decode(latents)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "bernoulli", "logit_laplace"])
@pytest.mark.parametrize("shift", [1, -1])
@torch.no_grad()
def test_pixels_outside_the_range_are_refused_where_they_have_no_density(name: str, shift: int) -> None:
    model = tiny_vae(likelihood=name)
    pixel_values = pictures() + shift
    if name in ("gaussian", "laplace"):
        assert model(pixel_values).loss.isfinite() and model.log_likelihood_bound(pixel_values, 2).isfinite().all()
        return
    for call in (model, model.log_likelihood_bound):
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\] for the likelihood `{name}`, got \["):
            call(pixel_values)


# Probabilistic PCA: x = W z + mu + noise of deviation sigma. A VAE without stages is this model, its posterior included.

NUM_CHANNELS, NUM_LATENTS = 5, 2


@dataclass
class LinearGaussian:
    """The maximum-likelihood solution for some pictures of one pixel, by the closed form of Tipping and Bishop, eq. 7-8."""

    weight: torch.Tensor  # (channels, latents), orthogonal columns
    mean: torch.Tensor  # (channels,)
    variance: torch.Tensor  # scalar

    @property
    def marginal(self) -> MultivariateNormal:
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(NUM_CHANNELS)
        return MultivariateNormal(self.mean, covariance)

    @property
    def posterior_precision(self) -> torch.Tensor:
        """The diagonal of M / variance, M = W^T W + variance I (latents,); M is diagonal, as W's columns are orthogonal."""
        return self.weight.square().sum(0) / self.variance + 1

    def posterior(self, pixels: torch.Tensor) -> Normal:
        mean = (pixels - self.mean) @ self.weight / self.variance / self.posterior_precision
        return Normal(mean, self.posterior_precision.rsqrt())


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Float (400, channels), of a model of the same kind."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(NUM_CHANNELS, NUM_LATENTS, generator=generator) * 0.4
    latents = torch.randn(400, NUM_LATENTS, generator=generator)
    return latents @ weight.T + 0.5 + 0.15 * torch.randn(400, NUM_CHANNELS, generator=generator)


@pytest.fixture(scope="module")
def optimum(pixels: torch.Tensor) -> LinearGaussian:
    values, vectors = torch.linalg.eigh(pixels.T.cov(correction=0))  # ascending
    variance = values[:-NUM_LATENTS].mean()
    stretch = (values[-NUM_LATENTS:] - variance).sqrt()
    return LinearGaussian(vectors[:, -NUM_LATENTS:] * stretch, pixels.mean(0), variance)


def linear_vae(num_latent_samples: int) -> VAEModel:
    return VAEModel(
        VAEConfig(
            num_channels=NUM_CHANNELS,
            image_size=1,
            hidden_channels=(),
            num_residual_blocks=(),
            latent_channels=NUM_LATENTS,
            likelihood_scale_kind="shared",
            num_latent_samples=num_latent_samples,
        )
    )


@torch.no_grad()
def optimal_vae(optimum: LinearGaussian, num_latent_samples: int = 1) -> VAEModel:
    model = linear_vae(num_latent_samples)
    model.decoder.input_layer.weight.copy_(optimum.weight[:, :, None, None])
    model.decoder.input_layer.bias.copy_(optimum.mean)
    model.likelihood.log_scale.copy_(0.5 * optimum.variance.log())
    of_pixels = optimum.weight.T / optimum.variance / optimum.posterior_precision[:, None]  # (latents, channels)
    layer = model.encoder.output_layer  # reads 2 x - 1
    layer.weight.zero_()
    layer.weight[:NUM_LATENTS] = of_pixels[:, :, None, None] / 2
    layer.bias.copy_(torch.cat([of_pixels @ (0.5 - optimum.mean), -optimum.posterior_precision.log()]))
    return model.train()


def elbo(model: VAEModel, pixels: torch.Tensor) -> torch.Tensor:
    outputs = model(pixels[:, :, None, None])
    return -(outputs.reconstruction_nats + outputs.kl_nats)


@torch.no_grad()
def test_bound_is_the_likelihood_where_the_posterior_is_exact(pixels: torch.Tensor, optimum: LinearGaussian) -> None:
    exact = optimum.marginal.log_prob(pixels)
    model = optimal_vae(optimum, num_latent_samples=500)
    assert abs(elbo(model, pixels) - exact.mean()) < 0.01
    # Then every sample's weight is p(x): the bound of one sample has no error at all.
    torch.testing.assert_close(model.log_likelihood_bound(pixels[:, :, None, None], 1), exact, rtol=0, atol=1e-3)


def test_training_reaches_the_highest_likelihood(pixels: torch.Tensor, optimum: LinearGaussian) -> None:
    best = optimum.marginal.log_prob(pixels).mean()
    model = linear_vae(num_latent_samples=8).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        loss = model(pixels[:, :, None, None]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.config.num_latent_samples = 500
    with torch.no_grad():
        reached = elbo(model, pixels)
    assert best - 0.03 < reached < best + 0.01
    torch.testing.assert_close(model.likelihood.log_scale.exp(), optimum.variance.sqrt(), rtol=0.05, atol=0)


@torch.no_grad()
def test_importance_weighted_bound_rises_from_the_elbo_to_the_likelihood(
    pixels: torch.Tensor, optimum: LinearGaussian
) -> None:
    model = optimal_vae(optimum)
    model.encoder.output_layer.bias += torch.tensor([0.1, -0.1, 1.0, 0.7])  # a posterior that is shifted and too wide
    exact = optimum.marginal.log_prob(pixels).mean()
    true_posterior = optimum.posterior(pixels)
    shift = torch.tensor([0.1, -0.1])
    widened = true_posterior.stddev * torch.tensor([0.5, 0.35]).exp()
    gap = kl_divergence(Normal(true_posterior.mean + shift, widened), true_posterior).sum(1).mean()
    bounds = {}
    for num_samples, repeats in [(1, 50), (8, 20), (500, 1)]:
        batch = pixels.repeat(repeats, 1)[:, :, None, None]
        bounds[num_samples] = model.log_likelihood_bound(batch, num_samples).mean()
    assert gap > 0.5
    assert abs(bounds[1] - (exact - gap)) < 0.03  # the ELBO is less than log p(x) by just this KL
    assert bounds[1] + 0.1 < bounds[8] < bounds[500] < exact + 0.005
    assert abs(bounds[500] - exact) < 0.01
    with pytest.raises(ValueError, match="`num_samples` must be 1 or more, got 0"):
        model.log_likelihood_bound(pixels[:, :, None, None], 0)
