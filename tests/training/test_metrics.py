"""Error rates against values worked out by hand."""

import builtins

import pytest

from hf_vlm.training.metrics import character_error_rate, word_accuracy, word_error_rate, word_f1


def test_character_error_rate_is_a_corpus_rate_not_a_mean_of_lines():
    # 1 edit in 1 + 9 characters; the mean of the lines' rates would be 0.5
    assert character_error_rate(["a", "bcdefghij"], ["x", "bcdefghij"]) == pytest.approx(0.1)


def test_character_error_rate_counts_substitution_deletion_and_insertion_alike():
    assert character_error_rate(["abcd"], ["abxd"]) == pytest.approx(0.25)
    assert character_error_rate(["abcd"], ["abd"]) == pytest.approx(0.25)
    assert character_error_rate(["abcd"], ["abccd"]) == pytest.approx(0.25)


def test_word_error_rate_counts_words_with_their_punctuation():
    assert word_error_rate(["one two three four"], ["one two, three"]) == pytest.approx(0.5)


def test_empty_reference_counts_what_was_read_as_inserted():
    assert character_error_rate(["abcd", ""], ["abcd", "xy"]) == pytest.approx(0.5)
    assert word_error_rate(["ab cd", ""], ["ab cd", ""]) == 0


def test_empty_prediction_is_all_deleted():
    assert character_error_rate(["abcd"], [""]) == 1
    assert word_error_rate(["ab cd"], [""]) == 1


def test_case_is_folded_only_when_asked():
    assert character_error_rate(["TOTAL"], ["Total"]) == pytest.approx(0.8)
    assert character_error_rate(["TOTAL"], ["Total"], case_sensitive=False) == 0
    assert word_error_rate(["TOTAL"], ["Total"], case_sensitive=False) == 0


def test_composed_and_decomposed_accents_are_the_same_text():
    assert character_error_rate(["\u00e9t\u00e9"], ["e\u0301te\u0301"]) == 0


def test_word_f1_matches_each_word_once_within_its_line():
    references, predictions = ["to be or not to be", "that is"], ["be to to to is", "is it"]
    # matched: be, to, to and is; 8 words there, 7 read: precision 4/7, recall 4/8
    assert word_f1(references, predictions) == pytest.approx(2 * (4 / 7) * (4 / 8) / (4 / 7 + 4 / 8))
    assert word_f1(["TOTAL 5"], ["Total 5"]) == pytest.approx(0.5)
    assert word_f1(["TOTAL 5"], ["Total 5"], case_sensitive=False) == 1
    assert word_f1(["a"], [""]) == 0


def test_word_accuracy_counts_letters_and_digits_only():
    assert word_accuracy(["Coffee!", "24-7", "Bar"], ["COFFEE", "247", "Bat"]) == pytest.approx(2 / 3)


def test_references_and_predictions_of_different_number_raise():
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        character_error_rate(["a", "b"], ["a"])


def test_references_without_a_character_raise():
    with pytest.raises(ValueError, match="got 2 without a character"):
        word_error_rate(["", " "], ["a", "b"])


def test_missing_jiwer_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_jiwer(name, *args, **kwargs):
        if name == "jiwer":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_jiwer)
    with pytest.raises(ImportError, match=r"hf-vlm\[ocr\]"):
        character_error_rate(["a"], ["a"])
