"""What watches over a long run: numbers that are none, signals, full disks, memory that is out; and its speed.

All processes of a run agree on it once an update, by one small message: a loss or gradient that is no number on one of them, or
a signal that reached one, ends the run on all, before the weights change. Transformers' own look at every loss, which would
hide such a one, is off: it waits for the device at every batch, this at every update.
"""

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

from hf_vlm.training.checkpoints import last_complete_checkpoint
from hf_vlm.training.finite_numbers import BadNumber, first_bad_gradient, first_bad_number, named_rows
from hf_vlm.training.progress import Progress, Speed
from hf_vlm.training.step_errors import in_words, is_failed_write
from hf_vlm.training.stop_signals import StopSignals, TrainingStopped, outliving_signals

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
    """`Trainer` that stops where a number is none, and on signals after a whole step; says what is wrong in words.

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
        for shown in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # one of them, by `disable_tqdm`
            self.remove_callback(shown)
        self._progress = Progress(self.speed, lambda: self._step_loss)
        self.add_callback(self._progress)
        self.add_callback(_Stop(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; see the class for what it raises."""
        self._stopped_by, self._passes = 0, []
        try:
            output = super().train(*args, **kwargs)
        except Exception as error:
            told = in_words(self, error)
            if told is None:
                raise
            raise told from error
        finally:
            self._progress.close()
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

    def get_train_dataloader(self) -> Any:
        """As `Trainer.get_train_dataloader`; where a run listens to signals, its workers outlive them."""
        loader: Any = super().get_train_dataloader()
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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer._get_grad_norm`, which is asked once an update, before the weights change: so the watch looks here."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._watch(model, norm)
        return norm

    def _watch(self, model: nn.Module, norm: Any) -> None:
        """Looks at the numbers of an update, and at signals, on all processes.

        Raises:
            FloatingPointError: at one that is none.
        """
        passes, self._passes = self._passes, []
        if not passes:
            return
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        losses = torch.stack([one.loss.detach().float() for one in passes])
        if norm is None or self.args.fp16:  # whose scaler leaves out steps with an infinite gradient
            norm = torch.zeros(())
        norm = torch.as_tensor(norm, dtype=torch.float32, device=losses.device)
        signal = losses.new_full((), self.stop_signals.received)
        own = torch.stack([losses.sum(), norm, signal])
        told = self.accelerator.gather(own[None]).cpu()  # float (processes, 3)
        self._step_loss = float(told[:, 0].mean())
        self._stopped_by = int(told[:, 2].max())
        if not torch.isfinite(told[:, 0]).all():
            raise FloatingPointError(self._where_the_loss_is_none(model, passes, losses))
        if not torch.isfinite(told[:, 1]).all():
            raise FloatingPointError(self._where_a_gradient_is_none(model, passes, float(norm)))

    def _where_the_loss_is_none(self, model: nn.Module, passes: list[_Pass], losses: torch.Tensor) -> str:
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
            return f"A loss that is a number is wanted, got another process's at step {step}. See its message."
        place = f", first in {bad_number.name}" if bad_number else ""
        rows = named_rows(sources, bad_number.rows if bad_number else None)
        return f"A loss that is a number is wanted, got {losses[bad[0]]} at step {step}{place}, on {rows}. {_WAY_OUT}"

    def _where_a_gradient_is_none(self, model: nn.Module, passes: list[_Pass], norm: float) -> str:
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
        return (
            f"Gradients that are numbers are wanted, got a norm of {norm} at step {step}{place}, on {rows}. {_WAY_OUT}"
        )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.speed.pause()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.speed.go_on()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer._save_checkpoint`, which removes older ones when the new one is whole.

        Raises:
            FloatingPointError: if the last update left a weight that is NaN or infinite.
            OSError: if it can't be written. What is there of it is removed; those before stay.
        """
        self._check_weights()
        output_dir = Path(self.args.output_dir or ".")
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        before = folder.with_name(f"{folder.name}.before")  # of the same step: it stays until this one is whole
        if self.args.should_save and folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.replace(before)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
                if before.exists():
                    before.replace(folder)
            if not is_failed_write(error):
                raise
            raise OSError(self._told_of_failed_write(folder, error)) from error
        if self.args.should_save:
            shutil.rmtree(before, ignore_errors=True)

    def _check_weights(self) -> None:
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        if self.is_deepspeed_enabled or not trained:
            return
        shares = [weight.to_local() if isinstance(weight, DTensor) else weight for _, weight in trained]
        is_bad = torch.stack([~torch.isfinite(share.detach()).all() for share in shares])
        bad = self.accelerator.gather(is_bad[None]).any(dim=0).nonzero().flatten().tolist()
        if bad:
            raise FloatingPointError(
                f"Weights that are numbers are wanted for a checkpoint, got NaN or infinity in `{trained[bad[0]][0]}` after "
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


def _looked_for(search: Callable[[], BadNumber | None]) -> BadNumber | None:
    """What a search found; a fault in searching must not hide what was found before."""
    try:
        return search()
    except Exception:
        logger.debug("The second pass failed.", exc_info=True)
        return None
