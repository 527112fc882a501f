"""Whether every part that is asked to train gets a gradient: a run that would leave one as it is stops at its first update."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class GradientCheck(TrainerCallback):
    """Stops the run at its first update if a part that is asked to train got no gradient.

    Args:
        check: raises ValueError for such a model; `check_gradients` by default. Where it gives back False, the step could not
            tell, and the next is asked.
    """

    def __init__(self, check: Callable[[torch.nn.Module], bool | None] | None = None) -> None:
        self._check = check or check_gradients
        self._done = False

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks once, before the first update of this process."""
        if not self._done and model is not None and not args.deepspeed_plugin:  # ZeRO keeps gradients to itself
            self._done = self._check(model) is not False


def check_gradients(model: torch.nn.Module) -> None:
    """Checks after a backward pass that every part asked to train got a gradient.

    A part is a module two levels down (`encoder.vision_model`, `decoder.model`), of the model that adapters are in where
    there are some: single tensors may rightly stay without one, such as a mask token that only pre-training uses.

    Raises:
        ValueError: if all tensors of a part that require a gradient have none, or only zeros.
    """
    reached: dict[str, bool] = {}
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = ".".join(name.split(".")[:2])
            got = parameter.grad is not None and bool(parameter.grad.any())
            reached[part] = reached.get(part, False) or got
    left_out = [part for part, got in reached.items() if not got]
    if left_out:
        names = ", ".join(f"`{part}`" for part in left_out)
        raise ValueError(
            f"A gradient is wanted in every part that trains, got none in {names}. Freeze the part, or check that the "
            "forward pass uses it."
        )
