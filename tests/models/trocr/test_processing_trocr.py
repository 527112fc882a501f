"""Pictures to pixels, texts to labels. Oracles: the image processor alone, literal token lists."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor, show_whole_lines
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor

ALPHABET = "abc "  # ids: " " 4, a 5, b 6, c 7 behind <pad> <s> </s> <unk>


@pytest.fixture
def processor() -> TrOCREncoderDecoderProcessor:
    """Lines at their own width, one token a character."""
    image_processor = VisionTransformerImageProcessor(
        size={"height": 16, "width": 64}, keep_aspect_ratio=True, pad_multiple=8, do_convert_grayscale=True
    )
    return TrOCREncoderDecoderProcessor(image_processor, build_character_tokenizer(alphabet=ALPHABET))


def line(width: int, height: int = 16, mode: str = "L") -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def word_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    words = ["<unk>", *special_tokens.values(), "two", "words"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special_tokens)


def test_labels_are_the_text_and_one_end_token_padded_with_the_ignored_label(processor):
    labels = processor(text=["ab c", "a", ""])["labels"]
    assert labels.tolist() == [[5, 6, 4, 7, 2], [5, 2, -100, -100, -100], [2, -100, -100, -100, -100]]
    assert labels.dtype == torch.int64


def test_tokenizer_that_adds_start_and_end_itself_gets_no_second_ones(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "words"]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(vision=ViTImageProcessor(), text=tokenizer)
    assert processor.end_token_id == tokenizer.sep_token_id and processor.start_token_id == tokenizer.cls_token_id
    ids = tokenizer.convert_tokens_to_ids(["two", "words", "[SEP]"])
    assert processor(text="two words")["labels"].tolist() == [ids]


def test_labels_without_tensors_are_lists_without_padding(processor):
    assert processor(text=["ab", "c"], return_tensors=None)["labels"] == [[5, 6, 2], [7, 2]]


def test_pictures_are_what_the_image_processor_makes_of_them(processor):
    pictures = [line(40), line(24)]
    batch = processor(images=pictures, text=["a", "b"])
    expected = processor.image_processor(pictures, return_tensors="pt")
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"} <= set(processor.model_input_names)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert batch["pixel_values"].shape == (2, 1, 16, 40)
    assert batch["pixel_mask"].sum(-1)[:, 0].tolist() == [40, 24]
    assert processor(images=pictures[0])["pixel_values"].shape == (1, 1, 16, 40)


def test_settings_of_one_call_reach_the_image_processor(processor):
    batch = processor(images=line(40), size={"height": 8, "width": 64})
    assert batch["pixel_values"].shape == (1, 1, 8, 24)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_any_mode_are_taken_by_a_hub_image_processor(mode):
    processor = TrOCREncoderDecoderProcessor(
        ViTImageProcessor(size={"height": 16, "width": 16}), build_character_tokenizer(alphabet=ALPHABET)
    )
    picture = line(30, mode=mode)
    assert processor(images=picture)["pixel_values"].shape == (1, 3, 16, 16)


def test_arrays_and_tensors_are_pictures_too(processor):
    picture = line(40, mode="RGB")
    array = np.asarray(picture)
    expected = processor(images=array)["pixel_values"]
    assert torch.equal(processor(images=torch.from_numpy(array).permute(2, 0, 1))["pixel_values"], expected)
    assert (processor(images=picture)["pixel_values"] - expected).abs().max() < 0.02


def test_call_without_anything_or_with_too_few_texts_is_refused(processor):
    with pytest.raises(ValueError, match="`images`, `text` or both"):
        processor()
    with pytest.raises(ValueError, match="got 1 for 2 pictures"):
        processor(images=[line(40), line(24)], text=["a"])


def test_label_of_unknown_characters_only_is_refused_and_quoted(processor):
    with pytest.raises(ValueError, match="only unknown ones in 'жж'"):
        processor(text=["ab", "жж"])
    assert processor(text=["aж"])["labels"].tolist() == [[5, 3, 2]]


def test_label_longer_than_the_limit_is_refused_and_quoted(processor):
    processor.max_label_length = 4
    assert processor(text="abc")["labels"].shape == (1, 4)
    with pytest.raises(ValueError, match="at most 4 tokens, got 5 for 'abca'"):
        processor(text="abca")


def test_decoding_gives_the_texts_back(processor):
    labels = processor(text=["ab c", "a"])["labels"]
    ids = labels.masked_fill(labels < 0, 0)
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["ab c", "a"]
    assert processor.decode(ids[1], skip_special_tokens=True) == "a"


def test_saved_processor_comes_back_through_auto_processor(processor, tmp_path):
    processor.max_label_length = 9
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is TrOCREncoderDecoderProcessor and reloaded.max_label_length == 9
    batch, expected = (p(images=[line(40), line(24)], text=["ab c", "a"]) for p in (reloaded, processor))
    assert set(batch) == set(expected)
    for name, value in expected.items():
        assert torch.equal(batch[name], value)


def test_parts_are_joined_from_folders(processor, tmp_path):
    processor.image_processor.save_pretrained(tmp_path / "vision")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    joined = TrOCREncoderDecoderProcessor.from_pretrained_parts(
        vision=tmp_path / "vision", text=str(tmp_path / "text"), max_label_length=20
    )
    assert joined.max_label_length == 20
    batch, expected = (p(images=line(40), text="ab c") for p in (joined, processor))
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["labels"], expected["labels"])


def test_tokenizer_without_padding_token_pads_with_its_end_token():
    tokenizer = word_tokenizer(eos_token="<end>")
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(vision=ViTImageProcessor(), text=tokenizer)
    assert processor.tokenizer.pad_token == "<end>"
    assert processor.start_token_id == processor.end_token_id == 1  # as GPT-2 has it


def test_tokenizer_without_end_token_is_refused():
    with pytest.raises(ValueError, match=r"end token \(`eos_token` or `sep_token`\), got none"):
        TrOCREncoderDecoderProcessor.from_pretrained_parts(
            vision=ViTImageProcessor(), text=word_tokenizer(pad_token="<pad>")
        )


def test_folder_without_a_tokenizer_is_named(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "no_words")
    with pytest.raises((OSError, ValueError), match="no_words"):
        TrOCREncoderDecoderProcessor.from_pretrained_parts(vision=ViTImageProcessor(), text=tmp_path / "no_words")


@pytest.mark.parametrize(
    "image_processor",
    [
        ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
        ViTImageProcessor(size={"height": 32, "width": 32}),
    ],
    ids=["crops", "squeezes"],
)
def test_folders_image_processor_is_made_to_show_the_whole_line(image_processor, tmp_path):
    image_processor.save_pretrained(tmp_path)
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(
        vision=tmp_path, text=build_character_tokenizer(alphabet=ALPHABET)
    )
    picture = Image.new("RGB", (320, 32), "white")
    picture.paste("black", (0, 0, 20, 32))  # only the line's first letter is black
    pixels = processor(images=picture)["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, 0, 16, 0] < pixels[0, 0, 16, 16] - 1


def test_wanted_size_reaches_an_image_processor_that_would_crop():
    handed = CLIPImageProcessor()
    joined = TrOCREncoderDecoderProcessor.from_pretrained_parts(
        vision=handed, text=word_tokenizer(eos_token="<end>"), image_size=(32, 64)
    )
    assert joined(images=line(300))["pixel_values"].shape[-2:] == (32, 64)
    assert handed.do_center_crop and handed.crop_size["height"] == 224  # stays as it was


def test_image_processor_that_cuts_nothing_off_is_left_alone():
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    assert show_whole_lines(image_processor) is image_processor
