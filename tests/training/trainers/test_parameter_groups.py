"""Which parameters decay, and how fast each layer learns, against tables written by hand."""

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from hf_vlm import (
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
)
from hf_vlm.training.trainers.parameter_groups import parameter_depths, parameter_groups

LAYER = {"norm.weight": 0, "norm.bias": 0, "proj.weight": 1, "proj.bias": 0, "table": 0}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(2), nn.Linear(2, 2)
        self.table = nn.Parameter(torch.zeros(3, 2))


class Model(nn.Module):
    """As vision transformers are, with a layer's class also outside the list of layers."""

    _no_split_modules = ["Layer"]

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.position_embedding = nn.Parameter(torch.zeros(1, 5, 2))
        self.patches = nn.Conv2d(3, 2, 2)
        self.before = Layer()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.tables = nn.ModuleList(nn.Embedding(4, 2) for _ in range(2))
        self.final_norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 3)


# name -> (depth, whether it decays)
WANTED = {
    "cls_token": (0, 0),
    "position_embedding": (0, 0),
    "patches.weight": (0, 1),
    "patches.bias": (0, 0),
    **{f"before.{name}": (0, decays) for name, decays in LAYER.items()},
    **{f"layers.0.{name}": (1, decays) for name, decays in LAYER.items()},
    **{f"layers.1.{name}": (2, decays) for name, decays in LAYER.items()},
    "tables.0.weight": (1, 0),
    "tables.1.weight": (2, 0),
    "final_norm.weight": (3, 0),
    "final_norm.bias": (3, 0),
    "head.weight": (3, 1),
    "head.bias": (3, 0),
}


def settings_by_name(model, **settings):
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.3, **settings)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    return {name: (of[id(p)]["lr"], of[id(p)]["weight_decay"]) for name, p in model.named_parameters()}, groups


def test_groups_are_those_of_the_table():
    found, groups = settings_by_name(Model(), layer_decay=0.5)
    rates = {0: 0.125, 1: 0.25, 2: 0.5, 3: 1.0}
    assert found == {name: (rates[depth], 0.3 * decays) for name, (depth, decays) in WANTED.items()}
    assert sum(len(group["params"]) for group in groups) == len(WANTED)
    assert groups[0]["lr"] == 1.0  # what the log tells


def test_without_layer_decay_there_are_two_groups_of_one_rate():
    found, groups = settings_by_name(Model())
    assert found == {name: (1.0, 0.3 * decays) for name, (_, decays) in WANTED.items()}
    assert len(groups) == 2


def test_frozen_parameters_are_in_no_group():
    model = Model()
    model.patches.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.3)
    assert sum(len(group["params"]) for group in groups) == len(WANTED) - 2


def test_depths_of_our_and_transformers_models():
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    ours = VisionTransformerForImageClassification(
        VisionTransformerConfig(**shape, relative_position_bias="per_layer", pooling="mean")
    )
    depths, number = parameter_depths(ours)
    assert number == 2
    assert depths["vision_model.embeddings.position_embedding"] == 0
    assert depths["vision_model.layers.1.mlp.fc1.weight"] == 2
    assert depths["vision_model.relative_position_biases.0.table"] == 1
    assert depths["classifier.output_layer.weight"] == depths["vision_model.pooler.norm.weight"] == 3
    depths, number = parameter_depths(ViTForImageClassification(ViTConfig(**shape, intermediate_size=8)))
    assert (number, depths["vit.embeddings.cls_token"], depths["classifier.weight"]) == (2, 0, 3)
    swin = SwinTransformerForImageClassification(
        SwinTransformerConfig(embed_dim=8, depths=[1, 2, 1], num_attention_heads=[1] * 3)
    )
    depths, number = parameter_depths(swin)
    assert number == 4
    found = {name: depth for name, depth in depths.items() if "reduction" in name or name.endswith("fc1.bias")}
    assert found == {
        "vision_model.stages.0.layers.0.mlp.fc1.bias": 1,
        "vision_model.stages.0.merging.reduction.weight": 1,
        "vision_model.stages.1.layers.0.mlp.fc1.bias": 2,
        "vision_model.stages.1.layers.1.mlp.fc1.bias": 3,
        "vision_model.stages.1.merging.reduction.weight": 3,
        "vision_model.stages.2.layers.0.mlp.fc1.bias": 4,
    }


def test_layer_decay_of_a_model_that_names_no_layers_is_refused():
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    )
    model._no_split_modules = None
    with pytest.raises(ValueError, match="names its layers in `_no_split_modules`, got `ResNetForImage"):
        parameter_groups(model, learning_rate=1.0, weight_decay=0.0, layer_decay=0.9)
