import pytest
import torch
from torch import nn

from hf_vlm.blocks.transformer import MLP, DropPath, PreNormLayer


class Halving(nn.Module):
    """Stands for attention; shows what it was given."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        self.given = attention_mask, kwargs
        return hidden_states / 2, None


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop_path = DropPath(0.25).train()
    out = drop_path(torch.ones(4000, 3, 2)).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out))  # a sample as a whole
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(torch.ones(5, 2)), torch.ones(5, 2))


def test_layer_is_two_normalised_residual_branches() -> None:
    layer = PreNormLayer(Halving(), hidden_size=8, intermediate_size=12, layer_norm_eps=1e-5).eval()
    nn.init.normal_(layer.attention_norm.weight)
    hidden_states = torch.randn(2, 5, 8)
    norm = layer.attention_norm
    attended = hidden_states + nn.functional.layer_norm(hidden_states, (8,), norm.weight, norm.bias) / 2
    normed = nn.functional.layer_norm(attended, (8,))
    inner = nn.functional.gelu(normed @ layer.mlp.fc1.weight.T + layer.mlp.fc1.bias)
    expected = attended + inner @ layer.mlp.fc2.weight.T + layer.mlp.fc2.bias
    torch.testing.assert_close(layer(hidden_states), expected)


def test_layer_scale_of_zero_silences_both_branches() -> None:
    layer = PreNormLayer(Halving(), hidden_size=8, intermediate_size=12, layer_scale_init_value=0.1)
    assert torch.equal(layer.attention_scale, torch.full((8,), 0.1))
    nn.init.zeros_(layer.attention_scale)
    nn.init.zeros_(layer.mlp_scale)
    hidden_states = torch.randn(2, 5, 8)
    assert torch.equal(layer(hidden_states), hidden_states)


def test_layer_hands_mask_and_bias_to_its_attention() -> None:
    layer = PreNormLayer(Halving(), hidden_size=8, intermediate_size=12)
    mask, bias = torch.ones(1), torch.zeros(1)
    layer(torch.randn(1, 3, 8), mask, bias, extra=1)
    assert layer.attention.given == (mask, {"position_bias": bias, "extra": 1})
    layer(torch.randn(1, 3, 8), mask)
    assert layer.attention.given == (mask, {})


def test_mlp_looks_at_one_token_at_a_time() -> None:
    mlp = MLP(4, 6, "relu")
    tokens = torch.randn(1, 3, 4)
    torch.testing.assert_close(mlp(tokens)[:, 1:2], mlp(tokens[:, 1:2]))
