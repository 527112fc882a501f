"""`Trainer` for pictures: top-1 and top-5 accuracy of classifiers, the loss of masked image modelling."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from hf_vlm.data.labelled_images import ProcessedBatch
from hf_vlm.parts.model_saving import is_split
from hf_vlm.training.scores.evaluation_shares import own_batches
from hf_vlm.training.scores.metrics import top_k_accuracy
from hf_vlm.training.supervision.optimizer_files import engine_of
from hf_vlm.training.trainers.adapter_training import AdapterTrainer
from hf_vlm.training.trainers.code_targets import CodeTargets
from hf_vlm.training.trainers.gradient_checks import GradientCheck
from hf_vlm.training.trainers.parameter_groups import parameter_groups
from hf_vlm.training.trainers.running_statistics import SharedStatistics, running_statistics

TOP = 5  # ImageNet's second measure


class ImageTrainer(AdapterTrainer):
    """`Trainer` whose evaluation pictures are prepared by the image processor, as they are in use.

    What a model draws in training (drop path, masks, noise) is a function of the seed and of which items are in the batch:
    two processes draw for their batches what one draws for the same two, one after the other.

    Args:
        eval_collator: collates evaluation pictures; `data_collator` those of training.
        layer_decay: as in `parameter_groups`.
        is_classifier: whether accuracy is measured; otherwise the loss, with the same masks every time.
        code_targets: gives the codes that are to be predicted, where there are some.
    """

    data_collator: Any
    control: Any

    def __init__(
        self,
        *args: Any,
        eval_collator: ProcessedBatch,
        layer_decay: float,
        is_classifier: bool,
        code_targets: CodeTargets | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.is_classifier = is_classifier
        self.eval_collator, self.layer_decay, self.code_targets = eval_collator, layer_decay, code_targets
        self.can_return_loss = not is_classifier  # without labels there is a loss all the same
        # The loss is a mean over the batch, whatever a model could do with the number of pictures in all batches of a step.
        self.model_accepts_loss_kwargs = False
        if running_statistics(self.model):
            self.add_callback(SharedStatistics())
            if self.accelerator.ddp_handler is not None and self.args.ddp_broadcast_buffers is None:
                # else DDP puts the first process's in their place before each forward pass
                self.accelerator.ddp_handler.broadcast_buffers = False
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
        inputs = super()._prepare_inputs({name: value for name, value in inputs.items() if name != "sources"})
        index = inputs.pop("index", None)
        if index is not None:  # a batch to learn from
            torch.manual_seed(
                int(np.random.SeedSequence((self.args.seed, 3, index)).generate_state(1, np.uint64)[0] >> 1)
            )
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

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss, a mean over pictures, and the scores of `dataloader.dataset`, of which each process takes its batches.

        Masks are drawn alike every time, and training draws on as without an evaluation.
        """
        rows, loss, found = dataloader.dataset, np.zeros(2), []
        with self.evaluating() as model:
            for batch, number in own_batches(rows, self.eval_collator, self.args):
                of_batch, logits, labels = self.prediction_step(model, batch, not self.is_classifier, ignore_keys)
                if number and of_batch is not None:
                    loss += number * np.array([float(of_batch), 1.0])
                if number and logits is not None and labels is not None:
                    first = logits[0] if isinstance(logits, tuple) else logits
                    found.append((best_classes(first).cpu().numpy(), labels.cpu().numpy()))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        shares = gather_object([(loss, found)])
        total, number = sum(of_process for of_process, _ in shares)
        metrics = {"loss": float(total / number)} if number else {}
        rounds = itertools.zip_longest(*(batches for _, batches in shares))
        in_order = [batch for of_round in rounds for batch in of_round if batch is not None]
        ranked, labels = (
            (np.concatenate(arrays) for arrays in zip(*in_order, strict=True)) if in_order else (None, None)
        )
        if ranked is not None and labels is not None:
            metrics |= accuracies(labels, ranked)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=ranked, label_ids=labels, metrics=metrics, num_samples=len(rows))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        """Around an evaluation: the model on its device, in evaluation mode and the precision of training; draws are undone."""
        model = self.accelerator.unwrap_model(self.model)
        if next(model.parameters()).device.type != self.args.device.type and not is_split(model):
            model.to(self.args.device)
        was_training = model.training
        model.eval()
        try:
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), self.accelerator.autocast():
                yield model
        finally:
            model.train(was_training)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Trainer's own passes over tensors whose names in the file differ from those in memory, such as all layers of
        # transformers' ViT: only `from_pretrained` translates them.
        model = self.model if model is None else model
        is_plain = self.engine == "plain" and engine_of(Path(resume_from_checkpoint)) == "plain"
        if not is_plain or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if self.engine == "deepspeed" or not isinstance(self.accelerator.unwrap_model(self.model), PreTrainedModel):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def best_classes(logits: torch.Tensor) -> torch.Tensor:
    """Int64 (batch, at most 5): the likeliest classes, best first; fewer than there are."""
    return logits.topk(min(TOP, logits.shape[-1] - 1)).indices


def accuracies(labels: np.ndarray, ranked: np.ndarray) -> dict[str, float]:
    """`accuracy` and, where there are more than 5 classes, `top5_accuracy`; see `top_k_accuracy`."""
    scores = {"accuracy": top_k_accuracy(labels, ranked, 1)}
    if ranked.shape[1] >= TOP:
        scores["top5_accuracy"] = top_k_accuracy(labels, ranked, TOP)
    return scores
