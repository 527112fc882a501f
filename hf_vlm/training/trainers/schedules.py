"""Values that change over a training run, as functions of its step: KL weights and Gumbel temperatures.

    constant      start
    linear        start -> end over num_steps, then end
    cosine        start -> end along half a period of a cosine over num_steps, then end         (DALL-E's, Ramesh 2021, A.2)
    exponential   max(end, start * exp(-rate * step))                                           (Jang 2017, section 4)

A value depends on the step alone: a run that goes on from a checkpoint has the values that it would have had.
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_vlm.training.recipe_files import listed


@dataclasses.dataclass(kw_only=True)
class Schedule:
    """How a value runs, see the module's docstring.

    Attributes:
        kind: of the curve.
        start: value at step 0.
        end: value at the end; for `exponential` the floor. No setting of `constant`.
        num_steps: optimizer steps from start to end, of `linear` and `cosine`.
        rate: of `exponential`, a step, above 0; Jang et al. took 1e-5 and 1e-4.
        every: the value changes every so many steps only.
    """

    kind: Literal["constant", "linear", "cosine", "exponential"]
    start: float
    end: float | None = None
    num_steps: int | None = None
    rate: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        wanted: set[str] = {
            "constant": set(),
            "linear": {"end", "num_steps"},
            "cosine": {"end", "num_steps"},
            "exponential": {"end", "rate"},
        }.get(self.kind, set())
        given = {name for name in ("end", "num_steps", "rate") if getattr(self, name) is not None}
        if given != wanted:
            raise ValueError(
                f"A schedule `{self.kind}` wants {listed(['start', *sorted(wanted)])}, got "
                f"{listed(['start', *sorted(given)])}. Add what is missing, leave out the rest."
            )
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"`num_steps` must be 1 or more, got {self.num_steps}. For no change take `constant`.")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"`rate` must be above 0, got {self.rate}. For no change take `constant`.")
        if self.kind == "exponential" and self.end is not None and self.end > self.start:
            raise ValueError(
                f"`end`, the floor, must not be above `start`, got {self.end} above {self.start}. Lower it."
            )
        if self.every < 1:
            raise ValueError(f"`every` must be 1 step or more, got {self.every}. Correct it.")

    def value(self, step: int) -> float:
        """The value at an optimizer step, counted from 0."""
        step -= step % self.every
        if self.kind == "exponential":
            assert self.rate is not None and self.end is not None
            return max(self.end, self.start * math.exp(-self.rate * step))
        if self.kind == "constant" or self.end is None or self.num_steps is None:
            return self.start
        passed = min(step / self.num_steps, 1.0)
        if self.kind == "cosine":
            passed = (1 - math.cos(math.pi * passed)) / 2
        return self.start + (self.end - self.start) * passed


class AnnealingCallback(TrainerCallback):
    """Sets values of a model before every step, by the Trainer's global step.

    Args:
        schedules: by the name of the argument of the model's `anneal` that takes the value.
    """

    def __init__(self, schedules: Mapping[str, Schedule]) -> None:
        self.schedules = schedules

    def values(self, step: int) -> dict[str, float]:
        """Each value at an optimizer step."""
        return {name: schedule.value(step) for name, schedule in self.schedules.items()}

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Sets the values of the step that begins."""
        assert model is not None
        model.anneal(**self.values(state.global_step))


def check_schedules(model: PreTrainedModel, schedules: Mapping[str, Schedule]) -> None:
    """Checks that a model has the values that are to change, and takes each schedule's ends.

    Raises:
        ValueError: if it lacks one, or refuses a value.
    """
    if not schedules:
        return
    anneal = getattr(model, "anneal", None)
    known = list(inspect.signature(anneal).parameters) if anneal else []
    for name, schedule in schedules.items():
        if name not in known:
            raise ValueError(
                f"`annealing` must name values of `{type(model).__name__}`, of which there are {listed(known) or 'none'}, got "
                f"`{name}`. Correct or remove it."
            )
        for value in (schedule.end, schedule.start):
            if value is not None:
                anneal(**{name: value})  # type: ignore[misc]
