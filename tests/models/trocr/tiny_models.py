"""Tiny parts and readers that the TrOCR tests share."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration

VOCAB_SIZE = 40
PAD, START, END = 0, 1, 2
CANVAS = (16, 48)  # pixels, (height, width)
WIDTHS = (48, 24, 37)  # pixels, of the three pictures of a batch

LINE_ENCODER = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_channels": 1,
    "image_size": CANVAS,
    "patch_size": (8, 8),
    "use_cls_token": False,
}
TEXT_DECODER = {
    "model_type": "hf_vlm_trocr_text",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "cross_attention_size": 16,
    "max_position_embeddings": 20,
    "dropout": 0.0,
}


def tiny_config(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **settings: Any):
    """Config of a reader of lines; `vision` and `text` change single fields, or with a `model_type` everything."""
    vision, text = vision or {}, text or {}
    return TrOCREncoderDecoderConfig(
        vision_config=vision if "model_type" in vision else LINE_ENCODER | vision,
        text_config=text if "model_type" in text else TEXT_DECODER | text,
        **settings,
    )


def randomise(model: nn.Module, std: float = 0.3) -> None:
    """Give every tensor, norms and biases too, values that matter; a fresh model says nearly the same to all."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()


def tiny_reader(*args: Any, std: float = 0.3, **settings: Any) -> TrOCREncoderDecoderForConditionalGeneration:
    """A reader with random weights that matter."""
    model = TrOCREncoderDecoderForConditionalGeneration(tiny_config(*args, **settings)).eval()
    randomise(model, std)
    return model


def line_batch(
    num_channels: int = 1, size: tuple[int, int] = CANVAS, widths: tuple[int, ...] = WIDTHS
) -> dict[str, torch.Tensor]:
    """Pictures of different widths, padded, with their mask and with labels of seven, six or five tokens."""
    generator = torch.Generator().manual_seed(3)
    pixel_values = torch.randn(len(widths), num_channels, *size, generator=generator)
    pixel_mask = torch.zeros(len(widths), *size, dtype=torch.long)
    labels = torch.randint(3, VOCAB_SIZE, (len(widths), 7), generator=generator)
    for row, width in enumerate(widths):
        pixel_mask[row, :, :width] = 1
        labels[row, 6 - row % 3] = END
        labels[row, 7 - row % 3 :] = -100
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}
