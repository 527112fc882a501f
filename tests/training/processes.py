"""Training on two processes of gloo, by DDP or FSDP2, for tests: what starts the ranks, and what they note."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

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
    patience = timedelta(
        minutes=2
    )  # a rank that waits for the other in vain fails, which gloo would do after half an hour
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=patience)
    task(rank, Path(folder), *arguments)
    distributed.destroy_process_group()


class Notes(TrainerCallback):
    """Where training begins, and which parameters are split over the processes in it."""

    def __init__(self) -> None:
        self.split: set[str] = set()
        self.whole: set[str] = set()
        self.first_step = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.first_step = state.global_step
        for name, parameter in model.named_parameters():
            (self.split if isinstance(parameter, DTensor) else self.whole).add(name)


class Stop(TrainerCallback):
    """Stops after two steps, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def shard_on_cpus() -> None:
    """Makes accelerate do on CPUs what it does on GPUs; by itself it takes DDP there, without a word."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")  # of an earlier state, which this one is a copy of
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugin

    AcceleratorState.__init__ = init


def write(tmp_path: Path, sections: dict) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return file


def notes_of(folder: Path) -> list[dict[str, Any]]:
    """What both processes noted of the whole run, then of the one that was stopped."""
    return [torch.load(folder / f"{name}-{rank}.pt") for name in ("two", "again") for rank in range(2)]


def assert_close(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            tensor, wanted[name], rtol=0, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}"
        )
