"""Reading picture files one by one, so that a bad file costs nothing but its own text."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_vlm.data.pictures import open_picture
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor, check_vocabulary
from hf_vlm.models.trocr.recognition import RecognizedText
from hf_vlm.parts.shipped_models import default_ocr_model

_PICTURE_SUFFIXES = frozenset(Image.registered_extensions())


@dataclass
class ReadFile:
    """What was read in one file.

    Attributes:
        file: the path as it was given, or as it was found in a folder.
        text: the text; empty if the model abstained or the file could not be read.
        score: confidence of the whole text in [0, 1].
        words: `{"word", "confidence"}` a word.
        abstained: whether the model gave no text because its score lay below the asked threshold.
        error: why the file could not be read; None if it could.
    """

    file: str
    text: str = ""
    score: float = 0.0
    words: list[dict[str, Any]] = field(default_factory=list)
    abstained: bool = False
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without `error`."""
        return {name: value for name, value in asdict(self).items() if name != "error"}


def read_files(
    files: Iterable[str | os.PathLike],
    *,
    model: str | os.PathLike | None = None,
    batch_size: int = 16,
    num_beams: int | None = None,
    abstain_below: float | None = None,
) -> Iterator[ReadFile]:
    """The text of every picture file, in order, a bad file among them told in its `error`.

    Args:
        files: picture files, and folders whose picture files are read in order of their names.
        model: folder or Hub name; None means the one that comes with the package.
        batch_size: pictures at a time.
        num_beams: beams in the search; None means what was saved with the model.
        abstain_below: give no text where the score is below this, in [0, 1].

    Raises:
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if the model's files are damaged or do not belong together.
    """
    name = default_ocr_model() if model is None else model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(name, dtype=torch.float32).to(device).eval()
    processor = TrOCREncoderDecoderProcessor.from_pretrained(name)
    check_vocabulary(reader, processor.tokenizer)
    settings: dict[str, Any] = {"abstain_below": abstain_below}
    if num_beams is not None:
        settings["num_beams"] = num_beams
    batch: list[tuple[ReadFile, Image.Image | None]] = []
    for result in _listed_files(files):
        picture = None
        if result.error is None:
            try:
                picture = open_picture(result.file)
            except (ValueError, OSError) as error:
                result.error = str(error)
        batch.append((result, picture))
        if sum(picture is not None for _, picture in batch) == batch_size:
            yield from _read_batch(reader, processor, batch, settings)
            batch = []
    yield from _read_batch(reader, processor, batch, settings)


def _listed_files(files: Iterable[str | os.PathLike]) -> Iterator[ReadFile]:
    for file in files:
        path = Path(file)
        if not path.is_dir():
            yield ReadFile(str(file))
            continue
        pictures = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in _PICTURE_SUFFIXES)
        if not pictures:
            yield ReadFile(str(file), error=f"A folder of pictures is wanted, got {file} without one. Check it.")
        for picture in pictures:
            yield ReadFile(str(picture))


def _read_batch(
    reader: TrOCREncoderDecoderForConditionalGeneration,
    processor: TrOCREncoderDecoderProcessor,
    batch: Sequence[tuple[ReadFile, Image.Image | None]],
    settings: dict[str, Any],
) -> Iterator[ReadFile]:
    pictures = [picture for _, picture in batch if picture is not None]
    texts: Iterator[RecognizedText] = iter(())
    if pictures:
        inputs = processor(images=pictures, return_tensors="pt").to(reader.device)
        texts = iter(reader.recognize(**inputs, tokenizer=processor.tokenizer, **settings))
    for result, picture in batch:
        if picture is not None:
            recognized = next(texts)
            result.text, result.score, result.words = recognized.text, recognized.score, recognized.words
            result.abstained = recognized.abstained
        yield result
