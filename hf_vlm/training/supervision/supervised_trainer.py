"""What watches over a long run: numbers that are NaN or infinite, signals, full disks, memory that is out; and its speed.

All processes of a run agree on it once an update, by one small message: a loss or gradient that is NaN or infinite on one
of them, or a signal that reached one, ends the run on all, before the weights change. Only under DeepSpeed, whose backward
pass also updates them, it is after. Transformers' own look at every loss, which would hide such a one, is off: it waits for
the device at every batch, this at every update.
"""

import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from hf_vlm.training.supervision.checkpoints import (
    checkpoints_in,
    fault_of,
    last_complete_checkpoint,
    remove_aside,
    set_aside,
)
from hf_vlm.training.supervision.finite_numbers import BadNumber, first_bad_gradient, first_bad_number, named_rows
from hf_vlm.training.supervision.progress import Progress, Speed
from hf_vlm.training.supervision.step_errors import in_words, is_failed_write
from hf_vlm.training.supervision.stop_signals import StopSignals, TrainingStopped, outliving_signals

logger = logging.getLogger(__name__)

_WAY_OUT = (
    "Look at these rows; else lower the learning rate, or train in float32 or bfloat16. No checkpoint has the number in it: the "
    "last is whole."
)


class _Pass(NamedTuple):
    """A batch of an update, the rows that it is of, and its loss."""

    inputs: dict[str, Any]
    sources: list[str]
    loss: torch.Tensor


class SupervisedTrainer(Trainer):
    """`Trainer` that stops where a number is NaN or infinite, and on signals after a whole step; says what is wrong in words.

    Batches may have `sources`, a list of str: the file and row of each item, which errors name.

    Raises:
        FloatingPointError: from `train`, on every process, at a loss or gradient that is NaN or infinite: names step, rows and
            the first tensor with it. With fp16 gradients may be: such a step is left out.
        MemoryError: from `train`, where a step finds no room: says which settings to change.
        OSError: from `train`, where a checkpoint can't be written (those before stay), or a worker of the data loader died.
        TrainingStopped: from `train`, after a signal that `stop_signals` noted; a checkpoint of the last step is there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False
        self.stop_signals = StopSignals(is_told=self.is_world_process_zero())
        self.speed = Speed()
        self.session_speed: dict[str, float | None] = {}
        self._passes: list[_Pass] = []
        self._step_loss: float | None = None
        self._stopped_by = 0
        self._of_another_run: list[Path] = []
        for shown in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # one of them, by `disable_tqdm`
            self.remove_callback(shown)
        self._progress = Progress(self.speed, lambda: self._step_loss)
        self.add_callback(self._progress)
        self.add_callback(_Stop(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; see the class for what it raises. Checkpoints in the folder that it doesn't go on from are set
        aside as `old-checkpoint-<step>` before it saves its first: another run would take a higher step for its last.
        """
        self._stopped_by, self._passes = 0, []
        self._of_another_run = [] if resume_from_checkpoint else checkpoints_in(self.args.output_dir or ".")
        is_best_loaded = self.args.load_best_model_at_end
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception as error:
            told = in_words(self, error)
            if told is None:
                raise
            raise told from error
        finally:
            self._progress.close()
            self.args.load_best_model_at_end = is_best_loaded  # which a signal turns off
        self.session_speed = self.speed.of_session(self._summed)
        if self._stopped_by:
            self.accelerator.wait_for_everyone()  # a launcher ends all processes when one is gone
            folder = self.args.output_dir
            raise TrainingStopped(
                f"checkpoint-{self.state.global_step} is saved in {folder}. `hf-vlm train {folder} --resume` goes on from it.",
                self._stopped_by,
            )
        return output

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Trainer.training_step`; keeps what the watch looks at when the update is whole.

        Raises:
            ValueError: as the model does, with the rows of the batch.
        """
        sources = inputs.pop("sources", [])
        self.speed.count(inputs, len(sources))
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        except ValueError as error:  # a model knows the place in the batch, not the file
            raise ValueError(
                f"{error} This was step {self.state.global_step + 1}, on {named_rows(sources)}."
            ) from error
        self._passes.append(_Pass(inputs, sources, loss))
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.prediction_step`, of a batch with `sources` or without."""
        inputs.pop("sources", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer._get_dataloader`, for each kind of rows; where a run listens to signals, its workers outlive them."""
        loader: Any = super()._get_dataloader(*args, **kwargs)
        if self.stop_signals.is_listening and self.args.dataloader_num_workers:
            own = getattr(loader, "base_dataloader", loader)
            own.worker_init_fn = outliving_signals(own.worker_init_fn)
        return loader

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; beside a loss also the speed since the last one."""
        if "loss" in logs:
            logs |= self.speed.since_log(self._summed)
        super().log(logs, *args, **kwargs)

    def _summed(self, totals: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(totals.float().to(self.args.device), reduction="sum")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As `Trainer`'s, but tied weights, which are saved once, are not missed."""
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer._get_grad_norm`, which is asked once an update: so the watch looks here. The weights change after it; under
        DeepSpeed they have changed before.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._watch(model, norm)
        return norm

    def _watch(self, model: nn.Module, norm: Any) -> None:
        """Looks at the numbers of an update, and at signals, on all processes.

        Raises:
            FloatingPointError: at one that is NaN or infinite.
        """
        passes, self._passes = self._passes, []
        if not passes:
            return
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        losses = torch.stack([one.loss.detach().float() for one in passes]).to(self.args.device)
        if norm is None or self.args.fp16:  # whose scaler leaves out steps with an infinite gradient
            norm = torch.zeros(())
        norm = torch.as_tensor(norm, dtype=torch.float32, device=losses.device)
        signal = losses.new_full((), self.stop_signals.received)
        own = torch.stack([losses.sum(), norm, signal])
        told = self.accelerator.gather(own[None]).cpu()  # float (processes, 3)
        self._step_loss = float(told[:, 0].mean())
        self._stopped_by = int(told[:, 2].max())
        if not torch.isfinite(told[:, 0]).all():
            raise FloatingPointError(self._where_the_loss_is_bad(model, passes, losses))
        if not torch.isfinite(told[:, 1]).all():
            raise FloatingPointError(self._where_a_gradient_is_bad(model, passes, float(norm)))

    def _where_the_loss_is_bad(self, model: nn.Module, passes: list[_Pass], losses: torch.Tensor) -> str:
        step, bad = self.state.global_step + 1, (~torch.isfinite(losses)).nonzero().flatten().tolist()
        inputs, sources, _ = passes[bad[0] if bad else 0]
        bad_number = None
        if not self.is_deepspeed_enabled:  # all processes pass by here, as FSDP wants
            model = model if self.is_fsdp_enabled else self.accelerator.unwrap_model(model)
            prepared = self._prepare_inputs(inputs)
            bad_number = _looked_for(
                lambda: first_bad_number(
                    model, prepared, lambda: self.compute_loss(model, dict(prepared)), len(sources)
                )
            )
        if not bad:
            return (
                f"A finite loss is wanted, got one that is NaN or infinite on another process at step {step}. See the message of "
                "that process."
            )
        place = f", first in {bad_number.name}" if bad_number else ""
        rows = named_rows(sources, bad_number.rows if bad_number else None)
        return f"A finite loss is wanted, got {losses[bad[0]]} at step {step}{place}, on {rows}. {_WAY_OUT}"

    def _where_a_gradient_is_bad(self, model: nn.Module, passes: list[_Pass], norm: float) -> str:
        bad_number = None
        if not self.is_deepspeed_enabled:
            model = model if self.is_fsdp_enabled else self.accelerator.unwrap_model(model)

            def backward() -> None:
                for inputs, _, _ in passes:
                    self.compute_loss(model, dict(self._prepare_inputs(inputs))).backward()

            bad_number = _looked_for(lambda: first_bad_gradient(model, backward))
        step = self.state.global_step + 1
        if bad_number is None and self.args.world_size > 1:
            place = ", by another process or a chance that didn't come again"
        else:
            place = f", first {bad_number.name}" if bad_number else ""
        rows = named_rows([source for one in passes for source in one.sources])
        return f"Finite gradients are wanted, got a norm of {norm} at step {step}{place}, on {rows}. {_WAY_OUT}"

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            if self.args.device.type == "cuda":
                torch.cuda.synchronize(self.args.device)  # what it has still to do of the steps is part of their time
            self.speed.pause()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not self.control.should_training_stop:  # what follows the last step is none
            self.speed.go_on()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer._save_checkpoint`, which removes older ones when the new one is whole.

        Raises:
            FloatingPointError: if the last update left a weight that is NaN or infinite.
            OSError: if it can't be written. What is there of it is removed, unless it is whole; those before stay.
        """
        self._check_weights()
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        moved = self._make_room(folder) if self.args.should_save else {}
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            is_whole = self.args.should_save and fault_of(folder) is None
            if self.args.should_save and not is_whole:
                shutil.rmtree(folder, ignore_errors=True)
                for now, before in moved.items():
                    now.replace(before)
            if is_whole or not is_failed_write(error):
                raise
            raise OSError(self._told_of_failed_write(folder, error)) from error
        self._of_another_run = []
        if self.args.should_save:
            remove_aside(folder)

    def _make_room(self, folder: Path) -> dict[Path, Path]:
        """Moves away another run's checkpoints, and one of the same step: where each is now -> where it was."""
        moved = {}
        for old in self._of_another_run:
            now = _free_place(old.with_name(f"old-{old.name}"))
            if old.exists():
                moved[old.replace(now)] = old
                logger.warning("%s is of a run before this one, which started anew: it is now %s.", old, now.name)
        if folder.exists():  # it stays until this one is whole
            moved[set_aside(folder)] = folder
        return moved

    def _check_weights(self) -> None:
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        if self.is_deepspeed_enabled or not trained:
            return
        shares = [weight.to_local() if isinstance(weight, DTensor) else weight for _, weight in trained]
        is_bad = torch.stack([(~torch.isfinite(share.detach()).all()).to(self.args.device) for share in shares])
        bad = self.accelerator.gather(is_bad[None]).any(dim=0).nonzero().flatten().tolist()
        if bad:
            raise FloatingPointError(
                f"Finite weights are wanted for a checkpoint, got NaN or infinity in `{trained[bad[0]][0]}` after "
                f"step {self.state.global_step}. Lower the learning rate, or train in float32 or bfloat16. The last "
                "checkpoint is whole."
            )

    def _told_of_failed_write(self, folder: Path, error: Exception) -> str:
        last = last_complete_checkpoint(folder.parent)
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        stays = "there is no other." if last is None else f"{last.name} stays, and a run goes on from it."
        return (
            f"A disk with room is wanted for {folder}, got {reason}. What was written of it is removed; {stays} Free some room, "
            f"and go on by `hf-vlm train {folder.parent} --resume`."
        )


class _Stop(TrainerCallback):
    """Ends the run after a step that a signal came in, with a checkpoint."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves and stops. An evaluation that is due now is left out, as who sent the signal may not wait for it; one that the
        signal came in was finished first.
        """
        if state.global_step >= state.max_steps:
            self._trainer._stopped_by = 0  # nothing is left to stop
        if self._trainer._stopped_by:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            args.load_best_model_at_end = False  # nobody is there to use it

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves out what an epoch's end asks for: the step is saved."""
        if self._trainer._stopped_by:
            control.should_save = control.should_evaluate = False


def _free_place(wanted: Path) -> Path:
    """The path, or where it is taken the first free one of `-2`, `-3`, ... behind it."""
    places = itertools.chain([wanted], (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2)))
    return next(place for place in places if not place.exists())


def _looked_for(search: Callable[[], BadNumber | None]) -> BadNumber | None:
    """What a search found; a fault in searching must not hide what was found before."""
    try:
        return search()
    except Exception:
        logger.debug("The second pass failed.", exc_info=True)
        return None
