"""A folder of a tiny model for every tab of the page."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from hf_vlm import (
    CnnLstmForConditionalGeneration,
    CnnLstmProcessor,
    VAEConfig,
    VAEImageProcessor,
    VAEModel,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerImageProcessor,
    default_ocr_model,
)
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from tests.tiny_tokenizers import saved, tiny_vqvae

LABELS = {0: "ant", 1: "bee", 2: "cat"}


def write_captioner(folder: Path) -> str:
    """Writes three words about any picture, and looks anew for each."""
    tokenizer = build_word_tokenizer(["one two three", "three two one"], min_count=1)
    vision = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_beams": 1, "max_new_tokens": 6}
    model = CnnLstmForConditionalGeneration.from_pretrained_parts(
        vision=vision, text=tokenizer, attention="additive", **sizes
    )
    processor = CnnLstmProcessor.from_pretrained_parts(ViTImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    return write(folder, model, processor)


def write_classifier(folder: Path) -> str:
    """Knows three classes, and likes one of them for a picture."""
    config = VisionTransformerConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        id2label=LABELS,
        initializer_range=0.5,
    )
    processor = VisionTransformerImageProcessor(size={"height": 16, "width": 16})
    return write(folder, VisionTransformerForImageClassification(config), processor)


def write_vae(folder: Path) -> str:
    """8 x 8 pixels to latents and back."""
    config = VAEConfig(image_size=8, hidden_channels=(8, 8), num_residual_blocks=(1, 0))
    return write(folder, VAEModel(config), VAEImageProcessor(size={"height": 8, "width": 8}))


def write_asker(folder: Path) -> str:
    """The reader that comes with the package, under a card that says it answers questions; its answers mean nothing."""
    shutil.copytree(default_ocr_model(), folder)
    (folder / "README.md").write_text("---\ntags:\n- vqa\n---\n# asker\n", encoding="utf-8")
    return str(folder)


def write(folder: Path, *parts) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders by what their models do: read, caption, ask, tokens, latents, classify."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    return {
        "read": str(default_ocr_model()),
        "caption": write_captioner(root / "captioner"),
        "ask": write_asker(root / "asker"),
        "tokens": saved(tiny_vqvae(), root / "tokenizer"),
        "latents": write_vae(root / "vae"),
        "classify": write_classifier(root / "classifier"),
    }


def drawn_line(text: str, size: int = 26) -> Image.Image:
    """Dark text on white paper, one line."""
    font = ImageFont.load_default(size=size)
    picture = Image.new("RGB", (round(font.getlength(text)) + 20, size + 16), "white")
    ImageDraw.Draw(picture).text((10, 6), text, fill="black", font=font)
    return picture
