import numpy as np
import pytest

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET
from hf_vlm.data.lines.line_texts import SHIPPED_SENTENCES, LineTexts
from tests.data.line_files import SENTENCES


@pytest.mark.parametrize("kind", ["print", "typewriter", "receipt", "pen"])
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
    first, second = [texts.draw("receipt", 30, np.random.default_rng(7)) for _ in range(2)]
    assert first == second


def test_every_character_is_met(tmp_path):
    texts = LineTexts(SENTENCES, LATIN_ALPHABET)
    met = set().union(*(texts.draw("print", 60, np.random.default_rng(index)) for index in range(1500)))
    assert met == set(LATIN_ALPHABET)


def test_missing_file_and_empty_text_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.txt, which does not exist"):
        LineTexts(tmp_path / "gone.txt", LATIN_ALPHABET)
    (tmp_path / "empty.txt").write_text("☃\n\n")
    with pytest.raises(ValueError, match=r"got none in .*empty\.txt"):
        LineTexts(tmp_path / "empty.txt", LATIN_ALPHABET)
    with pytest.raises(ValueError, match="`alphabet` must hold characters"):
        LineTexts(SENTENCES, " ")


@pytest.mark.parametrize(
    "foreign", ["Мороз и солнце; день чудесный, 1829.", "春眠不觉晓,处处闻啼鸟。", "Μῆνιν ἄειδε θεά, 24"]
)
def test_a_text_in_another_script_is_refused(tmp_path, foreign):
    (tmp_path / "foreign.txt").write_text(f"{foreign}\n" * 20, encoding="utf-8")
    with pytest.raises(ValueError, match=r"letters of `alphabet`, got 100% others .* in .*foreign\.txt\. Name a file"):
        LineTexts(tmp_path / "foreign.txt", LATIN_ALPHABET)
    assert set(LineTexts(tmp_path / "foreign.txt", foreign).draw("print", 20, np.random.default_rng(0))) <= set(foreign)


def test_a_text_with_some_foreign_words_loses_only_those_and_says_so(caplog):
    texts = LineTexts(["A long winter's day.", "Мороз и солнце"], LATIN_ALPHABET)
    assert not set(texts.frequencies) & set("Морзисолнце")
    # 12 of the 27 letters; о is the commonest
    assert "`texts`: 44.44 % of the letters are not in the alphabet and are left out: о" in caplog.text
    caplog.clear()
    LineTexts(SENTENCES, LATIN_ALPHABET)
    assert not caplog.records
    assert LineTexts(["1 and 2 and 3"], "0123456789").frequencies == {
        "1": 1,
        "2": 1,
        "3": 1,
    }  # digits wanted: letters go


def test_a_text_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Die Brücke".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt must be UTF-8 text, got byte 6 that is not\. Convert it"):
        LineTexts(tmp_path / "latin.txt", LATIN_ALPHABET)


def test_the_shipped_sentences_are_small_clean_and_in_three_languages():
    sentences = SHIPPED_SENTENCES.read_text(encoding="utf-8").splitlines()
    assert SHIPPED_SENTENCES.stat().st_size < 200_000
    assert len(sentences) == len(set(sentences)) > 150
    assert set("".join(sentences)) <= set(LATIN_ALPHABET)
    words = set(" ".join(sentences).lower().split())
    assert {"the", "and"} | {"der", "und"} | {"le", "et"} <= words
    assert set("äöüßéèêçœàùîôëïæ«»“”".replace("æ", "").replace("“”", "")) <= set("".join(sentences))
