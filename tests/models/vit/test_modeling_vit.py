from collections.abc import Callable

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoBackbone, AutoModel, ResNetConfig, ResNetModel, TimmWrapperConfig, TimmWrapperModel

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.modeling_vit import VisionTransformerBackbone, VisionTransformerModel

STEM = {"stem_channels": (4, 8), "stem_strides": ((2, 2), (2, 1)), "patch_size": (16, 8)}
SETTINGS = {
    "plain": {},
    "stem": STEM,
    "overlapping": {"patch_size": 8, "patch_stride": 4},
    "no_prefix": {"use_cls_token": False, "pooling": "mean"},
    "distillation": {"use_distillation_token": True, "pooling": "cls"},
    "relative": {"position_embedding": "none", "relative_position_bias": "per_layer", "pooling": "mean"},
    "shared_no_cls": {"relative_position_bias": "shared", "use_cls_token": False},
    "registers": {"num_register_tokens": 3, "pooling": "cls"},
    "learned_2d": {"position_embedding": "learned_2d", "use_distillation_token": True},
    "sincos_no_cls": {"position_embedding": "sincos", "use_cls_token": False},
    "pixels": {"patch_size": 1, "image_size": (16, 64), "hidden_size": 8},
}


def tiny_model(**settings: object) -> VisionTransformerModel:
    """A model for 16 x 64 pictures, every weight random."""
    defaults = {"hidden_size": 16, "num_channels": 1, "image_size": (16, 64), "patch_size": 8}
    model = VisionTransformerModel(VisionTransformerConfig(**{**defaults, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def padded_batch(widths: list[int], padded_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pictures 16 pixels high; what lies beyond their width is noise that must not count."""
    pixel_values = torch.randn(len(widths), 1, 16, padded_width)
    pixel_mask = (torch.arange(padded_width) < torch.tensor(widths)[:, None])[:, None].repeat(1, 16, 1).long()
    return pixel_values, pixel_mask


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_padded_picture_gives_what_it_gives_alone(name: str, attention: str) -> None:
    model = tiny_model(**SETTINGS[name], attn_implementation=attention)
    widths = [8, 24, 45, 64]  # one is no multiple of the patch
    pixel_values, pixel_mask = padded_batch(widths, 64)
    together = model(pixel_values, pixel_mask)
    real = model.patch_mask(pixel_mask)
    for i, width in enumerate(widths):
        alone_width = -(-width // 8) * 8
        mask = pixel_mask[i : i + 1, :, :alone_width]
        alone = model(pixel_values[i : i + 1, :, :, :alone_width], mask)
        alone_real = model.patch_mask(mask)[0]
        got, expected = together.last_hidden_state[i][real[i]], alone.last_hidden_state[0][alone_real]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        if model.pooler is not None:
            torch.testing.assert_close(together.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_content_of_padding_does_not_count(name: str) -> None:
    model = tiny_model(**SETTINGS[name])
    pixel_values, pixel_mask = padded_batch([21, 40], 64)
    other = torch.where(pixel_mask[:, None].bool(), pixel_values, torch.randn_like(pixel_values) * 9)
    real = model.patch_mask(pixel_mask)
    got, expected = (model(pixels, pixel_mask).last_hidden_state[real] for pixels in (other, pixel_values))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_full_mask_changes_nothing(name: str) -> None:
    model = tiny_model(**SETTINGS[name])
    pixel_values = torch.randn(2, 1, 16, 64)
    full = torch.ones(2, 16, 64, dtype=torch.int64)
    torch.testing.assert_close(
        model(pixel_values, full).last_hidden_state, model(pixel_values).last_hidden_state, atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
def test_batch_without_mask_equals_singles() -> None:
    model = tiny_model(**STEM)
    pixel_values = torch.randn(3, 1, 16, 64)
    singles = torch.cat([model(picture[None]).last_hidden_state for picture in pixel_values])
    torch.testing.assert_close(model(pixel_values).last_hidden_state, singles, atol=1e-5, rtol=1e-5)


def test_patch_mask_is_true_where_any_pixel_is_real() -> None:
    model = tiny_model()
    _, pixel_mask = padded_batch([1, 8, 9, 64], 64)
    columns = [[True] * n + [False] * (8 - n) for n in (1, 1, 2, 8)]  # 8 patches of 8 pixels
    expected = torch.tensor([[True] + row * 2 for row in columns])  # CLS, then two rows of patches
    assert torch.equal(model.patch_mask(pixel_mask), expected)


@torch.no_grad()
def test_interpolation_at_run_time_equals_resize() -> None:
    for name in ("plain", "stem", "distillation", "relative", "shared_no_cls"):
        model = tiny_model(**SETTINGS[name])
        pixel_values = torch.randn(2, 1, 32, 40)
        expected = model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        model.resize(image_size=(32, 40))
        assert tuple(model.config.image_size) == (32, 40)
        torch.testing.assert_close(model(pixel_values).last_hidden_state, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_resized_model_is_saved_and_reloaded_as_such(tmp_path) -> None:
    model = tiny_model(**SETTINGS["relative"])
    model.save_pretrained(tmp_path / "first")
    model.resize(image_size=(24, 32))
    model.save_pretrained(tmp_path / "second")
    pixel_values = torch.randn(1, 1, 24, 32)
    expected = model(pixel_values).last_hidden_state
    reloaded = VisionTransformerModel.from_pretrained(tmp_path / "second")
    resized_on_loading = VisionTransformerModel.from_pretrained(tmp_path / "first", image_size=(24, 32))
    assert torch.equal(reloaded(pixel_values).last_hidden_state, expected)
    assert torch.equal(resized_on_loading(pixel_values).last_hidden_state, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_is_saved_reloaded_and_trained(name: str, tmp_path) -> None:
    model = tiny_model(**SETTINGS[name])
    model.save_pretrained(tmp_path)
    reloaded, report = VisionTransformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[key]), key
    out = model(*padded_batch([30, 64], 64))
    loss = out.last_hidden_state.square().sum() + (out.pooler_output.square().sum() if model.pooler is not None else 0)
    loss.backward()
    unused = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_missing_weights_start_as_in_a_new_model(tmp_path) -> None:
    model = VisionTransformerModel(VisionTransformerConfig(relative_position_bias="shared", layer_scale_init_value=0.1))
    kept = {"final_norm.weight": model.final_norm.weight.detach()}
    loaded = VisionTransformerModel.from_pretrained(None, config=model.config, state_dict=kept)
    for key, tensor in loaded.state_dict().items():
        assert tensor.abs().max() < 2, key
    assert torch.equal(loaded.layers[0].attention_scale, torch.full((64,), 0.1))
    assert torch.equal(
        loaded.relative_position_biases[0].table, torch.zeros_like(loaded.relative_position_biases[0].table)
    )
    assert 0.01 < loaded.embeddings.position_embedding.std() < 0.03


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny_model(**SETTINGS["relative"]).train()
    pixel_values, pixel_mask = padded_batch([30, 64], 64)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(pixel_values, pixel_mask).pooler_output.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    for reentrant in (False, True):
        for layer in model.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = lambda f, *args, r=reentrant: torch.utils.checkpoint.checkpoint(
                f, *args, use_reentrant=r
            )
        for got, wanted in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_hidden_states_and_attentions_are_recorded() -> None:
    model = tiny_model(attn_implementation="eager", num_hidden_layers=3)
    out = model(torch.randn(2, 1, 16, 64), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in out.hidden_states] == [(2, 17, 16)] * 4
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(model.final_norm(out.hidden_states[-1]), out.last_hidden_state)


@torch.no_grad()
def test_half_precision_model_takes_float32_pictures() -> None:
    model = tiny_model(**STEM).to(torch.bfloat16)
    pixel_values, pixel_mask = padded_batch([30, 64], 64)
    assert model(pixel_values, pixel_mask).last_hidden_state.dtype == torch.bfloat16


def test_drop_path_rises_from_nothing_to_its_rate() -> None:
    model = VisionTransformerModel(VisionTransformerConfig(num_hidden_layers=3, drop_path_rate=0.2))
    assert [layer.drop_path.rate for layer in model.layers] == [0.0, 0.1, 0.2]


def test_kernels_without_bias_are_refused_for_relative_positions() -> None:
    config = VisionTransformerConfig(relative_position_bias="shared", attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="does not support"):
        VisionTransformerModel(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(1, 3, 16, 64)}, r"must be \(batch, 1, height, width\), got \(1, 3, 16, 64\)"),
        ({"pixel_values": torch.zeros(1, 1, 16, 32)}, "must be of 16 x 64 pixels, got 16 x 32"),
        (
            {"pixel_values": torch.zeros(1, 1, 16, 72), "pixel_mask": torch.ones(1, 16, 72)},
            "must be at most 16 x 64 pixels, got 16 x 72",
        ),
        ({"pixel_values": torch.zeros(1, 1, 16, 64), "pixel_mask": torch.ones(1, 64)}, "`pixel_mask` must be"),
        ({"pixel_values": torch.zeros(1, 1, 4, 64), "interpolate_pos_encoding": True}, "must hold a patch"),
        ({"pixel_values": torch.zeros(1, 1, 16, 64), "bool_masked_pos": torch.ones(1, 16)}, "needs a mask token"),
        (
            {
                "pixel_values": torch.zeros(1, 1, 16, 64),
                "pixel_mask": torch.ones(1, 16, 64),
                "interpolate_pos_encoding": True,
            },
            "got both",
        ),
    ],
)
def test_unsuitable_pictures_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(**arguments)


def test_resize_below_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="a patch of 8 x 8 pixels, at least one, got 4 x 64"):
        tiny_model().resize(image_size=(4, 64))


@torch.no_grad()
def test_registers_come_between_cls_and_patches_and_have_no_position() -> None:
    model = tiny_model(num_register_tokens=3, use_distillation_token=True)
    embeddings = model.embeddings
    assert embeddings.position_embedding.shape[1] == 2 + 16 and model.num_prefix_tokens == 5
    tokens = embeddings(torch.randn(2, 1, 16, 64))
    assert torch.equal(tokens[1, 0], embeddings.cls_token[0, 0] + embeddings.position_embedding[0, 0])
    assert torch.equal(tokens[1, 1], embeddings.distillation_token[0, 0] + embeddings.position_embedding[0, 1])
    assert torch.equal(tokens[1, 2:5], embeddings.register_tokens[0])


@torch.no_grad()
def test_learned_2d_positions_are_the_columns_beside_the_rows() -> None:
    model = tiny_model(position_embedding="learned_2d")
    table = model.embeddings.positions()
    assert table.shape == (1, 1 + 2 * 8, 16)
    patch = table[0, 1 + 1 * 8 + 5]  # row 1, column 5
    assert torch.equal(patch[:8], model.embeddings.column_positions[0, 5])
    assert torch.equal(patch[8:], model.embeddings.row_positions[0, 1])


@pytest.mark.parametrize("resampling", ["linear_1d", "bilinear", "bicubic", "bicubic_antialias"])
@pytest.mark.parametrize("positions", ["learned", "learned_2d", "sincos"])
@torch.no_grad()
def test_resized_positions_are_those_of_interpolation_saved_as_such(positions: str, resampling: str, tmp_path) -> None:
    if positions == "learned_2d" and resampling == "linear_1d":
        with pytest.raises(StrictDataclassError, match="are resampled along rows and columns"):
            VisionTransformerConfig(position_embedding=positions, position_resampling=resampling)
        return
    model = tiny_model(position_embedding=positions, position_resampling=resampling)
    pixel_values = torch.randn(1, 1, 32, 40)
    expected = model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    model.resize(image_size=(32, 40))
    torch.testing.assert_close(model(pixel_values).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(reloaded(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)
    # 2-D tables are learnt, fixed ones are not.
    learnt = {name for name, _ in reloaded.named_parameters() if "position" in name}
    assert (
        learnt
        == {
            "learned": {"embeddings.position_embedding"},
            "learned_2d": {f"embeddings.{name}_positions" for name in ("prefix", "row", "column")},
            "sincos": set(),
        }[positions]
    )


@torch.no_grad()
def test_visible_patches_alone_are_looked_at() -> None:
    model = tiny_model(use_distillation_token=True)
    pixel_values = torch.randn(2, 1, 16, 64)
    visible = torch.tensor([[3, 1, 12], [0, 15, 7]])
    chosen = model(pixel_values, visible_patches=visible).last_hidden_state
    assert chosen.shape == (2, 2 + 3, 16)
    # Told by a mask instead: attention to all but those, whose positions stay.
    tokens = model.embeddings(pixel_values)
    kept = torch.cat((tokens[:, :2], tokens[:, 2:][torch.arange(2)[:, None], visible]), dim=1)
    for layer in model.layers:
        kept = layer(kept)
    torch.testing.assert_close(chosen, model.final_norm(kept))
    for wrong, message in ((visible + 8, "from 0 to 15, got 8 to 23"), (visible[:1], r"int64 \(2, number of them\)")):
        with pytest.raises(ValueError, match=message):
            model(pixel_values, visible_patches=wrong)
    with pytest.raises(ValueError, match="can't be combined with a `pixel_mask`"):
        model(pixel_values, pixel_mask=torch.ones(2, 16, 64), visible_patches=visible)


@torch.no_grad()
def test_maps_are_the_patches_of_the_chosen_layers() -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 3, "num_register_tokens": 2, "image_size": (16, 64)}
    model = VisionTransformerBackbone(VisionTransformerConfig(**settings, out_features=["stem", "stage2"])).eval()
    assert model.channels == [16, 16]
    pixel_values = torch.randn(2, 3, 16, 64)
    maps = model(pixel_values).feature_maps
    hidden_states = model.vision_model(pixel_values, output_hidden_states=True).hidden_states
    assert [tuple(features.shape) for features in maps] == [(2, 16, 2, 8)] * 2
    expected = model.vision_model.final_norm(hidden_states[2])[1, 3 + 8 + 5]  # row 1, column 5
    torch.testing.assert_close(maps[1][1, :, 1, 5], expected)
    assert type(AutoBackbone.from_config(model.config)) is VisionTransformerBackbone


def resnet(**settings: object) -> ResNetModel:
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], **settings)).eval()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_patches_of_a_cnn_are_its_feature_map(is_frozen: bool, tmp_path) -> None:
    cnn = resnet()
    cnn.save_pretrained(tmp_path / "cnn")
    model = VisionTransformerModel.from_pretrained_parts(
        backbone=str(tmp_path / "cnn"), image_size=64, hidden_size=16, freeze_backbone=is_frozen
    )
    pixel_values = torch.randn(2, 3, 64, 64)
    features = cnn(pixel_values).last_hidden_state  # (2, 8, 8, 8)
    model.train()
    assert model.embeddings.backbone.training == (not is_frozen)
    model.eval()
    weight, bias = model.embeddings.patch_embedding.projection.weight, model.embeddings.patch_embedding.projection.bias
    patches = torch.einsum("bchw,oc->bhwo", features, weight[:, :, 0, 0]).flatten(1, 2) + bias
    expected = patches + model.embeddings.position_embedding[:, 1:]
    torch.testing.assert_close(model.embeddings(pixel_values)[:, 1:], expected)

    outputs = model(pixel_values)
    assert outputs.last_hidden_state.shape == (2, 1 + 64, 16) and model.grid_size(64, 64) == (8, 8)
    outputs.last_hidden_state.sum().backward()
    learnt = {parameter.grad is not None for parameter in model.embeddings.backbone.parameters()}
    assert learnt == {not is_frozen}

    model.save_pretrained(tmp_path / "vit")
    reloaded = AutoModel.from_pretrained(tmp_path / "vit")
    assert torch.equal(reloaded(pixel_values).last_hidden_state, outputs.last_hidden_state)
    assert all(parameter.requires_grad != is_frozen for parameter in reloaded.embeddings.backbone.parameters())
    reloaded.resize(image_size=(32, 64))
    assert reloaded.grid_size(32, 64) == (4, 8)
    assert reloaded(torch.randn(1, 3, 32, 64)).last_hidden_state.shape == (1, 33, 16)
    with pytest.raises(ValueError, match="`image_size` must be at least 1 x 1 pixels, got 0 x 0"):
        reloaded.resize(image_size=0)


@torch.no_grad()
def test_an_earlier_map_of_a_timm_cnn_can_be_cut_into_patches() -> None:
    cnn = TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet", num_classes=0))
    settings = {"image_size": 64, "hidden_size": 16, "patch_size": 2}
    last = VisionTransformerModel.from_pretrained_parts(backbone=cnn, **{**settings, "patch_size": 1}).eval()
    earlier = VisionTransformerModel.from_pretrained_parts(backbone=cnn, backbone_layer=-2, **settings).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    hidden_states = cnn.eval()(pixel_values, output_hidden_states=True).hidden_states
    rows, columns = hidden_states[-2].shape[-2:]
    assert earlier.grid_size(64, 64) == (rows // 2, columns // 2)
    assert earlier(pixel_values).last_hidden_state.shape[1] == 1 + rows // 2 * (columns // 2)
    torch.testing.assert_close(earlier.embeddings._feature_map(pixel_values), hidden_states[-2])
    assert last.grid_size(64, 64) == tuple(hidden_states[-1].shape[-2:])
    with pytest.raises(ValueError, match=r"hidden states, got -99. Count from -1"):
        VisionTransformerModel.from_pretrained_parts(backbone=cnn, backbone_layer=-99, **settings)


def test_published_sizes_have_the_parameters_of_timms() -> None:
    peers = {"vit-ti": "tiny_patch16", "vit-s": "small_patch16", "vit-b": "base_patch16", "vit-l": "large_patch16"}
    for name, peer in {**peers, "vit-h": "huge_patch14"}.items():
        with torch.device("meta"):
            model = VisionTransformerForImageClassification(VisionTransformerConfig.preset(name, num_labels=1000))
            theirs = timm.create_model(f"vit_{peer}_224", num_classes=1000)
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters()), name
    with pytest.raises(ValueError, match="one of vit-ti, vit-s, vit-b, vit-l, vit-h, got `vit-g`"):
        VisionTransformerConfig.preset("vit-g")


@pytest.mark.parametrize("name", ["plain", "relative", "registers", "learned_2d", "overlapping"])
@torch.no_grad()
def test_compiled_whole_gives_the_same(name: str) -> None:
    model = tiny_model(**SETTINGS[name])
    pixel_values = torch.randn(2, 1, 16, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)


@torch.no_grad()
def test_compiled_attends_without_a_mask_when_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    # What compilers of torch before 2.14 put in place of `torch.compiler.is_exporting()`.
    monkeypatch.setattr("transformers.masking_utils.is_torchdynamo_exporting", lambda: True)
    model = tiny_model(num_hidden_layers=2, attn_implementation="sdpa")
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compile(model, backend=keep)(torch.randn(2, 1, 16, 64))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    masks = [node.kwargs["attn_mask"] for graph in graphs for node in graph.graph.nodes if node.target is sdpa]
    assert len(graphs) == 1 and masks == [None, None]


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({}, (17, 64), "of 8 x 8 pixels, got 17 x 64: the last 1 rows and 0 columns .* to 16 x 64"),
        ({"patch_stride": 4}, (16, 66), "every 4 x 4, got 16 x 66: the last 0 rows and 2 columns"),
    ],
)
def test_pixels_beyond_whole_patches_are_refused(settings: dict, size: tuple[int, int], message: str) -> None:
    model = tiny_model(**settings)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 1, *size), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=f"`image_size` must be a whole number of .*{message}"):
        model.resize(image_size=size)


def test_pixel_that_is_no_number_is_refused() -> None:
    pixel_values = torch.zeros(3, 1, 16, 64)
    pixel_values[2, 0, 5, 5] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinity in picture 2 of the batch of 3"):
        tiny_model()(pixel_values)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 1, 16, 64, dtype=torch.uint8), "must be float, got torch.uint8"),
        (torch.zeros(0, 1, 16, 64), "got a batch of none"),
    ],
)
def test_pictures_of_the_wrong_kind_are_refused(pixel_values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(pixel_values)


@pytest.mark.parametrize("size", [32.0, "64", (1, 2, 3), (32.0, 32)])
def test_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"must be one whole number or \(height, width\), got"):
        tiny_model().resize(image_size=size)
