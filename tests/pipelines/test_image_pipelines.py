"""transformers' own picture pipelines serve our encoders."""

import logging

import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vlm import (
    DVAEConfig,
    DVAEImageProcessor,
    DVAEModel,
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
    SwinTransformerImageProcessor,
    VAEConfig,
    VAEImageProcessor,
    VAEModel,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerImageProcessor,
    VQVAEConfig,
    VQVAEImageProcessor,
    VQVAEModel,
)

FAMILIES = {
    "vit": (
        VisionTransformerForImageClassification,
        VisionTransformerConfig(hidden_size=16, pooling="mean", id2label={0: "cat", 1: "dog", 2: "eel"}),
        VisionTransformerImageProcessor,
    ),
    "swin": (
        SwinTransformerForImageClassification,
        SwinTransformerConfig(id2label={0: "cat", 1: "dog", 2: "eel"}),
        SwinTransformerImageProcessor,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    model_class, config, processor_class = FAMILIES[request.param]
    torch.manual_seed(0)
    model_class(config).save_pretrained(path)
    processor_class(size={"height": 32, "width": 32}).save_pretrained(path)
    return path, model_class, processor_class


PICTURES = [Image.new("RGB", (50, 40), "red"), Image.new("L", (20, 60), 80)]


def test_image_classification(folder, caplog) -> None:
    path, model_class, processor_class = folder
    with caplog.at_level(logging.WARNING):
        classify = pipeline("image-classification", model=str(path))
    assert "not supported" not in caplog.text
    model, processor = model_class.from_pretrained(path), processor_class.from_pretrained(path)
    with torch.no_grad():
        expected = model(**processor(PICTURES, return_tensors="pt")).logits.softmax(-1)
    for answers, probabilities in zip(classify(PICTURES, batch_size=2), expected, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert [scores[name] for name in ("cat", "dog", "eel")] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_image_feature_extraction(folder) -> None:
    path, model_class, processor_class = folder
    extract = pipeline("image-feature-extraction", model=str(path))
    model, processor = model_class.from_pretrained(path).vision_model, processor_class.from_pretrained(path)
    with torch.no_grad():
        expected = model(**processor(PICTURES[:1], return_tensors="pt"))
    torch.testing.assert_close(torch.tensor(extract(PICTURES[0])), expected.last_hidden_state, atol=1e-5, rtol=0)
    pooled = torch.tensor(extract(PICTURES[0], pool=True))
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_class", "config_class", "processor_class"),
    [
        (VAEModel, VAEConfig, VAEImageProcessor),
        (VQVAEModel, VQVAEConfig, VQVAEImageProcessor),
        (DVAEModel, DVAEConfig, DVAEImageProcessor),
    ],
)
def test_image_feature_extraction_of_visual_tokenizers(model_class, config_class, processor_class, tmp_path) -> None:
    model, processor = model_class(config_class()).eval(), processor_class()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**processor(PICTURES[:1], return_tensors="pt")).last_hidden_state
    features = pipeline("image-feature-extraction", model=str(tmp_path))(PICTURES[0])
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=0)
