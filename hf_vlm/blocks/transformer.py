"""The pre-norm transformer layer of vision encoders, its MLP, and drop path.

`hidden_states` flow as float (batch, tokens, hidden_size).

Source: Dosovitskiy et al. 2021, eq. 2 and 3, https://arxiv.org/abs/2010.11929; layer scale: Touvron et al. 2021 (CaiT),
eq. 2, https://arxiv.org/abs/2103.17239
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


class DropPath(nn.Module):
    """Leaves out a residual branch for some samples of the batch while training.

    Args:
        rate: probability in [0, 1) that a sample's branch is left out; the others are scaled by 1 / (1 - rate).

    Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Float (batch, ...) -> the same shape, whole samples zeroed."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        kept = torch.empty(branch.shape[0], *(1,) * (branch.ndim - 1), dtype=branch.dtype, device=branch.device)
        return branch * kept.bernoulli_(keep).div_(keep)


class MLP(nn.Module):
    """Two linear layers with an activation between them, for each token by itself."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Float (batch, tokens, hidden_size) -> the same shape."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class PreNormLayer(GradientCheckpointingLayer):
    """One transformer layer that normalises before attention and before the MLP.

    Args:
        attention: mixes the tokens; called as `attention(hidden_states, attention_mask, **kwargs)`.
        dropout: probability for each number of a branch's output.
        drop_path_rate: probability for a sample's whole branch.
        layer_scale_init_value: start of the learned factors, one a channel, on both branches; 0 for none.
    """

    def __init__(
        self,
        attention: nn.Module,
        *,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.mlp = MLP(hidden_size, intermediate_size, activation)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path_rate)
        self.attention_scale: nn.Parameter | None = None
        self.mlp_scale: nn.Parameter | None = None
        if layer_scale_init_value > 0:
            self.attention_scale = nn.Parameter(torch.full((hidden_size,), layer_scale_init_value))
            self.mlp_scale = nn.Parameter(torch.full((hidden_size,), layer_scale_init_value))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Mix the tokens, then each by itself.

        Args:
            hidden_states: float (batch, tokens, hidden_size).
            attention_mask: for the attention.
            position_bias: float (1, heads, tokens, tokens), added to the attention's scores.

        Returns: float (batch, tokens, hidden_size).
        """
        if position_bias is not None:  # a learned tensor: taken by place above, so that checkpointing sees its gradient
            kwargs["position_bias"] = position_bias
        branch, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self._finish(branch, self.attention_scale)  # Dosovitskiy eq. 2
        branch = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + self._finish(branch, self.mlp_scale)  # Dosovitskiy eq. 3

    def _finish(self, branch: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        branch = self.dropout(branch)
        if scale is not None:
            branch = branch * scale
        return self.drop_path(branch)
