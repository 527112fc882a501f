"""Conversations of one question each, written as the published sets of questions are.

    vqav2       v2_OpenEnded_mscoco_SPLIT_questions.json, v2_mscoco_SPLIT_annotations.json
                wants one picture; confidences and types of questions are lost
    gqa         SPLIT_questions.json
                wants one picture; groups, programs, full answers, and all references but the answer are lost
    textvqa     TextVQA_0.5.1_SPLIT.json
                wants one picture; kinds are lost
    vizwiz      SPLIT.json
                wants one picture; confidences and ids are lost
    scienceqa   problems.json, pid_splits.json, SPLIT/ID/image.png
                wants choices as lines `A. ...`, at most one picture; topics, skills, grades are lost, and what is lecture
    ocrvqa      dataset.json, images/ID.jpg
                wants one picture, splits `train`, `val`, `test`; titles, authors, addresses are lost
    mmbench     SPLIT.tsv, pictures inside
                wants two to four choices as lines, one picture; a picture that rows share is in each
    questions   questions_SPLIT.jsonl, answers_SPLIT.jsonl
                wants at most one picture; all references but the answer are lost
    nlvr2       SPLIT.json
                wants two pictures, and answers `true` or `false`; addresses of pictures and votes are lost

Pictures are in `images/` by the names that the set had, for `image_folder` when they are read. A format wants the answers of ten
people: where `references` are not ten, they are written in turn until they are, so one right answer gets the full score. The
`kind` is VQAv2's and VizWiz's type of answer, and the category, subject or genre of others.
"""

import base64
import csv
import json
import re
import string
from pathlib import PurePosixPath
from typing import Any, ClassVar

from hf_vlm.data.conversations.conversation_files import ConversationError, cut
from hf_vlm.data.tasks.format_writer import AnsweredQuestion, ConversationRow, FormatWriter, ten_answers

_COCO_NAME = re.compile(r"COCO_([a-z]+[0-9]+)_([0-9]{12})\.\w+")
_PAIR = re.compile(r".+-[0-9]+-[0-9]+")  # of NLVR2: split, set, pair
_EXPLAINED = re.compile(r"(?s)(.*)\bThe answer is ([A-Z])\.")
_OCRVQA_SPLITS = {"train": 1, "validation": 2, "valid": 2, "val": 2, "dev": 2, "test": 3}


class Vqav2Writer(FormatWriter):
    """VQAv2's questions and annotations."""

    name = "vqav2"

    def begin(self, split: str) -> None:
        """Begin the split's two files."""
        super().begin(split)
        self._subtype: str | None = None
        self._questions: Any = None

    def add(self, row: ConversationRow) -> None:
        """Add a question."""
        asked, name = self.exchange(row), self.id_of(row)
        file_name = self.put(row.pictures[0])
        known = _COCO_NAME.fullmatch(file_name)
        if self._questions is None:
            self._subtype = known[1] if known else None
            head = {"data_type": "mscoco", "data_subtype": self._subtype} if known else {}
            start = json.dumps({"task_type": "Open-Ended", **head})[:-1]
            self._open_files(f'{start}, "questions": [', f'{start}, "annotations": [')
        image_id: int | str = str(PurePosixPath(file_name).with_suffix(""))
        if known and known[1] == self._subtype:
            image_id = int(known[2])
        self._questions.add({"image_id": image_id, "question": asked.question, "question_id": name})
        answers = [
            {"answer": text, "answer_confidence": "yes", "answer_id": number}
            for number, text in enumerate(ten_answers(asked.references), start=1)
        ]
        self._annotations.add(
            {
                "question_type": "none of the above",  # VQAv2's own word for a question of no type
                "multiple_choice_answer": asked.answer,
                "answers": answers,
                "image_id": image_id,
                "answer_type": row.notes.get("kind") or "other",
                "question_id": name,
            }
        )
        self.done(name)

    def end(self) -> None:
        """End both files."""
        if self._questions is None:
            self._open_files('{"questions": [', '{"annotations": [')
        super().end()

    def _open_files(self, questions: str, annotations: str) -> None:
        self._questions = self.json_list(f"v2_OpenEnded_mscoco_{self.split}_questions.json", questions, "\n]}\n")
        self._annotations = self.json_list(f"v2_mscoco_{self.split}_annotations.json", annotations, "\n]}\n")


class GqaWriter(FormatWriter):
    """GQA's questions, one object with a key a question."""

    name = "gqa"

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_list(f"{split}_questions.json", "{", "\n}\n")

    def add(self, row: ConversationRow) -> None:
        """Add a question."""
        asked = self.exchange(row)
        name = self.unique(row.id if row.id is not None else str(self.num_rows))
        image_id = str(PurePosixPath(self.put(row.pictures[0])).with_suffix(""))
        told = {"isBalanced": True, "question": asked.question, "imageId": image_id, "answer": asked.answer}
        self._file.add(told | _kind(row, "kind"), name)
        self.done(name)


class TextVqaWriter(FormatWriter):
    """TextVQA's file."""

    name = "textvqa"

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        self._file = self.json_list(f"TextVQA_0.5.1_{split}.json", json.dumps(head)[:-1] + ', "data": [', "\n]}\n")

    def add(self, row: ConversationRow) -> None:
        """Add a question."""
        asked, name = self.exchange(row), self.id_of(row)
        file_name = self.put(row.pictures[0])
        told: dict[str, Any] = {"question": asked.question, "image_id": str(PurePosixPath(file_name).with_suffix(""))}
        if row.pictures[0].data is not None:
            told["image_width"], told["image_height"] = row.pictures[0].size()
        told |= {"question_id": name, "answers": ten_answers(asked.references), "set_name": self.split}
        self._file.add(told)
        self.done(name)


class VizWizWriter(FormatWriter):
    """VizWiz's list."""

    name = "vizwiz"

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_list(f"{split}.json")

    def add(self, row: ConversationRow) -> None:
        """Add a question."""
        asked = self.exchange(row)
        kind = row.notes.get("kind") or ("unanswerable" if asked.answer.lower() == "unanswerable" else "other")
        answers = [{"answer_confidence": "yes", "answer": answer} for answer in ten_answers(asked.references)]
        told = {"image": self.put(row.pictures[0]), "question": asked.question, "answers": answers}
        self._file.add(told | {"answer_type": kind, "answerable": int(kind != "unanswerable")})
        self.done()


class ScienceQaWriter(FormatWriter):
    """ScienceQA's problems and what split each is of."""

    name = "scienceqa"
    pictures = "{split}"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """As of any writer."""
        super().__init__(*arguments, **settings)
        self._splits: dict[str, list[str]] = {}
        self._known: set[str] = set()
        self._file = self.json_list("problems.json", "{", "\n}\n")

    def begin(self, split: str) -> None:
        """Begin a split; ids are unique over all of them."""
        super().begin(split)
        self._ids = self._known
        self._splits[split] = []

    def add(self, row: ConversationRow) -> None:
        """Add a problem."""
        asked = self.exchange(row, (0, 1))
        hint, question, choices = self._problem(asked)
        name = self.unique(row.id if row.id is not None else str(len(self._known) + 1))
        if "/" in name or name in (".", ".."):
            raise self.beyond("an `id` that can be a folder's name", cut(repr(name), 60))
        letter, solution = _right_choice(asked, choices)
        image = None
        if row.pictures:
            if row.pictures[0].data is None:
                raise self.beyond("the picture itself", f"its name alone, {cut(str(row.pictures[0].name), 60)}")
            image = PurePosixPath(self.put(row.pictures[0], f"{name}/image")).name
        told: dict[str, Any] = {
            "question": question,
            "choices": choices,
            "answer": string.ascii_uppercase.index(letter),
        }
        told |= {"hint": hint.removeprefix("Context: "), "image": image, "task": "closed choice", "grade": ""}
        told |= {"subject": row.notes.get("kind") or "", "topic": "", "category": "", "skill": "", "lecture": ""}
        self._file.add(told | {"solution": solution, "split": self.split}, name)
        self._splits[self.split].append(name)
        self.done(name)

    def end(self) -> None:
        """Nothing ends before all splits do."""

    def finish(self) -> None:
        """End the file of problems, and write the splits."""
        super().end()
        text = json.dumps(self._splits, ensure_ascii=False)
        self.write(self.folder / "pid_splits.json", text.encode())

    def _problem(self, asked: AnsweredQuestion) -> tuple[str, str, list[str]]:
        hint, question, choices = choices_of(asked.question)
        if len(choices) < 2:
            raise self.beyond("choices as lines `A. ...`, `B. ...` behind the question", cut(repr(asked.question), 60))
        return hint, question, choices


class OcrVqaWriter(FormatWriter):
    """OCR-VQA's books, all questions about one together."""

    name = "ocrvqa"

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """As of any writer."""
        super().__init__(*arguments, **settings)
        self._known: set[str] = set()
        self._book: tuple[str, dict[str, Any], bytes] | None = None
        self._file = self.json_list("dataset.json", "{", "\n}\n")

    def begin(self, split: str) -> None:
        """Begin a split; ids are unique over all of them."""
        if split not in _OCRVQA_SPLITS:
            raise ValueError(
                f"`ocrvqa` has the splits `train`, `val` and `test`, got {split!r}. Give one of these with `split`, or rename it."
            )
        super().begin(split)
        self._ids = self._known

    def add(self, row: ConversationRow) -> None:
        """Add a question, or several, to the book of the row before, or to a new one."""
        found = self.exchanges(row)
        if len(row.pictures) != 1:
            raise self.beyond("one picture a row", str(len(row.pictures)))
        if not all(one.question for one in found):
            raise self.beyond("questions with words", "none but the format prompt")
        data, book = row.pictures[0].read(), self._book
        stem = row.id if row.id is not None else PurePosixPath(row.pictures[0].name or f"book-{len(self._known)}").stem
        if book is None or book[2] != data or (row.id is not None and row.id != book[0]):
            if "/" in self.unique(stem) or stem.startswith("."):
                raise self.beyond("an `id` that can be a file's name", cut(repr(stem), 60))
            self.put(row.pictures[0], stem)
            self._end_book()
            told: dict[str, Any] = {"imageURL": "", "questions": [], "answers": [], "title": "", "authorName": ""}
            told |= {"genre": row.notes.get("kind") or "", "split": _OCRVQA_SPLITS[self.split]}
            self._book = book = (stem, told, data)
            self._ids.add(stem)
        book[1]["questions"] += [one.question for one in found]
        book[1]["answers"] += [one.answer for one in found]
        self.done()

    def end(self) -> None:
        """End the last book of the split."""
        self._end_book()

    def finish(self) -> None:
        """End the file."""
        super().end()

    def _end_book(self) -> None:
        if self._book is not None:
            self._file.add(self._book[1], self._book[0])
            self._book = None


class MmBenchWriter(FormatWriter):
    """MMBench's table, tab-separated, pictures in base64."""

    name = "mmbench"
    _columns: ClassVar[list[str]] = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]

    def begin(self, split: str) -> None:
        """Begin the split's table."""
        super().begin(split)
        self._stream = (self.folder / f"{split}.tsv").open("w", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._stream, self._columns, delimiter="\t", lineterminator="\n")
        self._table.writeheader()

    def add(self, row: ConversationRow) -> None:
        """Add a question."""
        asked, name = self.exchange(row), self.id_of(row)
        hint, question, choices = choices_of(asked.question)
        if not 2 <= len(choices) <= 4:
            raise self.beyond("2 to 4 choices as lines `A. ...` behind the question", cut(repr(asked.question), 60))
        letter, _ = _right_choice(asked, choices)
        told = dict(zip("ABCD", choices, strict=False)) | {
            "index": name,
            "question": question,
            "hint": hint,
            "answer": letter,
        }
        picture = base64.b64encode(row.pictures[0].read()).decode()
        self._table.writerow(told | {"category": row.notes.get("kind") or "", "image": picture})
        self.done(name)

    def end(self) -> None:
        """End the table."""
        self._stream.close()
        super().end()


class QuestionsWriter(FormatWriter):
    """The question and answer files of LLaVA's evaluation."""

    name = "questions"
    keeps_prompts = True

    def begin(self, split: str) -> None:
        """Begin the split's two files."""
        super().begin(split)
        self._questions = self.json_lines(f"questions_{split}.jsonl")
        self._answers = self.json_lines(f"answers_{split}.jsonl")

    def add(self, row: ConversationRow) -> None:
        """Add a question and its answer."""
        asked, name = self.exchange(row, (0, 1)), self.id_of(row)
        told: dict[str, Any] = {"question_id": name}
        if row.pictures:
            told["image"] = self.put(row.pictures[0])
        self._questions.add(told | {"text": asked.question} | _kind(row, "category"))
        answer = {"question_id": name, "prompt": asked.question, "text": asked.answer, "answer_id": str(name)}
        self._answers.add(answer | {"model_id": "reference", "metadata": {}})
        self.done(name)


class Nlvr2Writer(FormatWriter):
    """NLVR2's statements about two pictures, one a line."""

    name = "nlvr2"

    def begin(self, split: str) -> None:
        """Begin the split's file."""
        super().begin(split)
        self._file = self.json_lines(f"{split}.json")

    def add(self, row: ConversationRow) -> None:
        """Add a statement."""
        asked = self.exchange(row, (2,))
        if asked.answer.lower() not in ("true", "false"):
            raise self.beyond("the answer `true` or `false`", cut(repr(asked.answer), 40))
        identifier = row.id if row.id is not None and _PAIR.fullmatch(row.id.rpartition("-")[0]) else None
        identifier = self.unique(identifier or f"{self.split}-{self.num_rows}-0-0")
        pair = identifier.rsplit("-", 1)[0]
        told: dict[str, Any] = {
            "sentence": asked.question,
            "label": asked.answer.capitalize(),
            "identifier": identifier,
        }
        folders = {PurePosixPath(picture.name or "").parent.name for picture in row.pictures}
        directory = folders.pop() if len(folders) == 1 else ""
        if directory.isdigit():  # where training pictures lie
            told["directory"] = int(directory)
        place = f"{directory}/" if directory.isdigit() else ""
        for number, picture in enumerate(row.pictures):
            if picture.data is not None:
                self.put(picture, f"{place}{pair}-img{number}")
        self._file.add(told)
        self.done(identifier)


def choices_of(text: str) -> tuple[str, str, list[str]]:
    """Hint, question and choices of a text that ends with lines `A. ...`, `B. ...`; no choices where it ends otherwise.

    The line before the choices is taken for the question, all before it for the hint.
    """
    lines = text.split("\n")
    for start in range(len(lines) - 1, 0, -1):
        if lines[start].startswith("A. "):
            given = lines[start:]
            if len(given) <= 26 and all(
                line.startswith(f"{letter}. ") for letter, line in zip(string.ascii_uppercase, given, strict=False)
            ):
                hint = "\n".join(lines[: start - 1])
                return hint, lines[start - 1], [line[3:] for line in given]
    return "", text, []


def _right_choice(asked: AnsweredQuestion, choices: list[str]) -> tuple[str, str]:
    """The letter of the right choice, and what the answer says before it."""
    letters = string.ascii_uppercase[: len(choices)]
    explained = _EXPLAINED.fullmatch(asked.answer)
    letter, before = (explained[2], explained[1].strip()) if explained else (asked.answer.strip().rstrip("."), "")
    if letter not in letters or len(letter) != 1:
        raise ConversationError(
            f"wanted one of {', '.join(letters)} as the answer, got {cut(repr(asked.answer), 60)}. Correct it.",
            "rows that the format can't hold",
        )
    return letter, before


def _kind(row: ConversationRow, field: str) -> dict[str, Any]:
    return {field: row.notes["kind"]} if row.notes.get("kind") else {}


QUESTION_WRITERS: tuple[type[FormatWriter], ...] = (
    Vqav2Writer,
    GqaWriter,
    TextVqaWriter,
    VizWizWriter,
    ScienceQaWriter,
    OcrVqaWriter,
    MmBenchWriter,
    QuestionsWriter,
    Nlvr2Writer,
)
