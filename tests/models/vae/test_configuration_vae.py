import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vlm.models.vae.configuration_vae import VAEConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1}, "`beta` must be 0 or more, got -1"),
        ({"beta": float("nan")}, "`beta` must be 0 or more, got nan"),
        ({"is_deterministic": True}, "has no KL term, got `beta=1.0`"),
        ({"latent_channels": 0}, "`latent_channels` must be above 0, got 0"),
        ({"num_latent_samples": 0}, "`num_latent_samples` must be above 0, got 0"),
        ({"hidden_act": "nope"}, "one of transformers' activations, got 'nope'"),
        ({"hidden_channels": (8,)}, r"must have one entry a stage, got \[8\] and \[0, 1\]"),
        ({"hidden_channels": (8, 0)}, r"Widths must be above 0 .* got \[8, 0\]"),
        ({"residual_channels": 0}, r"Widths must be above 0 .* got \[16, 32, 0\]"),
        ({"num_residual_blocks": (0, -1)}, r"numbers of blocks 0 or more, got .* and \[0, -1\]"),
        ({"image_size": 30}, "multiples of 4 pixels are wanted, got 30 x 30"),
        ({"image_size": -4}, "multiples of 4 pixels are wanted, got -4 x -4"),
        ({"image_size": (8, 8, 8)}, "`image_size` must be one number or a pair"),
        ({"likelihood": "poisson"}, "'likelihood' expected one of .*, got poisson"),
        ({"likelihood_scale": 0}, r"`likelihood_scale` must be in \[0.001, 1000\], got 0"),
        (
            {"likelihood": "bernoulli", "likelihood_scale_kind": "shared"},
            "A Bernoulli likelihood has no scale, got `likelihood_scale_kind='shared'`",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        VAEConfig(**settings)


def test_autoencoder_is_deterministic_where_beta_is_zero_unless_told() -> None:
    for settings, is_deterministic in [
        ({}, False),
        ({"beta": 0.1}, False),
        ({"beta": 0}, True),
        ({"beta": 0.0, "is_deterministic": False}, False),
        ({"beta": 0, "is_deterministic": True}, True),
    ]:
        config = VAEConfig(**settings)
        assert config.is_deterministic is is_deterministic
        assert VAEConfig.from_dict(config.to_dict()).is_deterministic is is_deterministic


def test_each_stage_halves_both_sides() -> None:
    assert VAEConfig().downsampling == 4
    config = VAEConfig(hidden_channels=(), num_residual_blocks=(), image_size=(1, 3), latent_channels=7)
    assert config.downsampling == 1 and config.hidden_size == 7
