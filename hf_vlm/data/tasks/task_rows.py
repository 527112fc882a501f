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

Of the task vqa, `choices` become lines of the question, and their letter the answer (`question_forms.py`).
`columns` gives columns of other names. Pictures are `image`, `images`, or a `file_name` beside the file. Any set may hold
conversations instead. Files are those of `conversations.py` (`save_to_disk`, SPLIT.json, .jsonl, SPLIT/metadata.jsonl, parquet),
tables (.csv, .tsv), tar files of WebDataset, folders of classes, and as published

    caption     captions_*SPLIT*.json, also in `annotations/`: COCO's object of `images` and `annotations` with `caption`
                dataset*.json: Karpathy's, whose rows say their split; TextCaps*SPLIT*.json: `data`
                captions.txt, results.csv, *.token: Flickr8k's and Flickr30k's; SPLIT by a list of pictures' names beside
    vqa         *SPLIT*questions.json beside *SPLIT*annotations.json: VQAv2, OK-VQA
                *SPLIT*questions.json alone: GQA (question id -> `question`, `answer`, `imageId`)
                TextVQA_*SPLIT*.json: TextVQA (`data`); these two also by the file's name
                SPLIT.json: lists of rows, such as VizWiz's and A-OKVQA's
                problems.json beside pid_splits.json: ScienceQA; pictures SPLIT/ID/image.png
                dataset.json: OCR-VQA (id -> `imageURL`, `questions`, `answers`, `split`); pictures images/ID.jpg
                question_answers.json: Visual Genome; pictures ID.jpg, VG_100K/ID.jpg or VG_100K_2/ID.jpg
                *.jsonl of `question_id`, `image`, `text`, `category` beside answers*.jsonl of `question_id`, `text`: LLaVA's
                files of questions; or with `label`: POPE's
                *.tsv of `index`, `question`, `A`, `B`, ..., `answer`, `image` in base64: MMBench (`task_tables.py`)
                SPLIT/CLASS/PICTURE, or SPLIT.zip beside SPLIT_map.txt: ImageNet (`picture_archives.py`)
    nlvr        SPLIT*.json: NLVR2's lines of `sentence`, `label`, `identifier`; pictures `PAIR-img0.png`, `PAIR-img1.png`,
                in the folder that `directory` names, where rows of train have it
    translate   SPLIT.en, SPLIT.de, ...: Multi30k's, also in `raw/`, or of its `tok/`; names of pictures in
                `image_splits/SPLIT.txt` there or beside the folder; `columns` gives the suffixes
    any         SPLIT*.tar, SPLIT/*.tar: KEY.jpg with KEY.txt or KEY.json; tar files that have numbers for names are `train`'s

Pictures are never fetched: a URL in place of a name is an error. JSON lists and lines, tables, parquet and tar files are read
row by row; files that are one JSON object, as a whole.

Sources: Chen et al. 2015 (COCO captions), https://arxiv.org/abs/1504.00325; Goyal et al. 2017 (VQAv2),
    https://arxiv.org/abs/1612.00837; Hudson and Manning 2019 (GQA), https://arxiv.org/abs/1902.09506; Suhr et al. 2019 (NLVR2),
    https://arxiv.org/abs/1811.00491; Elliott et al. 2016 (Multi30k), https://arxiv.org/abs/1605.00459; Gurari et al. 2018
    (VizWiz), https://arxiv.org/abs/1802.08218; others in the files that read them.
"""

import functools
import io
import json
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hf_vlm.data.conversations.conversation_files import (
    FIELDS,
    PICTURE_FIELDS,
    ConversationError,
    Texts,
    cut,
    find_layout,
    has_fields,
    no_layout,
    open_rows,
)
from hf_vlm.data.conversations.conversations import (
    Conversations,
    PictureFinder,
    conversation_record,
    holds_conversations,
    read_conversations,
    text_of,
)
from hf_vlm.data.tasks.format_prompts import with_format_prompt
from hf_vlm.data.tasks.picture_archives import class_rows, find_tars, tar_rows
from hf_vlm.data.tasks.published_tasks import published_rows
from hf_vlm.data.tasks.source_rows import SourceRows
from hf_vlm.data.tasks.task_exchanges import conversations_of, with_prompt_once
from hf_vlm.data.tasks.task_tables import find_table, table_rows

TASKS = ("caption", "ocr", "vqa", "nlvr", "translate", "chat")

_COLUMNS = ("question", "answer", "image", "id", "kind", "group")
_NOTES = ("id", "references", "kind", "group")


@dataclass(frozen=True)
class TaskConversation:
    """One conversation of a data set, for writing it elsewhere.

    Attributes:
        messages: `{"role", "content"}` each, as in `conversations.py`.
        images: the files of its pictures, or their bytes as they are stored.
        source: where it came from.
        notes: `id`, `references`, `kind` and `group`, those that it has.
    """

    messages: list[dict[str, Any]]
    images: list[Path | bytes]
    source: str
    notes: dict[str, Any]


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
    path = _checked(path, task, columns)
    if _is_of_conversations(path, split, task, columns):
        rows = read_conversations(path, split, image_folder=image_folder, on_bad_row=on_bad_row)
        return with_prompt(rows, prompt)
    source, finder = _open(path, split, task, columns or {}, image_folder)
    settings = (prompt, every_answer, max_exchanges, on_bad_row or _raise)
    texts, kept, counts, sources = Texts(), array("q"), array("i"), []
    for text, num_pictures, place, _ in _records(source, finder, task, columns or {}, *settings):
        kept.append(len(texts))
        texts.append(text)
        counts.append(num_pictures)
        sources.append(place)
    if not kept:
        raise _no_rows(path, task)
    numbers = np.array(kept, np.int64), np.array(counts, np.int32)
    rows = Conversations(texts, sources, finder.folder, source.held, *numbers)
    if every_answer and task == "caption" and len(rows) > 1:
        first = text_of(rows.messages(0)[-1])
        if all(text_of(rows.messages(index)[-1]) == first for index in range(1, len(rows))):
            raise _equal_captions(path, len(rows), first)
    return rows


def stream_task(
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
) -> Iterator[TaskConversation]:
    """The conversations of `read_task` one by one, with pictures unopened, for sets that don't fit in memory.

    Arguments are those of `read_task`. That the beginning of each picture is one of a picture is checked; its pixels are not.

    Raises:
        FileNotFoundError, ValueError: as `read_task` does; of rows, and if nothing is left, while they are read.
    """
    path = _checked(path, task, columns)
    if _is_of_conversations(path, split, task, columns):
        source, finder = _open_conversations(path, split, image_folder)
        task = "chat"
    else:
        source, finder = _open(path, split, task, columns or {}, image_folder)
    settings = (prompt, every_answer, max_exchanges, on_bad_row or _raise)
    return _stream(source, finder, path, task, columns or {}, *settings)


def _stream(
    source: SourceRows,
    finder: PictureFinder,
    path: Path,
    task: str,
    columns: Mapping[str, str],
    prompt: str | None,
    every_answer: bool,
    max_exchanges: int,
    on_bad_row: Callable[[Exception], None],
) -> Iterator[TaskConversation]:
    number, first, is_varied = 0, "", False
    left_out: list[Exception] = []  # the first

    def bad_row(error: Exception) -> None:
        left_out[:] = left_out or [error]
        on_bad_row(error)

    checked: Path | bytes | None = None  # rows about one picture mostly follow each other
    for text, _, place, held in _records(source, finder, task, columns, prompt, every_answer, max_exchanges, bad_row):
        record = json.loads(text)
        try:
            stored = source.held[held] if None in record["pictures"] else []
            images = [
                finder.folder / name if name is not None else stored[at] for at, name in enumerate(record["pictures"])
            ]
            for at, image in enumerate(images):
                if image != checked:
                    _check_picture(image, f"{place}, picture {at}" if isinstance(image, bytes) else f"{place}, {image}")
                checked = image
        except (ValueError, OSError) as error:
            bad_row(error)
            continue
        number += 1
        answer = text_of(record["messages"][-1])
        first = answer if number == 1 else first
        is_varied = is_varied or answer != first
        notes = {name: record[name] for name in _NOTES if record.get(name) is not None}
        yield TaskConversation(record["messages"], images, place, notes)
    if not number:
        raise _no_rows(path, task, *left_out)
    if every_answer and task == "caption" and number > 1 and not is_varied:
        raise _equal_captions(path, number, first)


def _records(
    source: SourceRows,
    finder: PictureFinder,
    task: str,
    columns: Mapping[str, str],
    prompt: str | None,
    every_answer: bool,
    max_exchanges: int,
    on_bad_row: Callable[[Exception], None],
) -> Iterator[tuple[bytes, int, str, int]]:
    """Each good conversation as JSON, its number of pictures, where it stands, and the row of `source.held` that it has."""
    for one in conversations_of(source.rows, task, columns, prompt, every_answer, max_exchanges, on_bad_row):
        try:
            text, num_pictures = conversation_record(one.row, one.source, finder)
        except (ValueError, OSError) as error:
            on_bad_row(error)
            continue
        if one.is_whole and with_format_prompt("", prompt):
            record = json.loads(text)
            record["messages"] = _prompted(record["messages"], prompt)
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        yield text, num_pictures, one.source, one.row["held"]


def with_prompt(rows: Conversations, prompt: str | None) -> Conversations:
    """The same conversations, with a format prompt behind the first question of each."""
    if not with_format_prompt("", prompt):
        return rows
    return rows.map_messages(functools.partial(_prompted, prompt=prompt))


def _prompted(messages: list[dict[str, Any]], prompt: str | None) -> list[dict[str, Any]]:
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    content = messages[first]["content"]
    pictures = [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]
    asked = [*pictures, {"type": "text", "text": with_prompt_once(text_of(messages[first]), prompt)}]
    return [*messages[:first], {**messages[first], "content": asked}, *messages[first + 1 :]]


def _checked(path: str | Path, task: str, columns: Mapping[str, str] | None) -> Path:
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
    return path


def _is_of_conversations(path: Path, split: str | None, task: str, columns: Mapping[str, str] | None) -> bool:
    """Whether files are of `read_conversations`."""
    if task == "chat" and not find_tars(path, split):
        return True
    return not columns and (has_fields(path) if path.is_file() else holds_conversations(path))


def _open_conversations(
    path: Path, split: str | None, image_folder: str | Path | None
) -> tuple[SourceRows, PictureFinder]:
    files = [path] if path.is_file() else find_layout(path, split)
    if not files:
        raise no_layout(path, split)
    found, places, held = open_rows(files, split, (*FIELDS, *PICTURE_FIELDS, *_NOTES), FIELDS)
    source = SourceRows(((places[number], row) for number, row in enumerate(found)), files[0].parent, held)
    return source, _finder(source, image_folder)


def _open(
    path: Path, split: str | None, task: str, columns: Mapping[str, str], image_folder: str | Path | None
) -> tuple[SourceRows, PictureFinder]:
    """The rows of a set in one of the layouts above, and the finder of their pictures."""
    source = published_rows(path, split, task, columns, None if image_folder is None else Path(image_folder))
    if source is None and (path.is_dir() or path.suffix.lower() in (".json", ".jsonl", ".parquet")):
        if files := [path] if path.is_file() else find_layout(path, split):
            found, places, held = open_rows(files, split, picture_column=columns.get("image"))
            source = SourceRows(((places[number], row) for number, row in enumerate(found)), files[0].parent, held)
    if source is None and (tars := find_tars(path, split)):
        source = tar_rows(tars)
    if source is None and (table := find_table(path, split)):
        source = table_rows(table, split, task, columns)
    if source is None and task == "vqa":
        source = class_rows(path, split)
    if source is None and path.is_file():
        raise ValueError(
            f"`path` must be a folder, .json, .jsonl, .parquet, .csv, .tsv, .txt, .token or .tar, got {path}. Convert it."
        )
    if source is None:
        raise no_layout(path, split)
    return source, _finder(source, image_folder)


def _finder(source: SourceRows, image_folder: str | Path | None) -> PictureFinder:
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"`image_folder` must be a folder, got {image_folder}, which is none. Check it.")
    return PictureFinder(Path(image_folder) if image_folder is not None else source.folder)


def _check_picture(picture: Path | bytes, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture):
                return
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ConversationError(
            f"{name}: wanted at most {Image.MAX_IMAGE_PIXELS} pixels, got a larger picture ({error}). Scale it down.",
            "unreadable pictures",
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise ConversationError(
            f"{name}: wanted a picture, got something else ({error}). Copy or download it again, or remove the row.",
            "unreadable pictures",
        ) from error


def _no_rows(path: Path, task: str, first: Exception | None = None) -> ValueError:
    why = "Check the file and the split." if first is None else f"The first was left out: {first}"
    return ValueError(f"{path} must hold rows of the task `{task}`, got none. {why}")


def _equal_captions(path: Path, number: int, caption: str) -> ValueError:
    return ValueError(
        f"{path} must hold captions that differ, got {number} times {cut(repr(caption), 60)}, from which nothing can be learnt "
        "about pictures. Check the column."
    )


def _raise(error: Exception) -> None:
    raise error
