"""What a training step of a model costs, found by running it on tensors that have shapes and no content.

torch's `FakeTensorMode` runs a model's own code, whatever it is, without memory and without arithmetic. Every tensor that the
step makes is followed from its birth to its end: the most that lives at once is what a device must have beside weights and
optimizer. `FlopCounterMode` counts multiplications and additions of the same step, those of recomputed layers too.

Where the code asks for a value, which such tensors have not, it is told that it is being compiled: transformers' models and ours
leave their checks out then. The kernels are a CPU's: of attention the one that keeps no square of scores, as on a GPU.
"""

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one forward and backward pass.

    Attributes:
        kept: what the forward pass leaves for the backward pass.
        peak: the most that lives at once beside weights and gradients: what is kept, and what is being computed.
        peak_with_gradients: the same with the gradients that are there by then, none at the start.
    """

    kept: int
    peak: int
    peak_with_gradients: int


@dataclass(frozen=True)
class StepArithmetic:
    """Multiplications and additions, each counted, of matrix products, convolutions and attention.

    Attributes:
        forward, all: of the forward pass, and of the whole step.
    """

    forward: int
    all: int


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Inside it tensors are made without content, and code that would look at it leaves that out."""
    compiling = torch.compiler._is_compiling_flag
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.compiler._is_compiling_flag = True
        try:
            yield
        finally:
            torch.compiler._is_compiling_flag = compiling


def give_shapes(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put tensors without content in the place of a model's on the meta device; to be called inside `shapes_only`.

    Args:
        dtype: of the floating-point weights; their own by default.
    """
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                kind = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
                if id(parameter) not in made:  # tied ones stay tied
                    empty = torch.empty(parameter.shape, dtype=kind, device="cpu")
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def step_memory(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    precision: torch.dtype | None = None,
    num_learnt: int | None = None,
) -> StepMemory:
    """What lives during one step.

    Args:
        model: in training mode, its `forward` giving `loss`; with or without content.
        inputs: of `forward`.
        precision: of torch's autocast; None for none.
        num_learnt: how many of a flat list of labels carry a loss, where tensors have no content and the model asks which do;
            None for all.
    """
    lives = _LivingTensors([*model.parameters(), *model.buffers(), *inputs.values()])
    hooks = [
        parameter.register_post_accumulate_grad_hook(lives.note_gradient)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        with _Assumed(num_learnt), lives:
            loss = _forward(model, inputs, precision)
            kept = lives.now
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return StepMemory(kept, lives.peak, lives.peak_with_gradients)


def step_arithmetic(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    precision: torch.dtype | None = None,
    num_learnt: int | None = None,
) -> StepArithmetic:
    """What one step computes. Apart from `step_memory`: torch's counter holds on to tensors for a while.

    Args:
        model, inputs, precision, num_learnt: as for `step_memory`.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with _Assumed(num_learnt), counter:
        loss = _forward(model, inputs, precision)
        forward = counter.get_total_flops()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return StepArithmetic(forward, counter.get_total_flops())


def _forward(model: nn.Module, inputs: Mapping[str, torch.Tensor], precision: torch.dtype | None) -> torch.Tensor:
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        return model(**inputs)["loss"]


class _LivingTensors(TorchDispatchMode):
    """Follows all storages that operations make, until nobody holds them.

    Attributes:
        now: bytes that live, gradients of weights aside.
        peak: the most that `now` was.
        peak_with_gradients: the most that it was with them.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.peak_with_gradients = self._gradients = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.peak_with_gradients = max(self.peak_with_gradients, self.now + self._gradients)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def note_gradient(self, parameter: torch.Tensor) -> None:
        """A gradient is there: it is counted among the gradients from now on."""
        assert parameter.grad is not None
        size = self._sizes.pop(key := parameter.grad.untyped_storage()._cdata, 0)
        self._known.add(key)
        self.now -= size
        self._gradients += size


class _Assumed(TorchDispatchMode):
    """What tensors without content are taken to say where code asks: that is so, and so everywhere.

    A condition holds; a mask chooses all; of a flat list of labels the first `num_learnt` are learnt; each text of a batch is as
    long as the others.
    """

    def __init__(self, num_learnt: int | None) -> None:
        super().__init__()
        self._num_learnt = num_learnt

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], FakeTensor):
            if function is aten._local_scalar_dense.default:
                return True if args[0].dtype == torch.bool else 1
            if function is aten.nonzero.default and args[0].dim() == 1:
                number = len(args[0]) if self._num_learnt is None else min(self._num_learnt, len(args[0]))
                return torch.arange(number, device=args[0].device)[:, None]
            if function is aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
                return args[0].flatten(0, args[1][0].dim() - 1).clone()
            if function is aten._ctc_loss.Tensor:
                places, batch, _ = args[0].shape
                states = 2 * (args[1].numel() // batch) + 1
                return args[0].new_empty(batch), args[0].new_empty(batch, places, states)
        return function(*args, **(kwargs or {}))


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch's counter knows the kernels of GPUs; a CPU's is the same arithmetic.
_CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
