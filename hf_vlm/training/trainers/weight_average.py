"""A running mean of a model's weights over the steps of training: what is validated and saved in the end.

    average <- decay * average + (1 - decay) * weights        after each optimizer step

Source: Polyak and Juditsky 1992; DALL-E's tokenizer has a decay of 0.999 (Ramesh et al. 2021, A.2)
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

AVERAGE_FILE = "average.safetensors"  # in a checkpoint


class WeightAverage(TrainerCallback):
    """The running mean of the weights of a model, fp32, on their device: parameters, and buffers that are saved, such as
    codewords that are running means themselves. Where FSDP splits weights over processes, each keeps the mean of its shards.

    Args:
        model: whose weights.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._average: dict[str, torch.Tensor] | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes in the weights after a step; the first ones begin the mean."""
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now; the first ones begin the mean."""
        weights = self._weights()
        if self._average is None:
            self._average = {name: weight.float().clone() for name, weight in weights.items()}
            return
        average = [self._average[name] for name in weights]
        torch._foreach_lerp_(average, [weight.float() for weight in weights.values()], 1 - self.decay)

    def save(self, folder: str | Path, *, writes: bool = True) -> None:
        """Writes the mean into a checkpoint's folder; where weights are split, all processes are to call it.

        Args:
            folder: made where there is none.
            writes: whether this process is the one that writes.
        """
        if self._average is None:
            return
        weights = self.model.state_dict()
        whole = {name: _joined(mean, weights[name]) for name, mean in self._average.items()}
        if writes:
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(whole, Path(folder) / AVERAGE_FILE)

    def load(self, folder: str | Path) -> None:
        """Goes on with the mean of a checkpoint.

        Raises:
            FileNotFoundError: if the checkpoint has none.
        """
        file = Path(folder) / AVERAGE_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"A checkpoint with `{AVERAGE_FILE}` is wanted in {folder}, got none: it was made without "
                "`optimizer.weight_average`. Leave that setting out, or start anew with `--no-resume`."
            )
        tensors, weights, shapes = load_file(file), self._weights(), self.model.state_dict()
        self._average = {name: _share(tensors[name], shapes[name]).to(own.device) for name, own in weights.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Makes the mean the model's weights, if there is one."""
        if self._average is not None:
            for name, weight in self._weights().items():
                weight.copy_(self._average[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Around code that is to see the mean as the model's weights."""
        weights = {name: weight.clone() for name, weight in self._weights().items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights().items():
                    weight.copy_(weights[name])

    def _weights(self) -> dict[str, torch.Tensor]:
        """Every tensor that is saved and has fractions, or this process's shard of it, sharing the model's memory."""
        saved = {name: tensor for name, tensor in self.model.state_dict().items() if tensor.is_floating_point()}
        return {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in saved.items()}


def _joined(shard: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is split as a weight is."""
    if not isinstance(weight, DTensor):
        return shard
    split = DTensor.from_local(
        shard, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride(), run_check=False
    )
    return split.full_tensor()


def _share(whole: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor that is to be split as a weight is."""
    if not isinstance(weight, DTensor):
        return whole
    split = distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    return split.to_local()
