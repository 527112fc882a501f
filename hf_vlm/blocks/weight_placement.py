"""Where a module computes, and its weights there, when accelerate keeps them on the CPU or on disk between calls, or FSDP splits
them over processes.

accelerate brings a module's weights for its `forward` and takes them away afterwards; in between they have no values (device
`meta`). Code that reads a weight outside of a call, such as a codebook that is asked for codewords, goes by here. FSDP2 brings a
module's weights together for its `forward` and goes on with its shards afterwards: code that writes a weight goes by here too.

Source: accelerate's `hooks.py`, https://huggingface.co/docs/accelerate/package_reference/big_modeling
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def with_weights(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    """`function(inputs)`, which reads weights of `module` itself, not of its submodules: they are there as in its `forward`."""
    fsdp: Any = _unit_of_fsdp(module)
    if fsdp is not None:
        fsdp.unshard()
        outputs = function(inputs)
        fsdp.reshard()
        return outputs
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        return function(inputs)
    (inputs,), _ = hook.pre_forward(module, inputs)
    return hook.post_forward(module, function(inputs))


@torch.no_grad()
def set_weight(module: nn.Module, name: str, values: torch.Tensor, where: torch.Tensor | None = None) -> None:
    """Gives a weight or buffer of `module` itself new values, within its `forward` or outside.

    Under FSDP2 they would be lost with the weight that was brought together for the call, so each process changes its shard. The
    module has to be a unit of FSDP by itself, as those of a class in `_no_split_modules` are.

    Args:
        name: of the weight.
        values: float, of its shape, the same in all processes.
        where: bool, of a shape that broadcasts: which values are taken; None for all.
    """
    fsdp: Any = _unit_of_fsdp(module)
    if fsdp is None or not isinstance(getattr(module, name), nn.Parameter):
        _write(getattr(module, name), values, where)
        return
    fsdp.set_reshard_after_forward(True, recurse=False)  # without it `reshard` does nothing within a call
    fsdp.reshard()
    shards: Any = getattr(module, name)
    chosen = None if where is None else _shard_like(where.expand(shards.shape), shards)
    _write(shards.to_local(), _shard_like(values, shards), chosen)
    fsdp.unshard()


def _unit_of_fsdp(module: nn.Module) -> Any:
    """The module, if FSDP2 has made it a unit of its own, with a method of FSDP's own class; else None."""
    return module if hasattr(module, "set_reshard_after_forward") else None


def _write(weight: torch.Tensor, values: torch.Tensor, where: torch.Tensor | None) -> None:
    weight.copy_(values if where is None else torch.where(where, values.to(weight.dtype), weight))


def _shard_like(values: torch.Tensor, shards: Any) -> torch.Tensor:
    """What this process keeps of values that all have, where a weight is split like `shards`."""
    from torch.distributed.tensor import distribute_tensor  # only where there are several processes

    own = distribute_tensor(values, shards.device_mesh, shards.placements, src_data_rank=None).to_local()
    return own.to(shards.device)  # the CPU, where FSDP keeps shards there


def computing_device(module: nn.Module) -> torch.device:
    """The device of a module's first weight; where that is kept elsewhere between calls, the one that it is brought to.

    Raises:
        StopIteration: if the module has no weights.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for single in getattr(hook, "hooks", (hook,)):  # accelerate joins several into one
            brought_to = getattr(single, "execution_device", None)
            if brought_to is not None:
                return torch.device(brought_to)
    return device
