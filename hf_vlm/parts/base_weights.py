"""Which weights an adapter belongs to: hashes of its base, kept in `base_weights.json` beside it.

An adapter says what is to be added to certain weights; on others of the same shapes it loads without a word and says something
else. Each part of the base is hashed by itself, its values rounded to bfloat16: a base may be loaded in another dtype than it
was trained in.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..blocks.codebook import Codebook
from .checkpoint_files import find_file
from .weight_report import hash_weights

BASE_FILE = "base_weights.json"


def base_of(model: nn.Module) -> Any:
    """The model that PEFT put adapters into, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def role_paths(model: nn.Module) -> dict[str, str]:
    """The paths of a model's parts by role; parts without weights, such as a projection that isn't needed, are left out.

    Args:
        model: whose class has `part_paths`, with or without adapters.

    Raises:
        ValueError: if its class has none.
    """
    base = base_of(model)
    paths: Mapping[str, str] = getattr(base, "part_paths", {})
    if not paths:
        raise ValueError(
            f"A model of hf-vlm is wanted, whose class names its parts in `part_paths`, got a `{type(base).__name__}`. Use peft "
            "itself for others."
        )
    return {role: path for role, path in paths.items() if _has_weights(base, path)}


def _has_weights(model: nn.Module, path: str) -> bool:
    try:
        return bool(model.get_submodule(path).state_dict())  # a codebook learnt by running means has no parameters
    except AttributeError:
        return False


def hash_parts(model: nn.Module, roles: Sequence[str]) -> dict[str, str]:
    """SHA-256 by role of the weights below any adapters, rounded to bfloat16; a part that the model lacks is left out.

    A quantised base is loaded once more as it was: its weights are not the base's any more.
    """
    base = base_of(model)
    if getattr(base, "is_quantized", False):
        base = type(base).from_pretrained(base.name_or_path, dtype=torch.bfloat16)
    paths = role_paths(base)
    parts = {role: base.get_submodule(paths[role]) for role in roles if role in paths}
    return {role: hash_weights(_InBfloat16(_base_state(part))) for role, part in parts.items()}


def check_base(model: nn.Module, folder: str | os.PathLike, **hub_kwargs: Any) -> bool:
    """Whether a model has the weights that an adapter was trained on; a warning that names both, with hashes, if not.

    Args:
        model: the base, with or without adapters.
        folder: of the adapter, or its Hub name. One without `base_weights.json` has no hashes: nothing is said.
        hub_kwargs: as for `read_config`.
    """
    path = find_file(folder, BASE_FILE, **hub_kwargs)
    if path is None:
        return True
    content = json.loads(path.read_text(encoding="utf-8"))
    wanted: dict[str, str] = content["sha256"]
    came = hash_parts(model, list(wanted))
    others = [f"{role} {wanted[role]}, got {came.get(role)}" for role in wanted if wanted[role] != came.get(role)]
    if others:
        warnings.warn(
            f"The adapter {published_name(folder)} wants {content.get('base') or 'the base'}, on which it was trained, got "
            f"{name_of(model)}, which holds others by their SHA-256: {'; '.join(others)}. Load the base that it names, or train "
            "it anew on this one.",
            stacklevel=2,
        )
    return not others


def name_of(model: nn.Module) -> str:
    """What a model is called in messages: the folder or Hub name that it came from."""
    name = getattr(base_of(model), "name_or_path", "")
    return published_name(name) if name else "a model made in memory"


def write_base_weights(folder: str | os.PathLike, base: str | None, hashes: Mapping[str, str]) -> None:
    """Put `base_weights.json` beside an adapter.

    Args:
        base: folder or Hub name of the base.
        hashes: of its parts by role, as from `hash_parts`.
    """
    content = {"base": base, "dtype": "bfloat16", "sha256": dict(hashes)}
    (Path(folder) / BASE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def kept_roles(model: nn.Module, in_full: Sequence[str] | None) -> list[str]:
    """The roles whose weights are the base's, those left out whose paths are among `in_full`, which an adapter brings whole."""
    return [role for role, path in role_paths(model).items() if path not in (in_full or ())]


def hold_base(model: nn.Module) -> None:
    """Keep what adapters stand on as it is in training: running means that no optimizer moves.

    Batch normalisation and codebooks go to evaluation mode, where they follow no batch, in a model with adapters of peft,
    but for those that train in full beside them. In a model without adapters nothing is changed.
    """
    modules = dict(model.named_modules())
    if not any("base_layer" in module._modules for module in modules.values()):
        return
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | Codebook) and ".modules_to_save." not in f".{name}":
            module.eval()


def published_name(base: str | os.PathLike) -> str:
    """What an adapter may say of its base: a Hub name as it is, of a folder the way there from the working directory.

    A folder's absolute path is never written. The way is what a recipe would say too: transformers' auto classes load the
    adapter's folder from the directory that it was trained in; our own classes and the commands of `hf-vlm` look around the
    adapter's folder too (`find_base`), `peft` takes a base loaded by hand, and `hf-vlm merge` has `--base`. Before publishing,
    name the base's Hub repository in `save_adapter`.
    """
    name = os.fspath(base)
    if not os.path.exists(name):
        return name
    try:
        return Path(os.path.relpath(name)).as_posix()
    except ValueError:  # another drive
        return os.path.basename(os.path.abspath(name))


class _InBfloat16(Mapping[str, torch.Tensor]):
    """Tensors, each converted when it is asked for: a copy of a whole model may not fit."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _base_state(part: nn.Module) -> dict[str, torch.Tensor]:
    """A part's tensors under the names that they have without adapters."""
    wrapped = {
        name: inner
        for name, module in part.named_modules()
        for inner in ("base_layer", "original_module")  # of adapters, and of parts that train in full
        if inner in module._modules
    }
    state: dict[str, torch.Tensor] = {}
    for name, tensor in part.state_dict().items():
        words = name.split(".")
        place = next((end for end in range(len(words)) if ".".join(words[:end]) in wrapped), None)
        if place is not None:
            if words[place] != wrapped[".".join(words[:place])]:
                continue
            del words[place]
        state[".".join(words)] = tensor
    return state
