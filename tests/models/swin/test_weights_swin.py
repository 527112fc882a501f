"""Oracles: transformers' own Swin, and timm's, which reads the authors' files; with every parameter random."""

import copy
import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import checkpoint_filter_fn
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinForMaskedImageModeling, SwinModel

from hf_vlm.models.swin.modeling_swin import (
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
)
from tests.models.swin.tiny_swin import randomise

TINY = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2}
SHAPES = {
    "two_stages": {},
    "four_stages": {"depths": [1, 2, 3, 1], "num_heads": [1, 2, 4, 8], "image_size": 64},
    "odd_window": {"window_size": 7, "patch_size": 4, "image_size": 112, "depths": [2, 2, 2], "num_heads": [2, 4, 8]},
    "absolute": {"use_absolute_embeddings": True},
    "no_bias": {"qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 2.5},
    "gray": {"num_channels": 1},
}


@pytest.mark.parametrize("name", SHAPES)
def test_foreign_folder_gives_equal_outputs(name: str, tmp_path: Path) -> None:
    theirs = randomise(SwinForImageClassification(SwinConfig(**{**TINY, **SHAPES[name], "num_labels": 5})))
    theirs.save_pretrained(tmp_path)
    ours, report = SwinTransformerForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert ours.config.num_labels == 5
    bare, report = SwinTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    size = theirs.config.image_size
    for height, width in [(size, size), (size, 2 * size), (size + 3, size - 6), (2 * size, size + 1)]:
        pixel_values = torch.randn(2, theirs.config.num_channels, height, width)
        stretched = {"interpolate_pos_encoding": True} if theirs.config.use_absolute_embeddings else {}
        if stretched and (height % 2 or width % 2):
            continue  # the reference makes a position too few
        # A copy, because the reference keeps a window that it shrank for one picture.
        expected = copy.deepcopy(theirs)(pixel_values, output_hidden_states=True, **stretched)
        got = ours(pixel_values, output_hidden_states=True, **stretched)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
        assert len(got.hidden_states) == len(expected.hidden_states)
        for mine, wanted in zip(got.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
        pooled = copy.deepcopy(theirs.swin)(pixel_values, **stretched).last_hidden_state
        torch.testing.assert_close(bare(pixel_values, **stretched).last_hidden_state, pooled, atol=1e-4, rtol=1e-4)


def test_gradients_equal_the_home_implementation(tmp_path: Path) -> None:
    theirs = randomise(SwinModel(SwinConfig(**TINY)))
    theirs.save_pretrained(tmp_path)
    ours = SwinTransformerModel.from_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 32)
    for model in (ours, theirs):
        model(pixel_values).pooler_output.square().sum().backward()
    torch.testing.assert_close(
        ours.stages[0].layers[1].attention.relative_position_bias.table.grad,
        theirs.encoder.layers[0].blocks[1].attention.relative_position_bias.relative_position_bias_table.grad,
        atol=1e-4,
        rtol=1e-4,
    )


def test_maps_equal_the_home_implementation_where_maps_are_larger_than_the_window(tmp_path: Path) -> None:
    names = ["stem", "stage1", "stage2"]
    theirs = randomise(SwinBackbone(SwinConfig(**TINY, out_features=names)))
    theirs.save_pretrained(tmp_path)
    ours = SwinTransformerBackbone.from_pretrained(tmp_path)
    assert ours.out_features == names and ours.channels == theirs.channels
    pixel_values = torch.randn(2, 3, 36, 42)
    for got, wanted in zip(ours(pixel_values).feature_maps, theirs(pixel_values).feature_maps, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_folder_of_masked_image_modelling_gives_its_encoder(tmp_path: Path) -> None:
    theirs = randomise(SwinForMaskedImageModeling(SwinConfig(**TINY, encoder_stride=4)))
    theirs.save_pretrained(tmp_path)
    ours, report = SwinTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixel_values = torch.randn(1, 3, 32, 32)
    expected = theirs.swin(pixel_values).last_hidden_state
    torch.testing.assert_close(ours(pixel_values).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_foreign_folder_saved_and_reloaded_is_an_ordinary_folder_of_ours(tmp_path: Path) -> None:
    theirs = SwinForImageClassification(SwinConfig(**TINY, id2label={0: "cat", 1: "dog", 2: "eel"}))
    randomise(theirs).save_pretrained(tmp_path / "theirs")
    loaded = SwinTransformerForImageClassification.from_pretrained(tmp_path / "theirs")
    loaded.save_pretrained(tmp_path / "ours")
    reloaded, report = SwinTransformerForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert reloaded.config.model_type == "hf_vlm_swin" and reloaded.config.id2label[2] == "eel"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name


def write_original(
    path: Path, image_size: int = 56, window: int = 7, absolute: bool = False
) -> dict[str, torch.Tensor]:
    """A file as the authors write them, by the names and shapes of their code; every number random."""
    torch.manual_seed(2)
    width, depths, heads, patch = 8, (2, 2), (2, 4), 4
    tensors: dict[str, torch.Tensor] = {}

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = torch.randn(out, into) * 0.2
        if bias:
            tensors[f"{name}.bias"] = torch.randn(out) * 0.2

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + torch.randn(size) * 0.2, torch.randn(size) * 0.2

    tensors["patch_embed.proj.weight"] = torch.randn(width, 3, patch, patch) * 0.2
    tensors["patch_embed.proj.bias"] = torch.randn(width) * 0.2
    norm("patch_embed.norm", width)
    side = image_size // patch
    if absolute:
        tensors["absolute_pos_embed"] = torch.randn(1, side * side, width)
    for stage, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
        dim, map_side = width * 2**stage, side // 2**stage
        clamped = min(window, map_side)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            norm(f"{name}.norm1", dim)
            tensors[f"{name}.attn.relative_position_bias_table"] = torch.randn((2 * clamped - 1) ** 2, num_heads)
            tensors[f"{name}.attn.relative_position_index"] = torch.zeros(clamped**2, clamped**2, dtype=torch.int64)
            if block % 2 and map_side > window:
                tensors[f"{name}.attn_mask"] = torch.zeros((map_side // window) ** 2, window**2, window**2)
            linear(f"{name}.attn.qkv", 3 * dim, dim)
            linear(f"{name}.attn.proj", dim, dim)
            norm(f"{name}.norm2", dim)
            linear(f"{name}.mlp.fc1", 4 * dim, dim)
            linear(f"{name}.mlp.fc2", dim, 4 * dim)
        if stage < len(depths) - 1:
            norm(f"layers.{stage}.downsample.norm", 4 * dim)
            linear(f"layers.{stage}.downsample.reduction", 2 * dim, 4 * dim, bias=False)
    norm("norm", dim)
    linear("head", 6, dim)
    torch.save({"model": tensors}, path)
    return tensors


@pytest.mark.parametrize(("image_size", "window"), [(56, 7), (112, 7), (64, 4), (96, 24)])
@torch.no_grad()
def test_original_file_gives_equal_outputs(image_size: int, window: int, tmp_path: Path) -> None:
    # The last: the second stage's map is smaller than the window, and so is its table in the file.
    path = tmp_path / "swin_tiny.pth"
    tensors = write_original(path, image_size, window)
    peer = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=image_size, window_size=window, embed_dim=8, depths=(2, 2),
        num_heads=(2, 4), num_classes=6,
    ).eval()  # fmt: skip
    peer.load_state_dict(checkpoint_filter_fn({"model": dict(tensors)}, peer))
    ours, report = SwinTransformerForImageClassification.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (ours.config.window_size, ours.config.num_labels) == (window, 6)
    pixel_values = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(ours(pixel_values).logits, peer(pixel_values), atol=1e-4, rtol=1e-4)


def test_picture_size_of_an_original_file_is_read_off_its_tensors(tmp_path: Path) -> None:
    write_original(tmp_path / "masks.pth", image_size=112)
    write_original(tmp_path / "positions.pth", image_size=112, absolute=True)
    for name in ("masks", "positions"):
        assert SwinTransformerModel.from_pretrained(tmp_path / f"{name}.pth").config.image_size == 112
    model = SwinTransformerModel.from_pretrained(tmp_path / "positions.pth")
    assert torch.equal(
        model.embeddings.position_embedding, torch.load(tmp_path / "positions.pth")["model"]["absolute_pos_embed"]
    )


def test_original_file_as_safetensors_and_of_another_window(tmp_path: Path) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in write_original(tmp_path / "a.pth").items()},
        tmp_path / "a.safetensors",
    )
    wide = SwinTransformerModel.from_pretrained(tmp_path / "a.safetensors", window_size=12)
    table = torch.load(tmp_path / "a.pth")["model"]["layers.0.blocks.0.attn.relative_position_bias_table"]
    # The authors' `load_pretrained`, in its own terms.
    side, heads = math.isqrt(len(table)), table.shape[1]
    expected = torch.nn.functional.interpolate(
        table.permute(1, 0).view(1, heads, side, side), size=(23, 23), mode="bicubic"
    )
    expected = expected.view(heads, 23 * 23).permute(1, 0)
    torch.testing.assert_close(wide.stages[0].layers[0].attention.relative_position_bias.table.detach(), expected)


def refused(path: Path, **tensors: torch.Tensor) -> None:
    torch.save({"model": tensors}, path)
    SwinTransformerModel.from_pretrained(path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("layers.0.blocks.0.attn.logit_scale", "Swin V2"),
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight", "Swin V2"),
        ("head.fc.weight", "timm's Swin"),
        ("blocks.0.attn.qkv.weight", "timm's ViT"),
        ("vit.encoder.layer.0.attention.attention.query.weight", "ViT"),
        ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
    ],
)
def test_file_of_another_family_is_refused_by_its_name(name: str, family: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"got those of {family}.*`{name}`"):
        refused(tmp_path / "other.pth", **{name: torch.zeros(4, 4)})


def test_faulty_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold 'patch_embed.proj.weight', got 1 tensors without it"):
        refused(tmp_path / "other.pth", weight=torch.zeros(2))
    tensors = write_original(tmp_path / "a.pth")
    table = "layers.1.blocks.1.attn.relative_position_bias_table"
    with pytest.raises(
        ValueError, match=r"layers.1.attention.relative_position_bias.table` must have 169 rows.*got 168"
    ):
        refused(tmp_path / "b.pth", **{**tensors, table: tensors[table][:168]})
    with pytest.raises(ValueError, match=r"got 1 without: `layers.0.blocks.0.attn.gate`"):
        refused(tmp_path / "c.pth", **{**tensors, "layers.0.blocks.0.attn.gate": torch.zeros(2)})
    torch.save({"model": tensors, "config": {"a": 1}}, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="Save the model's `state_dict"):
        SwinTransformerModel.from_pretrained(tmp_path / "whole.pth")


def test_folder_of_another_family_is_refused_by_its_name(tmp_path: Path) -> None:
    from transformers import Swinv2Config

    Swinv2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got `swinv2` in"):
        SwinTransformerModel.from_pretrained(tmp_path)


def test_folder_with_another_window_is_refused(tmp_path: Path) -> None:
    randomise(SwinModel(SwinConfig(**TINY))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "window_size": 7}))
    with pytest.raises(ValueError, match="must have 169 rows for windows of 7 x 7 patches, got 49"):
        SwinTransformerModel.from_pretrained(tmp_path)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "swin.pth").write_bytes(b"abc")
    with pytest.raises(ValueError, match="must hold tensors only, got a damaged file"):
        SwinTransformerModel.from_pretrained(tmp_path / "swin.pth")
