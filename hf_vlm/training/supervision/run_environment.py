"""What a run ran on, for its card: versions, device, processes and seconds of each session, rows of each data set.

A run that is stopped and goes on has several sessions. The Trainer's own `train_runtime` is of the last of them alone; here
each counts, up to the checkpoint that the next went on from: the time that the weights took.
"""

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.utils.data import ConcatDataset, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_vlm.data.conversations.conversation_order import ConversationSchedule
from hf_vlm.data.conversations.encoded_conversations import JoinedConversations
from hf_vlm.data.labelled_images import TrainingImages
from hf_vlm.data.lines.line_mixture import LineMixture
from hf_vlm.parts.package_version import __version__
from hf_vlm.training.arguments import items_per_update
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.supervision.checkpoints import sessions_of
from hf_vlm.training.supervision.supervised_trainer import SupervisedTrainer

ENVIRONMENT_FILE = "run_environment.json"


class SessionClock(TrainerCallback, ExportableState):
    """Notes the sessions of a run; what it knows is saved with every checkpoint, and goes on with the run.

    Attributes:
        sessions: those before this one, up to the checkpoint that it went on from: `first_step` and `last_step` (steps done
            before and after it), `seconds`, `device`, `num_devices`, `num_processes`, `items_per_update` and
            `versions`.
    """

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self._begun: float | None = None
        self._first_step = self._last_step = 0
        self._machine: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """For the Trainer's state: every session, this one too if it has made a step."""
        sessions = list(self.sessions)
        if self._begun is not None and self._last_step > self._first_step:
            steps = {"first_step": self._first_step, "last_step": self._last_step}
            sessions.append({**steps, "seconds": round(time.perf_counter() - self._begun, 3), **self._machine})
        return {"args": {}, "attributes": {"sessions": sessions}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes over the sessions of the checkpoint; there are none in one of a Trainer without this clock."""
        sessions = sessions_of(state.stateful_callbacks)
        self.sessions = [session for session in sessions if session["last_step"] <= state.global_step]
        self._begun, self._machine = time.perf_counter(), describe_machine(args)
        self._first_step = self._last_step = state.global_step
        self._tell(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts the step, before a checkpoint of it is written."""
        self._last_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the sessions in the state that the run ends with."""
        self._tell(state)

    def _tell(self, state: TrainerState) -> None:
        state.stateful_callbacks[type(self).__name__] = self.state()


def describe_machine(args: TrainingArguments) -> dict[str, Any]:
    """What this process runs on: nothing that names the machine itself."""
    is_cuda = args.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(args.device) if is_cuda else f"{args.device.type}, {platform.machine()}",
        "num_devices": args.world_size * max(1, args.n_gpu),
        "num_processes": args.world_size,
        "items_per_update": items_per_update(args),
        "versions": {
            "hf-vlm": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }


def write_environment(trainer: SupervisedTrainer, recipe: Recipe, folder: Path) -> None:
    """Write what a run that has ended ran on, and how fast its last session was, as `Speed.of_session` measures it.

    Args:
        trainer: after its training, with a `SessionClock`.
        recipe: that it trained.
        folder: where `run_environment.json` is written.
    """
    sessions = sessions_of(trainer.state.stateful_callbacks)
    told = {
        "seconds": round(sum(session["seconds"] for session in sessions), 3),
        "sessions": sessions,
        **{name: value and round(value, 3) for name, value in trainer.session_speed.items()},
        "rows": rows_of_sets(trainer, recipe),
    }
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    unfinished = folder / f"{ENVIRONMENT_FILE}.partial"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(folder / ENVIRONMENT_FILE)


def rows_of_sets(trainer: Trainer, recipe: Recipe) -> dict[str, Any]:
    """How many rows each set has that a trainer learns from and validates on, after all that its recipe leaves out.

    Returns: `train`: a number for each set of the recipe, before weights repeat its rows; `validation`: name -> number.
    """
    train: Any = trainer.train_dataset
    found: list[int] = []
    if isinstance(train, LineMixture):  # which keeps no set of weight 0
        taken = iter(train.sources)
        found = [len(next(taken).rows) if source.weight != 0 else 0 for source in recipe.data.train]
    elif isinstance(train, ConversationSchedule) and isinstance(train.dataset, JoinedConversations):
        found = [len(rows) for rows in train.dataset.sets]
    elif isinstance(train, TrainingImages):
        found = [len(train.rows)]
    elif isinstance(train, ConcatDataset):
        found = [len(part.dataset if isinstance(part, Subset) else part) for part in train.datasets]  # type: ignore[arg-type]
    validation: Any = trainer.eval_dataset or {}
    if not isinstance(validation, Mapping):
        names = list(recipe.data.validation) if isinstance(recipe.data.validation, Mapping) else []
        validation = {names[0] if names else str(recipe.data.validation): validation}
    return {"train": found, "validation": {name: _num_rows(rows) for name, rows in validation.items()}}


def _num_rows(rows: Any) -> int:
    return len(rows.dataset) if isinstance(rows, ConversationSchedule) else len(rows)
