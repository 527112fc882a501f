"""A recipe's section `training` as the settings of transformers' Trainer."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.integrations import is_tensorboard_available

from hf_vlm.training.recipe import Recipe


def training_arguments(recipe: Recipe, defaults: Mapping[str, Any], fixed: Mapping[str, Any]) -> Any:
    """The Trainer's settings, of the recipe's `arguments_class`: the recipe's, over defaults.

    Args:
        defaults: settings where the recipe has none.
        fixed: what the trainer needs to be right; a recipe that asks for something else is refused.

    Raises:
        ValueError: if the recipe asks for one of `fixed` otherwise, or the settings contradict each other.
        ImportError: if it asks for tensorboard and that is missing.
    """
    settings: dict[str, Any] = {
        "save_total_limit": 2,
        "use_cpu": not torch.accelerator.is_available(),  # without it `bf16` is refused where there is no accelerator
        **defaults,
        **recipe.training,
    }
    for name, value in fixed.items():
        if settings.setdefault(name, value) != value:
            raise ValueError(
                f"`training.{name}` must be {value!r} for {recipe.task}, got {settings[name]!r}. Leave it out."
            )
    arguments = recipe.arguments_class(**settings)
    if "tensorboard" in arguments.report_to and not is_tensorboard_available():
        raise ImportError(
            "`training.report_to` wants the package tensorboard, got none. Run `pip install 'hf-vlm[train]'`."
        )
    return arguments
