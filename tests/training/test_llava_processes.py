"""A LLaVA trained by two processes on CPUs ends with the weights of one process with the double batch: DDP and FSDP2."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_vlm import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.training.llava import build_trainer
from hf_vlm.training.runs import run
from hf_vlm.training.tasks import load_recipe
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts

SECOND = {"train": ["projector", "language"], "learning_rates": {"projector": 5e-3}}
CHAT = [{"path": "chat", "split": "train"}]
FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    return write_parts(tmp_path_factory.mktemp("parts")), write_conversations(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sections(folders, tmp_path) -> Callable[..., dict]:
    """`sections("name", data={...}, training={...})`: a recipe of the second phase with its output in `tmp_path / name`."""

    def build(name: str, data: dict, **training: Any) -> dict:
        settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 2e-3, "dataloader_num_workers": 0, **training}
        data = {"train": CHAT, **data}
        return tiny_llava_recipe(*folders, tmp_path / name, data=data, parts=SECOND, training=settings)

    return build


def on_two_processes(task: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Runs `task(rank, folder, *arguments)` on two ranks of gloo.

    Forked, as new processes would import torch anew: no CPU threads are at work that a fork could break.
    """
    torch.multiprocessing.start_processes(
        _on_a_rank, (task, str(folder), *arguments), nprocs=2, start_method="fork", join=True
    )


def _on_a_rank(rank: int, task: Callable[..., None], folder: str, *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    for state in (PartialState, AcceleratorState, GradientState):  # what earlier tests of this process left
        state._shared_state.clear()
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    task(rank, Path(folder), *arguments)
    distributed.destroy_process_group()


class Notes(TrainerCallback):
    """What the model is in training: its wrapper, and which parameters are split over the processes."""

    def __init__(self) -> None:
        self.split: set[str] = set()
        self.whole: set[str] = set()
        self.wrapper = ""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.wrapper = type(model).__name__
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
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugin

    AcceleratorState.__init__ = init


def train_to_the_end(rank: int, folder: Path, recipe_file: Path, shards: bool) -> None:
    if shards:
        shard_on_cpus()
    trainer = build_trainer(load_recipe(recipe_file))
    notes = Notes()
    trainer.add_callback(notes)
    run(trainer, load_recipe(recipe_file), resume=True)
    torch.save(vars(notes) | {"log": trainer.state.log_history}, folder / f"notes-{rank}.pt")
