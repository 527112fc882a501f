"""Latent vectors -> the nearest points of a fixed grid: discretisation without a codebook.

Each coordinate is squashed to (-1, 1) by tanh and rounded to one of its evenly spaced levels, -1 and 1 among them; with two
levels it is a bit. The gradient goes straight through the rounding.

    latents (..., D) -> levels (..., D) -> code_ids (...), counted like the digits of a number, the last coordinate fastest

Source: Mentzer et al. 2024 (finite scalar quantisation; their end levels are half a step further in),
    https://arxiv.org/abs/2309.15505; Yu et al. 2024 (bits), https://arxiv.org/abs/2310.05737
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .codebook import DiscreteLatents
from .straight_through import straight_through


class RoundedLevels(nn.Module):
    """The grid of `levels`: how many each coordinate has, each at least 2."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.num_codes, self.code_dim = math.prod(self.levels), len(self.levels)

    def forward(self, latents: torch.Tensor, *, is_learning: bool | None = None) -> DiscreteLatents:
        """Replace each latent vector by its nearest grid point; nothing is learnt, `is_learning` changes nothing.

        Args:
            latents: float (..., code_dim), channels last.

        Raises:
            ValueError: if the last axis is not `code_dim`.
        """
        if latents.shape[-1] != self.code_dim:
            raise ValueError(
                f"`latents` must be channels-last with {self.code_dim} channels, got shape {tuple(latents.shape)}. Move the "
                "channel axis last with `latents.movedim(1, -1)`."
            )
        squashed = latents.float().tanh()  # (..., code_dim) in (-1, 1)
        known = squashed.detach().nan_to_num(0.0)  # NaN is near to nothing: it counts as 0, the loss shows it
        num_steps = self._sizes(latents.device) - 1
        digits = ((known + 1) / 2 * num_steps).round()  # in [0, levels)
        points = digits / num_steps * 2 - 1
        commitment_loss = F.mse_loss(squashed, points)
        return DiscreteLatents(
            quantized=straight_through(points, gradient_to=squashed),
            code_ids=(digits.long() * self._weights(latents.device)).sum(-1),
            codebook_loss=torch.zeros_like(commitment_loss),
            commitment_loss=commitment_loss,
        )

    def lookup(self, code_ids: torch.Tensor) -> torch.Tensor:
        """The grid points of these numbers, fp32 (..., code_dim); `code_ids` int64 (...) in [0, num_codes)."""
        sizes = self._sizes(code_ids.device)
        digits = code_ids[..., None] // self._weights(code_ids.device) % sizes
        return digits / (sizes - 1) * 2 - 1

    def _sizes(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.levels, device=device)

    def _weights(self, device: torch.device) -> torch.Tensor:
        """What a step of each coordinate adds to a code: (code_dim,)."""
        return torch.tensor([math.prod(self.levels[place + 1 :]) for place in range(self.code_dim)], device=device)
