"""Check the whole way with real pretrained parts: assemble, train a little with `hf-vlm train`, save, reload, read.

    python scripts/make_real_parts.py PARTS
    python scripts/check_real_parts.py PARTS DATA [--vision efficientnet-lite0 dinov2-small] [--steps 80] [--out OUT]

PARTS holds the folders that the first command makes, DATA what the recipe `trocr-dinov2-minilm` asks for. Each vision encoder
is joined with MiniLM. What was found is printed line by line; the exit code is 1 if anything is off. On 2 cores of a laptop 80
steps of 8 lines take some minutes.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from hf_vlm.training.recipe import TrOCRRecipe
from hf_vlm.training.scores.metrics import character_error_rate
from hf_vlm.training.trainers.line_trainer import ReferenceLines

RECIPE = "trocr-dinov2-minilm"
VISION_PARTS = ("efficientnet-lite0", "dinov2-small")
TEXT_PART = "minilm"
BATCH_SIZE = 8
LEAST_FALL = 0.5  # nats a token, between the first and the last quarter of the run
PREFIXES = {"vision": "encoder.vision_model.", "projector": "encoder.projection.", "decoder": "decoder."}  # in the file


class Findings:
    """Prints each finding as it comes, and remembers whether all were good."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.all_good = True

    def add(self, good: bool, told: str) -> None:
        self.all_good &= good
        print(f"{'ok ' if good else 'BAD'}  {self.subject}: {told}", flush=True)


def check_assembly(findings: Findings, vision: Path, text: Path) -> WeightReport:
    """Compare the tensors of an assembled reader with those of the source files, by value; names don't count."""
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained_parts(vision=vision, text=text)
    report: WeightReport = model.weight_report
    print(report.table(), flush=True)
    modules = {"vision": model.encoder.vision_model, "projector": model.encoder.projection, "decoder": model.decoder}
    for part in report.parts:
        told_of = {*part.copied, *part.new, *part.tied}
        names = set(modules[part.name].state_dict())
        findings.add(told_of == names, f"the report tells of {len(told_of)} of the {len(names)} tensors in {part.name}")

    # BERT's token type 0 is added to every position; the positions' values in the file are found by undoing that.
    decoder = model.decoder.state_dict()
    text_file = load_file(text / "model.safetensors")
    positions = text_file.pop("embeddings.position_embeddings.weight")
    token_type = text_file["embeddings.token_type_embeddings.weight"][0]
    exact = torch.equal(decoder.pop("model.embed_positions.weight"), positions + token_type)
    findings.add(exact, f"positions of {TEXT_PART} are {'' if exact else 'not '}its table plus token type 0")
    files = {"vision": load_file(vision / "model.safetensors"), "decoder": text_file}
    states = {"vision": model.encoder.vision_model.state_dict(), "decoder": decoder}
    for name, file in files.items():
        part = report[name]
        taken = {key: tensor for key, tensor in file.items() if key not in {*part.dropped, *part.folded}}
        copied = {key: states[name][key] for key in part.copied if key in states[name]}
        lost = fingerprints(taken) - fingerprints(copied)
        invented = fingerprints(copied) - fingerprints(taken)
        findings.add(
            not lost and not invented,
            f"{len(file)} tensors in {part.source}: {len(copied)} copied value for value, {len(part.folded)} folded, "
            f"{len(part.dropped)} dropped; {lost.total()} lost, {invented.total()} from nowhere",
        )
    strange = [key for part in report.parts for key in part.new if part.source and "cross_attention" not in key]
    findings.add(not strange, f"new tensors beside cross-attention and projector: {', '.join(strange) or 'none'}")
    return report


def fingerprints(weights: Mapping[str, torch.Tensor]) -> Counter[str]:
    """How often each value occurs among the tensors."""
    return Counter(hash_weights({"": tensor}) for tensor in weights.values())


def train(recipe_overrides: list[str]) -> int:
    """The exit code of `hf-vlm train`, run as a user runs it."""
    command = [sys.executable, "-m", "hf_vlm.cli", "train", RECIPE, *recipe_overrides, "--no-resume"]
    return subprocess.run(command, check=False).returncode


def check_training(findings: Findings, out: Path) -> None:
    """See that the loss of the logged steps fell."""
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    findings.add(
        first - last > LEAST_FALL,
        f"loss {first:.2f} -> {last:.2f} nats a token in {state['global_step']} steps of {BATCH_SIZE} lines",
    )


def check_saved_report(findings: Findings, out: Path, assembled: WeightReport) -> None:
    """Compare the saved report with the saved weights and with the report before training."""
    report = WeightReport.load(out)
    file = load_file(out / "model.safetensors")
    rest = set(file)
    for part in report.parts:
        prefix = PREFIXES[part.name]
        weights = {key.removeprefix(prefix): tensor for key, tensor in file.items() if key.startswith(prefix)}
        rest -= {prefix + key for key in weights}
        same = hash_weights(weights) == part.sha256
        findings.add(
            same, f"hash of the saved {part.name} {'is' if same else 'is not'} the report's {part.sha256[:12]}"
        )
        before = assembled[part.name]
        findings.add(part.sha256 != before.sha256, f"{part.name} was {before.sha256[:12]} before training")
        kept = (part.copied, part.new, part.tied, part.folded, part.dropped, part.source) == (
            before.copied, before.new, before.tied, before.folded, before.dropped, before.source,
        )  # fmt: skip
        findings.add(kept, f"training {'kept' if kept else 'changed'} what the report tells of {part.name}")
    findings.add(not rest, f"saved tensors outside the report's parts: {len(rest)}")


def check_reloading(findings: Findings, out: Path, resaved: Path, recipe: TrOCRRecipe) -> None:
    """See that the folder alone gives the loss and the error rate that the trainer measured, whichever way it is loaded."""
    model = AutoModel.from_pretrained(out)
    processor = AutoProcessor.from_pretrained(out)
    reader = pipeline("text-recognition", model=str(out), batch_size=BATCH_SIZE)
    log = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logged = {key: value for entry in log for key, value in entry.items() if key.startswith("eval_")}
    for name, of_set in recipe.data.validation.items():
        rows = read_lines(Path(recipe.data.folder) / of_set.path, split=of_set.split, where=of_set.where)
        lines = ReferenceLines(rows, max_lines=of_set.max_lines, ignore_case=of_set.ignore_case)
        pictures = [lines[index]["image"] for index in range(len(lines))]
        piped = [result[0]["generated_text"] for result in reader(pictures)]
        auto: list[str] = []
        losses: list[float] = []
        for first in range(0, len(pictures), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            inputs = processor(images=pictures[batch], text=lines.texts[batch], return_tensors="pt")
            with torch.inference_mode():
                losses += [model(**inputs).loss.item()] * len(pictures[batch])
                del inputs["labels"]
                auto += processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        equal = [text.strip() for text in auto] == piped
        findings.add(
            equal,
            f"AutoModel and pipeline read {'the same' if equal else 'different texts'} in {len(piped)} {name} lines",
        )
        print(f"     {lines.texts[0]!r} is read as {piped[0]!r}")
        measured = {
            "loss": sum(losses) / len(losses),
            "cer": character_error_rate(lines.texts, piped, case_sensitive=not of_set.ignore_case),
        }
        for quantity, value in measured.items():
            before = logged[f"eval_{name}_{quantity}"]
            told = f"{quantity} of the reloaded model {value:.5f}, of the trained one {before:.5f}"
            findings.add(abs(value - before) < 1e-4, f"{name} lines: {told}")

    model.save_pretrained(resaved)
    same = (resaved / "weight_report.json").is_file() and WeightReport.load(resaved) == WeightReport.load(out)
    findings.add(same, f"reloaded and saved again, the report is {'the same' if same else 'another one, or gone'}")


def main() -> int:
    """Check every vision part, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, help="folder of scripts/make_real_parts.py")
    parser.add_argument("data", type=Path, help="folder with the recipe's data")
    parser.add_argument("--vision", nargs="+", choices=VISION_PARTS, default=VISION_PARTS, help="default: both")
    parser.add_argument("--steps", type=int, default=80, help="training steps, default 80")
    parser.add_argument("--out", type=Path, default=Path("runs/check_real_parts"), help="folder for the models")
    options = parser.parse_args()

    good = True
    for vision in options.vision:
        findings = Findings(f"{vision} + {TEXT_PART}")
        out = options.out / vision
        overrides = [
            f"model.vision={options.parts / vision}",
            f"model.text={options.parts / TEXT_PART}",
            f"data.folder={options.data}",
            "data.validation.printed.max_lines=16",
            "data.validation.typewritten.max_lines=16",
            f"training.output_dir={out}",
            f"training.max_steps={options.steps}",
            f"training.per_device_train_batch_size={BATCH_SIZE}",
            f"training.per_device_eval_batch_size={BATCH_SIZE}",
            "training.warmup_steps=10",
            "training.logging_steps=4",
            f"training.eval_steps={options.steps}",
            f"training.save_steps={options.steps}",
            "training.save_total_limit=1",
            "training.dataloader_num_workers=0",
            "training.report_to=none",
            "generation.max_new_tokens=40",
        ]
        report = check_assembly(findings, options.parts / vision, options.parts / TEXT_PART)
        code = train(overrides)
        findings.add(code == 0, f"`hf-vlm train {RECIPE}` ended with exit code {code}")
        if code == 0:
            check_training(findings, out)
            check_saved_report(findings, out, report)
            check_reloading(findings, out, options.out / f"{vision}-resaved", TrOCRRecipe.load(RECIPE, overrides))
        good &= findings.all_good
    print("All is well." if good else "Something is off, see BAD above.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
