"""Where a module computes, and its weights there, when accelerate keeps them on the CPU or on disk between calls.

accelerate brings a module's weights for its `forward` and takes them away afterwards; in between they have no values (device
`meta`). Code that reads a weight outside of a call, such as a codebook that is asked for codewords, goes by here.

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
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        return function(inputs)
    (inputs,), _ = hook.pre_forward(module, inputs)
    return hook.post_forward(module, function(inputs))


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
