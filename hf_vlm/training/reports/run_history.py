"""What a run's folder tells of its course: recipe, the trainer's state, and what it logged as charts of values by step."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_vlm.training.recipe_files import read_sections
from hf_vlm.training.supervision.checkpoints import last_complete_checkpoint

RECIPE_FILE, STATE_FILE = "recipe.yaml", "trainer_state.json"

_FIRST_CHARTS = ("loss", "learning_rate", "grad_norm")
_NO_CURVES = ("epoch", "step", "total_flos", "loss_type")
_EVALUATION, _LAST_ENTRY = "eval_", "train_"
_SPEEDS = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
_TRAINING, _VALIDATION = "training", "validation"


@dataclass
class RunFolder:
    """A run on disk.

    Attributes:
        path: its folder.
        weights: the folder to load the trained model from: `path`, or a checkpoint where that is further.
        sections: the recipe as nested dicts.
        recipe_text: the recipe as it was run, YAML.
        state: what the Trainer knew at the end, or at the last checkpoint.
    """

    path: Path
    weights: Path
    sections: dict[str, Any]
    recipe_text: str
    state: dict[str, Any]


@dataclass
class Line:
    """Values by step.

    Attributes:
        name: what they are of: `training`, `validation`, or `validation: NAME`.
        steps: steps of the optimizer, rising.
        values: as many, finite, as they were logged.
        num_left_out: values that are no numbers, NaN or infinite.
    """

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    num_left_out: int = 0

    def add(self, step: int, value: float) -> None:
        """One more value; a later one of the same step takes its place."""
        if not math.isfinite(value):
            self.num_left_out += 1
        elif self.steps and self.steps[-1] == step:
            self.values[-1] = value
        else:
            self.steps.append(step)
            self.values.append(value)


@dataclass
class Chart:
    """Lines of one measure, such as the loss in training and of each validation set."""

    title: str
    lines: list[Line]


def open_run(path: str | Path) -> RunFolder:
    """The run in a folder that `hf-vlm train` wrote, finished or not.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no run's: the recipe or the trainer's state is missing or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The folder of a run is wanted, got {folder}, which is none. Name a `training.output_dir`."
        )
    checkpoint = last_complete_checkpoint(folder)
    files = [place / STATE_FILE for place in (folder, checkpoint) if place is not None]
    found = {name: (folder / name).is_file() for name in (RECIPE_FILE,)}
    found[STATE_FILE] = any(file.is_file() for file in files)
    if missing := [name for name, is_there in found.items() if not is_there]:
        raise ValueError(
            f"The folder of a run is wanted, with `{RECIPE_FILE}`, `{STATE_FILE}` (here or in a whole `checkpoint-STEP`) and "
            f"the trained model, got {folder} without `{'` and `'.join(missing)}`. Name the `training.output_dir` of a run "
            "of `hf-vlm train` that has saved something."
        )
    # A run that goes on has a checkpoint that is further than what its last end left in the folder.
    states = {file.parent: _read_state(file) for file in files if file.is_file()}
    weights = max(states, key=lambda place: states[place].get("global_step", 0))
    if weights == folder and checkpoint is not None and not _holds_model(folder):
        weights = checkpoint
    state = max(states.values(), key=lambda state: state.get("global_step", 0))
    recipe = folder / RECIPE_FILE
    return RunFolder(folder, weights, read_sections(recipe), recipe.read_text(encoding="utf-8"), state)


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(state, dict) and isinstance(state.get("log_history"), list):
            return state
        fault = "no `log_history`"
    except ValueError as error:
        fault = str(error)
    raise ValueError(
        f"{file} must be what the Trainer writes, JSON with a `log_history`, got {fault}. Take the file of a run."
    )


def _holds_model(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def set_names(sections: Mapping[str, Any]) -> list[str]:
    """The names of a recipe's validation sets, empty where it has one without a name."""
    data = sections.get("data")
    validation = data.get("validation") if isinstance(data, Mapping) else None
    return [str(name) for name in validation] if isinstance(validation, Mapping) else []


def read_charts(log_history: Iterable[Mapping[str, Any]], names: Iterable[str] = ()) -> list[Chart]:
    """What was logged, a chart a measure: loss, learning rate and gradient norm first, then what validation measured.

    Args:
        log_history: the Trainer's.
        names: of validation sets, whose `eval_NAME_MEASURE` become lines of the measure's chart.
    """
    by_length = sorted(names, key=len, reverse=True)  # `chat_long` is not the set `chat`
    charts: dict[str, dict[str, Line]] = {}
    for entry in log_history:
        step = entry.get("step")
        if not isinstance(step, int):
            continue
        for key, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or key in _NO_CURVES:
                continue
            if key.startswith(_LAST_ENTRY) or (key.startswith(_EVALUATION) and key.endswith(_SPEEDS)):
                continue
            measure, line = _place(key, by_length)
            lines = charts.setdefault(measure, {})
            lines.setdefault(line, Line(line)).add(step, float(value))
    for lines in charts.values():
        if _VALIDATION in lines and len(lines) - (_TRAINING in lines) > 1:
            lines[_VALIDATION].name = f"{_VALIDATION}, mean of the sets"
    order = sorted(
        charts, key=lambda measure: _FIRST_CHARTS.index(measure) if measure in _FIRST_CHARTS else len(_FIRST_CHARTS)
    )
    return [Chart(measure.replace("_", " "), list(charts[measure].values())) for measure in order]


def _place(key: str, names: list[str]) -> tuple[str, str]:
    """Chart and line of a logged value."""
    if not key.startswith(_EVALUATION):
        stem, _, number = key.rpartition("_")
        if stem == "learning_rate" and number.isdigit():
            return stem, f"{_TRAINING}, rate {int(number) + 1}"  # of parts that train at rates of their own
        return key, _TRAINING
    measure = key.removeprefix(_EVALUATION)
    for name in names:
        if measure.startswith(f"{name}_"):
            return measure.removeprefix(f"{name}_"), f"{_VALIDATION}: {name}"
    return measure, _VALIDATION


def has_evaluation(charts: Iterable[Chart]) -> bool:
    """Whether anything was validated."""
    return any(line.name.startswith(_VALIDATION) for chart in charts for line in chart.lines)
