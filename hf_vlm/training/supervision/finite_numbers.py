"""Where a number that is NaN or infinite came from: looked for by a second pass over the batch, once a step has gone wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_MAX_NAMED = 16  # rows that an error names


@dataclass(frozen=True)
class BadNumber:
    """The first tensor with a NaN or an infinity in it.

    Attributes:
        name: in words, such as "the output of `decoder.model`".
        rows: of a batch those that have one, in [0, batch); None where it belongs to no row.
    """

    name: str
    rows: tuple[int, ...] | None = None


def first_bad_number(
    model: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any], num_rows: int
) -> BadNumber:
    """The first weight, input or output of a module that has a NaN or infinite number; without one, the loss itself.

    Args:
        model: whose weights are looked at, or the shares of them that this process has.
        inputs: of the batch, on the model's device.
        forward: passes the batch through the model; always called, as other processes may have to take part.
        num_rows: items of the batch.
    """
    found = [BadNumber(f"the weight `{name}`") for name, weight in model.named_parameters() if not _is_finite(weight)]
    found += [
        BadNumber(f"the input `{name}`", _bad_rows(value, num_rows))
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and not _is_finite(value)
    ]

    def look(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if not found and isinstance(tensor, torch.Tensor) and not _is_finite(tensor):
                found.append(BadNumber(f"the output of `{name}`", _bad_rows(tensor, num_rows)))

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    except Exception:
        if not found:
            raise
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else BadNumber("the loss itself")


def first_bad_gradient(model: nn.Module, backward: Callable[[], Any]) -> BadNumber | None:
    """The weight whose gradient is the first on the way back that is NaN or infinite; None if all are finite.

    Args:
        model: whose gradients are thrown away; where FSDP2 splits it, those of a layer come at once, in the order of its weights.
        backward: passes batches through the model and back.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(parameter: torch.Tensor) -> None:
            if not found and parameter.grad is not None and not _is_finite(parameter.grad):
                found.append(name)

        return hook

    model.zero_grad()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(look(name)) for name, parameter in trained]
    try:
        backward()
    finally:
        for handle in hooks:
            handle.remove()
    return BadNumber(f"the gradient of `{found[0]}`") if found else None


def named_rows(sources: Sequence[str], rows: Sequence[int] | None = None) -> str:
    """Rows in words: those that are to blame, or all where that is not known."""
    if rows is not None and len(rows) < len(sources):
        sources = [sources[row] for row in rows]
    if not sources:
        return "rows without sources"
    more = f" and {len(sources) - _MAX_NAMED} more" if len(sources) > _MAX_NAMED else ""
    return ", ".join(sources[:_MAX_NAMED]) + more


def _is_finite(tensor: torch.Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return not local.is_floating_point() or bool(torch.isfinite(local.detach()).all())


def _bad_rows(tensor: torch.Tensor, num_rows: int) -> tuple[int, ...] | None:
    """The rows of a tensor (num_rows, ...) with a NaN or infinite number; None for one of another shape."""
    if isinstance(tensor, DTensor) or tensor.dim() == 0 or len(tensor) != num_rows:
        return None
    is_bad = ~torch.isfinite(tensor.detach()).flatten(1).all(dim=1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
    return tuple(is_bad.nonzero().flatten().tolist())
