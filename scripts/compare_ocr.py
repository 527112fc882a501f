"""Measure our line reader beside Tesseract, EasyOCR and RapidOCR on the same lines, in one run.

    python scripts/compare_ocr.py DATA [--model FOLDER] [--peers tesseract easyocr rapidocr]
        [--precisions float32 bfloat16 int8] [--json FILE]

DATA holds `ocr_printed`, `ocr_typewritten`, `ocr_receipts` and `ocr_handwritten`, each with the splits train and validation.
The sets `unseen-*` are documents that ours was trained without, none of their pages excepted. Every reader gets one line
picture at a time, or a batch of them where it takes batches, without text detection; ours in every precision, from the same
weights. Receipts are scored without case (their
transcripts are all upper case); ours never learnt from them. CER and WER are corpus rates in percent.

The peers come from `pip install 'hf-vlm[peers]'`; Tesseract itself from the system (`apt-get install tesseract-ocr`), EasyOCR's
weights from its own download or from the folder in `--easyocr-weights`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.pipelines.picture_files import LineReader, Precision
from hf_vlm.training.scores.metrics import character_error_rate, word_error_rate

Reader = Callable[[Sequence[Image.Image]], list[str]]

# name -> folder, split, column filter, whether case is ignored. What recipe trocr-mini-lines keeps out of all training,
# whole documents of kinds it has never seen, stands in the `train` files of the sets.
SETS: dict[str, tuple[str, str, dict[str, str | list[str]], bool]] = {
    "printed": ("ocr_printed", "validation", {}, False),
    "typewritten": ("ocr_typewritten", "validation", {}, False),
    "receipts": ("ocr_receipts", "validation", {}, True),
    "handwritten-fr": ("ocr_handwritten", "validation", {"kind": "handwritten-fr"}, False),
    "handwritten-en": ("ocr_handwritten", "validation", {"kind": "handwritten-en"}, False),
    "unseen-printed": ("ocr_printed", "train", {"document": "cu31924087948174"}, False),
    "unseen-typewritten": (
        "ocr_typewritten",
        "train",
        {"document": ["ehri/EHRI-ET-WL16560044*", "tapuscorpus/Fonds_Oulipo*"]},
        False,
    ),
}


def our_reader(model: str, num_beams: int | None, batch_size: int, precision: Precision) -> Reader:
    """The reader in a folder of ours, confidences included."""
    reader = LineReader(model, num_beams=num_beams, precision=precision)

    def read(pictures: Sequence[Image.Image]) -> list[str]:
        order = sorted(range(len(pictures)), key=lambda place: pictures[place].width / pictures[place].height)
        texts = [""] * len(pictures)
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            for place, read in zip(places, reader([pictures[place] for place in places]), strict=True):
                texts[place] = read.text
        return texts

    return read


def tesseract_reader(languages: str) -> Reader:
    """Tesseract's line mode, all pictures in one process."""
    if shutil.which("tesseract") is None:
        raise SystemExit("Tesseract is wanted on the PATH, got none. Run `apt-get install tesseract-ocr`.")

    def read(pictures: Sequence[Image.Image]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, picture in enumerate(pictures):
                files.append(str(Path(folder) / f"{number:06}.png"))
                picture.convert("L").save(files[-1])
            listing = Path(folder) / "files.txt"
            listing.write_text("\n".join(files) + "\n", encoding="utf-8")
            command = ["tesseract", str(listing), "stdout", "--psm", "7", "-l", languages]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return output.split("\f")[: len(pictures)]  # a form feed ends each picture

    return read


def easyocr_reader(weights: str | None) -> Reader:
    """EasyOCR's recogniser, English."""
    import easyocr

    settings = {} if weights is None else {"download_enabled": False, "model_storage_directory": weights}
    engine = easyocr.Reader(["en"], gpu=False, verbose=False, **settings)

    def read(pictures: Sequence[Image.Image]) -> list[str]:
        texts = []
        for picture in pictures:
            found = engine.recognize(np.asarray(picture.convert("L")))
            texts.append(" ".join(text for _, text, _ in found))
        return texts

    return read


def rapidocr_reader() -> Reader:
    """RapidOCR's recogniser."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})

    def read(pictures: Sequence[Image.Image]) -> list[str]:
        texts = []
        for picture in pictures:
            found = engine(np.asarray(picture.convert("RGB")), use_det=False, use_cls=False, use_rec=True)
            texts.append(" ".join(found.txts or ()))
        return texts

    return read


def measure(read: Reader, rows: Any, *, ignore_case: bool) -> dict[str, float]:
    """CER and WER in percent and lines/s of one reader on one set; decoding the picture files is not timed."""
    pictures = [row["image"] for row in rows]
    for picture in pictures:
        picture.load()
    references = [row["text"] for row in rows]
    read(pictures[:2])  # warm up
    start = time.perf_counter()
    texts = read(pictures)
    seconds = time.perf_counter() - start
    texts = [" ".join(text.split()) for text in texts]  # as in the transcripts; EasyOCR puts three spaces between words
    return {
        "cer": 100 * character_error_rate(references, texts, case_sensitive=not ignore_case),
        "wer": 100 * word_error_rate(references, texts, case_sensitive=not ignore_case),
        "lines_per_second": len(pictures) / seconds,
        "num_lines": len(pictures),
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row a reader, a column a set, each cell CER / WER in percent, and lines/s over all sets."""
    names = list(next(iter(results.values())))
    lines = [
        "| CER / WER, % | " + " | ".join(names) + " | lines/s |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for reader, scores in results.items():
        cells = [f"{scores[name]['cer']:.2f} / {scores[name]['wer']:.2f}" for name in names]
        total = sum(scores[name]["num_lines"] for name in names)
        seconds = sum(scores[name]["num_lines"] / scores[name]["lines_per_second"] for name in names)
        lines.append(f"| {reader} | " + " | ".join(cells) + f" | {total / seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="model_cards/trocr-mini-lines")
    parser.add_argument("--num-beams", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precisions", nargs="*", default=list(get_args(Precision)), choices=get_args(Precision))
    parser.add_argument("--peers", nargs="*", default=["tesseract", "easyocr", "rapidocr"])
    parser.add_argument("--tesseract-languages", default="eng")
    parser.add_argument("--easyocr-weights")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--max-lines", type=int, help="read only the first so many lines of a set")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()

    readers: dict[str, Callable[[], Reader]] = {
        **{
            f"hf-vlm {precision}": lambda precision=precision: our_reader(
                arguments.model, arguments.num_beams, arguments.batch_size, precision
            )
            for precision in arguments.precisions
        },
        "tesseract": lambda: tesseract_reader(arguments.tesseract_languages),
        "easyocr": lambda: easyocr_reader(arguments.easyocr_weights),
        "rapidocr": rapidocr_reader,
    }
    rows = {}
    for name in arguments.sets:
        folder, split, where, _ = SETS[name]
        rows[name] = read_lines(arguments.data / folder, split=split, where=where)
        if arguments.max_lines is not None:
            rows[name] = rows[name].select(range(min(arguments.max_lines, len(rows[name]))))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for reader in readers:
        if not reader.startswith("hf-vlm") and reader not in arguments.peers:
            continue
        read = readers[reader]()
        results[reader] = {}
        for name in arguments.sets:
            results[reader][name] = measure(read, rows[name], ignore_case=SETS[name][3])
            print(f"{reader} {name}: {results[reader][name]}", file=sys.stderr, flush=True)
    print(table(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
