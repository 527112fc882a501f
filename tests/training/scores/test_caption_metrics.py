"""Caption scores against pycocoevalcap, brute force and values worked out by hand."""

import functools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_vlm.training.scores.caption_metrics import caption_tokens, cider, rouge_l

WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), WORDS), min_size=1, max_size=5)


# The right-hand sides are Stanford's PTBTokenizer's, through pycocoevalcap, for all but the last two: see the docstring.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog, wet, runs!", "a man 's dog wet runs"),
        ("It isn't here: they\u2019re gone...", "it is n't here they 're gone"),
        ('black-and-white "photo" - 3.5 km/h', "black-and-white photo 3.5 km/h"),
        ("1,000 people at 10:30, $5 & 10% off", "1,000 people at 10:30 $ 5 & 10 % off"),
        ("COMPUTER,SPEAKERS,CORDS", "computer speakers cords"),
        ("a m\u00e4dchen, \u201cred\u201d \u2013 o'clock", "a m\u00e4dchen red o'clock"),
        ("  ...  ", ""),
        ("a (tall) man in the U.S.", "a tall man in the u.s"),
        ("\U0001f600 face", "\U0001f600 face"),
    ],
)
def test_caption_tokens_are_those_of_the_treebank_tokenizer_without_punctuation(text, tokens):
    assert caption_tokens(text) == tokens.split()


def test_caption_scores_are_those_of_pycocoevalcap():
    references = [
        [
            "A man's dog runs on the beach.",
            "The dog is running along a sandy beach",
            "A brown dog, wet, on the sand!",
        ],
        ["Two boys play football in the park.", "Some children don't stop playing in a park"],
        ["A red kite over the sea."],
    ]
    answers = [
        "A dog is running on a beach.",
        "Two children play in a park",
        "A kite flies over the blue sea, a red kite.",
    ]
    # Cider().compute_score and Rouge().compute_score of pycocoevalcap 1.2, on the tokens of its PTBTokenizer
    assert cider(references, answers) == pytest.approx(2.117289564317781, rel=1e-9)
    assert rouge_l(references, answers) == pytest.approx(0.6400729707045255, rel=1e-9)


@functools.cache
def longest_common_subsequence(one, other):
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest_common_subsequence(one[1:], other[1:])
    return max(longest_common_subsequence(one[1:], other), longest_common_subsequence(one, other[1:]))


@given(ROWS)
def test_rouge_l_is_the_f_score_of_the_longest_common_subsequence(rows):
    expected = []
    for texts, answer in rows:
        said = tuple(answer.split())
        shared = [longest_common_subsequence(tuple(text.split()), said) for text in texts]
        precision = max(shared) / len(said)
        recall = max(length / len(text.split()) for length, text in zip(shared, texts, strict=True))
        f_score = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0
        expected.append(f_score)
    assert rouge_l(*zip(*rows, strict=True)) == pytest.approx(sum(expected) / len(expected))


def test_rouge_l_takes_precision_and_recall_from_different_references():
    # precision 2/2 from the first reference, recall 1/1 from the second
    assert rouge_l([["a b c d", "b"]], ["a b"]) == pytest.approx(1)
    assert rouge_l(["a b c d"], ["a b"]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))


def test_rouge_l_and_cider_are_zero_for_an_answer_without_words():
    assert rouge_l([["a b", "..."], "b c"], ["...", "b c"]) == pytest.approx(0.5)
    assert rouge_l([["...", "b c"]], ["b c"]) == pytest.approx(1)
    assert cider(["a b c d", "e f g h"], ["...", "e f g h"]) == pytest.approx(5)


def test_cider_agrees_with_weights_worked_out_by_hand():
    # Of two pictures, n-grams of one weigh ln 2, "a", in both, nothing. Single words: the answer's "b" twice, cut to once
    # as in the reference: 1 * 1 / (2 * sqrt(2)). Pairs: "b b" is wanted nowhere, "a b" is in both, "b c" not said:
    # 1 * 1 / (sqrt(2) * sqrt(2)). Longer ones: nothing shared. Lengths are the same.
    score = 10 * (1 / (2 * math.sqrt(2)) + 1 / 2) / 4
    assert cider(["a b c", "a d"], ["a b b", "x"]) == pytest.approx(score / 2)
    # one word more: "b b" twice, so the norms are those of (3) and (1, 2); and the Gaussian of one word
    score = 10 * (1 / (3 * math.sqrt(2)) + 1 / (math.sqrt(5) * math.sqrt(2))) / 4 * math.exp(-1 / 72)
    assert cider(["a b c", "a d"], ["a b b b", "x"]) == pytest.approx(score / 2)


def test_cider_is_ten_for_the_references_and_zero_for_a_single_picture():
    texts = ["one two three four", "five six seven eight nine"]
    assert cider(texts, texts) == pytest.approx(10)
    assert cider(texts[:1], texts[:1]) == 0
    assert cider([texts, texts], texts) == 0


@given(ROWS)
def test_cider_does_not_depend_on_the_order_of_pictures_or_references(rows):
    score = cider(*zip(*rows, strict=True))
    assert -1e-9 < score < 10 + 1e-9
    turned = [(texts[::-1], answer) for texts, answer in rows[::-1]]
    assert cider(*zip(*turned, strict=True)) == pytest.approx(score, abs=1e-9)
