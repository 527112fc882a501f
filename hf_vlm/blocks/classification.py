"""What turns a picture's vector into classes: the head, and its loss.

Source: Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929: an MLP with one hidden layer (two linear
layers, three layers of units) at pre-training, a single linear layer, zero at first, at fine-tuning.
"""

import torch
from torch import nn
from torch.nn import functional as F

_IGNORED = -100  # a label that carries no loss, torch's default


class ClassificationHead(nn.Module):
    """Linear layers with tanh between them.

    Args:
        hidden_size: width of the picture's vector, and of the head's hidden layers.
        num_labels: how many numbers come out.
        num_linear_layers: at least 1; 2 is the MLP of ViT's pre-training.
    """

    def __init__(self, hidden_size: int, num_labels: int, num_linear_layers: int = 1) -> None:
        super().__init__()
        self.hidden_layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_linear_layers - 1))
        self.output_layer = nn.Linear(hidden_size, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Float (batch, hidden_size) -> logits, float (batch, num_labels)."""
        for layer in self.hidden_layers:
            pooled = torch.tanh(layer(pooled))
        return self.output_layer(pooled)

    @classmethod
    def fresh_like(cls, parameter: torch.Tensor, num_labels: int, num_linear_layers: int = 1) -> "ClassificationHead":
        """A new head for vectors of a model: the output layer zero, as the paper begins fine-tuning, hidden ones random.

        Args:
            parameter: (..., hidden_size), of the model's device and dtype.
        """
        head = cls(parameter.shape[-1], num_labels, num_linear_layers)
        nn.init.zeros_(head.output_layer.weight)
        nn.init.zeros_(head.output_layer.bias)
        return head.to(device=parameter.device, dtype=parameter.dtype)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, problem_type: str | None = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The loss of a batch of pictures, as one fp32 number, the mean over them.

    Args:
        logits: float (batch, num_labels).
        labels: int64 (batch,), a class each, or -100 for a picture that is left out of the mean; or float (batch,
            num_labels), the probability of each class, as mixup and cutmix make them. For `multi_label_classification`
            float (batch, num_labels) of 0 and 1, for `regression` (and wherever there is only one label) float, as many
            numbers as logits.
        problem_type: one of transformers' three; None means single-label classification unless there is one label only.
        label_smoothing: the share of the target, in [0, 1), spread evenly over the classes (Szegedy 2016, section 7).

    Raises:
        ValueError: if the labels have another shape.
    """
    logits = logits.float()
    labels = labels.to(logits.device)
    batch, num_labels = logits.shape
    if problem_type is None:
        problem_type = "regression" if num_labels == 1 else "single_label_classification"
    if problem_type == "regression":
        if labels.shape not in (logits.shape, (batch,) if num_labels == 1 else logits.shape):
            raise ValueError(
                f"`labels` must hold {num_labels} numbers a picture, got shape {tuple(labels.shape)} for {batch} "
                "pictures. Give one number a logit."
            )
        return F.mse_loss(logits, labels.reshape(logits.shape).float())
    of_classes = labels.shape == (batch,) and not labels.is_floating_point()
    if of_classes and problem_type == "multi_label_classification":
        raise ValueError(
            f"`labels` must be float ({batch}, {num_labels}) of 0 and 1 for `multi_label_classification`, got {labels.dtype} "
            f"({batch},). Set `problem_type` to None for one class a picture."
        )
    if of_classes and labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        real = labels[labels != _IGNORED]
        if not len(real):
            raise ValueError(
                f"A class is wanted for one picture or more, got {_IGNORED} for all {batch}. Leave them out."
            )
        lowest, highest = int(real.min()), int(real.max())
        if highest >= num_labels or lowest < 0:
            raise ValueError(
                f"`labels` must be from 0 to {num_labels - 1}, got {lowest} to {highest}. Give the model as many "
                "`num_labels` as there are classes."
            )
    if not (of_classes and problem_type == "single_label_classification") and labels.shape != logits.shape:
        raise ValueError(
            f"`labels` must be int64 ({batch},) classes or float ({batch}, {num_labels}), got {labels.dtype} "
            f"{tuple(labels.shape)}. Give one class a picture, or one number a class."
        )
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    target = labels.long() if of_classes else labels.float()
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def validate_head_settings(num_linear_layers: int, label_smoothing: float) -> None:
    """Checks the settings that every classifier's config has.

    Raises:
        ValueError: if the head has no layer, or the smoothing is no share.
    """
    if num_linear_layers < 1:
        raise ValueError(f"`num_linear_layers` must be at least 1, got {num_linear_layers}. 1 is a plain linear head.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}. Usual is 0.1, 0 is none.")
