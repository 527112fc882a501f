"""Oracles: transformers' BEiT and ViT-MAE, with every parameter random."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedImageModeling,
    BeitConfig,
    BeitForMaskedImageModeling,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.masked_image_modeling import (
    VisionTransformerForMaskedImageModeling,
    cut_into_patches,
    join_patches,
)
from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from tests.model_contract import ModelContract
from tests.models.vit.test_weights_vit import random_model

MAE = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


class TestCodes(ModelContract):
    model_class = VisionTransformerForMaskedImageModeling
    auto_class = AutoModelForMaskedImageModeling

    def config(self):
        return VisionTransformerConfig(
            hidden_size=32, masked_image_target="codes", num_codes=11, relative_position_bias="shared"
        )

    def batch(self, model):
        torch.manual_seed(0)
        return {
            "pixel_values": torch.randn(3, 3, 32, 32),
            "bool_masked_pos": torch.rand(3, 16) < 0.5,
            "code_ids": torch.randint(11, (3, 4, 4)),
        }


class TestPixels(TestCodes):
    steps = 60

    def config(self):
        return VisionTransformerConfig(hidden_size=32, position_embedding="sincos")

    def batch(self, model):
        torch.manual_seed(0)
        hidden = torch.zeros(3, 16, dtype=torch.bool)
        hidden[0, ::2] = hidden[1, :8] = hidden[2, 4:12] = True
        return {"pixel_values": torch.randn(3, 3, 32, 32), "bool_masked_pos": hidden}

    def test_reloads_through_its_auto_class(self, tmp_path) -> None:
        model = self.model()
        model.save_pretrained(tmp_path)
        reloaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
        batch = self.batch(model)
        assert torch.equal(reloaded(**batch).reconstruction, model(**batch).reconstruction)

    def test_saved_and_reloaded_model_gives_equal_outputs(self, tmp_path) -> None:
        """The test above says it; what the contract compares, this model has not."""

    def test_batch_equals_singles(self) -> None:
        model = self.model()
        batch = self.batch(model)
        together = model(**batch).reconstruction
        for row in range(3):
            alone = model(**{name: value[row : row + 1] for name, value in batch.items()}).reconstruction
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)

    def test_attention_implementations_agree(self) -> None:
        model = self.model()
        batch = self.batch(model)
        expected = model(**batch).reconstruction
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**batch).reconstruction, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_codes_equal_the_home_implementation(use_mean_pooling: bool, tmp_path: Path) -> None:
    settings = {
        "use_shared_relative_position_bias": True,
        "use_mask_token": True,
        "use_mean_pooling": use_mean_pooling,
        "vocab_size": 13,
    }
    theirs = random_model(BeitForMaskedImageModeling, BeitConfig, settings)
    theirs.save_pretrained(tmp_path)
    ours, report = VisionTransformerForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixel_values, hidden, codes = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.4, torch.randint(13, (2, 16))
    with torch.no_grad():
        expected = theirs(pixel_values, bool_masked_pos=hidden, labels=codes[hidden])
        got = ours(pixel_values, bool_masked_pos=hidden, code_ids=codes.view(2, 4, 4))
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pixels_equal_the_home_implementation(norm_pix_loss: bool, tmp_path: Path) -> None:
    theirs = random_model(ViTMAEForPreTraining, ViTMAEConfig, {**MAE, "norm_pix_loss": norm_pix_loss})
    theirs.save_pretrained(tmp_path)
    ours, report = VisionTransformerForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixel_values, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        expected = theirs(pixel_values, noise=noise)
        got = ours(pixel_values, bool_masked_pos=expected.mask.bool())
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-4, rtol=1e-4)
    if not norm_pix_loss:
        drawn = theirs.unpatchify(expected.logits)
        torch.testing.assert_close(got.reconstruction, drawn, atol=1e-4, rtol=1e-4)
    # A classifier takes the encoder alone.
    VisionTransformerForImageClassification.from_pretrained(tmp_path)
    base = VisionTransformerModel.from_pretrained(tmp_path)
    theirs.vit.config.mask_ratio = 0.0
    seen = theirs.vit(pixel_values, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    torch.testing.assert_close(base(pixel_values).last_hidden_state, seen, atol=1e-4, rtol=1e-4)


def tiny(**settings: object) -> VisionTransformerForMaskedImageModeling:
    torch.manual_seed(0)
    return VisionTransformerForMaskedImageModeling(VisionTransformerConfig(**{"hidden_size": 16, **settings})).eval()


def test_any_encoder_can_be_pre_trained_further(tmp_path: Path) -> None:
    random_model(ViTModel, ViTConfig, {}).save_pretrained(tmp_path)
    model = VisionTransformerForMaskedImageModeling.from_pretrained(
        tmp_path, masked_image_target="codes", num_codes=9, use_mask_token=True
    )
    assert torch.equal(model.vision_model.embeddings.mask_token, torch.zeros(1, 1, 24))
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 16, 9)


@torch.no_grad()
def test_drawn_masks_follow_the_config() -> None:
    for settings, num_hidden in [({}, 12), ({"mask_ratio": 0.5}, 8), ({"masked_image_target": "codes"}, 7)]:
        model = tiny(**settings)
        masks = [model(torch.randn(4, 3, 32, 32)).bool_masked_pos for _ in range(2)]
        assert masks[0].sum(dim=1).tolist() == [num_hidden] * 4
        assert not torch.equal(*masks)


@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_encoder() -> None:
    model = tiny()
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[:, 5] = True
    pixel_values = torch.randn(1, 3, 32, 32)
    changed = pixel_values.clone()
    changed[:, :, 8:16, 8:16] += 1.5  # patch 5 of 4 x 4; a shift leaves its own mean and deviation to add back
    before, after = (model(pixels, bool_masked_pos=hidden).reconstruction for pixels in (pixel_values, changed))
    elsewhere = torch.ones(32, 32, dtype=torch.bool)
    elsewhere[8:16, 8:16] = False
    assert torch.equal(before[..., elsewhere], after[..., elsewhere])
    model.config.normalize_target_pixels = False
    before, after = (model(pixels, bool_masked_pos=hidden).reconstruction for pixels in (pixel_values, changed))
    assert torch.equal(before, after)


def test_patches_are_cut_and_joined() -> None:
    pictures = torch.randn(2, 3, 16, 24)
    patches = cut_into_patches(pictures, (8, 4))
    assert patches.shape == (2, 2 * 6, 8 * 4 * 3)
    assert torch.equal(patches[1, 7].view(8, 4, 3), pictures[1, :, 8:16, 4:8].permute(1, 2, 0))
    assert torch.equal(join_patches(patches, (8, 4), (16, 24)), pictures)


@torch.no_grad()
def test_resized_model_is_saved_and_reloaded_as_such(tmp_path: Path) -> None:
    model = tiny(position_embedding="sincos")
    hidden = torch.zeros(1, 3 * 5, dtype=torch.bool)
    hidden[:, :7] = True
    batch = {"pixel_values": torch.randn(1, 3, 24, 40), "bool_masked_pos": hidden}
    expected = model(**batch, interpolate_pos_encoding=True).reconstruction
    model.resize(image_size=(24, 40))
    torch.testing.assert_close(model(**batch).reconstruction, expected)
    model.save_pretrained(tmp_path)
    reloaded = VisionTransformerForMaskedImageModeling.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**batch).reconstruction, expected)


@pytest.mark.parametrize(
    ("settings", "batch", "message"),
    [
        (
            {"masked_image_target": "codes"},
            {"code_ids": torch.zeros(1, 8, 8, dtype=torch.int64)},
            r"\(1, 4, 4\), got \(1, 8, 8\)",
        ),
        ({"masked_image_target": "codes"}, {"code_ids": torch.zeros(1, 16)}, "must be int64, got torch.float32"),
        ({"masked_image_target": "codes"}, {"code_ids": torch.full((1, 16), 8192)}, "from 0 to 8191, got 8192 to 8192"),
        ({}, {"code_ids": torch.zeros(1, 16)}, "got a model of 'pixels'"),
        ({}, {"bool_masked_pos": torch.ones(1, 9)}, r"\(1, 16\), got \(1, 9\)"),
        ({}, {"bool_masked_pos": torch.ones(1, 16)}, r"some but not all, got \[16\] of 16"),
    ],
)
def test_unsuitable_masks_and_codes_are_refused(settings: dict, batch: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)(torch.zeros(1, 3, 32, 32), **batch)


@pytest.mark.parametrize(
    "settings", [{"patch_stride": 4}, {"stem_channels": (4,)}, {"relative_position_bias": "shared"}]
)
def test_patches_that_see_each_other_are_refused_for_pixels(settings: dict) -> None:
    with pytest.raises(ValueError, match="must not see each other"):
        tiny(**settings)
