"""Tokens of any vision model, row by row. Oracle for places: change one patch, and its token must move most."""

import time
from typing import Any

import pytest
import torch
import transformers as hub
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedConfig
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.parts import vision_features as module
from hf_vlm.parts.vision_features import (
    VisionDescription,
    configured_image_size,
    describe_vision_model,
    load_vision_model,
    show_every_patch,
    vision_features,
)

TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}


def timm_config(architecture: str, **model_args: Any) -> PreTrainedConfig:
    return hub.TimmWrapperConfig(architecture=architecture, do_pooling=False, model_args=model_args)


# name -> (config, what a picture of the configured size becomes)
MODELS: dict[str, tuple[PreTrainedConfig, VisionDescription]] = {
    "ours": (VisionTransformerConfig(hidden_size=32), VisionDescription(32, (4, 4), 1, (32, 32))),
    "ours with a stem": (
        VisionTransformerConfig(
            hidden_size=32, image_size=(16, 64), patch_size=(16, 8), stem_channels=(4, 8), use_cls_token=False
        ),
        VisionDescription(32, (1, 8), 0, (16, 64)),
    ),
    "vit": (hub.ViTConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 1, (32, 32))),
    "vit for lines": (
        hub.ViTConfig(**TRANSFORMER | {"image_size": (16, 48)}),
        VisionDescription(32, (2, 6), 1, (16, 48)),
    ),
    "deit": (hub.DeiTConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 2, (32, 32))),
    "beit": (
        hub.BeitConfig(**TRANSFORMER, use_relative_position_bias=True),
        VisionDescription(32, (4, 4), 1, (32, 32)),
    ),
    "dinov2": (hub.Dinov2Config(**DINOV2), VisionDescription(32, (2, 2), 1, (28, 28))),
    "dinov2 with registers": (
        hub.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=3),
        VisionDescription(32, (2, 2), 4, (28, 28)),
    ),
    "dinov3": (hub.DINOv3ViTConfig(**TRANSFORMER, num_register_tokens=2), VisionDescription(32, (4, 4), 3, (32, 32))),
    "swin": (hub.SwinConfig(**SWIN), VisionDescription(16, (8, 8), 0, (32, 32))),
    "donut swin": (hub.DonutSwinConfig(**SWIN), VisionDescription(16, (8, 8), 0, (32, 32))),
    "clip": (hub.CLIPVisionConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 1, (32, 32))),
    "siglip": (hub.SiglipVisionConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 0, (32, 32))),
    "aimv2": (hub.Aimv2VisionConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 0, (32, 32))),
    "i-jepa": (hub.IJepaConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 0, (32, 32))),
    "msn": (hub.ViTMSNConfig(**TRANSFORMER), VisionDescription(32, (4, 4), 1, (32, 32))),
    "convnext": (hub.ConvNextConfig(**STAGES, image_size=64), VisionDescription(32, (2, 2), 0, (64, 64))),
    "dinov3 convnext": (hub.DINOv3ConvNextConfig(**STAGES, image_size=64), VisionDescription(32, (2, 2), 1, (64, 64))),
    "pvt v2": (
        hub.PvtV2Config(**STAGES, num_attention_heads=[1, 1, 2, 2], image_size=64),
        VisionDescription(32, (2, 2), 0, (64, 64)),
    ),
    "vit-mae": (
        hub.ViTMAEConfig(**TRANSFORMER, decoder_hidden_size=16, decoder_num_attention_heads=2),
        VisionDescription(32, (4, 4), 1, (32, 32)),
    ),
    "yolos": (
        hub.YolosConfig(**TRANSFORMER | {"image_size": [32, 32]}, num_detection_tokens=5),
        VisionDescription(32, (4, 4), 1, (32, 32)),
    ),
    "resnet": (
        hub.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        VisionDescription(16, (28, 28), 0, (224, 224)),
    ),
}
TIMM_MODELS = {
    "timm vit": (
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}),
        VisionDescription(32, (4, 4), 1, (32, 32)),
    ),
    "timm swin": (  # the one layout with channels last
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
        ),
        VisionDescription(16, (8, 8), 0, (64, 64)),
    ),
    "timm resnet": (
        ("resnet10t", {"channels": (8, 8, 8, 8), "stem_width": 8}),
        VisionDescription(8, (7, 7), 0, (224, 224)),
    ),
}
# A receptive field much wider than a patch lets a neighbour of the changed patch move as much in a random network.
WIDE_FIELDS = {"resnet", "timm resnet"}


def build(config: PreTrainedConfig) -> torch.nn.Module:
    return AutoModel.from_config(show_every_patch(config)).eval()


def every_model() -> list:
    models = [pytest.param(config, expected, name, id=name) for name, (config, expected) in MODELS.items()]
    for name, ((architecture, arguments), expected) in TIMM_MODELS.items():
        models.append(pytest.param((architecture, arguments), expected, name, id=name))
    return models


@pytest.mark.parametrize(("config", "expected", "name"), every_model())
@torch.no_grad()
def test_tokens_are_as_described_and_lie_where_their_patches_are(config, expected, name):
    if isinstance(config, tuple):
        pytest.importorskip("timm")
        config = timm_config(config[0], **config[1])
    description = describe_vision_model(config)
    assert description == expected
    model = build(config)
    height, width = expected.image_size
    rows, columns = expected.grid
    picture = torch.randn(1, config.to_dict().get("num_channels", 3), height, width)
    tokens = vision_features(model, picture)
    assert tokens.mask is None
    assert tokens.features.shape == (1, expected.num_tokens, expected.hidden_size)
    assert torch.equal(vision_features(model, picture).features, tokens.features)  # ViT-MAE shuffles if it may
    for row, column in {(0, 0), (0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)}:
        changed = picture.clone()
        patch = changed[
            ...,
            row * height // rows : (row + 1) * height // rows,
            column * width // columns : (column + 1) * width // columns,
        ]
        patch += torch.randn(patch.shape)
        moved = (vision_features(model, changed).features - tokens.features)[0, expected.num_prefix_tokens :].norm(
            dim=-1
        )
        assert moved.max() > 0
        got_row, got_column = divmod(int(moved.argmax()), columns)
        reach = 1 if name in WIDE_FIELDS else 0
        assert abs(got_row - row) <= reach and abs(got_column - column) <= reach


def test_sizes_are_read_from_every_kind_of_config():
    assert configured_image_size(hub.ViTConfig(image_size=(16, 48))) == (16, 48)
    assert configured_image_size(hub.ResNetConfig()) == (224, 224)
    pytest.importorskip("timm")
    assert configured_image_size(timm_config("vit_tiny_patch16_224", img_size=(16, 64))) == (16, 64)
    pretrained = hub.TimmWrapperConfig(architecture="resnet10t", pretrained_cfg={"input_size": [3, 176, 160]})
    assert configured_image_size(pretrained) == (176, 160)


@pytest.mark.parametrize("name", ["ours", "vit", "swin", "convnext"])
@torch.no_grad()
def test_other_sizes_are_described_as_they_come_out(name):
    config, _ = MODELS[name]
    size = (64, 96)
    description = describe_vision_model(config, size)
    tokens = vision_features(build(config), torch.randn(1, 3, *size), interpolate_pos_encoding=True).features
    assert tokens.shape[1:] == (description.num_tokens, description.hidden_size)
    assert description.grid[1] * 2 == description.grid[0] * 3


@torch.no_grad()
def test_mask_of_a_hub_encoder_marks_every_patch_with_a_pixel_of_the_picture():
    config, _ = MODELS["deit"]
    pixel_mask = torch.zeros(3, 32, 32, dtype=torch.long)
    for row, (height, width) in enumerate([(32, 32), (32, 9), (16, 8)]):
        pixel_mask[row, :height, :width] = 1
    mask = vision_features(build(config), torch.randn(3, 3, 32, 32), pixel_mask).mask
    grids = [(4, 4), (4, 2), (2, 1)]
    expected = [
        [True, True] + [row < rows and column < columns for row in range(4) for column in range(4)]
        for rows, columns in grids
    ]
    assert mask.tolist() == expected


@torch.no_grad()
def test_mask_of_a_hierarchical_encoder_follows_its_last_grid():
    config, _ = MODELS["swin"]  # 8 x 8 tokens of 4 pixels
    pixel_mask = torch.zeros(1, 32, 32, dtype=torch.long)
    pixel_mask[:, :, :13] = 1
    mask = vision_features(build(config), torch.randn(1, 3, 32, 32), pixel_mask).mask
    assert mask.view(8, 8).tolist() == [[True] * 4 + [False] * 4] * 8


@torch.no_grad()
def test_own_encoder_sees_no_padding():
    config = VisionTransformerConfig(hidden_size=32, image_size=(16, 64), use_cls_token=False)
    model = build(config)
    pixel_mask = torch.zeros(2, 16, 48, dtype=torch.long)
    pixel_mask[0], pixel_mask[1, :, :24] = 1, 1
    pictures = torch.randn(2, 3, 16, 48)
    together = vision_features(model, pictures, pixel_mask)
    alone = vision_features(model, pictures[1:, ..., :24], pixel_mask[1:, :, :24])
    torch.testing.assert_close(together.features[1][together.mask[1]], alone.features[0], atol=1e-5, rtol=0)
    assert together.mask[1].sum() == 2 * 3


def test_description_is_made_once_and_asking_again_is_fast(monkeypatch):
    module._described.cache_clear()
    built = []
    original = AutoModel.from_config
    monkeypatch.setattr(module.AutoModel, "from_config", lambda config: built.append(config) or original(config))
    config, _ = MODELS["vit"]
    model = build(config)
    built.clear()
    pixel_mask = torch.ones(1, 32, 32, dtype=torch.long)
    for _ in range(5):
        vision_features(model, torch.randn(1, 3, 32, 32), pixel_mask)
    assert len(built) == 1
    start = time.perf_counter()
    for _ in range(10):
        describe_vision_model(model.config)
    assert (time.perf_counter() - start) / 10 < 0.01  # seconds; building takes some hundred milliseconds


def test_describing_leaves_nothing_behind_that_the_real_model_would_read():
    # BEiT's table of relative positions is made in `forward` and kept for the whole process. One made on the meta device
    # has no content, and every later picture would be read through it.
    config = hub.BeitConfig(**TRANSFORMER | {"image_size": 24}, use_relative_position_bias=True)
    with torch.device("meta"):  # as within `from_pretrained`
        describe_vision_model(config)
    assert BeitRelativePositionBias.generate_relative_position_index((3, 3)).device.type == "cpu"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(hub.BertConfig(hidden_size=16, num_attention_heads=2), "`bert`, which failed", id="text"),
        pytest.param(
            hub.Siglip2VisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
            "`siglip2_vision_model`, which failed",
            id="patches instead of pictures",
        ),
    ],
)
def test_model_that_takes_no_plain_pictures_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        describe_vision_model(config)


def test_model_that_gives_one_vector_only_is_refused(monkeypatch):
    class Pooled(torch.nn.Module):
        config = hub.ViTConfig(**TRANSFORMER)

        def forward(self, pixel_values, output_hidden_states=False):
            return hub.modeling_outputs.BaseModelOutputWithPooling(pooler_output=pixel_values.mean((2, 3)))

    module._described.cache_clear()
    monkeypatch.setattr(module.AutoModel, "from_config", lambda config: Pooled())
    with pytest.raises(ValueError, match="tokens or a feature map, got no such output from `Pooled`"):
        describe_vision_model(hub.ViTConfig(**TRANSFORMER))
    module._described.cache_clear()


# Loading


def randomised(model: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}


def clip() -> Any:
    return hub.CLIPModel(
        hub.CLIPConfig(
            vision_config=TRANSFORMER, text_config=TEXT | {"eos_token_id": 2, "bos_token_id": 1}, projection_dim=8
        )
    )


def siglip() -> Any:
    return hub.SiglipModel(
        hub.SiglipConfig(vision_config=TRANSFORMER, text_config=TEXT | {"eos_token_id": 2, "bos_token_id": 1})
    )


def aimv2() -> Any:
    return hub.Aimv2Model(hub.Aimv2Config(vision_config=TRANSFORMER, text_config=TEXT, projection_dim=8))


def llava() -> Any:
    text = hub.LlamaConfig(**TEXT, num_key_value_heads=2)
    return hub.LlavaForConditionalGeneration(
        hub.LlavaConfig(vision_config=hub.CLIPVisionConfig(**TRANSFORMER), text_config=text, image_token_index=3)
    )


WHOLE_MODELS = {"clip": clip, "siglip": siglip, "aimv2": aimv2, "llava": llava}


@pytest.mark.parametrize("name", WHOLE_MODELS)
@torch.no_grad()
def test_tower_of_a_whole_model_is_loaded_with_its_own_weights(name, tmp_path):
    whole = randomised(WHOLE_MODELS[name]())
    whole.save_pretrained(tmp_path)
    tower, report = load_vision_model(tmp_path)
    picture = torch.randn(1, 3, 32, 32)
    expected = whole.get_encoder(modality="image")(picture).last_hidden_state
    assert torch.equal(tower(picture).last_hidden_state, expected)
    assert set(report["copied"]) | set(report["new"]) == set(tower.state_dict())
    assert not report["new"]
    by_instance, _ = load_vision_model(whole)
    assert torch.equal(by_instance(picture).last_hidden_state, expected)


@pytest.mark.parametrize(
    "name", ["vit", "deit", "beit", "dinov2", "swin", "clip", "siglip", "convnext", "yolos", "ours"]
)
@torch.no_grad()
def test_encoder_is_loaded_from_its_folder_exactly(name, tmp_path):
    config, _ = MODELS[name]
    model = randomised(build(config))
    model.save_pretrained(tmp_path)
    loaded, report = load_vision_model(tmp_path)
    assert type(loaded) is type(model)
    picture = torch.randn(1, 3, *configured_image_size(config))
    assert torch.equal(vision_features(loaded, picture).features, vision_features(model, picture).features)
    assert sorted(report["copied"]) == sorted(model.state_dict()) and not report["new"]


def test_unused_pooler_may_be_new_and_is_reported(tmp_path):
    hub.ViTForImageClassification(hub.ViTConfig(**TRANSFORMER)).save_pretrained(tmp_path)
    _, report = load_vision_model(tmp_path)
    assert sorted(report["new"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert all("classifier" in name for name in report["dropped"]) and report["dropped"]


def test_encoder_that_lacks_weights_is_refused(tmp_path):
    hub.ViTModel(hub.ViTConfig(**TRANSFORMER)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must come from .*, got none for 16 tensors"):
        load_vision_model(tmp_path)


def test_text_model_as_a_tower_is_refused(tmp_path):
    encoder = hub.ViTConfig(**TRANSFORMER)
    decoder = hub.TrOCRConfig(
        vocab_size=30, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16
    )
    config = hub.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = hub.VisionEncoderDecoderModel(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got `vision-encoder-decoder` in .*or the loaded encoder itself"):
        load_vision_model(tmp_path)
    loaded, _ = load_vision_model(model.encoder)
    assert loaded is model.encoder


def test_half_precision_folder_is_loaded_in_single_precision(tmp_path):
    hub.ViTModel(hub.ViTConfig(**TRANSFORMER)).half().save_pretrained(tmp_path)
    assert load_vision_model(tmp_path)[0].dtype == torch.float32
    assert load_vision_model(tmp_path, dtype=torch.float16)[0].dtype == torch.float16
