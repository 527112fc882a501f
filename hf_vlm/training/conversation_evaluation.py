"""Measuring a LLaVA on questions with known answers."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, PreTrainedModel

from hf_vlm.data.conversations import Conversations, read_conversations
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.parts.checkpoint_files import base_of_adapter, find_file, processor_source, read_config
from hf_vlm.training.metrics import chrf, exact_match


@dataclass
class AnswerScores:
    """How well questions were answered.

    Attributes:
        exact_match: share of answers that are the reference, case and a final full stop aside; 1 is perfect.
        chrf: character n-gram F-score of the whole set, 0 to 100; see `hf_vlm.training.metrics.chrf`.
        num_questions: how many were asked.
        questions_per_second: prepared and answered, on the machine it ran on.
        by_kind: kind of question -> its `exact_match`, `chrf` and `num_questions`, where rows say their kind.
        answers: every answer, in order.
    """

    exact_match: float
    chrf: float
    num_questions: int
    questions_per_second: float
    by_kind: dict[str, dict[str, float]]
    answers: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"exact match {100 * self.exact_match:.1f} %, chrF {self.chrf:.1f} on {self.num_questions} questions "
            f"({self.questions_per_second:.1f} questions/s)"
        ]
        for kind, scores in self.by_kind.items():
            lines.append(
                f"  {kind}: exact match {100 * scores['exact_match']:.1f} %, chrF {scores['chrf']:.1f} on "
                f"{scores['num_questions']:.0f}"
            )
        return "\n".join(lines)


def is_visual_chat(name_or_folder: str) -> bool:
    """Whether a folder or Hub name is a LLaVA, or an adapter of one."""
    if find_file(name_or_folder, "adapter_config.json") is not None:
        stored = find_file(name_or_folder, "processor_config.json")
        if stored is None:
            base = base_of_adapter(name_or_folder)
            return base is not None and is_visual_chat(base)
        kind = json.loads(stored.read_text(encoding="utf-8")).get("processor_class")
        return kind == LlavaVisionLanguageProcessor.__name__
    try:
        return read_config(name_or_folder).get("model_type") in ("hf_vlm_llava", "llava")
    except FileNotFoundError:
        return False


def load_visual_chat(name_or_folder: str) -> tuple[Any, LlavaVisionLanguageProcessor]:
    """A saved LLaVA, or an adapter on its base, in fp32, and its processor."""
    source = processor_source(name_or_folder, base_of_adapter(name_or_folder)) or name_or_folder
    processor = LlavaVisionLanguageProcessor.from_pretrained(source)
    if find_file(name_or_folder, "adapter_config.json") is not None:
        return AutoModelForImageTextToText.from_pretrained(name_or_folder, dtype=torch.float32).eval(), processor
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained(name_or_folder, dtype=torch.float32)
    return model, processor


def evaluate_conversation_folders(
    model: str, folders: Sequence[str], *, split: str | None = None, batch_size: int = 16, **generation: Any
) -> Iterator[tuple[str, AnswerScores]]:
    """Each folder's name and the scores of a saved model on its questions.

    Args:
        model: folder or Hub name of a LLaVA or an adapter.
        folders: what `read_conversations` reads; the last answer of each conversation is the reference.
        split: which split of them; None if they have one only.
        batch_size: questions at a time.
        generation: settings of `generate`, such as `num_beams`; the rest is what was saved with the model.

    Raises:
        ValueError: if a folder holds no conversations.
        ImportError: if sacrebleu is missing.
    """
    assistant, processor = load_visual_chat(model)
    assistant = assistant.to("cuda" if torch.cuda.is_available() else "cpu")
    for folder in folders:
        rows = read_conversations(folder, split)
        yield folder, evaluate_conversations(assistant, processor, rows, batch_size=batch_size, **generation)


def evaluate_conversations(
    model: Any,
    processor: LlavaVisionLanguageProcessor,
    rows: Conversations,
    *,
    kinds: Sequence[str] | None = None,
    with_pictures: bool = True,
    batch_size: int = 16,
    **generation: Any,
) -> AnswerScores:
    """The scores of a model on conversations whose last answer is known.

    Args:
        kinds: of each row's question, for scores by kind; None leaves them out.
        with_pictures: False asks without the pictures: what the words alone give away.
        generation: settings of `generate`.

    Raises:
        ValueError: if there are no rows.
    """
    if not len(rows):
        raise ValueError("Questions to evaluate on are wanted, got none. Check the split and the folder.")
    start = time.perf_counter()
    references = [_text(rows.messages(index)[-1]) for index in range(len(rows))]
    answers = answer(model, processor, rows, with_pictures=with_pictures, batch_size=batch_size, **generation)
    seconds = time.perf_counter() - start
    by_kind: dict[str, dict[str, float]] = {}
    places: dict[str, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds or ()):
        places[kind].append(index)
    for kind, indices in sorted(places.items()):
        wanted, said = [references[index] for index in indices], [answers[index] for index in indices]
        by_kind[kind] = {
            "exact_match": exact_match(wanted, said),
            "chrf": chrf(wanted, said),
            "num_questions": len(indices),
        }
    return AnswerScores(
        exact_match=exact_match(references, answers),
        chrf=chrf(references, answers),
        num_questions=len(rows),
        questions_per_second=len(rows) / seconds,
        by_kind=by_kind,
        answers=answers,
    )


def answer(
    model: PreTrainedModel,
    processor: LlavaVisionLanguageProcessor,
    rows: Conversations,
    *,
    with_pictures: bool = True,
    batch_size: int = 16,
    **generation: Any,
) -> list[str]:
    """The model's last answer in each conversation, greedy unless `generation` says otherwise, in the rows' order."""
    generation = {"do_sample": False, **generation}
    prompts = [_without_answer(rows.messages(index), with_pictures) for index in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda index: sum(len(_text(message)) for message in prompts[index]))
    answers = [""] * len(rows)
    device = next(model.parameters()).device
    model.eval()
    for first in tqdm(range(0, len(order), batch_size), desc="Answering", leave=False, disable=None):
        indices = order[first : first + batch_size]
        texts = [
            processor.apply_chat_template(prompts[index], add_generation_prompt=True, tokenize=False)
            for index in indices
        ]
        pictures = [rows.images(index) if with_pictures else [] for index in indices]
        inputs = processor(
            images=pictures if any(pictures) else None, text=texts, padding=True, add_special_tokens=False
        ).to(device)
        with torch.inference_mode():
            token_ids = model.generate(**inputs, **generation)
        said = processor.batch_decode(token_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, said, strict=True):
            answers[index] = text.strip()
    return answers


def _without_answer(messages: Sequence[dict[str, Any]], with_pictures: bool) -> list[dict[str, Any]]:
    kept = list(messages[:-1])
    if with_pictures:
        return kept
    return [{**message, "content": _text(message)} for message in kept]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
