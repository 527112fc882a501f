"""Read the data sets of tasks - captions, questions, statements about two pictures, translations - as conversations.

A row of a set becomes one exchange: what is asked about the picture, and the answer. So one schema (`conversations.py`) serves
every task, model and mixture.

| task | a row has | the exchange |
|---|---|---|
| caption | `captions`, a list, or `caption` or `text` | nothing is asked but the format prompt -> a caption |
| vqa | `question`, and `answer` or `answers`; or lists of questions and answers about one picture | question -> answer |
| nlvr | `sentence` or `question`, `label` or `answer` (true or false), two pictures | statement -> `true` or `false` |
| translate | `source` and `target` | sentence -> its translation |
| ocr | `text` | as caption |
| chat | `messages` or `conversations` | as it is |

`columns` gives columns of other names. Pictures are `image`, `images`, or a `file_name` beside the file. Any set may hold
conversations instead. Files are those of `conversations.py` (`save_to_disk`, SPLIT.json, .jsonl, SPLIT/metadata.jsonl, parquet),
and as published

    caption     captions_*SPLIT*.json: COCO's object of `images` and `annotations` with `caption`
    vqa         *SPLIT*questions.json beside *SPLIT*annotations.json: VQAv2
                the file of GQA (question id -> `question`, `answer`, `imageId`) or TextVQA (`data`), given by its name
    nlvr        SPLIT*.json: NLVR2's lines of `sentence`, `label`, `identifier`; pictures `PAIR-img0.png`, `PAIR-img1.png`,
                in the folder that `directory` names, where rows of train have it
    translate   SPLIT.en, SPLIT.de, ...: Multi30k's; names of pictures in `image_splits/SPLIT.txt` there or beside the
                folder; `columns` gives the suffixes

Sources: Chen et al. 2015 (COCO captions), https://arxiv.org/abs/1504.00325; Goyal et al. 2017 (VQAv2),
    https://arxiv.org/abs/1612.00837; Hudson and Manning 2019 (GQA), https://arxiv.org/abs/1902.09506; Suhr et al. 2019 (NLVR2),
    https://arxiv.org/abs/1811.00491; Elliott et al. 2016 (Multi30k), https://arxiv.org/abs/1605.00459.
"""

import functools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlm.data.conversation_files import (
    HELD,
    PICTURE_FIELDS,
    ConversationError,
    HeldPictures,
    Texts,
    cut,
    find_layout,
    has_fields,
    no_layout,
    open_rows,
)
from hf_vlm.data.conversations import (
    Conversations,
    PictureFinder,
    conversation_record,
    holds_conversations,
    read_conversations,
    text_of,
)
from hf_vlm.data.format_prompts import with_format_prompt
from hf_vlm.data.published_tasks import published_rows

TASKS = ("caption", "ocr", "vqa", "nlvr", "translate", "chat")

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
_COLUMNS = ("question", "answer", "image", "id", "kind", "group")


def read_task(
    path: str | Path,
    split: str | None = None,
    *,
    task: str,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    image_folder: str | Path | None = None,
    every_answer: bool = False,
    max_exchanges: int = 1,
    on_bad_row: Callable[[Exception], None] | None = None,
) -> Conversations:
    """The exchanges of a task's data set on disk.

    Args:
        path: a folder in one of the layouts above, or one file.
        split: such as `train`.
        task: one of `TASKS`.
        prompt: name of a preset of `format_prompts.py`, or a text; stands behind the first question of each conversation.
        columns: `question`, `answer`, `image`, `id`, `kind` or `group` -> the column that has it, where it is called otherwise.
        image_folder: that names of pictures are relative to; by default the folder of the file.
        every_answer: for training on captions: one row for each of a picture's captions. Otherwise a row has one answer (of
            several, the commonest, or the first among equals), and all are its `references`.
        max_exchanges: of the task vqa: how many questions about one picture are put into one conversation, as LLaVA-1.5's
            mixture does; 1 gives a row a question, as scoring wants it.
        on_bad_row: called with the error of each bad row, which is left out; None raises the first.

    Raises:
        FileNotFoundError: if `path` or a picture is missing.
        ValueError: if the task is unknown, no layout fits, a row is bad (file and row are named), nothing is left, or all
            captions are the same, from which nothing can be learnt about pictures.
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(f'`{name}`' for name in TASKS)}, got {task!r}. Correct it.")
    for name in columns or {}:
        if name not in _COLUMNS:
            raise ValueError(
                f"`columns` knows {', '.join(f'`{known}`' for known in _COLUMNS)}, got {name!r}. Correct it."
            )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` must be a folder or file, got {path}, which does not exist. Check it.")
    if not columns and (has_fields(path) if path.is_file() else holds_conversations(path)):
        rows = read_conversations(path, split, image_folder=image_folder, on_bad_row=on_bad_row)
        return with_prompt(rows, prompt)
    if task == "chat":
        return with_prompt(read_conversations(path, split, image_folder=image_folder, on_bad_row=on_bad_row), prompt)
    on_bad_row = on_bad_row or _raise
    raw, places, held, folder = _open(path, split, task, columns)
    finder = PictureFinder(Path(image_folder) if image_folder is not None else folder)
    texts, kept, counts, sources = Texts(), array("q"), array("i"), []
    for exchanges in _conversations(raw, places, task, columns or {}, prompt, every_answer, max_exchanges, on_bad_row):
        try:
            text, num_pictures = conversation_record(exchanges.row, exchanges.source, finder)
        except (ValueError, OSError) as error:
            on_bad_row(error)
            continue
        kept.append(len(texts))
        texts.append(text)
        counts.append(num_pictures)
        sources.append(exchanges.source)
    if not kept:
        raise ValueError(f"{path} must hold rows of the task `{task}`, got none. Check the file and the split.")
    rows = Conversations(
        texts,
        sources,
        finder.folder,
        held,
        np.array(kept, np.int64),
        np.array(counts, np.int32),
    )
    if every_answer and task == "caption":
        _refuse_equal_captions(rows, path)
    return rows


def with_prompt(rows: Conversations, prompt: str | None) -> Conversations:
    """The same conversations, with a format prompt behind the first question of each."""
    if not with_format_prompt("", prompt):
        return rows
    return rows.map_messages(functools.partial(_prompted, prompt=prompt))


def _prompted(messages: list[dict[str, Any]], prompt: str | None) -> list[dict[str, Any]]:
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    content = messages[first]["content"]
    pictures = [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]
    asked = [*pictures, {"type": "text", "text": with_format_prompt(text_of(messages[first]), prompt)}]
    return [*messages[:first], {**messages[first], "content": asked}, *messages[first + 1 :]]


class _Exchanges:
    """A conversation in the making: a row for `conversation_record`, and where it came from."""

    def __init__(self, row: dict[str, Any], source: str) -> None:
        self.row, self.source = row, source


def _conversations(
    raw: Iterable[Any],
    places: Any,
    task: str,
    columns: Mapping[str, str],
    prompt: str | None,
    every_answer: bool,
    max_exchanges: int,
    on_bad_row: Callable[[Exception], None],
) -> Iterator[_Exchanges]:
    """Conversations of raw rows; exchanges about the picture of the row before join its conversation."""
    open_one: _Exchanges | None = None
    for number, row in enumerate(raw):
        source = places[number]
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, Mapping):
                raise ConversationError(f"wanted a JSON object, got {type(row).__name__}. Write one object a row.")
            found = list(_exchanges(row, task, columns, every_answer))
        except ValueError as error:
            on_bad_row(error if str(error).startswith(source) else ValueError(f"{source}: {error}"))
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
            asked = with_format_prompt(question, prompt or ("" if question else _DEFAULT_QUESTIONS.get(task)))
            notes = {name: _text(row.get(columns.get(name, name))) for name in ("id", "kind", "group")}
            notes["id"] = notes["id"] or _text(row.get("question_id")) or _text(row.get("file_name"))
            if task == "nlvr":
                notes["group"] = notes["group"] or question
            open_one = _Exchanges(
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
    there = ", ".join(f"`{cut(str(key), 40)}`" for key in list(row)[:8]) or "nothing"
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


def _open(
    path: Path, split: str | None, task: str, columns: Mapping[str, str] | None
) -> tuple[Iterable[Any], Any, HeldPictures, Path]:
    """Raw rows, where each stands, the pictures held in them, and the folder that names of pictures are relative to."""
    published = published_rows(path, split, task, columns or {})
    if published is not None:
        return published[0], published[1], HeldPictures(None), published[2]
    files = [path] if path.is_file() else find_layout(path, split)
    if not files:
        raise no_layout(path, split)
    rows, places, held = open_rows(files, split, picture_column=(columns or {}).get("image"))
    return rows, places, held, files[0].parent


def _refuse_equal_captions(rows: Conversations, path: Path) -> None:
    first = text_of(rows.messages(0)[-1])
    if len(rows) > 1 and all(text_of(rows.messages(index)[-1]) == first for index in range(1, len(rows))):
        raise ValueError(
            f"{path} must hold captions that differ, got {len(rows)} times {cut(repr(first), 60)}, from which nothing "
            "can be learnt about pictures. Check the column."
        )


def _raise(error: Exception) -> None:
    raise error
