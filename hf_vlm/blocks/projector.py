"""Vision features to the width of a language model: one linear layer, or a few with an activation between."""

import torch
from torch import nn
from transformers.activations import ACT2FN


class Projector(nn.Module):
    """LLaVA's projector: one linear layer; LLaVA-1.5's: two of them, with GELU between.

    Args:
        in_features: width of a vision token.
        out_features: width of a word embedding, and of every layer between.
        num_linear_layers: how many; the activation follows each but the last.

    Source: Liu et al. 2023a, eq. 1, https://arxiv.org/abs/2304.08485; Liu et al. 2023b, section 3.2,
        https://arxiv.org/abs/2310.03744
    """

    def __init__(
        self, in_features: int, out_features: int, num_linear_layers: int = 1, hidden_act: str = "gelu"
    ) -> None:
        super().__init__()
        widths = [in_features] + [out_features] * num_linear_layers
        self.linears = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        )
        self.activation = ACT2FN[hidden_act]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features as words.

        Args:
            features: float (..., in_features).

        Returns: float (..., out_features).
        """
        for index, linear in enumerate(self.linears):
            features = linear(features if index == 0 else self.activation(features))  # Liu eq. 1
        return features
