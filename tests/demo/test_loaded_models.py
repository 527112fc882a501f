"""Models are loaded when they are first wanted, once, and let go of when there is no room."""

import pytest
import torch
from torch import nn

from hf_vlm import CnnLstmForConditionalGeneration, PageReader, VAEModel, VisionTransformerForImageClassification
from hf_vlm.demo.folders import Ability, DemoFolder, look_at_folders
from hf_vlm.demo.loaded_models import LoadedModel, LoadedModels, load_model
from tests.demo.tiny_folders import model_folders  # noqa: F401 (a fixture)

# ruff: noqa: F811 (a fixture's name is an argument's name)


def folder(name):
    return DemoFolder(name, name, Ability.READ, True)


@pytest.fixture
def loads():
    """Names, in the order in which they were loaded, 4 bytes of weights each."""
    names = []

    def load(one):
        names.append(one.name)
        return LoadedModel(one, nn.Linear(1, 1, bias=False), None)

    load.names = names
    return load


def test_model_is_loaded_once_and_none_before_it_is_wanted(loads):
    models = LoadedModels(loads)
    assert loads.names == []
    assert models.get(folder("a")) is models.get(folder("a"))
    assert loads.names == ["a"]


def test_one_wanted_longest_ago_goes_when_there_is_no_room(loads):
    models = LoadedModels(loads, kept_bytes=8)
    for name in ("a", "b", "a", "c", "a", "c", "b"):
        models.get(folder(name))
    assert loads.names == ["a", "b", "c", "b"]  # c drove b out, b then a


def test_model_that_is_larger_than_the_room_is_kept_until_another_is_wanted(loads):
    models = LoadedModels(loads, kept_bytes=1)
    for name in ("a", "a", "b", "b", "a"):
        models.get(folder(name))
    assert loads.names == ["a", "b", "a"]


def test_model_that_did_not_load_is_tried_again():
    faults = [ValueError("damaged")]

    def load(one):
        if faults:
            raise faults.pop()
        return LoadedModel(one, nn.Linear(1, 1), None)

    models = LoadedModels(load)
    with pytest.raises(ValueError, match="damaged"):
        models.get(folder("a"))
    assert models.get(folder("a")).num_bytes == 8


def test_each_kind_is_loaded_as_what_it_is(model_folders):
    kinds = {
        "read": PageReader,
        "caption": CnnLstmForConditionalGeneration,
        "latents": VAEModel,
        "classify": VisionTransformerForImageClassification,
    }
    for name, kind in kinds.items():
        loaded = load_model(*look_at_folders([model_folders[name]]))
        assert isinstance(loaded.use if name == "read" else loaded.model, kind)
        assert not loaded.model.training and loaded.model.dtype == torch.float32
        assert loaded.image_processor(drawn(), return_tensors="pt")["pixel_values"].ndim == 4


def drawn():
    from PIL import Image

    return [Image.new("RGB", (40, 30), "red")]


def test_folder_without_a_processor_is_told(model_folders, tmp_path):
    model = VisionTransformerForImageClassification.from_pretrained(model_folders["classify"])
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="m must hold a processor beside the model, got none"):
        load_model(*look_at_folders([tmp_path / "m"]))
