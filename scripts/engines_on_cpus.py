"""`hf-vlm` where accelerate uses FSDP2 and DeepSpeed on CPUs as on GPUs, to try them where there are none.

    torchrun --standalone --nproc-per-node 2 scripts/engines_on_cpus.py train RECIPE training.fsdp=true ...
    DS_ACCELERATOR=cpu torchrun --standalone --nproc-per-node 2 scripts/engines_on_cpus.py train RECIPE \
        training.deepspeed=scripts/distributed/deepspeed-zero3.json ...

By itself accelerate trains by DDP there. What differs from GPUs is this choice, the device and gloo in the place of NCCL; the
engines' own code is what runs. `scripts/try_engines.py` compares them with one process.

Where the variable ENGINE_NOTES names a file, the first process writes there what was divided: a JSON of the class of
`optimizer`, of how many `parameters` there are, and of how many of them are `divided`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, trainer

from hf_vlm.cli import main


def use_engines_on_cpus() -> None:
    """Makes accelerate's states say FSDP or DeepSpeed where a recipe or launcher asks for it."""
    whole_partial, whole = PartialState.__init__, AcceleratorState.__init__

    def init_partial(self: PartialState, cpu: bool = False, **settings: Any) -> None:
        by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not self.initialized
        if by_deepspeed:
            from deepspeed import comm

            if not comm.is_initialized():
                comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        whole_partial(self, cpu=cpu or by_deepspeed, **settings)
        if by_deepspeed:
            self.distributed_type = DistributedType.DEEPSPEED

    def init(
        self: AcceleratorState, *arguments: Any, deepspeed_plugin: Any = None, fsdp_plugin: Any = None, **settings: Any
    ) -> None:
        whole(self, *arguments, deepspeed_plugin=deepspeed_plugin, fsdp_plugin=fsdp_plugin, **settings)
        fsdp_plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")  # of the earlier state that this one copies
        if deepspeed_plugin is not None and self.__dict__.get("deepspeed_plugins") is None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
            plugins = deepspeed_plugin if isinstance(deepspeed_plugin, dict) else {"default": deepspeed_plugin}
            for plugin in plugins.values():
                plugin.set_mixed_precision(self._mixed_precision)
            next(iter(plugins.values())).select(_from_accelerator_state=True)
            self.deepspeed_plugins, self._mixed_precision = deepspeed_plugin, "no"  # DeepSpeed's file says its own
        elif fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    PartialState.__init__, AcceleratorState.__init__ = init_partial, init


def divided_weights(model: nn.Module) -> set[str]:
    """Names of a model's parameters that are in parts: of FSDP2 (`DTensor`) or ZeRO-3 (`ds_tensor`)."""
    return {
        name for name, weight in model.named_parameters() if isinstance(weight, DTensor) or hasattr(weight, "ds_tensor")
    }


class Notes(TrainerCallback):
    """Writes how a model is divided when its training begins."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **parts: Any
    ) -> None:
        """Notes the optimizer's class, and how many parameters are in parts."""
        if args.process_index > 0:
            return
        name = type(getattr(optimizer, "optimizer", optimizer)).__name__
        numbers = {"parameters": len(list(model.parameters())), "divided": len(divided_weights(model))}
        notes = {"optimizer": name, **numbers}
        Path(os.environ["ENGINE_NOTES"]).write_text(json.dumps(notes), encoding="utf-8")


if __name__ == "__main__":
    if any(argument.startswith("training.deepspeed=") for argument in sys.argv):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # as the Trainer does where it has GPUs
    use_engines_on_cpus()
    if "ENGINE_NOTES" in os.environ:
        trainer.DEFAULT_CALLBACKS.append(Notes)
    sys.exit(main())
