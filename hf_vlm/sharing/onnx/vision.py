"""Models of pictures alone as ONNX graphs: ViT and Swin, with and without a classifier, and the visual tokenizers.

model.onnx    pixel_values -> last_hidden_state (, pooler_output), or logits, or feature maps
encode.onnx   pixel_values -> code_ids, or latents of a VAE
decode.onnx   code_ids or latents -> pictures
"""

from typing import Any

import torch
from torch import nn

from hf_vlm.models.dvae.modeling_dvae import DVAEModel
from hf_vlm.models.swin.modeling_swin import SwinTransformerBackbone, SwinTransformerForImageClassification
from hf_vlm.models.vae.modeling_vae import VAEModel
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.masked_image_modeling import VisionTransformerForMaskedImageModeling
from hf_vlm.models.vit.modeling_vit import VisionTransformerBackbone
from hf_vlm.models.vqvae.modeling_vqvae import VQVAEModel
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.sharing.onnx.graphs import OnnxGraph

_PIXEL_AXES = {0: "batch"}


class _VisionModel(nn.Module):
    """A vision model's outputs by name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values)
        if getattr(outputs, "feature_maps", None):
            return {f"feature_map_{place}": one for place, one in enumerate(outputs.feature_maps)}
        names = ("logits", "last_hidden_state", "pooler_output")
        return {name: outputs[name] for name in names if getattr(outputs, name, None) is not None}


class _Encode(nn.Module):
    """Pictures to codes or latents."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.name: self.model.encode(pixel_values)}


class _Decode(nn.Module):
    """Codes or latents to pictures."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pictures": self.model.decode(inputs[self.name])}


def vision_graphs(model: Any) -> tuple[list[OnnxGraph], dict[str, Any]]:
    """The graph of a ViT or Swin, and what its runtime must know.

    Batches of any number; pictures of the configured size, as its image processor makes them.

    Raises:
        ValueError: if it is a head for pre-training.
    """
    if isinstance(model, VisionTransformerForMaskedImageModeling):
        raise ValueError(
            f"A model that reads whole pictures is wanted, got `{type(model).__name__}`, which hides patches to learn. Save its "
            "encoder, `VisionTransformerModel.from_pretrained(folder).save_pretrained(other)`, and export that."
        )
    height, width = configured_image_size(model.config)
    channels = getattr(model.config, "num_channels", 3)
    graph = OnnxGraph(
        "model",
        _VisionModel(model),
        {"pixel_values": torch.rand(2, channels, height, width)},
        {"pixel_values": torch.rand(3, channels, height, width)},
        {name: _PIXEL_AXES for name in ("pixel_values", "logits", "last_hidden_state", "pooler_output")},
    )
    settings: dict[str, Any] = {"image_size": [height, width]}
    if isinstance(model, VisionTransformerBackbone | SwinTransformerBackbone):
        settings["feature_maps"] = list(model.out_features)
        graph.axes |= {f"feature_map_{place}": _PIXEL_AXES for place in range(len(model.out_features))}
    if isinstance(model, VisionTransformerForImageClassification | SwinTransformerForImageClassification):
        settings["labels"] = [model.config.id2label[place] for place in range(model.config.num_labels)]
    return [graph], settings


def tokenizer_graphs(model: VAEModel | VQVAEModel | DVAEModel) -> tuple[list[OnnxGraph], dict[str, Any]]:
    """The two graphs of a visual tokenizer, and what its runtime must know; for pictures of any size in whole cells."""
    config = model.config
    name = "latents" if isinstance(model, VAEModel) else "code_ids"
    cell = config.downsampling
    example, check = (
        torch.rand(batch, config.num_channels, rows * cell, columns * cell)
        for batch, rows, columns in ((2, 3, 4), (3, 5, 2))
    )
    pixel_axes = {0: "batch", 2: "height", 3: "width"}
    first = 2 if name == "latents" else 1  # behind the channels
    grid_axes = {0: "batch", first: "rows", first + 1: "columns"}
    graphs = [
        OnnxGraph(
            "encode",
            _Encode(model, name),
            {"pixel_values": example},
            {"pixel_values": check},
            {"pixel_values": pixel_axes, name: grid_axes},
        ),
        OnnxGraph(
            "decode",
            _Decode(model, name),
            {name: model.encode(example)},
            {name: model.encode(check)},
            {name: grid_axes, "pictures": pixel_axes},
        ),
    ]
    settings = {"codes": name, "cell_size": cell}
    if name == "code_ids":
        settings["num_codes"] = config.num_codes
    return graphs, settings
