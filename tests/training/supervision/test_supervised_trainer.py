"""A run stops on a NaN or infinite number, on signals, full disks and for want of memory, says what to do, and loses nothing."""

import errno
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from hf_vlm.training.runs import find_checkpoint, run
from hf_vlm.training.supervision.checkpoints import last_complete_checkpoint
from hf_vlm.training.supervision.stop_signals import TrainingStopped
from hf_vlm.training.tasks import build_trainer, load_recipe, train
from scripts.engines_on_cpus import use_engines_on_cpus
from tests.training.processes import FSDP2, on_two_processes, write
from tests.training.tiny_runs import FAMILIES, After, AtEnd, recipe_for, weight_of, weights_in

# Numbers that are none


@pytest.mark.parametrize(
    "family", ["classifier", *(pytest.param(name, marks=pytest.mark.slow) for name in list(FAMILIES)[1:])]
)
def test_nan_stops_a_run_of_every_family_naming_tensor_step_and_rows(family, tmp_path):
    begin, source = FAMILIES[family]
    trainer = build_trainer(recipe_for(family, tmp_path / "in", tmp_path / "out"))
    poisoned = []

    def poison(model):
        name, weight = weight_of(model, begin)
        poisoned.append(name)
        with torch.no_grad():
            weight.fill_(float("nan"))

    trainer.add_callback(After(2, poison))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    told = str(error.value)
    assert "got nan at step 3" in told and f"first in the weight `{poisoned[0]}`" in told and source in told
    assert all(tensor.isfinite().all() for tensor in weights_in(tmp_path / "out" / "checkpoint-2").values())
    assert not (tmp_path / "out" / "checkpoint-4").exists()


def spoil_a_row(trainer, row, step, name="vision_model.layers.0.mlp.fc1"):
    """Lets one picture of every batch come out of an inner layer as NaN, from a step on."""

    def spoil(module, inputs, output):
        if trainer.state.global_step + 1 >= step:
            output = output.clone()
            output[row] = float("nan")
        return output

    trainer.model.get_submodule(name).register_forward_hook(spoil)


def test_checkpoint_of_weights_that_are_none_is_not_written(tmp_path):
    """An update may make them of finite gradients; a run that went on from there would stop at once, again and again."""
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))

    def poison(model):
        with torch.no_grad():
            model.classifier.output_layer.weight[1, 2] = float("inf")

    trainer.add_callback(AtEnd(4, poison))
    with pytest.raises(
        FloatingPointError, match=r"got NaN or infinity in `classifier\.output_layer\.weight` after step 4"
    ):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_row_that_a_number_is_none_of_is_named_alone(tmp_path):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    spoil_a_row(trainer, 2, 3)
    with pytest.raises(FloatingPointError, match=r"at step 3, first in the output of `.*layers\.0\.mlp\.fc1`") as error:
        trainer.train()
    guilty = trainer.train_dataset[8 * 2 + 2]["source"]  # the third of the first batch after two updates of eight
    assert f", on {guilty}. Look at" in str(error.value)


def test_error_of_the_model_names_the_rows(tmp_path):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    collate = trainer.data_collator

    def spoil(items):
        batch = collate(items)
        batch["pixel_values"][2, 0, 0, 0] = float("inf")
        return batch

    trainer.data_collator = spoil
    rows = ", ".join(trainer.train_dataset[index]["source"] for index in range(4))
    with pytest.raises(ValueError, match=r"picture 2 of the batch of 4.*This was step 1, on") as error:
        trainer.train()
    assert rows in str(error.value)


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_gradient_that_is_none_stops_the_run_before_it_reaches_the_weights(tmp_path, value):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    name, weight = weight_of(trainer.model, FAMILIES["classifier"][0])
    before = {}

    def spoil(model):
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        weight.register_hook(lambda gradient: gradient * float(value))

    trainer.add_callback(After(2, spoil))
    with pytest.raises(FloatingPointError, match=rf"norm of (inf|nan) at step 3, first the gradient of `{name}`.*row"):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def watched_by_two(rank: int, folder: Path, recipe_file: Path) -> None:
    """A NaN in the batches of the second process, then a signal to it."""
    recipe = load_recipe(recipe_file, [f"training.output_dir={folder}/nan"])
    trainer = build_trainer(recipe)
    if rank == 1:
        spoil_a_row(trainer, 0, 3)
    try:
        run(trainer, recipe, resume=True)
    except FloatingPointError as error:
        (folder / f"nan-{rank}").write_text(str(error))
    recipe = load_recipe(recipe_file, [f"training.output_dir={folder}/stopped"])
    trainer = build_trainer(recipe)
    if rank == 1:
        trainer.add_callback(After(2, lambda model: os.kill(os.getpid(), signal.SIGTERM)))
    try:
        run(trainer, recipe, resume=True)
    except TrainingStopped as stopped:
        (folder / f"stopped-{rank}").write_text(f"{stopped.exit_code} {stopped}")
    run(build_trainer(recipe), recipe, resume="required")
    straight = load_recipe(recipe_file, [f"training.output_dir={folder}/straight"])
    run(build_trainer(straight), straight, resume=True)


@pytest.mark.slow
def test_two_processes_stop_together_for_a_number_and_a_signal_of_one(tmp_path):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out")
    on_two_processes(watched_by_two, tmp_path, write(tmp_path, recipe.to_dict()))
    told = (tmp_path / "nan-0").read_text()
    assert told.startswith("A finite loss is wanted, got one that is NaN or infinite on another process at step 3.")
    told = (tmp_path / "nan-1").read_text()
    assert "got nan at step 3, first in the output of `vision_model.layers.0.mlp.fc1`" in told and "row" in told
    assert last_complete_checkpoint(tmp_path / "nan") == tmp_path / "nan" / "checkpoint-2"
    for rank in range(2):
        assert (tmp_path / f"stopped-{rank}").read_text().startswith("143 checkpoint-3 is saved in")
    one, other = (weights_in(tmp_path / name) for name in ("stopped", "straight"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


MLP = "language_model.model.layers.1.mlp.up_proj"


def watched_while_split(rank: int, folder: Path, recipe_file: Path) -> None:
    """A NaN in an inner layer of the second process, then in its gradients, then a signal to it."""
    use_engines_on_cpus()

    def spoil_gradients(model):
        if rank == 1:
            model.get_submodule(MLP).register_full_backward_pre_hook(lambda module, rows: (rows[0] * float("nan"),))

    for name in ("nan", "gradient", "stopped"):
        recipe = load_recipe(recipe_file, [f"training.output_dir={folder}/{name}"])
        trainer = build_trainer(recipe)
        if name == "nan" and rank == 1:
            spoil_a_row(trainer, 0, 3, MLP)
        if name == "gradient":
            trainer.add_callback(After(2, spoil_gradients))
        if name == "stopped" and rank == 1:
            trainer.add_callback(After(2, lambda model: os.kill(os.getpid(), signal.SIGTERM)))
        try:
            run(trainer, recipe, resume=True)
        except (FloatingPointError, TrainingStopped) as error:
            (folder / f"{name}-{rank}").write_text(str(error))
    assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())


@pytest.mark.slow
def test_weights_split_over_two_processes_are_watched_too(tmp_path):
    recipe = recipe_for("conversations", tmp_path / "in", tmp_path / "out").to_dict()
    recipe["training"] |= FSDP2
    on_two_processes(watched_while_split, tmp_path, write(tmp_path, recipe))
    told = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name[-2:] in ("-0", "-1")}
    assert "on another process at step 3" in told["nan-0"]
    assert f"first in the output of `{MLP}`, on" in told["nan-1"] and "chat" in told["nan-1"]
    assert all("got a norm of nan at step 3" in told[f"gradient-{rank}"] for rank in range(2))
    assert "first the gradient of `language_model.model.layers.1." in told["gradient-1"]  # a layer's come at once
    assert all(told[f"stopped-{rank}"].startswith("checkpoint-3 is saved in") for rank in range(2))
    assert last_complete_checkpoint(tmp_path / "stopped").name == "checkpoint-3"


# Memory, workers, disks


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        MemoryError(),
    ],
)
def test_step_without_room_is_told_with_the_settings_to_change(tmp_path, monkeypatch, error):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(trainer.model, "forward", fail)
    with pytest.raises(MemoryError, match=r"training\.per_device_train_batch_size=2"):
        trainer.train()


def test_other_errors_of_a_step_stay_as_they_are(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))

    def fail(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(trainer.model, "forward", fail)
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        trainer.train()


def test_killed_worker_of_the_loader_is_told_in_words(tmp_path):
    overrides = ["training.dataloader_num_workers=1"]
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out", *overrides))

    def killed(items):
        os.kill(os.getpid(), signal.SIGKILL)

    trainer.data_collator = killed
    with pytest.raises(
        OSError, match=r"(killed by signal: Killed|exited unexpectedly).*Lower `training.dataloader_num_workers`, now 1"
    ):
        trainer.train()


def full_disk(monkeypatch, at):
    """The disk is full from when a file of this name is written."""
    save = torch.save

    def fail(value, file, *args, **kwargs):
        if Path(file).name == at:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, file, *args, **kwargs)

    return monkeypatch.setattr(torch, "save", fail)


@pytest.mark.parametrize("at", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(tmp_path, monkeypatch, at):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.save_total_limit=1")
    trainer = build_trainer(recipe)
    trainer.add_callback(After(3, lambda model: full_disk(monkeypatch, at)))
    with pytest.raises(OSError, match=r"wanted for .*checkpoint-4, got .*No space left.*checkpoint-2 stays.*--resume"):
        run(trainer, recipe, resume=True)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    run(build_trainer(recipe), recipe, resume="required")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-6"]


def test_checkpoint_of_the_same_step_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.max_steps=2")
    train(recipe)
    kept = (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").read_bytes()
    full_disk(monkeypatch, "optimizer.pt")
    with pytest.raises(OSError, match="checkpoint-2 stays"):
        train(recipe, resume=False)
    assert (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").read_bytes() == kept
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    train(recipe, resume=False)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_process_killed_while_it_saves_a_step_again_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.max_steps=2"))
    trainer.train()
    kept = (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").read_bytes()

    def killed(*args):
        raise KeyboardInterrupt  # nothing may be tidied up after it

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, None)
    assert last_complete_checkpoint(tmp_path / "out") is None
    assert find_checkpoint(tmp_path / "out", resume=True) == tmp_path / "out" / "checkpoint-2"
    assert (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").read_bytes() == kept


def test_error_after_a_checkpoint_is_whole_leaves_it_and_is_told_as_it_is(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))

    def push(folder):
        raise ConnectionError("no such name: huggingface.co")

    monkeypatch.setattr(trainer, "_push_from_checkpoint", push)
    trainer.args.push_to_hub = True
    with pytest.raises(ConnectionError, match="^no such name"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-2"


def test_other_error_of_a_checkpoint_is_told_as_it_is_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))

    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(PermissionError, match="Permission denied$"):
        trainer.train()
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_flags_of_weights_are_gathered_on_the_device_of_the_process(tmp_path, monkeypatch):
    """Weights may lie elsewhere, as those that FSDP offloads; the processes speak by what is for the device alone."""
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    given = []

    def gather(flags):
        given.append(flags.device.type)
        return torch.zeros(flags.shape)

    monkeypatch.setattr(trainer.accelerator, "gather", gather)
    monkeypatch.setattr(TrainingArguments, "device", torch.device("meta"))
    trainer._check_weights()
    assert given == ["meta"]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_disk_that_is_really_full_leaves_the_checkpoint_before(tmp_path, small_disk):
    recipe = recipe_for("classifier", tmp_path / "in", small_disk / "out")
    trainer = build_trainer(recipe)

    def fill(model):
        free = os.statvfs(small_disk)
        (small_disk / "other").write_bytes(bytes(free.f_bavail * free.f_frsize - 70_000))

    trainer.add_callback(After(3, fill))
    with pytest.raises(OSError, match=r"checkpoint-4, got .*checkpoint-2 stays"):
        run(trainer, recipe, resume=True)
    (small_disk / "other").unlink()
    run(build_trainer(recipe), recipe, resume="required")
    assert (small_disk / "out" / "model.safetensors").exists()


def test_tied_weights_are_not_missed_in_a_checkpoint(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("lines", tmp_path / "in", tmp_path / "out"))
    warned = []
    monkeypatch.setattr("transformers.trainer.logger.warning", warned.append)
    tied = list(trainer.model.all_tied_weights_keys)
    assert tied
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=tied.copy(), unexpected_keys=[]))
    assert warned == []
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=[*tied, "other"], unexpected_keys=[]))
    assert len(warned) == 1 and "['other']" in warned[0]
