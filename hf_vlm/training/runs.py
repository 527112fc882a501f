"""What every training run does around the Trainer: going on from a checkpoint, what it leaves behind."""

import logging
from pathlib import Path
from typing import Literal

import torch
import yaml

from hf_vlm.training.arguments import check_same_step
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.supervision.checkpoints import last_complete_checkpoint, put_back
from hf_vlm.training.supervision.run_environment import SessionClock, write_environment
from hf_vlm.training.trainers.adapter_training import AdapterTrainer

logger = logging.getLogger(__name__)


Resume = bool | Literal["required"]


def run(trainer: AdapterTrainer, recipe: Recipe, resume: Resume) -> None:
    """Trains, and saves model, processor, the recipe as it was run, the trainer's state, and what the run ran on.

    All of it in `training.output_dir`. SIGTERM, SIGINT and SIGUSR1 end the run after a whole step, with a checkpoint.

    Args:
        trainer: of the recipe.
        recipe: what is trained.
        resume: go on from the last complete checkpoint in the output folder, if there is one; "required": there must be one.

    Raises:
        ValueError: if the checkpoints are of another `model`, `lora`, `optimizer` or `annealing`, or of updates with another
            number of items, adapters there are of another base, or a row can't be read.
        FileNotFoundError: if a checkpoint is required and there is none.
        TrainingStopped: after a signal; and what `SupervisedTrainer.train` raises besides.
    """
    output_dir = Path(trainer.args.output_dir)
    checkpoint = find_checkpoint(output_dir, resume)
    if checkpoint is not None:
        _check_same_model(recipe, output_dir / "recipe.yaml")
        check_same_step(trainer.args, checkpoint)
        logger.warning("Going on from %s.", checkpoint)
    trainer.save_base()  # refused before the folder's recipe is written over
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        # Put in place whole: other processes may be reading the one before.
        written = output_dir / "recipe.yaml.partial"
        written.write_text(yaml.safe_dump(recipe.to_dict(), allow_unicode=True, sort_keys=False), encoding="utf-8")
        written.replace(output_dir / "recipe.yaml")
        report = getattr(trainer.model, "weight_report", None)
        if report is not None:
            print(report.table())
    trainer.add_callback(SessionClock())
    with trainer.stop_signals:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except (ValueError, OSError) as error:
            if not str(error).startswith("Caught "):
                raise
            raise _without_worker_traceback(error) from None
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            write_environment(trainer, recipe, output_dir)


def find_checkpoint(output_dir: Path, resume: Resume) -> Path | None:
    """The checkpoint that a run goes on from; None for one that starts anew. All processes get that of the first.

    One that was set aside for a new one of its step is put back before, if the new one is not whole.

    Raises:
        FileNotFoundError: if one is required, and none was written to its end.
    """
    is_one_of_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    found: list[Path | None] = [None]
    if not is_one_of_several or torch.distributed.get_rank() == 0:
        put_back(output_dir)
        found = [last_complete_checkpoint(output_dir) if resume else None]
    if is_one_of_several:
        torch.distributed.broadcast_object_list(found, src=0)
    [checkpoint] = found
    if checkpoint is None and resume == "required":
        raise FileNotFoundError(
            f"A checkpoint to go on from is wanted in {output_dir}, got none that was written to its end. Check "
            "`training.output_dir`, or leave `--resume` out to start anew."
        )
    return checkpoint


def _without_worker_traceback(error: Exception) -> Exception:
    """The error as it was raised, before a worker process of the data loader wrapped its traceback around it."""
    *_, last = str(error).strip().splitlines()
    return type(error)(last.partition(": ")[2])


def _check_same_model(recipe: Recipe, saved: Path) -> None:
    """Checks that the checkpoints to go on from are of what the recipe describes; warns of other `data` or `training`.

    Raises:
        ValueError: if the recipe that made them had another section `model`, `lora` or `optimizer`, or in `annealing` a value
            that the recipe anneals no more, or another learning rate.
    """
    if not saved.is_file():
        return
    before, now = yaml.safe_load(saved.read_text(encoding="utf-8")), recipe.to_dict()
    for section in ("model", "lora", "optimizer", "annealing", "data", "training"):
        of_before = before.get(section) or {}
        of_now = now.get(section) or {}
        changed = [name for name in of_now | of_before if of_before.get(name) != of_now.get(name)]
        # a value that is annealed no more would go back to that of the config; the rate's start is in the scheduler's state
        lost = section == "annealing" and any(name not in of_now or name == "learning_rate" for name in changed)
        if changed and (section in ("model", "lora", "optimizer") or lost):
            raise ValueError(
                f"Checkpoints of this recipe are wanted in {saved.parent}, got those of another `{section}.{changed[0]}`. "
                "Set another `training.output_dir`, or start anew with `--no-resume`."
            )
        if changed:
            logger.warning("Going on with another `%s` than before: %s.", section, ", ".join(changed))
