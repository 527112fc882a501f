"""Short answers to questions on pictures, brought to one spelling before they are compared, as the VQA evaluation does."""

import re

# The evaluation lists words written without their apostrophe. It knows these words with one; see `_misspellings`.
_STEMS_BY_ENDING = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
}
_IRREGULAR = "ma'am o'clock 'ow's'at 'twas y'all y'all'd've y'all'll"

_NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NUMBERS["none"] = "0"
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'


def normalize_vqa_answer(text: str) -> str:
    """The answer in the spelling that answers are compared in.

    In this order: lower case; commas and question marks are dropped ("1,000" is 1000); "'s" becomes a word of its own; line
    breaks and tabs are spaces; other punctuation is dropped where it stands beside a space anywhere in the answer, and is a
    space where it never does ("blue/green" is two words); full stops go, but not before a digit (3.5); number words up
    to ten, and none, become digits; articles go; words that lack an apostrophe get it ("dont").

    Source: the answer processing of the VQA evaluation (Antol et al. 2015, https://arxiv.org/abs/1505.00468) as the EvalAI
        leaderboards run it, known from Pythia and MMF as `EvalAIAnswerProcessor`. The script first published with the
        data set keeps "'s" in its word, and keeps commas and question marks until its punctuation step. Different here:
        all full stops go, there only the first 32.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    spaced = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        spaced = spaced.replace(mark, "" if beside_space else " ")
    spaced = re.sub(r"\.(?!\d)", "", spaced)
    words = [_NUMBERS.get(word, word) for word in spaced.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _misspellings() -> dict[str, str]:
    """Each known word with an apostrophe, by the spellings that leave out one of them."""
    words = [stem + ending for ending, stems in _STEMS_BY_ENDING.items() for stem in stems.split()]
    words += _IRREGULAR.split()
    by_spelling = {
        word[:place] + word[place + 1 :]: word for word in words for place, mark in enumerate(word) if mark == "'"
    }
    return {**by_spelling, "somebody'd": "somebodyd"}  # the wrong way round in the evaluation, and so in its scores


_CONTRACTIONS = _misspellings()
