"""Training on two processes of gloo, by DDP or FSDP2, for tests: what starts the ranks, and what they note."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import distributed
from transformers import Trainer, TrainerCallback

from hf_vlm.training.runs import run
from hf_vlm.training.tasks import build_trainer, load_recipe
from scripts.engines_on_cpus import divided_weights, use_engines_on_cpus
from tests.two_processes import on_two_ranks

FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def on_two_processes(task: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Runs `task(rank, folder, *arguments)` on two ranks of gloo."""
    on_two_ranks(_on_a_rank, task, str(folder), *arguments)


def _on_a_rank(rank: int, task: Callable[..., None], folder: str, *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    for state in (PartialState, AcceleratorState, GradientState):  # what earlier tests of this process left
        state._shared_state.clear()
    patience = timedelta(minutes=2)  # a rank that waits for the other in vain fails; gloo's own is half an hour
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=patience)
    task(rank, Path(folder), *arguments)
    distributed.destroy_process_group()


class Notes(TrainerCallback):
    """The step that training begins at, and which parameters are split over the processes then."""

    def __init__(self) -> None:
        self.split: set[str] = set()
        self.whole: set[str] = set()
        self.first_step = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.first_step = state.global_step
        self.split = divided_weights(model)
        self.whole = {name for name, _ in model.named_parameters()} - self.split


class Stop(TrainerCallback):
    """Stops after two steps, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def write(tmp_path: Path, sections: dict) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return file


def notes_of(folder: Path) -> list[dict[str, Any]]:
    """What both processes noted of the whole run, then of the one that was stopped."""
    return [torch.load(folder / f"{name}-{rank}.pt") for name in ("two", "again") for rank in range(2)]


def assert_close(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(weights) == sorted(wanted)
    for name, tensor in weights.items():
        torch.testing.assert_close(
            tensor, wanted[name], rtol=0, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}"
        )


def train_to_the_end(rank: int, folder: Path, recipe_file: Path, shards: bool, *names: str) -> None:
    """Trains a recipe into `folder / name` for each of the names, from the checkpoint that is there if there is one.

    The run that is called `again` is stopped after two steps, and goes on from there. What each process noted of a run, its
    log included, is saved as `name-rank.pt`.
    """
    if shards:
        use_engines_on_cpus()
    for name in names:
        recipe = load_recipe(recipe_file, [f"training.output_dir={folder / name}"])
        trainer = build_trainer(recipe)
        if name == "again":
            trainer.add_callback(Stop())
            trainer.train()
            distributed.barrier()
            trainer = build_trainer(recipe)
        notes = Notes()
        trainer.add_callback(notes)
        run(trainer, recipe, resume=True)
        torch.save({**vars(notes), "log": trainer.state.log_history}, folder / f"{name}-{rank}.pt")


def one_process(tmp_path: Path, sections: dict, name: str = "one", **training: Any) -> Trainer:
    """The trainer, after its run, of one process with the items that two have an update: the double batch, or `training`.

    It goes on from the checkpoint in `tmp_path / name`, if there is one.
    """
    given = {key: value for key, value in sections["training"].items() if not key.startswith(("fsdp", "ddp"))}
    double = {"per_device_train_batch_size": 2 * given["per_device_train_batch_size"]}
    given |= {**(training or double), "output_dir": str(tmp_path / name)}
    recipe = load_recipe(write(tmp_path, {**sections, "training": given}))
    trainer = build_trainer(recipe)
    assert trainer.args.world_size == 1
    run(trainer, recipe, resume=True)
    return trainer


def keep_half(run_folder: Path, started: Path) -> None:
    """Makes a folder of a run that was stopped after its checkpoint of step 2, as `run_folder` was then."""
    shutil.copytree(run_folder / "checkpoint-2", started / "checkpoint-2")


def logged(history: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Step, name and value of each of these entries of a log, in its order."""
    return [(entry["step"], name, entry[name]) for entry in history for name in entry if name in names]


def assert_same_log(told: list[dict], wanted: list[dict], *names: str) -> None:
    """Checks that two logs have the same entries of these names, to rounding."""
    one, other = logged(told, *names), logged(wanted, *names)
    assert one and [entry[:2] for entry in one] == [entry[:2] for entry in other]
    assert [value for *_, value in one] == pytest.approx([value for *_, value in other], abs=1e-5)
