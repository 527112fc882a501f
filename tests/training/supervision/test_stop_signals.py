"""A signal ends a run after a whole step, with a checkpoint that it goes on from exactly; a second one ends it at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_vlm.training.runs import run
from hf_vlm.training.supervision import stop_signals
from hf_vlm.training.supervision.checkpoints import last_complete_checkpoint
from hf_vlm.training.supervision.step_errors import in_words
from hf_vlm.training.supervision.stop_signals import StopSignals, TrainingStopped
from hf_vlm.training.tasks import build_trainer, train
from tests.training.processes import write
from tests.training.tiny_runs import After, recipe_for, weights_in


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((signal.SIGINT, 130), (signal.SIGUSR1, 138))),
    ],
)
def test_signal_ends_the_run_after_the_step_with_a_checkpoint_that_it_goes_on_from_exactly(tmp_path, number, code):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out")
    before = signal.getsignal(number)
    trainer = build_trainer(recipe)
    trainer.add_callback(After(2, lambda model: os.kill(os.getpid(), number)))
    with pytest.raises(TrainingStopped, match=r"checkpoint-3 is saved in .*--resume") as stopped:
        run(trainer, recipe, resume=True)
    assert stopped.value.exit_code == code and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) == before
    assert last_complete_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"
    assert not (tmp_path / "out" / "model.safetensors").exists()  # it is not the run's last word
    run(build_trainer(recipe), recipe, resume="required")
    straight = recipe_for("classifier", tmp_path / "in", tmp_path / "straight")
    train(straight)
    one, other = (weights_in(tmp_path / name) for name in ("out", "straight"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_run_goes_on_with_updates_of_as_many_items_only(tmp_path):
    train(recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.max_steps=2"))
    other = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.gradient_accumulation_steps=1")
    with pytest.raises(ValueError, match=r"8 items an update are wanted.*got 4.*training\.global_batch_size=8"):
        train(other)
    same = ["training.gradient_accumulation_steps=1", "training.per_device_train_batch_size=8"]
    train(recipe_for("classifier", tmp_path / "in", tmp_path / "out", *same))
    assert last_complete_checkpoint(tmp_path / "out").name == "checkpoint-6"


def test_signal_in_the_last_step_changes_nothing(tmp_path):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.max_steps=2")
    trainer = build_trainer(recipe)
    trainer.add_callback(After(1, lambda model: os.kill(os.getpid(), signal.SIGTERM)))  # in the second of two
    run(trainer, recipe, resume=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_second_signal_ends_the_process_at_once():
    for number, wait in ((signal.SIGINT, 0), (signal.SIGTERM, 6)):
        code = f"""
import importlib.util, os, signal, time
spec = importlib.util.spec_from_file_location("stop_signals", {stop_signals.__file__!r})
stop_signals = importlib.util.module_from_spec(spec)  # by itself, which takes no time
spec.loader.exec_module(stop_signals)
with stop_signals.StopSignals() as signals:
    os.kill(os.getpid(), {int(number)})
    stop_signals.time.monotonic = lambda now=time.monotonic(): now + {wait}
    assert signals.received == {int(number)}
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # which ends a process that waits in C for others, too
    os.kill(os.getpid(), {int(number)})
    time.sleep(30)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == -number, done.stderr
        assert done.stderr.count("the step is finished and a checkpoint saved") == 1


def test_signal_that_a_launcher_passes_on_once_more_is_the_same_one(capfd):
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    assert capfd.readouterr().err.count("SIGTERM") == 1


class Children(TrainerCallback):
    """Sends a signal to this process and all its children, as a batch system does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)


@pytest.mark.slow
def test_workers_of_the_loader_outlive_a_signal_to_all_processes(tmp_path):
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.dataloader_num_workers=2")
    trainer = build_trainer(recipe)
    trainer.add_callback(Children())
    with pytest.raises(TrainingStopped):
        run(trainer, recipe, resume=True)
    assert last_complete_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"


def endless(tmp_path):
    """A recipe's file of a run that doesn't end, with a worker for each process's loader."""
    overrides = ["training.max_steps=1000000", "training.save_steps=20", "training.dataloader_num_workers=1"]
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", *overrides)
    return write(tmp_path, recipe.to_dict())


def stopped(command, tmp_path, number):
    """Exit code and stderr of a run that gets a signal after its first checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1"}
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            until = time.monotonic() + 240
            while last_complete_checkpoint(tmp_path / "out") is None:
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.2)
            process.send_signal(number)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_command_that_gets_a_signal_says_how_it_goes_on(tmp_path, number, code):
    returned, told = stopped(["-m", "hf_vlm.cli", "train", str(endless(tmp_path))], tmp_path, number)
    assert returned == code, told
    step = int(last_complete_checkpoint(tmp_path / "out").name.rpartition("-")[2])
    assert (
        f"checkpoint-{step} is saved in {tmp_path / 'out'}. `hf-vlm train {tmp_path / 'out'} --resume` goes on" in told
    )
    assert "Traceback" not in told


@pytest.mark.slow
def test_processes_of_torchrun_save_when_it_is_told_to_stop(tmp_path):
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    recipe = endless(tmp_path)
    _, told = stopped([*launched, "-m", "hf_vlm.cli", "train", str(recipe)], tmp_path, signal.SIGTERM)
    last = last_complete_checkpoint(tmp_path / "out")
    assert f"{last.name} is saved in" in told, told
    assert len(list(last.glob("rng_state_*.pth"))) == 2


@pytest.mark.parametrize("kind", ["train", "eval", "test"])
def test_workers_of_every_loader_outlive_a_signal_that_goes_to_all(tmp_path, kind):
    overrides = ["training.dataloader_num_workers=1", "training.dataloader_persistent_workers=false"]
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out", *overrides))
    trainer.eval_collator = trainer.data_collator  # for rows as those that it trains on
    with trainer.stop_signals:
        rows = () if kind == "train" else (trainer.train_dataset,)
        loader = getattr(trainer, f"get_{kind}_dataloader")(*rows)
        batches = iter(loader)
        next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        assert len(list(batches)) == len(loader) - 1


def test_worker_that_a_signal_ended_is_told_by_the_signal_not_by_memory(tmp_path):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    died = RuntimeError("DataLoader worker (pid 12) is killed by signal: Terminated. ")
    assert "memory" in str(in_words(trainer, died))
    trainer.stop_signals.received = signal.SIGTERM
    told = in_words(trainer, died)
    assert isinstance(told, OSError) and "SIGTERM" in str(told) and "memory" not in str(told)


def test_signal_saves_the_step_once_where_every_epoch_saves(tmp_path, monkeypatch):
    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.save_strategy=epoch"))
    trainer.args.eval_strategy, trainer.args.load_best_model_at_end = "epoch", True
    done = []
    save = trainer._save_checkpoint
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *args: (done.append("save"), save(*args)))
    monkeypatch.setattr(trainer, "_evaluate", lambda *args, **kwargs: done.append("evaluate"))
    trainer.add_callback(After(1, lambda model: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingStopped, match="checkpoint-2 is saved"), trainer.stop_signals:
        trainer.train()
    assert done == ["save"]
    assert trainer.args.load_best_model_at_end  # for whoever trains with it again


def test_run_that_starts_anew_and_stops_is_what_goes_on(tmp_path, caplog):
    train(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    kept = weights_in(tmp_path / "out" / "checkpoint-6")
    (tmp_path / "out" / "old-checkpoint-6").mkdir()  # of one that began anew before
    recipe = recipe_for("classifier", tmp_path / "in", tmp_path / "out", "training.seed=77", "training.save_steps=50")
    trainer = build_trainer(recipe)
    trainer.add_callback(After(2, lambda model: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingStopped, match="checkpoint-3 is saved"):
        run(trainer, recipe, resume=False)
    assert last_complete_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"
    aside = weights_in(tmp_path / "out" / "old-checkpoint-6-2")
    assert all(torch.equal(tensor, aside[name]) for name, tensor in kept.items())
    assert not (tmp_path / "out" / "checkpoint-6").exists() and "old-checkpoint-6-2" in caplog.text
