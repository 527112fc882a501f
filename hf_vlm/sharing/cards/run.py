"""What a run's folder tells a card: data, settings, course. No folder of the machine that it ran on is told."""

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_vlm.data.labelled_images import read_images
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.parts.weight_report import card_metadata, stated_license
from hf_vlm.training.recipe_files import read_sections
from hf_vlm.training.reports.run_history import Chart, read_charts, set_names
from hf_vlm.training.task_sources import TaskSource, read_source
from hf_vlm.training.tasks import RENAMED_TASKS, load_recipe

_LOCAL_PATH = re.compile(r"(?<![\w:/.\\])(?:~?/|\.\.?/|[A-Za-z]:\\)[^\s'\",;:()\[\]{}]*")
_OF_THE_MACHINE = (  # settings that say nothing of the model, or must not be told
    *(
        "output_dir",
        "logging_dir",
        "run_name",
        "report_to",
        "disable_tqdm",
        "hub_token",
        "push_to_hub_token",
        "hub_model_id",
    ),
    *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "dataloader_num_workers", "features_folder"),
    *("push_to_hub", "hub_private_repo", "hub_strategy", "project", "trackio_space_id"),
)


def published(text: str) -> str:
    """A text without ways through folders of this machine: of an absolute path, or one upwards, its last part."""
    return _LOCAL_PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1] or ".", text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


# Data


def data_sets(sections: Mapping[str, Any]) -> list[tuple[str, Path, dict[str, Any]]]:
    """The sets that a recipe learns from: name, folder or file as it lay when it was trained, settings."""
    data = _section(sections, "data")
    folder = Path(str(data.get("folder", ".")))
    train = data.get("train")
    if isinstance(train, list):
        sources = [dict(source) for source in train if isinstance(source, Mapping)]
        places = [folder / str(source.get("path", ".")) for source in sources]
        return [(_name(place), place, source) for place, source in zip(places, sources, strict=True)]
    return [(_name(folder), folder, {"split": train})] if data.get("folder") else []


def _name(place: Path) -> str:
    name = published(place.resolve().name if str(place) in (".", "") else str(place)).rstrip("/")
    return name.rpartition("/")[2] or name


def tell_data(sections: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> str:
    """The recipe's sets as Markdown: what each is, how many rows it had, and what its own card says of it.

    Args:
        environment: what the run wrote of itself; without, the rows are those that the folders have now.
    """
    task = task_of(sections)
    seen = _section(environment or {}, "rows")
    named = data_sets(sections)
    trained = seen.get("train") if len(seen.get("train") or ()) == len(named) else None
    rows = []
    for index, (name, place, source) in enumerate(named):
        header = card_metadata(place) if place.is_dir() else {}
        kind = source.get("task") or task
        number = trained[index] if trained else _num_rows(place, source, str(kind))
        rows.append(
            [
                name + _filter(source),
                str(source.get("split") or "-"),
                str(kind),
                f"{source.get('weight', 1):g}",
                "not recorded" if number is None else f"{number:,}",
                stated_license(header) or "not recorded",
            ]
        )
    synthetic = _section(_section(sections, "data"), "synthetic")
    if synthetic:
        texts = published(str(synthetic["texts"])) if synthetic.get("texts") else "the package's sentences"
        rows.append(
            [
                f"lines rendered while training, of {texts}",
                "-",
                task,
                f"{synthetic.get('weight', 1):g}",
                "new each time",
                "-",
            ]
        )
    if not rows:
        return "Not recorded."
    told = table(["learnt from", "split", "task", "weight", "rows", "licence by its card"], rows)
    told += (
        "\n\nRows are those that the run learnt from."
        if trained
        else ("\n\nRows are those that the folder had when this card was written.")
    )
    validated = _section(seen, "validation")
    validation = _section(sections, "data").get("validation")
    if isinstance(validation, Mapping) and validation:
        sets = []
        for name, source in validation.items():
            if isinstance(source, Mapping):
                told_of = [
                    published(str(source.get("path", "."))),
                    *([f"split {source['split']}"] if source.get("split") else []),
                    *([f"{validated[name]:,} rows"] if name in validated else []),
                ]
                sets.append(f"{name} ({', '.join(told_of)}{_filter(source)})")
        told += f" Validated on {', '.join(sets)}."
    elif isinstance(validation, str):
        number = validated.get(validation)
        told += f" Validated on the split `{validation}`{'' if number is None else f', {number:,} rows'}."
    return told


def _filter(source: Mapping[str, Any]) -> str:
    """Which rows of a set are taken, where not all are."""
    where = source.get("where")
    told = (
        [f", where {column} is {_listed(value)}" for column, value in where.items()]
        if isinstance(where, Mapping)
        else []
    )
    if number := source.get("max_rows") or source.get("max_lines"):
        told.append(f", {number:,} of them")
    return "".join(told)


def _listed(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def task_of(sections: Mapping[str, Any]) -> str:
    """The task of a recipe by its name of today; "" where there is no recipe."""
    task = str(sections.get("task") or ("ocr" if sections else ""))
    return RENAMED_TASKS.get(task, task)


def data_languages(sections: Mapping[str, Any]) -> list[str]:
    """The languages that the cards of the training sets state, each once."""
    found: list[str] = []
    for _, place, _ in data_sets(sections):
        stated = card_metadata(place).get("language") if place.is_dir() else None
        found += [stated] if isinstance(stated, str) else [str(language) for language in stated or ()]
    return list(dict.fromkeys(found))


def _num_rows(place: Path, source: Mapping[str, Any], task: str) -> int | None:
    """Rows of a set as it lies there now; None where it can't be read any more."""
    if not place.exists():
        return None
    try:
        if task == "ocr":
            return len(read_lines(place, split=source.get("split"), where=source.get("where") or {}))
        if task.startswith("image-") or task.startswith("masked-"):
            return len(read_images(place, source.get("split"), with_labels=task == "image-classification"))
        known = {field.name for field in dataclasses.fields(TaskSource)}
        settings = {
            name: value for name, value in source.items() if name in known and name not in ("path", "image_folder")
        }
        folder = str(source["image_folder"]) if source.get("image_folder") else None
        read = TaskSource(path=str(place), image_folder=folder, **settings)
        return len(read_source("", read, task, every_answer=task == "caption"))
    except (ValueError, OSError, ImportError, KeyError, TypeError):
        return None


# Settings and course


def tell_settings(file: Path) -> str:
    """A recipe as YAML, without defaults, what tells of the machine only, and the sets, which are told elsewhere.

    Args:
        file: of the recipe as it was run.
    """
    sections = _without_defaults(file)
    told_elsewhere = ("folder", "train", "validation", "synthetic")
    data = {name: value for name, value in _section(sections, "data").items() if name not in told_elsewhere}
    kept = {name: section for name, section in sections.items() if name != "data"} | {"data": data}
    return yaml.safe_dump(_told(kept), allow_unicode=True, sort_keys=False).strip()


def _without_defaults(file: Path) -> dict[str, Any]:
    """A recipe's sections without what every recipe has; all of them where it is of another version."""
    sections = read_sections(file)
    try:
        return _given(load_recipe(file, [f"task={task_of(sections)}"]))
    except ValueError:
        return sections


def _given(section: Any) -> Any:
    """A recipe's dataclass as a dict, fields at their defaults left out."""
    if isinstance(section, list | tuple):
        return [_given(one) for one in section]
    if isinstance(section, Mapping):
        return {name: _given(one) for name, one in section.items()}
    if not dataclasses.is_dataclass(section):
        return section
    told = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default or field.name in ("task", "architecture"):
            told[field.name] = _given(value)
    return told


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        told = {key: _told(one) for key, one in value.items() if key not in _OF_THE_MACHINE}
        return {key: one for key, one in told.items() if one is not None and one not in ({}, [], "")}
    if isinstance(value, list):
        return [_told(one) for one in value]
    return published(value) if isinstance(value, str) else value


def tell_course(
    sections: Mapping[str, Any],
    state: Mapping[str, Any],
    versions: Mapping[str, str],
    environment: Mapping[str, Any] | None = None,
) -> str:
    """How long a model was trained on what, as a list in Markdown.

    Args:
        state: the Trainer's.
        versions: of the packages that saved the model.
        environment: what the run wrote of what it ran on.
    """
    sessions = [session for session in (environment or {}).get("sessions") or () if isinstance(session, Mapping)]
    last: Mapping[str, Any] = next((entry for entry in reversed(state["log_history"]) if "train_runtime" in entry), {})
    training = _section(sections, "training")
    facts = {
        "steps of the optimizer": _steps(state),
        # the Trainer's own `epoch` is of schedules that are one epoch, however often they pass over the data
        "passes over the data": f"{training['num_train_epochs']:g}"
        if training.get("num_train_epochs") and training.get("max_steps") is None
        else None,
        "rows of a batch": _batch(sections, sessions),
        "time": _time(sessions, last),
        "last loss logged": _last_loss(state),
        "best": _best(sections, state),
        "saved by": ", ".join(f"{package} {version}" for package, version in versions.items()) or "not recorded",
        **_ran_on(sessions),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _time(sessions: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> str | None:
    """How long a run took: all of its sessions, or where they are not recorded the last, by the Trainer's own measure."""
    if sessions:
        spent = datetime.timedelta(seconds=round(sum(session["seconds"] for session in sessions)))
        told = f"{spent} (h:mm:ss)" + (f" in {len(sessions)} sessions" if len(sessions) > 1 else "")
        first = sessions[0]["first_step"]
        return f"{told}, from step {first:,} on; that of those before is not recorded" if first else told
    if not last:
        return None
    return f"{datetime.timedelta(seconds=round(last['train_runtime']))} (h:mm:ss) since the last start or resumption"


def _ran_on(sessions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Devices and versions of a run, each that one of its sessions had."""
    if not sessions:
        return {"device, version of torch": "not recorded"}
    devices, versions = (
        dict.fromkeys(f"{session['num_devices']} x {session['device']}" for session in sessions),
        dict.fromkeys(
            ", ".join(f"{package} {version}" for package, version in sorted(session["versions"].items()))
            for session in sessions
        ),
    )
    return {"device": "; then ".join(devices), "trained by": "; then ".join(versions)}


def _batch(sections: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> str | None:
    training = _section(sections, "training")
    rows, items = training.get("per_device_train_batch_size"), training.get("global_batch_size")
    if rows is None and items is None:
        return None
    accumulated = training.get("gradient_accumulation_steps", 1)
    packed = _section(sections, "data").get("max_tokens")
    of_device = f"{rows} a device" if items is None else f"{items} an update, over all devices"
    return (
        f"{of_device}; {_devices(sessions)}"
        + (f"; {accumulated} batches a step" if accumulated != 1 and items is None else "")
        + (f"; a row holds conversations of up to {packed} tokens together" if packed else "")
    )


def _devices(sessions: Sequence[Mapping[str, Any]]) -> str:
    numbers = list(dict.fromkeys(session["num_devices"] for session in sessions))
    if not numbers:
        return "on how many devices is not recorded"
    return f"on {', then '.join(map(str, numbers))} {'device' if numbers == [1] else 'devices'}"


def _steps(state: Mapping[str, Any]) -> str | None:
    step, steps = state.get("global_step"), state.get("max_steps")
    if not isinstance(step, int):
        return None
    return f"{step:,}" if step == steps or not isinstance(steps, int) else f"{step:,} of {steps:,}"


def _last_loss(state: Mapping[str, Any]) -> str | None:
    entries = [entry for entry in state["log_history"] if isinstance(entry.get("loss"), int | float)]
    return f"{entries[-1]['loss']:.4g} at step {entries[-1]['step']:,}" if entries else None


def _best(sections: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    step = best_step(sections, state)
    if step is None:
        return None
    measure = _section(sections, "training").get("metric_for_best_model")
    told = f" ({str(measure).removeprefix('eval_')})" if measure else ""
    return f"{state['best_metric']:.5g}{told} in validation at step {step:,}, whose weights are kept"


def best_step(sections: Mapping[str, Any], state: Mapping[str, Any]) -> int | None:
    """The step whose weights a run ended with, where that is not the last."""
    if state.get("best_metric") is None or state.get("best_global_step") is None:
        return None
    return state["best_global_step"] if _section(sections, "training").get("load_best_model_at_end", True) else None


def validated(sections: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """What was measured on the validation sets in training, of the weights that were kept; "" if nothing was."""
    wanted = best_step(sections, state)
    measured: dict[int, dict[str, float]] = {}
    for entry in state["log_history"]:
        scores = {
            key.removeprefix("eval_"): value
            for key, value in entry.items()
            if key.startswith("eval_")
            and isinstance(value, int | float)
            and not key.endswith(("_runtime", "_per_second", "_preparation_time"))
        }
        if scores and isinstance(entry.get("step"), int):
            measured.setdefault(entry["step"], {}).update(scores)
    if not measured:
        return ""
    step = wanted if wanted in measured else max(measured)
    told = table(
        ["measure", "value"],
        [[name.replace("_", " "), f"{value:.5g}"] for name, value in sorted(measured[step].items())],
    )
    return f"In training, on the validation sets, at step {step:,} of {state.get('global_step', step):,}:\n\n{told}"


def charts(sections: Mapping[str, Any], state: Mapping[str, Any]) -> list[Chart]:
    """What was logged over the run, loss first."""
    return read_charts(state["log_history"], set_names(sections))


def trained_parts(sections: Mapping[str, Any]) -> dict[str, str]:
    """Role -> how it was trained, as the recipe says; empty where it says nothing of parts."""
    parts = _section(sections, "parts")
    lora = _section(parts, "lora")
    told = {str(role): "whole" for role in parts.get("train") or ()}
    return told | {str(role): f"LoRA, rank {lora.get('rank')}" for role in lora.get("roles") or ()}


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = sections.get(name)
    return section if isinstance(section, Mapping) else {}
