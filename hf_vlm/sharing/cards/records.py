"""Figures of a card: what `hf-vlm evaluate` left behind, `--record` or `--json`, as tables and as the Hub's results."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from hf_vlm.sharing.cards.architectures import hub_task
from hf_vlm.sharing.cards.run import published, table
from hf_vlm.training.scores.task_metrics import TASK_METRICS

_LINES = ("cer", "wer", "word_f1", "word_accuracy")
_CLASSES = ("accuracy", "top5_accuracy")
_TOKENIZER = (
    *("mse", "psnr", "sharpness", "bits_per_dim", "reconstruction_nats", "kl_nats", "commitment_loss"),
    *("used_codes", "perplexity", "active_channels"),
)
_OWN_SCALE = ("bleu", "chrf", "cider", *_TOKENIZER)
_FOR_HUB = {"image-tokenization": ("mse", "psnr")}  # the others describe, they don't measure
_HUB_METRICS = {"rouge_l": "rouge", "vqa_accuracy": "accuracy", "option_letter_accuracy": "accuracy"}
_NO_RECORDS = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "added_tokens.json", "trainer_state.json"),
    "run_environment.json",
    *(
        "adapter_config.json",
        "base_weights.json",
        "merged_from.json",
        "weight_report.json",
        "model.safetensors.index.json",
    ),
)


@dataclass
class Record:
    """One measurement.

    Attributes:
        file: name of the file that it is from.
        task: of `TASK_METRICS`, or `image-classification` or `image-tokenization`.
        data: name of the data set: a Hub name, or of a folder its last part.
        split: of it; None if that is not recorded.
        scores: name -> value, the main one first.
        num_rows: how many were scored; None if that is not recorded.
        pictures: "own"; "none" or "other" where the model was shown none, or wrong ones.
        by_kind: kind of row -> its scores and `num_questions`.
        weights_sha256: of the measured weights; "" if that is not recorded.
        command: what measured; "" if that is not recorded. Local folders are cut to their last part.
        versions: package -> version.
        decoding: settings of `generate`.
    """

    file: str
    task: str
    data: str
    split: str | None
    scores: dict[str, float]
    num_rows: int | None
    pictures: str = "own"
    by_kind: dict[str, dict[str, float]] = field(default_factory=dict)
    weights_sha256: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)


def read_records(files: Iterable[str | os.PathLike]) -> list[Record]:
    """The measurements in files.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of `hf-vlm evaluate`.
    """
    records = []
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(
                f"A record of `hf-vlm evaluate` is wanted, got `{file}`, which is no file. Correct it."
            )
        entries = _entries(file)
        found = [record for entry in entries if (record := _record(file.name, entry)) is not None]
        if not found or len(found) < len(entries):
            raise ValueError(
                f"JSON of `hf-vlm evaluate --record` or `--json` is wanted, got {file.name}, which is none. Measure again, or "
                "leave it out."
            )
        records += found
    return records


def records_in(folder: Path) -> list[Path]:
    """The files of a folder, and of `records` in it, that hold measurements."""
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("records/*.json"))]
    found = []
    for file in files:
        if file.name not in _NO_RECORDS:
            entries = _entries(file)
            if entries and all(_record(file.name, entry) is not None for entry in entries):
                found.append(file)
    return found


def _entries(file: Path) -> list[Any]:
    """One JSON value, or one a line; nothing where it is neither."""
    try:
        text = file.read_text(encoding="utf-8")
        try:
            whole = json.loads(text)
            return whole if isinstance(whole, list) else [whole]
        except ValueError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return []


def _record(file: str, entry: Any) -> Record | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        return None
    if entry.get("task") in TASK_METRICS:
        task, names, rows = entry["task"], TASK_METRICS.get(entry.get("metrics") or entry["task"], ()), "num_questions"
    elif "cer" in entry:
        task, names, rows = "ocr", _LINES, "num_lines"
    elif "accuracy" in entry:
        task, names, rows = "image-classification", _CLASSES, "num_pictures"
    elif "psnr" in entry:
        task, names, rows = "image-tokenization", _TOKENIZER, "num_pictures"
    else:
        return None
    scores = {name: float(entry[name]) for name in names if isinstance(entry.get(name), int | float)}
    if not scores:
        return None
    by_kind = entry.get("by_kind")
    return Record(
        file=file,
        task=task,
        data=published(entry["data"]),
        split=entry.get("split"),
        scores=scores,
        num_rows=entry.get(rows),
        pictures=entry.get("pictures") or "own",
        by_kind=by_kind if isinstance(by_kind, dict) else {},
        weights_sha256=entry.get("weights_sha256") or "",
        command=_short_command(entry.get("command") or ""),
        versions=entry.get("versions") or {},
        decoding=entry.get("decoding") or {},
    )


def _short_command(command: str) -> str:
    """A command as anyone would type it: no folders of the machine that it ran on."""
    words = published(command).split(" ")
    if words and words[0].rpartition("/")[2] in ("hf-vlm", "__main__.py"):
        words[0] = "hf-vlm"
    return " ".join(words)


def check_weights(records: Sequence[Record], weights_sha256: str) -> None:
    """Checks that records are of these weights; one that doesn't say of which is believed.

    Raises:
        ValueError: if one is of others.
    """
    for record in records:
        if record.weights_sha256 and record.weights_sha256 != weights_sha256:
            raise ValueError(
                f"Records of these weights are wanted, SHA-256 {weights_sha256[:12]}..., got {record.file} of others, "
                f"{record.weights_sha256[:12]}... Measure again by `hf-vlm evaluate {record_option(record.task)}`, or "
                "leave it out."
            )


def record_option(task: str) -> str:
    """The option by which `hf-vlm evaluate` leaves the figures of a task in a file."""
    return "--record FILE" if task in TASK_METRICS and task != "ocr" else "--json > FILE"


def eval_results(records: Sequence[Record]) -> list[EvalResult]:
    """What the Hub shows of measurements, with the model's own pictures only: scores of [0, 1], or of their own scale."""
    results = []
    for record in records:
        if record.pictures != "own":
            continue
        for name, value in record.scores.items():
            if name in _FOR_HUB.get(record.task, record.scores):
                results.append(
                    EvalResult(
                        task_type=hub_task(record.task),
                        dataset_type=record.data,
                        dataset_name=record.data.rpartition("/")[2],
                        dataset_split=record.split,
                        metric_type=_HUB_METRICS.get(name, name),
                        metric_name=name.replace("_", " "),
                        metric_value=value,
                    )
                )
    return results


def hub_metrics(records: Sequence[Record]) -> list[str]:
    """The metrics of measurements by the Hub's names, each once."""
    return list(dict.fromkeys(result.metric_type for result in eval_results(records)))


def figures(records: Sequence[Record]) -> str:
    """Measurements as Markdown: tables of scores, a task each, and how each was measured."""
    told = []
    for task in dict.fromkeys(record.task for record in records):
        of_task = [record for record in records if record.task == task]
        names = list(dict.fromkeys(name for record in of_task for name in record.scores))
        rows = [
            [
                record.data,
                record.split or "not recorded",
                {"own": "its own", "none": "none", "other": "of other rows"}.get(record.pictures, record.pictures),
                "not recorded" if record.num_rows is None else f"{record.num_rows:,}",
                *(_spelled(name, record.scores[name]) if name in record.scores else "-" for name in names),
            ]
            for record in of_task
        ]
        heads = ["data", "split", "pictures shown", "rows", *(_head(name) for name in names)]
        if all(record.pictures == "own" for record in of_task):
            heads, rows = [heads[0], heads[1], *heads[3:]], [[*row[:2], *row[3:]] for row in rows]
        told.append(f"`{task}`:\n\n{table(heads, rows)}")
        told += [_kinds(record) for record in of_task if record.by_kind]
    told.append("How they were measured:\n\n" + "\n".join(_measured(record) for record in records))
    return "\n\n".join(told)


def _kinds(record: Record) -> str:
    names = [name for name in record.scores if any(name in scores for scores in record.by_kind.values())]
    rows = [
        [
            kind,
            f"{scores.get('num_questions', 0):,.0f}",
            *(_spelled(name, scores[name]) if name in scores else "-" for name in names),
        ]
        for kind, scores in sorted(record.by_kind.items())
    ]
    shown = {"none": ", no pictures shown", "other": ", pictures of other rows shown"}.get(record.pictures, "")
    return f"By kind, on {record.data}{shown}:\n\n{table(['kind', 'rows', *map(_head, names)], rows)}"


def _measured(record: Record) -> str:
    command = f"`{record.command}`" if record.command else "command not recorded"
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    kept = {
        name: record.decoding[name] for name in ("num_beams", "do_sample", "max_new_tokens") if name in record.decoding
    }
    decoding = ", ".join(f"{name} {value}" for name, value in kept.items())
    more = "; ".join(word for word in (decoding, versions or "versions not recorded") if word)
    return f"- {record.task} on {record.data}: {command}; {more}"


def _head(name: str) -> str:
    words = name.replace("_", " ")
    return words if name in _OWN_SCALE else f"{words}, %"


def _spelled(name: str, value: float) -> str:
    if name == "cider" or name in _TOKENIZER:
        return f"{value:.4g}" if name != "cider" else f"{value:.3f}"
    return f"{value:.1f}" if name in _OWN_SCALE else f"{100 * value:.2f}"
