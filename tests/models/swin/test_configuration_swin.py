import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (2, 2, 2)}, r"one entry a stage, got \[2, 2, 2\] and \[2, 4\]"),
        ({"depths": (2, 0)}, r"must have a layer and a head, got \[2, 0\] layers"),
        ({"num_attention_heads": (2, 5)}, "got 32 for 5 heads in stage 2"),
        ({"window_size": 0}, "`window_size` must be one positive number"),
        ({"patch_size": (2, 2, 2)}, "`patch_size` must be one positive number"),
        ({"patch_size": 64}, "must not exceed `image_size`, got 64 for pictures of 32"),
        ({"num_linear_layers": 0}, "`num_linear_layers` must be at least 1"),
        ({"label_smoothing": 1}, r"`label_smoothing` must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        SwinTransformerConfig(**settings)


def test_stages_are_named_for_backbones() -> None:
    config = SwinTransformerConfig(depths=(1, 1, 1), num_attention_heads=(1, 2, 4), out_indices=[1, 3])
    assert config.out_features == ["stage1", "stage3"]
    assert config.hidden_size == 64
    reloaded = SwinTransformerConfig.from_dict(config.to_dict())
    assert reloaded.out_features == config.out_features and reloaded.depths == [1, 1, 1]
