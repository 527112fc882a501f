"""Texts that say the same over and over, and texts that only have a word in common."""

import pytest

from hf_vlm.data.instructions.text_repetition import looping_in, ngrams_of, repeated_in


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("The dog runs. It is wet. The dog runs! So: the DOG runs.", None),
        ("The dog runs. It is wet. The dog runs! The DOG runs.", "the dog runs"),
        ("Yes. Yes. Yes.", None),
        ("A very very very very very old dog.", "very very very very very"),
        ("A very very very very old dog.", None),
        ("no" + "o" * 20, "o" * 15),
        ("he sits on a chair on a hill, " * 2, None),
        ("he sits on a chair on a hill, " * 3, "he sits on a chair on"),
        ("", None),
    ],
)
def test_looping_is_found(text, what):
    found = looping_in(text)
    assert (found or "").strip("o") == (what or "").strip("o") and (found is None) == (what is None)


def test_places_in_common_are_no_loop():
    text = (
        "Three people stand on the left side of the picture. A brown horse, the largest thing of all, is in the "
        "middle of the picture. "
        "Two cars are on the left side of the picture, behind the people. A bench can be seen on the left side "
        "of the picture, near the "
        "bottom, and a small dog is lying in front of it."
    )
    assert looping_in(text) is None and repeated_in(text) is None


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("One pizza is larger. " * 2, None),
        (
            "One pizza is larger than two. Three are in boxes on the table. One pizza is larger than two.",
            "one pizza is larger than two",
        ),
        (
            "The cause of the dog sleeping in the bed is that the cause of the dog sleeping in the bed is near",
            "the cause of the dog sleeping",
        ),
        ("A man on a horse crosses a river. Behind him is a second man, and trees stand on either side.", None),
    ],
)
def test_repetition_in_an_answer_is_found(answer, what):
    assert repeated_in(answer) == what


def test_ngrams_are_all_runs():
    assert ngrams_of("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams_of("ab", 3) == []
