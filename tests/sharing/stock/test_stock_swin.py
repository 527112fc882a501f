"""Oracle: transformers' own Swin, every parameter random, and our model's outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel

from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.image_processing_swin import SwinTransformerImageProcessor
from hf_vlm.models.swin.modeling_swin import (
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
)
from hf_vlm.sharing.stock.swin import largest_difference, to_stock, to_stock_processor

TINY = {"embed_dim": 12, "depths": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 2}
ROUND_TRIPS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "features": (SwinTransformerModel, SwinModel, {"layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    "without biases": (SwinTransformerModel, SwinModel, {"qkv_bias": False, "mlp_ratio": 2.0, "num_channels": 1}),
    "absolute positions": (SwinTransformerModel, SwinModel, {"use_absolute_embeddings": True}),
    "window as large as the last map": (SwinTransformerModel, SwinModel, {"window_size": 8}),
    "classes": (
        SwinTransformerForImageClassification,
        SwinForImageClassification,
        {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "drop_path_rate": 0.2},
    ),
    "maps": (SwinTransformerBackbone, SwinBackbone, {"out_features": ["stage1", "stage2"]}),
}
FREE_SETTINGS = {"transformers_version", "architectures", "dtype", "_name_or_path"}


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def own_model(model_class: Any = SwinTransformerModel, **settings: Any) -> PreTrainedModel:
    model = model_class(SwinTransformerConfig(**{**TINY, "num_attention_heads": [2, 3], **settings})).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_stock_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    own_class, stock_class, settings = ROUND_TRIPS[name]
    stock = stock_class(SwinConfig(**{**TINY, "num_heads": [2, 3], **settings})).eval()
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


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_own_model_gives_the_same_on_pictures_of_any_size(size: tuple[int, int]) -> None:
    model = own_model(image_size=(32, 64))
    stock, notes = to_stock(model)
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, got = model(pixels), stock(pixels)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
    assert largest_difference(model, stock) < 2e-6
    assert "drop path" in notes[0]


def test_notes_are_empty_when_nothing_differs() -> None:
    assert to_stock(own_model(drop_path_rate=0.0))[1] == []


def test_settings_without_a_counterpart_are_refused_by_name() -> None:
    refused = (
        (own_model(window_size=(2, 4)), "window_size"),
        (own_model(window_size=9), r"window_size(.|\n)*8 x 8 patches in stage 2"),
        (own_model(SwinTransformerForImageClassification, num_linear_layers=2), "num_linear_layers"),
    )
    for model, word in refused:
        with pytest.raises(ValueError, match=rf"{word}(.|\n)*export-code"):
            to_stock(model)


def test_image_processor_gives_equal_pixels() -> None:
    own = SwinTransformerImageProcessor(size={"height": 24, "width": 40})
    stock, _ = to_stock_processor(own, None)
    picture = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy()
    expected = own(picture, return_tensors="pt")["pixel_values"]
    assert type(stock).__name__ == "ViTImageProcessor"
    assert torch.equal(stock(picture, return_tensors="pt")["pixel_values"], expected)
