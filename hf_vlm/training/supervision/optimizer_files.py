"""Checkpoints that a run of another engine goes on from: FSDP2 writes other files than one process or DDP.

One process and DDP write the optimizer's state by the parameters' numbers, FSDP2 by their names, and each reads its own alone.
Both leave whole tensors, so that either can be made of the other. DeepSpeed keeps shards in a format of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer

from hf_vlm.training.supervision.checkpoints import (
    OPTIMIZER,
    OPTIMIZER_OF_FSDP,
    SCHEDULER,
    WEIGHTS_OF_FSDP,
    Engine,
    engine_of,
)

_NAMES: dict[Engine, str] = {"plain": "one process or DDP", "fsdp": "FSDP", "deepspeed": "DeepSpeed"}


class PortableCheckpoints(Trainer):
    """`Trainer` that goes on from a checkpoint of one process, of DDP or of FSDP2, whichever of them it is itself.

    Raises:
        ValueError: if FSDP2 is to save its shards apart, which leaves no folder that a model loads from.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        kind = getattr(getattr(plugin, "state_dict_type", None), "name", "FULL_STATE_DICT")
        if kind != "FULL_STATE_DICT":
            raise ValueError(
                f"Checkpoints of FSDP must hold whole weights, `state_dict_type: FULL_STATE_DICT`, got {kind}, of which no model "
                "can be loaded. Set `fsdp_config.state_dict_type`, or `fsdp_state_dict_type` in accelerate's file."
            )
        if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = layers_to_split(self.model)

    @property
    def engine(self) -> Engine:
        """What splits this run's weights, if anything does."""
        return "deepspeed" if self.is_deepspeed_enabled else "fsdp" if self.is_fsdp_enabled else "plain"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        written_by = self._check_engine(folder)
        if written_by == self.engine:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self.engine == "fsdp":  # every process takes its shards of what the first reads
            weights: dict[str, Any] = whole_weights(folder, model) if self.args.process_index == 0 else {}
            set_model_state_dict(
                model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            )
        else:
            model.load_state_dict(torch.load(folder / WEIGHTS_OF_FSDP, map_location="cpu", weights_only=True))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and engine_of(Path(best)) != self.engine:  # of before the run went on by another engine
            return self._load_from_checkpoint(best)
        return super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        folder, optimizer = Path(checkpoint), self.optimizer
        written_by = self._check_engine(folder)
        file = folder / (OPTIMIZER_OF_FSDP if written_by == "fsdp" else OPTIMIZER)
        if written_by == self.engine and (self.engine != "fsdp" or not file.is_file()):
            return super()._load_optimizer_and_scheduler(checkpoint)
        assert optimizer is not None and self.lr_scheduler is not None
        # Mapped, as every process looks and the first alone reads it all.
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if self.engine == "plain" or not saved["state"]:  # torch, which shares a state out, wants one tensor at least
            by_number = state_by_number(saved, optimizer, self.model) if written_by == "fsdp" else saved
            optimizer.load_state_dict(by_number)
        elif written_by == self.engine:
            return super()._load_optimizer_and_scheduler(checkpoint)
        else:
            state = state_by_name(saved, optimizer, self.model) if self.args.process_index == 0 else {}
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def _check_engine(self, folder: Path) -> Engine:
        """What wrote a checkpoint.

        Raises:
            ValueError: if either that or this run is DeepSpeed, and not the other.
        """
        written_by = engine_of(folder)
        if written_by != self.engine and "deepspeed" in (written_by, self.engine):
            raise ValueError(
                f"A checkpoint of {_NAMES[self.engine]} is wanted in {folder}, got one of {_NAMES[written_by]}, whose optimizer "
                f"goes on there alone. Go on by {_NAMES[written_by]}, or start a new run from its weights with "
                "`model.pretrained`."
            )
        return written_by


def layers_to_split(model: nn.Module) -> list[str]:
    """Names of a model's classes of layers that FSDP2 gathers one at a time, without those that hold the input embeddings.

    These make a group of their own in accelerate, which no other may hold.
    """
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    holders = {
        type(module).__name__
        for module in model.modules()
        if module is not embeddings and any(inner is embeddings for inner in module.modules())
    }
    present = {type(module).__name__ for module in model.modules()} - holders
    return sorted(present & set(getattr(model, "_no_split_modules", None) or []))


def whole_weights(folder: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of one process, float by the names that they have in memory.

    Args:
        folder: the checkpoint.
        model: that they are for, split or not.
    """
    if not isinstance(model, PreTrainedModel):
        return load_file(folder / "model.safetensors")
    # FSDP2 gives a model a class of its own, before which stands the one that knows how names in files differ.
    kind: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    return kind.from_pretrained(folder, dtype=torch.float32).state_dict()


def state_by_name(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state by parameters' names, of one by their numbers.

    Args:
        saved: `state_dict()` of an optimizer with the same groups.
        optimizer, model: what it is for.

    Raises:
        ValueError: if the groups hold other numbers of parameters.
    """
    names = _names_of_groups(optimizer, model)
    counts, wanted = [len(group["params"]) for group in saved["param_groups"]], [len(group) for group in names]
    if counts != wanted:
        raise ValueError(
            f"An optimizer of groups of {wanted} parameters is wanted, got one of {counts}. Train what the checkpoint's run "
            "trained."
        )
    groups: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    for group, of_group in zip(saved["param_groups"], names, strict=True):
        groups.append({**group, "params": [aliases[0] for aliases in of_group]})
        for number, aliases in zip(group["params"], of_group, strict=True):
            if number in saved["state"]:
                state[aliases[0]] = saved["state"][number]
    return {"state": state, "param_groups": groups}


def state_by_number(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state by parameters' numbers, of one by their names: the other way round than `state_by_name`.

    Raises:
        ValueError: if a parameter has no group in what was saved.
    """
    group_of = {name: group for group in saved["param_groups"] for name in group["params"]}
    groups: list[dict[str, Any]] = []
    state: dict[int, Any] = {}
    number = 0
    for own, of_group in zip(optimizer.param_groups, _names_of_groups(optimizer, model), strict=True):
        numbers, settings = [], own  # of a group without parameters
        for aliases in of_group:
            name = next((alias for alias in aliases if alias in group_of), None)
            if name is None:
                raise ValueError(
                    f"An optimizer of `{aliases[0]}` is wanted, got one of {len(group_of)} other parameters. Train what the "
                    "checkpoint's run trained."
                )
            settings = group_of[name]
            if name in saved["state"]:
                state[number] = saved["state"][name]
            numbers.append(number)
            number += 1
        groups.append({**settings, "params": numbers})
    return {"state": state, "param_groups": groups}


def _names_of_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[list[str]]]:
    """Of each group the names of each parameter, which has several where it is tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
