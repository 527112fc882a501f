import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig


def test_left_out_values_follow_from_the_others() -> None:
    config = VisionTransformerConfig(hidden_size=48, patch_size=(16, 4), stem_channels=(8, 8), pooling="mean")
    assert config.intermediate_size == 192
    assert config.patch_stride == (16, 4)
    assert config.stem_strides == [2, 2]
    assert config.final_norm is False
    assert VisionTransformerConfig().final_norm is True


def test_config_survives_its_file(tmp_path) -> None:
    config = VisionTransformerConfig(
        image_size=(32, 1024), patch_size=(32, 8), stem_channels=[8], stem_strides=[(2, 1)]
    )
    config.save_pretrained(tmp_path)
    reloaded = VisionTransformerConfig.from_pretrained(tmp_path)
    assert reloaded.to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30}, "got 30 and 4"),
        ({"image_size": (32, 32, 3)}, "`image_size` must be one positive number"),
        ({"patch_size": 0}, "`patch_size` must be one positive number"),
        ({"patch_stride": 12}, "got 12 for 8 pixels of height"),
        ({"patch_size": 64}, "got 64 for 32 pixels of height"),
        ({"stem_channels": (8, 8), "stem_strides": (2,)}, "got 1 for 2 `stem_channels`"),
        ({"stem_channels": (8, 8), "patch_size": 6}, "for a stem stride of 4"),
        ({"use_cls_token": False, "pooling": "cls"}, "needs a CLS token"),
        ({"use_cls_token": False, "use_distillation_token": True}, "needs a CLS token"),
        ({"use_distillation_token": True, "relative_position_bias": "shared"}, "got `use_distillation_token=True`"),
        ({"pooling": "max"}, "pooling"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be above 0, got 0"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must be in \[0, 1\), got 1.0"),
        ({"hidden_act": "foo"}, "`hidden_act` must be one of transformers' activations, got 'foo'"),
        ({"mask_ratio": 1.0}, "`mask_ratio` must be between 0 and 1, got 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        VisionTransformerConfig(**settings)
