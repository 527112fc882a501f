"""Oracle: transformers' own `VisionEncoderDecoderModel`, every parameter random, and what our model writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    DeiTConfig,
    GPT2Config,
    PreTrainedConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.sharing.stock.trocr import largest_difference, to_stock, to_stock_processor
from tests.models.trocr.tiny_models import END, PAD, VOCAB_SIZE, randomise, tiny_reader

TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
SMALL = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 40}


def trocr(**settings: Any) -> TrOCRConfig:
    return TrOCRConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=18, pad_token_id=1, **(SMALL | settings))


# The three published shapes, and decoders that are kept as they are.
STOCK: dict[str, tuple[PreTrainedConfig, PreTrainedConfig]] = {
    "base": (ViTConfig(**TRANSFORMER, qkv_bias=False), trocr()),
    "small": (
        DeiTConfig(**TRANSFORMER),
        trocr(
            d_model=18,
            cross_attention_hidden_size=24,
            activation_function="relu",
            scale_embedding=True,
            tie_word_embeddings=False,
        ),
    ),
    "large": (
        ViTConfig(**TRANSFORMER, qkv_bias=False),
        trocr(
            use_learned_position_embeddings=False,
            layernorm_embedding=False,
            scale_embedding=True,
            activation_function="relu",
        ),
    ),
    "projected": (ViTConfig(**TRANSFORMER), trocr(d_model=18)),
    "swin and gpt2": (
        SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 3], window_size=2),
        GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=18, bos_token_id=2, eos_token_id=2
        ),
    ),
    "bert": (
        ViTConfig(**TRANSFORMER),
        BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=3,
            intermediate_size=32,
            max_position_embeddings=18,
        ),
    ),
}
VIT = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
    "pooling": "cls",
}
SWIN = {
    "model_type": "hf_vlm_swin",
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [2, 1],
    "num_attention_heads": [2, 3],
    "window_size": 2,
    "drop_path_rate": 0.0,
}
WIDE = {**VIT, "hidden_size": 48}
READ = {"cross_attention_size": 24}
BERT = {**READ, "layer_norm_eps": 1e-12}
PRE = {**READ, "norm_position": "pre"}
# Settings of ours -> the decoder that computes the same, and a word of each note.
OWN: dict[str, tuple[dict, dict, str, list[str]]] = {
    "vit": (VIT, READ, "TrOCRForCausalLM", []),
    "no CLS token": (
        {**VIT, "use_cls_token": False, "pooling": "none"},
        READ,
        "TrOCRForCausalLM",
        ["vision encoder: `pooler_output`"],
    ),
    "swin": (SWIN, READ, "TrOCRForCausalLM", []),
    "fixed positions": (VIT, {**READ, "position_embedding": "sinusoidal"}, "TrOCRForCausalLM", ["fixed positions"]),
    "wide pictures": (WIDE, {"cross_attention_size": 48}, "TrOCRForCausalLM", []),
    "projected": (WIDE, READ, "TrOCRForCausalLM", []),
    "projected to a third width": (WIDE, {"cross_attention_size": 30}, "TrOCRForCausalLM", ["multiplied into"]),
    "bert's eps": (VIT, BERT, "BertGenerationDecoder", ["BertGenerationDecoder"]),
    "bert's eps, scaled": (
        VIT,
        {**BERT, "scale_embedding": True},
        "BertGenerationDecoder",
        ["output layer", "BertGenerationDecoder"],
    ),
    "bert's eps, narrow pictures": (
        {**VIT, "hidden_size": 18},
        {**BERT, "cross_attention_size": 18},
        "BertGenerationDecoder",
        ["zeros", "BertGenerationDecoder"],
    ),
    "bert's eps, projected": (WIDE, BERT, "BertGenerationDecoder", ["BertGenerationDecoder"]),
    "pre-norm": (
        VIT,
        {**PRE, "embedding_norm": False, "scale_embedding": True, "position_embedding": "sinusoidal"},
        "GPT2LMHeadModel",
        ["fixed positions", "output layer", "GPT2LMHeadModel"],
    ),
    "pre-norm, untied": (
        VIT,
        {**PRE, "embedding_norm": False, "tie_word_embeddings": False, "hidden_act": "relu", "layer_norm_eps": 1e-6},
        "GPT2LMHeadModel",
        ["GPT2LMHeadModel"],
    ),
    "pre-norm and embedding norm": (VIT, {**PRE, "scale_embedding": True}, "MBartForCausalLM", ["MBartForCausalLM"]),
}


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def assert_same_reader(ours: Any, stock: Any, pixels: torch.Tensor) -> None:
    """Equal logits, greedy and beam output; and outputs that could differ at all."""
    ids = torch.randint(3, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(6))
    expected = ours(pixel_values=pixels, decoder_input_ids=ids).logits
    got = stock(pixel_values=pixels, decoder_input_ids=ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3, "the picture plays no part"
    for settings in ({"no_repeat_ngram_size": 1}, {"num_beams": 3, "no_repeat_ngram_size": 1, "length_penalty": 2.0}):
        assert torch.equal(stock.generate(pixels, **settings), ours.generate(pixels, **settings))


@pytest.mark.parametrize("name", STOCK)
def test_stock_reader_comes_back_bit_for_bit(name: str, tmp_path: Path, pixels: torch.Tensor) -> None:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(*STOCK[name])
    stock = VisionEncoderDecoderModel(config).eval()
    randomise(stock)
    stock.decoder.tie_weights()
    for holder in (stock.config, stock.generation_config):
        holder.decoder_start_token_id, holder.eos_token_id, holder.pad_token_id = END, END, PAD
    stock.generation_config.max_length, stock.generation_config.num_beams = 12, 2
    stock.save_pretrained(tmp_path)
    ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    back, notes = to_stock(ours)

    expected, got = stock.state_dict(), back.state_dict()
    table = "decoder.model.decoder.embed_positions.weight"
    assert set(got) ^ set(expected) == ({table} if name == "large" else set())
    for key in expected:
        skipped = 2 if key == table else 0  # rows that no token reads
        assert torch.equal(got[key][skipped:], expected[key][skipped:]), key
    assert len(notes) == (name == "large")
    assert back.generation_config.num_beams == 2 and back.generation_config.max_new_tokens == 11
    assert_same_reader(ours, back, pixels)


@pytest.mark.parametrize("name", OWN)
def test_own_reader_gives_the_same_as_its_counterpart(name: str, pixels: torch.Tensor) -> None:
    vision, text, decoder, words = OWN[name]
    ours = tiny_reader(vision, text)
    ours.generation_config.max_new_tokens = 10
    stock, notes = to_stock(ours)
    assert type(stock.decoder).__name__ == decoder
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))
    assert_same_reader(ours, stock, pixels)
    assert largest_difference(ours, stock) < 2e-6
    assert ours.decoder.config.cross_attention_size == text["cross_attention_size"]  # ours stays as it is


def test_ctc_head_is_left_out_and_told(pixels: torch.Tensor) -> None:
    ours = tiny_reader(VIT, READ, ctc_loss_weight=1.0, ctc_decoding_weight=0.5)
    stock, notes = to_stock(ours)
    assert any("CTC head is left out" in note for note in notes) and any("0.5" in note for note in notes)
    assert largest_difference(ours, stock) < 2e-6
    assert ours.config.ctc_decoding_weight == 0.5


def test_largest_difference_is_infinite_when_other_tokens_come_out() -> None:
    ours = tiny_reader(VIT, READ)
    stock, _ = to_stock(ours)
    stock.generation_config.suppress_tokens = ours.generate(torch.randn(1, 3, 16, 16))[0, 1:].tolist()
    assert largest_difference(ours, stock) == float("inf")


@pytest.mark.parametrize(
    ("vision", "text", "word"),
    [
        (VIT | {"stem_channels": [8], "stem_strides": [2]}, READ, "stem_channels"),
        (WIDE, BERT | {"cross_attention_size": 48}, "cross_attention_size"),
        (VIT, PRE | {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        (VIT, BERT | {"embedding_norm": False}, "layer_norm_eps"),
    ],
)
def test_setting_without_a_counterpart_is_refused_by_name(vision: dict, text: dict, word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word}(.|\n)*export-code"):
        to_stock(tiny_reader(vision, text))


def test_encoder_of_maps_is_refused() -> None:
    vision = {"model_type": "convnext", "hidden_sizes": [8, 24], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    with pytest.raises(ValueError, match=r"hidden_size(.|\n)*convnext"):
        to_stock(tiny_reader(vision, READ))


def test_processor_keeps_pixels_and_tokenizer() -> None:
    tokenizer = build_character_tokenizer(alphabet="abc")
    own = TrOCREncoderDecoderProcessor(VisionTransformerImageProcessor(), tokenizer, max_label_length=7)
    stock, notes = to_stock_processor(own, None)
    picture = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy()
    assert type(stock).__name__ == "TrOCRProcessor"
    assert torch.equal(stock(images=picture, return_tensors="pt")["pixel_values"], own(images=picture)["pixel_values"])
    assert stock.batch_decode(own.labels(["abba"]), skip_special_tokens=True) == ["abba"]
    assert any("more than 7 tokens" in note for note in notes)


def test_tokenizer_leaves_alone_when_transformers_has_no_image_processor_of_these_pixels(tmp_path: Path) -> None:
    tokenizer = build_character_tokenizer(alphabet="abc")
    own = TrOCREncoderDecoderProcessor(VisionTransformerImageProcessor(do_convert_grayscale=True), tokenizer)
    own.save_pretrained(tmp_path)
    stock, notes = to_stock_processor(TrOCREncoderDecoderProcessor.from_pretrained(tmp_path), None)
    assert stock("ab")["input_ids"] == tokenizer("ab")["input_ids"]
    assert "do_convert_grayscale" in notes[0] and "alone" in notes[-1]
    stock.save_pretrained(tmp_path / "stock")
    assert "TrOCREncoderDecoder" not in (tmp_path / "stock" / "tokenizer_config.json").read_text()


def test_image_processor_of_transformers_stays_itself() -> None:
    image_processor = ViTImageProcessor(size={"height": 8, "width": 8})
    own = TrOCREncoderDecoderProcessor(image_processor, build_character_tokenizer(alphabet="abc"))
    assert to_stock_processor(own, None)[0].image_processor is image_processor
