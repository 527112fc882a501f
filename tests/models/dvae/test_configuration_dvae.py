import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vlm.models.dvae.configuration_dvae import DVAEConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "`temperature` must be above 0, got 0"),
        ({"temperature": -1.0}, "`temperature` must be above 0, got -1.0"),
        ({"kl_weight": -1}, "`kl_weight` must be 0 or more, got -1"),
        ({"num_codes": 1}, "`num_codes` must be 2 or more, got 1"),
        ({"code_dim": 0}, "`code_dim` must be above 0, got 0"),
        ({"num_groups": 0}, "`num_groups` must be above 0, got 0"),
        ({"num_blocks_per_group": 0}, "`num_blocks_per_group` must be above 0, got 0"),
        ({"num_latent_samples": 0}, "`num_latent_samples` must be above 0, got 0"),
        ({"group_channels": 6}, "`group_channels` must be a multiple of 4, .* got 6"),
        ({"image_size": 30}, "multiples of 4 pixels are wanted, got 30 x 30"),
        ({"likelihood": "bernoulli"}, "A Bernoulli likelihood has no scale, got `likelihood_scale_kind='predicted'`"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        DVAEConfig(**settings)


def test_preset_is_the_published_model_and_may_differ() -> None:
    config = DVAEConfig.preset("dall-e", image_size=128)
    assert (config.num_codes, config.downsampling, config.image_size) == (8192, 8, 128)
    assert config.temperature == 0.0625 and config.kl_weight == 6.6
    assert DVAEConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="one of dall-e, got `dall-e-2`"):
        DVAEConfig.preset("dall-e-2")
