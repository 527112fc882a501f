"""Oracle: transformers' own ViT, DeiT and BEiT, with every parameter random, saved by themselves."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from hf_vlm.models.vit.weights_vit import weights_from_home

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}

MODELS = {
    "vit": (ViTModel, ViTConfig, {}),
    "vit_without_qkv_bias": (ViTModel, ViTConfig, {"qkv_bias": False, "layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    "vit_gray": (ViTModel, ViTConfig, {"num_channels": 1}),
    "deit": (DeiTModel, DeiTConfig, {}),
    "beit": (BeitModel, BeitConfig, {}),
    "beit_absolute": (BeitModel, BeitConfig, {"use_absolute_position_embeddings": True}),
    "beit_relative": (BeitModel, BeitConfig, {"use_relative_position_bias": True}),
    "beit_shared": (BeitModel, BeitConfig, {"use_shared_relative_position_bias": True}),
    "beit_relative_and_shared": (
        BeitModel,
        BeitConfig,
        {"use_relative_position_bias": True, "use_shared_relative_position_bias": True},
    ),
    "beit_mask_token": (BeitModel, BeitConfig, {"use_mask_token": True}),
    "beit_cls_pooling": (BeitModel, BeitConfig, {"use_mean_pooling": False}),
    "beit_without_layer_scale": (BeitModel, BeitConfig, {"layer_scale_init_value": 0.0}),
    "beit_all": (
        BeitModel,
        BeitConfig,
        {
            "use_absolute_position_embeddings": True,
            "use_relative_position_bias": True,
            "use_mask_token": True,
            "use_mean_pooling": False,
            "drop_path_rate": 0.2,
        },
    ),
}
HEADS = {
    "vit_classifier": (ViTForImageClassification, ViTConfig, {}),
    "vit_simmim": (ViTForMaskedImageModeling, ViTConfig, {"encoder_stride": 8}),
    "deit_teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, {}),
    "deit_simmim": (DeiTForMaskedImageModeling, DeiTConfig, {"encoder_stride": 8}),
    "beit_classifier": (BeitForImageClassification, BeitConfig, {"use_relative_position_bias": True}),
    "beit_words": (
        BeitForMaskedImageModeling,
        BeitConfig,
        {"use_shared_relative_position_bias": True, "use_mask_token": True},
    ),
    "beit_words_cls": (
        BeitForMaskedImageModeling,
        BeitConfig,
        {"use_shared_relative_position_bias": True, "use_mask_token": True, "use_mean_pooling": False},
    ),
    "beit_segmentation": (
        BeitForSemanticSegmentation,
        BeitConfig,
        {"use_relative_position_bias": True, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "add_fpn": True},
    ),
}


def random_model(model_class: type, config_class: type, settings: dict) -> PreTrainedModel:
    """Every weight random, zero-initialised ones too: a table put in the wrong place must show."""
    torch.manual_seed(1)
    model = model_class(config_class(**{**TINY, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def assert_equal_outputs(ours: VisionTransformerModel, theirs: PreTrainedModel, height: int, width: int) -> None:
    pixel_values = torch.randn(2, theirs.config.num_channels, height, width)
    other_size = (height, width) != (32, 32)
    with torch.no_grad():
        # BEiT stretches its positions by itself, and reads the argument as an order to stretch attention too.
        expected = theirs(pixel_values, interpolate_pos_encoding=other_size)
        got = ours(pixel_values, interpolate_pos_encoding=other_size)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    if expected.pooler_output is not None:
        torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_foreign_folder_gives_equal_outputs(name: str, tmp_path: Path) -> None:
    theirs = random_model(*MODELS[name])
    theirs.save_pretrained(tmp_path)
    ours, report = VisionTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert ours.pooler is not None
    assert_equal_outputs(ours, theirs, 32, 32)
    assert_equal_outputs(ours, theirs, 40, 24)


@pytest.mark.parametrize("name", ["vit", "deit", "beit_absolute", "beit_relative", "beit_shared", "beit_all"])
def test_foreign_folder_resized_on_loading_equals_interpolation_at_run_time(name: str, tmp_path: Path) -> None:
    theirs = random_model(*MODELS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    VisionTransformerModel.from_pretrained(tmp_path / "theirs", image_size=(40, 24)).save_pretrained(tmp_path / "ours")
    resized = VisionTransformerModel.from_pretrained(tmp_path / "ours")
    pixel_values = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        expected = theirs(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        got = resized(pixel_values).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_folder_of_a_head_gives_its_base_model(name: str, tmp_path: Path) -> None:
    theirs = random_model(*HEADS[name])
    theirs.save_pretrained(tmp_path)
    ours, report = VisionTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert ours.pooler is None or name in ("beit_classifier", "beit_words_cls")  # the latter's pooler has no weights
    assert_equal_outputs(ours, theirs.base_model, 32, 32)


@pytest.mark.parametrize("name", ["deit", "beit_relative", "beit_all"])
def test_foreign_folder_saved_and_reloaded_is_an_ordinary_folder_of_ours(name: str, tmp_path: Path) -> None:
    random_model(*MODELS[name]).save_pretrained(tmp_path / "theirs")
    loaded = VisionTransformerModel.from_pretrained(tmp_path / "theirs")
    loaded.save_pretrained(tmp_path / "ours")
    reloaded, report = VisionTransformerModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert reloaded.config.model_type == "hf_vlm_vit"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name


@pytest.mark.parametrize("name", ["vit_simmim", "deit_simmim", "beit_words"])
def test_masked_patches_equal_the_home_implementation(name: str, tmp_path: Path) -> None:
    theirs = random_model(*HEADS[name])
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformerModel.from_pretrained(tmp_path)
    pixel_values, hidden = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.4
    with torch.no_grad():
        expected = theirs.base_model(pixel_values, bool_masked_pos=hidden).last_hidden_state
        got = ours(pixel_values, bool_masked_pos=hidden).last_hidden_state
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_gradients_equal_the_home_implementation(tmp_path: Path) -> None:
    theirs = random_model(*MODELS["beit_relative"])
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformerModel.from_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 32)
    for model in (ours, theirs):
        model(pixel_values).last_hidden_state.square().sum().backward()
    torch.testing.assert_close(
        ours.relative_position_biases[1].table.grad,
        theirs.layers[1].relative_position_bias.relative_position_bias_table.grad,
        atol=1e-4,
        rtol=1e-4,
    )


def test_unknown_tensor_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"got 1 without: `vit.embeddings.register_tokens`"):
        weights_from_home(
            VisionTransformerModel.config_class(), {"vit.embeddings.register_tokens": torch.zeros(1, 4, 24)}
        )


def test_unusual_pooler_is_refused() -> None:
    with pytest.raises(ValueError, match="must be tanh over 24 channels, got `gelu`"):
        VisionTransformerModel.foreign_config(ViTConfig(**TINY, pooler_act="gelu").to_dict())


def test_old_index_buffer_is_left_out(tmp_path: Path) -> None:
    weights = {
        "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index": torch.zeros(2)
    }
    assert weights_from_home(VisionTransformerModel.config_class(), weights) == ({}, {})


def test_layer_without_a_place_is_refused(tmp_path: Path) -> None:
    random_model(*MODELS["vit"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match="must have its place in the model of its config, got 16 without"):
        VisionTransformerModel.from_pretrained(tmp_path)
