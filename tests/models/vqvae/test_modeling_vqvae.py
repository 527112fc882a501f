"""Oracles: nearest codewords by brute force, the paper's equation 3 written out, and gradients taken apart term by term."""

import copy
import math

import pytest
import torch
from torch.distributions import Laplace, Normal
from transformers import AutoModel

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.vqvae.configuration_vqvae import VQVAEConfig
from hf_vlm.models.vqvae.modeling_vqvae import VQVAEModel
from tests.model_contract import ModelContract
from tests.models.tokenizer_contract import (
    IMAGE_SIZE,
    CodesContract,
    TokenizerContract,
    pictures,
    randomise,
    tiny_text_model,
)

TINY = {"image_size": IMAGE_SIZE, "hidden_channels": (8, 16), "num_residual_blocks": (0, 1)}
NUM_VALUES = 3 * IMAGE_SIZE * IMAGE_SIZE


class TestVQVAEModel(TokenizerContract, CodesContract, ModelContract):
    """Codewords that are running means."""

    model_class = VQVAEModel

    def config(self) -> VQVAEConfig:
        return VQVAEConfig(**TINY, num_codes=32, code_dim=6, likelihood_scale=0.1)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        return [(2, 8, 8, 12), (2, 16, 4, 6)]


class TestPapersLoss(TestVQVAEModel):
    """Codewords that are trained, all terms summed over a picture, no start from the data."""

    def config(self) -> VQVAEConfig:
        return VQVAEConfig(
            **TINY,
            num_codes=20,
            code_dim=4,
            codebook_update="loss",
            loss_reduction="sum",
            kmeans_iterations=0,
            revive_below=0,
            likelihood="laplace",
            likelihood_scale=0.2,
            likelihood_scale_kind="shared",
        )


class TestRounding(TestVQVAEModel):
    """Levels, no codebook."""

    def config(self) -> VQVAEConfig:
        return VQVAEConfig(
            **TINY,
            discretisation="levels",
            levels=(4, 3, 5),
            likelihood="logit_laplace",
            likelihood_scale=0.5,
            likelihood_scale_kind="predicted",
        )


class TestBits(TestVQVAEModel):
    def config(self) -> VQVAEConfig:
        return VQVAEConfig(**TINY, discretisation="binary", code_dim=7, likelihood_scale=0.1)


def tiny_vqvae(**settings: object) -> VQVAEModel:
    """The same weights whatever the settings; codewords of the size of latents, so that several are in use."""
    torch.manual_seed(0)
    model = randomise(VQVAEModel(VQVAEConfig(**{**TINY, "num_codes": 24, "code_dim": 6, **settings})))
    torch.manual_seed(2)
    model.codebook.codewords.data.normal_()
    return model


def latents_of(model: VQVAEModel) -> torch.Tensor:
    """z_e, float (batch, rows, columns, code_dim)."""
    return model.encoder(2 * pictures() - 1).movedim(1, -1)


def nearest(latents: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    distances = (latents[..., None, :].double() - codewords.double()).norm(dim=-1)  # (..., num_codes)
    return distances.argmin(-1)


@pytest.mark.parametrize("update", ["loss", "ema"])
@torch.no_grad()
def test_latents_become_their_nearest_codewords(update: str) -> None:
    model = tiny_vqvae(codebook_update=update)
    outputs = model(pictures())
    code_ids = nearest(latents_of(model), model.codebook.codewords)
    assert torch.equal(outputs.code_ids, code_ids) and len(code_ids.unique()) > 3
    codewords = model.codebook.codewords[code_ids].movedim(-1, 1)
    assert torch.equal(outputs.last_hidden_state, codewords)
    assert torch.equal(model.reconstruct(pictures()), model.pixels(codewords).mode)
    assert torch.equal(outputs.reconstruction, model.reconstruct(pictures()))


@torch.no_grad()
def test_bits_are_the_signs_of_the_latents() -> None:
    model = randomise(VQVAEModel(VQVAEConfig(**TINY, discretisation="binary", code_dim=5)))
    outputs = model(pictures())
    bits = latents_of(model) > 0
    assert torch.equal(outputs.code_ids, (bits.long() * torch.tensor([16, 8, 4, 2, 1])).sum(-1))
    assert torch.equal(outputs.last_hidden_state.movedim(1, -1), bits * 2.0 - 1)


@pytest.mark.parametrize("weight", [0.25, 2.0])
@pytest.mark.parametrize("update", ["loss", "ema"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@torch.no_grad()
def test_loss_is_equation_3(likelihood: str, reduction: str, update: str, weight: float) -> None:
    model = tiny_vqvae(
        codebook_update=update,
        commitment_weight=weight,
        loss_reduction=reduction,
        likelihood=likelihood,
        likelihood_scale=0.3,
    )
    outputs = model(pictures())
    latents = latents_of(model)
    codewords = model.codebook.codewords[nearest(latents, model.codebook.codewords)]
    location = model.decoder(codewords.movedim(-1, 1))
    distribution = {"gaussian": Normal, "laplace": Laplace}[likelihood](location, 0.3)
    reconstruction_nats = -distribution.log_prob(pictures()).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(outputs.reconstruction_nats, reconstruction_nats, rtol=1e-4, atol=1e-2)

    squares = (latents - codewords).square().sum(dim=(1, 2, 3)).mean()  # |z_e - e|^2 of a picture
    of_codebook = squares if update == "loss" else torch.tensor(0.0)
    if reduction == "sum":
        expected = reconstruction_nats + of_codebook + weight * squares
    else:
        num_latent_values = latents[0].numel()
        expected = reconstruction_nats / NUM_VALUES + (of_codebook + weight * squares) / num_latent_values
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.commitment_loss, squares / latents[0].numel())
    torch.testing.assert_close(outputs.codebook_loss, of_codebook / latents[0].numel())

    code_nats = 16 * math.log(24)  # a uniform prior over 24 codes, 4 x 4 of them
    torch.testing.assert_close(outputs.kl_nats, torch.tensor(code_nats))
    bits = ((reconstruction_nats + code_nats) / NUM_VALUES + math.log(255)) / math.log(2)
    torch.testing.assert_close(outputs.bits_per_dim, bits, rtol=1e-4, atol=1e-4)


def gradient_vector(of: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """All gradients of a module's parameters, one behind the other; zeros where there are none."""
    found = torch.autograd.grad(of, list(module.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_commitment_weight_acts_on_the_encoder_alone(reduction: str) -> None:
    of_loss, of_reconstruction = {}, {}
    for weight in (0.0, 1.0, 3.0):
        model = tiny_vqvae(codebook_update="loss", commitment_weight=weight, loss_reduction=reduction)
        outputs = model(pictures())
        parts = {"encoder": model.encoder, "codebook": model.codebook}
        of_loss[weight] = {name: gradient_vector(outputs.loss, module) for name, module in parts.items()}
        share = 1 if reduction == "sum" else NUM_VALUES
        nats = outputs.reconstruction_nats / share
        of_reconstruction = {name: gradient_vector(nats, module) for name, module in parts.items()}
    # Without commitment the encoder follows the reconstruction alone, the codebook only its own term.
    torch.testing.assert_close(of_loss[0.0]["encoder"], of_reconstruction["encoder"], rtol=1e-4, atol=1e-6)
    assert not of_reconstruction["codebook"].any()
    latents = latents_of(model).detach()
    code_ids = nearest(latents, model.codebook.codewords)
    pulls = 2 * (model.codebook.codewords[code_ids] - latents).flatten(0, -2)  # d |z_e - e|^2 / d e
    share = len(latents) if reduction == "sum" else latents.numel()
    expected = torch.zeros_like(model.codebook.codewords).index_add(0, code_ids.flatten(), pulls) / share
    assert expected.any()
    for weight in (0.0, 1.0, 3.0):
        torch.testing.assert_close(of_loss[weight]["codebook"], expected.flatten(), rtol=1e-4, atol=1e-6)
    step = of_loss[1.0]["encoder"] - of_loss[0.0]["encoder"]
    assert step.abs().max() > 1e-3
    torch.testing.assert_close(
        of_loss[3.0]["encoder"] - of_loss[0.0]["encoder"], 3 * step, rtol=1e-3, atol=1e-4 * step.abs().max().item()
    )


def test_gradient_passes_from_codewords_to_latents_as_if_they_were_one() -> None:
    model = tiny_vqvae(commitment_weight=0)
    loss = model(pictures()).loss
    found = gradient_vector(loss, model.encoder)
    latents = latents_of(model)
    codewords = model.codebook.codewords[nearest(latents, model.codebook.codewords)].detach().requires_grad_()
    nats = -model.pixels(codewords.movedim(-1, 1)).log_prob(pictures()).sum() / 3 / NUM_VALUES
    [at_codewords] = torch.autograd.grad(nats, codewords)
    expected = torch.autograd.grad(latents, list(model.encoder.parameters()), grad_outputs=at_codewords)
    torch.testing.assert_close(found, torch.cat([gradient.flatten() for gradient in expected]), rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_codebook_follows_training_batches_with_a_loss_only() -> None:
    model = VQVAEModel(VQVAEConfig(**TINY, num_codes=4, code_dim=6))
    before = copy.deepcopy(model.codebook.state_dict())

    def is_changed() -> bool:
        return any(not torch.equal(tensor, before[name]) for name, tensor in model.codebook.state_dict().items())

    model.eval()(pictures())
    model.train()(pictures(), return_loss=False)
    model.encode(pictures())
    model.reconstruct(pictures())
    assert not is_changed()
    model(pictures())
    assert is_changed() and model.codebook.is_started
    assert len(model.encode(pictures()).unique()) == 4  # k-means: each codeword has its vectors


@torch.no_grad()
def test_refused_pixels_do_not_move_the_codebook() -> None:
    model = VQVAEModel(VQVAEConfig(**TINY, likelihood="bernoulli")).train()
    before = copy.deepcopy(model.codebook.state_dict())
    for pixel_values in (pictures() + 1, pictures() - 1):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\] for the likelihood `bernoulli`, got \["):
            model(pixel_values)
        with pytest.raises(ValueError, match=r"must be in \[0, 1\] for the likelihood `bernoulli`, got \["):
            model.eval()(pixel_values)
        model.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.codebook.state_dict().items())
    assert VQVAEModel(VQVAEConfig(**TINY))(pictures() + 1).loss.isfinite()  # a Gaussian has a density everywhere


@torch.no_grad()
def test_codebook_keeps_its_digits_in_a_half_precision_model(tmp_path) -> None:
    model = tiny_vqvae()
    codewords = model.codebook.codewords.clone()
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.codebook.codewords.dtype == torch.float32 and torch.equal(model.codebook.codewords, codewords)
    model.train()(pictures())
    assert model.codebook.codewords.dtype == torch.float32 and not torch.equal(model.codebook.codewords, codewords)
    model.save_pretrained(tmp_path)
    reloaded = VQVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(reloaded.codebook.codewords, model.codebook.codewords)
    made = AutoModel.from_config(model.config, dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert made.codebook.codewords.dtype == made.codebook.counts.dtype == torch.float32
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained_parts(vision=model, text=tiny_text_model())
    reader.save_pretrained(tmp_path / "reader")
    half = type(reader).from_pretrained(tmp_path / "reader", dtype=torch.bfloat16)
    assert half.decoder.dtype == torch.bfloat16
    assert torch.equal(half.encoder.vision_model.codebook.codewords, model.codebook.codewords)


@torch.no_grad()
def test_codeword_is_chosen_in_full_precision_under_autocast() -> None:
    # Latents are bf16 there, and so differ from those without it; the choice among codewords must not round once more.
    model = tiny_vqvae(num_codes=2000)
    latents = []
    model.encoder.register_forward_hook(lambda module, inputs, output: latents.append(output.movedim(1, -1)))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pictures(8, 64, 64))
    assert latents[0].dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
    assert torch.equal(outputs.code_ids, nearest(latents[0].float(), model.codebook.codewords))
    rounded = nearest(latents[0], model.codebook.codewords.to(torch.bfloat16))
    assert not torch.equal(outputs.code_ids, rounded)  # so it matters


def test_levels_changed_beside_a_saved_number_of_codes_are_refused(tmp_path) -> None:
    VQVAEConfig(discretisation="levels", levels=[5, 3]).save_pretrained(tmp_path)
    config = VQVAEConfig.from_pretrained(tmp_path, levels=[4, 4])
    with pytest.raises(ValueError, match="makes 16 codes of 2 numbers, got `num_codes=15`"):
        VQVAEModel(config)
