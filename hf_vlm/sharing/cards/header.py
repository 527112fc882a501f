"""The header of a card, which the Hub reads: licence, what the model was made of, what it is filed under, results.

Source: the Hub's fields, https://huggingface.co/docs/hub/model-cards
"""

import os
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_vlm.parts.licences import known_licence, read_merge_record
from hf_vlm.parts.model_origin import is_way
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.weight_report import card_metadata, stated_license
from hf_vlm.sharing.cards import architectures
from hf_vlm.sharing.cards import records as figures
from hf_vlm.sharing.cards import run as course
from hf_vlm.sharing.cards.facts import HUB_ID, Facts, is_hub_id
from hf_vlm.sharing.cards.licenses import OTHER, covers, settle_license


def settle_header(
    facts: Facts,
    old: ModelCard | None,
    license: str | None,
    license_name: str | None,
    license_link: str | None,
) -> tuple[ModelCardData, dict[str, str]]:
    """The card's header, and the parts' licences."""
    licenses = _part_licenses(facts)
    before = old.data.to_dict() if old is not None else {}
    before.pop("model-index", None)
    named = before.get("base_model")
    if any(is_way(name) for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)):
        # A folder, as PEFT writes it, where the Hub wants its own names.
        before["base_model"] = before["base_model_relation"] = None
    beside = card_metadata(facts.folder)
    terms = before if before.get("license") else beside
    wanted = license or terms.get("license")
    settled = settle_license(wanted if isinstance(wanted, str) else None, licenses)
    if (stated := stated_license(beside)) and settled != OTHER and not covers(settled, stated):
        raise ValueError(
            f"A licence must not allow more than the card that lies beside the weights says, {stated}, got `{settled}`. Take "
            "that licence; if you are the author and the card is wrong, correct `license` in its header."
        )
    if settled == OTHER:
        license_name = license_name or terms.get("license_name")
        license_link = (
            license_link or terms.get("license_link") or ("LICENSE" if (facts.folder / "LICENSE").is_file() else None)
        )
        if not license_name or not license_link:
            raise ValueError(
                f"The licence `other` wants a name and a link to its text, got {license_name!r} and {license_link!r}. Give "
                "`license_name` (`--license-name`) and `license_link` (`--license-link`), or put a file LICENSE into the folder."
            )
    elif license_name or license_link:
        raise ValueError(
            f"`license_name` and `license_link` are for the licence `other`, got them with `{settled}`. Leave them out."
        )
    else:
        license_name = license_link = None
    base_model, relation = _base_models(facts)
    is_adapter = facts.adapter is not None
    tags = [
        "hf-vlm",
        *facts.architecture.tags,
        *([facts.task] if facts.task else []),
        *(["lora", "peft"] if is_adapter else []),
    ]
    old_tags = [
        tag for tag in before.get("tags") or () if tag not in ("transformers",) and not tag.startswith("base_model:")
    ]
    results = figures.eval_results(facts.records)
    new: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "license": settled,
        "license_name": license_name,
        "license_link": license_link,
        "language": before.get("language") or course.data_languages(facts.sections) or None,
        "pipeline_tag": architectures.pipeline_tag(facts.model_type, facts.class_name, facts.task),
        "tags": list(dict.fromkeys([*tags, *old_tags])),
        "base_model": base_model or before.get("base_model"),
        "base_model_relation": relation if base_model else before.get("base_model_relation"),
        "datasets": before.get("datasets"),
        "metrics": figures.hub_metrics(facts.records) or before.get("metrics"),
        "model_name": facts.name,
        "eval_results": results or None,
    }
    return ModelCardData(**new, **{key: value for key, value in before.items() if key not in new}), licenses


def _part_licenses(facts: Facts) -> dict[str, str]:
    """Role -> the licence of what its weights came from; of an adapter, a merge and a run that went on, also the base's."""
    licenses = {part.name: part.license for part in facts.report.parts if part.source} if facts.report else {}
    merged = read_merge_record(facts.folder) if facts.adapter is None else {}
    if facts.base:
        place = os.fspath(default_ocr_model()) if facts.base == "default" else facts.base
        stated = merged.get("base", {}).get("license") or known_licence(
            place
        )  # the way there may lead elsewhere by now
        if stated or not licenses:
            licenses["base"] = stated
    if of_adapter := merged.get("adapter", {}).get("license"):
        licenses["adapter"] = of_adapter
    return licenses


def _base_models(facts: Facts) -> tuple[str | list[str] | None, str | None]:
    """Hub names of what a model was made of, and how."""
    if facts.adapter is not None:
        return (facts.base, "adapter") if is_hub_id(facts.base) else (None, None)
    if facts.base and is_hub_id(facts.base):
        return facts.base, "finetune"
    names = [part.source for part in facts.report.parts if HUB_ID.fullmatch(part.source)] if facts.report else []
    names = list(dict.fromkeys(names))
    if not names:
        return None, None
    return (names if len(names) > 1 else names[0]), ("merge" if len(names) > 1 and not facts.state else "finetune")
