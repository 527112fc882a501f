"""Oracle: `torch.nn.MultiheadAttention` with the same weights."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_vlm.blocks.attention import CrossAttention, SelfAttention, attention_kernel, single_query_attention


def config(implementation: str) -> PreTrainedConfig:
    config = PreTrainedConfig()
    config._attn_implementation = implementation
    return config


def oracle(attention: nn.Module, width: int, key_value_width: int) -> nn.MultiheadAttention:
    torch_attention = nn.MultiheadAttention(width, 2, kdim=key_value_width, vdim=key_value_width, batch_first=True)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        if torch_attention.in_proj_weight is not None:
            torch_attention.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        else:
            for name, projection in zip("qkv", projections, strict=True):
                getattr(torch_attention, f"{name}_proj_weight").copy_(projection.weight)
        biases = [p.bias if p.bias is not None else torch.zeros(width) for p in projections]
        torch_attention.in_proj_bias.copy_(torch.cat(biases))
        torch_attention.out_proj.load_state_dict(attention.o_proj.state_dict())
    return torch_attention


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("key_bias", [True, False])
def test_self_attention_equals_torch_with_mask_and_position_bias(implementation: str, key_bias: bool) -> None:
    attention = SelfAttention(config(implementation), hidden_size=8, num_heads=2, key_bias=key_bias)
    assert (attention.k_proj.bias is not None) == key_bias
    hidden_states = torch.randn(3, 5, 8)
    allowed = torch.rand(3, 1, 5, 5) < 0.7
    allowed[..., 0] = True
    bias = torch.randn(1, 2, 5, 5)
    got, _ = attention(hidden_states, allowed, position_bias=bias)
    added = torch.where(allowed, bias, float("-inf")).flatten(0, 1)  # (batch * heads, tokens, tokens)
    expected, _ = oracle(attention, 8, 8)(hidden_states, hidden_states, hidden_states, attn_mask=added)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention_equals_torch(implementation: str) -> None:
    attention = CrossAttention(config(implementation), hidden_size=8, key_value_size=6, num_heads=2)
    text, picture = torch.randn(2, 3, 8), torch.randn(2, 7, 6)
    real = torch.arange(7) < torch.tensor([[4], [7]])
    got, _ = attention(text, picture, real[:, None, None].expand(2, 1, 3, 7))
    expected, _ = oracle(attention, 8, 6)(text, picture, picture, key_padding_mask=~real)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_cached_self_attention_equals_uncached_causal() -> None:
    attention = SelfAttention(config("sdpa"), hidden_size=8, num_heads=2, is_causal=True, layer_idx=0)
    hidden_states = torch.randn(2, 4, 8)
    expected, _ = attention(hidden_states)
    cache = DynamicCache()
    steps = [attention(hidden_states[:, i : i + 1], cache=cache)[0] for i in range(4)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_projects_the_picture_once() -> None:
    attention = CrossAttention(config("sdpa"), hidden_size=8, key_value_size=6, num_heads=2, layer_idx=0)
    projected = []
    attention.k_proj.register_forward_hook(lambda *_: projected.append(1))
    text, picture = torch.randn(2, 3, 8), torch.randn(2, 7, 6)
    expected, _ = attention(text, picture)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    steps = [attention(text[:, i : i + 1], picture, cache=cache)[0] for i in range(3)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert len(projected) == 2  # once without cache, once with


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_without_a_mask_sees_everything(implementation: str) -> None:
    # transformers' sdpa kernel is causal where a module doesn't say that it isn't.
    hidden_states, picture = torch.randn(2, 5, 8), torch.randn(2, 5, 6)
    attention = SelfAttention(config(implementation), hidden_size=8, num_heads=2)
    expected, _ = oracle(attention, 8, 8)(hidden_states, hidden_states, hidden_states)
    torch.testing.assert_close(attention(hidden_states)[0], expected, atol=1e-5, rtol=1e-5)
    attention = CrossAttention(config(implementation), hidden_size=8, key_value_size=6, num_heads=2)
    expected, _ = oracle(attention, 8, 6)(hidden_states, picture, picture)
    torch.testing.assert_close(attention(hidden_states, picture)[0], expected, atol=1e-5, rtol=1e-5)


def test_eager_kernel_gives_weights_that_sum_to_one_and_respect_the_mask() -> None:
    attention = CrossAttention(config("eager"), hidden_size=8, key_value_size=6, num_heads=2)
    real = torch.arange(7) < torch.tensor([[4], [7]])
    _, weights = attention(torch.randn(2, 3, 8), torch.randn(2, 7, 6), real[:, None, None].expand(2, 1, 3, 7))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert weights[0, ..., 4:].eq(0).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_acts_in_training_only(implementation: str) -> None:
    attention = SelfAttention(config(implementation), hidden_size=8, num_heads=2, dropout=0.5)
    hidden_states = torch.randn(2, 5, 8)
    assert not torch.equal(attention(hidden_states)[0], attention(hidden_states)[0])
    attention.eval()
    assert torch.equal(attention(hidden_states)[0], attention(hidden_states)[0])


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
@pytest.mark.parametrize("biased", [False, True])
def test_single_query_on_a_cpu_is_answered_as_by_sdpa(mask: str, biased: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(config("sdpa"), hidden_size=16, num_heads=2).eval()
    query, key, value = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    seen = torch.rand(3, 1, 1, 5) < 0.6
    seen[..., 0] = True
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    attention_mask = {"none": None, "bool": seen, "added": added}[mask]
    bias = torch.randn(1, 2, 1, 5) if biased else None
    assert attention_kernel(attention, query) is single_query_attention
    mixed, weights = single_query_attention(attention, query, key, value, attention_mask, 0.3, position_bias=bias)
    expected = torch.zeros(3, 2, 1, 5) if bias is None else bias
    expected = expected + (0 if mask == "none" else added)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=expected.expand(3, 2, 1, 5), scale=0.3
    )
    torch.testing.assert_close(mixed, expected.transpose(1, 2))
    assert weights is None


def test_other_queries_go_to_the_named_kernel() -> None:
    attention = SelfAttention(config("sdpa"), hidden_size=16, num_heads=2).eval()
    assert attention_kernel(attention, torch.zeros(1, 2, 4, 8)) is not single_query_attention
    assert attention_kernel(attention.train(), torch.zeros(1, 2, 1, 8)) is not single_query_attention  # has dropout
    eager = SelfAttention(config("eager"), hidden_size=16, num_heads=2).eval()
    assert attention_kernel(eager, torch.zeros(1, 2, 1, 8)) is not single_query_attention  # gives its weights
