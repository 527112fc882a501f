"""LLaVA as transformers' own class: the same logits, answers, tokens and pixels, or a reason why not."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.sharing.stock.llava import largest_difference, to_stock
from hf_vlm.sharing.stock.llava_processor import to_stock_processor
from tests.models.llava.stock_folders import stock_model
from tests.models.llava.tiny_llava import (
    CLIP_VISION,
    GEMMA,
    IMAGE,
    LLAMA,
    OWN_VISION,
    PAD,
    picture_batch,
    prompt_of,
    randomise,
    tiny_image_processor,
    tiny_llava,
    tiny_tokenizer,
)

LAYERS = {name: value for name, value in CLIP_VISION.items() if name != "model_type"}
SIGLIP = {**LAYERS, "model_type": "siglip_vision_model"}
VIT = {**LAYERS, "model_type": "vit"}
DINO = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "mlp_ratio": 2,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
REGISTERS = {**DINO, "model_type": "dinov2_with_registers", "num_register_tokens": 3}
DEIT = {**LAYERS, "model_type": "deit"}
SWIN = {
    "model_type": "swin",
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
}
CONVNEXT = {"model_type": "convnext", "image_size": 16, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
MAE = {**LAYERS, "model_type": "vit_mae"}

QWEN = {**LLAMA, "model_type": "qwen2"}
TIED = {**LLAMA, "tie_word_embeddings": True}
GRANITE = {**LLAMA, "model_type": "granite", "logits_scaling": 3.0, "embedding_multiplier": 5.0}
GPT = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}

# What transformers' LLaVA can be: parts, and settings of ours.
EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "clip and llama": (CLIP_VISION, LLAMA, {}),
    "clip whole, last layer": (
        CLIP_VISION,
        TIED,
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    ),
    "siglip without a prefix": (SIGLIP, LLAMA, {}),
    "siglip behind its norm": (SIGLIP, LLAMA, {"vision_feature_layer": -1}),
    "dinov2 and qwen2": (DINO, QWEN, {}),
    "registers shown": (REGISTERS, LLAMA, {"vision_feature_select_strategy": "full"}),
    "own and gpt2": (OWN_VISION, GPT, {"vision_feature_layer": 0}),
    "own behind its norm": (OWN_VISION, LLAMA, {"vision_feature_layer": -1}),
    "swin before its norm": (SWIN, LLAMA, {}),
    "our stages before their norm": ({**SWIN, "model_type": "hf_vlm_swin"}, LLAMA, {}),
    "own without a prefix": (OWN_VISION | {"use_cls_token": False}, LLAMA, {"vision_feature_layer": -1}),
    "one linear layer": (CLIP_VISION, LLAMA, {"num_linear_layers": 1}),
    "another activation": (CLIP_VISION, LLAMA, {"projector_hidden_act": "relu"}),
    "factor on the logits": (CLIP_VISION, {**GRANITE, "tie_word_embeddings": True}, {}),
    "scaled embeddings": (CLIP_VISION, GEMMA, {}),
    "larger pictures": (CLIP_VISION, LLAMA, {"image_size": [24, 24]}),
    "wide pictures": (VIT, LLAMA, {"image_size": [16, 24]}),
    "wide pictures, resampled in every call": (DINO, LLAMA, {"image_size": [16, 24]}),
}

# What it can't be: parts, settings, and what the message tells.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "registers cut off": (REGISTERS, LLAMA, {}, "`dinov2_with_registers`, whose patches stand behind 4 other tokens"),
    "distillation token cut off": (DEIT, LLAMA, {}, "`deit`, whose patches stand behind 2 other tokens"),
    "map": (CONVNEXT, LLAMA, {"vision_feature_layer": -1}, r"`convnext`, which gives a map of shape \(1, 16, 2, 2\)"),
    "swin behind its norm": (SWIN, LLAMA, {"vision_feature_layer": -1}, "`swin`, of which it reads something else"),
    "dinov2 behind its norm": (DINO, LLAMA, {"vision_feature_layer": -1}, "`dinov2`, of which it reads something else"),
    "patches in an order of their own": (MAE, LLAMA, {}, "`vit_mae`, which wants to be told its `noise`"),
    "wide pictures of clip": (CLIP_VISION, LLAMA, {"image_size": [16, 24]}, "does not take pictures of 16 x 24 pixels"),
    "three linear layers": (CLIP_VISION, LLAMA, {"num_linear_layers": 3}, "`num_linear_layers` must be 1 or 2"),
    "bias of the output layer": (CLIP_VISION, {**LLAMA, "model_type": "phi"}, {}, "`phi`, whose output layer has a bias"),
    "cap on the logits": (CLIP_VISION, {**GEMMA, "model_type": "gemma2"}, {}, "`gemma2`, .*`final_logit_softcapping`"),
    "narrow embeddings": (
        CLIP_VISION,
        {"model_type": "opt", "word_embed_proj_dim": 16, "hidden_size": 24, "ffn_dim": 32, "vocab_size": 40,
         "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": PAD},
        {},
        "`opt`, whose embeddings are 16 wide and its layers 24",
    ),
}  # fmt: skip


def llava(vision: dict[str, Any], text: dict[str, Any], **settings: Any) -> LlavaVisionLanguageForConditionalGeneration:
    return tiny_llava(vision, text, **{"vision_feature_layer": -2, "gain": 2.0, **settings})


def reloaded(model: Any, folder: Path) -> LlavaForConditionalGeneration:
    """The stock model, as another process finds it in a folder."""
    to_stock(model)[0].save_pretrained(folder)
    stock, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return stock.eval()


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", EQUAL)
def test_stock_llava_gives_same_logits_and_answers(name: str, tmp_path: Path) -> None:
    vision, text, settings = EQUAL[name]
    model = llava(vision, text, **settings)
    stock = reloaded(model, tmp_path)
    size = tuple(model.config.image_size)
    batch = picture_batch(model.config.num_image_tokens, size=size)  # 1, 1, 2 and no pictures, padded in front
    prompt = prompt_of(batch)
    words = {name: prompt[name][3:, -3:] for name in ("input_ids", "attention_mask")}  # the row without a picture
    with torch.no_grad():
        wanted = model(**prompt).logits
        got = stock(**prompt, position_ids=positions(prompt["attention_mask"])).logits
        is_word = prompt["attention_mask"].bool()
        torch.testing.assert_close(got[is_word], wanted[is_word], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stock(**words).logits, model(**words).logits, atol=1e-4, rtol=1e-4)
        for inputs, more in ((prompt, {}), (words, {}), (prompt, {"num_beams": 3})):
            settings = {"max_new_tokens": 6, "do_sample": False, **more}
            assert torch.equal(stock.generate(**inputs, **settings), model.generate(**inputs, **settings))
    assert wanted[0].sub(wanted[1]).abs().max() > 1e-2  # the same words under two pictures
    assert largest_difference(model, stock) <= 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_stock_llava_is_refused_when_transformers_has_no_counterpart(name: str) -> None:
    vision, text, settings, said = REFUSED[name]
    model = llava(vision, text, **settings)
    if text.get("model_type") == "phi":
        randomise(model)  # a bias of zeros would do no harm
    with pytest.raises(ValueError, match=said) as caught:
        to_stock(model)
    assert "hf-vlm export-code" in str(caught.value)


def test_stock_llava_never_shows_the_image_token_and_ends_where_ours_does(tmp_path: Path) -> None:
    model = llava(CLIP_VISION, LLAMA)
    model.generation_config.update(max_new_tokens=7, eos_token_id=[2, 9])
    model.config.eos_token_id = [2, 9]
    stock = reloaded(model, tmp_path)
    assert stock.generation_config.suppress_tokens == [IMAGE]
    assert stock.generation_config.eos_token_id == [2, 9]
    assert stock.generation_config.max_new_tokens == 7
    assert stock.config.image_token_id == IMAGE
    assert (stock.config.eos_token_id, stock.config.pad_token_id) == ([2, 9], PAD)


def test_one_linear_layer_comes_out_with_identity_and_is_told(tmp_path: Path) -> None:
    stock, notes = to_stock(llava(CLIP_VISION, LLAMA, num_linear_layers=1))
    projector = stock.model.multi_modal_projector
    assert torch.equal(projector.linear_2.weight, torch.eye(24))
    assert not projector.linear_2.bias.any()
    assert any("identity" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "is_tied"), [(TIED, True), ({**GPT, "tie_word_embeddings": True}, False), (LLAMA, False)]
)
def test_output_layer_stays_tied_where_transformers_can(text: dict[str, Any], is_tied: bool, tmp_path: Path) -> None:
    stock = reloaded(llava(CLIP_VISION, text), tmp_path)
    assert (stock.lm_head.weight is stock.get_input_embeddings().weight) == is_tied
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("language_model.lm_head.weight" in file.keys()) == (not is_tied)


def test_factor_on_logits_is_not_left_in_the_config() -> None:
    stock, notes = to_stock(llava(CLIP_VISION, GRANITE))
    assert stock.config.text_config.logits_scaling == 1
    assert stock.config.text_config.embedding_multiplier == 5
    assert any("`logits_scaling`" in note for note in notes)


def test_positions_are_resampled_once_for_pictures_of_another_size() -> None:
    model = llava(CLIP_VISION, LLAMA, image_size=[24, 24])
    stock, notes = to_stock(model)
    assert stock.config.vision_config.image_size == 24
    assert stock.model.vision_tower.embeddings.position_embedding.weight.shape == (10, 16)
    assert any("resampled to 24 x 24" in note for note in notes)
    assert model.vision_model.embeddings.position_embedding.weight.shape == (5, 16)


def test_padding_is_told_where_positions_count_it() -> None:
    assert any("position_ids" in note for note in to_stock(llava(CLIP_VISION, GPT))[1])
    assert not any("position_ids" in note for note in to_stock(llava(CLIP_VISION, LLAMA))[1])


def test_exported_model_stays_as_it_was() -> None:
    model = llava(CLIP_VISION, LLAMA, vision_feature_layer=-1)
    batch = prompt_of(picture_batch(model.config.num_image_tokens))
    before = model(**batch).logits
    config = model.config.to_json_string()
    model.train()
    model.projector.eval()
    stock, _ = to_stock(model)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.zero_()
    assert model.training
    assert not model.projector.training
    assert model.config.to_json_string() == config
    assert torch.equal(model.eval()(**batch).logits, before)


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model = llava(CLIP_VISION, LLAMA).to(torch.bfloat16)
    to_stock(model)[0].save_pretrained(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert stock.dtype == torch.bfloat16
    made = to_stock(model)[0]
    assert made.dtype == torch.bfloat16
    assert made.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(stock.lm_head.weight, model.language_model.lm_head.weight)


def test_parts_of_two_types_come_out_in_one_and_are_told() -> None:
    model = llava(CLIP_VISION, LLAMA)
    model.language_model.to(torch.bfloat16)
    stock, notes = to_stock(model)
    assert {parameter.dtype for parameter in stock.parameters()} == {torch.bfloat16}
    assert any("bfloat16, float32" in note for note in notes)


def test_model_with_an_adapter_is_refused() -> None:
    model = llava(CLIP_VISION, LLAMA)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="hf-vlm merge"):
        to_stock(model)


def test_plain_llava_leaves_without_a_note_or_a_place() -> None:
    model = llava(CLIP_VISION, LLAMA)
    model.config.text_config._name_or_path = "/home/somebody/llama"
    stock, notes = to_stock(model)
    assert notes == []
    assert "somebody" not in stock.config.to_json_string()


def test_difference_is_a_share_of_the_largest_logit() -> None:
    model = llava(CLIP_VISION, LLAMA)
    stock = to_stock(model)[0]
    with torch.no_grad():
        model.language_model.get_output_embeddings().weight *= 1000
        stock.lm_head.weight.copy_(model.language_model.get_output_embeddings().weight * (1 + 2e-5))
    # That factor is all that is between the two, whatever the logits' size.
    assert largest_difference(model, stock) == pytest.approx(2e-5, rel=0.2)


def test_difference_is_infinite_when_answers_differ() -> None:
    model = llava(CLIP_VISION, LLAMA)
    for settings in (model.generation_config, (stock := to_stock(model)[0]).generation_config):
        settings.stop_strings = ["."]  # which want a tokenizer, where one is at hand
    assert largest_difference(model, stock) <= 1e-4
    assert stock.generation_config.stop_strings == ["."]
    with torch.no_grad():
        stock.model.multi_modal_projector.linear_2.bias += 1e-3
    assert 1e-5 < largest_difference(model, stock) < 1
    stock.generation_config.suppress_tokens = list(range(30))
    assert largest_difference(model, stock) == float("inf")


@pytest.mark.parametrize(
    ("vision", "settings"),
    [
        ("clip", {}),
        ("clip", {"vision_feature_layer": -1}),
        ("siglip", {}),
        ("siglip", {"vision_feature_select_strategy": "default"}),
    ],
)
def test_folder_of_transformers_comes_back_as_it_was(vision: str, settings: dict[str, Any], tmp_path: Path) -> None:
    first = stock_model(vision, **settings)
    first.save_pretrained(tmp_path)
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained(tmp_path)
    back, _ = to_stock(model)
    wanted, got = first.state_dict(), back.state_dict()
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    for name in ("vision_feature_select_strategy", "image_token_index", "projector_hidden_act", "tie_word_embeddings"):
        assert getattr(back.config, name) == getattr(first.config, name)
    batch = prompt_of(picture_batch(model.config.num_image_tokens))
    assert torch.equal(back(**batch).logits, first(**batch).logits)


NEOX = {**LLAMA, "model_type": "gpt_neox"}


@pytest.mark.parametrize("text", [GPT, NEOX, LLAMA], ids=["gpt2", "gpt_neox", "llama"])
def test_export_is_read_whatever_its_language_model_calls_its_weights(text: dict[str, Any], tmp_path: Path) -> None:
    model = llava(CLIP_VISION, text)
    reloaded(model, tmp_path)
    back = LlavaVisionLanguageForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = prompt_of(picture_batch(model.config.num_image_tokens))
    with torch.no_grad():
        assert torch.equal(back(**batch).logits, model(**batch).logits)


# Processors


def parts(
    vision: dict[str, Any] = CLIP_VISION,
    image_processor: Any = None,
    tokenizer: Any = None,
    chat_template: str | None = None,
    image_size: tuple[int, int] | None = None,
    **settings: Any,
) -> tuple[LlavaVisionLanguageProcessor, LlavaVisionLanguageForConditionalGeneration]:
    """A processor and a model that fits it."""
    layer = settings.setdefault("vision_feature_layer", -2)
    strategy = settings.setdefault("vision_feature_select_strategy", "default")
    aspect = settings.setdefault("image_aspect_ratio", "pad")
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        image_processor or tiny_image_processor(),
        tokenizer or tiny_tokenizer(),
        vision_config=AutoConfig.for_model(**vision),
        chat_template=chat_template,
        image_size=image_size,
        image_aspect_ratio=aspect,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    text = {**LLAMA, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 512}
    size = list(processor.image_size)
    model = llava(vision, text, image_token_id=processor.image_token_id, image_size=size, **settings)
    assert processor.num_image_tokens == model.config.num_image_tokens
    return processor, model


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width * 3, height * 3))


def chats() -> list[list[dict[str, Any]]]:
    """Conversations about no, one and three pictures."""

    def asked(text: str, *pictures: Image.Image) -> dict[str, Any]:
        parts = [{"type": "image", "image": shown} for shown in pictures]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

    answer = {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}
    return [
        [asked("Who is it?")],
        [asked("What is this?", picture(20, 9))],
        [asked("And these?", picture(9, 20), picture(12, 12)), answer, asked("Again?", picture(31, 8))],
    ]


def through_folder(processor: Any, model: Any, folder: Path) -> LlavaProcessor:
    to_stock_processor(processor, model)[0].save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert type(loaded) is LlavaProcessor
    return loaded


def tokenizer_that_begins() -> Any:
    """A tokenizer that puts `<s>` in front of every text, as LLaMA's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


OWN_PICTURES = VisionTransformerImageProcessor(size={"height": 16, "width": 16})
PROCESSORS: dict[str, dict[str, Any]] = {
    "clip, padded": {},
    "clip, as it is": {"image_aspect_ratio": "square"},
    "siglip, as it is": {
        "vision": SIGLIP,
        "image_processor": SiglipImageProcessor(size={"height": 16, "width": 16}),
        "image_aspect_ratio": "square",
    },
    "prefix shown": {"vision_feature_select_strategy": "full"},
    "registers shown": {"vision": REGISTERS, "vision_feature_select_strategy": "full"},
    "stages": {"vision": SWIN},
    "wide pictures": {"vision": VIT, "image_size": (16, 24)},
    "patches that are wide": {"vision": OWN_VISION | {"patch_size": [4, 8]}, "vision_feature_layer": -1},
    "our own pictures, padded": {"image_processor": OWN_PICTURES},
    "our own pictures": {"image_processor": OWN_PICTURES, "image_aspect_ratio": "square"},
    "margin cut off": {
        "image_processor": ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.875),
        "image_aspect_ratio": "square",
    },
    "tokenizer that begins": {"tokenizer": tokenizer_that_begins()},
    "tokenizer and template that begin": {"tokenizer": tokenizer_that_begins(), "chat_template": "llava_v1"},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_stock_processor_makes_same_tokens_and_pixels(name: str, tmp_path: Path) -> None:
    processor, model = parts(**PROCESSORS[name])
    stock = through_folder(processor, model, tmp_path)
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    for chat in chats():
        wanted, got = (maker.apply_chat_template(chat, **settings) for maker in (processor, stock))
        assert got["input_ids"].tolist() == wanted["input_ids"].tolist()
        assert ("pixel_values" in got) == ("pixel_values" in wanted)
        if "pixel_values" in wanted:
            torch.testing.assert_close(got["pixel_values"], wanted["pixel_values"], atol=1e-5, rtol=0)
    asked = stock._get_num_multimodal_tokens(image_sizes=[[20, 9]])  # as servers ask
    assert asked["num_image_tokens"] == [processor.num_image_tokens]
    together = {**settings, "processor_kwargs": {"padding": True}}
    wanted, got = (maker.apply_chat_template(chats(), **together) for maker in (processor, stock))
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(got[key], wanted[key])
    assert not got["attention_mask"][0, 0]  # padded in front


def test_stock_processor_tells_what_the_assistant_said(tmp_path: Path) -> None:
    processor, model = parts()
    stock = through_folder(processor, model, tmp_path)
    chat = [*chats()[2], {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    made = stock.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    learnt = made["input_ids"][0][torch.as_tensor(made["assistant_masks"])[0].bool()]
    wanted = torch.tensor(processor.encode_conversation(chat)["labels"])
    assert learnt.tolist() == wanted[wanted != -100].tolist()


def test_answers_are_the_same_from_picture_to_words(tmp_path: Path) -> None:
    processor, model = parts()
    model.generation_config.max_new_tokens = 8
    stock = reloaded(model, tmp_path)
    stock_processor = through_folder(processor, model, tmp_path)
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    together = {**settings, "processor_kwargs": {"padding": True}}
    said = [
        model.generate(**maker.apply_chat_template(chats(), **together), do_sample=False)
        for model, maker in ((model, processor), (stock, stock_processor))
    ]
    assert torch.equal(said[0], said[1])
    assert len({tuple(row.tolist()) for row in said[0][:, -8:]}) > 1


def test_image_processor_without_counterpart_is_refused() -> None:
    size = {"height": 16, "width": 16}
    image_processor = EfficientNetImageProcessor(size=size, crop_size=size, rescale_offset=True)
    processor, model = parts(image_processor=image_processor)
    with pytest.raises(ValueError, match="`EfficientNetImageProcessor`, whose pixels it misses"):
        to_stock_processor(processor, model)


def test_tokenizer_is_silent_only_where_the_template_would_be_doubled() -> None:
    for template, is_told in ((None, True), ("llava_v1", False)):
        processor, model = parts(tokenizer=tokenizer_that_begins(), chat_template=template)
        stock, notes = to_stock_processor(processor, model)
        assert any("special tokens" in note for note in notes) == is_told
        assert (stock.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id) == (not is_told)
        assert processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id


def test_unusual_pictures_are_told() -> None:
    processor, model = parts()
    _, notes = to_stock_processor(processor, model)
    (note,) = [note for note in notes if "EXIF" in note]
    assert "16 bits" in note
    assert "transparent" not in note  # both show white paper through


ALONE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
assert importlib.util.find_spec("hf_vlm") is None
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
chat = [{"role": "user", "content": [{"type": "image", "path": sys.argv[2]}, {"type": "text", "text": "What is this?"}]}]
inputs = processor.apply_chat_template(
    chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
ids = model.generate(**inputs, do_sample=False)
print(json.dumps([type(model).__name__, type(processor).__name__, ids.tolist()]))
"""


@pytest.mark.slow  # another process imports transformers
def test_exported_folder_answers_where_this_package_is_not(tmp_path: Path) -> None:
    folder, shown = tmp_path / "stock", tmp_path / "picture.png"
    picture(20, 9).save(shown)
    processor, model = parts(OWN_VISION, vision_feature_layer=-1)
    model.generation_config.max_new_tokens = 8
    to_stock(model)[0].save_pretrained(folder)
    to_stock_processor(processor, model)[0].save_pretrained(folder)
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.open(shown)}, {"type": "text", "text": "What is this?"}],
        }
    ]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    wanted = model.generate(**inputs, do_sample=False)
    # `-S` leaves .pth files unread: an editable install isn't seen.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "TRANSFORMERS_VERBOSITY": "error"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", ALONE, str(folder), str(shown)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    model_class, processor_class, ids = json.loads(run.stdout.splitlines()[-1])
    assert (model_class, processor_class) == ("LlavaForConditionalGeneration", "LlavaProcessor")
    assert ids == wanted.tolist()
