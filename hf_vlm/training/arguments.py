"""A recipe's section `training` as the settings of transformers' Trainer, on as many processes as there are.

Transformers counts a batch a device, so the same settings learn otherwise on another number of devices. A recipe that says
`global_batch_size`, the items of one update, learns alike on any number: what a device takes at once, and how often before
an update, follow from it.
"""

import copy
import json
import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_vlm.training.recipe import ITEMS_OF_UPDATE, Recipe
from hf_vlm.training.supervision.checkpoints import sessions_of

logger = logging.getLogger(__name__)

_MAX_NAMED = 8  # numbers of devices that an error names
_NOT_SHARDED = (DistributedType.NO, DistributedType.MULTI_CPU)  # where accelerate knows neither FSDP nor DeepSpeed


def training_arguments(recipe: Recipe, defaults: Mapping[str, Any], fixed: Mapping[str, Any]) -> Any:
    """The Trainer's settings, of the recipe's `arguments_class`: the recipe's, over defaults.

    Args:
        defaults: settings where the recipe has none.
        fixed: what the trainer needs to be right; a recipe that asks for something else is refused.

    Raises:
        ValueError: if the recipe asks for one of `fixed` otherwise, the settings contradict each other, its
            `global_batch_size` can't be divided among the devices, or there are more processes than GPUs.
        ImportError: if it asks for tensorboard or DeepSpeed and that is missing.
    """
    settings: dict[str, Any] = {
        "save_total_limit": 2,
        "use_cpu": not torch.accelerator.is_available(),  # without it `bf16` is refused where there is no accelerator
        **defaults,
        **copy.deepcopy(recipe.training),  # transformers writes into the sections of an engine
    }
    for name, value in fixed.items():
        if settings.setdefault(name, value) != value:
            raise ValueError(
                f"`training.{name}` must be {value!r} for {recipe.task}, got {settings[name]!r}. Leave it out."
            )
    if (settings.get("deepspeed") or _is_set("ACCELERATE_USE_DEEPSPEED")) and find_spec("deepspeed") is None:
        raise ImportError("`training.deepspeed` wants the package deepspeed, got none. Run `pip install deepspeed`.")
    if not settings["use_cpu"]:
        _check_devices(torch.accelerator.device_count())
    items = settings.pop(ITEMS_OF_UPDATE, None)
    arguments = recipe.arguments_class(**copy.deepcopy(settings))
    if items is not None:  # anew: an engine's settings are made from those of the batch
        arguments = recipe.arguments_class(**settings | _share_of_update(items, arguments, recipe.training))
    # Whole models are built and then divided: new weights are those of one process, and parts are joined and hashed as anywhere.
    unset_hf_deepspeed_config()
    _tell_engine(arguments)
    if "tensorboard" in arguments.report_to and not is_tensorboard_available():
        raise ImportError(
            "`training.report_to` wants the package tensorboard, got none. Run `pip install 'hf-vlm[train]'`."
        )
    return arguments


def items_per_update(arguments: TrainingArguments) -> int:
    """How many items change the weights once: those of all devices, times the steps of gradient accumulation."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def divide_update(items: int, *, num_devices: int, max_per_device: int) -> tuple[int, int]:
    """What a device takes at once, and how often before an update, so that all devices together take `items`.

    Args:
        items: of an update, over all devices.
        num_devices: over all processes and nodes.
        max_per_device: items that a device takes at once at most.

    Returns: items at once, the most up to `max_per_device` that divide a device's share; steps of gradient accumulation.

    Raises:
        ValueError: if `items` is no multiple of `num_devices`.
    """
    if items % num_devices:
        below = items - items % num_devices
        near = [number for number in (below, below + num_devices) if number]
        raise ValueError(
            f"`training.global_batch_size` must be a multiple of the {num_devices} devices that share it, got {items}. Run on "
            f"{_either(_divisors_near(items, num_devices))} devices, or set it to {_either(near)}."
        )
    share = items // num_devices
    at_once = max(size for size in range(1, min(share, max_per_device) + 1) if share % size == 0)
    return at_once, share // at_once


def check_same_step(arguments: TrainingArguments, checkpoint: str | Path) -> None:
    """Checks that a run goes on from a checkpoint with as many items an update, on however many processes.

    The order of items, the rate's schedule and the number of steps count updates: with as many items in each, a run goes on
    where it was, however they are divided. Checkpoints without a note of it, of older versions, are let through.

    Raises:
        ValueError: if an update has another number of items; the message says which settings give it as many.
    """
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    sessions = sessions_of(state.get("stateful_callbacks", {}))
    before = sessions[-1] if sessions else {}
    wanted, now = before.get("items_per_update"), items_per_update(arguments)
    num_devices = _num_devices(arguments)
    if wanted is None:
        return
    if wanted != now:
        where = f" on {_either(_divisors_near(wanted, num_devices))} devices" if wanted % num_devices else ""
        raise ValueError(
            f"{wanted} items an update are wanted, as in {checkpoint} of {before.get('num_devices')} devices, got {now} on "
            f"{num_devices}. Set `training.{ITEMS_OF_UPDATE}={wanted}`, without `training.gradient_accumulation_steps`"
            f"{where}, or start anew with `--no-resume`."
        )
    if before.get("num_devices") != num_devices:
        logger.warning(
            "Going on with %d devices in the place of %s: an update has %d items as before.",
            num_devices,
            before.get("num_devices"),
            now,
        )


def _share_of_update(items: int, arguments: TrainingArguments, given: Mapping[str, Any]) -> dict[str, int]:
    """The settings of a device whose update has `items` items over all.

    Raises:
        ValueError: if they can't be divided, or the recipe sets `gradient_accumulation_steps` otherwise.
    """
    num_devices, most = _num_devices(arguments), arguments.per_device_train_batch_size
    at_once, num_steps = divide_update(items, num_devices=num_devices, max_per_device=most)
    if given.get("gradient_accumulation_steps", num_steps) != num_steps:
        raise ValueError(
            f"`training.gradient_accumulation_steps` must be {num_steps} for `training.global_batch_size={items}` on "
            f"{num_devices} devices of at most {most} items at once, got {given['gradient_accumulation_steps']}. Leave it out."
        )
    if arguments.auto_find_batch_size:
        raise ValueError(
            "`training.global_batch_size` wants a batch that stays, got `training.auto_find_batch_size`. Leave one out."
        )
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": num_steps}


def _num_devices(arguments: TrainingArguments) -> int:
    return arguments.world_size * max(1, arguments.n_gpu)  # one process may drive several


def _divisors_near(items: int, number: int) -> list[int]:
    """Up to eight numbers that divide `items`, those nearest to `number`, in order."""
    divisors = [size for size in range(1, items + 1) if items % size == 0]
    return sorted(sorted(divisors, key=lambda size: abs(size - number))[:_MAX_NAMED])


def _either(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def _check_devices(num_devices: int) -> None:
    """Checks that this machine has a device for each of its processes; accelerate would give two of them the same one.

    Raises:
        ValueError: if it has fewer.
    """
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_processes > num_devices:
        raise ValueError(
            f"A GPU for each of {num_processes} processes of this machine is wanted, got {num_devices}. Start {num_devices} "
            "(`--nproc-per-node` of torchrun, `--num_processes` of accelerate), or set `training.use_cpu=true`."
        )


def _tell_engine(arguments: TrainingArguments) -> None:
    """Warns where weights were to be divided among processes and are not; accelerate passes over that without a word."""
    engines = {
        "FSDP": arguments.fsdp or _is_set("ACCELERATE_USE_FSDP"),
        "DeepSpeed": arguments.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"),
    }
    wanted = [name for name, asked in engines.items() if asked]
    if wanted and arguments.process_index == 0 and arguments.distributed_state.distributed_type in _NOT_SHARDED:
        where = "on CPUs" if arguments.world_size > 1 else "by one process that no launcher started"
        logger.warning(
            "%s was asked for, and accelerate has none %s: every process holds the whole model. Results are the same.",
            wanted[0],
            where,
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
