"""Tiny models of every architecture, saved as folders to export."""

from pathlib import Path
from typing import Any

import torch

from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from tests.models.llava.tiny_llava import randomise, tiny_tokenizer
from tests.models.trocr.tiny_models import CANVAS, tiny_config

LABELS = ("cat", "dog", "bird")
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": (16, 24), "patch_size": 8}
SWIN = {
    "embed_dim": 8,
    "depths": (1, 2),
    "num_attention_heads": (2, 2),
    "image_size": (40, 24),
    "patch_size": 4,
    "window_size": 3,
}


def vit_config(**settings: Any) -> VisionTransformerConfig:
    return VisionTransformerConfig(**{**VIT, "id2label": dict(enumerate(LABELS)), **settings})


def swin_config(**settings: Any) -> SwinTransformerConfig:
    return SwinTransformerConfig(**{**SWIN, "id2label": dict(enumerate(LABELS)), **settings})


def saved(model: Any, folder: Path) -> Path:
    """The folder with a model whose random weights matter."""
    model.save_pretrained(folder)
    return folder


def random_weights(model: Any) -> Any:
    """The model, with weights that matter."""
    torch.manual_seed(0)
    randomise(model)
    return model.eval()


def parting_ends(written: torch.Tensor, start: int) -> list[int]:
    """A token that ends texts at as many different places as any does, if it is made an end token.

    Args:
        written: int64 (batch, tokens), what a model writes without an end.
        start: where its own words begin.
    """

    def places(token: int) -> set[int]:
        rows = [row[start:] for row in written.tolist()]
        return {row.index(token) if token in row else len(row) for row in rows}

    return [max(written[:, start:].unique().tolist(), key=lambda token: (len(places(token)), min(places(token))))]


def line_processor(size: tuple[int, int] = CANVAS) -> TrOCREncoderDecoderProcessor:
    """Pads lines to whole patches of 8 pixels."""
    pictures = VisionTransformerImageProcessor(
        size={"height": size[0], "width": size[1]},
        keep_aspect_ratio=True,
        pad_multiple=8,
        do_convert_grayscale=True,
        image_mean=[0.5],
        image_std=[0.5],
    )
    return TrOCREncoderDecoderProcessor(pictures, tiny_tokenizer())


def saved_reader(folder: Path, *args: Any, generation: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A reader of lines of any width, saved with its processor; the model."""
    text = {"norm_position": "pre", "tie_word_embeddings": False, **settings.pop("text", {})}
    torch.manual_seed(0)
    config = tiny_config(*args, text=text, **settings)
    model = random_weights(TrOCREncoderDecoderForConditionalGeneration(config))
    model.generation_config.update(**(generation or {}))
    model.save_pretrained(folder)
    line_processor().save_pretrained(folder)
    return model
