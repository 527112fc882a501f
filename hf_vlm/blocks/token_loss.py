"""Cross-entropy over the tokens that carry loss, and the shift that turns labels into decoder inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
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
        num_items_in_batch = num_items_in_batch.to(total.device).clamp(min=1)
    return total / max(num_items_in_batch, 1) if isinstance(num_items_in_batch, int) else total / num_items_in_batch


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
        num_items_in_batch = num_items_in_batch.to(total.device).clamp(min=1)
    return total / max(num_items_in_batch, 1) if isinstance(num_items_in_batch, int) else total / num_items_in_batch


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


def chunked_token_cross_entropy(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[torch.Tensor],
    *,
    chunk_size: int = 1024,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """`token_cross_entropy` of `head(hidden_states)`, whose logits only ever exist for `chunk_size` tokens.

    Tokens without a loss never reach the head. The gradients are computed here, in the forward pass, chunk by chunk while
    the chunk's logits are there; the backward pass only scales them. Nothing is computed twice, and what is kept is as
    large as `hidden_states` and `parameters`, however many tokens and however large a vocabulary there are. The gradient
    of half-precision parameters is added up in fp32.

    Args:
        hidden_states: float (tokens, hidden_size).
        labels: int64 (tokens,), aligned with `hidden_states`: no shift happens here.
        head: makes logits, float (tokens, vocabulary), of any number of hidden states, each for itself.
        parameters: the head's tensors that are to get a gradient: all that require one. Those that don't, get none.
        chunk_size: tokens, 1 or more.
        num_items_in_batch, label_smoothing: as in `token_cross_entropy`.

    Returns: a float32 scalar; 0 where no label carries loss, with gradients of 0. Computed in fp32, of double-precision
        logits in theirs. It has no second derivative.

    Raises:
        ValueError: if the shapes or `chunk_size` are wrong, or the head learns by a tensor outside `parameters`, which would
            silently get no gradient.

    Source: the idea is the fused linear cross-entropy of Hsu et al. 2024 (Liger Kernel),
        https://arxiv.org/abs/2410.10989; here for any head, and without the tokens that carry no loss.
    """
    if hidden_states.ndim != 2 or labels.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"`hidden_states` must be (tokens, hidden_size) and `labels` (tokens,), got {tuple(hidden_states.shape)} and "
            f"{tuple(labels.shape)}. Flatten batch and tokens of both."
        )
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be 1 or more, got {chunk_size}. 1024 does well.")
    labels = labels.to(hidden_states.device)
    places = labels.ne(IGNORE_INDEX).nonzero()[:, 0]
    total = _ChunkedCrossEntropy.apply(
        hidden_states,
        [(chunk, labels[chunk]) for chunk in places.split(chunk_size)] if len(places) else [],
        head,
        label_smoothing,
        torch.is_grad_enabled(),
        *parameters,
    )
    if num_items_in_batch is None:
        num_items_in_batch = max(len(places), 1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device).clamp(min=1)
    return (total / num_items_in_batch).float()


def inside_call(module: nn.Module, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """What `function(*inputs)` gives, called where `module.forward` would be: between the hooks of one call of `module`.

    Whatever splits a module's weights over processes (FSDP2, ZeRO-3) puts them together for one call, and all processes must call
    as often. `function` uses `module.forward`, as often as it likes.
    """
    stored = module.__dict__.get("forward")  # where something replaced it already

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if stored is not None:
            module.__dict__["forward"] = stored

    def instead(*given: torch.Tensor) -> torch.Tensor:
        restore()
        return function(*given)

    module.__dict__["forward"] = instead
    try:
        return module(*inputs)
    finally:
        restore()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum over all chunks of (places, labels): a sum, because in fp16 the gradients of a mean could round to 0."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        chunks: list[tuple[torch.Tensor, torch.Tensor]],
        head: Callable[[torch.Tensor], torch.Tensor],
        label_smoothing: float,
        with_gradients: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        of_hidden_states, *of_parameters = (
            with_gradients and tensor.requires_grad for tensor in (hidden_states, *parameters)
        )
        learnt = [parameter for parameter, is_learnt in zip(parameters, of_parameters, strict=True) if is_learnt]
        hidden_gradient = torch.zeros_like(hidden_states) if of_hidden_states else None
        sums = [torch.zeros_like(tensor, dtype=_at_least_single(tensor)) for tensor in learnt]

        def loss_of(places: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            """The loss of one chunk; its gradients go where they are wanted, and all else ends with this call."""
            hidden = hidden_states[places].requires_grad_(of_hidden_states)
            with torch.set_grad_enabled(with_gradients):
                logits = head(hidden)
                logits = logits.to(_at_least_single(logits))
                loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
            if with_gradients:
                _check_leaves(loss, [hidden, *learnt])
            if of_hidden_states or learnt:
                gradients = list(torch.autograd.grad(loss, [hidden] * of_hidden_states + learnt))
                if hidden_gradient is not None:
                    hidden_gradient[places] = gradients.pop(0)
                for so_far, gradient in zip(sums, gradients, strict=True):
                    so_far += gradient
            return loss.detach()

        total = hidden_states.new_zeros((), dtype=_at_least_single(hidden_states))
        for chunk in chunks:
            total += loss_of(*chunk)
        gradients = [so_far.to(tensor.dtype) for so_far, tensor in zip(sums, learnt, strict=True)]
        ctx.save_for_backward(hidden_gradient, *gradients)
        ctx.of_parameters = of_parameters
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, *gradients = ctx.saved_tensors
        of_hidden_states = None if hidden_gradient is None else hidden_gradient * of_total
        of_parameters = [gradients.pop(0) * of_total if is_learnt else None for is_learnt in ctx.of_parameters]
        return of_hidden_states, None, None, None, None, *of_parameters


def _at_least_single(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_leaves(loss: torch.Tensor, known: Sequence[torch.Tensor]) -> None:
    """Raise if a tensor that requires a gradient leads to `loss` and not through one of `known`."""
    nodes, seen = [loss.grad_fn], {tensor.grad_fn for tensor in known}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is tensor for tensor in known):
            raise ValueError(
                f"`parameters` must hold every tensor of `head` that requires a gradient, got none of shape {tuple(leaf.shape)}. "
                "Add it, or freeze it."
            )
        nodes += [before for before, _ in node.next_functions]
