"""Our own names in files, home folders for one load only, sizes on loading."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from tests.models.trocr.tiny_models import line_batch, randomise, tiny_reader

HOME = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


def names_in(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.fixture
def home_folder(tmp_path):
    """A ViT as transformers saves it."""
    model = ViTModel(ViTConfig(**HOME))
    randomise(model)
    model.save_pretrained(tmp_path / "home")
    return tmp_path / "home"


def test_parts_of_the_hub_are_saved_under_their_names_in_memory(tmp_path):
    # transformers would write the old names of its ViT, which only its own loader turns back.
    model = tiny_reader({"model_type": "vit", "num_channels": 1} | HOME)
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == set(model.state_dict()) - {"decoder.lm_head.weight"}
    assert "encoder.vision_model.layers.0.attention.q_proj.weight" in names_in(tmp_path)


def test_home_folder_loads_saves_and_reloads_as_ours(home_folder, tmp_path):
    model = VisionTransformerModel.from_pretrained(home_folder)
    model.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("hf_vlm_vit", ["VisionTransformerModel"])
    assert names_in(tmp_path / "ours") == set(model.state_dict())
    reloaded, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    picture = torch.randn(1, 3, 16, 16)
    expected = ViTModel.from_pretrained(home_folder)(picture).last_hidden_state
    torch.testing.assert_close(reloaded(picture).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_loading_a_home_folder_registers_nothing(home_folder):
    VisionTransformerModel.from_pretrained(home_folder)
    for name in ("hf_vlm_vit", "hf_vlm_trocr", "VisionTransformerModel"):
        assert get_checkpoint_conversion_mapping(name) is None
    assert type(AutoModel.from_pretrained(home_folder)) is ViTModel


def test_home_folder_gives_loading_info_on_demand_only(home_folder):
    assert isinstance(VisionTransformerModel.from_pretrained(home_folder), VisionTransformerModel)
    model, info = VisionTransformerModel.from_pretrained(home_folder, output_loading_info=True)
    assert isinstance(model, VisionTransformerModel) and not info["missing_keys"]


def test_home_folder_without_pooler_loads_and_one_without_a_layer_does_not(tmp_path):
    ViTForImageClassification(ViTConfig(**HOME)).save_pretrained(tmp_path)
    VisionTransformerModel.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="got none for .*layers.0"):
        VisionTransformerModel.from_pretrained(tmp_path)


def test_own_folder_without_a_layer_is_refused_unless_loading_info_is_asked_for(tmp_path):
    VisionTransformerModel(VisionTransformerConfig()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "layers.1.attention.k_proj.weight"
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"got none for 1 tensors, the first `{lost}`"):
        VisionTransformerModel.from_pretrained(tmp_path)
    _, info = VisionTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {lost}


def test_folder_of_another_architecture_is_refused_by_name(tmp_path):
    tiny_reader().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="`VisionTransformerModel` reads folders of model type `hf_vlm_vit`.*`hf_vlm_trocr`"
    ):
        VisionTransformerModel.from_pretrained(tmp_path)


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "nowhere")


class _Trap:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("model_type", ["vit", "hf_vlm_vit"])
def test_pickle_is_never_executed(model_type, home_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = home_folder
    if model_type == "hf_vlm_vit":
        VisionTransformerModel.from_pretrained(home_folder).save_pretrained(tmp_path / "ours")
        folder = tmp_path / "ours"
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.cls_token": _Trap()}, folder / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError, pickle.UnpicklingError, RuntimeError)):
        VisionTransformerModel.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [24, (16, 32)])
def test_size_on_loading_resamples_own_and_home_folders(size, home_folder, tmp_path):
    model = VisionTransformerModel.from_pretrained(home_folder)
    model.save_pretrained(tmp_path / "ours")
    height, width = (size, size) if isinstance(size, int) else size
    picture = torch.randn(1, 3, height, width)
    expected = model(picture, interpolate_pos_encoding=True).last_hidden_state
    for loaded in (
        VisionTransformerModel.from_pretrained(home_folder, image_size=size),
        VisionTransformerModel.from_pretrained(tmp_path / "ours", image_size=size),
        AutoModel.from_pretrained(tmp_path / "ours", image_size=size),
        VisionTransformerModel.from_pretrained(
            tmp_path / "ours", config=AutoConfig.from_pretrained(tmp_path / "ours", image_size=size)
        ),
    ):
        torch.testing.assert_close(loaded(picture).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        assert loaded.config.image_size == size


def test_config_of_the_stored_size_resizes_nothing(home_folder, tmp_path):
    model = VisionTransformerModel.from_pretrained(home_folder)
    model.save_pretrained(tmp_path / "ours")
    config = VisionTransformerConfig.from_pretrained(tmp_path / "ours")
    loaded = VisionTransformerModel.from_pretrained(tmp_path / "ours", config=config)
    assert torch.equal(loaded.embeddings.position_embedding, model.embeddings.position_embedding)


def test_dtype_and_device_arguments_reach_transformers(home_folder):
    assert VisionTransformerModel.from_pretrained(home_folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_home_folder_trains_and_its_checkpoint_reloads(tmp_path):
    model = tiny_reader({"model_type": "vit", "num_channels": 1} | HOME)
    batch = line_batch(size=(16, 16), widths=(16, 16))
    rows = [{name: value[row] for name, value in batch.items()} for row in range(2)]
    arguments = TrainingArguments(
        tmp_path, use_cpu=True, max_steps=1, save_steps=1, disable_tqdm=True, report_to="none"
    )
    Trainer(model, arguments, train_dataset=rows).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert names_in(checkpoint) == set(model.state_dict()) - {"decoder.lm_head.weight"}
    reloaded, info = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model.eval()
    assert torch.equal(reloaded(**batch).logits, model(**batch).logits)


def test_settings_by_name_reach_the_config_of_a_home_folder_and_a_whole_config_is_refused(home_folder):
    model = VisionTransformerModel.from_pretrained(home_folder, hidden_dropout_prob=0.25)
    assert model.config.hidden_dropout_prob == 0.25
    with pytest.raises(ValueError, match="give the fields to change by name"):
        VisionTransformerModel.from_pretrained(home_folder, config=VisionTransformerConfig())


def test_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    model = VisionTransformerModel(VisionTransformerConfig(**HOME))
    model.save_pretrained(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    randomise(model)
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    asked = []

    def usage(place):
        asked.append(place)
        return SimpleNamespace(total=10**9, free=size - 1)

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(OSError, match="Saving in .*run wants .* MB free on its disk. Nothing was written"):
        model.save_pretrained(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(OSError, match="Nothing was written"):
        model.save_pretrained(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    assert asked == [tmp_path / "run", tmp_path]
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=10**9, free=size))
    model.save_pretrained(tmp_path / "run")


def test_tied_weights_need_room_once(tmp_path, monkeypatch):
    model = tiny_reader({"model_type": "vit", "num_channels": 1} | HOME)
    tied = model.get_output_embeddings().weight
    assert tied.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) - 4 * tied.numel()
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=10**9, free=size))
    model.save_pretrained(tmp_path)


def test_tied_weights_that_were_gathered_from_processes_are_saved_once(tmp_path):
    model = tiny_reader()
    gathered = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "gathered", state_dict=dict(gathered))
    assert names_in(tmp_path / "gathered") == set(gathered) - {"decoder.lm_head.weight"}
    gathered["decoder.lm_head.weight"] += 1  # then they are not the same, and nothing may be lost
    model.save_pretrained(tmp_path / "apart", state_dict=dict(gathered))
    assert names_in(tmp_path / "apart") == set(gathered)
