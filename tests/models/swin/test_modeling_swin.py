import copy

import pytest
import torch
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification

from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.modeling_swin import (
    PatchMerging,
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
)
from tests.model_contract import ModelContract
from tests.models.swin.tiny_swin import TINY, randomise, tiny_swin


class TestSwinTransformerForImageClassification(ModelContract):
    model_class = SwinTransformerForImageClassification
    auto_class = AutoModelForImageClassification

    def config(self):
        return SwinTransformerConfig(**TINY, num_labels=5, drop_path_rate=0.0, num_linear_layers=2)

    def batch(self, model):
        torch.manual_seed(0)
        return {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 3, 1])}


@torch.no_grad()
def test_any_picture_size_is_taken() -> None:
    model = tiny_swin(window_size=7)
    for height, width in [(1, 1), (28, 28), (33, 50), (5, 64)]:
        outputs = model(torch.randn(2, 3, height, width))
        rows, columns = model.grid_size(height, width)
        assert outputs.last_hidden_state.shape == (2, rows * columns, 16)
        torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(1))


@torch.no_grad()
def test_picture_of_28_pixels_goes_through_windows_of_7() -> None:
    # Maps of 7, 4, 2 and 1 patches: transformers' own model fails on it.
    config = SwinTransformerConfig.preset("swin-t", embed_dim=12, depths=(1, 1, 1, 1), image_size=28)
    model = SwinTransformerModel(config).eval()
    assert model(torch.randn(1, 3, 28, 28)).last_hidden_state.shape == (1, 1, 96)


@torch.no_grad()
def test_small_picture_leaves_no_trace() -> None:
    model = tiny_swin()
    pixel_values = torch.randn(1, 3, 32, 32)
    expected = model(pixel_values).last_hidden_state
    model(torch.randn(1, 3, 4, 4))
    assert torch.equal(model(pixel_values).last_hidden_state, expected)


@torch.no_grad()
def test_merging_takes_the_four_neighbours_column_by_column() -> None:
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    numbered = torch.arange(15.0).view(1, 15, 1)  # 3 x 5: a row and a column of zeros are added
    merged = merging(numbered, (3, 5))
    assert merged[0].tolist() == [
        [0, 5, 1, 6], [2, 7, 3, 8], [4, 9, 0, 0], [10, 0, 11, 0], [12, 0, 13, 0], [14, 0, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"use_absolute_positions": True}], ids=str)
@torch.no_grad()
def test_resized_model_is_saved_and_reloaded_as_such(settings: dict, tmp_path) -> None:
    model = tiny_swin(SwinTransformerForImageClassification, **settings)
    model.save_pretrained(tmp_path / "first")
    model.resize(image_size=(24, 40), window_size=(6, 3))
    model.save_pretrained(tmp_path / "second")
    pixel_values = torch.randn(1, 3, 24, 40)
    expected = model(pixel_values).logits
    sizes = {"image_size": (24, 40), "window_size": (6, 3)}
    for reloaded in (
        SwinTransformerForImageClassification.from_pretrained(tmp_path / "second"),
        AutoModelForImageClassification.from_pretrained(tmp_path / "second"),
        SwinTransformerForImageClassification.from_pretrained(tmp_path / "first", **sizes),
        AutoModelForImageClassification.from_pretrained(tmp_path / "first", **sizes),
    ):
        assert torch.equal(reloaded(pixel_values).logits, expected)
        assert tuple(reloaded.config.window_size) == (6, 3) and tuple(reloaded.config.image_size) == (24, 40)
    table = reloaded.vision_model.stages[0].layers[0].attention.relative_position_bias.table
    assert table.shape == (11 * 5, 2)


@torch.no_grad()
def test_larger_window_alone_changes_the_tables_only(tmp_path) -> None:
    model = tiny_swin()
    before = copy.deepcopy(model.state_dict())
    model.resize(window_size=8)
    changed = {name for name, tensor in model.state_dict().items() if tensor.shape != before[name].shape}
    assert changed == {name for name in before if name.endswith("relative_position_bias.table")}
    assert len(changed) == 4


def test_parameter_counts_are_the_papers() -> None:
    # Table 1 of the paper, in millions; L: table 1b.
    for name, millions in {"swin-t": 29, "swin-s": 50, "swin-b": 88, "swin-l": 197}.items():
        with torch.device("meta"):
            config = SwinTransformerConfig.preset(name, num_labels=1000)
            model = SwinTransformerForImageClassification(config)
        # The paper rounds 28.3 up.
        assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1e6 - millions) < 0.8, name
    with pytest.raises(ValueError, match="one of swin-t, swin-s, swin-b, swin-l, got `swin-xl`"):
        SwinTransformerConfig.preset("swin-xl")


def test_drop_path_acts_on_both_branches_and_rises_over_all_stages() -> None:
    model = SwinTransformerModel(SwinTransformerConfig(depths=(2, 2), drop_path_rate=0.3))
    rates = [layer.drop_path.rate for stage in model.stages for layer in stage.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    layer = model.stages[1].layers[1].train()
    layer.drop_path.rate = 1 - 1e-9  # every branch of every picture is left out
    hidden = torch.randn(2, 16, 32)
    assert torch.equal(layer(hidden, grid=(4, 4)), hidden)


@torch.no_grad()
def test_maps_are_the_stages_before_merging() -> None:
    model = tiny_swin(SwinTransformerBackbone, out_features=["stem", "stage1", "stage2"])
    outputs = model(torch.randn(2, 3, 32, 48))
    assert [tuple(features.shape) for features in outputs.feature_maps] == [
        (2, 8, 16, 24), (2, 8, 16, 24), (2, 16, 8, 12),
    ]  # fmt: skip
    hidden_states = model(torch.randn(1, 3, 32, 48), output_hidden_states=True).hidden_states
    assert [tuple(states.shape) for states in hidden_states] == [(1, 384, 8), (1, 96, 16), (1, 96, 16)]


def test_backbone_is_served_by_its_auto_class_and_takes_the_encoders_weights(tmp_path) -> None:
    model = tiny_swin()
    model.save_pretrained(tmp_path)
    config = SwinTransformerConfig(**TINY, out_features=["stage1"])
    assert type(AutoBackbone.from_config(config)) is SwinTransformerBackbone
    backbone = SwinTransformerBackbone.from_pretrained(tmp_path, out_features=["stage1"])
    assert backbone.out_features == ["stage1"] and list(backbone.feature_norms) == ["stage1"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(backbone.state_dict()[f"vision_model.{name}"], tensor)


def test_reset_head_is_a_zero_layer_for_the_new_classes() -> None:
    model = tiny_swin(SwinTransformerForImageClassification, num_linear_layers=2)
    model.reset_head(id2label={0: "cat", 1: "dog", 2: "eel"})
    logits = model(torch.randn(2, 3, 32, 32)).logits
    assert torch.equal(logits, torch.zeros(2, 3))
    assert model.config.num_labels == 3 and model.config.label2id["eel"] == 2
    assert model.config.num_linear_layers == 1 and len(model.classifier.hidden_layers) == 0
    for arguments in ({"num_labels": 2, "id2label": {0: "a"}}, {"id2label": {1: "a"}}):
        with pytest.raises(ValueError, match="`id2label` must name the classes 0 to"):
            model.reset_head(**arguments)


def test_compiled_whole_gives_the_same() -> None:
    model = tiny_swin(window_size=3)
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
        torch.testing.assert_close(compiled(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_every_window_meets_a_bias_that_fused_kernels_of_a_gpu_take(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, strides = torch.nn.functional.scaled_dot_product_attention, []

    def noting(*args, attn_mask, **kwargs):
        strides.append(attn_mask.stride(-1))
        return attend(*args, attn_mask=attn_mask, **kwargs)

    def noting_graph(graph, example_inputs):
        masks = [node.kwargs["attn_mask"] for node in graph.graph.nodes if node.target is attend]
        strides.extend(mask.meta["example_value"].stride(-1) for mask in masks)
        return graph.forward

    model = tiny_swin(attn_implementation="sdpa")
    if compiled:
        model = torch.compile(model, backend=noting_graph, dynamic=False)
    else:
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    model(torch.randn(1, 3, 32, 32))
    assert len(strides) >= 4 and set(strides) == {1}


@torch.no_grad()
def test_half_precision_model_takes_float32_pictures() -> None:
    model = tiny_swin().to(torch.bfloat16)
    assert model(torch.randn(1, 3, 32, 32)).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 1, 32, 32), r"must be \(batch, 3, height, width\), got \(1, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"got \(3, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32), "must hold a pixel, got 0 x 32"),
        (
            torch.tensor([0.0, float("nan")])[:, None, None, None].expand(2, 3, 32, 32),
            "got NaN or infinity in picture 1",
        ),
    ],
)
def test_unsuitable_pictures_are_refused(pixel_values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_swin()(pixel_values)


def test_unsuitable_sizes_are_refused() -> None:
    model = tiny_swin(use_absolute_positions=True)
    with pytest.raises(ValueError, match="for absolute positions, got 32 x 34"):
        model(torch.zeros(1, 3, 32, 34))
    with pytest.raises(ValueError, match=r"at least one patch, \(2, 2\), got \(1, 4\)"):
        model.resize(image_size=(1, 4))
    with pytest.raises(ValueError, match="`window_size` must be at least one patch, got 0"):
        model.resize(window_size=0)


def test_head_is_new_where_the_folder_has_none(tmp_path) -> None:
    randomise(SwinTransformerModel(SwinTransformerConfig(**TINY))).save_pretrained(tmp_path)
    model = SwinTransformerForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)
    assert type(AutoModel.from_pretrained(tmp_path)) is SwinTransformerModel
