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
from .checkpoint_files import find_file, read_config
from .model_origin import origin_of, published_name
from .weight_report import hash_weights, write_whole

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
        origin = origin_of(base)
        base = type(base).from_pretrained(origin.place, dtype=torch.bfloat16, **origin.hub_arguments)
    paths = role_paths(base)
    parts = {role: base.get_submodule(paths[role]) for role in roles if role in paths}
    return {role: hash_weights(_InBfloat16(_base_state(part))) for role, part in parts.items()}


def check_base(model: nn.Module, folder: str | os.PathLike, **hub_kwargs: Any) -> bool:
    """Whether a model has the weights that an adapter was trained on; a warning that names both, with hashes, if not.

    Nothing is said where it can't be told: of weights that were rounded to float16, here or in training, other hashes follow
    (see `exactly_hashed`).

    Args:
        model: the base, with or without adapters.
        folder: of the adapter, or its Hub name. One without `base_weights.json` has no hashes: nothing is said. Of a damaged
            one a warning is given.
        hub_kwargs: as for `read_config`.
    """
    path = find_file(folder, BASE_FILE, **hub_kwargs)
    if path is None:
        return True
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = {str(role): str(sha256) for role, sha256 in content["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"`{path}` must hold the hashes of the base that the adapter goes with, got a file that is damaged "
            f"({type(error).__name__}: {error}). Whether the adapter is on its base can't be told. Copy or download it again.",
            stacklevel=2,
        )
        return True
    came = hash_parts(model, list(wanted))
    others = [f"{role} {wanted[role]}, got {came.get(role)}" for role in wanted if wanted[role] != came.get(role)]
    if others and set(wanted) <= set(came) and not (content.get("exact", True) and exactly_hashed(model)):
        return True
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
    place = origin_of(base_of(model)).place
    return published_name(place) if place else "a model made in memory"


def exactly_hashed(model: nn.Module) -> bool:
    """Whether the hashes of `hash_parts` are those of the base's files.

    Weights in float16 are not, if the files hold float32: values rounded to float16 first go to other values of bfloat16
    than those rounded at once.
    """
    base = base_of(model)
    held = {value.dtype for value in (*base.parameters(), *base.buffers())}
    if getattr(base, "is_quantized", False) or torch.float16 not in held:
        return True
    origin = origin_of(base)
    try:
        stored = read_config(origin.place, **origin.hub_arguments)
    except (OSError, ValueError):
        return False
    return str(stored.get("dtype") or stored.get("torch_dtype")) == "float16"


def write_base_weights(
    folder: str | os.PathLike, base: str | None, hashes: Mapping[str, str], exact: bool = True
) -> None:
    """Put `base_weights.json` beside an adapter.

    Args:
        base: folder or Hub name of the base.
        hashes: of its parts by role, as from `hash_parts`.
        exact: as `exactly_hashed` tells of the model that was hashed.
    """
    content: dict[str, Any] = {"base": base, "dtype": "bfloat16", "sha256": dict(hashes)}
    if not exact:
        content["exact"] = False
    write_whole(Path(folder) / BASE_FILE, json.dumps(content, indent=2) + "\n")


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
