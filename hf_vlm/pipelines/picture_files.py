"""Reading picture files one by one, so that a bad file costs nothing but its own text."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image

from hf_vlm.data.lines.page_files import LinesToCorrect
from hf_vlm.data.lines.page_lines import natural_order
from hf_vlm.data.pictures import open_picture
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.trocr.recognition import RecognizedText
from hf_vlm.parts.adapter_loading import base_of_adapter, processor_folder
from hf_vlm.parts.picture_text_processor import check_vocabulary
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.parts.shipped_models import default_ocr_model

Precision = Literal["float32", "bfloat16", "int8"]


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

    def __str__(self) -> str:
        return f"{self.file}\t{self.text}"

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without `error`."""
        return {name: value for name, value in asdict(self).items() if name != "error"}


class LineReader:
    """A model that reads pictures of lines, loaded once: `LineReader()(pictures)` is one `RecognizedText` a picture.

    Args:
        model: folder or Hub name; None means the one that comes with the package.
        num_beams: beams in the search; None means what was saved with the model.
        abstain_below: give no text where the score is below this, in [0, 1].
        precision: of the computation. `bfloat16` suits large models on processors that have it; `int8` runs on the CPU and
            rounds the weights of all linear layers. `scripts/compare_ocr.py` measures what each gains and loses.

    Raises:
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if the model's files are damaged or do not belong together, or there is no such precision.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        num_beams: int | None = None,
        abstain_below: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        if precision not in get_args(Precision):
            raise ValueError(
                f"`precision` must be one of {', '.join(get_args(Precision))}, got {precision!r}. Correct it."
            )
        name = default_ocr_model() if model is None else model
        if precision == "int8" and base_of_adapter(name) is not None:
            raise ValueError(
                f"`precision` int8 is for a whole model, got the adapter {name}. Merge it first: `hf-vlm merge {name} --out "
                "FOLDER`."
            )
        device = "cuda" if torch.cuda.is_available() and precision != "int8" else "cpu"
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(name, dtype=dtype)
        self.model.to(device).eval()
        if precision == "int8":
            _round_weights(self.model)
        self.processor = TrOCREncoderDecoderProcessor.from_pretrained(processor_folder(name))
        check_vocabulary(self.model, self.processor.tokenizer)
        self._settings: dict[str, Any] = {"abstain_below": abstain_below}
        if num_beams is not None:
            self._settings["num_beams"] = num_beams

    def __call__(self, pictures: Sequence[Image.Image]) -> list[RecognizedText]:
        """Read a batch."""
        if not pictures:
            return []
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        return self.model.recognize(**inputs, tokenizer=self.processor.tokenizer, **self._settings)


def _round_weights(model: torch.nn.Module) -> None:
    """Makes the weights of all linear layers int8, in place; what goes into them is rounded as it comes."""
    with warnings.catch_warnings():
        # Torch means to drop this for torchao, whose layers take twice the time here. pyproject.toml bounds torch.
        warnings.filterwarnings("ignore", message=".*(deprecated|moved|migrated).*")
        torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def read_files(
    files: Iterable[str | os.PathLike],
    *,
    model: str | os.PathLike | None = None,
    batch_size: int = 16,
    num_beams: int | None = None,
    abstain_below: float | None = None,
    precision: Precision = "float32",
    to_correct: LinesToCorrect | None = None,
) -> Iterator[ReadFile]:
    """The text of every picture file of a line, in order, a bad file among them told in its `error`.

    Args:
        files: picture files, and folders whose picture files are read in natural order of their names.
        model: folder or Hub name; None means the one that comes with the package.
        batch_size: pictures at a time.
        num_beams, abstain_below, precision: as for `LineReader`.
        to_correct: takes the lines that the model is not sure of.

    Raises:
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if the model's files are damaged or do not belong together.
    """
    reader = LineReader(model, num_beams=num_beams, abstain_below=abstain_below, precision=precision)
    batch: list[tuple[ReadFile, Image.Image | None]] = []
    for file, error in listed_pictures(files):
        result, picture = ReadFile(file, error=error), None
        if error is None:
            try:
                picture = to_rgb(open_picture_file(file))
            except (ValueError, OSError) as fault:
                result.error = str(fault)
        batch.append((result, picture))
        if sum(picture is not None for _, picture in batch) == batch_size:
            yield from _read_batch(reader, batch, to_correct)
            batch = []
    yield from _read_batch(reader, batch, to_correct)


def listed_pictures(files: Iterable[str | os.PathLike]) -> Iterator[tuple[str, str | None]]:
    """(file, None) for every given file and every picture file of a folder, these in natural order of their names.

    A folder without pictures is (folder, what is wrong).

    Folders in it are not entered, and hidden files, such as macOS's `._scan.jpg`, are passed over.
    """
    suffixes = Image.registered_extensions()  # here, as it loads all of Pillow's formats
    for path in map(Path, files):
        if not path.is_dir():
            yield str(path), None
            continue
        pictures = [
            inner for inner in path.iterdir() if inner.suffix.lower() in suffixes and not inner.name.startswith(".")
        ]
        if not pictures:
            yield str(path), f"A folder of pictures is wanted, got {path} without one. Check it."
        for picture in sorted(pictures, key=natural_order):
            yield str(picture), None


def open_picture_file(file: str | os.PathLike) -> Image.Image:
    """The picture in a file, as `open_picture` gives it.

    Raises:
        OSError: if there is no such file.
        ValueError: if it can't be read, or is a PDF; the message begins with its name.
    """
    path = Path(file)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(5) == b"%PDF-":
                raise ValueError(
                    f"{file}: wanted a picture, got a PDF. Turn its pages into pictures with "
                    f"`pdftoppm -r 300 -png {path.name} {path.stem}`."
                )
    return open_picture(path, name=str(file))


def _read_batch(
    reader: LineReader,
    batch: Sequence[tuple[ReadFile, Image.Image | None]],
    to_correct: LinesToCorrect | None,
) -> Iterator[ReadFile]:
    texts = iter(reader([picture for _, picture in batch if picture is not None]))
    for result, picture in batch:
        if picture is not None:
            recognized = next(texts)
            result.text, result.score, result.words = recognized.text, recognized.score, recognized.words
            result.abstained = recognized.abstained
            if to_correct is not None and result.score < to_correct.below:
                words = " ".join(word["word"] for word in result.words)  # an abstaining model gives no text
                to_correct.add(picture, result.text or words, result.score, result.file)
        yield result
