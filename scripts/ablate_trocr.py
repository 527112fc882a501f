"""What each ingredient of TrOCR's recipe is worth, in small: the arms of its Table 2, each trained as long on the same lines.

    python scripts/ablate_trocr.py DATA OUT --vision PARTS/dinov2-small --text PARTS/minilm [--steps 1000]
    python scripts/ablate_trocr.py DATA OUT --reader model_cards/trocr-mini-lines [--steps 1000]

The first command compares pretrained parts with parts of the same shape and random weights, the second a reader that has
been pre-trained on lines (the paper's stage 1) with one of random weights; both, then, with the paper's augmentation.
All else is equal in the arms: lines and their order, steps, batch, learning rate, seed. Only `--set` of DATA is learnt from,
ocr_receipts by default, whose transcripts are all upper case: it is scored without case.

An arm is trained in its own folder in OUT and goes on where it was cut off; OUT/ablation.json holds the scores of those that
are done. Each command, with its settings, wants an OUT of its own. Source: Li et al. 2023, TrOCR, Table 2, https://arxiv.org/abs/2109.10282.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModel, set_seed

from hf_vlm import TrOCREncoderDecoderConfig, TrOCREncoderDecoderForConditionalGeneration, TrOCREncoderDecoderProcessor
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.training.recipe import TrOCRRecipe
from hf_vlm.training.scores.evaluation import evaluate_lines
from hf_vlm.training.trocr import train


class Arm(NamedTuple):
    """A row of the table: its name, the paper's F1 on SROIE in percent, and in what it differs."""

    name: str
    paper: float
    pretrained: bool
    augment: str | bool


PARTS_ARMS = (
    Arm("from scratch", 38.24, False, False),
    Arm("+ pretrained parts", 72.75, True, False),
    Arm("+ augmentation", 82.30, True, "da2"),
)
READER_ARMS = (
    Arm("from scratch", 38.24, False, False),
    Arm("from scratch, augmented", float("nan"), False, "da2"),
    Arm("+ stage 1", float("nan"), True, False),
    Arm("+ stage 1, augmented", 95.48, True, "da2"),
)


def random_part(source: str, folder: Path) -> str:
    """A folder like `source`, tokenizer and image processor included, its weights drawn anew; the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(source).iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = AutoConfig.from_pretrained(source)
    set_seed(0)
    if isinstance(config, TrOCREncoderDecoderConfig):
        TrOCREncoderDecoderForConditionalGeneration(config).save_pretrained(folder)
    else:
        AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def run(arm: Arm, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains an arm and reads the validation lines."""
    scratch = arguments.out / "scratch"
    if arguments.reader:
        recipe_name = "trocr-finetune-lines"
        start = [f"model.pretrained={arguments.reader if arm.pretrained else random_part(arguments.reader, scratch)}"]
    else:
        recipe_name = "trocr-dinov2-minilm"
        start = [
            f"model.{role}={source if arm.pretrained else random_part(source, scratch / role)}"
            for role, source in (("vision", arguments.vision), ("text", arguments.text))
        ]
    folder = arguments.out / "".join(letter if letter.isalnum() else "-" for letter in arm.name)
    lines = {"path": arguments.set, "split": "train", "augment": arm.augment}
    recipe = TrOCRRecipe.load(
        recipe_name,
        [
            *start,
            f"data.folder={arguments.data}",
            f"data.train={json.dumps([lines])}",
            "data.synthetic=null",
            "data.validation={}",  # read once, at the end
            f"training.output_dir={folder}",
            f"training.max_steps={arguments.steps}",
            f"training.per_device_train_batch_size={arguments.batch_size}",
            f"training.learning_rate={arguments.learning_rate}",
            "training.lr_scheduler_type=linear",
            f"training.warmup_steps={arguments.steps // 10}",
            f"training.logging_steps={max(arguments.steps // 40, 1)}",
            f"training.save_steps={max(arguments.steps // 4, 1)}",
            "training.eval_strategy='no'",
            f"training.bf16={str(arguments.bf16).lower()}",
            "training.report_to=none",
        ],
    )
    train(recipe)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device)
    processor = TrOCREncoderDecoderProcessor.from_pretrained(folder)
    rows = read_lines(arguments.data / arguments.set, split="validation")
    if arguments.max_lines is not None:
        rows = rows.select(range(min(arguments.max_lines, len(rows))))
    scores = evaluate_lines(model, processor, rows, ignore_case=not arguments.with_case)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return {
        "paper_f1": arm.paper,
        "word_f1": 100 * scores.word_f1,
        "cer": 100 * scores.cer,
        "loss": sum(losses[-4:]) / len(losses[-4:]),  # of the last tenth of the run
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown, a row an arm."""
    rows = ["| arm | word F1, % | CER, % | training loss | paper's F1 on SROIE, % |", "|---|---|---|---|---|"]
    for name, result in results.items():
        paper = "-" if result["paper_f1"] != result["paper_f1"] else f"{result['paper_f1']:.2f}"
        rows.append(f"| {name} | {result['word_f1']:.2f} | {result['cer']:.2f} | {result['loss']:.3f} | {paper} |")
    return "\n".join(rows)


def main() -> None:
    """Parse, run the arms that are not done, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vision", help="folder of a pretrained vision encoder")
    parser.add_argument("--text", help="folder of a pretrained text model")
    parser.add_argument("--reader", help="folder of a reader that was pre-trained on lines, instead of parts")
    parser.add_argument("--set", default="ocr_receipts", help="folder in DATA, with the splits train and validation")
    parser.add_argument("--with-case", action="store_true", help="score with case")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--max-lines", type=int, help="read only the first so many validation lines")
    arguments = parser.parse_args()
    if bool(arguments.reader) == bool(arguments.vision and arguments.text):
        parser.error("either --reader or --vision and --text are wanted")
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = arguments.out / "ablation.json"
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    before = json.loads(done.read_text()) if done.is_file() else {"settings": settings, "arms": {}}
    if before["settings"] != settings:
        changed = next(name for name, value in settings.items() if before["settings"].get(name) != value)
        parser.error(
            f"{arguments.out} holds arms of {changed}={before['settings'].get(changed)}, got {settings[changed]}: they "
            "can't be compared. Name another folder"
        )
    results = before["arms"]
    for arm in READER_ARMS if arguments.reader else PARTS_ARMS:
        if arm.name not in results:
            results[arm.name] = run(arm, arguments)
            unfinished = done.with_suffix(".part")
            unfinished.write_text(json.dumps(before, indent=2) + "\n")
            os.replace(unfinished, done)
    print(f"{arguments.steps} steps of {arguments.batch_size} lines of {arguments.set}, {parts_of(arguments)}\n")
    print(table(results))


def parts_of(arguments: argparse.Namespace) -> str:
    """What the arms start from, for the table's head."""
    names = [arguments.reader] if arguments.reader else [arguments.vision, arguments.text]
    return " + ".join(Path(name).name for name in names)


if __name__ == "__main__":
    main()
