"""Classes and attention on the page are those of the model itself."""

import pytest
import torch
from PIL import Image
from transformers import SwinConfig, SwinModel, ViTImageProcessor

from hf_vlm import VisionTransformerForImageClassification, VisionTransformerImageProcessor
from hf_vlm.demo.folders import Ability, DemoFolder, look_at_folders
from hf_vlm.demo.loaded_models import LoadedModel, load_model
from hf_vlm.demo.looking import classify, look
from hf_vlm.pipelines.attention_maps import NoAttentionMapError
from tests.demo.tiny_folders import LABELS, model_folders  # noqa: F401 (a fixture)

# ruff: noqa: F811 (a fixture's name is an argument's name)

PICTURE = Image.radial_gradient("L").resize((20, 20)).convert("RGB")


def test_classes_are_ranked_by_the_models_probabilities(model_folders):
    folder = model_folders["classify"]
    model = VisionTransformerForImageClassification.from_pretrained(folder).eval()
    inputs = VisionTransformerImageProcessor.from_pretrained(folder)([PICTURE], return_tensors="pt")
    with torch.no_grad():
        shares = model(**inputs).logits[0].softmax(-1).tolist()
    expected = sorted(zip(LABELS.values(), shares, strict=True), key=lambda row: -row[1])
    found = classify(load_model(*look_at_folders([folder])).use, PICTURE)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], abs=1e-5)


def test_attention_has_a_panel_for_every_head_and_layer(model_folders):
    loaded = load_model(*look_at_folders([model_folders["classify"]]))
    sheet = look(loaded, PICTURE)
    assert [len(panels) for panels in sheet.sections.values()] == [2, 2, 2]
    assert "4 x 4 patches" in sheet.lines[0]
    kernel = loaded.model.config._attn_implementation
    assert kernel != "eager" and look(loaded, PICTURE).lines == sheet.lines  # the model goes on as before


def test_captioner_shows_where_it_looked_for_each_word(model_folders):
    sheet = look(load_model(*look_at_folders([model_folders["caption"]])), PICTURE)
    (panels,) = sheet.sections.values()
    words = sheet.lines[0].split()
    assert [name.split(":")[0] for name, _ in panels[1:]] == words and words


def test_reader_shows_what_its_encoder_looks_at(model_folders):
    sheet = look(load_model(*look_at_folders([model_folders["read"]])), PICTURE.resize((200, 20)))
    assert "patches" in sheet.lines[0]


def test_model_with_windows_shows_its_biases_and_one_with_neither_is_told(tmp_path):
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    folder = DemoFolder("swin", "swin", Ability.ATTENTION, True)
    sheet = look(LoadedModel(folder, SwinModel(config).eval(), processor), PICTURE)
    assert len(sheet.sections) == 2 and all(len(panels) == 2 for panels in sheet.sections.values())
    from transformers import ResNetConfig, ResNetModel

    blind = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()
    with pytest.raises(NoAttentionMapError, match="got none that it tells of from `resnet`"):
        look(LoadedModel(folder, blind, processor), PICTURE)
