"""Measuring a saved model on a task: captions, questions, statements, translations, conversations.

What is measured leaves a record, from which the number can be made again: prompt, decoding, picture mode, hashes of data and
weights, versions, and every answer beside its references.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hf_vlm.data.conversations.conversations import Conversations
from hf_vlm.data.tasks.format_prompts import format_prompt
from hf_vlm.data.tasks.task_rows import read_task
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.adapter_loading import base_of_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.parts.picture_text_processor import check_vocabulary
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.scores.conversation_evaluation import answer_conversations, is_visual_chat, load_visual_chat
from hf_vlm.training.scores.measurements import decoding_of, describe_measurement
from hf_vlm.training.scores.task_metrics import TASK_METRICS, score_task

PictureMode = Literal["own", "none", "other"]
PICTURE_MODES: tuple[str, ...] = get_args(PictureMode)
ARCHITECTURES_OF: dict[str, tuple[str, ...]] = {
    "caption": ("cnn_lstm", "trocr", "llava"),
    "ocr": ("trocr", "llava"),
    "vqa": ("trocr", "llava"),
    "nlvr": ("llava",),
    "translate": ("llava",),
    "chat": ("llava",),
}
"""Which architectures do which task."""

_GREY = (127, 127, 127)


@dataclass
class TaskScores:
    """How well a task was done.

    Attributes:
        task: the task.
        scores: by the names of `hf_vlm.training.scores.task_metrics.TASK_METRICS`, the main one first.
        by_kind: kind of question -> its scores and `num_questions`, where rows say their kind.
        num_questions: how many were scored.
        questions_per_second: prepared and answered, on the machine it ran on.
        answers: every answer, in the rows' order; None where the picture could not be read.
        failed: row -> why its picture could not be read; such rows are not scored.
        measurement: what the scores depend on, see `describe_measurement`; empty where that is not told.
    """

    task: str
    scores: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    num_questions: int
    questions_per_second: float
    answers: list[str | None]
    failed: dict[int, str] = field(default_factory=dict)
    measurement: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name; scores, and what they depend on, among them."""
        rest = {name: value for name, value in vars(self).items() if name not in ("scores", "measurement")}
        return {**self.measurement, "task": self.task, **self.scores, **rest}

    def __str__(self) -> str:
        speed = f"({self.questions_per_second:.1f}/s)"
        lines = [f"{_spelled(self.scores)} on {self.num_questions} {speed}"]
        lines += [
            f"  {kind}: {_spelled(scores)} on {scores['num_questions']:.0f}" for kind, scores in self.by_kind.items()
        ]
        if self.failed:
            lines.append(f"  not scored, as the picture could not be read: {len(self.failed)}")
        return "\n".join(lines)


def _spelled(scores: dict[str, float]) -> str:
    """Scores in words; shares in per cent, what has a scale of its own as it is."""
    told = []
    for name, value in scores.items():
        if name == "num_questions":
            continue
        own_scale = name in ("bleu", "chrf", "cider")
        told.append(f"{name.replace('_', ' ')} {value:.3f}" if name == "cider" else f"{name.replace('_', ' ')} "
                    f"{value:.1f}" if own_scale else f"{name.replace('_', ' ')} {100 * value:.1f} %")  # fmt: skip
    return ", ".join(told)


def architecture_of(name_or_folder: str) -> str | None:
    """`cnn_lstm`, `trocr` or `llava`: what a saved model or adapter is; None if it is none of them.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if is_visual_chat(name_or_folder):
        return "llava"
    kinds = {"hf_vlm_cnn_lstm": "cnn_lstm", "hf_vlm_trocr": "trocr", "vision-encoder-decoder": "trocr"}
    return kinds.get(read_config(base_of_adapter(name_or_folder) or name_or_folder).get("model_type", ""))


def check_pair(task: str, architecture: str | None, name: str) -> None:
    """Checks that an architecture does a task.

    Raises:
        ValueError: if not, saying which do, and what the architecture does.
    """
    if task not in ARCHITECTURES_OF:
        raise ValueError(f"A task must be one of {listed(ARCHITECTURES_OF)}, got {task!r}. Correct it.")
    if architecture not in ARCHITECTURES_OF[task]:
        does = [known for known, able in ARCHITECTURES_OF.items() if architecture in able]
        told = f"`{architecture}`, which does {listed(does)}" if does else "another kind of model"
        raise ValueError(
            f"The task `{task}` wants a model of {listed(ARCHITECTURES_OF[task])}, got {name}, {told}. Choose another of the two."
        )


def load_answerer(name_or_folder: str, task: str) -> tuple[Any, Any]:
    """A saved model that does a task, in fp32, and its processor.

    Raises:
        ValueError: if its architecture does not do the task.
    """
    architecture = architecture_of(name_or_folder)
    check_pair(task, architecture, name_or_folder)
    if architecture == "llava":
        return load_visual_chat(name_or_folder)
    classes: dict[str, tuple[Any, Any]] = {
        "cnn_lstm": (CnnLstmForConditionalGeneration, CnnLstmProcessor),
        "trocr": (TrOCREncoderDecoderForConditionalGeneration, TrOCREncoderDecoderProcessor),
    }
    model_class, processor_class = classes[architecture or ""]
    model: Any = model_class.from_pretrained(name_or_folder, dtype=torch.float32)
    processor: Any = processor_class.from_pretrained(processor_folder(name_or_folder))
    check_vocabulary(model, processor.tokenizer)
    return model, processor


def evaluate_task_folders(
    model: str,
    folders: Sequence[str],
    *,
    task: str,
    split: str | None = None,
    prompt: str | None = None,
    columns: dict[str, str] | None = None,
    image_folder: str | None = None,
    max_rows: int | None = None,
    pictures: PictureMode = "own",
    metrics: str | None = None,
    batch_size: int = 16,
    record: str | Path | None = None,
    on_failure: Callable[[str], None] | None = None,
    **generation: Any,
) -> Iterator[tuple[str, TaskScores]]:
    """Each folder's name and the scores of a saved model on its rows.

    Args:
        model: folder or Hub name of a model or an adapter.
        folders: what `read_task` reads.
        task, split, prompt, columns, image_folder: as for `read_task`.
        max_rows: how many rows are asked, spread evenly over the set, of statements whole groups; None means all.
        pictures, metrics, batch_size, on_failure, generation: as for `evaluate_rows`.
        record: file for the JSON record, see the module's docstring; with several folders one a line.

    Raises:
        ValueError: if the model does not do the task, or a folder holds no rows of it.
        ImportError: if a package that a score needs is missing.
    """
    answerer, processor = load_answerer(model, task)
    answerer = answerer.to("cuda" if torch.cuda.is_available() else "cpu")
    weights = hash_weights(answerer.state_dict())
    for number, folder in enumerate(folders):
        rows = read_task(folder, split, task=task, prompt=prompt, columns=columns, image_folder=image_folder)
        rows = spread_rows(rows, max_rows, task)
        scores = evaluate_rows(
            answerer,
            processor,
            rows,
            task=task,
            pictures=pictures,
            metrics=metrics,
            batch_size=batch_size,
            on_failure=on_failure,
            **generation,
        )
        settings: dict[str, Any] = {
            "split": split,
            "prompt": prompt,
            "prompt_text": format_prompt(prompt),
            "max_rows": max_rows,
        }
        settings |= {"columns": columns, "image_folder": image_folder, "metrics": metrics or task}
        settings |= {"pictures": pictures, "batch_size": batch_size, "decoding": decoding_of(answerer, generation)}
        scores.measurement = describe_measurement(answerer, model, folder, settings, weights)
        if record is not None:
            content = make_record(rows, scores)
            with Path(record).open("a" if number else "w", encoding="utf-8") as file:
                file.write(json.dumps(content, ensure_ascii=False, indent=None if len(folders) > 1 else 1) + "\n")
        yield folder, scores


def spread_rows(rows: Conversations, max_rows: int | None, task: str) -> Conversations:
    """So many rows, spread evenly over the set; of statements the rows of whole groups, as consistency is of those."""
    if max_rows is None or max_rows >= len(rows):
        return rows
    if task != "nlvr":
        return rows.spread(max_rows)
    groups: dict[str, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        groups[rows.group(index) or rows.question(index)].append(index)
    number = max(1, round(max_rows * len(groups) / len(rows)))
    chosen = np.unique(np.linspace(0, len(groups) - 1, number).round().astype(int))
    members = list(groups.values())
    return rows.select(sorted(index for at in chosen for index in members[at]))


def evaluate_rows(
    model: Any,
    processor: Any,
    rows: Conversations,
    *,
    task: str,
    pictures: PictureMode = "own",
    metrics: str | None = None,
    batch_size: int = 16,
    on_failure: Callable[[str], None] | None = None,
    **generation: Any,
) -> TaskScores:
    """The scores of a model on rows whose last answer is known.

    Args:
        pictures: "own" shows each row's own. "none" shows none: what the words alone give away; to a model that can't do
            without, a grey one. "other" shows those of another row: what it makes of the wrong ones.
        metrics: name of other scores than the task's own: `yes-no` and `option`, for questions that are answered so.
        batch_size: rows at a time.
        on_failure: called with what is wrong with a picture that can't be read; its row is not scored.
        generation: settings of `generate`; the rest is what was saved with the model, a chat's being greedy.

    Raises:
        ValueError: if there are no rows, or no picture of them can be read.
        ImportError: if a package that a score needs is missing.
    """
    if not len(rows):
        raise ValueError("Rows to evaluate on are wanted, got none. Check the split and the folder.")
    if pictures not in PICTURE_MODES:
        raise ValueError(f"`pictures` must be one of {listed(PICTURE_MODES)}, got {pictures!r}. Correct it.")
    metrics = metrics or task
    if metrics not in TASK_METRICS:
        raise ValueError(f"`metrics` must be one of {listed(TASK_METRICS)}, got {metrics!r}. Correct it.")
    start = time.perf_counter()
    failed: dict[int, str] = {}
    shown = _Shown(rows, pictures, failed, on_failure or (lambda message: None))
    if hasattr(processor, "apply_chat_template") and hasattr(processor, "encode_conversation"):
        answers = answer_conversations(model, processor, rows, shown, batch_size=batch_size, **generation)
    else:
        answers = _answer_by_decoder(model, processor, rows, shown, task, batch_size=batch_size, **generation)
    seconds = time.perf_counter() - start
    scored = [index for index in range(len(rows)) if index not in failed]
    if not scored:
        raise ValueError(f"Pictures that can be read are wanted, got none; the first: {failed[0]}")

    def scores_of(indices: Sequence[int]) -> dict[str, float]:
        references: list[Any] = [rows.references(index) for index in indices]
        groups = [rows.group(index) or rows.question(index) for index in indices]
        said = [answers[index] or "" for index in indices]
        if metrics == "ocr":
            references = [texts[0] for texts in references]
        return score_task(metrics, references, said, groups)

    places: dict[str, list[int]] = defaultdict(list)
    for index in scored:
        if (kind := rows.kind(index)) is not None:
            places[kind].append(index)
    return TaskScores(
        task=task,
        scores=scores_of(scored),
        by_kind={
            kind: {**scores_of(indices), "num_questions": len(indices)} for kind, indices in sorted(places.items())
        },
        num_questions=len(scored),
        questions_per_second=len(scored) / seconds,
        answers=[None if index in failed else text for index, text in enumerate(answers)],
        failed=failed,
    )


class _Shown:
    """The pictures that a row is asked with: called with a row's number, None where one can't be read."""

    def __init__(
        self, rows: Conversations, mode: PictureMode, failed: dict[int, str], on_failure: Callable[[str], None]
    ) -> None:
        self.rows, self.mode, self.failed, self.on_failure = rows, mode, failed, on_failure
        self.source = np.arange(len(rows))
        if mode == "other":
            for number in np.unique(rows.image_counts):
                alike = np.flatnonzero(rows.image_counts == number)
                self.source[alike] = np.roll(alike, len(alike) // 2)

    def __call__(self, index: int) -> list[Image.Image] | None:
        if self.mode == "none":
            return []
        try:
            pictures = self.rows.images(int(self.source[index]))
            for picture in pictures:
                picture.load()
            return pictures
        except (ValueError, OSError) as error:
            self.failed[index] = str(error)
            self.on_failure(str(error))
            return None


def _answer_by_decoder(
    model: Any,
    processor: Any,
    rows: Conversations,
    shown: _Shown,
    task: str,
    *,
    batch_size: int,
    **generation: Any,
) -> list[str]:
    """What an encoder-decoder writes about each row's picture; a question is put in front of what it writes.

    Questions of a batch have as many tokens: a padded one would stand elsewhere than it was learnt.
    """
    asks = task == "vqa"
    if asks and not processor.takes_prompt:
        raise ValueError(f"Questions want a model that takes them, got `{type(model).__name__}`. Use TrOCR or LLaVA.")
    if asks:
        check_start_token(model, processor)
    for index in range(len(rows)):
        if rows.num_images(index) != 1:
            raise ValueError(
                f"{rows.sources[index]}: `{type(model).__name__}` looks at one picture, got {rows.num_images(index)}. Use LLaVA."
            )
    batches = [
        indices[first : first + batch_size]
        for indices in rows_by_question_length(processor, rows, task)
        for first in range(0, len(indices), batch_size)
    ]
    answers = [""] * len(rows)
    model.eval()
    for batch in tqdm(batches, desc="Answering", leave=False, disable=None):
        opened = {index: shown(index) for index in batch}
        indices = [index for index in batch if opened[index] is not None]
        if not indices:
            continue
        pictures = [(opened[index] or [Image.new("RGB", (64, 64), _GREY)])[0] for index in indices]
        prompt = {"prompt": [rows.question(index) for index in indices]} if asks else {}
        inputs = processor(images=pictures, return_tensors="pt", **prompt).to(model.device)
        begun = inputs["decoder_input_ids"].shape[1] if asks else 0
        with torch.inference_mode():
            token_ids = model.generate(**inputs, **generation)
        said = processor.batch_decode(token_ids[:, begun:], skip_special_tokens=True)
        for index, text in zip(indices, said, strict=True):
            answers[index] = text.strip()
    return answers


def rows_by_question_length(processor: Any, rows: Conversations, task: str) -> list[list[int]]:
    """The rows whose questions have as many tokens, of each number; all of them for a task that asks nothing."""
    if task != "vqa":
        return [list(range(len(rows)))]
    tokens = processor.tokenizer([rows.question(index) for index in range(len(rows))], add_special_tokens=False)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(tokens["input_ids"]):
        by_length[len(ids)].append(index)
    return list(by_length.values())


def check_start_token(model: Any, processor: Any) -> None:
    """Checks that texts which go on from a question begin with the token that the model begins with.

    Raises:
        ValueError: if not; `generate` would put a second one in front.
    """
    start = model.config.decoder_start_token_id
    if processor.start_token_id != start:
        raise ValueError(
            f"A question must begin with the model's `decoder_start_token_id` {start}, got the tokenizer's "
            f"{processor.start_token_id}. Set the tokenizer's `bos_token`, or the model's config."
        )


def make_record(rows: Conversations, scores: TaskScores) -> dict[str, Any]:
    """All that scores depend on, and every answer.

    Args:
        rows: that were asked.
        scores: of their answers, with `measurement`.
    """
    examples = [
        {
            "source": rows.sources[index],
            "id": rows.name(index),
            "kind": rows.kind(index),
            "group": rows.group(index),
            "question": rows.question(index),
            "references": rows.references(index),
            "answer": scores.answers[index],
        }
        for index in range(len(rows))
    ]
    measured = scores.to_dict()
    del measured["answers"]
    return {"data": scores.measurement.get("data"), "data_sha256": data_hash(rows), **measured, "examples": examples}


def data_hash(rows: Conversations) -> str:
    """SHA-256, in hex, of the rows' messages, references and stored pictures, in order."""
    digest = hashlib.sha256()
    for index in range(len(rows)):
        told = [rows.messages(index), rows.references(index), rows.group(index)]
        digest.update(json.dumps(told, ensure_ascii=False, sort_keys=True).encode())
        for stored in rows.stored_images(index):
            digest.update(hashlib.sha256(stored).digest())
    return digest.hexdigest()
