"""Error rates and scores of answers against values worked out by hand, and against sacrebleu called directly."""

import builtins

import pytest

from hf_vlm.training.scores.metrics import (
    character_error_rate,
    chrf,
    exact_match,
    word_accuracy,
    word_error_rate,
    word_f1,
)


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


@pytest.mark.parametrize(
    ("reference", "answer", "is_match"),
    [
        ("grinning face", "Grinning face.", True),
        ("Stra\u00dfe", " STRASSE\n", True),  # case folded, not lowered
        ("U.S.", "u.s", True),
        ("yes", "yes .", True),
        ("pi\u00f1ata", "pin\u0303ata", True),
        ("yes", "yes..", False),
        ("yes", "yes!", False),
        ("yes", "", False),
        ("yes", "yes, it is", False),
        ("a cat", "cat", False),
        ("2", "12", False),
    ],
)
def test_exact_match_forgives_case_outer_space_and_one_full_stop(reference, answer, is_match):
    assert exact_match([reference], [answer]) == is_match


def test_exact_match_is_a_share_of_answers():
    assert exact_match(["yes", "no", "2", "red"], ["yes", "yes", "2", "blue"]) == 0.5


def test_answers_and_references_of_different_number_raise():
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        exact_match(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        chrf(["yes", "no"], ["yes"])


def test_chrf_is_the_corpus_score_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    references = ["A dog runs along the beach.", "Two boys play football.", "A red kite"]
    answers = ["A brown dog runs on the sand.", "two children play", ""]
    expected = sacrebleu.corpus_chrf(answers, [references]).score
    assert chrf(references, answers) == pytest.approx(expected)
    # neither the mean of the sentences' scores, nor the score with the sides exchanged
    pairs = zip(answers, references, strict=True)
    sentences = [sacrebleu.sentence_chrf(answer, [reference]).score for answer, reference in pairs]
    assert abs(expected - sum(sentences) / 3) > 1
    assert abs(expected - sacrebleu.corpus_chrf(references, [answers]).score) > 1


def test_chrf_agrees_with_n_grams_counted_by_hand():
    pytest.importorskip("sacrebleu")
    # Matched of answer's and reference's: 3 of 3 and 4 characters, 2 of 2 and 3 pairs, 1 of 1 and 2 triples. No longer ones in
    # the answer, so precision and recall are means over these three orders: 1, and (3/4 + 2/3 + 1/2) / 3.
    recall = (3 / 4 + 2 / 3 + 1 / 2) / 3
    assert chrf(["abcd"], ["abc"]) == pytest.approx(100 * 5 * recall / (4 + recall))
    assert chrf(["a b c d"], ["ab cd"]) == pytest.approx(100)
    assert chrf(["abcd"], ["xyz"]) == 0


def test_missing_sacrebleu_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_sacrebleu(name, *args, **kwargs):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sacrebleu)
    with pytest.raises(ImportError, match=r"hf-vlm\[metrics\]"):
        chrf(["a"], ["a"])
