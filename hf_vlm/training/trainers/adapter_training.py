"""A recipe's `lora`: its model with adapters, and a `Trainer` that saves them as `save_adapter` does.

The run is otherwise what it is without: the same data, checkpoints and exact resumption. Its folder holds the adapter in the
place of the model. Where the model that the adapter stands on is no folder by itself, as a classifier with a new head for
other classes, that model is kept in `base` in the output folder, written when the run starts and never changed after.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from hf_vlm.parts.base_weights import base_of, role_paths
from hf_vlm.parts.checkpoint_files import read_weights
from hf_vlm.parts.model_origin import note_origin
from hf_vlm.training.lora import add_lora, check_adapter_gradients, differing_setting, save_adapter
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.supervision.optimizer_files import PortableCheckpoints
from hf_vlm.training.supervision.supervised_trainer import SupervisedTrainer
from hf_vlm.training.trainers.gradient_checks import check_gradients

BASE_FOLDER = "base"


class AdapterTrainer(SupervisedTrainer, PortableCheckpoints):
    """`Trainer` of a model that may have adapters. Stands before other trainers in the list of bases.

    Attributes:
        lora: what the model's adapters were made of; None for a whole model.
    """

    lora: LoraSection | None = None

    def __init__(self, *args: Any, lora: LoraSection | None = None, **kwargs: Any) -> None:
        self.lora = lora
        super().__init__(*args, **kwargs)
        if lora is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # by the launcher's file too
            raise ValueError(
                "Adapters are saved from whole weights, got FSDP or DeepSpeed, which split them. Train adapters by DDP "
                "(`torchrun`), or without `lora`."
            )
        if self.is_deepspeed_enabled:  # so that generation waits for all processes; models are built without it
            set_hf_deepspeed_config(self.accelerator.state.deepspeed_plugin.hf_ds_config)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`, with the adapter's base in its place: see `save_base`."""
        self.save_base()
        return super().train(*args, **kwargs)

    def save_base(self) -> None:
        """Write the base that adapters of this run stand on, where it is no folder by itself; one that is there stays.

        Raises:
            ValueError: if there is another one: what stands on it would be lost.
        """
        unsaved: UnsavedBase | None = getattr(self.model, "unsaved_base", None)
        if unsaved is None:
            return
        # Where all nodes share a folder, the first process of all writes; else the first of every node does.
        with self.args.main_process_first(local=self.args.save_on_each_node, desc="the adapter's base"):
            unsaved.check(base_of(self.model))
            if self.args.should_save:
                unsaved.write(base_of(self.model))
        model = base_of(self.model)
        note_origin(model, unsaved.folder)
        self.model.peft_config["default"].base_model_name_or_path = model.name_or_path
        self.model.unsaved_base = None

    def check_gradients(self, model: nn.Module) -> None:
        """Checks after a backward pass that every part that trains got a gradient.

        Raises:
            ValueError: if one got none.
        """
        if self.lora is not None:
            check_adapter_gradients(model, self.lora)
        else:
            check_gradients(model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        whole = None if state_dict is None else dict(state_dict)  # saving empties it
        super()._save(output_dir, state_dict=state_dict)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.should_save and isinstance(model, PeftModel):
            folder = Path(output_dir or self.args.output_dir or ".")
            is_last = folder == Path(self.args.output_dir or ".")  # hashing a large base takes longer than a checkpoint
            save_adapter(model, folder, state_dict=whole, rehash=is_last)


@dataclass
class UnsavedBase:
    """A base that is to be written when a run starts: a dry run, and a run that is refused, leave the folder as it is.

    Attributes:
        folder: where.
        weights: of the model without adapters by name, any dtype; the tensors themselves, no copies.
        processor: saved beside the model.
    """

    folder: Path
    weights: dict[str, torch.Tensor]
    processor: Any

    def check(self, model: PreTrainedModel) -> None:
        """Checks that the folder, if it is there, holds this base.

        Raises:
            ValueError: if it holds another one.
        """
        if not self.folder.exists():
            return
        if not (self.folder / "config.json").is_file():
            fault = "a folder without a model"
        elif (setting := differing_setting(model, self.folder)) is not None:
            fault = f"one with another `{setting}`"
        else:
            stored = read_weights(self.folder)
            other = [
                name
                for name, value in stored.items()
                if name not in self.weights or not torch.equal(value, self.weights[name].cpu())
            ]
            if not other:
                return
            fault = f"one with another `{other[0]}`"
        raise ValueError(
            f"The base of this run's adapters is wanted in {self.folder}, got {fault}, on which adapters there may stand. Set "
            "another `training.output_dir`, or remove that folder with the adapters."
        )

    def write(self, model: PreTrainedModel) -> None:
        """Puts the folder in its place whole, where it isn't yet.

        Args:
            model: with adapters in it or without.
        """
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".base-") as partial:
            written = Path(partial) / self.folder.name
            model.save_pretrained(written, state_dict=dict(self.weights))
            self.processor.save_pretrained(written)
            os.replace(written, self.folder)


def with_adapters(
    model: PreTrainedModel,
    lora: LoraSection | None,
    pretrained: str | None,
    arguments: TrainingArguments,
    processor: Any,
) -> Any:
    """The model that a run trains: as it is, or with a recipe's adapters.

    Args:
        pretrained: folder or Hub name that it was loaded from.
        processor: saved beside a base that is kept in the output folder, when the run starts.

    Raises:
        ValueError: if the model is not one of ours, wasn't loaded, or is to be quantised, which LLaVA's recipes alone do.
    """
    if lora is None:
        return model
    role_paths(model)  # refuses models of others
    if lora.quantization != "none":
        raise ValueError(
            f"`lora.quantization` is for recipes of LLaVA, whose language models are large, got {lora.quantization!r}. Set it "
            "to `none`."
        )
    if pretrained is None:
        raise ValueError(
            "`lora` wants a base that the adapter finds again, `model.pretrained`, got a model made from parts or settings. Save "
            "that, or train without `lora`."
        )
    if differing_setting(model, pretrained) is None:
        return add_lora(model, lora, pretrained)
    folder = Path(arguments.output_dir or ".") / BASE_FOLDER
    unsaved = UnsavedBase(folder, dict(model.state_dict()), processor)
    adapted: Any = add_lora(model, lora, folder, base_is_saved=False)
    adapted.unsaved_base = unsaved
    return adapted
