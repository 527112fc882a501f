"""Which checkpoint folders count as written to their end."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_vlm.training.checkpoints import last_complete_checkpoint


def write_checkpoint(output_dir, step):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"weight": torch.ones(64)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(64)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def test_no_folder_and_no_checkpoint_give_none(tmp_path):
    assert last_complete_checkpoint(tmp_path / "missing") is None
    assert last_complete_checkpoint(tmp_path) is None


def test_last_checkpoint_is_the_one_of_the_highest_step_not_of_the_last_name(tmp_path):
    for step in (9, 10, 100):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("harm", ["missing", "cut off", "empty"])
def test_half_written_checkpoint_is_passed_over(tmp_path, caplog, name, harm):
    good = write_checkpoint(tmp_path, 2)
    file = write_checkpoint(tmp_path, 4) / name
    content = file.read_bytes()
    file.unlink()
    if harm != "missing":
        file.write_bytes(b"" if harm == "empty" else content[: len(content) // 2])
    assert last_complete_checkpoint(tmp_path) == good
    assert "checkpoint-4 was not written to its end" in caplog.text


def test_checkpoint_that_lacks_a_shard_is_passed_over(tmp_path, caplog):
    folder = write_checkpoint(tmp_path, 4)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert last_complete_checkpoint(tmp_path) is None
    assert "`model-00002-of-00002.safetensors` is missing" in caplog.text


def test_checkpoint_of_several_processes_is_complete(tmp_path):
    folder = write_checkpoint(tmp_path, 4)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert last_complete_checkpoint(tmp_path) == folder
