"""Bytes that training takes on a device: what is kept all the time, what a step keeps for its backward pass, what would lower it.

    kept all the time   weights, their gradients, the optimizer's state: known from the model alone
    kept for a step     activations: what the forward pass saves for the backward pass

`training_memory` counts them for a model that is there, `memory_advice` tells a run that ran out of memory what to change.
For a model that is not there, and engines that split it over processes, see `estimate.py`.

Source of what gradient checkpointing keeps: Korthikanti et al. 2022, sections 4 and 5, https://arxiv.org/abs/2205.05198
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

MEBIBYTE, GIBIBYTE = 2**20, 2**30

# Bytes of state a trained number, by how the Trainer's `optim` begins; the first that fits counts. Else as Adam's in fp32.
_STATE_BYTES = {
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adamw_torch_8bit": 2,
    "adamw_torch_4bit": 1,
    "adafactor": 0,
    "sgd": 0,
    "rmsprop": 4,
    "lion": 4,
}
_ADAM_STATE_BYTES = 8

# Of a transformer layer whose input is `h` numbers a token in half precision, 34 h bytes are kept, and 2 h where the layer is
# computed again: section 5 of the source, attention's own square left out, which a fused kernel never keeps.
_KEPT_WHEN_RECOMPUTED = 2 / 34


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device.

    Attributes:
        weights: of the model, frozen ones too.
        gradients: of the weights that train.
        optimizer: its state.
        activations: what a forward pass keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def rows(self) -> list[str]:
        """Lines of a table in MiB, the sum last."""
        amounts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer's state": self.optimizer,
            "activations of this batch": self.activations,
            "all": self.total,
        }
        return [f"  {name:<26}{amount / MEBIBYTE:>10.1f} MiB" for name, amount in amounts.items()]


def training_memory(model: nn.Module, *, activation_bytes: int, optim: Any = "adamw_torch") -> TrainingMemory:
    """What training this model takes on its device, counted without touching it.

    Args:
        model: whole, or this process's share of one that FSDP2 or ZeRO-3 split.
        activation_bytes: that a step keeps for its backward pass, see `kept_bytes`.
        optim: the Trainer's setting of that name.
    """
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return TrainingMemory(
        weights=sum(map(_bytes_here, parameters)),
        gradients=sum(map(_bytes_here, trained)),
        optimizer=state_bytes(optim) * sum(_bytes_here(parameter) // parameter.element_size() for parameter in trained),
        activations=activation_bytes,
    )


def state_bytes(optim: Any) -> int:
    """Bytes that an optimizer, a member of transformers' `OptimizerNames` or its value, keeps for each number that it trains."""
    called = str(getattr(optim, "value", optim))
    return next((amount for name, amount in _STATE_BYTES.items() if called.startswith(name)), _ADAM_STATE_BYTES)


def _bytes_here(parameter: torch.Tensor) -> int:
    """Bytes of a tensor, or of this process's share of it."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().nbytes
    shard = getattr(parameter, "ds_tensor", None)  # ZeRO-3 leaves an empty tensor in the parameter's place
    return parameter.nbytes if shard is None else shard.nbytes


@contextlib.contextmanager
def kept_bytes(weights: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Around forward passes: the bytes that they keep for the backward pass, by storage, `weights` left out."""
    kept: dict[int, int] = {}
    known = {_storage_of(weight) for weight in weights}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = _storage_of(tensor)
        if storage not in known:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def one_pass(trainer: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """The loss of a batch and the bytes that its forward pass keeps for the backward pass, which is run too: gradients are there.

    Args:
        trainer: a transformers `Trainer`.
        batch: of its training data loader.
    """
    trainer.model.train()
    batch = trainer._prepare_inputs(batch)
    with kept_bytes(trainer.model.parameters()) as kept, trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), sum(kept.values())


def _storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def memory_advice(trainer: Any, error: BaseException) -> str:
    """What to tell a run that ran out of memory: what it keeps, and which of the recipe's settings lower that by how much.

    Arithmetic on shapes and settings alone: it makes no tensor and never raises.

    Args:
        trainer: a transformers `Trainer` whose step failed.
        error: what the step raised.
    """
    try:
        return _advice(trainer, error)
    except Exception:  # where memory is out, whatever fails here must not hide why
        logger.debug("No estimate of the memory.", exc_info=True)
        return (
            f"Room for a step is wanted, got none ({_first_line(error)}). Lower `training.per_device_train_batch_size`, or set "
            "`training.gradient_checkpointing: true`."
        )


def _advice(trainer: Any, error: BaseException) -> str:
    args, model = trainer.args, trainer.model
    kept = training_memory(model, activation_bytes=0, optim=args.optim)
    capacity, peak = _device_memory(args.device)
    activations = None if peak is None else max(0, peak - kept.total)
    lines = [
        f"Room for a step is wanted on `{args.device}`"
        + (f", which has {_shown(capacity)}," if capacity else "")
        + f" got none ({_first_line(error)}).",
        f"Kept all the time: weights {_shown(kept.weights)}, gradients {_shown(kept.gradients)}, the optimizer's state "
        f"{_shown(kept.optimizer)}; in all {_shown(kept.total)}.",
    ]
    if activations is not None:
        lines.append(f"Kept by the step when it failed: about {_shown(activations)}, and it wanted more.")
    if capacity and kept.total > capacity:
        lines.append("That is more than the device has, whatever the batch: only the settings marked * can help.")
    lines.append("Each of these lowers it:")
    lines += [f"  {setting}: {effect}" for setting, effect in _remedies(trainer, kept, activations)]
    return "\n".join(lines)


def _remedies(trainer: Any, kept: TrainingMemory, activations: int | None) -> list[tuple[str, str]]:
    """(settings, their effect), those first that leave what is learnt as it is."""
    args = trainer.args
    found: list[tuple[str, str]] = []

    def saves(share: float) -> str:
        return f"{share:.0%} of what the step keeps" + (
            "" if activations is None else f", {_shown(share * activations)}"
        )

    batch = args.per_device_train_batch_size
    if batch > 1:
        fewer = batch // 2
        setting = f"training.per_device_train_batch_size={fewer}"
        if batch % 2 == 0:
            setting += f" training.gradient_accumulation_steps={2 * args.gradient_accumulation_steps}"
        items = "the same items an update" if batch % 2 == 0 else "fewer items an update"
        found.append((setting, f"saves {saves(1 - fewer / batch)}; {items}"))
    if not args.gradient_checkpointing and getattr(trainer.model, "supports_gradient_checkpointing", False):
        share = 1 - _KEPT_WHEN_RECOMPUTED - 1 / max(_num_layers(trainer.model), 1)
        if share > 0:
            found.append(
                (f"training.{_checkpointing(args)}=true", f"saves about {saves(share)}; a third more arithmetic")
            )
    if not (args.bf16 or args.fp16) and _dtype_of(trainer.model) == torch.float32:
        found.append(("training.bf16=true", f"saves about {saves(0.5)}"))
    found += _of_lengths(trainer)
    if args.world_size == 1 or not (getattr(trainer, "is_fsdp_enabled", False) or trainer.is_deepspeed_enabled):
        processes = max(args.world_size, 8)
        found.append(
            (
                f"* FSDP2 on {processes} devices (scripts/distributed/fsdp2.yaml)",
                f"saves {_shown(kept.total * (1 - 1 / processes))} of what is kept all the time",
            )
        )
    if getattr(trainer, "lora", None) is None and kept.gradients + kept.optimizer > 0:
        found.append(
            (
                "* adapters (`lora`, of LLaVA `parts.lora`)",
                f"save nearly all of the {_shown(kept.gradients + kept.optimizer)} of gradients and optimizer; another training",
            )
        )
    return found


def _checkpointing(args: Any) -> str:
    """What the installed transformers calls the setting: it is being renamed."""
    return "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"


def _of_lengths(trainer: Any) -> list[tuple[str, str]]:
    """Of conversations: shorter rows; pictures seen before the run."""
    schedule = trainer.train_dataset
    longest = getattr(schedule, "max_tokens", None)
    if getattr(schedule, "num_images", None) is None:  # no conversations
        return []
    if longest:
        return [
            ("data.max_tokens lower", f"rows have up to {longest} tokens now, and what a step keeps goes with them")
        ]
    return [
        ("data.max_length lower", "what a step keeps goes with the longest conversation of the batch"),
        ("data.grouping=length", "conversations of like length share a batch: less padding"),
    ]


def _num_layers(model: Any) -> int:
    """Layers of the part that trains with the most of them; the estimate of what is kept of one is a share of all."""
    numbers = [0]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and any(weight.requires_grad for weight in module.parameters()):
            numbers.append(len(module))
    return max(numbers)


def _dtype_of(model: Any) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that a device has, and the most that was in use on it; None where it doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    return None, None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _shown(amount: float) -> str:
    return f"{amount / GIBIBYTE:.1f} GiB" if amount >= GIBIBYTE / 10 else f"{amount / MEBIBYTE:.1f} MiB"
