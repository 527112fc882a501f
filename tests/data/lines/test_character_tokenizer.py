import pytest
from transformers import AutoTokenizer

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET, build_character_tokenizer


def test_special_tokens_have_the_documented_ids():
    tokenizer = build_character_tokenizer(["ab"])
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_each_character_is_one_token_in_code_point_order_whatever_order_came_in():
    for texts in (["ba", "é "], ["é", " ab"]):
        tokenizer = build_character_tokenizer(texts)
        assert tokenizer("abé ba")["input_ids"] == [5, 6, 7, 4, 6, 5]


@pytest.mark.parametrize(
    "text", ["  two  spaces ", "don 't , stop .", "Ünïcødé ß œ", "a\t\tb\n\nc", "<s> </s> <pad>", "“x” – y…"]
)
def test_decoding_gives_the_text_back_exactly(text):
    tokenizer = build_character_tokenizer([text], alphabet=LATIN_ALPHABET)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 2, 0, 0], skip_special_tokens=True) == text


def test_combining_accents_become_one_character():
    tokenizer = build_character_tokenizer(["e\u0301"])
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("é")["input_ids"] == [4]


def test_unknown_characters_become_unk():
    assert build_character_tokenizer(["ab"])("a☃b")["input_ids"] == [4, 3, 5]


def test_saved_tokenizer_reads_and_spells_the_same(tmp_path):
    tokenizer = build_character_tokenizer(alphabet=LATIN_ALPHABET)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "  Ça <s> va ? 'Oui'  "
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert reloaded.decode(reloaded(text)["input_ids"]) == text


def test_no_characters_are_refused():
    with pytest.raises(ValueError, match="at least one character"):
        build_character_tokenizer([""])


def test_latin_alphabet_names_each_character_once():
    assert len(set(LATIN_ALPHABET)) == len(LATIN_ALPHABET)
