"""`hf-vlm train`: a run by a recipe."""

import argparse
from pathlib import Path
from typing import Any

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="YAML file, name of a shipped recipe, or folder of a run to go on with"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as training.learning_rate=1e-4"
    )
    parser.add_argument("--dry-run", action="store_true", help="check all, show the first batch, memory, and stop")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="go on from the last complete checkpoint of the output folder, which must be there; with --no-resume start anew; "
        "by default go on if there is one",
    )
    shared_options.add_json(parser, "one JSON object at the end: the folder, steps, and the last figures")


def run(options: argparse.Namespace) -> int:
    """Trains, or tells what a run would do."""
    from hf_vlm.training.runs import Resume
    from hf_vlm.training.tasks import load_recipe, train

    recipe = load_recipe(*recipe_of(options))
    if options.dry_run:
        from hf_vlm.training.dry_run import dry_run

        report = dry_run(recipe)
        write_result(options, {"report": str(report)}, report)
        return 0
    resume: Resume = "required" if options.resume else options.resume is None
    trainer = train(recipe, resume)
    folder = trainer.args.output_dir
    result = {
        "folder": str(folder),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "metrics": _last_figures(trainer.state.log_history),
    }
    write_result(options, result, f"Model saved in {folder}")
    return 0


def recipe_of(options: argparse.Namespace) -> tuple[str, list[str]]:
    """File or name of the recipe, and its overrides. A run's folder means the recipe that lies there, and goes on there.

    Raises:
        FileNotFoundError: if a folder has no recipe.
    """
    folder = Path(options.recipe)
    if not folder.is_dir():
        return options.recipe, options.overrides
    from hf_vlm.training.recipe_files import RECIPE_FOLDER, read_sections

    file = folder / "recipe.yaml"
    if not file.is_file():
        if (RECIPE_FOLDER / f"{options.recipe}.yaml").is_file():  # a folder that happens to be called as a shipped one
            return options.recipe, options.overrides
        raise FileNotFoundError(
            f"The folder of a run is wanted, with its `recipe.yaml`, got {folder} without. Name the recipe itself."
        )
    written = read_sections(file).get("training", {}).get("output_dir", "")
    is_moved = not written or Path(written).resolve() != folder.resolve()
    return str(file), [*([f"training.output_dir={folder}"] if is_moved else []), *options.overrides]


def _last_figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The last value of each figure that a run logged."""
    last = {name: value for entry in history for name, value in entry.items()}
    return {name: value for name, value in last.items() if name not in ("step", "epoch")}


COMMAND = Command(
    "train",
    "train by a recipe; a stopped run goes on",
    add_options,
    run,
    description="Trains by a recipe, a YAML file whose values can be given anew as `key=value`. The same command goes on from "
    "the last complete checkpoint. Several GPUs: `torchrun --nproc-per-node 8 -m hf_vlm.cli train ...`.",
    example="hf-vlm train trocr-finetune-lines data.folder=my_lines training.output_dir=my-reader",
    rest="overrides",
    if_stopped="What was written stays; the same command goes on from the last checkpoint.",
)
