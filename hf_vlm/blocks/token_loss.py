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


def ctc_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    blank_token_id: int,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Nats to write `labels` in order somewhere along a sequence, one token or a blank a place, as one number.

    Args:
        logits: float (batch, places, vocabulary); computed in fp32 whatever their dtype.
        labels: int64 (batch, tokens); `IGNORE_INDEX` is left out.
        mask: bool (batch, places), True for real places, which come first; None where all are.
        blank_token_id: the token that stands for "nothing here"; never a label.
        num_items_in_batch: what the sum is divided by, as in `token_cross_entropy`; by default the number of labels.

    Returns: a float32 scalar; a row with more labels than places have room for counts 0.

    Source: Graves et al. 2006, eq. 3 to 8, https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    carries = labels.ne(IGNORE_INDEX)
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)  # (places, batch, vocabulary)
    lengths = torch.full_like(labels[:, 0], logits.shape[1]) if mask is None else mask.sum(dim=1)
    total = F.ctc_loss(
        log_probs,
        labels[carries],
        lengths,
        carries.sum(dim=1),
        blank=blank_token_id,
        reduction="sum",
        zero_infinity=True,
    )
    if num_items_in_batch is None:
        num_items_in_batch = carries.sum().clamp(min=1)
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
