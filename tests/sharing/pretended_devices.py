"""A model whose parts pretend to lie on devices of their own, on a CPU: which of them a device map must not part is seen.

Every tensor of a part carries a place, and so does what is computed of it; an operation on tensors of two places fails, as it
does between two GPUs. Hooks of accelerate bring the inputs of a part to its place, as `dispatch_model`'s do.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_MOVES = ("to", "type_as")  # by these a tensor gets to where another is


class PretendedDevices(TorchFunctionMode):
    """Inside, what is computed lies where its arguments do, and arguments of two places are an error."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return result
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        others = [value for value in tree_leaves((args[1:], kwargs)) if isinstance(value, torch.device | torch.Tensor)]
        if name in _MOVES and others:
            return tree_map(_without_place, result)
        places = {place_of(value) for value in given} - {None}
        if len(places) > 1:
            raise RuntimeError(f"`{name}` of tensors on pretended devices {sorted(places)}")
        return tree_map(lambda value: _mark(value, *places), result) if places else result


class _Bring(ModelHook):
    """Brings what a part is called with to its place, whatever accelerate would bring: tensors, containers, what has `to`."""

    def __init__(self, place: int) -> None:
        self.place = place

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self._brought(args), self._brought(kwargs)

    def _brought(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return _mark(_without_place(value), self.place)
        if isinstance(value, tuple | list):
            return type(value)(self._brought(item) for item in value)
        if type(value) is dict:
            return {name: self._brought(item) for name, item in value.items()}
        return send_to_device(value, torch.device("cpu"))


def place_of(tensor: torch.Tensor) -> int | None:
    return getattr(tensor, "pretended_device", None)


def _mark(value: Any, place: int) -> Any:
    if isinstance(value, torch.Tensor) and place_of(value) is None:
        value.pretended_device = place
    return value


def _without_place(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch._C.DisableTorchFunction():
        return value.view_as(value)


def spread(model: Any) -> list[str]:
    """Puts every part that a device map may have for itself on a device of its own; the parts' names.

    Such a part is a module of a class in `_no_split_modules`, one without submodules, or a tensor of a module that is split.
    """
    parts = list(_parts("", model, set(model._no_split_modules or ())))
    for number, (_, part) in enumerate(parts):
        tensors = [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else [part]
        place = next(
            (known for known in map(place_of, tensors) if known is not None), number
        )  # tied weights lie together
        for tensor in tensors:
            tensor.pretended_device = place
        if isinstance(part, nn.Module):
            add_hook_to_module(part, _Bring(place))
    add_hook_to_module(model, _Bring(0))  # what the model is called with comes to where its first part lies
    return [name for name, _ in parts]


def _parts(name: str, module: nn.Module, whole: set[str]) -> Iterator[tuple[str, nn.Module | torch.Tensor]]:
    if type(module).__name__ in whole or not any(module.children()):
        if any(True for _ in [*module.parameters(), *module.buffers()]):
            yield name, module
        return
    for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield f"{name}.{own}".lstrip("."), tensor
    for own, child in module.named_children():
        yield from _parts(f"{name}.{own}".lstrip("."), child, whole)
