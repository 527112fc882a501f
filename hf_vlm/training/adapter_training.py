"""A recipe's `lora`: its model with adapters, and a `Trainer` that saves them as `save_adapter` does.

The run is otherwise what it is without: the same data, checkpoints and exact resumption. Its folder holds the adapter in the
place of the model. Where the model that the adapter stands on is no folder by itself, as a classifier with a new head for
other classes, that model is kept in `base` in the output folder.
"""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_vlm.parts.base_weights import role_paths
from hf_vlm.training.gradient_checks import check_gradients
from hf_vlm.training.lora import add_lora, check_adapter_gradients, differing_setting, save_adapter
from hf_vlm.training.lora_layers import LoraSection

BASE_FOLDER = "base"


class AdapterTrainer(Trainer):
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
            save_adapter(model, Path(output_dir or self.args.output_dir or "."), state_dict=whole)


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
        processor: saved beside a base that is kept in the output folder.

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
    base = pretrained
    if differing_setting(model, pretrained) is not None:
        base = str(Path(arguments.output_dir or ".") / BASE_FOLDER)
        with arguments.main_process_first(desc="the adapter's base"):
            if arguments.should_save:
                model.save_pretrained(base)
                processor.save_pretrained(base)
    return add_lora(model, lora, base)
