"""What a folder can be tried with is told by its config, card and recipe alone."""

import json

import pytest
from transformers import (
    BertConfig,
    BlipConfig,
    LlamaConfig,
    LlavaConfig,
    SiglipVisionConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    ViTConfig,
)

from hf_vlm import (
    CnnLstmConfig,
    DVAEConfig,
    LlavaVisionLanguageConfig,
    SwinTransformerConfig,
    TrOCREncoderDecoderConfig,
    VAEConfig,
    VisionTransformerConfig,
    VQVAEConfig,
    default_ocr_model,
)
from hf_vlm.demo.folders import Ability, look_at_folders

TINY_TEXT = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 9,
}
TINY_VISION = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "image_size": 8,
}


def stock_chat():
    return LlavaConfig(
        vision_config=SiglipVisionConfig(**TINY_VISION, patch_size=4).to_dict(),
        text_config=LlamaConfig(**TINY_TEXT).to_dict(),
    )


def stock_captioner():
    parts = {"encoder": ViTConfig(**TINY_VISION).to_dict(), "decoder": {**BertConfig(**TINY_TEXT).to_dict()}}
    return VisionEncoderDecoderConfig(**parts)


def stock_reader():
    parts = {
        "encoder": ViTConfig(**TINY_VISION).to_dict(),
        "decoder": TrOCRConfig(d_model=8, decoder_layers=1).to_dict(),
    }
    return VisionEncoderDecoderConfig(**parts)


def saved(config, folder, architecture=None):
    config.architectures = [architecture] if architecture else config.architectures
    config.save_pretrained(folder)
    return folder


def ability(folder):
    (found,) = look_at_folders([folder])
    return found.ability, found.has_attention


@pytest.mark.parametrize(
    ("config", "architecture", "expected"),
    [
        (TrOCREncoderDecoderConfig, None, (Ability.READ, True)),
        (CnnLstmConfig, None, (Ability.CAPTION, True)),
        (LlavaVisionLanguageConfig, None, (Ability.CHAT, True)),
        (VQVAEConfig, None, (Ability.TOKENS, False)),
        (DVAEConfig, None, (Ability.TOKENS, False)),
        (VAEConfig, None, (Ability.LATENTS, False)),
        (VisionTransformerConfig, "VisionTransformerForImageClassification", (Ability.CLASSIFY, True)),
        (VisionTransformerConfig, "VisionTransformerModel", (Ability.ATTENTION, True)),
        (SwinTransformerConfig, "SwinTransformerForImageClassification", (Ability.CLASSIFY, True)),
        (SwinConfig, "SwinModel", (Ability.ATTENTION, True)),
        (ViTConfig, "ViTForImageClassification", (Ability.CLASSIFY, True)),
        (BlipConfig, "BlipForConditionalGeneration", (Ability.CAPTION, True)),
        (stock_captioner, "VisionEncoderDecoderModel", (Ability.CAPTION, True)),
        (stock_reader, "VisionEncoderDecoderModel", (Ability.READ, True)),
    ],
)  # fmt: skip
def test_ability_follows_from_the_config(config, architecture, expected, tmp_path):
    assert ability(saved(config(), tmp_path / "m", architecture)) == expected


def test_stock_model_of_pictures_and_text_chats_if_it_has_a_template(tmp_path):
    folder = saved(stock_chat(), tmp_path / "m", "LlavaForConditionalGeneration")
    assert ability(folder)[0] == Ability.CAPTION
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert ability(folder)[0] == Ability.CHAT


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("ocr", Ability.READ), ("caption", Ability.CAPTION), ("vqa", Ability.ASK), ("x", Ability.READ)],
)
def test_what_an_encoder_decoder_does_is_told_by_its_card_or_else_its_recipe(tag, expected, tmp_path):
    by_card = saved(TrOCREncoderDecoderConfig(), tmp_path / "by-card")
    (by_card / "README.md").write_text(f"---\ntags:\n- hf-vlm\n- {tag}\n---\n# A model\n")
    by_recipe = saved(TrOCREncoderDecoderConfig(), tmp_path / "by-recipe")
    (by_recipe / "recipe.yaml").write_text(f"task: {tag}\n")
    assert ability(by_card)[0] == ability(by_recipe)[0] == expected


@pytest.mark.parametrize("card", ["---\ntags: [unclosed\n---\n", "---\n- a list\n---\n", "no front matter", ""])
def test_card_with_broken_front_matter_does_not_keep_a_model_from_the_page(card, tmp_path):
    folder = saved(TrOCREncoderDecoderConfig(), tmp_path / "m")
    (folder / "README.md").write_text(card)
    assert ability(folder)[0] == Ability.READ


def test_adapter_does_what_its_base_does_and_names_it(tmp_path):
    base = saved(VQVAEConfig(), tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"})
    )
    (found,) = look_at_folders([adapter])
    assert (found.ability, found.adapter_of, found.source) == (Ability.TOKENS, str(base), str(adapter))


def test_models_keep_their_order_each_once_and_like_names_are_told_apart_by_the_path(tmp_path):
    one, other = saved(VAEConfig(), tmp_path / "a" / "m"), saved(VQVAEConfig(), tmp_path / "b" / "m")
    last = saved(DVAEConfig(), tmp_path / "c")
    found = look_at_folders([other, f"{one}/", last, str(one)])
    assert [folder.name for folder in found] == [str(other), str(one), "c"]


def test_reader_of_the_package_reads_and_has_its_card():
    (found,) = look_at_folders([default_ocr_model()])
    assert found.does(Ability.READ) and found.does(Ability.ATTENTION) and not found.does(Ability.CHAT)
    assert found.card == default_ocr_model() / "README.md"


def test_no_folder_a_missing_one_and_one_without_a_picture_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted, got none"):
        look_at_folders([])
    with pytest.raises(OSError, match="nowhere"):
        look_at_folders([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"):
        look_at_folders([tmp_path / "empty"])
    with pytest.raises(ValueError, match="got `llama`"):
        look_at_folders([saved(LlamaConfig(**TINY_TEXT), tmp_path / "text")])
