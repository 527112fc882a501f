"""Questions about pictures as published: VQAv2, OK-VQA, GQA, TextVQA, OCR-VQA, ScienceQA, Visual Genome, LLaVA's files.

What each layout is, tells `task_rows.py`; choices become lines of the question in `question_forms.py`.

Sources: LLaVA's evaluation files, https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md; Lu et al. 2022
    (ScienceQA), https://arxiv.org/abs/2209.09513; Mishra et al. 2019 (OCR-VQA); Li et al. 2023 (POPE),
    https://arxiv.org/abs/2305.10355; Krishna et al. 2017 (Visual Genome), https://arxiv.org/abs/1602.07332.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_vlm.data.conversations.conversation_files import ConversationError, cut, files_in, open_rows
from hf_vlm.data.tasks.source_rows import (
    PICTURE_SUFFIXES,
    VALIDATION_NAMES,
    SourceRows,
    first_object,
    head_of,
    load_json,
    missing,
    only_one,
)

_OCRVQA_SPLITS = {"train": 1, "test": 3} | dict.fromkeys(VALIDATION_NAMES, 2)
_ANSWERED = ("answer", "answers", "label")  # of question files that hold what is right themselves, as POPE's do


def published_questions(path: Path, split: str | None, image_folder: Path | None) -> SourceRows | None:
    """The rows of a set of questions as it was published, or None where it is laid out otherwise."""
    if path.is_dir():
        if (path / "problems.json").is_file():
            return _scienceqa(path / "problems.json", split)
        if pair := _vqav2_files(path, split):
            return _vqav2(*pair)
        part = f"*{split}*" if split else "*"
        named = [*path.glob("dataset.json"), *path.glob("question_answers.json")]
        named += [*sorted(path.glob(f"{part}questions.json")), *sorted(path.glob(f"TextVQA_0{part}.json"))]
        if not (file := only_one(named, path, "set of questions")) and not (file := _question_file(path, split)):
            return None
        path = file
    head = head_of(path) if path.suffix.lower() in (".json", ".jsonl") else ""
    if head.startswith("[") and '"qas"' in head and '"qa_id"' in head:
        return _visual_genome(path, image_folder)
    if not head.startswith("{"):
        return None
    if _asks(first_object(path)):
        return SourceRows(_question_lines(path), path.parent)
    if path.suffix.lower() == ".jsonl" or "\n{" in head:
        return None
    content = load_json(path)
    return _of_object(path, content, split) if isinstance(content, dict) else None


def _of_object(path: Path, content: dict[str, Any], split: str | None) -> SourceRows:
    """A published file that is one JSON object."""
    values = [value for value in content.values() if isinstance(value, dict)]
    if isinstance(content.get("data"), list):  # TextVQA
        rows = [{**row, "file_name": f"{row.get('image_id')}.jpg"} for row in content["data"] if isinstance(row, dict)]
        return SourceRows(((f"{path}, row {at} of `data`", row) for at, row in enumerate(rows)), path.parent)
    if isinstance(content.get("questions"), list):
        subset = path.stem.removesuffix("_questions").split("_")[-1]
        if path.stem.endswith("questions") and (pair := _vqav2_files(path.parent, subset)):
            return _vqav2(*pair)
        raise _no_answers(path, "a file *annotations.json of the same split")
    if values and len(values) == len(content):
        if all("imageId" in row for row in values):  # GQA
            rows = [{**row, "id": name, "file_name": f"{row['imageId']}.jpg"} for name, row in content.items()]
            return SourceRows(((f"{path}, question {row['id']}", row) for row in rows), path.parent)
        if "imageURL" in values[0] and "questions" in values[0]:
            return _ocrvqa(path, content, split)
        if "choices" in values[0] and "question" in values[0]:
            return _scienceqa(path, split)
    keys = ", ".join(f"`{cut(str(key), 40)}`" for key in list(content)[:6]) or "nothing"
    raise ValueError(
        f"{path} must hold GQA's questions or TextVQA's `data`, OCR-VQA's or ScienceQA's rows, or a list of rows, got {keys}. "
        "Convert it to .jsonl, a row a line."
    )


def _no_answers(file: Path, wanted: str) -> ValueError:
    return ValueError(
        f"{file} must have its answers beside it, {wanted}, got none. Add it: questions alone, as those of a hidden test, "
        "serve neither training nor scoring."
    )


# VQAv2, OK-VQA


def _vqav2_files(folder: Path, split: str | None) -> tuple[Path, Path] | None:
    named = f"*{split}*" if split else "*"
    pairs = [sorted(folder.glob(f"{named}{kind}.json")) for kind in ("questions", "annotations")]
    if pairs[0] and not pairs[1] and '"questions"' in head_of(pairs[0][0]):
        raise _no_answers(pairs[0][0], "a file *annotations.json of the same split")
    if not all(pairs):
        return None
    for found in pairs:
        if len(found) > 1:
            raise ValueError(f"{folder} must hold one {found[0].name}-like file, got {len(found)}. Name the split.")
    return pairs[0][0], pairs[1][0]


def _vqav2(questions_file: Path, annotations_file: Path) -> SourceRows:
    questions, annotations = load_json(questions_file), load_json(annotations_file)
    try:
        known = {one["question_id"]: one for one in annotations["annotations"]}
        asked = [(one["question_id"], one["image_id"], one["question"]) for one in questions["questions"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{questions_file} and {annotations_file.name} must hold VQAv2's `questions` and `annotations`, got some without "
            f"({error}). Copy or download them again."
        ) from error
    if lost := next((name for name, _, _ in asked if name not in known), None):
        raise ValueError(
            f"{annotations_file} must hold the answers to every question of {questions_file.name}, got none for {lost}. Take "
            "both of one split."
        )
    subtype = annotations.get("data_subtype") or questions.get("data_subtype")  # `val2014`: part of the pictures' names

    def rows() -> Iterator[tuple[str, Any]]:
        for name, picture, question in asked:
            place = f"{questions_file}, question {name}"
            stem = f"COCO_{subtype}_{picture:012d}" if subtype and isinstance(picture, int) else str(picture)
            row = {"question": question, "question_id": name, "file_name": f"{stem}.jpg"}
            yield place, row | {"kind": known[name].get("answer_type"), "answers": known[name].get("answers")}

    return SourceRows(rows(), questions_file.parent)


# OCR-VQA, Visual Genome


def _ocrvqa(path: Path, content: Mapping[str, Any], split: str | None) -> SourceRows:
    if split is None or split not in _OCRVQA_SPLITS:
        raise ValueError(f"`split` must be `train`, `val` or `test` of {path}, got {split!r}. Name one.")
    folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent

    def rows() -> Iterator[tuple[str, Any]]:
        for name, row in content.items():
            if row.get("split") == _OCRVQA_SPLITS[split]:
                picture = {"file_name": f"{name}.jpg", "id": name, "kind": row.get("genre")}
                asked = {"question": row.get("questions"), "answer": row.get("answers")}
                yield f"{path}, book {name}", picture | asked

    return SourceRows(rows(), folder)


def _visual_genome(path: Path, image_folder: Path | None) -> SourceRows:
    folder = image_folder or path.parent
    second = {file.stem for file in files_in(folder / "VG_100K_2", *PICTURE_SUFFIXES)}
    has_parts = (folder / "VG_100K").is_dir() or bool(second)
    found, places, _ = open_rows([path], None)

    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(found):
            try:
                name, pairs = str(row["id"]), [(one["question"], one["answer"]) for one in row["qas"]]
            except (KeyError, TypeError) as error:
                yield places[number], missing(error, "Visual Genome's `id` and `qas` of `question` and `answer`")
                continue
            part = ("VG_100K_2/" if name in second else "VG_100K/") if has_parts else ""
            asked, answered = [one for one, _ in pairs], [one for _, one in pairs]
            row = {"id": name, "file_name": f"{part}{name}.jpg", "question": asked, "answer": answered}
            yield places[number], row

    return SourceRows(rows(), path.parent)


# ScienceQA


def _scienceqa(path: Path, split: str | None) -> SourceRows:
    """Problems of one split, in its order; their choices become lines of the question later, as those of any set."""
    problems, splits_file = load_json(path), path.parent / "pid_splits.json"
    if splits_file.is_file():
        splits = load_json(splits_file)
    else:
        splits = {}
        for name, problem in problems.items():
            splits.setdefault(problem.get("split"), []).append(name)
    names = [name for name in VALIDATION_NAMES if name in splits] if split in VALIDATION_NAMES else [split]
    if not names or names[0] not in splits:
        there = ", ".join(f"`{name}`" for name in splits)
        raise ValueError(f"`split` must be one of {there} of {path.parent}, got {split!r}. Name one.")
    chosen: list[str] = splits[names[0]]

    def rows() -> Iterator[tuple[str, Any]]:
        for name in chosen:
            place, problem = f"{path}, problem {name}", problems.get(name)
            if not isinstance(problem, Mapping):
                yield (
                    place,
                    ConversationError("wanted the problem that pid_splits.json names, got none. Copy both again."),
                )
                continue
            row = {key: value for key, value in problem.items() if key != "image"}
            row |= {"id": name, "kind": problem.get("subject")}
            if problem.get("image"):  # `minival` and others keep the pictures of the split that they are drawn from
                row["file_name"] = f"{problem.get('split') or names[0]}/{name}/{problem['image']}"
            yield place, row

    return SourceRows(rows(), path.parent)


# Question files of LLaVA's evaluation, POPE


def _asks(row: Mapping[str, Any]) -> bool:
    """Whether a line is one of a question file: not an answer of a model, nor a row that calls its question so."""
    return {"question_id", "text"} <= row.keys() and not {"question", "answer_id", "model_id"} & row.keys()


def _question_file(folder: Path, split: str | None) -> Path | None:
    files = [
        file
        for file in files_in(folder, ".jsonl", ".json")
        if not file.name.lower().startswith("answer") and (split is None or split in file.name)
    ]
    found = [file for file in files if head_of(file, 200).startswith("{") and _asks(first_object(file))]
    return only_one(found, folder, "file of questions")


def _question_lines(file: Path) -> Iterator[tuple[str, Any]]:
    inside = next((name for name in _ANSWERED if name in first_object(file)), None)
    answers = {} if inside else _answers_beside(file)
    for place, row in _json_lines(file):
        if isinstance(row, ValueError) or not isinstance(row, Mapping):
            yield place, row
            continue
        name = row.get("question_id")
        answer = row.get(inside) if inside else answers.get(name)
        if answer is None:
            told = (
                f"wanted an answer to question {cut(repr(name), 40)}, got none beside. Add it, or remove the question."
            )
            yield place, ConversationError(told, "questions without answers")
        elif not _asks(row):
            yield place, ConversationError("wanted `question_id` and `text`, got a row without. Fill them.")
        else:
            asked = {"question": row["text"], "answer": answer, "kind": row.get("category")}
            yield place, {"question_id": name, "image": row.get("image"), **asked}


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield f"{file}, line {number}", json.loads(line)
                except ValueError as error:
                    told = f"wanted a JSON object, got {line[:60]!r} ({error}). Correct it."
                    yield f"{file}, line {number}", ConversationError(told)


def _answers_beside(file: Path) -> dict[Any, str]:
    """The texts of the only answers*.jsonl beside a file of questions, by `question_id`."""
    folder, stem = file.parent, file.stem
    found = sorted({*folder.glob("answer*.jsonl"), *folder.glob(f"{stem}_answer*.jsonl")} - {file})
    if len(found) > 1:  # of several question files in one folder
        part = stem.removeprefix("questions").removeprefix("question").strip("_-")
        found = [one for one in found if part and part in one.stem] or found
    answers_file = only_one(found, folder, f"file of answers to {file.name}")
    if answers_file is None:
        raise _no_answers(file, "a file answers*.jsonl with `question_id` and `text`")
    answers = {}
    for place, row in _json_lines(answers_file):
        if not isinstance(row, Mapping) or "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(f"{place}: wanted a `question_id` and a `text`, got {cut(repr(row), 60)}. Correct it.")
        answers[row["question_id"]] = row["text"]
    return answers
