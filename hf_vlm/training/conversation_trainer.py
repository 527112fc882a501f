"""`Trainer` for conversations: rates by part, a watch for numbers that are none, the projector beside every checkpoint."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.training.adapter_training import AdapterTrainer
from hf_vlm.training.gradient_checks import GradientCheck
from hf_vlm.training.parameter_groups import part_groups
from hf_vlm.training.projector_files import save_projector

logger = logging.getLogger(__name__)

PARTS = LlavaVisionLanguageForConditionalGeneration.part_paths
PICTURE_INPUTS = ("pixel_values", "image_features")


class ConversationTrainer(AdapterTrainer):
    """`Trainer` of a LLaVA, whole or with adapters.

    Args:
        learning_rates: by part, where it is not `args.learning_rate`.
        args, kwargs: as for `AdapterTrainer`.

    Raises:
        FloatingPointError: from `train`, at a loss that is no number, naming step, rows and the first module that made one.
    """

    def __init__(self, *args: Any, learning_rates: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        self.learning_rates = dict(learning_rates or {})
        super().__init__(*args, **kwargs)
        if self.model.loss_chunk_size:
            self.model.prepare_chunked_loss()  # which weights that are split over processes would disturb
        self.model_accepts_loss_kwargs = True  # the loss is a sum over `num_items_in_batch`
        self._saw_pictures = False
        self._eval_total, self._eval_number = 0.0, 0
        self.add_callback(GradientCheck(self._check_after_pictures))
        self.add_callback(_PartRates(self))

    def _check_after_pictures(self, model: nn.Module) -> bool:
        """`check_gradients` at the first step with pictures: without, the projector's gradient is rightly zero."""
        saw = torch.tensor([self._saw_pictures], device=self.args.device)
        if not bool(self.accelerator.gather(saw).any()):
            return False
        self.check_gradients(model)
        return True

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
            FloatingPointError: on every process, if the loss of one is NaN or infinite: no weight has been changed by it.
        """
        sources = inputs.pop("sources", [])
        has_pictures = any(name in inputs for name in PICTURE_INPUTS)
        self._saw_pictures = self._saw_pictures or (has_pictures and bool((inputs["labels"] >= 0).any()))
        loss = super().training_step(model, inputs, *args, **kwargs)
        is_number = torch.isfinite(loss.detach())
        if not bool(self.accelerator.gather(is_number[None]).all()):
            raise FloatingPointError(self._say_where(model, inputs, loss, sources))
        return loss

    def _say_where(self, model: nn.Module, inputs: dict[str, Any], loss: torch.Tensor, sources: list[str]) -> str:
        step = self.state.global_step + 1
        if torch.isfinite(loss):
            return f"A loss that is a number is wanted, got another process's at step {step}. See its message."
        place = ""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # split weights come together on all processes only
            place = (
                f", first in {_first_non_finite(self.accelerator.unwrap_model(model), self._prepare_inputs(inputs))}"
            )
        return (
            f"A loss that is a number is wanted, got {loss.item()} at step {step}{place}, on "
            f"{', '.join(sources) or 'a batch without sources'}. Look at these rows; else lower the learning rate, or train in "
            "float32 or bfloat16. The last checkpoint is whole."
        )

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.prediction_step`; notes the loss of the tokens that carry it, for their mean over the set."""
        inputs.pop("sources", None)
        predicted = super().prediction_step(model, inputs, *args, **kwargs)
        number = int((inputs["labels"][:, 1:] >= 0).sum())
        self._eval_total += float(predicted[0]) * number
        self._eval_number += number
        return predicted

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As `Trainer.evaluation_loop`, whose mean over batches gives way to the mean over tokens with loss."""
        self._eval_total, self._eval_number = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = torch.tensor([[self._eval_total, self._eval_number]], dtype=torch.float32, device=self.args.device)
        total, number = self.accelerator.gather(sums).double().sum(dim=0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(number, 1)
        return output

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Given where the model's own are split over processes; saving empties it.
        whole = None if state_dict is None else dict(state_dict)
        super()._save(output_dir, state_dict=state_dict)
        if not self.args.should_save:  # every process of a parallel run comes by
            return
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):  # which brings the projector
            return
        if any(parameter.requires_grad for parameter in model.projector.parameters()):
            if whole != {}:  # as DeepSpeed gives where it keeps the shards apart
                save_projector(model, output_dir or self.args.output_dir or ".", whole)


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
