"""Features of pictures are computed once, gone on with after a stop, and never those of another encoder, processor or set."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm import LlavaVisionLanguageProcessor
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.training import feature_cache
from hf_vlm.training.feature_cache import cached_features
from tests.models.llava.tiny_llava import NUM_TOKENS, tiny_image_processor, tiny_llava, tiny_tokenizer

NUM_PICTURES = [index % 3 for index in range(9)]  # of each row: text-only ones are among them


@pytest.fixture
def model():
    return tiny_llava(
        vision={"num_hidden_layers": 2}, text={"vocab_size": NUM_TOKENS + 1}, image_token_id=NUM_TOKENS
    ).train()


@pytest.fixture
def processor(model):
    return LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(), tiny_tokenizer(), vision_config=model.config.vision_config
    )


@pytest.fixture
def write(tmp_path):
    """`write(numbers)`: a set of conversations of as many pictures, each picture of its own, in a file of one name."""

    def written(numbers=tuple(NUM_PICTURES), seed=0, name="rows.json"):
        generator = np.random.default_rng(seed)
        rows = []
        for index, number in enumerate(numbers):
            names = [f"{index}-{picture}.png" for picture in range(number)]
            for file in names:
                Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / file)
            asked = {"role": "user", "content": [*[{"type": "image"}] * number, {"type": "text", "text": "what"}]}
            rows.append({"messages": [asked, {"role": "assistant", "content": "that"}], "images": names})
        (tmp_path / name).write_text(json.dumps(rows))
        return read_conversations(tmp_path / name)

    return written


class Counting:
    """A processor that counts the pictures it prepares, and may stop at one, as a kill would."""

    def __init__(self, processor, stop_after=None):
        self.processor, self.stop_after, self.seen = processor, stop_after, 0

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def prepare_images(self, images):
        if self.stop_after is not None and self.seen + len(images) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self.processor.prepare_images(images)


def wanted(model, processor, rows):
    pictures = [picture for index in range(len(rows)) for picture in rows.images(index)]
    with torch.no_grad():
        return model.eval().vision_features(processor.prepare_images(pictures)).numpy()


def test_features_are_those_of_the_encoder_in_the_order_of_the_rows(model, processor, write, tmp_path):
    rows = write()
    features = cached_features(model, processor, rows, tmp_path / "cache", batch_size=2)
    assert features.shape == (9, 4, 16) and features.dtype == np.float32
    assert model.training
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)


def test_full_cache_is_read_without_a_look_at_the_encoder(model, processor, write, tmp_path):
    counting = Counting(processor)
    first = np.array(cached_features(model, counting, write(), tmp_path / "cache"))
    assert counting.seen == 9
    again = cached_features(model, counting, write(), tmp_path / "cache")
    assert counting.seen == 9 and np.array_equal(first, again)


def test_stopped_run_goes_on_where_it_was(model, processor, write, tmp_path):
    rows = write()
    counting = Counting(processor, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, counting, rows, tmp_path / "cache", batch_size=2)
    assert model.training
    before = counting.seen
    assert 0 < before < 9
    counting.stop_after = None
    features = cached_features(model, counting, rows, tmp_path / "cache", batch_size=2)
    assert counting.seen == 9  # none twice
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)


def test_killed_run_goes_on_from_its_last_note(model, processor, write, tmp_path):
    """A kill leaves no time to note anything: what is noted is computed, what is computed may not be noted."""
    rows = write([1] * 120)
    counting = Counting(processor, stop_after=110)
    state = tmp_path / "cache" / "features.json"
    noted = []

    def prepare(images):
        noted.append(json.loads(state.read_text())["rows_done"] if state.is_file() else 0)
        return Counting.prepare_images(counting, images)

    counting.prepare_images = prepare
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, counting, rows, tmp_path / "cache", batch_size=2)
    assert noted[-1] == 100  # of 110 computed
    state.write_text(json.dumps(json.loads(state.read_text()) | {"rows_done": 100}))
    counting.stop_after, counting.seen = None, 0
    features = cached_features(model, counting, rows, tmp_path / "cache", batch_size=2)
    assert counting.seen == 20
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["weights", "layer", "mean", "aspect ratio", "pictures", "number", "other rows"])
def test_cache_of_anything_else_is_computed_anew(model, processor, write, tmp_path, change):
    counting = Counting(processor)
    before = np.array(cached_features(model, counting, write(), tmp_path / "cache"))
    counting.seen = 0
    rows = write()
    if change == "weights":
        with torch.no_grad():
            next(model.vision_model.parameters()).add_(0.5)
    elif change == "layer":
        model.config.vision_feature_layer = -2
    elif change == "mean":
        processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    elif change == "aspect ratio":
        processor.image_aspect_ratio = "square"
    elif change == "pictures":  # a set written anew in the place of the other
        rows = write(seed=1)
    elif change == "number":
        rows = write([*NUM_PICTURES[1:], 0])
    else:
        rows = rows.select([8, 7, 6, 5, 4, 3, 2, 1, 0])
    features = cached_features(model, counting, rows, tmp_path / "cache")
    assert counting.seen == 9
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)
    if change not in ("aspect ratio", "number"):
        assert not np.allclose(features, before)


def test_half_done_cache_of_another_encoder_is_not_gone_on_with(model, processor, write, tmp_path):
    rows = write()
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, Counting(processor, stop_after=5), rows, tmp_path / "cache", batch_size=2)
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(0.5)
    features = cached_features(model, processor, rows, tmp_path / "cache", batch_size=2)
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)


def test_text_only_rows_have_no_features(model, processor, write, tmp_path):
    for _ in range(2):
        assert cached_features(model, processor, write([0, 0]), tmp_path / "cache").shape == (0, 4, 16)


def test_unreadable_picture_is_named_and_those_before_it_are_kept(model, processor, write, tmp_path):
    rows = write([1] * 90)  # more than are looked at to know the set again
    picture = (tmp_path / "61-0.png").read_bytes()
    looked_at = np.linspace(0, 89, 32).round()
    assert 61 not in looked_at
    (tmp_path / "61-0.png").write_bytes(picture[:50])
    counting = Counting(processor)
    with pytest.raises(ValueError, match=r"rows\.json, row 61, 61-0\.png"):
        cached_features(model, counting, rows, tmp_path / "cache", batch_size=4)
    assert counting.seen == 60
    (tmp_path / "61-0.png").write_bytes(picture)
    features = cached_features(model, counting, rows, tmp_path / "cache", batch_size=4)
    assert counting.seen == 90
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)


def test_killed_run_leaves_nothing_that_passes_for_the_full_cache_before_it(
    model, processor, write, tmp_path, monkeypatch
):
    rows = write()
    cached_features(model, processor, rows, tmp_path / "cache")
    with monkeypatch.context() as killed:  # once a picture was looked at, no note is written
        counting, write_note = Counting(processor, stop_after=4), feature_cache._write
        killed.setattr(feature_cache, "_write", lambda *note: counting.seen or write_note(*note))
        processor.image_processor.image_mean = [0.2] * 3
        with pytest.raises(KeyboardInterrupt):
            cached_features(model, counting, rows, tmp_path / "cache", batch_size=2)
    processor.image_processor.image_mean = [0.5] * 3
    features = cached_features(model, processor, rows, tmp_path / "cache")
    np.testing.assert_allclose(features, wanted(model, processor, rows), rtol=1e-5, atol=1e-6)
