"""What ONNX gains and loses: a reader, classifiers and visual tokenizers through onnxruntime, beside PyTorch.

    python scripts/benchmarks/onnx_export.py DATA [--model FOLDER] [--max-lines 125] [--pictures FOLDER ...] [--json FILE]

DATA holds `ocr_printed`, `ocr_typewritten` and `ocr_receipts`, each with a split `validation`; the reader reads it by PyTorch in
float32 and int8 (`hf-vlm read --precision int8`) and by onnxruntime in float32 and int8, all from the same weights, on the same
pictures, prepared beforehand. CER is a corpus rate in percent, receipts without case. Time is that of `generate` over a share of
the lines, in batches of like widths: seven rounds, all four in turn, each on as many threads; the table gives the median over the
rounds of how many times faster each is than PyTorch in float32, and the least and the most.

`--pictures` names classifiers and visual tokenizers of ours; they look at `natural_32px` of DATA. Of a classifier the table tells
how often the likeliest class is the same as PyTorch's, of a tokenizer how many codes are, and the mean squared difference
of logits or of pictures in [0, 1].
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from datasets import load_dataset
from generate import in_turns, ratio
from transformers import AutoImageProcessor

import hf_vlm
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.pipelines.picture_files import LineReader
from hf_vlm.sharing.onnx.export import export_onnx
from hf_vlm.sharing.onnx.runtime import OnnxVisionModel, load_onnx
from hf_vlm.training.scores.metrics import character_error_rate

SETS = {
    "printed": ("ocr_printed", False),
    "typewritten": ("ocr_typewritten", False),
    "receipts": ("ocr_receipts", True),
}
BASE = "torch float32"


def session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def megabytes(folder: str | Path, *endings: str) -> float:
    return sum(path.stat().st_size for path in Path(folder).iterdir() if path.name.endswith(endings)) / 1e6


def line_batches(
    processor: Any, pictures: list[Any], batch_size: int
) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    """Places and inputs of batches of like widths."""
    order = sorted(range(len(pictures)), key=lambda place: pictures[place].width / pictures[place].height)
    parts = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [(part, dict(processor(images=[pictures[place] for place in part]))) for part in parts]


def readers(
    model: str, folder: Path, threads: int
) -> dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], float]]:
    """Each way to read a batch of inputs, giving token ids, and the megabytes of its files."""
    ways: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], float]] = {}
    for precision in ("float32", "int8"):
        reader = LineReader(model, precision=precision).model

        @torch.inference_mode()
        def by_torch(inputs: dict[str, torch.Tensor], reader: Any = reader) -> Any:
            return reader.generate(**inputs, do_sample=False)

        ways[f"torch {precision}"] = (by_torch, megabytes(model, ".safetensors"))
    for precision in ("float32", "int8"):
        print(export_onnx(model, folder / precision, precision=precision), flush=True)
        runtime = load_onnx(folder / precision, session_options=session_options(threads))

        def by_onnx(inputs: dict[str, torch.Tensor], runtime: Any = runtime) -> Any:
            return runtime.generate(**{name: value.numpy() for name, value in inputs.items()})

        ways[f"onnx {precision}"] = (by_onnx, megabytes(folder / precision, ".onnx", ".data"))
    return ways


def measure_reader(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes, CER a set, lines read as PyTorch reads them, and speed, of each way."""
    processor = TrOCREncoderDecoderProcessor.from_pretrained(arguments.model)
    ways = readers(arguments.model, folder, arguments.threads)
    results: dict[str, dict[str, Any]] = {name: {"megabytes": size, "texts": []} for name, (_, size) in ways.items()}
    timed: list[dict[str, torch.Tensor]] = []
    for set_name, (data, ignore_case) in SETS.items():
        rows = read_lines(arguments.data / data, split="validation")
        rows = rows.select(range(min(arguments.max_lines, len(rows))))
        batches = line_batches(processor, [row["image"] for row in rows], arguments.batch_size)
        timed += [inputs for _, inputs in batches][:: max(1, len(batches) // 2)]
        for name, (read, _) in ways.items():
            texts = [""] * len(rows)
            for places, inputs in batches:
                said = processor.batch_decode(read(inputs), skip_special_tokens=True)
                for place, text in zip(places, said, strict=True):
                    texts[place] = text.strip()
            cer = character_error_rate(rows.texts, texts, case_sensitive=not ignore_case)
            results[name][set_name] = 100 * cer
            results[name]["texts"] += texts
    for result in results.values():
        same = [one == other for one, other in zip(result["texts"], results[BASE]["texts"], strict=True)]
        result["same_lines"] = 100 * float(np.mean(same))
        result["num_lines"] = len(same)

    def run(read: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[], None]:
        return lambda: [read(inputs) for inputs in timed] and None

    times = in_turns({name: run(read) for name, (read, _) in ways.items()}, arguments.rounds, "wall")
    num_timed = sum(len(inputs["pixel_values"]) for inputs in timed)
    for name, result in results.items():
        result["faster"] = ratio(times, name, BASE)
        result["lines_per_second"] = num_timed / float(np.median(times[name]["rounds"]))
        del result["texts"]
    return results


def measure_pictures(arguments: argparse.Namespace, model_folder: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes, agreement and mean squared difference, and speed, of a classifier or visual tokenizer."""
    architecture = read_config(model_folder)["architectures"][0]
    model = getattr(hf_vlm, architecture).from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(model_folder)
    rows = load_dataset(str(arguments.data / "natural_32px"), split=f"validation[:{arguments.max_pictures}]")
    pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    results: dict[str, dict[str, Any]] = {BASE: {"megabytes": megabytes(model_folder, ".safetensors")}}
    runs: dict[str, Callable[[], Any]] = {}
    wanted: list[np.ndarray] = []
    for name in (BASE, "onnx float32", "onnx int8"):
        runtime: Any = None
        if name != BASE:
            precision: Any = name.split()[1]
            print(export_onnx(model_folder, folder / precision, precision=precision), flush=True)
            runtime = load_onnx(folder / precision, session_options=session_options(arguments.threads))
            results[name] = {"megabytes": megabytes(folder / precision, ".onnx", ".data")}

        @torch.inference_mode()
        def look(runtime: Any = runtime) -> list[np.ndarray]:
            """What is chosen (classes or codes), and the numbers beside it (logits or pictures)."""
            if hasattr(model, "encode"):
                codes = model.encode(pixels).numpy() if runtime is None else runtime.encode(pixels.numpy())
                again = model.decode(torch.from_numpy(codes)).numpy() if runtime is None else runtime.decode(codes)
                return [codes, again]
            logits = model(pixels).logits.numpy() if runtime is None else runtime(pixels.numpy())["logits"]
            return [logits.argmax(axis=-1), logits]

        runs[name] = look
        chosen, numbers = look()
        wanted = wanted or [chosen, numbers]
        results[name]["agreement"] = 100 * float(np.mean(np.isclose(chosen, wanted[0], atol=1e-4)))
        results[name]["mse"] = float(np.square(numbers - wanted[1]).mean())
        assert runtime is None or isinstance(runtime, OnnxVisionModel) == (not hasattr(model, "encode"))
    times = in_turns(runs, arguments.rounds, "wall")
    for name in runs:
        results[name]["faster"] = ratio(times, name, BASE)
    return results


def cell_of_ratio(faster: tuple[float, float, float]) -> str:
    return f"{faster[0]:.2f} ({faster[1]:.2f} to {faster[2]:.2f})"


def reader_table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"| reader | files, MB | {' | '.join(f'CER {name}, %' for name in SETS)} | same lines, % | times faster |",
        "|---|---|" + "---|" * (len(SETS) + 2),
    ]
    for name, result in results.items():
        rates = " | ".join(f"{result[set_name]:.2f}" for set_name in SETS)
        lines.append(
            f"| {name} | {result['megabytes']:.1f} | {rates} | {result['same_lines']:.1f} | {cell_of_ratio(result['faster'])} |"
        )
    return "\n".join(lines)


def picture_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| model | | files, MB | same choice, % | mean squared difference | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for model, ways in results.items():
        for name, result in ways.items():
            lines.append(
                f"| {Path(model).name} | {name} | {result['megabytes']:.1f} | {result['agreement']:.2f} | {result['mse']:.1e} | "
                f"{cell_of_ratio(result['faster'])} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="model_cards/trocr-mini-lines", help="the reader; '' for none")
    parser.add_argument("--pictures", nargs="*", default=[], help="classifiers and visual tokenizers")
    parser.add_argument("--max-lines", type=int, default=125, help="lines of each set, default 125")
    parser.add_argument("--max-pictures", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    figures: dict[str, Any] = {
        "environment": {
            "machine": platform.machine(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "hf_vlm": hf_vlm.__version__,
        }
    }
    print(figures["environment"])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model:
            figures["reader"] = measure_reader(arguments, Path(folder) / "reader")
            print(reader_table(figures["reader"]), flush=True)
        figures["pictures"] = {
            model: measure_pictures(arguments, model, Path(folder) / str(place))
            for place, model in enumerate(arguments.pictures)
        }
        if figures["pictures"]:
            print(picture_table(figures["pictures"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
