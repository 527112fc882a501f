import random

import jiwer
import pytest

from hf_vlm.training.reports.answer_errors import (
    Confusion,
    LengthScore,
    character_edits,
    confusions,
    nearest,
    scores_by_length,
)


def applied(wanted: str, edits: list[tuple[str, str]]) -> set[str]:
    """Every text that the edits, in order, can make of a text."""
    made = {(0, "")}
    for gone, come in edits:
        made = {
            (place + len(gone), text + wanted[start:place] + come)
            for start, text in made
            for place in range(start, len(wanted) + 1)
            if wanted[place : place + len(gone)] == gone
        }
    return {text + wanted[start:] for start, text in made}


def test_edits_are_as_few_as_jiwers_and_make_one_text_of_the_other():
    draw = random.Random(3)
    for _ in range(200):
        wanted, read = ("".join(draw.choices("abc", k=draw.randrange(1, 8))) for _ in range(2))
        edits = character_edits(wanted, read)
        told = jiwer.process_characters(wanted, read)
        assert len(edits) == told.substitutions + told.deletions + told.insertions
        assert read in applied(wanted, edits)


@pytest.mark.parametrize(
    ("wanted", "read", "edits"),
    [
        ("rain", "rain", []),
        ("rain", "ram", [("i", ""), ("n", "m")]),
        ("cat", "cart", [("", "r")]),
        ("no", "not", [("", "t")]),
        ("old", "od", [("l", "")]),
        ("", "ab", [("", "a"), ("", "b")]),
    ],
)
def test_edits_say_what_became_of_each_character(wanted, read, edits):
    assert character_edits(wanted, read) == edits


def test_nearest_reference_is_compared_as_it_is_scored():
    assert nearest(["a long answer", "Cafe\u0301 "], "café", ignore_case=True) == ("café", [])
    assert nearest(["Café"], "café") == ("Café", [("C", "c")])
    with pytest.raises(ValueError, match="got none"):
        nearest([], "a")


def test_confusions_are_counted_the_most_frequent_first():
    edits = [("a", "o"), ("l", ""), ("a", "o"), ("", " "), ("l", ""), ("a", "o")]
    assert confusions(edits, 2) == [Confusion("a", "o", 3), Confusion("l", "", 2)]


def test_scores_by_length_are_rates_over_all_characters_of_a_class():
    assert scores_by_length([2, 8, 9, 70, 65], [1, 1, 9, 5, 0]) == [
        LengthScore(0, 8, 2, 2 / 10),
        LengthScore(9, 16, 1, 1.0),
        LengthScore(65, None, 2, 5 / 135),
    ]
