"""Oracles: `torch.distributions`, the softmax for what is sampled, and the released architecture's layers, one by one."""

import math

import pytest
import torch
from torch.distributions import Categorical, Laplace, Normal, kl_divergence
from torch.nn import functional as F

from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.dvae.modeling_dvae import DVAEModel
from tests.model_contract import ModelContract
from tests.models.tokenizer_contract import IMAGE_SIZE, CodesContract, TokenizerContract, pictures, randomise

TINY = {"image_size": IMAGE_SIZE, "group_channels": 8, "num_codes": 24, "code_dim": 6}
NUM_VALUES = 3 * IMAGE_SIZE * IMAGE_SIZE


class TestDVAEModel(TokenizerContract, CodesContract, ModelContract):
    model_class = DVAEModel

    def config(self) -> DVAEConfig:
        return DVAEConfig(**TINY, kl_weight=0.1)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        return [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6)]


class TestHardSamples(TestDVAEModel):
    """Several one-hot samples a picture; a Gaussian, two blocks a group."""

    def config(self) -> DVAEConfig:
        return DVAEConfig(
            **TINY,
            is_hard=True,
            num_latent_samples=2,
            num_blocks_per_group=2,
            likelihood="gaussian",
            likelihood_scale=0.2,
            likelihood_scale_kind="shared",
        )


def tiny_dvae(**settings: object) -> DVAEModel:
    torch.manual_seed(0)
    return randomise(DVAEModel(DVAEConfig(**{**TINY, **settings})))


def watch_decoder(model: DVAEModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What goes into the decoder's groups and what comes out, as pairs."""
    seen: list = []
    model.decoder.register_forward_hook(lambda module, inputs, maps: seen.append((inputs[0], maps)))
    return seen


def watch_words(model: DVAEModel) -> list[torch.Tensor]:
    """The words that are decoded in training, float (samples * batch, num_codes, rows, columns)."""
    seen: list = []
    model.decoder.input_layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    return seen


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("is_hard", [False, True])
@torch.no_grad()
def test_loss_is_the_two_terms_over_the_number_of_pixel_values(
    name: str, num_samples: int, is_training: bool, is_hard: bool
) -> None:
    model = tiny_dvae(
        likelihood=name,
        likelihood_scale=0.3,
        likelihood_scale_kind="fixed",
        kl_weight=2.5,
        num_latent_samples=num_samples,
        is_hard=is_hard,
        temperature=0.7,
    ).train(is_training)
    seen, words = watch_decoder(model), watch_words(model)
    outputs = model(pictures())
    [(vectors, maps)] = seen
    drawn = num_samples if is_training else 1
    assert len(maps) == drawn * 3
    distribution = {"gaussian": Normal, "laplace": Laplace}[name](maps, 0.3)
    log_prob = distribution.log_prob(pictures().repeat(drawn, 1, 1, 1)).sum(dim=(1, 2, 3))
    reconstruction_nats = -log_prob.view(drawn, 3).mean(0).mean()
    logits = model.encoder(0.8 * pictures() + 0.1).movedim(1, -1)  # (batch, rows, columns, num_codes)
    kl = kl_divergence(Categorical(logits=logits), Categorical(torch.full_like(logits, 1 / 24)))
    torch.testing.assert_close(outputs.logits.movedim(1, -1), logits)
    torch.testing.assert_close(outputs.reconstruction_nats, reconstruction_nats, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(outputs.kl_nats, kl.sum(dim=(1, 2)).mean())
    expected = (reconstruction_nats + 2.5 * kl.sum(dim=(1, 2)).mean()) / NUM_VALUES
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-4, atol=1e-5)
    code_nats = 16 * math.log(24)
    bits = ((reconstruction_nats + code_nats) / NUM_VALUES + math.log(255)) / math.log(2)
    torch.testing.assert_close(outputs.bits_per_dim, bits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.reconstruction, maps[:3])
    # The likeliest words, whatever was sampled; they are what is decoded in evaluation.
    code_ids = logits.argmax(-1)
    assert torch.equal(outputs.code_ids, code_ids) and len(code_ids.unique()) > 3
    table = model.decoder.input_layer.weight[:, :, 0, 0].T + model.decoder.input_layer.bias
    torch.testing.assert_close(outputs.last_hidden_state, table[code_ids].movedim(-1, 1))
    if is_training:
        torch.testing.assert_close(vectors, model.decoder.input_layer(words[0]))
        assert ((words[0] == 0) | (words[0] == 1)).all() == is_hard
        torch.testing.assert_close(words[0].sum(1), torch.ones(drawn * 3, 4, 4))
    else:
        assert not words and torch.equal(vectors, outputs.last_hidden_state)


@torch.no_grad()
def test_training_samples_are_those_of_the_softmax() -> None:
    model = tiny_dvae(num_codes=4, num_latent_samples=3000, is_hard=True, likelihood_scale_kind="fixed")
    words = watch_words(model)
    outputs = model.train()(pictures(1, 4, 8))
    shares = words[0].mean(0)  # (num_codes, rows, columns)
    expected = outputs.logits[0].softmax(0)
    assert expected.max() < 0.95
    error = (expected * (1 - expected) / 3000).sqrt()
    assert ((shares - expected).abs() < 5 * error).all()


@torch.no_grad()
def test_training_samples_differ_from_call_to_call_and_place_to_place() -> None:
    model = tiny_dvae().train()
    words = watch_words(model)
    assert model(pictures()).loss != model(pictures()).loss
    assert not torch.equal(words[0], words[1])
    alike = pictures(1).expand(2, -1, -1, -1)
    model(alike)
    assert not torch.equal(words[2][0], words[2][1])


@torch.no_grad()
def test_temperature_tells_how_far_samples_are_relaxed_and_leaves_the_kl_alone() -> None:
    model = tiny_dvae()
    kl_nats = model(pictures()).kl_nats
    words = watch_words(model)
    model.train()
    for temperature in (0.01, 1.0, 1000.0):
        model.anneal(temperature=temperature)
        torch.testing.assert_close(model(pictures()).kl_nats, kl_nats)
    sharp, middle, flat = (relaxed.amax(1).mean().item() for relaxed in words)
    assert sharp > 0.98 > middle > flat and flat < 1.2 / 24


@torch.no_grad()
def test_annealed_settings_count_at_once_and_are_saved(tmp_path) -> None:
    model = tiny_dvae()
    for change in ({"temperature": 0.25}, {"kl_weight": 3.0}, {"temperature": 0.5, "kl_weight": 0}):
        model.anneal(**change)
        model.save_pretrained(tmp_path)
        reloaded = DVAEModel.from_pretrained(tmp_path)
        for settled in (model, reloaded):
            for name, value in change.items():
                assert getattr(settled.config, name) == value and getattr(settled, name) == value
            outputs = settled(pictures())
            expected = outputs.reconstruction_nats + settled.config.kl_weight * outputs.kl_nats
            torch.testing.assert_close(outputs.loss, expected / NUM_VALUES)
    assert model.config.temperature == 0.5 and model.config.kl_weight == 0
    for change, message in [
        ({"temperature": 0}, "`temperature` must be above 0, got 0"),
        ({"temperature": math.nan}, "`temperature` must be above 0, got nan"),
        ({"temperature": math.inf}, "`temperature` must be above 0, got inf"),
        ({"temperature": 1.0, "kl_weight": -1}, "`kl_weight` must be 0 or more, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.anneal(**change)
        assert model.config.temperature == model.temperature == 0.5
        assert model.config.kl_weight == model.kl_weight == 0


def encoder_gradients(model: DVAEModel, of: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(of, list(model.encoder.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def test_kl_weight_acts_on_the_kl_term_only() -> None:
    model = tiny_dvae().train()
    gradients = {}
    for weight in (0.0, 4.0):
        model.anneal(kl_weight=weight)
        torch.manual_seed(3)  # the same samples
        gradients[weight] = encoder_gradients(model, model(pictures()).loss)
    of_kl = encoder_gradients(model, model(pictures()).kl_nats)
    assert of_kl.any()
    torch.testing.assert_close(gradients[4.0] - gradients[0.0], 4.0 * of_kl / NUM_VALUES, rtol=1e-3, atol=1e-6)


def test_gradient_without_loss_is_that_of_the_softmax() -> None:
    model = tiny_dvae()
    vectors = model.train()(pictures(), return_loss=False).last_hidden_state
    towards = torch.randn_like(vectors)
    relaxed = model.decoder.input_layer(model.encoder(0.8 * pictures() + 0.1).softmax(1))
    expected = encoder_gradients(model, (relaxed * towards).sum())
    assert not torch.allclose(relaxed, vectors, atol=0.05)
    torch.testing.assert_close(encoder_gradients(model, (vectors * towards).sum()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "bernoulli", "logit_laplace"])
@torch.no_grad()
def test_pixels_outside_the_range_are_refused_where_they_have_no_density(name: str) -> None:
    model = tiny_dvae(likelihood=name, likelihood_scale_kind="fixed")
    for pixel_values in (pictures() + 1, pictures() - 1):
        if name in ("gaussian", "laplace"):
            assert model(pixel_values).loss.isfinite()
            continue
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\] for the likelihood `{name}`, got \["):
            model(pixel_values)


@torch.no_grad()
def test_word_is_chosen_in_full_precision_under_autocast() -> None:
    # Features are bf16 there, and so differ from those without it; the last layer and the choice are not.
    model = tiny_dvae(num_codes=2000)
    features = []
    last = model.encoder.groups[-1]
    last.register_forward_hook(lambda module, inputs, output: features.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pictures(8, 64, 64))
    layer = model.encoder.output_layer
    expected = F.conv2d(features[0].relu().float(), layer.weight, layer.bias)
    assert outputs.logits.dtype == outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.logits, expected)
    assert torch.equal(outputs.code_ids, expected.argmax(1))
    assert not torch.equal(outputs.code_ids, expected.to(torch.bfloat16).argmax(1))  # so it matters


def num_weights(in_channels: int, out_channels: int, kernel_size: int) -> int:
    return out_channels * (in_channels * kernel_size**2 + 1)


def num_block_weights(in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...]) -> int:
    """Four convolutions, a quarter as wide inside, and a shortcut where the width changes."""
    inner = out_channels // 4
    widths = (in_channels, inner, inner, inner, out_channels)
    total = 0 if in_channels == out_channels else num_weights(in_channels, out_channels, 1)
    return total + sum(map(num_weights, widths[:-1], widths[1:], kernel_sizes))


def test_preset_has_the_released_models_parameters() -> None:
    with torch.device("meta"):
        model = DVAEModel(DVAEConfig.preset("dall-e"))
    steps = [(256, 256), (256, 512), (512, 1024), (1024, 2048)]
    blocks = sum(
        num_block_weights(before, after, (3, 3, 3, 1)) + num_block_weights(after, after, (3, 3, 3, 1))
        for before, after in steps
    )
    in_encoder = num_weights(3, 256, 7) + blocks + num_weights(2048, 8192, 1)
    steps = [(128, 2048), (2048, 1024), (1024, 512), (512, 256)]
    blocks = sum(
        num_block_weights(before, after, (1, 3, 3, 3)) + num_block_weights(after, after, (1, 3, 3, 3))
        for before, after in steps
    )
    in_decoder = num_weights(8192, 128, 1) + blocks + num_weights(256, 6, 1)
    assert (in_encoder, in_decoder) == (53_786_240, 43_829_766)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == in_encoder
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == in_decoder
    assert model.grid_size(256, 256) == (32, 32)
    assert {block.scale for group in model.encoder.groups for block in group} == {1 / 64}
    assert {block.scale for group in model.decoder.groups for block in group} == {1 / 64}
