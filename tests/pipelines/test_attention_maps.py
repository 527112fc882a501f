"""Attention over the patches: which token looks, which patch is where, what padding is worth, and rollout's product."""

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from hf_vlm import VisionTransformerConfig, VisionTransformerModel
from hf_vlm.blocks.relative_position import RelativePositionBias, relative_position_index
from hf_vlm.parts.vision_features import show_every_patch
from hf_vlm.pipelines.attention_maps import NoAttentionMapError, attention_maps, attention_rollout, bias_maps

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}
OURS = {**TINY, "image_size": (16, 32), "patch_size": 8}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_maps_are_the_cls_tokens_attention_to_the_patches_row_by_row():
    model = ViTModel(ViTConfig(**TINY, image_size=(16, 32), patch_size=8)).eval()
    pixels = torch.randn(3, 3, 16, 32)
    found = attention_maps(model, pixels)
    assert found.is_from_cls and found.heads.shape == (3, 2, 2, 2, 4)  # batch, layers, heads, rows, columns

    layer, states = model.layers[0], model.embeddings(pixels)
    states = layer.layernorm_before(states)
    query, key = (
        project(states).unflatten(-1, (2, 8)).transpose(1, 2)
        for project in (layer.attention.q_proj, layer.attention.k_proj)
    )
    for picture in range(3):
        for head in range(2):
            scores = torch.stack([query[picture, head, 0] @ key[picture, head, token] / 8**0.5 for token in range(9)])
            wanted = scores.exp() / scores.exp().sum()
            for row in range(2):
                for column in range(4):
                    torch.testing.assert_close(
                        found.heads[picture, 0, head, row, column], wanted[1 + 4 * row + column].detach()
                    )


def test_map_without_cls_token_is_what_each_patch_receives_on_average():
    model = SiglipVisionModel(SiglipVisionConfig(**TINY, image_size=32, patch_size=8)).eval()
    model.set_attn_implementation("eager")
    pixels = torch.randn(2, 3, 32, 32)
    attention = model(pixels, output_attentions=True).attentions
    found = attention_maps(model, pixels)
    assert not found.is_from_cls and model.config._attn_implementation == "eager"
    for layer in range(2):
        wanted = sum(attention[layer][:, :, looking] for looking in range(16)) / 16
        torch.testing.assert_close(found.heads[:, layer].flatten(2), wanted.detach())
    torch.testing.assert_close(found.heads.sum(dim=(-1, -2)), torch.ones(2, 2, 2))


def test_rollout_of_one_layer_is_half_attention_half_itself():
    attention = torch.rand(2, 3, 5, 5).softmax(dim=-1)
    wanted = torch.zeros(2, 5, 5)
    for head in range(3):
        wanted += attention[:, head] / 6
    for token in range(5):
        wanted[:, token, token] += 0.5
    torch.testing.assert_close(attention_rollout([attention]), wanted)


def test_rollout_of_two_layers_goes_back_through_the_second_first():
    first = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    second = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    # halves with the identity: [[3/4, 1/4], [0, 1]] and [[1, 0], [1/4, 3/4]]; the second times the first
    torch.testing.assert_close(attention_rollout([first, second])[0], torch.tensor([[12, 4], [3, 13]]) / 16)


def test_rollout_map_is_the_cls_tokens_row():
    model = ViTModel(ViTConfig(**TINY, image_size=32, patch_size=8)).eval()
    model.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 32, 32)
    first, second = (0.5 * (a[0].mean(dim=0) + torch.eye(17)) for a in model(pixels, output_attentions=True).attentions)
    found = attention_maps(model, pixels).rollout
    torch.testing.assert_close(found.flatten(), (second @ first)[0, 1:].detach())


MODELS = {
    "ViT": lambda: ViTModel(ViTConfig(**TINY, image_size=(16, 32), patch_size=8)),
    "DeiT, two prefix tokens": lambda: DeiTModel(DeiTConfig(**TINY, image_size=(16, 32), patch_size=8)),
    "BEiT": lambda: BeitModel(BeitConfig(**TINY, image_size=(16, 32), patch_size=8)),
    "DINOv2 with registers, at another size": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**TINY, image_size=64, patch_size=8)
    ),
    "ViT at another size": lambda: ViTModel(ViTConfig(**TINY, image_size=32, patch_size=8)),
    "CLIP at another size": lambda: CLIPVisionModel(CLIPVisionConfig(**TINY, image_size=32, patch_size=8)),
    "SigLIP, no prefix, at another size": lambda: SiglipVisionModel(
        SiglipVisionConfig(**TINY, image_size=32, patch_size=8)
    ),
    "ViT-MAE": lambda: ViTMAEModel(show_every_patch(ViTMAEConfig(**TINY, image_size=(16, 32), patch_size=8))),
    "YOLOS, tokens behind the patches": lambda: YolosModel(
        YolosConfig(**TINY, image_size=[16, 32], patch_size=8, num_detection_tokens=3)
    ),
    "ours": lambda: VisionTransformerModel(VisionTransformerConfig(**OURS)),
    "ours, two prefix tokens": lambda: VisionTransformerModel(
        VisionTransformerConfig(**OURS, use_distillation_token=True)
    ),
    "ours, registers only": lambda: VisionTransformerModel(
        VisionTransformerConfig(**OURS, use_cls_token=False, num_register_tokens=2)
    ),
    "ours, no prefix": lambda: VisionTransformerModel(VisionTransformerConfig(**OURS, use_cls_token=False)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_odd_patch_stands_out_where_it_is_and_the_kernel_comes_back(make):
    model = make().eval()
    kernel = model.config._attn_implementation
    for name, weight in model.named_parameters():
        if "position" in name:  # then all patches of one colour get the same attention, wherever they are
            torch.nn.init.zeros_(weight)
        elif "token" in name:  # nought at first, by which a CLS token looks at all alike
            torch.nn.init.normal_(weight)
    for row in range(2):
        for column in range(4):
            pixels = torch.full((1, 3, 16, 32), -0.5)
            pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
            found = attention_maps(model, pixels)
            for shares in (found.heads[0, 0].mean(dim=0), found.rollout[0]):
                assert shares.shape == (2, 4)
                difference = (shares - shares.median()).abs()
                assert divmod(int(difference.argmax()), 4) == (row, column)
                difference[row, column] = 0
                assert difference.max() < 1e-5 < (shares[row, column] - shares.median()).abs()
    assert model.config._attn_implementation == kernel


def test_model_over_a_backbone_is_explained_and_both_get_their_kernels_back():
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4], "depths": [1]}
    config = VisionTransformerConfig(**{**OURS, "patch_size": 1}, backbone_config=backbone)
    model = VisionTransformerModel(config).eval()
    assert attention_maps(model, torch.zeros(1, 3, 16, 32)).heads.shape == (1, 2, 2, 4, 8)
    assert (config._attn_implementation, config.backbone_config._attn_implementation) == ("sdpa", "eager")


@pytest.mark.parametrize("use_cls_token", [True, False])
def test_padding_shows_nothing_and_changes_nothing(use_cls_token):
    model = VisionTransformerModel(VisionTransformerConfig(**OURS, use_cls_token=use_cls_token)).eval()
    pixels, mask = torch.randn(2, 3, 16, 32), torch.ones(2, 16, 32, dtype=torch.int64)
    mask[0, :, 13:] = 0  # the second column of patches is partly real
    found = attention_maps(model, pixels, mask)
    assert found.real_grid(0) == (2, 2) and found.real_grid(1) == (2, 4)
    alone = attention_maps(model, pixels[:1, :, :, :16], mask[:1, :, :16])
    torch.testing.assert_close(found.heads[0, ..., :2], alone.heads[0])
    torch.testing.assert_close(found.rollout[0, :, :2], alone.rollout[0])
    assert not found.heads[0, ..., 2:].any() and not found.rollout[0, :, 2:].any()
    if not use_cls_token:
        torch.testing.assert_close(found.rollout.sum(dim=(-1, -2)), torch.ones(2))


def test_padding_that_a_model_of_the_hub_sees_is_not_shown():
    model = ViTModel(ViTConfig(**TINY, image_size=(16, 32), patch_size=8)).eval()
    mask = torch.ones(1, 16, 32, dtype=torch.int64)
    mask[:, 8:] = 0
    found = attention_maps(model, torch.randn(1, 3, 16, 32), mask)
    assert found.real_grid() == (1, 4)
    assert found.heads[..., 0, :].all() and not found.heads[..., 1, :].any()


def swin() -> SwinModel:
    return SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (swin, r"got attention of shape \(1, 2, 16, 16\), \(4, 1, 16, 16\) from `swin`"),
        (
            lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])),
            "got none .* from `resnet`",
        ),
    ],
    ids=["Swin", "ResNet"],
)
def test_model_without_attention_over_the_picture_is_refused(make, told):
    model = make().eval()
    kernel = model.config._attn_implementation
    with pytest.raises(NoAttentionMapError, match=told):
        attention_maps(model, torch.zeros(1, 3, 32, 32))
    assert model.config._attn_implementation == kernel


def assert_seen_from_the_middle(found: torch.Tensor, bias: torch.Tensor, window: tuple[int, int]):
    """Bias maps, float (heads, ...), against float (heads, patches, patches), what attention adds, query by key."""
    rows, columns = window
    assert found.shape == (len(bias), 2 * rows - 1, 2 * columns - 1)
    for looking in range(rows * columns):
        for other in range(rows * columns):
            down = other // columns - looking // columns
            right = other % columns - looking % columns
            wanted = bias[:, looking, other].detach()
            torch.testing.assert_close(found[:, rows - 1 + down, columns - 1 + right], wanted)


@pytest.mark.parametrize("with_cls", [False, True])
def test_bias_map_is_what_a_patch_in_the_middle_adds_for_the_others(with_cls):
    module = RelativePositionBias((2, 3), num_heads=2, with_cls=with_cls)
    torch.nn.init.normal_(module.table)
    (found,) = bias_maps(torch.nn.ModuleDict({"only": module})).values()
    bias = module(relative_position_index((2, 3), with_cls=with_cls))[0]
    assert_seen_from_the_middle(found, bias[:, int(with_cls) :, int(with_cls) :], (2, 3))


def test_bias_maps_of_the_hubs_models_are_found_layer_by_layer():
    model = swin()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    found = bias_maps(model)
    assert [len(maps) for maps in found.values()] == [1, 1, 2, 2]
    for name, maps in found.items():
        assert_seen_from_the_middle(maps, model.get_submodule(name)()[0], (4, 4))
    beit = BeitModel(BeitConfig(**TINY, image_size=32, patch_size=8, use_relative_position_bias=True))
    assert [maps.shape for maps in bias_maps(beit).values()] == [(2, 7, 7)] * 2
    assert bias_maps(ViTModel(ViTConfig(**TINY, image_size=32, patch_size=8))) == {}
