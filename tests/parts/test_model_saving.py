"""What a save leaves in a folder that held something before, on a full disk, and where processes share the weights."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from hf_vlm import (
    CnnLstmForConditionalGeneration,
    VisionTransformerConfig,
    VisionTransformerModel,
)
from hf_vlm.parts.weight_report import REPORT_FILE, WeightReport, describe_part, hash_weights
from hf_vlm.sharing.new_folder import new_folder
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def tiny_vit(seed: int = 0) -> VisionTransformerModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    return VisionTransformerModel(VisionTransformerConfig(**sizes))


def reported() -> CnnLstmForConditionalGeneration:
    model = tiny_captioner()
    parts = {"vision": model.encoder.vision_model, "decoder": model.decoder}
    model.weight_report = WeightReport([describe_part(name, part, source="me/it") for name, part in parts.items()])
    return model


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)


def has_weights_of(folder: Path, model: VisionTransformerModel) -> bool:
    loaded = type(model).from_pretrained(folder).state_dict()
    return all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def both_kinds(folder: Path) -> VisionTransformerModel:
    """A folder that holds one file and shards, of which the file loads."""
    model = tiny_vit()
    model.save_pretrained(folder, max_shard_size="5KB")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return model


def number_with_six_digits(folder: Path) -> None:
    """Rename the shards as some writers number them."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = {shard: shard.replace("-of-", "-of-0") for shard in set(index["weight_map"].values())}
    for old, new in names.items():
        (folder / old).rename(folder / new)
    index["weight_map"] = {name: names[shard] for name, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("before", ["shards", "shards of six digits", "one file", "both"])
@pytest.mark.parametrize("size", ["50GB", "5KB"])
def test_what_was_saved_last_is_what_loads(before, size, tmp_path):
    if before == "both":
        both_kinds(tmp_path)
    else:
        tiny_vit().save_pretrained(tmp_path, max_shard_size="50GB" if before == "one file" else "5KB")
    if before == "shards of six digits":
        number_with_six_digits(tmp_path)
    others = ["model.safetensors.bak", "my-model-00001-of-00002.safetensors", "adapter_model.safetensors", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    model = tiny_vit(seed=1)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert has_weights_of(tmp_path, model)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    weights = {path.name for path in tmp_path.glob("model*")} - set(others)
    if size == "50GB":
        assert weights == {"model.safetensors"}
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert weights == {"model.safetensors.index.json", *index["weight_map"].values()}


@pytest.mark.parametrize("rank", ["said not to be main", "not the first"])
def test_process_that_does_not_write_leaves_the_folder_as_it_is(rank, tmp_path, monkeypatch):
    both_kinds(tmp_path)
    (tmp_path / REPORT_FILE).write_text("{}")
    before = contents(tmp_path)
    model = tiny_vit()
    monkeypatch.setattr("shutil.disk_usage", lambda place: pytest.fail("asked for room"))
    monkeypatch.setattr(model, "state_dict", lambda *args, **kwargs: pytest.fail("waits for the other processes"))
    if rank == "not the first":
        monkeypatch.setattr(model, "should_save_on_this_rank", lambda is_main_process: False)
    model.save_pretrained(tmp_path, rank == "not the first", state_dict={})  # as accelerate has it beside FSDP
    assert contents(tmp_path) == before


def test_adapter_and_variant_leave_the_weights_beside_them(tmp_path, monkeypatch):
    both_kinds(tmp_path)
    (tmp_path / REPORT_FILE).write_text("{}")
    before = contents(tmp_path)
    tiny_vit().save_pretrained(tmp_path, variant="fp16")
    assert before.items() <= contents(tmp_path).items()
    (tmp_path / "model.fp16.safetensors").unlink()
    adapted = tiny_vit()
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.1")
    adapted.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    assert before.items() <= contents(tmp_path).items() and (tmp_path / "adapter_config.json").is_file()


def test_whole_model_beside_an_adapter_is_refused(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"got .* with `adapter_config.json`.*Nothing was written. Save elsewhere, or"):
        tiny_vit(seed=1).save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(NotADirectoryError, match="got the file"):
        tiny_vit().save_pretrained(tmp_path / "model")


def test_report_of_an_older_model_goes_with_its_weights(tmp_path):
    reported().save_pretrained(tmp_path)
    model = tiny_captioner()
    moved(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / REPORT_FILE).exists()
    assert not hasattr(type(model).from_pretrained(tmp_path), "weight_report")


def test_saving_some_weights_leaves_the_report_in_memory_whole(tmp_path):
    model = reported()
    before = [(part.name, part.sha256) for part in model.weight_report.parts]
    some = {name: 2 * value for name, value in model.state_dict().items() if name.startswith("decoder.")}
    hashed = hash_weights({name.removeprefix("decoder."): value for name, value in some.items()})
    model.save_pretrained(tmp_path, state_dict=some)
    assert [(part.name, part.sha256) for part in WeightReport.load(tmp_path).parts] == [("decoder", hashed)]
    assert [(part.name, part.sha256) for part in model.weight_report.parts] == before


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    """This process as a group of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch's own about its tensors
def test_report_of_weights_that_processes_share_is_that_of_the_files(group, tmp_path, monkeypatch):
    model = reported()
    moved(model)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    mesh = init_device_mesh("cpu", (1,))
    for module in model.decoder.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(distribute_tensor(weight.detach(), mesh)))
    with pytest.raises(Exception):  # noqa: B017, PT011 - why the files are read: these tensors have no bytes to hash
        hash_weights(model.decoder.state_dict())
    monkeypatch.setattr(model, "gather_sharded_state_dict_for_save", lambda *args, **kwargs: dict(whole))
    model.save_pretrained(tmp_path / "model")
    saved = WeightReport.load(tmp_path / "model")
    for part, path in (("vision", "encoder.vision_model"), ("decoder", "decoder")):
        own = {name.removeprefix(f"{path}."): value for name, value in whole.items() if name.startswith(f"{path}.")}
        assert saved[part].sha256 == hash_weights(own)


def test_state_of_fsdp_modules_is_not_asked_for_by_one_process(tmp_path, monkeypatch):
    model = tiny_vit()
    monkeypatch.setitem(model.layers[0]._modules, "_fsdp_wrapped_module", nn.Identity())
    weights = {name: value for name, value in tiny_vit().state_dict().items()}
    monkeypatch.setattr(model, "state_dict", lambda *args, **kwargs: pytest.fail("waits for the other processes"))
    model.save_pretrained(tmp_path, state_dict=weights)
    assert has_weights_of(tmp_path, tiny_vit())


def test_disk_that_tells_no_size_is_not_asked_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=0, used=0, free=0))
    tiny_vit().save_pretrained(tmp_path)
    assert has_weights_of(tmp_path, tiny_vit())


@pytest.mark.parametrize("error", [SafetensorError(FULL), OSError(122, "Disk quota exceeded")])
def test_disk_that_ends_while_saving_is_told_with_the_folder(error, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(
        OSError, match=rf"^Saving in {tmp_path}.* got .*(No space|quota).*Free some room, or save elsewh"
    ):
        tiny_vit().save_pretrained(tmp_path)


@pytest.mark.parametrize("error", [SafetensorError(FULL), OSError(28, "No space left on device")])
def test_export_to_a_full_disk_is_told_and_leaves_nothing(error, tmp_path):
    with pytest.raises(OSError, match=r"^Writing .*out wants a disk with room.*Nothing was left there. Free some room"):
        with new_folder(tmp_path / "out") as written:
            (written / "half").write_text("a")
            raise error
    assert os.listdir(tmp_path) == []
    with pytest.raises(SafetensorError, match="header"), new_folder(tmp_path / "out"):
        raise SafetensorError("Error while deserializing header: header too large")  # of what was read, no full disk
