"""`Trainer` for conversations: rates by part, a watch for numbers that are none, the projector beside every checkpoint."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_vlm.training.line_trainer import GradientCheck, check_gradients
from hf_vlm.training.lora import LoraSection, check_adapter_gradients, save_adapter
from hf_vlm.training.parameter_groups import part_groups
from hf_vlm.training.projector_files import save_projector

logger = logging.getLogger(__name__)

PARTS = {"projector": "projector", "language": "language_model", "vision": "vision_model"}


class ConversationTrainer(Trainer):
    """`Trainer` of a LLaVA, whole or with adapters.

    Args:
        learning_rates: by part, where it is not `args.learning_rate`.
        lora: what the model's adapters were made of; None for a whole model.

    Raises:
        FloatingPointError: from `train`, at a loss that is no number, naming step, rows and the first module that made one.
    """

    def __init__(
        self,
        *args: Any,
        learning_rates: Mapping[str, float] | None = None,
        lora: LoraSection | None = None,
        **kwargs: Any,
    ) -> None:
        self.learning_rates, self.lora = dict(learning_rates or {}), lora
        super().__init__(*args, **kwargs)
        if self.model.loss_chunk_size:
            self.model.prepare_chunked_loss()  # which weights that are split over processes would disturb
        self.model_accepts_loss_kwargs = True  # the loss is a sum over `num_items_in_batch`
        self.add_callback(GradientCheck(self.check_gradients))
        self.add_callback(_PartRates(self))

    def check_gradients(self, model: nn.Module) -> None:
        """Checks after a backward pass that every part that trains got a gradient.

        Raises:
            ValueError: if one got none.
        """
        if self.lora is not None:
            check_adapter_gradients(model, self.lora)
        else:
            check_gradients(model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, with the groups of `part_groups`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = part_groups(
                model,
                PARTS,
                self.learning_rates,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
            )
            self.optimizer_cls_and_kwargs = (optimizer_class, {**settings, "params": groups})
        return super().create_optimizer(model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Trainer.training_step`.

        Raises:
            FloatingPointError: if the loss is NaN or infinite: no weight has been changed by it.
        """
        sources = inputs.pop("sources", [])
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            inputs = self._prepare_inputs(inputs)
            raise FloatingPointError(
                f"A loss that is a number is wanted, got {loss.item()} at step {self.state.global_step + 1}, first in "
                f"{_first_non_finite(model, inputs)}, on {', '.join(sources) or 'a batch without sources'}. Look at these "
                "rows; else lower the learning rate, or train in float32 or bfloat16. The last checkpoint is whole."
            )
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.prediction_step`."""
        inputs.pop("sources", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Given where the model's own are split over processes; saving empties it.
        whole = None if state_dict is None else dict(state_dict)
        super()._save(output_dir, state_dict=state_dict)
        if not self.args.should_save:  # every process of a parallel run comes by
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            if folder == Path(self.args.output_dir or "."):  # the run's result, not a checkpoint
                save_adapter(model, folder, state_dict=whole)
        elif any(parameter.requires_grad for parameter in model.projector.parameters()):
            if whole != {}:  # as DeepSpeed gives where it keeps the shards apart
                save_projector(model, folder, whole)


class _PartRates(TrainerCallback):
    """Logs the learning rate of every part, where they differ."""

    def __init__(self, trainer: ConversationTrainer) -> None:
        self._names = sorted(trainer.learning_rates)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Adds `learning_rates`, from the highest, to what is logged."""
        if self._names and logs is not None and "learning_rate" in logs and optimizer is not None:
            rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
            logs.update({f"learning_rate_{index}": rate for index, rate in enumerate(rates)})


def _first_non_finite(model: nn.Module, inputs: dict[str, Any]) -> str:
    """The first parameter, input or module output with a number that is none, found by a second forward pass."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight `{name}`"
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return f"the input `{name}`"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if not found and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                if not torch.isfinite(tensor).all():
                    found.append(f"the output of `{name}`")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"
