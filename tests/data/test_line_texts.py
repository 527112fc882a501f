import numpy as np
import pytest

from hf_vlm.data.character_tokenizer import LATIN_ALPHABET
from hf_vlm.data.line_texts import LineTexts
from tests.data.line_files import SENTENCES


@pytest.mark.parametrize("kind", ["book", "typewriter", "till", "hand"])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_texts_keep_to_length_and_alphabet_and_are_clean(kind, length):
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,"
    texts = LineTexts([*SENTENCES, "Straße ☃"], alphabet)
    for index in range(300):
        text = texts.draw(kind, length, np.random.default_rng(index))
        assert 1 <= len(text) <= length
        assert set(text) <= set(alphabet)
        assert text == " ".join(text.split())


def test_fragments_are_words_of_the_sentences():
    texts = LineTexts(SENTENCES, LATIN_ALPHABET)
    whole = " ".join(SENTENCES)
    for index in range(200):
        fragment = texts.fragment(30, np.random.default_rng(index))
        assert fragment.removesuffix("-") in whole
        assert whole[whole.index(fragment.removesuffix("-")) - 1] == " " or whole.startswith(fragment.removesuffix("-"))


def test_the_same_draw_gives_the_same_text():
    texts = LineTexts(SENTENCES, LATIN_ALPHABET)
    first, second = [texts.draw("till", 30, np.random.default_rng(7)) for _ in range(2)]
    assert first == second


def test_every_character_is_met(tmp_path):
    texts = LineTexts(SENTENCES, LATIN_ALPHABET)
    met = set().union(*(texts.draw("book", 60, np.random.default_rng(index)) for index in range(1500)))
    assert met == set(LATIN_ALPHABET)


def test_missing_file_and_empty_text_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.txt, which does not exist"):
        LineTexts(tmp_path / "gone.txt", LATIN_ALPHABET)
    (tmp_path / "empty.txt").write_text("☃\n\n")
    with pytest.raises(ValueError, match=r"got none in .*empty\.txt"):
        LineTexts(tmp_path / "empty.txt", LATIN_ALPHABET)
    with pytest.raises(ValueError, match="`alphabet` must hold characters"):
        LineTexts(SENTENCES, " ")
