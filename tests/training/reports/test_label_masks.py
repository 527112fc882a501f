import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_vlm.training.reports.label_masks import MaskedToken, label_mask, token_texts
from tests.models.llava.tiny_llava import tiny_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, so that most characters are made of several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words whose first space a decoder takes away, as SentencePiece's are."""
    vocabulary = {"▁two": 0, "▁do": 1, "gs": 2, "▁ran": 3, "?": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_parts_of_a_character_stand_as_one():
    tokenizer = byte_tokenizer()
    token_ids = tokenizer("né 漢!")["input_ids"]
    assert len(token_ids) == 8
    assert token_texts(tokenizer, token_ids) == ["n", "", "é", " ", "", "", "漢", "!"]


def test_bytes_that_are_no_character_are_shown_all_the_same():
    tokenizer = byte_tokenizer()
    cut = tokenizer("漢")["input_ids"][:2]
    assert "".join(token_texts(tokenizer, cut)) == "\N{REPLACEMENT CHARACTER}"
    assert len(token_texts(tokenizer, cut * 4)) == 8


def test_spaces_between_words_are_kept():
    assert token_texts(word_tokenizer(), [0, 1, 2, 3]) == ["two", " do", "gs", " ran"]


def test_mask_is_literal_and_pictures_are_counted():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a?", "no"))
    token_ids = [image] * 4 + asked + [image] + said
    mask = label_mask(tokenizer, token_ids, [False] * 7 + [True] * 2, "rows.json, row 3", image)
    assert mask.tokens == [
        MaskedToken("<image> x 4", False),
        MaskedToken("a", False),
        MaskedToken("?", False),
        MaskedToken("<image> x 1", False),
        MaskedToken("n", True),
        MaskedToken("o", True),
    ]
    assert (mask.num_tokens, mask.num_learnt, mask.source) == (9, 2, "rows.json, row 3")


def test_mask_wants_a_flag_a_token():
    with pytest.raises(ValueError):
        label_mask(byte_tokenizer(), [1, 2], [True], "row")
