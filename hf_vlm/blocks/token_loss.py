"""Cross-entropy over the tokens that carry loss, and the shift that turns labels into decoder inputs."""

import torch
from torch.nn import functional as F

IGNORE_INDEX = -100
"""Label of a token that carries no loss; the value torch's cross-entropy skips by default."""


def token_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy in nats of the labels that are not `IGNORE_INDEX`, as one number.

    Args:
        logits: float (batch, tokens, vocabulary); computed in fp32 whatever their dtype.
        labels: int64 (batch, tokens), aligned with the logits: no shift happens here.
        num_items_in_batch: how many labels the whole optimiser step holds. The sum is divided by it, so that the
            gradients of accumulated batches add up to those of one big batch; without it the loss is the mean over
            this batch's labels.
        label_smoothing: the share of the target, in [0, 1), spread evenly over the vocabulary.
            Source: Szegedy et al. 2016, section 7, https://arxiv.org/abs/1512.00567

    Returns: a float32 scalar; 0 where no label carries loss.
    """
    total = F.cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten().to(logits.device),
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    if num_items_in_batch is None:
        num_items_in_batch = labels.ne(IGNORE_INDEX).sum().clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def shift_right(labels: torch.Tensor, *, start_token_id: int, pad_token_id: int) -> torch.Tensor:
    """What a decoder reads to predict `labels`: the start token, then all labels but the last.

    Args:
        labels: int64 (batch, tokens); `IGNORE_INDEX` becomes `pad_token_id`.

    Returns: int64 (batch, tokens).
    """
    inputs = labels.new_full(labels.shape, pad_token_id)
    inputs[:, 1:] = labels[:, :-1]
    inputs[:, :1] = start_token_id
    return inputs.masked_fill(inputs == IGNORE_INDEX, pad_token_id)
