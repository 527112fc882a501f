"""Measuring a saved model on lines with known text."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hf_vlm.data.lines.image_text import TextLines, read_lines
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.adapter_loading import processor_folder
from hf_vlm.parts.picture_text_processor import check_vocabulary
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.scores.measurements import decoding_of, describe_measurement
from hf_vlm.training.scores.metrics import character_error_rate, require_jiwer, word_accuracy, word_error_rate, word_f1


@dataclass
class ReadingScores:
    """How well lines were read.

    Attributes:
        cer, wer: corpus rates, see `hf_vlm.training.scores.metrics`; 0 is perfect.
        word_f1, word_accuracy: SROIE's measure and that of scene text, see there; 1 is perfect.
        num_lines: how many lines were read.
        lines_per_second: pictures decoded, prepared and read a second, on the machine it ran on.
        predictions: the text of every line, in order.
        measurement: what the scores depend on, see `describe_measurement`; empty where that is not told.
    """

    cer: float
    wer: float
    word_f1: float
    word_accuracy: float
    num_lines: int
    lines_per_second: float
    predictions: list[str]
    measurement: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, what the scores depend on among them."""
        rest = asdict(self)
        return {**rest.pop("measurement"), **rest}

    def __str__(self) -> str:
        return (
            f"CER {100 * self.cer:.2f} %, WER {100 * self.wer:.2f} %, word F1 {100 * self.word_f1:.2f} % "
            f"on {self.num_lines} lines ({self.lines_per_second:.1f} lines/s)"
        )


def evaluate_folders(
    model: str,
    folders: Sequence[str],
    *,
    split: str | None = None,
    ignore_case: bool = False,
    batch_size: int = 16,
    num_beams: int | None = None,
) -> Iterator[tuple[str, ReadingScores]]:
    """Each folder's name and the scores of a saved model on its lines.

    Args:
        model: folder or Hub name of a model or an adapter.
        folders: folders or files that `hf_vlm.data.lines.image_text.read_lines` reads.
        split: which split of them; None if they have one only.
        ignore_case: whether case is folded before scoring.
        batch_size: pictures at a time.
        num_beams: beams in the search; None means what was saved with the model.

    Raises:
        ValueError: if a folder holds no lines.
        ImportError: if jiwer is missing.
    """
    require_jiwer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(model, dtype=torch.float32).to(device)
    processor = TrOCREncoderDecoderProcessor.from_pretrained(processor_folder(model))
    check_vocabulary(reader, processor.tokenizer)
    generation = {} if num_beams is None else {"num_beams": num_beams}
    weights, decoding = hash_weights(reader.state_dict()), decoding_of(reader, generation)
    for folder in folders:
        rows = read_lines(folder, split=split)
        scores = evaluate_lines(reader, processor, rows, ignore_case=ignore_case, batch_size=batch_size, **generation)
        settings = {"split": split, "ignore_case": ignore_case, "batch_size": batch_size, "decoding": decoding}
        scores.measurement = describe_measurement(reader, model, folder, settings, weights)
        yield folder, scores


def evaluate_lines(
    model: TrOCREncoderDecoderForConditionalGeneration,
    processor: TrOCREncoderDecoderProcessor,
    rows: TextLines,
    *,
    ignore_case: bool = False,
    batch_size: int = 16,
    **generation: Any,
) -> ReadingScores:
    """The scores of a model on lines with known texts.

    Args:
        generation: settings of `generate`, such as `num_beams`; the rest is what was saved with the model.

    Raises:
        ValueError: if there are no rows.
    """
    if not len(rows):
        raise ValueError("Lines to evaluate on are wanted, got none. Check the split and the folder.")
    start = time.perf_counter()
    predictions = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows.texts[index]))  # like widths together: little padding
    model.eval()
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        inputs = processor(images=[rows[index]["image"] for index in indices], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            token_ids = model.generate(**inputs, **generation)
        for index, text in zip(indices, processor.batch_decode(token_ids, skip_special_tokens=True), strict=True):
            predictions[index] = text
    seconds = time.perf_counter() - start
    return ReadingScores(
        cer=character_error_rate(rows.texts, predictions, case_sensitive=not ignore_case),
        wer=word_error_rate(rows.texts, predictions, case_sensitive=not ignore_case),
        word_f1=word_f1(rows.texts, predictions, case_sensitive=not ignore_case),
        word_accuracy=word_accuracy(rows.texts, predictions),
        num_lines=len(rows),
        lines_per_second=len(rows) / seconds,
        predictions=predictions,
    )
