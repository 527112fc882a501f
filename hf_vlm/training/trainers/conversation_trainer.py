"""`Trainer` for conversations: rates by part, the projector beside every checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.training.projector_files import save_projector
from hf_vlm.training.trainers.gradient_checks import GradientCheck
from hf_vlm.training.trainers.parameter_groups import part_groups
from hf_vlm.training.trainers.validation_loss import TokenLossTrainer, num_real_items

PARTS = LlavaVisionLanguageForConditionalGeneration.part_paths
PICTURE_INPUTS = ("pixel_values", "image_features")


class ConversationTrainer(TokenLossTrainer):
    """`Trainer` of a LLaVA, whole or with adapters.

    Args:
        learning_rates: by part, where it is not `args.learning_rate`.
        args, kwargs: as for `TokenLossTrainer`.
    """

    def __init__(self, *args: Any, learning_rates: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        self.learning_rates = dict(learning_rates or {})
        super().__init__(*args, **kwargs)
        if self.model.loss_chunk_size:
            self.model.prepare_chunked_loss()  # which weights that are split over processes would disturb
        self.model_accepts_loss_kwargs = True  # the loss is a sum over `num_items_in_batch`
        self._saw_pictures = False
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
        """As `Trainer.training_step`; notes whether pictures that are learnt from have come by."""
        has_pictures = any(name in inputs for name in PICTURE_INPUTS)
        self._saw_pictures = self._saw_pictures or (has_pictures and bool((inputs["labels"] >= 0).any()))
        return super().training_step(model, inputs, *args, **kwargs)

    def real_labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        """As `TokenLossTrainer.real_labels`; in a packed row, the items' conversations lie one behind the other."""
        if "position_ids" not in inputs:
            return super().real_labels(inputs)
        at_once = self.args.eval_batch_size
        number, schedule = num_real_items(self, at_once), self.evaluated
        labels: torch.Tensor = inputs["labels"].clone()
        if number < at_once:
            remainder = self.accelerator.gradient_state.remainder
            first = len(schedule) - remainder + self.args.process_index * at_once
            conversations = sum(len(schedule.rows_of(item)) for item in range(first, first + number))
            starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
            labels[:, [*starts, labels.shape[1]][conversations] :] = -100
        return labels

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
    """Logs every learning rate, where parts have their own."""

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
        """Adds `learning_rate_0`, `learning_rate_1` and so on, from the highest, to what is logged."""
        if self._names and logs is not None and "learning_rate" in logs and optimizer is not None:
            rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
            logs.update({f"learning_rate_{index}": rate for index, rate in enumerate(rates)})
