"""Multi-head self- and cross-attention through transformers' attention interface.

`hidden_states` flow as float (batch, tokens, hidden_size); inside, heads are split to (batch, heads, tokens, head_dim).
The kernel (eager, sdpa, flash, flex) is the one that the model's config names. This is the one block that keeps a config,
because transformers reads and switches the kernel there.

Source: Vaswani et al. 2017, section 3.2, https://arxiv.org/abs/1706.03762
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain tensor operations, the only kernel that also returns its weights.

    Args:
        query, key, value: float (batch, heads, query or key tokens, head_dim).
        attention_mask: float, added to the scores, or bool, True where attention is allowed;
            broadcastable to (batch, heads, query tokens, key tokens).
        position_bias: float, added to the scores, broadcastable like the mask.

    Returns: the attended values, float (batch, query tokens, heads, head_dim), and the weights, float (batch, heads,
        query tokens, key tokens).
    """
    scores = torch.matmul(query, key.transpose(-2, -1)) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def single_query_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    position_bias: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """What sdpa gives for one query and no dropout, in two products; arguments as in `eager_attention_forward`."""
    scores = torch.matmul(query * scaling, key.transpose(-2, -1))  # (batch, heads, 1, key tokens)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2), None


def attention_kernel(module: Any, query: torch.Tensor) -> Callable[..., Any]:
    """The kernel that `module.config` names, for queries, float (batch, heads, query tokens, head_dim).

    On a CPU sdpa takes longer over a single query, as in decoding, than two plain products do.
    """
    name = module.config._attn_implementation
    if (
        query.shape[2] == 1
        and name == "sdpa"
        and query.device.type == "cpu"
        and not module.training
        and not torch.compiler.is_compiling()
    ):
        return single_query_attention
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)


class SelfAttention(nn.Module):
    """Every token attends to every token, or, when causal, to itself and those before it.

    Args:
        config: read for `_attn_implementation` only.
        hidden_size: width of the tokens; `num_heads` must divide it.
        is_causal: whether a token is kept from seeing later ones. With a cache the mask says so, without one the kernel.
        key_bias: False leaves the key projection without a bias, as BEiT does.
        layer_idx: this layer's place in the cache; needed only with `cache`.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        hidden_size: int,
        num_heads: int,
        dropout: float = 0.0,
        is_causal: bool = False,
        bias: bool = True,
        key_bias: bool = True,
        layer_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=bias and key_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix each token with the tokens it may see.

        Args:
            hidden_states: float (batch, tokens, hidden_size).
            attention_mask: as `transformers.masking_utils` makes it for the chosen kernel, or None.
            cache: earlier keys and values; this call's are appended to it.
            kwargs: passed to the kernel, such as `position_bias`, float (1 or batch, heads, tokens, tokens).

        Returns: float (batch, tokens, hidden_size) and the attention weights, None but for the eager kernel.
        """
        heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if cache is not None:
            if isinstance(cache, EncoderDecoderCache):
                cache = cache.self_attention_cache
            key, value = cache.update(key, value, self.layer_idx)

        attend = attention_kernel(self, query)
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.reshape(hidden_states.shape)), weights


class CrossAttention(nn.Module):
    """Tokens of the text attend to tokens of the picture.

    The picture's keys and values do not change while a text is written: with an `EncoderDecoderCache` they are projected
    once a picture and read back at every later step.

    Args:
        config: read for `_attn_implementation` only.
        hidden_size: width of the text's tokens; `num_heads` must divide it.
        key_value_size: width of the picture's tokens.
        layer_idx: this layer's place in the cache; needed only with `cache`.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        hidden_size: int,
        key_value_size: int,
        num_heads: int,
        dropout: float = 0.0,
        layer_idx: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = False
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(key_value_size, hidden_size)
        self.v_proj = nn.Linear(key_value_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def keys_and_values(self, key_value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What queries meet of the picture: both float (batch, heads, picture tokens, head_dim)."""
        heads = (*key_value_states.shape[:-1], self.num_heads, self.head_dim)
        key = self.k_proj(key_value_states).view(heads).transpose(1, 2)
        value = self.v_proj(key_value_states).view(heads).transpose(1, 2)
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix each text token with the picture tokens it may see.

        Args:
            hidden_states: float (batch, text tokens, hidden_size).
            key_value_states: float (batch, picture tokens, key_value_size); not read once the cache holds its projection.
            attention_mask: as `transformers.masking_utils` makes it for the chosen kernel, or None.
            cache: an `EncoderDecoderCache`; any other cache holds the text only and is left alone.

        Returns: float (batch, text tokens, hidden_size) and the attention weights, None but for the eager kernel.
        """
        query = (
            self.q_proj(hidden_states).view(*hidden_states.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)
        )
        cache = cache if isinstance(cache, EncoderDecoderCache) else None
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            key, value = self.keys_and_values(key_value_states)
            if cache is not None:
                key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
                cache.is_updated[self.layer_idx] = True

        attend = attention_kernel(self, query)
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.reshape(hidden_states.shape)), weights
