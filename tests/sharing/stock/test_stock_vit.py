"""Oracle: transformers' own vision transformers, every parameter random, and our model's outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BeitBackbone,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor, VisionTransformerImageProcessorPil
from hf_vlm.models.vit.masked_image_modeling import VisionTransformerForMaskedImageModeling
from hf_vlm.models.vit.modeling_vit import VisionTransformerBackbone, VisionTransformerModel
from hf_vlm.sharing.stock.vit import largest_difference, to_stock, to_stock_processor

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
MAE = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
ROUND_TRIPS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "vit": (VisionTransformerModel, ViTModel, ViTConfig, {"layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    "vit without biases": (VisionTransformerModel, ViTModel, ViTConfig, {"qkv_bias": False, "num_channels": 1}),
    "vit classes": (
        VisionTransformerForImageClassification,
        ViTForImageClassification,
        ViTConfig,
        {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "problem_type": "single_label_classification"},
    ),
    "deit": (VisionTransformerModel, DeiTModel, DeiTConfig, {}),
    "deit classes": (VisionTransformerForImageClassification, DeiTForImageClassification, DeiTConfig, {}),
    "deit two heads": (VisionTransformerForImageClassification, DeiTForImageClassificationWithTeacher, DeiTConfig, {}),
    "beit": (VisionTransformerModel, BeitModel, BeitConfig, {"use_relative_position_bias": True}),
    "beit shared": (VisionTransformerModel, BeitModel, BeitConfig, {"use_shared_relative_position_bias": True}),
    "beit absolute": (
        VisionTransformerModel,
        BeitModel,
        BeitConfig,
        {"use_absolute_position_embeddings": True, "use_mask_token": True, "use_mean_pooling": False},
    ),
    "beit without scale": (VisionTransformerModel, BeitModel, BeitConfig, {"layer_scale_init_value": 0.0}),
    "beit classes": (VisionTransformerForImageClassification, BeitForImageClassification, BeitConfig, {}),
    "beit codes": (
        VisionTransformerForMaskedImageModeling,
        BeitForMaskedImageModeling,
        BeitConfig,
        {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 40},
    ),
    "beit maps": (VisionTransformerBackbone, BeitBackbone, BeitConfig, {"out_features": ["stage1", "stage2"]}),
    "mae": (
        VisionTransformerForMaskedImageModeling,
        ViTMAEForPreTraining,
        ViTMAEConfig,
        {**MAE, "decoder_intermediate_size": 64, "mask_ratio": 0.5, "norm_pix_loss": True},
    ),
}
# Settings of ours -> the class that computes the same.
OWN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "positions of rows and columns": (VisionTransformerModel, {"position_embedding": "learned_2d"}, "ViTModel"),
    "fixed positions": (VisionTransformerModel, {"position_embedding": "sincos"}, "ViTModel"),
    "wide pictures": (VisionTransformerModel, {"image_size": (16, 48), "patch_size": (8, 4)}, "ViTModel"),
    "no key bias": (
        VisionTransformerModel,
        {"key_bias": False, "use_distillation_token": True, "pooling": "cls"},
        "DeiTModel",
    ),
    "no CLS token": (VisionTransformerModel, {"use_cls_token": False, "use_mask_token": True}, "IJepaModel"),
    "no CLS token, classes": (
        VisionTransformerForImageClassification,
        {"use_cls_token": False, "drop_path_rate": 0.1},
        "IJepaForImageClassification",
    ),
    "layer scale and key bias": (
        VisionTransformerModel,
        {"layer_scale_init_value": 0.1, "pooling": "cls_token"},
        "BeitModel",
    ),
    "beit without biases": (
        VisionTransformerForImageClassification,
        {"qkv_bias": False, "key_bias": False, "relative_position_bias": "per_layer", "pooling": "mean"},
        "BeitForImageClassification",
    ),
    "beit, nothing pooled": (
        VisionTransformerModel,
        {"position_embedding": "none", "relative_position_bias": "shared", "final_norm": False, "image_size": (32, 32)},
        "BeitModel",
    ),
    "registers": (VisionTransformerModel, {"num_register_tokens": 3}, "Dinov2WithRegistersModel"),
    "registers, classes": (
        VisionTransformerForImageClassification,
        {"num_register_tokens": 2, "layer_scale_init_value": 0.5, "use_mask_token": True},
        "Dinov2WithRegistersForImageClassification",
    ),
    "maps": (VisionTransformerBackbone, {"out_features": ["stem", "stage2"], "key_bias": False}, "Dinov2Backbone"),
    "maps with registers": (VisionTransformerBackbone, {"num_register_tokens": 2}, "Dinov2WithRegistersBackbone"),
    "pixels": (
        VisionTransformerForMaskedImageModeling,
        {**MAE, "position_embedding": "learned", "pooling": "mean", "final_norm": True},
        "ViTMAEForPreTraining",
    ),
}
REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "stem_channels": (VisionTransformerModel, {"stem_channels": (8,)}),
    "patch_stride": (VisionTransformerModel, {"patch_stride": 4}),
    "backbone_config": (
        VisionTransformerModel,
        {
            "backbone_config": {"model_type": "resnet", "depths": [1, 1], "embedding_size": 8, "hidden_sizes": [8, 16]},
            "patch_size": 1,
        },
    ),
    "num_linear_layers": (VisionTransformerForImageClassification, {"num_linear_layers": 2}),
    "pooling": (VisionTransformerForImageClassification, {"pooling": "cls"}),
    "relative_position_bias": (
        VisionTransformerModel,
        {"use_cls_token": False, "relative_position_bias": "shared"},
    ),
    "position_embedding": (
        VisionTransformerModel,
        {"use_distillation_token": True, "position_embedding": "none"},
    ),
    "final_norm": (VisionTransformerModel, {"use_cls_token": False, "final_norm": False}),
    "layer_scale_init_value": (
        VisionTransformerModel,
        {"use_distillation_token": True, "layer_scale_init_value": 0.1},
    ),
    "num_register_tokens": (VisionTransformerModel, {"use_distillation_token": True, "num_register_tokens": 1}),
    "image_size": (VisionTransformerModel, {"image_size": (32, 16), "relative_position_bias": "shared"}),
    "intermediate_size": (VisionTransformerModel, {"intermediate_size": 40, "num_register_tokens": 1}),
    "I-JEPA": (VisionTransformerBackbone, {"use_cls_token": False}),
}
# What a config says that no class of ours keeps, or that only belongs to a head.
FREE_SETTINGS = {"transformers_version", "architectures", "dtype", "_name_or_path", "vocab_size", "use_mask_token"}


def randomise(model: torch.nn.Module) -> None:
    """Every weight random, those that start as zero too: a table put in the wrong place must show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def own_model(model_class: Any, settings: dict[str, Any]) -> PreTrainedModel:
    model = model_class(VisionTransformerConfig(**{**TINY, **settings})).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_stock_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    own_class, stock_class, config_class, settings = ROUND_TRIPS[name]
    stock = stock_class(config_class(**{**TINY, **settings})).eval()
    randomise(stock)
    stock.save_pretrained(tmp_path)
    back, _ = to_stock(own_class.from_pretrained(tmp_path))
    assert type(back) is stock_class
    expected, got = stock.state_dict(), back.state_dict()
    assert list(got) == list(expected)
    for key in expected:
        assert torch.equal(got[key], expected[key]), key
    before, after = stock.config.to_dict(), back.config.to_dict()
    assert {key for key in before if before[key] != after[key]} <= FREE_SETTINGS


@pytest.mark.parametrize("name", OWN)
def test_own_model_gives_the_same_as_its_counterpart(name: str) -> None:
    model_class, settings, expected = OWN[name]
    model = own_model(model_class, settings)
    stock, _ = to_stock(model)
    assert type(stock).__name__ == expected
    assert largest_difference(model, stock) < 2e-6
    if model_class is VisionTransformerModel:
        height, width = (32, 32) if name != "wide pictures" else (16, 48)
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(
                stock(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-5
            )


def test_largest_difference_is_large_when_a_tensor_is_in_the_wrong_place() -> None:
    model = own_model(VisionTransformerForImageClassification, {})
    stock, _ = to_stock(model)
    with torch.no_grad():
        stock.vit.layers[0].mlp.fc1.bias.copy_(stock.vit.layers[1].mlp.fc1.bias)
    assert largest_difference(model, stock) > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_setting_without_a_counterpart_is_refused_by_name(name: str) -> None:
    model_class, settings = REFUSED[name]
    with pytest.raises(ValueError, match=rf"{name}(.|\n)*export-code"):
        to_stock(own_model(model_class, settings))


def test_codes_behind_a_final_norm_are_refused_as_transformers_mixes_up_two_norms() -> None:
    settings = {"masked_image_target": "codes", "num_codes": 20, "position_embedding": "none"}
    with pytest.raises(ValueError, match="final_norm"):
        to_stock(own_model(VisionTransformerForMaskedImageModeling, settings))


def test_notes_tell_what_came_out_in_another_form() -> None:
    model = own_model(
        VisionTransformerModel,
        {
            "position_embedding": "sincos",
            "drop_path_rate": 0.1,
            "use_mask_token": True,
            "position_resampling": "bilinear",
        },
    )
    notes = "\n".join(to_stock(model)[1])
    for word in ("pooler_output", "fixed positions", "drop path", "mask token", "bilinear"):
        assert word in notes
    assert to_stock(own_model(VisionTransformerModel, {"pooling": "cls"}))[1] == []


def test_dtype_is_kept() -> None:
    stock, _ = to_stock(own_model(VisionTransformerModel, {"pooling": "cls"}).half())
    assert {tensor.dtype for tensor in stock.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize("processor_class", [VisionTransformerImageProcessor, VisionTransformerImageProcessorPil])
def test_image_processor_gives_equal_pixels_of_rgb(processor_class: Any) -> None:
    own = processor_class(size={"height": 24, "width": 40}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    stock, notes = to_stock_processor(own, None)
    assert type(stock).__name__ == processor_class.__name__.replace("VisionTransformer", "ViT")
    picture = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8).permute(1, 2, 0).numpy()
    expected = own(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(stock(picture, return_tensors="pt")["pixel_values"], expected)
    assert any("turned by EXIF" in note for note in notes)


def test_image_processor_that_transformers_lacks_is_left_out_and_its_pixels_told() -> None:
    own = VisionTransformerImageProcessor(
        do_convert_grayscale=True, keep_aspect_ratio=True, size={"height": 32, "width": 256}, image_std=0.25
    )
    stock, notes = to_stock_processor(own, None)
    assert stock is None
    for word in ("do_convert_grayscale", "(batch, 1, 32, 256)", "0.00392157", "minus 0.5", "divided by 0.25"):
        assert word in notes[0]
    assert to_stock_processor(ViTImageProcessor(), None)[1] == []
