"""What is known of a model before its card is written: its files, its run, the base that it goes back to."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
)

from hf_vlm.parts.checkpoint_files import find_file, read_config
from hf_vlm.parts.licences import read_merge_record
from hf_vlm.parts.weight_report import REPORT_FILE, WeightReport, read_report
from hf_vlm.sharing.cards import architectures
from hf_vlm.sharing.cards import run as course
from hf_vlm.sharing.cards.records import Record
from hf_vlm.training.recipe_files import listed, read_sections
from hf_vlm.training.reports.run_history import RECIPE_FILE, STATE_FILE
from hf_vlm.training.supervision.run_environment import ENVIRONMENT_FILE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class Facts:
    """What is known of a model.

    Attributes:
        folder: of the model or the adapter.
        name: of the model.
        config: `config.json` of the model, of an adapter that of its base; empty where the base is not there.
        adapter: `adapter_config.json`; None for a whole model.
        model_type, class_name: of the model, or of the adapter's base.
        base: folder or Hub name of the adapter's base, or that the run went on from; "" for none.
        report: what the model, or the adapter's base, is made of.
        sections, state, environment: the recipe, the Trainer's state, and what the run ran on; empty where there is no run.
        task: of the recipe; "" where there is none.
        records: measurements.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    model_type: str
    class_name: str
    base: str = ""
    report: WeightReport | None = None
    sections: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    records: list[Record] = field(default_factory=list)

    @property
    def architecture(self) -> architectures.Architecture:
        """What is told of all models of its architecture."""
        return architectures.ARCHITECTURES[self.model_type]

    @property
    def brings_code(self) -> bool:
        """Whether the folder loads by code of its own, as `hf-vlm export-code` writes it."""
        return bool(self.config.get("auto_map")) and self.adapter is None

    @property
    def processor(self) -> dict[str, Any]:
        """Settings of the processor, those of its image processor among them."""
        for file in ("processor_config.json", "preprocessor_config.json"):
            settings = read_settings(self.folder / file)
            if settings:
                return {**settings.get("image_processor", {}), **settings}
        return {}


def gather_facts(folder: Path, name: str) -> Facts:
    """What the files of a folder tell.

    Raises:
        ValueError: if it holds no model of ours.
    """
    sections = read_sections(folder / RECIPE_FILE) if (folder / RECIPE_FILE).is_file() else {}
    state = read_settings(folder / STATE_FILE)
    state = state if isinstance(state.get("log_history"), list) else {}
    environment = read_settings(folder / ENVIRONMENT_FILE) if state else {}
    task = course.task_of(sections)
    adapter = None
    base = ""
    if (folder / "config.json").is_file():
        config = read_config(folder)
        class_name = next(iter(config.get("architectures") or ()), "")
        model_section = sections.get("model")
        base = str(model_section.get("pretrained") or "") if isinstance(model_section, Mapping) else ""
        base = base or read_merge_record(folder).get("base", {}).get("name", "")
        origin = os.fspath(folder)
    elif (folder / "adapter_config.json").is_file():
        adapter = read_settings(folder / "adapter_config.json")
        base = str(adapter.get("base_model_name_or_path") or "")
        class_name = str((adapter.get("auto_mapping") or {}).get("base_model_class") or "")
        base = _found_base(base, sections)
        try:
            config = read_config(base) if base else {}
        except (OSError, ValueError):
            config = {}
        origin = base
    else:
        checkpoints = listed(sorted(path.name for path in folder.glob("checkpoint-*")))
        advice = (
            f"Its run has not ended; it has {checkpoints}: name one of them, or go on with the run."
            if checkpoints
            else "Name the `training.output_dir` of a run that has ended."
        )
        raise ValueError(
            f"The folder of a model or adapter is wanted, with `config.json` or `adapter_config.json`, got "
            f"{folder} without. {advice}"
        )
    model_type = str(config.get("model_type") or _model_type_of(class_name))
    if model_type not in architectures.ARCHITECTURES:
        raise ValueError(
            f"A model of hf-vlm is wanted, of type {listed(architectures.ARCHITECTURES)}, got `{model_type or class_name}` in "
            f"{folder}. Write its card by hand, or with the tools of its own library."
        )
    class_name = class_name or next(iter(config.get("architectures") or ()), "")
    report = _report_of(origin)
    known = Facts(folder, name, config, adapter, model_type, class_name, base, report)
    known.sections, known.state, known.environment, known.task = sections, state, environment, task
    return known


def _report_of(origin: str) -> WeightReport | None:
    """The report beside a model, folder or Hub name; None where there is none, or no such model here."""
    try:
        file = find_file(origin, REPORT_FILE) if origin else None
    except (OSError, ValueError):
        return None
    return read_report(file) if file is not None else None


def _found_base(base: str, sections: Mapping[str, Any]) -> str:
    """Where an adapter's base is: as its config says, or as the recipe did."""
    model = sections.get("model")
    named = str(model.get("pretrained") or "") if isinstance(model, Mapping) else ""
    return named if not os.path.isdir(base) and named and os.path.isdir(named) else base


def _model_type_of(class_name: str) -> str:
    """The model type of a class of ours; "" for another's."""
    for model_type in architectures.ARCHITECTURES:
        for auto_class in (
            AutoModel,
            AutoModelForImageClassification,
            AutoModelForImageTextToText,
            AutoModelForMaskedImageModeling,
        ):
            mapping = auto_class._model_mapping
            config_class = CONFIG_MAPPING[model_type]
            if config_class in mapping and mapping[config_class].__name__ == class_name:
                return model_type
    return ""


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a Hub repository: of that form, no folder here, and known to the cache."""
    if not HUB_ID.fullmatch(name) or os.path.exists(name):
        return False
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def base_name(facts: Facts) -> str:
    """What may be told of a base: a Hub name, or the last part of a folder's."""
    return (
        facts.base
        if is_hub_id(facts.base)
        else course.published(facts.base).rstrip("/").rpartition("/")[2] or facts.base
    )


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none, or no mapping in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
