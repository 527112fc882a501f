"""One token a word. Oracles: literal lists of words and ids."""

import pytest
from transformers import AutoTokenizer

from hf_vlm.data.word_tokenizer import build_word_tokenizer

CAPTIONS = ["A dog runs on the grass.", "a dog , on the grass .", "The dog!", "a cat"]


def words_of(text: str) -> list[str]:
    """The words of a text as a tokenizer that knows them all splits it."""
    return build_word_tokenizer([text, "another caption"], min_count=1).tokenize(text)


def test_special_tokens_have_the_ids_of_the_tutorial():
    tokenizer = build_word_tokenizer(CAPTIONS, min_count=1)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<start>", "<end>", "<unk>"]) == [0, 1, 2, 3]
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)


def test_words_are_numbered_by_frequency_then_code_point_whatever_order_came_in():
    wanted = ["a", "dog", "the", "grass", "on", "cat", "runs"]  # 3, 3, 3, 2, 2, 1, 1 times
    for captions in (CAPTIONS, CAPTIONS[::-1], iter(CAPTIONS)):
        tokenizer = build_word_tokenizer(captions, min_count=1)
        assert tokenizer.convert_ids_to_tokens(range(4, len(tokenizer))) == wanted


def test_rare_words_become_unk():
    tokenizer = build_word_tokenizer(CAPTIONS, min_count=2)
    assert len(tokenizer) == 4 + 5
    assert tokenizer("a cat on the grass")["input_ids"] == [4, 3, 8, 6, 7]
    assert len(build_word_tokenizer(CAPTIONS * 4)) == 4 + 7  # four times is often enough


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Dog, on the GRASS.", ["a", "dog", "on", "the", "grass"]),
        ("a dog , on the grass .", ["a", "dog", "on", "the", "grass"]),
        ("A man's T-shirt -- 'blue' !", ["a", "man's", "t-shirt", "blue"]),
        ("a man’s \u201cold\u201d hat", ["a", "man's", "old", "hat"]),
        ("a man 's hat", ["a", "man", "s", "hat"]),
        ("two\ttabs\n and  spaces/slashes (3)", ["two", "tabs", "and", "spaces", "slashes", "3"]),
        ("Ein Café, e\u0301tage ÜBER", ["ein", "café", "étage", "über"]),
        ("Двa кота.", ["двa", "кота"]),
        ("<start> a dog <end>", ["start", "a", "dog", "end"]),
    ],
)
def test_text_is_lower_case_words_without_punctuation(text, words):
    assert words_of(text) == words


def test_decoding_joins_words_by_spaces():
    tokenizer = build_word_tokenizer(CAPTIONS, min_count=1)
    ids = tokenizer("A dog,  on the grass.")["input_ids"]
    assert tokenizer.decode(ids) == "a dog on the grass"
    assert tokenizer.decode([1, *ids, 2, 0, 0], skip_special_tokens=True) == "a dog on the grass"


def test_saved_tokenizer_reads_and_writes_the_same(tmp_path):
    tokenizer = build_word_tokenizer([*CAPTIONS, "a man's café"], min_count=1)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A man’s CAFÉ, <end> on the grass .", "nothing known"):
        assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert reloaded.decode(reloaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert reloaded.get_vocab() == tokenizer.get_vocab() and reloaded.all_special_ids == tokenizer.all_special_ids


@pytest.mark.parametrize("captions", [[], ["", " . ", "!!"]])
def test_captions_without_words_are_refused(captions):
    with pytest.raises(ValueError, match=f"must hold words, got {len(captions)} captions without one"):
        build_word_tokenizer(captions)


def test_captions_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="must differ, got 5 of the same words, 'a dog'"):
        build_word_tokenizer(["A dog.", "a dog", "a  dog !", "a dog", "a dog"])


def test_count_that_leaves_no_word_is_refused_with_one_that_does():
    with pytest.raises(
        ValueError, match="got 4, where the most frequent, 'a', is there 3 times. Lower `min_count` to 3"
    ):
        build_word_tokenizer(CAPTIONS, min_count=4)
    with pytest.raises(ValueError, match="`min_count` must be 1 or more, got 0"):
        build_word_tokenizer(CAPTIONS, min_count=0)


def test_one_text_is_no_list_of_captions():
    with pytest.raises(TypeError, match="Put it into a list"):
        build_word_tokenizer("a dog runs")
