"""An audit finds what was put wrong into conversations, each in its place, and nothing else; and counts what is learnt."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_vlm.data import worker_processes
from hf_vlm.data.conversations.conversation_audit import audit_conversations


class Words:
    """A processor whose tokens are words, four a picture; the assistant's are learnt, unless they are dots."""

    image_token_id = 0

    def encode_conversation(self, messages, max_length=None):
        input_ids, labels = [], []
        for message in messages:
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                tokens = [0] * 4 if part["type"] == "image" else [len(word) for word in part["text"].split()]
                is_learnt = message["role"] == "assistant" and part["text"] != "..."
                input_ids += tokens
                labels += tokens if is_learnt else [-100] * len(tokens)
        if "refused" in str(messages):
            raise ValueError("a better conversation is wanted.")
        input_ids, labels = input_ids[:max_length], labels[:max_length]
        if max_length is not None and set(labels) == {-100}:
            raise ValueError("words to learn are wanted.")
        return {"input_ids": input_ids, "labels": labels}


def row(question, answer, image=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | ({"image": image} if image else {})


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        noise = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    train = [
        row("<image>\nWhat is it", "A red bus there", "a.png"),  # 4 + 3 + 4 tokens
        row("<image> <image> Which", "Both", ["a.png", "b.png"]),  # 8 + 1 + 1
        row("Hello", "Hello to you"),  # 1 + 3
    ]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "validation.jsonl", [row("<image>\nWhat is it", "A red bus there", "c.png")])
    return tmp_path


def change(data, *rows):
    """Puts rows at the end of the training split."""
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join("\n" + (line if isinstance(line, str) else json.dumps(line)) for line in rows))


def test_sound_conversations_are_usable_and_measured(data):
    audit = audit_conversations(data, processor=Words(), max_length=11)
    assert audit.is_usable and not audit.faults
    assert audit.num_conversations == {"train": 3, "validation": 1}
    assert audit.picture_counts == {1: 2, 2: 1, 0: 1} and audit.text_only_share == 0.25
    # tokens 11, 10, 4, 11; of text 7, 2, 4, 7; learnt 4, 1, 3, 4
    assert audit.num_tokens == {"all": 36, "text": 20, "trained": 12}
    assert audit.trained_shares == {"text": 0.6, "all": pytest.approx(1 / 3)}
    assert audit.lengths == {"median": 10, "95 %": 11, "longest": 11}
    assert str(audit).splitlines() == [
        "train: 3 conversations",
        "validation: 1 conversations",
        "pictures in a conversation: 0: 1, 1: 2, 2: 1; text only: 25.0 %",
        "tokens: median 10, 95 % 11, longest 11",
        "trained tokens: 12, 60.0 % of text, 33.3 % of all",
        "usable",
    ]
    told = json.loads(json.dumps(audit.to_dict()))
    assert told["is_usable"] is True and told["trained_shares"]["text"] == 0.6 and told["text_only_share"] == 0.25


def test_without_processor_tokens_are_not_counted(data):
    audit = audit_conversations(data, ["train"])
    assert audit.is_usable and audit.num_conversations == {"train": 3}
    assert not audit.num_tokens and not audit.lengths and not audit.trained_shares
    assert "tokens" not in str(audit)
    with pytest.raises(ValueError, match="`max_length` wants a processor"):
        audit_conversations(data, max_length=11)


def test_ninety_five_per_cent_are_at_most_as_long_as_told(data):
    write(data / "train.jsonl", [row("Q " * number, "A") for number in range(1, 21)])  # 2 to 21 tokens
    audit = audit_conversations(data, ["train"], processor=Words())
    assert audit.lengths == {"median": 11, "95 %": 20, "longest": 21}


FAULTS = {
    "bad rows": (["nonsense", {"x": 1}], ["line 4: wanted a JSON object", "line 5: wanted `messages` or"]),
    "missing pictures": ([row("<image>", "A", "gone.png")], ["line 4: wanted the picture gone.png"]),
    "unwanted names of pictures": ([row("<image>", "A", "../a.png")], ["line 4: wanted a picture's name inside"]),
    "pictures without places": ([row("Q", "A", "a.png")], ["line 4: wanted as many pictures"]),
    "role order": (
        [
            {"conversations": row("Q", "A")["conversations"][::-1]},
            {"conversations": row("Q", "A")["conversations"][:1]},
        ],
        ["line 4: wanted `user` to speak first", "line 5: wanted the last word from `assistant`"],
    ),
    "unknown roles": ([{"messages": [{"role": "bot", "content": "A"}]}], ["line 4: wanted `role` of `messages[0]`"]),
    "empty answers": ([row("Q", " ")], ["line 4: wanted words in `messages[1]` of `assistant`"]),
    "image tokens in texts": ([row("Q", "<image>")], ["line 4: wanted no `<image>` in texts"]),
    "unreadable pictures": ([row("<image>", "A", "broken.png")], ["line 4, broken.png: wanted a picture in a format"]),
    "conversations in two splits": (
        [row("<image>What is it", "A red bus there", "copy.bmp")],
        ["validation.jsonl, line 1: the same conversation is in `train` ("],
    ),
    "nothing to learn": ([row("Q Q", "...")], ["line 4: wanted tokens that carry loss, got none in 3"]),
    "conversations that can't be encoded": ([row("Q", "refused")], ["line 4: a better conversation is wanted."]),
    "too long": ([row("<image> Q", "A " * 7, "a.png")], ["line 4: wanted at most 11 tokens, got 12"]),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_told_with_its_place_and_no_other(data, kind):
    rows, wanted = FAULTS[kind]
    (data / "broken.png").write_bytes(b"no picture")
    Image.open(data / "c.png").save(data / "copy.bmp")  # other bytes, the same pixels
    change(data, *rows)
    audit = audit_conversations(data, processor=Words(), max_length=11)
    assert not audit.is_usable
    assert list(audit.faults) == [kind]
    assert len(audit.faults[kind]) == len(wanted)
    for message, part in zip(audit.faults[kind], wanted, strict=True):
        assert message.startswith(str(data)) and part in message
    assert f"{kind}: {len(wanted)}" in str(audit) and "not usable" in str(audit)


def test_conversation_that_loses_its_answer_when_cut_is_told_too(data):
    change(data, row("Q " * 11, "A"))
    audit = audit_conversations(data, processor=Words(), max_length=11)
    assert {kind: len(messages) for kind, messages in audit.faults.items()} == {
        "too long": 1,
        "nothing left when cut": 1,
    }
    assert "line 4: words to learn are wanted." in audit.faults["nothing left when cut"][0]


def test_first_token_can_not_be_learnt(data):
    write(data / "train.jsonl", [row("<image>", "A", "a.png")])
    audit = audit_conversations(data, ["train"], processor=AllLearnt())
    assert audit.num_tokens == {"all": 5, "text": 1, "trained": 4}


class AllLearnt(Words):
    def encode_conversation(self, messages, max_length=None):
        input_ids = super().encode_conversation(messages, max_length)["input_ids"]
        return {"input_ids": input_ids, "labels": input_ids}


@pytest.mark.parametrize("num_proc", [2, 4])
def test_several_processes_find_what_one_finds(data, num_proc, monkeypatch):
    (data / "cut.png").write_bytes((data / "a.png").read_bytes()[:60])
    change(
        data,
        row("<image>\nWhat is it", "A red bus there", "c.png"),  # as in validation
        row("<image>\nWhat", "Cut", "cut.png"),
        row("refused", "no"),
        row("nothing", "..."),
        row("too long", "a b c d e f g h i j k l"),
        row("a b c d e f g h i j k l", "m n"),
        row("<image>", "gone", "gone.png"),
    )
    alone = audit_conversations(data, processor=Words(), max_length=11)
    assert sum(map(len, alone.faults.values())) == 8 and len(alone.faults) == 7
    started = []
    write_parts = worker_processes._write_parts
    monkeypatch.setattr(
        worker_processes, "_write_parts", lambda *given: started.append(given[1]) or write_parts(*given)
    )
    found = audit_conversations(data, processor=Words(), max_length=11, num_proc=num_proc)
    assert started == [num_proc]  # for the split of one row none
    assert found.to_dict() == alone.to_dict() and str(found) == str(alone)
    assert list(found.faults) == list(alone.faults)  # in the same order


def test_number_of_processes_is_checked_first(tmp_path):
    with pytest.raises(ValueError, match="`num_proc` must be 1 or more, got 0"):
        audit_conversations(tmp_path / "nowhere", num_proc=0)


def test_split_that_can_not_be_read_does_not_end_the_audit(data):
    (data / "train.jsonl").write_bytes(b"\xff")
    audit = audit_conversations(data)
    assert audit.num_conversations == {"train": 0, "validation": 1} and not audit.is_usable
    assert "must be UTF-8 text" in audit.faults["splits without conversations"][0]
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        audit_conversations(data, ["train"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        audit_conversations(data / "gone")


def test_long_lists_are_shortened_in_the_report_only(data):
    change(data, *[row("Q", "")] * 8)
    audit = audit_conversations(data)
    assert len(audit.to_dict()["faults"]["empty answers"]) == 8
    assert "  ... and 3 more (`--json` lists all)" in str(audit).splitlines()


def test_pictures_are_looked_for_in_the_folder_given(data):
    texts = data / "texts"
    texts.mkdir()
    (data / "train.jsonl").rename(texts / "rows.jsonl")
    assert list(audit_conversations(texts / "rows.jsonl").faults) == ["missing pictures"]
    assert audit_conversations(texts / "rows.jsonl", image_folder=data).is_usable


def test_conversation_may_be_in_a_split_twice(data):
    change(data, row("Hello", "Hello to you"))
    assert audit_conversations(data).is_usable
