"""The report of a run, `hf-vlm show`: what was trained, how it went, what the model answers and where it goes wrong.

a run's folder -> `open_run`, `read_charts`   recipe, steps, curves
               -> `collect_samples`           the trained model's answers on the run's own data
               -> `RunReport`                 -> `report_page.report_html`: one page that needs nothing else
"""

import datetime
import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import CONFIG_NAME

from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.training.reports.answer_errors import Confusion, KindScore, LengthScore, confusions, scores_by_length
from hf_vlm.training.reports.run_collectors import collect_samples
from hf_vlm.training.reports.run_history import RECIPE_FILE, Chart, RunFolder, open_run, read_charts, set_names
from hf_vlm.training.reports.run_samples import Findings, Sample
from hf_vlm.training.tasks import load_recipe

_NUM_CONFUSIONS = 12
_NUM_WORST = 6


@dataclass
class RunReport:
    """What is known of a run.

    Attributes:
        name: of its folder.
        task: of its recipe.
        facts: what is told first, by name.
        recipe: as it was run, YAML.
        charts: what was logged.
        findings: what the trained model does; None where that could not be found out.
        problem: why not; None where it could.
        by_kind: scores of the kinds of rows, where rows have kinds.
        confusions: the commonest edits of characters, or mistaken classes.
        by_length: error rates of lines of like length.
        worst: samples that are furthest from their references.
    """

    name: str
    task: str
    facts: dict[str, str]
    recipe: str
    charts: list[Chart]
    findings: Findings | None = None
    problem: str | None = None
    by_kind: list[KindScore] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    by_length: list[LengthScore] = field(default_factory=list)
    worst: list[Sample] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What is in the report, in numbers."""
        found = self.findings or Findings("", [])
        judged = [sample.is_right for sample in found.samples if sample.is_right is not None]
        return {
            "run": self.name,
            "task": self.task,
            "facts": self.facts,
            "curves": {chart.title: [line.name for line in chart.lines] for chart in self.charts},
            "num_answered": len(found.samples),
            "num_judged": len(judged),
            "num_right": sum(judged),
            "error_rate": error_rate(found.samples),
            "num_shown": len(found.shown),
            "num_with_attention": sum(bool(sample.maps) for sample in found.samples),
            "num_label_masks": len(found.masks),
            "problems": [*([self.problem] if self.problem else []), *found.problems],
        }


def make_report(path: str | Path, num_samples: int = 12) -> RunReport:
    """The report of a run; what can't be had, such as samples of data that is gone, is left out and says why.

    Args:
        path: `training.output_dir` of a run.
        num_samples: samples to show; four times as many are answered, for errors to be counted on.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no run's.
    """
    run = open_run(path)
    charts = read_charts(run.state["log_history"], set_names(run.sections))
    task = str(run.sections.get("task", ""))
    report = RunReport(run.path.resolve().name, task, {}, run.recipe_text, charts)
    try:
        recipe = load_recipe(run.path / RECIPE_FILE)
        report.task = recipe.task
        report.findings = collect_samples(run.weights, recipe, num_samples)
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # a report of the rest is still of use
        report.problem = str(error)
    report.facts = run_facts(run, report)
    if report.findings is not None:
        _count_errors(report, report.findings)
    return report


def error_rate(samples: Sequence[Sample]) -> float | None:
    """Edited characters per reference character of all samples that have references; None if none has."""
    scored = [sample for sample in samples if sample.error_rate is not None]
    characters = sum(sample.num_characters for sample in scored)
    return sum(len(sample.edits) for sample in scored) / characters if characters else None


def _count_errors(report: RunReport, findings: Findings) -> None:
    samples = findings.samples
    of_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.kind is not None:
            of_kind[sample.kind].append(sample)
    for kind, rows in sorted(of_kind.items()):
        judged = [row.is_right for row in rows if row.is_right is not None]
        report.by_kind.append(KindScore(kind, len(rows), len(judged), sum(judged), error_rate(rows)))
    if findings.unit in ("characters", "classes"):
        report.confusions = confusions((edit for sample in samples for edit in sample.edits), _NUM_CONFUSIONS)
    if findings.unit == "characters":
        lengths = [sample.num_characters for sample in samples]
        report.by_length = scores_by_length(lengths, [len(sample.edits) for sample in samples])
    faulty = [sample for sample in samples if sample.references and not sample.is_right]
    report.worst = sorted(faulty, key=lambda sample: -(sample.error_rate or 0))[:_NUM_WORST]


# What is told first


def run_facts(run: RunFolder, report: RunReport) -> dict[str, str]:
    """What was trained and how long, by name; only what is known."""
    state, sections, found = run.state, run.sections, report.findings
    training = _section(sections, "training")
    facts = {"Task": report.task, "Architecture": found.architecture if found else _architecture(run.weights)}
    facts["Started from"] = _origin(sections)
    if found is not None and found.parts:
        every, trained = (
            sum(column) for column in zip(*((p.num_parameters, p.num_trained) for p in found.parts), strict=True)
        )
        facts["Parameters"] = f"{every:,}, of which {trained:,} trained"
    step, steps = state.get("global_step"), state.get("max_steps")
    facts["Steps"] = f"{step:,} of {steps:,}" if step is not None and steps else f"{step}"
    if state.get("epoch") is not None:
        facts["Epochs"] = f"{state['epoch']:.4g}"
    last: Mapping[str, Any] = next((entry for entry in reversed(state["log_history"]) if "train_runtime" in entry), {})
    if last:
        seconds = round(last["train_runtime"])
        facts["Time"] = f"{datetime.timedelta(seconds=seconds)} (h:mm:ss) since the last start or resumption"
    rows, items = training.get("per_device_train_batch_size"), training.get("global_batch_size")
    if items is not None:
        facts["Batch"] = f"{items} rows an update, over all devices"
    elif rows is not None:
        number = f"{rows} {'row' if rows == 1 else 'rows'} a device"
        accumulated = training.get("gradient_accumulation_steps", 1)
        facts["Batch"] = number + (f", {accumulated} batches a step" if accumulated != 1 else "")
    if state.get("best_metric") is not None and training.get("metric_for_best_model", True):
        at = state.get("best_global_step")
        facts["Best"] = f"{state['best_metric']:.5g}, the measure that chooses the best checkpoint" + (
            f", at step {at:,}" if at else ""
        )
    facts["Weights"] = str(run.weights)
    facts["Versions"] = _versions(run.weights)
    return {name: value for name, value in facts.items() if value}


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = sections.get(name)
    return section if isinstance(section, Mapping) else {}


def _origin(sections: Mapping[str, Any]) -> str:
    """Where the weights of a run came from, as its recipe says."""
    model = _section(sections, "model")
    named = [f"{key} {model[key]}" for key in ("pretrained", "vision", "text", "backbone") if model.get(key)]
    return ", ".join(named) or "random weights"


def _architecture(weights: Path) -> str:
    """As the saved config says; "" where there is none."""
    adapter = weights / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return f"LoRA adapter of {base}"
    if not (weights / CONFIG_NAME).is_file():
        return ""
    config = read_config(weights)
    return ", ".join(config.get("architectures") or [str(config.get("model_type", ""))])


def _versions(weights: Path) -> str:
    here = f"this report: transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    if not (weights / CONFIG_NAME).is_file():
        return here
    saved = read_config(weights).get("transformers_version")
    return f"saved by transformers {saved}; {here}" if saved else here
