"""What follows from what, what is refused, and what a folder remembers."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, ViTConfig

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig


def test_default_parts_are_ours():
    config = TrOCREncoderDecoderConfig()
    assert isinstance(config.vision_config, VisionTransformerConfig)
    assert isinstance(config.text_config, TrOCREncoderDecoderTextConfig)


def test_parts_are_taken_as_dicts_or_configs():
    config = TrOCREncoderDecoderConfig(
        vision_config=ViTConfig(hidden_size=24, num_attention_heads=2),
        text_config={"model_type": "gpt2", "n_embd": 24, "n_head": 2},
    )
    assert config.vision_config.model_type == "vit" and config.text_config.n_embd == 24


def test_widths_that_are_left_out_follow_the_hidden_size():
    config = TrOCREncoderDecoderTextConfig(hidden_size=48, num_attention_heads=3)
    assert (config.intermediate_size, config.cross_attention_size) == (192, 48)
    config = TrOCREncoderDecoderTextConfig(hidden_size=48, num_attention_heads=3, cross_attention_size=20)
    assert config.cross_attention_size == 20


def test_token_ids_and_tying_come_from_the_text_part():
    text = {"model_type": "hf_vlm_trocr_text", "bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}
    config = TrOCREncoderDecoderConfig(text_config=text | {"tie_word_embeddings": False})
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    assert config.decoder_start_token_id == 5
    assert config.tie_word_embeddings is False
    assert TrOCREncoderDecoderConfig(text_config=text).tie_word_embeddings is True
    config = TrOCREncoderDecoderConfig(text_config=text, decoder_start_token_id=6, pad_token_id=0)
    assert (config.decoder_start_token_id, config.pad_token_id) == (6, 0)


def test_start_token_of_a_text_model_that_has_its_own_is_taken():
    config = TrOCREncoderDecoderConfig(text_config={"model_type": "bart", "decoder_start_token_id": 2})
    assert config.decoder_start_token_id == 2


def test_cache_is_told_the_decoders_layers_and_heads():
    text = {"model_type": "bart", "encoder_layers": 2, "decoder_layers": 5}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    config = TrOCREncoderDecoderConfig(text_config=text).get_text_config(decoder=True)
    assert (config.num_hidden_layers, config.num_attention_heads) == (5, 4)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5])
def test_label_smoothing_that_is_no_share_is_refused(value):
    with pytest.raises(
        StrictDataclassClassValidationError, match=rf"`label_smoothing` must be in \[0, 1\), got {value}"
    ):
        TrOCREncoderDecoderConfig(label_smoothing=value)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="got 50 and 4"):
        TrOCREncoderDecoderTextConfig(hidden_size=50, num_attention_heads=4)


@pytest.mark.parametrize("field", [{"norm_position": "middle"}, {"position_embedding": "rotary"}, {"vocab_size": "12"}])
def test_values_outside_the_choices_are_refused(field):
    with pytest.raises(StrictDataclassFieldValidationError):
        TrOCREncoderDecoderTextConfig(**field)


def test_saved_config_comes_back_through_auto_config(tmp_path):
    config = TrOCREncoderDecoderConfig(
        vision_config={"model_type": "hf_vlm_vit", "image_size": (16, 64), "patch_size": (8, 4)},
        text_config={"model_type": "hf_vlm_trocr_text", "norm_position": "pre", "hidden_size": 32},
        vision_hidden_size=64,
        label_smoothing=0.1,
        decoder_start_token_id=2,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TrOCREncoderDecoderConfig
    assert (loaded.vision_hidden_size, loaded.label_smoothing, loaded.decoder_start_token_id) == (64, 0.1, 2)
    assert tuple(loaded.vision_config.image_size) == (16, 64)
    assert loaded.text_config.norm_position == "pre"
    assert type(loaded).from_dict(loaded.to_dict()).to_dict() == loaded.to_dict()
