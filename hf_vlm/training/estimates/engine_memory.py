"""What each engine keeps on a device, and sends between devices, of a model's weights, gradients and optimizer.

| engine | weights     | gradients | optimizer | gathered for a while                        | sent an update and device        |
|--------|-------------|-----------|-----------|---------------------------------------------|----------------------------------|
| ddp    | whole       | whole     | whole     | a copy of the gradients, in buckets         | gradients, there and back        |
| zero2  | whole, bf16 | split     | split     | two buckets of gradients                    | gradients, and new weights       |
| fsdp2  | split       | split     | split     | what is in no layer, and two layers, bf16   | weights twice a pass, gradients  |
| zero3  | split, bf16 | split     | split     | up to 1e9 weights                           | weights twice a pass, gradients  |

With ZeRO in bf16 a second set of the weights that train, in fp32, belongs to the optimizer. `split` is by the number of devices.
DDP: torch's `Reducer` with `gradient_as_bucket_view=False`, as accelerate makes it. FSDP2: accelerate's policy computes and
sends in the precision of autocast. ZeRO: DeepSpeed's defaults, `reduce_bucket_size` 5e8 and `stage3_max_live_parameters` 1e9.

Source: Rajbhandari et al. 2020 (ZeRO), section 5, https://arxiv.org/abs/1910.02054; Zhao et al. 2023 (FSDP),
https://arxiv.org/abs/2304.11277
"""

from dataclasses import dataclass
from typing import Any

from hf_vlm.training.estimates.memory import state_bytes
from hf_vlm.training.estimates.step_costs import StepMemory

ENGINES = ("ddp", "zero2", "fsdp2", "zero3")
_BUCKET, _LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class ModelSize:
    """Numbers of a model.

    Attributes:
        all, trained: of all its weights, and of those that train.
        layer: of the largest layer that FSDP2 wraps.
        outside, trained_outside: of what no such layer holds: tables of words, output layers.
    """

    all: int
    trained: int
    layer: int
    outside: int
    trained_outside: int


def model_size(model: Any) -> ModelSize:
    """Counted of a model, of which no weight need be there."""
    parameters = list(model.parameters())
    names = set(getattr(model, "_no_split_modules", None) or ())
    inside: dict[int, Any] = {}
    layers = [0]
    for module in model.modules():
        if type(module).__name__ in names:
            of_layer = {id(parameter): parameter for parameter in module.parameters()}
            inside |= of_layer
            layers.append(sum(parameter.numel() for parameter in of_layer.values()))
    outside = [parameter for parameter in parameters if id(parameter) not in inside]
    return ModelSize(
        all=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        layer=max(layers),
        outside=sum(parameter.numel() for parameter in outside),
        trained_outside=sum(parameter.numel() for parameter in outside if parameter.requires_grad),
    )


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one device.

    Attributes:
        engine: one of `ENGINES`.
        weights, gradients, optimizer: what is kept all the time.
        gathered: what the engine puts together, or copies, for a while.
        activations: of the largest batch, with what is being computed.
    """

    engine: str
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


def engine_memory(
    engine: str, size: ModelSize, step: StepMemory, *, num_devices: int, is_half: bool, accumulates: bool, optim: str
) -> EngineMemory:
    """What an engine takes on each of so many devices.

    Args:
        step: of the largest batch: with whole fp32 weights for DDP, in the precision of the step for the others.
        is_half: whether steps are computed in bf16 or fp16.
        accumulates: whether gradients of earlier batches are there during a pass.
    """
    p, state = num_devices, state_bytes(optim)
    low = 2 if is_half else 4
    if engine == "ddp":
        gradients = 4 * size.trained
        beside = step.peak if accumulates else max(0, step.peak_with_gradients - gradients)
        copies = gradients if p > 1 else 0
        return EngineMemory(engine, 4 * size.all, gradients, state * size.trained, copies, beside)
    if engine == "fsdp2":
        gathered = low * (size.outside + size.trained_outside + 2 * size.layer) if p > 1 else 0
        weights, gradients, optimizer = 4 * size.all, 4 * size.trained, state * size.trained
        return EngineMemory(engine, weights // p, gradients // p, optimizer // p, gathered, step.peak)
    master = 4 * size.trained if is_half else 0
    gradients = (low + (4 if is_half else 0)) * size.trained // p  # as they come, and in fp32 for the update
    optimizer = (master + state * size.trained) // p
    if engine == "zero2":
        gathered = 2 * low * min(_BUCKET, size.trained)
        return EngineMemory(engine, low * size.all, gradients, optimizer, gathered, step.peak)
    assert engine == "zero3", engine
    gathered = low * min(_LIVE, size.all)
    return EngineMemory(engine, low * size.all // p, gradients, optimizer, gathered, step.peak)


def bytes_sent(engine: str, size: ModelSize, *, num_devices: int, is_half: bool, num_passes: int) -> float:
    """Bytes that each device sends for one update of `num_passes` forward and backward passes, by rings."""
    share = (num_devices - 1) / num_devices
    low = 2 if is_half else 4
    if engine == "ddp":
        return share * 2 * 4 * size.trained
    if engine == "zero2":
        return share * low * size.trained * (num_passes + 1)
    return share * low * num_passes * (2 * size.all + size.trained)
