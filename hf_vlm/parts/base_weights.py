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
            f"A model made of parts is wanted, a LLaVA or a TrOCR, whose class has `part_paths`, got a `{type(base).__name__}`. "
            "Use peft itself for others."
        )
    return {role: path for role, path in paths.items() if _has_weights(base, path)}


def _has_weights(model: nn.Module, path: str) -> bool:
    try:
        return next(model.get_submodule(path).parameters(), None) is not None
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
    """Whether a model has the weights that an adapter was trained on; a warning with both hashes if not.

    Args:
        model: the base, with or without adapters.
        folder: of the adapter, or its Hub name. One without `base_weights.json` has no hashes: nothing is said.
        hub_kwargs: as for `read_config`.
    """
    path = find_file(folder, BASE_FILE, **hub_kwargs)
    if path is None:
        return True
    wanted: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    came = hash_parts(model, list(wanted))
    others = [f"{role} {wanted[role]}, got {came.get(role)}" for role in wanted if wanted[role] != came.get(role)]
    if others:
        warnings.warn(
            f"The adapter {published_name(folder)} wants the weights that it was trained on, by their SHA-256: "
            f"{'; '.join(others)}. Load the base that it names, or train it anew on this one.",
            stacklevel=2,
        )
    return not others


def published_name(base: str | os.PathLike) -> str:
    """What an adapter may say of its base: a Hub name as it is, of a folder the way there from the working directory.

    A folder's absolute path is never written. The way is what a recipe would say too: loading by the adapter's folder alone
    works from the directory that it was trained in; elsewhere `peft` takes a base loaded by hand, and `hf-vlm merge` has
    `--base`. Before publishing, name the base's Hub repository in `save_adapter`.
    """
    name = os.fspath(base)
    if not os.path.isdir(name):
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
    layers = {name for name, module in part.named_modules() if "base_layer" in module._modules}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in part.state_dict().items():
        words = name.split(".")
        places = (end for end in range(1, len(words)) if ".".join(words[:end]) in layers)
        place = next(places, None)
        if place is not None:
            if words[place] != "base_layer":
                continue
            del words[place]
        state[".".join(words)] = tensor
    return state
