"""Short answers in one spelling, against the processor that the leaderboards run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_vlm.training.scores.vqa_normalization import normalize_vqa_answer


# The right-hand sides are what EvalAIAnswerProcessor of LLaVA's llava/eval/m4c_evaluator.py gives.
@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes", "yes"),
        (" a\tRed\nBall ", "red ball"),
        ("The Theatre and an Ant", "theatre and ant"),
        ("1,000", "1000"),
        ("black, white", "black white"),
        ("two", "2"),
        ("None", "0"),
        ("eleven tens", "eleven tens"),
        ("3.5 m.", "3.5 m"),
        ("U.S.A.", "usa"),
        ("blue/green", "blue green"),
        ("t-shirt", "t shirt"),
        ("blue/green -/ red", "bluegreen red"),  # once beside a space, the mark is dropped everywhere
        ("(left)", "left"),
        ("t-shirt\n-", "tshirt"),
        ("a\t-b-c", "bc"),
        ("what?", "what"),
        ("dont", "don't"),
        ("its", "its"),
        ("thats", "that's"),
        ("man's", "man 's"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("couldntve", "couldntve"),
        ("yalld've y'alld've yall'll", "yalld've y'all'd've y'all'll"),
        ("oclock twas maam", "o'clock 'twas ma'am"),
        ("somebody'd", "somebodyd"),
        ("ive im", "ive im"),
        ("wed shed well", "wed shed well"),
        ("", ""),
    ],
)
def test_normalize_vqa_answer_gives_what_the_published_processor_gives(answer, normalized):
    assert normalize_vqa_answer(answer) == normalized


@given(st.text(alphabet="AbtheNo'sdv.,;/()- ?!0123\n\t", max_size=25))
def test_normalize_vqa_answer_leaves_no_capital_comma_or_outer_space(text):
    normalized = normalize_vqa_answer(text)
    assert normalized == normalized.lower() == " ".join(normalized.split())
    assert not set(normalized) & set(",?")
    assert not {"a", "an", "the", "two"} & set(normalized.split())
