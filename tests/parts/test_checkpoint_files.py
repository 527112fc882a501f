import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from hf_vlm.parts.checkpoint_files import read_config, read_weights


@pytest.fixture
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertModel(config)


def assert_same(weights: dict[str, torch.Tensor], model: BertModel) -> None:
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_single_file_is_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert_same(read_weights(tmp_path), model)
    assert read_config(str(tmp_path))["hidden_size"] == 16


def test_shards_are_joined(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(read_weights(tmp_path), model)


def test_last_save_is_what_loads_whether_in_shards_or_not(tmp_path):
    config = VisionTransformerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    for max_shard_size in ("1GB", "10KB", "1GB", "10KB", "20KB"):
        saved = VisionTransformerModel(config)
        saved.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        expected = saved.state_dict()
        loaded = VisionTransformerModel.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
        read = read_weights(tmp_path)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())
        names = {path.name for path in tmp_path.glob("model*")}
        assert ("model.safetensors" in names) == (max_shard_size == "1GB") == (len(names) == 1)


def test_missing_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"`{shard.name}` missing. Copy or download"):
        read_weights(tmp_path)


def test_shard_without_a_promised_tensor_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name}` must hold \d+ tensors by its index, got none named"):
        read_weights(tmp_path)


def test_truncated_file_is_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        read_weights(tmp_path)


def test_git_lfs_pointer_is_named_with_the_fix(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_weights(tmp_path)


def test_folder_without_weights_says_what_it_holds(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`model\.safetensors`.*got a folder with config\.json"):
        read_weights(tmp_path)


def test_folder_without_config_says_what_it_holds(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"`config\.json` wanted.*got a folder with model\.safetensors"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_config_that_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json` must"):
        read_config(tmp_path)


def test_name_that_is_nowhere_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for read in (read_config, read_weights):
        with pytest.raises(FileNotFoundError, match="nobody/no-such-model"):
            read("nobody/no-such-model", local_files_only=True)


def test_pytorch_files_are_read_where_there_is_nothing_else(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(read_weights(tmp_path), model)


def test_safetensors_are_preferred_to_a_pickle(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same(read_weights(tmp_path), model)


def test_sharded_pytorch_files_are_joined(model, tmp_path):
    names = sorted(model.state_dict())
    shards = {"pytorch_model-1.bin": names[:7], "pytorch_model-2.bin": names[7:]}
    for shard, keys in shards.items():
        torch.save({key: model.state_dict()[key] for key in keys}, tmp_path / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(read_weights(tmp_path), model)


class Payload:
    """What a hostile file does when a careless reader unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_pickled_code_is_refused_and_never_run(plain_pickle, tmp_path):
    trace = tmp_path / "executed"
    content = {"weight": Payload(trace)}
    if plain_pickle:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="never executed"):
        read_weights(tmp_path)
    assert not trace.exists()


def test_training_checkpoint_is_no_state_dict(model, tmp_path):
    torch.save({"model": model.state_dict(), "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"Save the model's `state_dict\(\)` alone"):
        read_weights(tmp_path)
