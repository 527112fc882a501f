"""The text of a card's sections, of what is known of the model."""

import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hf_vlm.parts.base_weights import BASE_FILE
from hf_vlm.parts.hub_config import VERSION_KEY
from hf_vlm.parts.weight_report import REPORT_FILE
from hf_vlm.sharing.cards import architectures
from hf_vlm.sharing.cards import records as figures
from hf_vlm.sharing.cards import run as course
from hf_vlm.sharing.cards.facts import Facts, base_name, read_settings
from hf_vlm.sharing.cards.licenses import OTHER
from hf_vlm.sharing.cards.limits import write_limits
from hf_vlm.sharing.cards.pictures import old_picture, plot_curves, show_picture
from hf_vlm.sharing.cards.sections import find_sections, inner_text
from hf_vlm.sharing.cards.weights import changed_parts, num_values
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.reports.run_history import RECIPE_FILE

_WEIGHTS_MARK = re.compile(r"<!-- of weights ([0-9a-f]{64}) -->")
_NOT_RECORDED = "Not recorded."
_NO_FIGURES = "No evaluation is recorded: how good it is, is not known."


def write_sections(
    facts: Facts,
    header: ModelCardData,
    licenses: Mapping[str, str],
    file: Path,
    picture: str | None,
    drawn: Path,
    old: str | None,
    told_figures: str,
) -> dict[str, str]:
    """The text of the sections by name.

    Args:
        licenses: of the parts.
        file: of the card.
        picture: file beside the card; None takes that of the card that is there.
        drawn: folder that takes the pictures that are drawn.
        old: text of that card.
        told_figures: the section of figures.
    """
    trained = bool(facts.sections or facts.state)
    sections = {
        "summary": _summary(facts, picture or old_picture(old, file)),
        "use": _use(facts),
        "parts": _parts(facts, licenses),
        "data": f"## Data\n\n{course.tell_data(facts.sections, facts.environment)}" if facts.sections else "",
        "training": _training(facts, drawn) if trained else "",
        "figures": told_figures,
        "limits": write_limits(facts, header, is_measured=_NO_FIGURES not in told_figures),
        "adapting": _adapting(facts),
        "license": _license(header, licenses),
    }
    if old is not None and facts.brings_code and not trained:  # the run stayed behind, its card came along
        told_before = find_sections(old, file.name)
        for name in ("parts", "data", "training"):
            if not sections[name] and name in told_before:
                sections[name] = inner_text(old, told_before[name])
    return sections


def _summary(facts: Facts, picture: str | None) -> str:
    architecture = facts.architecture
    what = "A LoRA adapter for a model of" if facts.adapter is not None else "A model of"
    size = f"{num_values(facts.folder) / 1e6:.3g}M parameters" + (
        " in the adapter" if facts.adapter is not None else ""
    )
    learnt = f", trained for the task `{facts.task}`" if facts.task else ""
    lines = [
        f"# {facts.name}",
        f"{what} the architecture {architecture.name}{learnt}; {size}. {architecture.is_what}",
        f"Paper: {architecture.paper}",
    ]
    if here := architectures.variant(facts.model_type, facts.config):
        lines.append(f"This one: {here}.")
    if picture:
        lines.append(show_picture(facts.name, picture))
    return "\n\n".join(lines)


def _use(facts: Facts) -> str:
    if facts.brings_code:
        program = architectures.code_usage(facts.model_type, facts.class_name, facts.task, facts.name)
        return (
            "## Use\n\nIt brings its own code, and wants transformers, torch, torchvision and Pillow. "
            f"`trust_remote_code=True` lets that code run: read it first.\n\n```python\n{program}\n```"
        )
    if facts.adapter is None:
        program = architectures.usage(facts.model_type, facts.class_name, facts.task, facts.name)
        return f"## Use\n\n`pip install hf-vlm`, then:\n\n```python\n{program}\n```"
    has_processor = bool(facts.processor)
    program = architectures.adapter_usage(
        facts.model_type, facts.class_name, facts.task, facts.name, base_name(facts), has_processor
    )
    return (
        f"## Use\n\n`pip install hf-vlm`, then, with the base `{base_name(facts)}`:\n\n```python\n{program}\n```\n\n"
        f"`{_merging(facts)}` makes one whole model of both."
    )


def _merging(facts: Facts) -> str:
    """The command that makes one whole model of an adapter and its base."""
    return f"hf-vlm merge {shlex.quote(facts.name)} --base {shlex.quote(base_name(facts))} --out MERGED"


def _parts(facts: Facts, licenses: Mapping[str, str]) -> str:
    if facts.adapter is not None:
        return f"## Base and adapter\n\n{_adapter(facts)}"
    told = ["## Parts"]
    if facts.report is None:
        origin = course.published(facts.base) if facts.base and facts.base != "default" else ""
        if facts.base == "default":
            origin = "trocr-mini-lines, which comes with hf-vlm"
        if not origin and not facts.sections:
            return ""
        told.append(f"Trained on from {origin}." if origin else "Trained from random weights.")
        if licenses.get("base"):
            told.append(f"Licence of what it went on from: {licenses['base']}.")
        return "\n\n".join(told)
    ways = course.trained_parts(facts.sections)
    rows = []
    for part in facts.report.parts:
        rows.append(
            [
                part.name,
                f"`{part.source}`" + (f" at `{part.revision[:12]}`" if part.revision else "") if part.source else "new",
                (part.license or "not recorded") if part.source else "-",
                f"{sum(part.copied.values()):,}",
                f"{sum(part.new.values()):,}",
                *([ways.get(part.name, "no")] if ways else []),
                f"`{part.sha256[:16]}`",
            ]
        )
    heads = [
        "part",
        "weights from",
        "licence",
        "values copied",
        "new",
        *(["trained in this run"] if ways else []),
        "SHA-256 now",
    ]
    told.append(course.table(heads, rows))
    if any(part.source and "/" not in part.source for part in facts.report.parts):
        told.append("A source without `/` is the name of a folder on the machine where the model was put together.")
    reasons = facts.report.table().splitlines()[len(facts.report.parts) + 1 :]
    if reasons:
        told.append("\n".join(f"- {reason}" for reason in reasons))
    others = changed_parts(facts.folder)
    if others:
        told.append(
            f"**The weights of {listed(others)} in this folder are not those that `{REPORT_FILE}` describes**, by their hashes."
        )
    else:
        told.append(
            f"`{REPORT_FILE}` names every tensor; the weights in this folder are those that it describes, by their hashes."
        )
    if facts.base:
        told.append(f"This run went on from `{base_name(facts)}`.")
    return "\n\n".join(told)


def _adapter(facts: Facts) -> str:
    assert facts.adapter is not None
    adapter = facts.adapter
    full = [str(name) for name in adapter.get("modules_to_save") or ()]
    told = [
        f"- base: `{base_name(facts)}`",
        f"- kind: {adapter.get('peft_type', 'not recorded')}, rank {adapter.get('r', 'not recorded')}, alpha "
        f"{adapter.get('lora_alpha', 'not recorded')}, dropout {adapter.get('lora_dropout', 'not recorded')}",
    ]
    ways = course.trained_parts(facts.sections)
    adapted = [role for role, way in ways.items() if way.startswith("LoRA")]
    if adapted:
        told.append(f"- parts with adapters: {listed(adapted)}")
    if isinstance(adapter.get("target_modules"), str):
        layers = sorted({name.rpartition("\\.")[2] or name for name in adapter["target_modules"].split("|")})
        told.append(f"- layers with adapters: {listed(layers)}")
    if full:
        told.append(f"- trained in full and saved with it: {listed(full)}")
    stored = read_settings(facts.folder / BASE_FILE).get("sha256")
    hashes = stored if isinstance(stored, dict) else {}
    text = "\n".join(told)
    if hashes:
        rows = [[role, f"`{sha256}`"] for role, sha256 in hashes.items()]
        text += "\n\nIt belongs to these weights of the base and no others; loading by transformers warns if they differ, `peft` "
        text += f"does not:\n\n{course.table(['part', 'SHA-256 of its weights, rounded to bfloat16'], rows)}"
    if facts.report is not None:
        rows = [
            [
                part.name,
                f"`{part.source}`" if part.source else "new",
                (part.license or "not recorded") if part.source else "-",
            ]
            for part in facts.report.parts
        ]
        text += f"\n\nThe base is made of:\n\n{course.table(['part', 'weights from', 'licence'], rows)}"
    return text


def _training(facts: Facts, drawn: Path) -> str:
    told = ["## Training"]
    if facts.state:
        versions = {
            "hf-vlm": facts.config.get(VERSION_KEY) if facts.adapter is None else None,
            "transformers": facts.config.get("transformers_version") if facts.adapter is None else None,
            "peft": facts.adapter.get("peft_version") if facts.adapter is not None else None,
        }
        saved_by = {key: str(version) for key, version in versions.items() if version}
        told.append(course.tell_course(facts.sections, facts.state, saved_by, facts.environment))
        if curves := plot_curves(facts, drawn):
            told.append(f"![Loss by step]({curves})")
    else:
        told.append(_NOT_RECORDED)
    if facts.sections:
        told.append(
            "Settings of the recipe that are not its defaults:\n\n```yaml\n"
            + course.tell_settings(facts.folder / RECIPE_FILE)
            + "\n```"
        )
    return "\n\n".join(told)


def write_figures(facts: Facts, weights: str, old: str | None, header: ModelCardData, before: ModelCard | None) -> str:
    """Measurements: those given, or those of the old card where the weights are still the same; into the header too."""
    told = ["## Figures"]
    if facts.records:
        told += [f"<!-- of weights {weights} -->", figures.figures(facts.records)]
    elif old is not None and (place := find_sections(old).get("figures")) is not None:
        section = old[place[0] : place[1]]
        mark = _WEIGHTS_MARK.search(section)
        if mark is None and facts.brings_code and not facts.state:  # of the validation in the run that stayed behind
            return inner_text(old, place)
        if mark is not None and mark[1] == weights:
            if before is not None and before.data.get("eval_results"):
                header["eval_results"], header["model_name"] = before.data["eval_results"], facts.name
            return inner_text(old, place)
        if mark is not None:
            header["metrics"] = None
            warnings.warn(
                "The figures of the old card are of other weights, and were taken out. Measure again by `hf-vlm "
                f"evaluate {figures.record_option(facts.task)}`, and give the file as `records`.",
                stacklevel=3,
            )
    if facts.state and (measured := course.validated(facts.sections, facts.state)):
        told.append(measured)
    if len(told) == 1:
        told.append(_NO_FIGURES)
    return "\n\n".join(told)


def _adapting(facts: Facts) -> str:
    name = shlex.quote(facts.name)
    recipes = facts.architecture.recipes
    chosen = recipes.get(facts.task) or next(iter(recipes.values()))
    if facts.adapter is not None:
        told = f"Merge it first (`{_merging(facts)}`), then go on with the whole model:"
        name = "MERGED"
    else:
        told = "With a folder of your own data, laid out as the recipe's header says:"
    commands = [f"hf-vlm train {chosen.replace('NAME', name)} data.folder=DATA"]
    if facts.model_type == "hf_vlm_llava":
        commands.append(f"hf-vlm train llava-chat-lora model.pretrained={name} data.folder=DATA    # a small adapter")
    return f"## Fine-tuning\n\n{told}\n\n```console\n" + "\n".join(commands) + "\n```"


def _license(header: ModelCardData, licenses: Mapping[str, str]) -> str:
    own = header["license"]
    told = f"`{own}`" if own != OTHER else f"[{header['license_name']}]({header['license_link']})"
    text = f"## Licence\n\nThe weights are published under {told}."
    if licenses and not any(licenses.values()):
        text += f" The licences of what they are made of ({listed(licenses)}) are not recorded: look them up before you publish."
    elif licenses:
        text += " They are made of weights under: " + "; ".join(
            f"{role}: {license or 'not recorded'}" for role, license in licenses.items()
        )
        text += ". What these licences ask for, such as keeping their notices, holds for the whole."
    return text
