"""Pictures to pixels, captions to labels. Oracles: the image processor alone, literal token lists."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, ConvNextImageProcessor, TimmWrapperConfig, ViTImageProcessor

from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor

CAPTIONS = ["A dog runs.", "a cat sits ."]  # ids: a 4, cat 5, dog 6, runs 7, sits 8


@pytest.fixture
def processor() -> CnnLstmProcessor:
    image_processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16})
    return CnnLstmProcessor(image_processor, build_word_tokenizer(CAPTIONS, min_count=1))


def test_captions_become_words_and_one_end_token(processor):
    batch = processor(images=[Image.new("RGB", (40, 30), "red")] * 2, text=["A dog runs!", "a cat"])
    assert batch["labels"].tolist() == [[4, 6, 7, 2], [4, 5, 2, -100]]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_pictures_are_cut_as_the_vision_model_wants(processor, tmp_path):
    processor.image_processor.save_pretrained(tmp_path)
    joined = CnnLstmProcessor.from_pretrained_parts(vision=tmp_path, text=processor.tokenizer, max_label_length=9)
    assert joined.max_label_length == 9
    picture = Image.new("RGB", (80, 30), "white")
    picture.paste("black", (0, 0, 20, 30))  # at the left edge, which the crop leaves out
    pixels = joined(images=picture)["pixel_values"]
    assert torch.equal(pixels, processor.image_processor(picture, return_tensors="pt")["pixel_values"])
    assert pixels[0, 0].std() < 1e-3


def test_convnexts_own_crop_is_kept(tmp_path):
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.5).save_pretrained(tmp_path)
    joined = CnnLstmProcessor.from_pretrained_parts(vision=tmp_path, text=build_word_tokenizer(CAPTIONS, 1))
    assert type(joined.image_processor).__name__.startswith("ConvNext")


def test_timms_preprocessing_becomes_an_image_processor_of_the_usual_settings(tmp_path):
    pytest.importorskip("timm")
    TimmWrapperConfig(
        architecture="resnet10t",
        do_pooling=False,
        pretrained_cfg={
            "input_size": (3, 48, 32),
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.2),
        },
    ).save_pretrained(tmp_path)
    joined = CnnLstmProcessor.from_pretrained_parts(vision=tmp_path, text=build_word_tokenizer(CAPTIONS, 1))
    assert isinstance(joined.image_processor, ViTImageProcessor)
    assert joined(images=Image.new("RGB", (9, 9)))["pixel_values"].shape == (1, 3, 48, 32)
    joined.save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(tmp_path / "saved")


def test_saved_processor_comes_back_through_auto_processor(processor, tmp_path):
    processor.max_label_length = 7
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is CnnLstmProcessor and reloaded.max_label_length == 7
    picture = Image.effect_noise((40, 30), 50).convert("RGB")
    batch, expected = (one(images=picture, text="a dog sits") for one in (reloaded, processor))
    assert set(batch) == set(expected) == {"pixel_values", "labels"} == set(processor.model_input_names)
    for name, value in expected.items():
        assert torch.equal(batch[name], value)


def test_decoding_gives_words(processor):
    assert processor.batch_decode([[1, 4, 6, 7, 2, 0]], skip_special_tokens=True) == ["a dog runs"]
