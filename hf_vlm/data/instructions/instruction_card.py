"""The data card of visual instructions: what is there, how it was made, what share was accepted and why the rest was not."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_vlm.data.instructions.teachers import KINDS

if TYPE_CHECKING:
    from hf_vlm.data.instructions.visual_instructions import InstructionReport

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(folder: Path, report: "InstructionReport", settings: Mapping[str, Any], limits: Any) -> None:
    """Write `README.md` into the folder of a data set.

    Args:
        folder: of the data set.
        report: of the run.
        settings: what the run's store has kept: `teacher`, `seed`, `contexts`, `prompts of ...`.
        limits: a dataclass, `InstructionLimits`.

    Raises:
        OSError: if it can't be written.
    """
    size = next((name for most, name in _SIZES if report.num_accepted < most), "n>1M")
    header = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "task_categories": ["image-text-to-text", "visual-question-answering"],
        "size_categories": [size],
        "tags": ["visual-instructions", "synthetic"],
    }
    if limits.language is not None:
        header["language"] = [limits.language]
    teacher = dict(settings["teacher"])
    name = teacher.pop("name")
    is_rules = not any(key.startswith("prompts of") for key in settings)
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# Visual instructions by {name}",
        f"{report.num_accepted} conversations with {report.num_exchanges} questions and answers, about {report.num_contexts} "
        "pictures. "
        + (
            "Rules wrote them from the boxes of the things in the pictures and the list of what was looked for: they are as "
            "right as these."
            if is_rules
            else "A language model wrote them from captions and boxes; it saw no picture, so answers can be wrong about it."
        ),
        "```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("THIS FOLDER", split="train")  # messages, images, kind, teacher, prompt_hash, seed\n```',
        "`llava.json` holds the same in LLaVA's form, pictures by their names. `run.sqlite` holds contexts and answers as they "
        "came, and need not be shared.",
        "## What was accepted",
        _table(report),
        f"Requests without a reply: {report.num_failed}. Contexts left out: {_left_out(report)}.",
        "## How it was made",
        _bullets(
            {
                "contexts": Path(settings["contexts"]["path"]).name,
                "teacher": name,
                **teacher,
                "seed": settings["seed"],
                **{key: value for key, value in settings.items() if key.startswith("prompts of ")},
                "tokens of prompts, of answers": "{:,}, {:,}".format(*report.num_tokens)
                if any(report.num_tokens)
                else None,
                "seconds of asking": f"{report.seconds:.0f}",
                **{key: value for key, value in report.account.items() if value},
            }
        ),
        "Checks: "
        + ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(limits).items() if value is not None)
        + ".",
    ]
    if report.samples:
        lines.append("## Samples")
    for kind, (image, exchanges) in report.samples.items():
        said = "\n".join(f"> **{question}**\n>\n> {answer}\n>" for question, answer in exchanges)
        lines.append(f"`{kind}`, {image}:\n\n{said.removesuffix('>').rstrip()}")
    unfinished = folder / ".README.md.unfinished"
    unfinished.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / "README.md")


def _table(report: "InstructionReport") -> str:
    rows = ["| kind | answered | accepted | share | rejected, by reason |", "|---|---|---|---|---|"]
    for kind in KINDS:
        accepted, reasons = report.accepted.get(kind, 0), report.rejected.get(kind, {})
        answered = accepted + sum(reasons.values())
        if answered:
            told = ", ".join(
                f"{reason} {number}" for reason, number in sorted(reasons.items(), key=lambda one: -one[1])
            )
            rows.append(f"| {kind} | {answered} | {accepted} | {100 * accepted / answered:.1f} % | {told or '-'} |")
    return "\n".join(rows)


def _left_out(report: "InstructionReport") -> str:
    return ", ".join(f"{kind} {number}" for kind, (number, _) in report.bad_contexts.items()) or "none"


def _bullets(told: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in told.items() if value is not None)
