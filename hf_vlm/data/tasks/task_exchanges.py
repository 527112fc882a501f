"""Rows of a task's set -> exchanges: question, answer and all right answers; the fields of a row are told in `task_rows.py`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hf_vlm.data.conversations.conversation_files import FIELDS, HELD, PICTURE_FIELDS, ConversationError, cut
from hf_vlm.data.tasks.format_prompts import format_prompt, with_format_prompt
from hf_vlm.data.tasks.question_forms import in_form

# What a task's row has, in the order in which columns are looked for.
_QUESTIONS = {"vqa": ("question",), "nlvr": ("sentence", "question"), "translate": ("source", "question")}
_ANSWERS = {
    "caption": ("captions", "caption", "text", "answers", "answer"),
    "ocr": ("text", "answer"),
    "vqa": ("answers", "answer", "multiple_choice_answer"),
    "nlvr": ("label", "answer"),
    "translate": ("target", "answers", "answer"),
}
_DEFAULT_QUESTIONS = {"caption": "caption", "ocr": "What is written here?"}  # format prompts, where nothing is asked
_TRUTH = {"true": "true", "false": "false", "yes": "true", "no": "false", "1": "true", "0": "false"}


class Exchanges:
    """A conversation in the making.

    Attributes:
        row: for `conversation_record`.
        source: where it came from.
        is_whole: whether the row was a conversation already, which lacks the format prompt.
    """

    def __init__(self, row: dict[str, Any], source: str, is_whole: bool = False) -> None:
        self.row, self.source, self.is_whole = row, source, is_whole


def conversations_of(
    rows: Iterable[tuple[str, Any]],
    task: str,
    columns: Mapping[str, str],
    prompt: str | None,
    every_answer: bool,
    max_exchanges: int,
    on_bad_row: Callable[[Exception], None],
) -> Iterator[Exchanges]:
    """Conversations of raw rows; exchanges about the picture of the row before join its conversation.

    Args:
        rows: where each stands, and the row or what is wrong with it; other arguments are those of `task_rows.read_task`.
    """
    open_one: Exchanges | None = None
    for number, (source, row) in enumerate(rows):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, Mapping):
                raise ConversationError(f"wanted a JSON object, got {type(row).__name__}. Write one object a row.")
            number = row.get(HELD, number)
            if task == "chat" or (not columns and any(row.get(field) is not None for field in FIELDS)):
                if open_one is not None:
                    yield open_one
                open_one = None
                yield Exchanges({**row, "held": number}, source, is_whole=True)
                continue
            row = in_form(row, columns) if task == "vqa" else row
            found = list(_exchanges(row, task, columns, every_answer))
        except ValueError as error:
            on_bad_row(error if str(error).startswith(source) else _at(source, error))
            continue
        pictures = _pictures(row, columns)
        asked_before = set()
        for at, (question, answer, references) in enumerate(found):
            if (question, answer) in asked_before:
                continue  # the same question and answer about the same picture again
            asked_before.add((question, answer))
            where = source if len(found) == 1 else f"{source}, {'answer' if every_answer else 'question'} {at}"
            goes_on = (
                open_one is not None
                and task == "vqa"
                and len(open_one.row["messages"]) // 2 < max_exchanges
                and bool(pictures)
                and pictures == open_one.row["images"]
                and (open_one.row["held"] == number or HELD not in pictures)  # all that are held look alike
            )
            if goes_on:
                assert open_one is not None
                open_one.row["messages"] += _messages(question, answer, 0)
                for note in ("references", "kind", "group"):  # of one question only
                    open_one.row.pop(note, None)
                continue
            if open_one is not None:
                yield open_one
            asked = with_prompt_once(question, prompt or ("" if question else _DEFAULT_QUESTIONS.get(task)))
            notes = {name: _text(row.get(columns.get(name, name))) for name in ("id", "kind", "group")}
            notes["id"] = notes["id"] or _text(row.get("question_id")) or _text(row.get("file_name"))
            notes["kind"] = notes["kind"] or _text(row.get("answer_type"))
            if task == "nlvr":
                notes["group"] = notes["group"] or question
            open_one = Exchanges(
                {
                    "messages": _messages(asked, answer, len(pictures)),
                    "images": pictures,
                    "references": references,
                    "held": number,
                    **{name: note for name, note in notes.items() if note},
                },
                where,
            )
    if open_one is not None:
        yield open_one


def with_prompt_once(question: str, prompt: str | None) -> str:
    """A question with its format prompt, which files of questions may have already."""
    words = format_prompt(prompt)
    return question.strip() if words and question.strip().endswith(words) else with_format_prompt(question, prompt)


def _at(source: str, error: ValueError) -> ValueError:
    kind = getattr(error, "kind", None)
    return ValueError(f"{source}: {error}") if kind is None else ConversationError(f"{source}: {error}", kind)


def _exchanges(
    row: Mapping[str, Any], task: str, columns: Mapping[str, str], every_answer: bool
) -> Iterator[tuple[str, str, list[str]]]:
    """Question, answer and all right answers, once or as often as a row has them."""
    question = _field(row, task, "question", _QUESTIONS.get(task, ()), columns)
    answer = _field(row, task, "answer", _ANSWERS[task], columns)
    if isinstance(question, list):
        if not isinstance(answer, list) or len(answer) != len(question):
            got = f"{len(answer)} answers" if isinstance(answer, list) else f"`{cut(repr(answer), 40)}`"
            raise ConversationError(
                f"wanted an answer a question, got {got} for {len(question)} questions. Mend the row."
            )
        pairs = list(zip(question, answer, strict=True))
    else:
        pairs = [(question, answer)]
    for asked, said in pairs:
        references = [_answer(one, task) for one in (said if isinstance(said, list) else [said])]
        references = [one for one in references if one]
        if not references:
            raise ConversationError(
                f"wanted an answer with words, got none in {cut(repr(said), 60)}. Fill or remove the row."
            )
        asked = (asked or "").strip()
        if task in _QUESTIONS and not asked:
            raise ConversationError("wanted a question with words, got none. Fill or remove the row.")
        if every_answer and task == "caption":
            for reference in dict.fromkeys(references):
                yield asked, reference, references
        else:
            yield asked, Counter(references).most_common(1)[0][0], references


def _field(row: Mapping[str, Any], task: str, name: str, usual: Sequence[str], columns: Mapping[str, str]) -> Any:
    """The question or the answer of a row."""
    candidates = [columns[name]] if name in columns else usual
    for column in candidates:
        if row.get(column) is not None:
            return row[column]
    if not candidates:
        return ""
    there = ", ".join(f"`{cut(key, 40)}`" for key in list(row)[:8] if isinstance(key, str)) or "nothing"
    wanted = " or ".join(f"`{column}`" for column in candidates)
    raise ConversationError(
        f"wanted {wanted} as the {name} of the task `{task}`, got {there}. Name the column so, or say which it is by "
        f"`columns: {{{name}: ...}}`."
    )


def _answer(value: Any, task: str) -> str:
    """An answer's text; VQAv2's and VizWiz's are objects."""
    if isinstance(value, Mapping):
        value = value.get("answer")
    text = " ".join(str(value).split()) if value is not None else ""
    if task == "nlvr":
        if text.lower() not in _TRUTH:
            raise ConversationError(
                f"wanted true or false as a statement's label, got {cut(repr(value), 40)}. Correct it."
            )
        return _TRUTH[text.lower()]
    return text


def _messages(question: str, answer: str, num_pictures: int) -> list[dict[str, Any]]:
    words = [{"type": "text", "text": question}] if question else []
    return [
        {"role": "user", "content": [*[{"type": "image"}] * num_pictures, *words]},
        {"role": "assistant", "content": answer},
    ]


def _pictures(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    for column in (*PICTURE_FIELDS, columns.get("image"), "file_name"):  # a table's column was renamed to `image`
        if column is not None and row.get(column) is not None:
            value = row[column]
            return value if isinstance(value, list) else [value]
    return []


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, list | dict) else str(value)
