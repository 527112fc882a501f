"""`hf-vlm estimate`: what a recipe's run would take on GPUs that are not there: memory, arithmetic, hours.

What is computed, and from what:

    parameters    of the model's configuration, on the meta device
    activations   of the recipe's largest batch, by a step on tensors without content (`step_costs.py`)
    memory        of each engine, by what it keeps and splits (`engine_memory.py`)
    arithmetic    of a batch of mean length, by the same step
    hours         arithmetic by a measured speed; sending between devices by the GPUs' links (`gpus.py`)

The speed is that of a run of ours (its folder), of `scripts/benchmarks/estimate.py`, or, without either, of a run measured on one
H100 for this project, whose share of a GPU's most is taken for others. The hours are a range: all sending hidden behind
arithmetic, and none of it. Time for data, evaluation and checkpoints is not in them.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_vlm.parts.base_weights import base_of
from hf_vlm.training.arguments import divide_update
from hf_vlm.training.estimates.engine_memory import ENGINES, EngineMemory, bytes_sent, engine_memory, model_size
from hf_vlm.training.estimates.gpus import GPU, gpu_named, gpu_of_device
from hf_vlm.training.estimates.step_costs import StepMemory, give_shapes, shapes_only, step_arithmetic, step_memory
from hf_vlm.training.estimates.unloaded_models import (
    Item,
    batch_of_shapes,
    longest_item,
    most_tokens,
    num_learnt,
    unloaded_config,
    unloaded_model,
)
from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.tasks import load_recipe

GIBIBYTE = 2**30
KEPT_FREE = 0.08  # of a GPU's memory: its context, and gaps between what is allocated

# Share of a GPU's most multiplications that a step of LLaVA's second phase did on one H100: language model of 1.1B, CLIP ViT-L/14
# at 336, bf16 by autocast, 16 conversations of 772 tokens on the mean, 36 % padding: 27.0k tokens a second, padding aside, by
# transformers' LLaVA; ours was 1.02 times as fast (README, "On a GPU"). Their arithmetic is counted by
# `scripts/benchmarks/estimate.py --shipped`: 308e12 a second.
SHIPPED_SHARE = 308e12 / 989e12
SHIPPED_SOURCE = "a 1.1B LLaVA measured on one H100 (27.0k tokens a second, padding aside)"


@dataclass(frozen=True)
class Speed:
    """Arithmetic a second of one device.

    Attributes:
        flops_per_second: multiplications and additions.
        source: what was measured.
    """

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        task, model: of the recipe.
        parts: (part, all its numbers, those that train).
        gpu, gpus, nodes: kind, all devices, and how many machines they are in.
        longest, mean: items that memory and time are of.
        row_tokens: of a row of packed conversations, which is then what items are counted in; None for unpacked ones.
        items_per_pass, num_passes: items a device takes at once, and how often for an update.
        precision: of the arithmetic, `fp32`, `bfloat16` or `float16`.
        flops_per_item: of the mean item or a packed row, padding and what is computed again included.
        engines: memory of each.
        speed: that hours are of.
        chosen: engine that hours are of: the one asked for, else the first that fits; None if none does.
        updates, rows: of the run; None where the recipe doesn't say and no rows were given.
        seconds_of_arithmetic, seconds_of_sending: of one update on a device.
    """

    task: str
    model: str
    parts: list[tuple[str, int, int]]
    gpu: GPU
    gpus: int
    nodes: int
    longest: Item
    mean: Item
    row_tokens: int | None
    items_per_pass: int
    num_passes: int
    precision: str
    flops_per_item: float
    engines: list[EngineMemory]
    speed: Speed
    chosen: str | None
    updates: int | None
    rows: int | None
    seconds_of_arithmetic: float
    seconds_of_sending: float

    @property
    def items_per_update(self) -> int:
        """Items of all devices."""
        return self.items_per_pass * self.num_passes * self.gpus

    def fits(self, memory: EngineMemory) -> bool:
        """Whether it is less than a device has, `KEPT_FREE` left over."""
        return memory.total <= (1 - KEPT_FREE) * self.gpu.memory

    def hours(self) -> tuple[float, float] | None:
        """Of the run: all sending hidden behind arithmetic, and none."""
        if self.updates is None or self.chosen is None:
            return None
        hidden = max(self.seconds_of_arithmetic, self.seconds_of_sending)
        return self.updates * hidden / 3600, self.updates * (
            self.seconds_of_arithmetic + self.seconds_of_sending
        ) / 3600

    def tokens_per_second(self) -> tuple[float, float] | None:
        """Of all devices, padding aside, in the order of `hours`; None where there is no text."""
        if not self.mean.tokens or self.chosen is None:
            return None
        tokens = self.items_per_update * (self.row_tokens or self.mean.tokens)
        hidden = max(self.seconds_of_arithmetic, self.seconds_of_sending)
        return tokens / hidden, tokens / (self.seconds_of_arithmetic + self.seconds_of_sending)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: bytes, seconds, hours, numbers; `hours` and `tokens_per_second` are [sending hidden, not hidden] or null."""
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("engines", "gpu")}
        engines = {
            memory.engine: {**dataclasses.asdict(memory), "total": memory.total, "fits": self.fits(memory)}
            for memory in self.engines
        }
        return told | {
            "gpu": self.gpu.name,
            "engines": engines,
            "items_per_update": self.items_per_update,
            "hours": self.hours(),
            "tokens_per_second": self.tokens_per_second(),
        }

    def __str__(self) -> str:
        return "\n".join(_told(self))


def estimate(
    recipe: Recipe,
    *,
    gpus: int = 1,
    gpu: str = "h100",
    measured: str | Path | None = None,
    rows: int | None = None,
    tokens: int | None = None,
    nodes: int = 1,
    engine: str | None = None,
    preset: str | None = None,
) -> Estimate:
    """What a recipe's run would take. Nothing is loaded but configurations, and nothing trained.

    Args:
        gpus: in each machine.
        gpu: kind, one of `hf_vlm.training.estimates.gpus.GPUS`.
        measured: folder of a run of ours on a GPU, or JSON of `scripts/benchmarks/estimate.py`: the speed is taken from there.
        rows: of the training set, which hours are of where the recipe counts epochs.
        tokens: of an item on the mean, those of its picture included; by default the longest that the recipe lets through.
        nodes: machines.
        engine: one of `ENGINES`; by default all are compared, and hours are of the first that fits.
        preset: a published size, in the place of the recipe's model.

    Raises:
        ValueError: if a name or number makes no sense, or the model can't be made from what the recipe names.
        OSError: if a part, or what was measured, is not there.
    """
    kind = gpu_named(gpu)
    _check(gpus=gpus, nodes=nodes, rows=rows, tokens=tokens)
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {listed(ENGINES)}, got `{engine}`. Choose one.")
    num_devices = gpus * nodes
    config = unloaded_config(recipe, preset)
    longest = longest_item(recipe, config)
    mean = longest if tokens is None else _mean_item(recipe, config, tokens)
    if mean.tokens > longest.tokens:  # of labels whose length is a guess
        longest = mean
    items_per_pass, num_passes = _division(recipe, num_devices)
    model = unloaded_model(recipe, config)
    parts, size = _parts(model), model_size(base_of(model))
    precision = _precision(recipe)
    optim = str(recipe.training.get("optim", "adamw_torch"))

    step = _Step(recipe, config, model)
    memories = [
        engine_memory(
            name,
            size,
            step.memory(items_per_pass, longest, None if name == "ddp" else precision),
            num_devices=num_devices,
            is_half=precision is not None,
            accumulates=num_passes > 1,
            optim=optim,
        )
        for name in ((engine,) if engine else ENGINES)
        if num_devices > 1 or name in ("ddp", engine)
    ]
    fitting = [memory.engine for memory in memories if memory.total <= (1 - KEPT_FREE) * kind.memory]
    chosen = engine or next(iter(fitting), None)
    flops_per_item = step.arithmetic(items_per_pass, mean) / items_per_pass
    speed = speed_of(measured, kind)
    sent = bytes_sent(
        chosen or ENGINES[-1], size, num_devices=num_devices, is_half=precision is not None, num_passes=num_passes
    )
    return Estimate(
        task=recipe.task,
        model=preset or str(recipe.model.pretrained or getattr(recipe.model, "text", None) or config.model_type),
        parts=parts,
        gpu=kind,
        gpus=num_devices,
        nodes=nodes,
        longest=longest,
        mean=mean,
        row_tokens=_row_tokens(recipe),
        items_per_pass=items_per_pass,
        num_passes=num_passes,
        precision="fp32" if precision is None else str(precision).removeprefix("torch."),
        flops_per_item=flops_per_item,
        engines=memories,
        speed=speed,
        chosen=chosen,
        updates=_updates(recipe, items_per_pass * num_passes * num_devices, rows, mean),
        rows=rows,
        seconds_of_arithmetic=flops_per_item * items_per_pass * num_passes / speed.flops_per_second,
        seconds_of_sending=sent / (kind.link if nodes == 1 else kind.network),
    )


def speed_of(measured: str | Path | None, gpu: GPU) -> Speed:
    """Arithmetic a second of a GPU, from what was measured: on another kind of GPU, by the share of its most.

    Raises:
        ValueError: if it was measured on no GPU of the table, or holds no speed.
        FileNotFoundError: if nothing is there.
    """
    if measured is None:
        return Speed(SHIPPED_SHARE * gpu.flops_per_second, SHIPPED_SOURCE)
    place = Path(measured)
    told = _speed_of_run(place) if place.is_dir() else _speed_of_file(place)
    of = gpu_of_device(str(told["device"]))
    if of is None:
        raise ValueError(
            f"A speed measured on a GPU of the table is wanted, got one of {told['device']!r} in {place}. Leave `measured` out, "
            "or measure on a GPU."
        )
    share = told["flops_per_second"] / of.flops_per_second
    return Speed(share * gpu.flops_per_second, f"{place} on {told['device']}")


def _speed_of_file(file: Path) -> dict[str, Any]:
    told = _read_measured(file, file)
    if not {"device", "flops_per_second"} <= set(told):
        raise ValueError(
            f"{file} must hold `device` and `flops_per_second`, got something else. Write it by `scripts/benchmarks/estimate.py`."
        )
    return told


def _read_measured(file: Path, given: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        reason = None if isinstance(told, dict) else "no object in it"
    except (OSError, ValueError) as error:
        told, reason = {}, "no such file" if isinstance(error, FileNotFoundError) else str(error)
    if reason is not None:
        raise ValueError(
            "`measured` must be the folder of a finished run, or JSON of scripts/benchmarks/estimate.py, got "
            f"{given} ({file.name}: {reason}). Name another, or leave it out."
        )
    return told


def _speed_of_run(folder: Path) -> dict[str, Any]:
    environment = _read_measured(folder / "run_environment.json", folder)
    items = environment.get("items_per_second")
    if not items or not environment.get("sessions"):
        raise ValueError(f"{folder} must hold the run's `items_per_second`, got none. Run it for more than two steps.")
    recipe, session = load_recipe(folder / "recipe.yaml"), environment["sessions"][-1]
    config = unloaded_config(recipe)
    tokens = environment.get("tokens_per_second")
    longest = longest_item(recipe, config)
    item = longest
    if tokens:  # never more than the recipe lets through, however a run counts
        most = most_tokens(recipe, config)
        of_item = max(1, round(tokens / items))
        item = _mean_item(recipe, config, of_item if most is None else min(of_item, most))
    at_once, _ = _division(recipe, session["num_devices"])
    of_pass = _Step(recipe, config, unloaded_model(recipe, config)).arithmetic(at_once, item)
    if (row_tokens := _row_tokens(recipe)) and tokens:  # a run counts conversations, a pass takes rows of them
        passes = tokens / (at_once * row_tokens)
    else:
        passes = items / at_once
    return {"device": session["device"], "flops_per_second": of_pass * passes / session["num_devices"]}


def _check(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {number}. Correct it.")


def _mean_item(recipe: Recipe, config: Any, tokens: int) -> Item:
    most = most_tokens(recipe, config)
    if most == 0:
        raise ValueError(f"`tokens` is for recipes with texts, got {tokens} for `{recipe.task}`. Leave it out.")
    if most is not None and tokens > most:
        raise ValueError(f"`tokens` must be at most the {most} that the recipe lets through, got {tokens}. Lower it.")
    of_picture = getattr(config, "num_image_tokens", None)
    pictures = 1.0 if of_picture is None or tokens > of_picture else 0.0
    return Item(tokens, pictures)


def _row_tokens(recipe: Recipe) -> int | None:
    return recipe.data.max_tokens if isinstance(recipe, LlavaRecipe) else None


def _division(recipe: Recipe, num_devices: int) -> tuple[int, int]:
    """Items at once on a device, and passes an update."""
    most = recipe.training.get("per_device_train_batch_size", 1 if _row_tokens(recipe) else 8)
    items = recipe.training.get("global_batch_size")
    if items is not None:
        return divide_update(items, num_devices=num_devices, max_per_device=most)
    return most, recipe.training.get("gradient_accumulation_steps", 1)


def _precision(recipe: Recipe) -> torch.dtype | None:
    training = recipe.training
    return torch.bfloat16 if training.get("bf16") else torch.float16 if training.get("fp16") else None


class _Step:
    """Steps of a recipe's model on batches of several sizes; what was asked before is remembered."""

    def __init__(self, recipe: Recipe, config: Any, model: Any) -> None:
        self._recipe, self._config, self._model = recipe, config, model
        self._memory: dict[Any, StepMemory] = {}

    def memory(self, batch_size: int, item: Item, weights: torch.dtype | None) -> StepMemory:
        """Of a pass; `weights` is their precision, None for fp32."""
        key = (batch_size, item, weights)
        if key not in self._memory:
            with shapes_only():
                give_shapes(self._model, weights or torch.float32)
                self._memory[key] = step_memory(self._model, **self._settings(batch_size, item))
        return self._memory[key]

    def arithmetic(self, batch_size: int, item: Item) -> int:
        """Of a pass, weights in fp32."""
        with shapes_only():
            give_shapes(self._model, torch.float32)
            return step_arithmetic(self._model, **self._settings(batch_size, item)).all

    def _settings(self, batch_size: int, item: Item) -> dict[str, Any]:
        return {
            "inputs": batch_of_shapes(self._recipe, self._model, batch_size, item),
            "precision": _precision(self._recipe),
            "num_learnt": num_learnt(self._recipe, self._config, batch_size, item),
        }


def _updates(recipe: Recipe, items_per_update: int, rows: int | None, mean: Item) -> int | None:
    steps = recipe.training.get("max_steps", -1)
    if steps > 0:
        return steps
    if rows is None:
        return None
    if row_tokens := _row_tokens(recipe):  # so many rows lie in one
        rows = math.ceil(rows * mean.tokens / row_tokens)
    return math.ceil(recipe.training.get("num_train_epochs", 3) * rows / items_per_update)


def _parts(model: Any) -> list[tuple[str, int, int]]:
    base = base_of(model)
    found: dict[str, list[int]] = {}
    for name, parameter in base.named_parameters():
        of_part = found.setdefault(name.split(".")[0], [0, 0])
        of_part[0] += parameter.numel()
        of_part[1] += parameter.numel() if parameter.requires_grad else 0
    return [(name, every, trained) for name, (every, trained) in found.items()]


def _told(told: Estimate) -> list[str]:
    every, trained = sum(part[1] for part in told.parts), sum(part[2] for part in told.parts)
    machines = f"{told.nodes} machines of {told.gpus // told.nodes}" if told.nodes > 1 else f"{told.gpus}"
    lines = [
        f"{told.task} of {told.model} on {machines} x {told.gpu.name} "
        f"({told.gpu.memory / GIBIBYTE:.0f} GiB, {told.gpu.flops_per_second / 1e12:.0f} TFLOP/s at most). Computed, not run.",
        "",
        f"{'part':<28}{'parameters':>16}{'trained':>16}",
        *(f"{name:<28}{of_all:>16,}{of_trained:>16,}" for name, of_all, of_trained in told.parts),
        f"{'all':<28}{every:>16,}{trained:>16,}",
        "",
        f"an update: {told.items_per_update} items, {told.items_per_pass} at once on a device, {told.num_passes} times; "
        f"{told.precision}",
        f"an item: {_sized(told.mean)} on the mean; memory for {_sized(told.longest)}; "
        + (f"packed in rows of {told.row_tokens:,} tokens, each " if told.row_tokens else "")
        + f"{told.flops_per_item / 1e12:.3g} TFLOP",
        "",
        "GiB a device"
        + "".join(f"{name:>13}" for name in ("weights", "gradients", "optimizer", "gathered"))
        + "  activations"
        f"{'all':>10}  fits",
    ]
    for memory in told.engines:
        amounts = (memory.weights, memory.gradients, memory.optimizer, memory.gathered, memory.activations)
        lines.append(
            f"{memory.engine:<12}"
            + "".join(f"{amount / GIBIBYTE:>13.1f}" for amount in amounts)
            + f"{memory.total / GIBIBYTE:>10.1f}  {'yes' if told.fits(memory) else 'no'}"
        )
    return [
        *lines,
        "at the fullest moment of an update: behind the backward pass no activations are left",
        "",
        *_time_told(told),
    ]


def _time_told(told: Estimate) -> list[str]:
    if told.chosen is None:
        return [
            "No engine fits. Fewer items at once, `gradient_checkpointing`, shorter rows or more devices do, or adapters."
        ]
    first = f"by {told.chosen}, an update: {told.seconds_of_arithmetic:.2f} s of arithmetic at "
    lines = [
        first
        + f"{told.speed.flops_per_second / 1e12:.0f} TFLOP/s a device, {told.seconds_of_sending:.2f} s of sending",
        f"speed: {told.speed.source}, as a share of a GPU's most; sending: bytes by the link's bandwidth",
    ]
    rates, hours = told.tokens_per_second(), told.hours()
    if rates is not None:
        lines.append(f"tokens a second: {rates[0]:,.0f} with sending hidden behind arithmetic, {rates[1]:,.0f} without")
    if hours is None:
        return [*lines, "hours: not known, as the recipe counts epochs: give the number of rows (`--rows`)"]
    return [*lines, f"{told.updates:,} updates: {hours[0]:.1f} to {hours[1]:.1f} hours, data and evaluation aside"]


def _sized(item: Item) -> str:
    return f"{item.tokens:,} tokens" if item.tokens else "a picture"
