"""A tiny model of every class that takes adapters, what it is called with, and how the tests compare what it says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
    PreTrainedModel,
)

from hf_vlm import (
    DVAEConfig,
    DVAEModel,
    SwinTransformerBackbone,
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
    VAEConfig,
    VAEModel,
    VisionTransformerBackbone,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerForMaskedImageModeling,
    VisionTransformerModel,
    VQVAEConfig,
    VQVAEModel,
)
from tests.models.cnn_lstm.tiny_captioners import caption_batch, tiny_captioner
from tests.models.llava.tiny_llava import CLIP_VISION, picture_batch, tiny_llava
from tests.models.swin.tiny_swin import TINY as SWIN
from tests.models.trocr.tiny_models import line_batch, tiny_reader

VIT = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONVOLUTIONAL = {"image_size": 8, "hidden_channels": (8, 8), "num_residual_blocks": (1, 0)}


@dataclass
class Adaptable:
    """One class: how a model is made, what it is asked, which roles have adapters by default and which train beside.

    Attributes:
        make: gives a model whose weights are random.
        batch: its inputs.
        auto: what loads its folder: an auto class, but for backbones, whose auto class knows no adapters.
        roles, train: what `LoraSection()` means for it.
        others: further roles that take adapters.
    """

    make: Callable[[], PreTrainedModel]
    batch: Callable[[], dict[str, torch.Tensor]]
    auto: Any
    roles: list[str]
    train: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def shaken(model: PreTrainedModel, std: float = 0.1) -> PreTrainedModel:
    """The model, its weights moved: what starts at zero matters too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value += std * torch.randn(value.shape, generator=generator)
    return model.eval()


def pictures(size: int, number: int = 2) -> dict[str, torch.Tensor]:
    """Pictures with values in [0, 1]."""
    generator = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.rand(number, 3, size, size, generator=generator)}


def masked_pictures() -> dict[str, torch.Tensor]:
    """Pictures of 16 patches, every second of which is hidden."""
    return pictures(16) | {"bool_masked_pos": (torch.arange(16) % 2).bool().expand(2, 16)}


ADAPTABLE = {
    "llava": Adaptable(
        lambda: tiny_llava(vision=CLIP_VISION, vision_feature_layer=-2),
        lambda: picture_batch(4),
        AutoModelForImageTextToText,
        ["language"],
        ["projector"],
        ["vision", "projector"],
    ),
    "trocr": Adaptable(
        lambda: tiny_reader(text={"cross_attention_size": 24}),
        line_batch,
        AutoModelForImageTextToText,
        ["decoder"],
        others=["vision", "projector"],
    ),
    "cnn_lstm": Adaptable(
        tiny_captioner, caption_batch, AutoModelForImageTextToText, ["decoder"], others=["vision", "projector"]
    ),
    "cnn_lstm_attention": Adaptable(
        lambda: tiny_captioner("additive"),
        caption_batch,
        AutoModelForImageTextToText,
        ["decoder"],
        others=["vision", "projector"],
    ),
    "vae": Adaptable(
        lambda: shaken(VAEModel(VAEConfig(**CONVOLUTIONAL))),
        lambda: pictures(8),
        AutoModel,
        ["encoder"],
        others=["decoder"],
    ),
    "vqvae": Adaptable(
        lambda: shaken(VQVAEModel(VQVAEConfig(**CONVOLUTIONAL, num_codes=16, code_dim=4, kmeans_iterations=0))),
        lambda: pictures(8),
        AutoModel,
        ["encoder"],
        others=["decoder"],
    ),
    "dvae": Adaptable(
        lambda: shaken(DVAEModel(DVAEConfig(image_size=8, num_codes=16, code_dim=8, hidden_channels=(8, 8)))),
        lambda: pictures(8),
        AutoModel,
        ["encoder"],
        others=["decoder"],
    ),
    "vit": Adaptable(
        lambda: shaken(VisionTransformerModel(VisionTransformerConfig(**VIT))),
        lambda: pictures(16),
        AutoModel,
        ["encoder"],
    ),
    "vit_classifier": Adaptable(
        lambda: shaken(VisionTransformerForImageClassification(VisionTransformerConfig(**VIT, num_labels=3))),
        lambda: pictures(16) | {"labels": torch.tensor([0, 2])},
        AutoModelForImageClassification,
        ["encoder"],
        ["classifier"],
        ["classifier"],
    ),
    "vit_masked_pixels": Adaptable(
        lambda: shaken(
            VisionTransformerForMaskedImageModeling(VisionTransformerConfig(**VIT, position_embedding="sincos"))
        ),
        masked_pictures,
        AutoModelForMaskedImageModeling,
        ["encoder"],
        ["pixel_decoder"],
        ["pixel_decoder"],
    ),
    "vit_backbone": Adaptable(
        lambda: shaken(VisionTransformerBackbone(VisionTransformerConfig(**VIT, out_features=["stage1", "stage2"]))),
        lambda: pictures(16),
        VisionTransformerBackbone,
        ["encoder"],
    ),
    "swin": Adaptable(
        lambda: shaken(SwinTransformerModel(SwinTransformerConfig(**SWIN))),
        lambda: pictures(32),
        AutoModel,
        ["encoder"],
    ),
    "swin_classifier": Adaptable(
        lambda: shaken(SwinTransformerForImageClassification(SwinTransformerConfig(**SWIN, num_labels=3))),
        lambda: pictures(32) | {"labels": torch.tensor([0, 2])},
        AutoModelForImageClassification,
        ["encoder"],
        ["classifier"],
        ["classifier"],
    ),
    "swin_backbone": Adaptable(
        lambda: shaken(SwinTransformerBackbone(SwinTransformerConfig(**SWIN, out_features=["stage1", "stage2"]))),
        lambda: pictures(32),
        SwinTransformerBackbone,
        ["encoder"],
    ),
}


def said(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model makes of a batch, as one float tensor: codes are chosen by the same draws every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model.eval()(**batch)
    for name in ("logits", "reconstruction", "last_hidden_state"):
        if isinstance(outputs.get(name), torch.Tensor):
            tensors = [outputs[name]]
            if name == "reconstruction" and outputs.get("last_hidden_state") is not None:
                tensors.append(outputs["last_hidden_state"])
            return torch.cat([tensor.flatten().float() for tensor in tensors])
    return torch.cat([feature.flatten() for feature in outputs["feature_maps"]])
