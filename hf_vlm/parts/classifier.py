"""What image classifiers of every architecture can do with their head."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig

from ..blocks.classification import ClassificationHead, classification_loss, validate_head_settings


class ResettableHead:
    """A model with a `ClassificationHead` under each of its `heads`. Stands before `HubModel` in the list of bases."""

    config: PreTrainedConfig
    heads: tuple[str, ...]
    training: bool

    def head_loss(self, logits: torch.Tensor, labels: torch.Tensor, is_smoothed: bool = True) -> torch.Tensor:
        """The loss of a head by the config's `problem_type` and, in training, `label_smoothing`.

        Args:
            logits: float (batch, num_labels).
            labels: as in `blocks.classification.classification_loss`.
            is_smoothed: False for labels that are a teacher's.

        Returns: a fp32 scalar, the mean over the pictures.
        """
        smoothing = self.config.label_smoothing if self.training and is_smoothed else 0.0
        return classification_loss(logits, labels, problem_type=self.config.problem_type, label_smoothing=smoothing)

    def reset_head(
        self,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        num_linear_layers: int = 1,
    ) -> None:
        """Replace the head by a new one for other classes, as before fine-tuning; its output layer is zero.

        Args:
            num_labels: how many classes; by default as many as `id2label` names, or as before.
            id2label: the classes' names by number, from 0.
            num_linear_layers: of the new head; 1, a single linear layer, is the paper's for fine-tuning.

        Raises:
            ValueError: if `num_labels` and `id2label` contradict each other, or are empty.
        """
        if id2label is not None:
            if sorted(id2label) != list(range(len(id2label))) or num_labels not in (None, len(id2label)):
                raise ValueError(
                    f"`id2label` must name the classes 0 to {(num_labels or len(id2label)) - 1}, got "
                    f"{sorted(id2label)[:20]}. Number them from 0, and leave `num_labels` out."
                )
            num_labels = len(id2label)
        if num_labels is None:
            num_labels = self.config.num_labels
        if not isinstance(num_labels, int) or num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}. Name the classes in `id2label`.")
        validate_head_settings(num_linear_layers, 0)
        if id2label is not None and len(set(id2label.values())) < len(id2label):
            raise ValueError(f"`id2label` must name each class once, got {list(id2label.values())[:20]}. Rename one.")
        self.config.problem_type = None
        if id2label is not None:
            self.config.id2label = dict(id2label)
            self.config.label2id = {name: number for number, name in id2label.items()}
        elif num_labels != self.config.num_labels:
            self.config.num_labels = num_labels
        self.config.num_linear_layers = num_linear_layers
        for name in self.heads:
            head = getattr(self, name)
            if head is not None:  # a distillation head is not in every model
                fresh = ClassificationHead.fresh_like(head.output_layer.weight, num_labels, num_linear_layers)
                setattr(self, name, fresh.train(head.training))
