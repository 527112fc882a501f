"""Rows become tokens, what is learnt of them and pictures; a picture that can't be read stops or is skipped by name."""

import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm import LlavaVisionLanguageProcessor, VisionTransformerConfig
from hf_vlm.data import worker_processes
from hf_vlm.data.conversations.caption_requests import CAPTION_REQUESTS
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.data.conversations.encoded_conversations import EncodedConversations, JoinedConversations
from tests.models.llava.tiny_llava import tiny_image_processor, tiny_tokenizer

LEVELS = {"a.png": 40, "b.png": 120, "c.png": 200}


@pytest.fixture(scope="module")
def processor():
    """Pictures of 16 x 16 pixels in 4 tokens, texts in one token a character."""
    config = VisionTransformerConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pooling="none"
    )
    return LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(), tiny_tokenizer(), vision_config=config
    )


def spoken(*turns):
    """User and assistant by turns; a picture a `*` at a turn's beginning."""
    messages = []
    for number, turn in enumerate(turns):
        words = turn.lstrip("*")
        pictures = [{"type": "image"}] * (len(turn) - len(words))
        messages.append(
            {"role": ("user", "assistant")[number % 2], "content": [*pictures, {"type": "text", "text": words}]}
        )
    return messages


CAPTIONS = [
    (["a.png"], spoken("*what", "one")),
    (["b.png"], spoken("*what", "two")),
    (["c.png"], spoken("*what", "six")),
]
CHAT = [
    (["a.png", "b.png"], spoken("**two", "both")),
    ([], spoken("hello", "hi")),
    (["c.png", "a.png"], spoken("*one", "red", "*and", "blue")),
    (["b.png"], spoken("*b", "seen")),
]


@pytest.fixture
def write(tmp_path):
    """`write([(names of pictures, messages), ...])`: the rows as they are read."""
    for name, level in LEVELS.items():
        Image.new("RGB", (16, 16), (level, level, level)).save(tmp_path / name)

    def written(rows):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps([{"messages": messages, "images": names} for names, messages in rows]))
        return read_conversations(file)

    return written


def words(processor, token_ids):
    return processor.tokenizer.decode([token for token in token_ids.tolist() if token >= 0])


def levels(pixel_values):
    """The grey, 0 to 255, of each picture."""
    return [round(float(pixels.mean() * 127.5 + 127.5)) for pixels in pixel_values]


def test_item_holds_tokens_labels_and_pictures_in_reading_order(processor, write):
    encoded = EncodedConversations(write(CHAT), processor)
    assert len(encoded) == 4
    for index, (names, messages) in enumerate(CHAT):
        item = encoded[index]
        alone = processor.encode_conversation(messages)
        assert item["input_ids"].tolist() == alone["input_ids"] and item["input_ids"].dtype == torch.int64
        assert item["labels"].tolist() == alone["labels"] and item["labels"].dtype == torch.int64
        assert item["source"].endswith(f"rows.json, row {index}")
        assert levels(item.get("pixel_values", [])) == [LEVELS[name] for name in names]
    assert "pixel_values" not in encoded[1] and "image_features" not in encoded[1]
    assert words(processor, encoded[2]["labels"]) == "red<|im_end|>blue<|im_end|>"


def test_counts_are_those_of_the_items(processor, write):
    encoded = EncodedConversations(write(CHAT), processor)
    items = [encoded[index] for index in range(4)]
    assert encoded.lengths.tolist() == [len(item["input_ids"]) for item in items]
    assert encoded.num_learnt.tolist() == [int((item["labels"] >= 0).sum()) for item in items] == [5, 3, 9, 5]
    assert encoded.num_images.tolist() == [2, 0, 2, 1]


def test_cut_conversation_shows_only_the_pictures_that_it_keeps(processor, write):
    rows = write(CHAT)
    whole = EncodedConversations(rows, processor)
    encoded = EncodedConversations(rows, processor, max_length=int(whole.lengths[2]) - 1)
    item = encoded[2]
    assert words(processor, item["labels"]) == "red<|im_end|>"
    assert encoded.num_images[2] == 1 and levels(item["pixel_values"]) == [LEVELS["c.png"]]
    assert int((item["input_ids"] == processor.image_token_id).sum()) == 4
    assert (whole.num_cut, encoded.num_cut) == (0, 1)


def test_features_stand_for_the_pictures_of_their_row(processor, write):
    rows = write(CHAT)
    features = np.arange(5, dtype=np.float32)[:, None, None] + np.zeros((5, 4, 16), np.float32)
    encoded = EncodedConversations(rows, processor, features=features)
    seen = [encoded[index].get("image_features", torch.zeros(0, 1, 1))[:, 0, 0].tolist() for index in range(4)]
    assert seen == [[0, 1], [], [2, 3], [4]]
    assert "pixel_values" not in encoded[0] and encoded[0]["image_features"].shape == (2, 4, 16)
    short = EncodedConversations(rows, processor, features=features, max_length=int(encoded.lengths[2]) - 1)
    assert short[2]["image_features"][:, 0, 0].tolist() == [2]
    assert short[3]["image_features"][:, 0, 0].tolist() == [4]


def test_plain_context_leaves_picture_and_caption(processor, write):
    item = EncodedConversations(write(CAPTIONS), processor, context="plain")[1]
    assert words(processor, item["input_ids"]) == "<s>" + "<image>" * 4 + "two\n"
    assert words(processor, item["labels"]) == "two\n"


def test_instruction_context_asks_otherwise_by_seed_and_row_alone(processor, write):
    def requests(seed, number=40):
        rows = write(CAPTIONS[:1] * number)
        encoded = EncodedConversations(rows, processor, context="instruction", seed=seed)
        texts = [words(processor, encoded[index]["input_ids"]) for index in range(number)]
        assert all(words(processor, encoded[index]["labels"]) == "one<|im_end|>" for index in range(number))
        return [[request for request in CAPTION_REQUESTS if request in text] for text in texts]

    asked = requests(3)
    assert all(len(found) == 1 for found in asked)
    assert len({found[0] for found in asked}) > 5
    assert requests(3) == asked and requests(4) != asked
    assert requests(3, 7) == asked[:7]


@pytest.mark.parametrize("context", ["instruction", "plain"])
def test_captions_of_several_exchanges_are_refused_by_row(processor, write, context):
    rows = write([*CAPTIONS, CHAT[2]])
    with pytest.raises(ValueError, match=r"rows\.json, row 3: .*"):
        EncodedConversations(rows, processor, context=context)


def test_row_without_room_for_its_answer_is_told_with_its_place(processor, write):
    with pytest.raises(ValueError, match=r"rows\.json, row 0: .*`max_length`=10"):
        EncodedConversations(write(CHAT), processor, max_length=10)


def broken(tmp_path, write, rows=CHAT):
    read = write(rows)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    return read


def test_unreadable_picture_stops_by_default_and_is_named(processor, write, tmp_path):
    encoded = EncodedConversations(broken(tmp_path, write), processor)
    assert levels(encoded[2]["pixel_values"]) == [LEVELS["c.png"], LEVELS["a.png"]]
    with pytest.raises(ValueError, match=r"rows\.json, row 0, b\.png"):
        encoded[0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"rows\.json, row 0, b\.png"):
        encoded[0]


def test_skipped_row_has_nothing_to_learn_and_is_listed_once(processor, write, tmp_path, caplog):
    report = tmp_path / "skipped.txt"
    encoded = EncodedConversations(broken(tmp_path, write), processor, bad_pictures="skip", skipped_file=report)
    for _ in range(2):
        item = encoded[0]
        assert (item["labels"] == -100).all() and len(item["labels"]) == len(item["input_ids"])
        assert item["pixel_values"].shape == (2, 3, 16, 16) and not item["pixel_values"].any()
        encoded[3]
    assert (encoded[2]["labels"] >= 0).any()
    lines = report.read_text().splitlines()
    assert len(lines) == 2 and "row 0, b.png" in lines[0] and "row 3, b.png" in lines[1]
    assert "row 0, b.png" in caplog.text


def test_workers_get_the_same_items(processor, write):
    encoded = EncodedConversations(write(CHAT), processor)
    again = pickle.loads(pickle.dumps(encoded))
    for index in range(4):
        one, other = encoded[index], again[index]
        assert one.keys() == other.keys() and one["source"] == other["source"]
        assert all(torch.equal(one[name], other[name]) for name in one if name != "source")


def test_joined_sets_lie_one_behind_the_other(processor, write, tmp_path):
    first = EncodedConversations(write(CHAT), processor)
    second = EncodedConversations(write(CAPTIONS), processor)
    joined = JoinedConversations([first, second, first])
    assert len(joined) == 11
    for index, item in enumerate([*(first[i] for i in range(4)), *(second[i] for i in range(3)), first[0]]):
        assert torch.equal(joined[index]["input_ids"], item["input_ids"]), index
        assert len(item["input_ids"]) == joined.lengths[index]
        assert int((item["labels"] >= 0).sum()) == joined.num_learnt[index]
        assert len(item.get("pixel_values", ())) == joined.num_images[index]
    assert torch.equal(joined[10]["input_ids"], first[3]["input_ids"])


class Numbered:
    """As many rows as asked for, each of its own length."""

    def __init__(self, start, number):
        self.rows = list(range(start, start + number))
        self.lengths = np.array(self.rows)
        self.num_images, self.num_learnt, self.num_cut = self.lengths * 0, self.lengths * 2, 1

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_weights_say_how_often_the_rows_of_a_set_come():
    joined = JoinedConversations([Numbered(10, 4), Numbered(20, 8)], [2, 0.25], seed=3)
    rows = [joined[index] for index in range(len(joined))]
    assert rows[:8] == [10, 11, 12, 13] * 2 and len(rows) == 10
    assert len(set(rows[8:])) == 2 and set(rows[8:]) <= set(range(20, 28))
    assert joined.lengths.tolist() == rows and joined.num_learnt.tolist() == [2 * row for row in rows]
    again = JoinedConversations([Numbered(10, 4), Numbered(20, 8)], [2, 0.25], seed=3)
    assert [again[index] for index in range(10)] == rows
    drawn = {tuple(JoinedConversations([Numbered(20, 8)], [0.25], seed=seed)[i] for i in range(2)) for seed in range(9)}
    assert len(drawn) > 1
    assert len(JoinedConversations([Numbered(0, 4), Numbered(9, 3)])) == 7


# By several processes


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def assert_equal(one, other):
    for name in ("lengths", "num_images", "num_learnt"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert one.num_cut == other.num_cut and len(one) == len(other)
    for index in range(len(one)):
        first, second = one[index], other[index]
        assert first.keys() == second.keys() and first["source"] == second["source"]
        assert all(torch.equal(first[name], second[name]) for name in first if name != "source"), index


@pytest.mark.parametrize(
    ("rows", "settings"),
    [(CHAT * 3, {"max_length": 40}), (CAPTIONS * 4, {"context": "instruction", "seed": 3}), (CAPTIONS[:1], {})],
)
def test_tokens_are_the_same_for_any_number_of_processes(processor, write, cache, rows, settings):
    read = write(rows).map_messages(louder)
    alone = EncodedConversations(read, processor, **settings)
    assert (alone.num_cut > 0) == ("max_length" in settings)
    for number in (2, 5):
        assert_equal(EncodedConversations(read, processor, num_proc=number, **settings), alone)
    chosen = read.select(range(0, len(rows), 2))
    assert_equal(
        EncodedConversations(chosen, processor, num_proc=2, **settings),
        EncodedConversations(chosen, processor, **settings),
    )


def louder(messages):
    """The last answer with a cry, as prompts are put to rows."""
    last = [{"type": "text", "text": messages[-1]["content"][-1]["text"] + "!"}]
    return [*messages[:-1], {**messages[-1], "content": last}]


@pytest.mark.parametrize("places", [(5,), (1, 5), (6, 7)])
def test_first_row_that_can_not_be_encoded_is_named_whichever_process_has_it(processor, write, cache, places):
    rows = list(CAPTIONS * 3)
    for place in places:
        rows[place] = CHAT[2]
    read = write(rows)
    told = []
    for number in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"rows\.json, row {places[0]}: ") as error:
            EncodedConversations(read, processor, context="plain", num_proc=number)
        told.append(str(error.value))
    assert len(set(told)) == 1


def test_what_processes_encoded_is_found_by_those_that_come_after(processor, write, cache, monkeypatch):
    read = write(CHAT)
    first = EncodedConversations(read, processor, num_proc=2)
    monkeypatch.setattr(worker_processes, "_write_parts", None)  # nothing can be encoded from here on
    assert_equal(EncodedConversations(read, pickle.loads(pickle.dumps(processor)), num_proc=2), first)
    assert_equal(EncodedConversations(write(CHAT), processor, num_proc=3), first)


@pytest.mark.slow
def test_what_was_encoded_otherwise_is_not_taken(processor, write, cache):
    before = EncodedConversations(write(CAPTIONS), processor, context="instruction", num_proc=2)
    other = pickle.loads(pickle.dumps(processor))
    other.chat_template = other.chat_template.replace("<|im_end|>", "</s>")
    wider = pickle.loads(pickle.dumps(processor))
    wider.tokenizer.add_tokens(["one", "six"])
    for its_processor, rows, settings in (
        (processor, CAPTIONS, {"context": "instruction", "seed": 1}),
        (processor, CAPTIONS, {"context": "plain"}),
        (processor, CAPTIONS, {"context": "instruction", "max_length": int(before.lengths.max()) - 1}),
        (processor, CAPTIONS[::-1], {"context": "instruction"}),
        (other, CAPTIONS, {"context": "instruction"}),
        (wider, CAPTIONS, {"context": "instruction"}),
    ):
        alone = EncodedConversations(write(rows), its_processor, **settings)
        assert_equal(EncodedConversations(write(rows), its_processor, num_proc=2, **settings), alone)
        assert [alone[i]["input_ids"].tolist() for i in range(3)] != [before[i]["input_ids"].tolist() for i in range(3)]
    read = write(CAPTIONS)
    changed = read.map_messages(louder)
    assert_equal(
        EncodedConversations(changed, processor, context="instruction", num_proc=2),
        EncodedConversations(changed, processor, context="instruction"),
    )
