"""Running statistics of batch norms, such as those of ResNets in timm, in a run of several processes.

Each process normalises by its own batches. What is noted for later use is the mean over all of them after each update, so that a
validation is that of the model which is saved, whichever process measures it. By itself DDP keeps the first process's, and FSDP
leaves each process its own.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_vlm.blocks.processes import is_distributed, sum_over_processes


class SharedStatistics(TrainerCallback):
    """Makes running statistics the mean over processes, after each update."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Shares the statistics, before what follows a step: validation and saving."""
        if model is not None and is_distributed():
            share_statistics(model)


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running means and variances of a model's norms, the buffers themselves."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Makes each running statistic the mean over processes; every process is to call it."""
    statistics = running_statistics(model)
    if not statistics:
        return
    own = torch.cat([buffer.flatten().float() for buffer in statistics])
    means = sum_over_processes(own) / torch.distributed.get_world_size()
    for buffer, mean in zip(statistics, means.split([buffer.numel() for buffer in statistics]), strict=True):
        buffer.copy_(mean.view_as(buffer))
