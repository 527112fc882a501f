"""Which checkpoint folders count as written to their end."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_vlm.training.runs import find_checkpoint
from hf_vlm.training.supervision.checkpoints import last_complete_checkpoint


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


def write_state(folder, num_processes):
    clock = {"args": {}, "attributes": {"sessions": [{"num_processes": num_processes}]}}
    (folder / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"SessionClock": clock}}))


def test_checkpoint_of_several_processes_has_the_random_state_of_each(tmp_path, caplog):
    folder = write_checkpoint(tmp_path, 4)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert last_complete_checkpoint(tmp_path) == folder  # by a Trainer that didn't tell of its processes
    write_state(folder, 2)
    assert last_complete_checkpoint(tmp_path) is None
    assert "`rng_state_1.pth` is missing or cut off" in caplog.text
    torch.save({"state": torch.ones(64)}, folder / "rng_state_1.pth")
    assert last_complete_checkpoint(tmp_path) == folder


@pytest.mark.parametrize("cut", [None, "pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"])
def test_checkpoint_of_fsdp_has_files_of_its_own(tmp_path, cut):
    folder = write_checkpoint(tmp_path, 4)
    (folder / "optimizer.pt").rename(folder / "optimizer.bin")
    torch.save({"weight": torch.ones(64)}, folder / "pytorch_model_fsdp.bin")
    if cut is not None:
        file = folder / cut
        file.write_bytes(file.read_bytes()[:100])
    assert last_complete_checkpoint(tmp_path) == (folder if cut is None else None)


def test_checkpoint_of_deepspeed_has_a_share_of_the_optimizer_for_each_process(tmp_path, caplog):
    folder = write_checkpoint(tmp_path, 4)
    write_state(folder, 2)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):  # all of which ZeRO-3 may keep itself
        (folder / name).unlink()
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    (folder / "latest").write_text("global_step4")
    shares = folder / "global_step4"
    shares.mkdir()
    names = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in range(2) for kind in ("model", "optim")]
    for file in (*(shares / name for name in names), folder / "rng_state_1.pth"):
        torch.save({"state": torch.ones(64)}, file)
    assert last_complete_checkpoint(tmp_path) == folder
    share = shares / names[-1]
    content = share.read_bytes()
    share.write_bytes(content[:100])
    assert last_complete_checkpoint(tmp_path) is None
    assert f"`{share.name}` is missing or cut off" in caplog.text
    share.unlink()
    assert last_complete_checkpoint(tmp_path) is None
    assert "`global_step4` has 1 of 2 shares of the optimizer" in caplog.text


def test_checkpoint_of_adapters_is_complete(tmp_path):
    folder = write_checkpoint(tmp_path, 4)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert last_complete_checkpoint(tmp_path) == folder


def test_required_checkpoint_that_is_missing_or_cut_off_is_told(tmp_path):
    assert find_checkpoint(tmp_path, resume=True) is None
    folder = write_checkpoint(tmp_path, 4)
    assert find_checkpoint(tmp_path, resume="required") == folder
    assert find_checkpoint(tmp_path, resume=False) is None
    (folder / "scheduler.pt").unlink()
    with pytest.raises(FileNotFoundError, match=f"wanted in {tmp_path}, got none that was written to its end"):
        find_checkpoint(tmp_path, resume="required")


def test_checkpoint_that_was_set_aside_comes_back_where_the_new_one_is_not_whole(tmp_path):
    folder = write_checkpoint(tmp_path, 4)
    before = folder.rename(tmp_path / ".before-checkpoint-4")
    assert last_complete_checkpoint(tmp_path) is None  # which only looks: the run may be saving now
    folder.mkdir()
    assert find_checkpoint(tmp_path, resume=True) == folder and not before.exists()
    before.mkdir()
    (before / "model.safetensors").write_bytes(b"half removed")
    assert find_checkpoint(tmp_path, resume=True) == folder and not before.exists()


def test_all_processes_go_on_from_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    def broadcast(found, src):
        assert found == [None] and src == 0
        found[0] = tmp_path / "checkpoint-4"

    write_checkpoint(tmp_path, 6)  # that the first process didn't see whole
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert find_checkpoint(tmp_path, resume=True) == tmp_path / "checkpoint-4"
