"""How a row asks: choices as lines `A. text` behind the question, hints before it, words read in the picture below it.

    `choices`, with `answer` or `correct_choice_idx` (counted from 0)   ScienceQA's, A-OKVQA's
    `A`, `B`, ... , with `answer`, a letter                              MMBench's

    Context: HINT               ScienceQA's `hint`; MMBench's stands without `Context:`
    QUESTION
    A. CHOICE
    B. CHOICE                   -> the letter; the preset `option-letter` asks for it

`columns: {answer: explained_answer}` gives `LECTURE SOLUTION The answer is B.` instead, which ScienceQA's makers train on;
`columns: {answer: direct_answers}` A-OKVQA's answers without choices. `columns: {question: question_with_ocr_tokens}` puts the
words that an OCR system read in TextVQA's picture, `ocr_tokens`, below the question. Scores with and without them are two
things, so it is never done unasked.

Sources: Lu et al. 2022 (ScienceQA), https://arxiv.org/abs/2209.09513; Schwenk et al. 2022 (A-OKVQA),
    https://arxiv.org/abs/2206.01718; Liu et al. 2023 (MMBench), https://arxiv.org/abs/2307.06281; the order of lines is that of
    LLaVA's evaluation, https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md
"""

import string
from collections.abc import Mapping
from typing import Any

from hf_vlm.data.conversations.conversation_files import PICTURE_FIELDS, ConversationError, cut

EXPLAINED = "explained_answer"
WITH_OCR_TOKENS = "question_with_ocr_tokens"
_BY_LETTER = ("answer", "correct_choice_idx", EXPLAINED)  # columns of answers that speak of the choices


def in_form(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row of the task vqa with its question as it is to be asked; as it is where it has none of the above.

    Args:
        columns: `question` and `answer` -> the columns that have them.

    Raises:
        ConversationError: if the right choice is none of the choices.
    """
    if columns.get("question") == WITH_OCR_TOKENS and isinstance(row.get("ocr_tokens"), list):
        tokens = ", ".join(str(token) for token in row["ocr_tokens"])
        return {**row, WITH_OCR_TOKENS: f"{_text(row.get('question'))}\nReference OCR token: {tokens}".strip()}
    by_letter = columns.get("answer", "answer") in _BY_LETTER
    if isinstance(row.get("choices"), list):
        row = _with_name(row)
        index = row["correct_choice_idx"] if row.get("correct_choice_idx") is not None else row.get("answer")
        if by_letter and isinstance(index, int) and not isinstance(index, bool):
            choices = dict(zip(string.ascii_uppercase, map(_text, row["choices"]), strict=False))
            if not 0 <= index < len(choices):
                raise ConversationError(
                    f"wanted the number of the right choice in [0, {len(choices)}), got {index}. Correct the row."
                )
            hint = f"Context: {_text(row['hint'])}" if _text(row.get("hint")) else ""
            return _asked(row, columns, hint, choices, string.ascii_uppercase[index])
    elif by_letter and row.get("A") is not None and row.get("B") is not None:
        choices = {letter: _text(row.get(letter)) for letter in string.ascii_uppercase[:10]}
        choices = {letter: choice for letter, choice in choices.items() if choice and choice.lower() != "nan"}
        answer = _text(row.get("answer"))
        if not answer or answer.lower() == "nan":
            raise ConversationError(
                "wanted the letter of the right choice as `answer`, got none, as in a hidden test. Take a split with answers.",
                "questions without answers",
            )
        if answer not in choices:
            raise ConversationError(
                f"wanted one of {', '.join(choices)} as `answer`, got {cut(repr(answer), 40)}. Correct the row."
            )
        hint = "" if _text(row.get("hint")).lower() == "nan" else _text(row.get("hint"))
        return _asked(row, columns, hint, choices, answer)
    return row


def _asked(
    row: Mapping[str, Any], columns: Mapping[str, str], hint: str, choices: Mapping[str, str], answer: str
) -> dict[str, Any]:
    column = columns.get("question", "question")
    question = _text(row.get(column))
    if not question:
        raise ConversationError("wanted a question with words, got none. Fill or remove the row.")
    lines = [hint, question, *(f"{letter}. {choice}" for letter, choice in choices.items())]
    explained = [_text(row.get("lecture")), _text(row.get("solution")), f"The answer is {answer}."]
    formed = {key: value for key, value in row.items() if key != "answers"}
    formed |= {column: "\n".join(line for line in lines if line), "answer": answer, "correct_choice_idx": answer}
    formed |= {EXPLAINED: " ".join(part for part in explained if part)}
    formed["id"] = row.get("id") if row.get("id") is not None else row.get("index")
    formed["kind"] = next((row[name] for name in ("kind", "category", "subject") if row.get(name) is not None), None)
    return formed


def _with_name(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A-OKVQA's rows name COCO 2017's pictures by their numbers."""
    named = any(row.get(field) is not None for field in (*PICTURE_FIELDS, "file_name"))
    if named or not isinstance(row.get("image_id"), int):
        return row
    return {**row, "file_name": f"{row['image_id']:012d}.jpg"}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
