"""What saving a model does beside transformers' own: room on the disk, the report of its weights, no stale files beside new ones.

All of it is for the one process that writes, and nothing here waits for others.
"""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from .checkpoint_files import is_weight_file, list_files, read_weights
from .weight_report import REPORT_FILE, WeightReport

ADAPTER_CONFIG = "adapter_config.json"
_ALWAYS_WRITTEN = ("config.json", REPORT_FILE)  # by a model, but for its report, which is removed where it has none


def check_folder(folder: str | os.PathLike, model: nn.Module, state_dict: Mapping[str, Any] | None) -> None:
    """Whether a whole model can be saved in a folder; nothing is written.

    Args:
        folder: it may not be there yet.
        model: the model.
        state_dict: what is to be saved; None for all of the model.

    Raises:
        ValueError: if an adapter lies in the folder: it would be applied whenever the model is loaded.
        OSError: if the weights don't fit on the disk, where old files make room only when new ones are whole.
    """
    if (Path(folder) / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"A folder without an adapter is wanted for a whole model, got {folder} with `{ADAPTER_CONFIG}`, which would be "
            f"applied to it on loading. Nothing was written. Save elsewhere, or remove `{ADAPTER_CONFIG}` and "
            "`adapter_model.safetensors` first."
        )
    # Asking FSDP's modules for their state waits for the other processes.
    state: Iterable[Any] = model.parameters() if is_split(model) else model.state_dict().values()
    _check_room(folder, state if state_dict is None else state_dict.values())


def is_split(model: nn.Module) -> bool:
    """Whether processes share a model's weights, by FSDP, DeepSpeed or tensor parallelism: none has them all in memory."""
    return (
        (getattr(model, "_tp_size", None) or 1) > 1
        or any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in model.parameters())
        or any("_fsdp_wrapped_module" in module._modules for module in model.modules())
    )


@contextlib.contextmanager
def naming_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Around what writes in a folder: where it fails, say where and what to do.

    Raises:
        OSError: if a file can't be written. Those written before it are there; safetensors come in place whole.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Saving in {folder} wants a disk with room that may be written, got {type(error).__name__}: {error}. Files of this "
            "save may be there beside older ones. Free some room, or save elsewhere, and save again."
        ) from error


def written_files(folder: str | os.PathLike, before: Mapping[str, tuple[int, int, int]]) -> dict[str, Path]:
    """Name -> path of the files that a save wrote.

    Args:
        folder: as the save left it.
        before: of `list_files` before the save.
    """
    now = list_files(folder)
    written = {name for name, stamp in now.items() if before.get(name) != stamp}
    if any(map(is_weight_file, written)):  # clocks of some disks are too coarse for two saves after one another
        written |= {name for name in now if is_weight_file(name) or name in _ALWAYS_WRITTEN}
    return {name: Path(folder) / name for name in sorted(written)}


def save_report(
    model: nn.Module, folder: str | os.PathLike, weights: Mapping[str, Any] | None, variant: str | None = None
) -> None:
    """Write a model's report beside its weights, with the hashes of what was saved; without one, remove an older model's.

    Hashes stay as they are for weights that are not at hand: those that accelerate left on disk, or a variant that is split.

    Args:
        model: it may have a `weight_report`, which follows where all of the model was saved.
        folder: with the weights, which are read again where they are split over processes or quantised.
        weights: what was saved; None for all of the model.
        variant: in the weights' file name, beside which those of another variant may lie, and their report.
    """
    of_model: WeightReport | None = getattr(model, "weight_report", None)
    if of_model is None:
        if variant is None:
            (Path(folder) / REPORT_FILE).unlink(missing_ok=True)
        return
    report = copy.deepcopy(of_model)
    paths: Mapping[str, str] = getattr(model, "part_paths", {})
    if is_split(model) or getattr(model, "is_quantized", False):
        parts = split_by_part(read_weights(folder), paths) if variant is None else {}
    else:
        parts = split_by_part(model.state_dict() if weights is None else weights, paths)
        report.parts = [part for part in report.parts if part.name in parts]  # a CTC head may be taken off
    at_hand = {
        part.name: parts[part.name]
        for part in report.parts
        if part.name in parts and not any(value.is_meta for value in parts[part.name].values())
    }
    report.rehash(at_hand)
    report.save(folder)
    if weights is None:
        model.weight_report = report  # type: ignore[assignment]


def split_by_part(
    weights: Mapping[str, torch.Tensor], part_paths: Mapping[str, str]
) -> dict[str, dict[str, torch.Tensor]]:
    """Role -> the tensors of its part by their names there; parts without tensors are left out.

    Args:
        weights: of a whole model, by name.
        part_paths: role -> path, as a model's class has it.
    """
    prefixes = {role: f"{path}." if path else "" for role, path in part_paths.items()}
    parts = {
        role: {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for role, prefix in prefixes.items()
    }
    return {role: tensors for role, tensors in parts.items() if tensors}


def _check_room(folder: str | os.PathLike, weights: Iterable[Any]) -> None:
    tensors = [tensor for tensor in weights if isinstance(tensor, torch.Tensor)]
    own = {
        (tensor.data_ptr() or id(tensor), tensor.shape): tensor.numel() * tensor.element_size() for tensor in tensors
    }
    wanted = sum(own.values())  # tied ones once
    place = next((place for place in (Path(folder), *Path(folder).absolute().parents) if place.exists()), Path.cwd())
    disk = shutil.disk_usage(place)
    if disk.total and disk.free < wanted:  # a mounted cloud may have no size
        raise OSError(
            f"Saving in {folder} wants {wanted / 1e6:,.1f} MB, got {disk.free / 1e6:,.1f} MB free on its disk. Nothing was "
            "written. Free some, or save elsewhere."
        )
