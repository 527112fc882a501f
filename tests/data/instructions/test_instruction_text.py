"""Replies in the forms that models give them, and the exchanges that a reader would take from them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vlm.data.instructions.instruction_text import format_exchanges, normalise, parse_exchanges, parse_paragraph

CAT = ("What animal is it?", "A cat.")
MAT = ("Where is the cat?", "On the mat.")

FORMS = {
    "as asked for": "Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the cat?\n"
    "===\nAnswer:\nOn the mat.\n===",
    "without the last mark": "Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the "
    "cat?\n===\nAnswer:\nOn the mat.",
    "without any mark": "Question:\nWhat animal is it?\nAnswer:\nA cat.\nQuestion:\nWhere is the cat?\nAnswer:\n"
    "On the mat.",
    "marks of other lengths": "Question:\nWhat animal is it?\n=====\nAnswer:\nA cat.\n==========\nQuestion:\n"
    "Where is the cat?\n----\nAnswer:\nOn the mat.\n***",
    "text on the label's line": "Question: What animal is it?\n===\nAnswer: A cat.\n===\nQuestion: Where is the "
    "cat?\n===\nAnswer: On the mat.",
    "all on one line": "Question: What animal is it? === Answer: A cat. === Question: Where is the cat? === "
    "Answer: On the mat. ===",
    "one line, no marks": "Question: What animal is it? Answer: A cat. Question: Where is the cat? Answer: On "
    "the mat.",
    "letters": "Q: What animal is it?\nA: A cat.\n\nQ: Where is the cat?\nA: On the mat.",
    "numbered letters": "Q1: What animal is it?\nA1: A cat.\nQ2: Where is the cat?\nA2: On the mat.",
    "bold": "**Question:** What animal is it?\n**Answer:** A cat.\n\n**Question:** Where is the cat?\n"
    "**Answer:** On the mat.",
    "bold, colon outside": "**Question 1**: What animal is it?\n\n**Answer 1**: A cat.\n\n**Question 2**: Where "
    "is the cat?\n\n**Answer 2**: On the mat.",
    "numbered list": "1. Question: What animal is it?\n   Answer: A cat.\n2. Question: Where is the cat?\n   "
    "Answer: On the mat.",
    "headings": "### Question 1:\nWhat animal is it?\n### Answer:\nA cat.\n### Question 2:\nWhere is the cat?\n"
    "### Answer:\nOn the mat.",
    "speakers": "User: What animal is it?\nAssistant: A cat.\nUser: Where is the cat?\nAssistant: On the mat.",
    "small letters": "question: What animal is it?\nanswer: A cat.\nquestion: Where is the cat?\nanswer: On the mat.",
    "greeting and note": "Sure! Here is the talk:\n\nQuestion:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\n"
    "Question:\nWhere is the cat?\n===\n"
    "Answer:\nOn the mat.\n===\n\nI hope this helps!",
    "note without mark": "Question: What animal is it?\nAnswer: A cat.\nQuestion: Where is the cat?\nAnswer: On "
    "the mat.\n\nLet me know if you want more.",
    "fenced": "```text\nQuestion:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the cat?\n"
    "===\nAnswer:\nOn the mat.\n```",
    "no labels, marks": "What animal is it?\n===\nA cat.\n===\nWhere is the cat?\n===\nOn the mat.\n===",
    "no labels, lines": "What animal is it?\nA cat.\n\nWhere is the cat?\nOn the mat.",
    "no labels, numbered": "1. What animal is it?\nA cat.\n2. Where is the cat?\nOn the mat.",
    "answers without label": "Question:\nWhat animal is it?\n===\nA cat.\n===\nQuestion:\nWhere is the cat?\n"
    "===\nOn the mat.\n===",
    "answers below the question": "Question: What animal is it?\nA cat.\nQuestion: Where is the cat?\nOn the mat.",
    "json": '[{"question": "What animal is it?", "answer": "A cat."}, {"question": "Where is the cat?", '
    '"answer": "On the mat."}]',
    "json with talk": 'Here you are:\n```json\n[{"Question": "What animal is it?", "Answer": "A cat."},\n'
    '{"Question": "Where is the cat?", "Answer": "On the mat."}]\n```\nAnything else?',
    "json in an object": '{"conversation": [{"q": "What animal is it?", "a": "A cat."}, {"q": "Where is the '
    'cat?", "a": "On the mat."}]}',
    "json messages": '[{"role": "user", "content": "What animal is it?"}, {"role": "assistant", "content": "A '
    'cat."}, '
    '{"role": "user", "content": "Where is the cat?"}, {"role": "assistant", "content": "On the mat."}]',
    "json of llava": '{"conversations": [{"from": "human", "value": "What animal is it?"}, {"from": "gpt", '
    '"value": "A cat."}, '
    '{"from": "human", "value": "Where is the cat?"}, {"from": "gpt", "value": "On the mat."}]}',
    "json, cut": '[{"question": "What animal is it?", "answer": "A cat."}, {"question": "Where is the cat?", '
    '"answer": "On the mat."}, {"questi',
    "windows": "Question:\r\nWhat animal is it?\r\n===\r\nAnswer:\r\nA cat.\r\n===\r\nQuestion:\r\nWhere is the "
    "cat?\r\n===\r\nAnswer:\r\nOn the mat.",
    "no question mark": "Question:\nWhat animal is it\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the cat\n"
    "===\nAnswer:\nOn the mat.\n===",
    "german labels": "Frage: What animal is it?\nAntwort: A cat.\nFrage: Where is the cat?\nAntwort: On the mat.",
    "a question too many": "Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the "
    "cat?\n===\nAnswer:\nOn the mat.\n===\n"
    "Question:\nIs it old?\n===",
    "an empty answer": "Question:\nIs it old?\n===\nAnswer:\n===\nQuestion:\nWhat animal is it?\n===\nAnswer:\n"
    "A cat.\n===\nQuestion:\nWhere is the "
    "cat?\n===\nAnswer:\nOn the mat.\n===",
    "an answer too many": "Answer:\nYes.\n===\nQuestion:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\n"
    "Answer:\nA dog.\n===\nQuestion:\nWhere is the cat?\n"
    "===\nAnswer:\nOn the mat.\n===",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_exchanges_are_read_from_any_form(text):
    assert parse_exchanges(text) == [CAT, MAT]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is the cat?\n===\n"
            "Answer:\nOn the",
            [CAT],
        ),
        ("Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere is", [CAT]),
        ("Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===\nQues", [CAT]),
        ("Question:\nWhat animal is it?\n===\nAnswer:\nA cat.\n===", [CAT]),
        ("Q: What animal is it?\nA: A cat.\nQ: Where is the cat?\nA: On", [CAT]),
        ("Question:\nWhat animal is it?\n===\nAnswer:\nA ca", []),
    ],
)
def test_what_was_being_written_when_it_was_cut_is_left_out(text, kept):
    assert parse_exchanges(text, is_cut=True) == kept


@pytest.mark.parametrize(
    "text",
    ["", "A cat on a mat.", "===", "Question:", "[1, 2]", '{"a": 1}', "[" * 100_000, "{" * 5_000, '[{"question": "'],
)
def test_text_without_exchanges_gives_none(text):
    assert parse_exchanges(text) == []


def test_answer_keeps_its_paragraphs():
    text = "Question:\nWhy is it wet?\n===\nAnswer:\nIt  rains.\n\nThe street is wet too.\n==="
    assert parse_exchanges(text) == [("Why is it wet?", "It rains.\n\nThe street is wet too.")]


def test_question_in_several_lines_is_one_line():
    text = "Question:\nThe cat sleeps.\nWhere is it?\n===\nAnswer:\n**On** the mat.\n==="
    assert parse_exchanges(text) == [("The cat sleeps. Where is it?", "On the mat.")]


def test_labels_inside_sentences_are_words():
    text = "Question:\nWhat does the sign ask?\n===\nAnswer:\nIt has a question: who is there.\n==="
    assert parse_exchanges(text) == [("What does the sign ask?", "It has a question: who is there.")]


@pytest.mark.parametrize(
    "text",
    [
        "A cat lies on a mat. It is black.",
        "Sure! A cat lies on a mat. It is black.",
        "Here is a detailed description of the picture:\n\nA cat lies on a mat. It is black.",
        "Certainly! Here's the paragraph:\nA cat lies on a mat.\nIt is black.",
        "# Description\n\nA cat lies on a mat. It is black.",
        "**Detailed description:**\nA cat lies on a mat. It is black.",
        "Description: A cat lies on a mat. It is black.",
        "A cat lies on a mat. It is black.\n\nI hope this helps!",
        "Answer:\nA cat lies on a mat. It is black.\n===",
        "Question:\nDescribe it.\n===\nAnswer:\nA cat lies on a mat. It is black.\n===",
        "```\nA cat lies on a mat. It is black.\n```",
        "A cat lies\u00a0on a mat. \u200bIt is  black.\r\n",
    ],
)
def test_paragraph_is_read_without_what_is_around_it(text):
    assert parse_paragraph(text) == "A cat lies on a mat. It is black."


@pytest.mark.parametrize(
    "text", ["Great herons stand in the sea.", "Here is a dog.\nIt is wet.", "Sure footed goats climb."]
)
def test_first_words_of_a_description_are_no_greeting(text):
    assert parse_paragraph(text) == text.replace("\n", " ")


def test_paragraphs_stay_apart():
    assert parse_paragraph("A cat.\nA mat.\n\nA dog.") == "A cat. A mat.\n\nA dog."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("  a \t b\u00a0c ", "a b c"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("cafe\u0301", "café"),
        ("\ufeffa\x00b\x1b[0mc\u200bd", "ab[0mcd"),
        ("\ud800a", "a"),
        ("It\u2019s \u201cbig\u201d", 'It\'s "big"'),
        ("It\u00e2\u20ac\u2122s", "It's"),
        ("CafÃ©", "Café"),
        ("a — b…", "a — b…"),
        ("नमस्\u200dते", "नमस्\u200dते"),
    ],
)
def test_normalise_gives_one_form(text, wanted):
    assert normalise(text) == wanted


@given(st.text())
def test_normalise_twice_is_as_once(text):
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf-8")


WORDS = st.lists(
    st.sampled_from(["cat", "the", "red", "Über", "mat", "two", "3", "isn't", "猫", "no,"]), min_size=1, max_size=8
)
ANSWERS = st.lists(WORDS.map(lambda words: " ".join(words) + "."), min_size=1, max_size=3).map("\n\n".join)
QUESTIONS = WORDS.map(lambda words: "Is " + " ".join(words) + "?")


@given(st.lists(st.tuples(QUESTIONS, ANSWERS), max_size=5))
def test_parse_gives_back_what_format_wrote(exchanges):
    assert parse_exchanges(format_exchanges(exchanges)) == exchanges
    as_json = json.dumps([{"question": question, "answer": answer} for question, answer in exchanges])
    assert parse_exchanges(as_json) == exchanges


PIECES = st.sampled_from(
    ["Question:", "Answer:", "===", "\n", "\n\n", "Q:", "A:", "**", "A cat.",
     "Where?", '{"question": "', '"}', "[{", "```", "1.", "Sure!", "User:", "\ud800"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join)), st.booleans())
def test_any_text_is_read_without_error(text, is_cut):
    for question, answer in parse_exchanges(text, is_cut=is_cut):
        assert question == question.strip() != "" and answer == answer.strip() != "" and "\n" not in question
    parse_paragraph(text)
