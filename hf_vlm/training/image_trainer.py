"""`Trainer` for pictures: top-1 and top-5 accuracy of classifiers, the loss of masked image modelling."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, PreTrainedModel

from hf_vlm.data.labelled_images import ProcessedBatch
from hf_vlm.training.adapter_training import AdapterTrainer
from hf_vlm.training.code_targets import CodeTargets
from hf_vlm.training.gradient_checks import GradientCheck
from hf_vlm.training.metrics import top_k_accuracy
from hf_vlm.training.parameter_groups import parameter_groups

TOP = 5  # ImageNet's second measure


class ImageTrainer(AdapterTrainer):
    """`Trainer` whose evaluation pictures are prepared by the image processor, as they are in use.

    Args:
        eval_collator: collates evaluation pictures; `data_collator` those of training.
        layer_decay: as in `parameter_groups`.
        is_classifier: whether accuracy is measured; otherwise the loss, with the same masks every time.
        code_targets: gives the codes that are to be predicted, where there are some.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        eval_collator: ProcessedBatch,
        layer_decay: float,
        is_classifier: bool,
        code_targets: CodeTargets | None = None,
        **kwargs: Any,
    ) -> None:
        if is_classifier:
            kwargs |= {"compute_metrics": _accuracies, "preprocess_logits_for_metrics": _best_classes}
        super().__init__(*args, **kwargs)
        self.eval_collator, self.layer_decay, self.code_targets = eval_collator, layer_decay, code_targets
        self.can_return_loss = not is_classifier  # without labels there is a loss all the same
        # The loss is a mean over the batch, whatever a model could do with the number of pictures in all batches of a step.
        self.model_accepts_loss_kwargs = False
        if self.lora is not None:
            self.add_callback(GradientCheck(self._check_after_first_step))

    def _check_after_first_step(self, model: nn.Module) -> bool:
        """`check_gradients` at the second update: a new head is zero at the first, and lets no gradient through."""
        if self.state.global_step == 0:
            return False
        self.check_gradients(model)
        return True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`, with the groups of `parameter_groups`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.layer_decay,
            )
            self.optimizer_cls_and_kwargs = (optimizer_class, {**settings, "params": groups})
        return super().create_optimizer(model)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss; that of class probabilities is computed here for models that don't know them."""
        labels = inputs.get("labels")
        if labels is None or not labels.is_floating_point() or hasattr(self.model.config, "label_smoothing"):
            return super().compute_loss(model, inputs, *args, **kwargs)
        outputs = model(pixel_values=inputs["pixel_values"])
        return F.cross_entropy(outputs["logits"].float(), labels)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.code_targets is not None:
            inputs["code_ids"] = self.code_targets(inputs["pixel_values"])
        return inputs

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As `Trainer.get_eval_dataloader`, with the collator of evaluation pictures."""
        of_training, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = of_training

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.evaluation_loop`; masks are drawn alike every time, and training draws on as without it."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Trainer's own passes over tensors whose names in the file differ from those in memory, such as all layers of
        # transformers' ViT: only `from_pretrained` translates them.
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(self.model, PreTrainedModel):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _best_classes(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """What is kept of the logits of a batch in an evaluation, see `best_classes`."""
    return best_classes(logits[0] if isinstance(logits, tuple) else logits)


def best_classes(logits: torch.Tensor) -> torch.Tensor:
    """Int64 (batch, at most 5): the likeliest classes, best first; fewer than there are."""
    return logits.topk(min(TOP, logits.shape[-1] - 1)).indices


def _accuracies(prediction: EvalPrediction) -> dict[str, float]:
    return accuracies(np.asarray(prediction.label_ids), np.asarray(prediction.predictions))


def accuracies(labels: np.ndarray, ranked: np.ndarray) -> dict[str, float]:
    """`accuracy` and, where there are more than 5 classes, `top5_accuracy`; see `top_k_accuracy`."""
    scores = {"accuracy": top_k_accuracy(labels, ranked, 1)}
    if ranked.shape[1] >= TOP:
        scores["top5_accuracy"] = top_k_accuracy(labels, ranked, TOP)
    return scores
