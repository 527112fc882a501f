"""Folders of transformers' `VisionEncoderDecoderModel`: the oracle is that model itself, in fp32, to 1e-4."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    BartConfig,
    BeitConfig,
    BertConfig,
    DeiTConfig,
    GPT2Config,
    PreTrainedConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from tests.models.trocr.tiny_models import END, PAD, VOCAB_SIZE, randomise

START = END  # TrOCR's decoders start with the end token

TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
ENCODERS = {
    "vit": ViTConfig(**TRANSFORMER),
    "vit without query bias": ViTConfig(**TRANSFORMER, qkv_bias=False),
    "deit": DeiTConfig(**TRANSFORMER),
    "beit": BeitConfig(**TRANSFORMER, use_relative_position_bias=True, layer_scale_init_value=0.1),
    "beit with absolute positions": BeitConfig(**TRANSFORMER, use_absolute_position_embeddings=True),
    "swin": SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 3], window_size=2),
}


def trocr(**settings: Any) -> TrOCRConfig:
    small = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 40}
    return TrOCRConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=18, pad_token_id=1, **(small | settings))


NARROW = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 18}
DECODERS: dict[str, PreTrainedConfig] = {
    "trocr": trocr(),
    "trocr with sinusoidal positions": trocr(use_learned_position_embeddings=False),
    "trocr without embedding norm": trocr(layernorm_embedding=False),
    "trocr with scaled embeddings": trocr(scale_embedding=True),
    "trocr untied": trocr(tie_word_embeddings=False),
    "trocr with relu": trocr(activation_function="relu"),
    "trocr large": trocr(
        use_learned_position_embeddings=False,
        layernorm_embedding=False,
        scale_embedding=True,
        activation_function="relu",
    ),
    "trocr for the encoder's width": trocr(d_model=18, cross_attention_hidden_size=24),
    "trocr of another width": trocr(d_model=18),
    "bert": BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=18,
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=START, eos_token_id=END, **(NARROW | {"n_embd": 24})),
    "gpt2 of another width": GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=START, eos_token_id=END, **NARROW),
    "bart": BartConfig(
        vocab_size=VOCAB_SIZE,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        decoder_ffn_dim=32,
        max_position_embeddings=18,
    ),
}
PAIRS = [(encoder, "trocr") for encoder in ENCODERS] + [("vit", decoder) for decoder in DECODERS if decoder != "trocr"]


def stock_model(encoder: str, decoder: str) -> VisionEncoderDecoderModel:
    """transformers' reader with random weights that matter, its token ids set as TrOCR's folders have them."""
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ENCODERS[encoder], DECODERS[decoder])
    model = VisionEncoderDecoderModel(config).eval()
    randomise(model)
    model.decoder.tie_weights()
    for holder in (model.config, model.generation_config):
        holder.decoder_start_token_id, holder.eos_token_id, holder.pad_token_id = START, END, PAD
    model.generation_config.max_length = 12
    return model


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def assert_same_reader(ours, stock, pixel_values: torch.Tensor) -> None:
    """Equal logits, equal greedy and beam output; and outputs that could differ at all."""
    ids = torch.randint(3, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(6))
    expected = stock(pixel_values=pixel_values, decoder_input_ids=ids).logits
    torch.testing.assert_close(
        ours(pixel_values=pixel_values, decoder_input_ids=ids).logits, expected, atol=1e-4, rtol=0
    )
    assert (expected[0] - expected[1]).abs().max() > 1e-3, "the picture plays no part"
    # Random decoders like to repeat one token, which would be equal too easily.
    for settings in ({"no_repeat_ngram_size": 1}, {"num_beams": 3, "no_repeat_ngram_size": 1, "length_penalty": 2.0}):
        assert torch.equal(ours.generate(pixel_values, **settings), stock.generate(pixel_values, **settings))


def test_generation_settings_of_an_old_folder_stand_in_its_config(tmp_path, pixel_values):
    """Before transformers 4.25, and in many folders still, there is no generation_config.json."""
    stock_model("vit", "trocr").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"max_length": 9, "num_beams": 3, "no_repeat_ngram_size": 1, "length_penalty": 2.0}
    config |= {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stock = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    expected = stock.generate(pixel_values)
    assert expected.shape[1] <= 9
    assert torch.equal(ours.generate(pixel_values), expected)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=[f"{e} + {d}" for e, d in PAIRS])
def test_stock_folder_reads_equally_loaded_saved_and_reloaded(encoder, decoder, tmp_path, pixel_values):
    stock = stock_model(encoder, decoder)
    stock.save_pretrained(tmp_path / "stock")
    loaded, info = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(
        tmp_path / "stock", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(loaded.decoder, TrOCREncoderDecoderForCausalLM) == decoder.startswith("trocr")
    assert loaded.generation_config.max_new_tokens == 11  # of 12 with the start token
    assert_same_reader(loaded, stock, pixel_values)

    loaded.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "hf_vlm_trocr"
    reloaded, info = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(reloaded) is type(loaded)
    assert_same_reader(reloaded, stock, pixel_values)


def test_stock_loss_is_equal(tmp_path, pixel_values):
    stock = stock_model("vit", "trocr")
    stock.save_pretrained(tmp_path)
    labels = torch.tensor([[5, 6, END], [7, END, -100], [8, 9, END]])
    # transformers' own loss counts every label that is not -100 alike, as ours does without `num_items_in_batch`.
    ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(
        ours(pixel_values=pixel_values, labels=labels).loss, stock(pixel_values=pixel_values, labels=labels).loss
    )


def test_sharded_stock_folder_reads_equally(tmp_path, pixel_values):
    stock = stock_model("vit", "trocr")
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_reader(TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path), stock, pixel_values)


def test_missing_shard_of_a_stock_folder_is_named(tmp_path):
    stock_model("vit", "trocr").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("auto_class", [TrOCREncoderDecoderForConditionalGeneration, AutoModelForImageTextToText])
def test_missing_shard_of_our_own_folder_is_named(auto_class, tmp_path, pixel_values):
    stock = stock_model("vit", "trocr")
    stock.save_pretrained(tmp_path / "stock")
    ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert_same_reader(auto_class.from_pretrained(tmp_path / "ours"), stock, pixel_values)
    shard = sorted((tmp_path / "ours").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        auto_class.from_pretrained(tmp_path / "ours")


def test_folder_with_a_bin_file_only_reads_equally(tmp_path, pixel_values):
    stock = stock_model("vit", "trocr")
    stock.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_reader(TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path), stock, pixel_values)


def test_stock_folder_that_lacks_an_encoder_weight_is_refused(tmp_path):
    stock_model("vit", "trocr").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if name.startswith("encoder.") and "layer.1" in name)
    del weights[dropped]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must hold every weight"):
        TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)


def test_half_precision_is_kept_or_changed_as_asked(tmp_path):
    stock_model("vit", "trocr").half().save_pretrained(tmp_path)
    assert TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.float16
    single = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert single.dtype == torch.float32


def test_folder_of_another_model_says_which_it_is(tmp_path):
    ViTModel(ENCODERS["vit"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got `vit` in .*from_pretrained_parts"):
        TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
