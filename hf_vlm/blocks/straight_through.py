"""The straight-through estimator: one tensor forwards, the gradient of another backwards.

Source: Bengio et al. 2013, https://arxiv.org/abs/1308.3432; for codewords van den Oord et al. 2017, section 3.2,
https://arxiv.org/abs/1711.00937
"""

import torch


def straight_through(values: torch.Tensor, *, gradient_to: torch.Tensor) -> torch.Tensor:
    """`values`, exactly; whatever gradient arrives goes on to `gradient_to`, unchanged, and none to `values`.

    Args:
        values: float, any shape: a discrete choice, such as codewords.
        gradient_to: float, the same shape: what the choice was made from.
    """
    # Not `gradient_to + (values - gradient_to).detach()`, which would round `values`.
    return values.detach() + (gradient_to - gradient_to.detach())
