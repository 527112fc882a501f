import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.training.reports.word_attention import (
    NoWordMapError,
    eager,
    overlay,
    seen_picture,
    word_maps,
    words_of,
    written_words,
)
from hf_vlm.training.trocr import build_trainer
from tests.models.cnn_lstm.tiny_captioners import GRID, tiny_captioner
from tests.models.llava.tiny_llava import tiny_image_processor, tiny_tokenizer
from tests.tiny_lines import recipe_of


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["two", " do", "gs", " ran"], [("two", [0]), ("dogs", [1, 2]), ("ran", [3])]),
        (["a", " ", "c", "at", ""], [("a", [0]), ("cat", [2, 3])]),
        (["c", "", "at"], [("c", [0]), ("at", [2])]),  # one word: by characters
        (["", "a", "\n", "b"], [("a", [1]), ("b", [3])]),
        (["", " "], []),
    ],
)
def test_words_are_what_spaces_part(texts, words):
    assert words_of(texts) == words


def test_map_of_a_word_is_the_mean_over_its_tokens():
    maps = torch.zeros(3, 1, 2)
    maps[0, 0, 0], maps[1, 0, 1], maps[2, 0, 1] = 0.5, 0.25, 0.75
    picture = Image.new("RGB", (8, 4), "white")
    first, second = word_maps(maps, ["a", " c", "at"], picture, number=2)
    assert (first.word, first.most, second.word, second.most) == ("a", 0.5, "cat", 0.5)
    assert second.number == 2 and second.picture.size == (128, 64)
    left, right = np.asarray(second.picture)[32, 20], np.asarray(second.picture)[32, 108]
    assert (left > 250).all() and right[0] > right[1] + 60  # clear, and dark red
    assert word_maps(maps, ["a", " c", "at"], picture, number=2, max_words=1) == [first]


def test_map_without_a_most_is_clear():
    assert np.asarray(overlay(Image.new("RGB", (400, 40), "white"), torch.full((1, 5), 0.2))).min() > 250


def test_seen_picture_undoes_the_image_processor():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    processor = tiny_image_processor()
    made = processor([Image.fromarray(pixels)], return_tensors="pt")["pixel_values"][0]
    assert np.abs(np.asarray(seen_picture(processor, made)).astype(int) - pixels).max() <= 1


@pytest.fixture
def captioner_processor():
    return CnnLstmProcessor(tiny_image_processor(), tiny_tokenizer())


def test_model_that_tells_its_attention_is_asked(captioner_processor, monkeypatch):
    model = tiny_captioner("additive")
    asked = {}

    def attention_over_words(pixel_values, token_ids):
        asked["shape"], asked["ids"] = pixel_values.shape, token_ids.tolist()
        maps = torch.zeros(1, token_ids.shape[1], *GRID)
        maps[0, :, 2, 1] = torch.arange(1, token_ids.shape[1] + 1) / 10
        return maps

    monkeypatch.setattr(model, "attention_over_words", attention_over_words)
    tokenizer = captioner_processor.tokenizer
    said = tokenizer("no", add_special_tokens=False)["input_ids"]
    token_ids = torch.tensor([[tokenizer.bos_token_id, *said, tokenizer.eos_token_id]])
    found = written_words(model, captioner_processor, Image.new("RGB", (16, 16)), token_ids)
    assert asked["ids"] == [[*said, tokenizer.eos_token_id]]
    assert [(one.word, round(one.most, 4)) for one in found] == [("n", 0.1), ("o", 0.2)]


def test_captioner_without_attention_says_so(captioner_processor):
    with pytest.raises(NoWordMapError, match="attention='additive'"):
        written_words(tiny_captioner(), captioner_processor, Image.new("RGB", (16, 16)), torch.tensor([[1, 5, 6, 2]]))


def test_padding_of_a_line_is_not_shown(lines_folder, recipe_sections):
    trainer = build_trainer(recipe_of(recipe_sections))
    model, processor = trainer.model.eval(), trainer.processing_class
    picture = Image.open(lines_folder / "train" / "line_0.png")

    class BesideALongerOne:
        """What the picture is made to in a batch with one of twice its width."""

        image_processor, tokenizer = processor.image_processor, processor.tokenizer

        def __call__(self, images, return_tensors):
            longer = Image.new("L", (2 * picture.width, picture.height), 255)
            batch = processor(images=[*images, longer], return_tensors=return_tensors)
            return BatchFeature({name: values[:1] for name, values in batch.items()})

    token_ids = torch.tensor([[model.config.decoder_start_token_id, *processor.labels(["a cat"])[0].tolist()]])
    alone = written_words(model, processor, picture, token_ids)
    beside = written_words(model, BesideALongerOne(), picture, token_ids)
    assert [one.word for one in alone] == [one.word for one in beside] == ["a", "cat"]
    assert [one.picture.size for one in alone] == [one.picture.size for one in beside]
    assert [one.most for one in alone] == pytest.approx([one.most for one in beside], abs=1e-5)


def test_kernel_is_given_back():
    class Model:
        def __init__(self):
            self.config = type("Config", (), {"_attn_implementation": "sdpa"})()

        def set_attn_implementation(self, kernel):
            self.config._attn_implementation = kernel

    model = Model()
    with pytest.raises(KeyError), eager(model):
        assert model.config._attn_implementation == "eager"
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
