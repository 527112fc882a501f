import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vlm.models.vqvae.configuration_vqvae import VQVAEConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 1}, "`num_codes` must be 2 or more, got 1"),
        ({"code_dim": 0}, "`code_dim` must be above 0, got 0"),
        ({"discretisation": "binary", "code_dim": 21}, "must be at most 1048576, got 2097152"),
        (
            {"discretisation": "binary", "code_dim": 3, "num_codes": 9},
            r"makes 8 codes of 3 numbers, got `num_codes=9` and `code_dim=3`",
        ),
        ({"discretisation": "levels", "levels": (3, 4), "code_dim": 3}, "12 codes of 2 numbers, got .*`code_dim=3`"),
        ({"discretisation": "levels", "levels": (3, 1)}, r"Each of `levels` must be 2 or more, got \[3, 1\]"),
        ({"discretisation": "levels", "levels": ()}, "`num_codes` must be 2 or more, got 1"),
        ({"levels": (3, 4)}, "`levels` are those of `discretisation='levels'`, got them with 'codebook'"),
        ({"discretisation": "product"}, "'discretisation' expected one of .*, got product"),
        ({"codebook_update": "adam"}, "'codebook_update' expected one of .*, got adam"),
        ({"ema_decay": 1}, r"`ema_decay` must be in \[0, 1\), got 1"),
        ({"revive_below": -0.1}, r"`revive_below` must be in \[0, 1\), got -0.1"),
        ({"commitment_weight": -1}, "`commitment_weight` must be 0 or more, got -1"),
        ({"kmeans_iterations": -1}, "`kmeans_iterations` must be 0 or more, got -1"),
        ({"image_size": (32, 30)}, "multiples of 4 pixels are wanted, got 32 x 30"),
        ({"likelihood_scale": 1e4}, r"`likelihood_scale` must be in \[0.001, 1000\], got 10000"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        VQVAEConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "num_codes", "code_dim"),
    [
        ({}, 64, 8),
        ({"num_codes": 512, "code_dim": 3}, 512, 3),
        ({"discretisation": "binary", "code_dim": 5}, 32, 5),
        ({"discretisation": "levels", "levels": (8, 6, 5)}, 240, 3),
    ],
)
def test_numbers_of_codes_follow_from_the_discretisation(settings: dict, num_codes: int, code_dim: int) -> None:
    made = VQVAEConfig(**settings)
    for config in (made, VQVAEConfig.from_dict(made.to_dict())):
        assert (config.num_codes, config.code_dim, config.hidden_size) == (num_codes, code_dim, code_dim)
