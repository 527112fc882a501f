"""Where an adapter's base is looked for, and what of the Hub's arguments reaches it."""

import json
import os
from pathlib import Path

import pytest
import torch

from hf_vlm import VisionTransformerConfig, VisionTransformerForImageClassification
from hf_vlm.parts import adapter_loading
from hf_vlm.parts.adapter_loading import base_of_adapter, find_base, load_with_adapter
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter

TINY = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved_model(folder: str, seed: int = 0) -> VisionTransformerForImageClassification:
    torch.manual_seed(seed)
    model = VisionTransformerForImageClassification(VisionTransformerConfig(**TINY, num_labels=2))
    torch.nn.init.normal_(model.vision_model.final_norm.bias)
    model.save_pretrained(folder)
    return VisionTransformerForImageClassification.from_pretrained(folder)


@pytest.fixture
def adapter(tmp_path, monkeypatch) -> Path:
    """An adapter, `runs/adapter`, of `runs/base` beside it; the working directory is another one."""
    monkeypatch.chdir(tmp_path)
    save_adapter(add_lora(saved_model("runs/base"), LoraSection(rank=2)), "runs/adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "runs" / "adapter"


def test_base_of_the_hub_is_no_folder_of_its_last_name(adapter):
    saved_model(os.fspath(adapter.parent / "base"), seed=1)
    saved_model(os.fspath(adapter.parent / "someone" / "base"), seed=1)
    assert find_base(adapter, "someone/base") == "someone/base"


def test_folder_that_might_be_on_the_hub_is_known_by_its_weights(adapter):
    assert find_base(adapter, "runs/base") == os.fspath(adapter.parent / "base")  # as adapters of old name it
    (adapter / "base_weights.json").unlink()
    assert find_base(adapter, "runs/base") == "runs/base"


@pytest.mark.parametrize("named", ["./base", "../work/base", "a/runs/base"])
def test_name_written_as_a_path_is_looked_for_around_the_adapter(adapter, named):
    saved_model(os.fspath(adapter.parent / "base"), seed=1)  # whatever it holds: loading compares
    assert find_base(adapter, named) == os.fspath(adapter.parent / "base")


def test_folder_of_that_name_from_the_working_directory_goes_first(adapter):
    saved_model("someone/base", seed=1)
    assert find_base(adapter, "someone/base") == "someone/base"
    assert find_base(adapter, "./someone/base") == "./someone/base"


def test_model_of_the_package_is_taken_where_the_name_is_a_way_to_it(adapter, tmp_path, monkeypatch):
    shipped = tmp_path / "site" / "model_cards" / "reader"
    saved_model(os.fspath(shipped), seed=1)
    monkeypatch.setattr(adapter_loading, "default_ocr_model", lambda: shipped)
    assert find_base(adapter, "../lib/model_cards/reader") == os.fspath(shipped)
    for other in ("someone/reader", "model_cards/reader", "../runs/reader"):
        assert find_base(adapter, other) == other


def test_arguments_for_the_hub_reach_the_base_but_for_those_of_the_adapters_files(adapter, monkeypatch):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "someone/other"}))
    asked = {}
    monkeypatch.setattr(adapter_loading, "read_config", lambda name, **where: asked.update({name: where}))
    given = {"token": "secret", "cache_dir": "cache", "local_files_only": True}
    assert base_of_adapter(adapter, **given, revision="v2") == "someone/other"
    assert asked == {"someone/other": given}

    class Loader:
        @staticmethod
        def from_pretrained(name, **where):
            asked[name] = where
            return VisionTransformerForImageClassification.from_pretrained(adapter.parent / "base")

    load_with_adapter(Loader, adapter, {**given, "revision": "v2"}, dtype=torch.float32)
    assert asked == {"someone/other": {**given, "dtype": torch.float32}}
