"""Sampling from a categorical distribution by Gumbel noise, and its differentiable relaxation.

With g_k = -log(-log u_k), u_k uniform in (0, 1):

    argmax_k (logit_k + g_k)                    is a sample of softmax(logits)       Gumbel-max
    softmax_k((logit_k + g_k) / temperature)    tends to its one-hot vector as the temperature tends to 0: Gumbel-softmax

Source: Jang et al. 2017, eq. 1 and 2, https://arxiv.org/abs/1611.01144; Maddison et al. 2017,
https://arxiv.org/abs/1611.00712
"""

import math

import torch

from .straight_through import straight_through


def gumbel_noise(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Independent draws of the standard Gumbel distribution, fp32, shaped like a tensor and on its device."""
    exponential = torch.empty_like(like, dtype=torch.float32).exponential_(generator=generator)  # -log u
    return -exponential.clamp(min=torch.finfo(torch.float32).tiny).log()


def gumbel_max(logits: torch.Tensor, dim: int = -1, generator: torch.Generator | None = None) -> torch.Tensor:
    """A sample of each categorical distribution: int64, the shape of `logits` without `dim`.

    Args:
        logits: float, unnormalised log probabilities along `dim`.
        dim: the axis of the categories.
        generator: of the noise.
    """
    return (logits.float() + gumbel_noise(logits, generator)).argmax(dim)  # Jang eq. 1


def gumbel_softmax(
    logits: torch.Tensor,
    temperature: float | torch.Tensor,
    *,
    is_hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A relaxed sample of each categorical distribution, differentiable in the logits.

    Args:
        logits: float, unnormalised log probabilities along `dim`.
        temperature: above 0; small ones are near to one-hot, with gradients of high variance.
        is_hard: whether the sample is one-hot, with the gradient of the relaxed one (straight-through).
        dim: the axis of the categories.
        generator: of the noise.

    Returns: fp32, shaped like `logits`, in [0, 1], sums along `dim` are 1.

    Raises:
        ValueError: if the temperature, given as a number, is not above 0.
    """
    if not isinstance(temperature, torch.Tensor) and not temperature > 0:
        raise ValueError(
            f"`temperature` must be above 0, got {temperature}. Anneal towards 0, or sample with `gumbel_max`."
        )
    soft = ((logits.float() + gumbel_noise(logits, generator)) / temperature).softmax(dim)  # Jang eq. 2
    if not is_hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return straight_through(one_hot, gradient_to=soft)


def kl_from_uniform(logits: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """KL(q || uniform) = log K - H[q] of each categorical distribution, in nats: fp32, the shape without `dim`."""
    log_probabilities = logits.float().log_softmax(dim)
    return (log_probabilities.exp() * (log_probabilities + math.log(logits.shape[dim]))).sum(dim)
