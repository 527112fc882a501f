"""What the model in a folder can be tried with: told by its config, card and recipe; no weights are loaded."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)

from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig
from hf_vlm.models.vae.configuration_vae import VAEConfig
from hf_vlm.models.vqvae.configuration_vqvae import VQVAEConfig
from hf_vlm.parts.adapter_loading import base_of_adapter
from hf_vlm.parts.checkpoint_files import find_file, naming_faults, read_config, read_json


class Ability(StrEnum):
    """What a model is tried with, in the order of the page's tabs."""

    READ = "Read"
    CAPTION = "Caption"
    ASK = "Ask"
    CHAT = "Chat"
    TOKENS = "Tokens"
    LATENTS = "Latents"
    CLASSIFY = "Classify"
    ATTENTION = "Attention"


# What a TrOCR reads, describes or answers lies in what it learnt: tags of its card, or the task of its recipe.
_OF_TASK = {"ocr": Ability.READ, "caption": Ability.CAPTION, "vqa": Ability.ASK}


@dataclass(frozen=True)
class DemoFolder:
    """A model on the page.

    Attributes:
        name: the folder's own name, or the Hub name; the whole path where two have one name.
        source: folder or Hub name, as it is loaded.
        ability: what it is for; `ATTENTION` of a model that is tried with nothing else.
        has_attention: whether what it looks at can be asked for.
        card: its README.md; None if it has none.
        adapter_of: the base, of an adapter.
    """

    name: str
    source: str
    ability: Ability
    has_attention: bool
    card: Path | None = None
    adapter_of: str | None = None

    def does(self, ability: Ability) -> bool:
        """Whether it has a place in this tab."""
        return self.ability == ability or (ability == Ability.ATTENTION and self.has_attention)


def look_at_folders(folders: Iterable[str | os.PathLike]) -> list[DemoFolder]:
    """The models of the page, each once, in the given order.

    Args:
        folders: folders or Hub names of models and adapters.

    Raises:
        OSError: if one is not there.
        ValueError: if there is none, or one holds no model that the page has a tab for.
    """
    sources = list(dict.fromkeys(os.fspath(folder).rstrip("/") or "/" for folder in folders))
    if not sources:
        raise ValueError("A folder of a model to try is wanted, got none. Name one or several.")
    for source in sources:
        if source.startswith(("/", ".", "~")) and not Path(source).is_dir():  # no name of the Hub
            raise FileNotFoundError(
                f"A folder of a model is wanted, got {source}, which is not there. Check the spelling."
            )
    names = [Path(source).resolve().name if Path(source).is_dir() else source for source in sources]
    return [
        _look_at(source, name if names.count(name) == 1 else source)
        for source, name in zip(sources, names, strict=True)
    ]


def _look_at(source: str, name: str) -> DemoFolder:
    base = base_of_adapter(source)
    ability = _ability(source, base)
    return DemoFolder(
        name,
        source,
        ability,
        has_attention=ability not in (Ability.TOKENS, Ability.LATENTS),
        card=find_file(source, "README.md"),
        adapter_of=base,
    )


def _ability(source: str, base: str | None) -> Ability:
    whole = base or source
    stored = read_config(whole)
    if stored.get("model_type") == "vision-encoder-decoder":
        decoder = stored.get("decoder") or {}  # microsoft/trocr-* read; others are mostly captioners
        likely = Ability.READ if decoder.get("model_type") == "trocr" else Ability.CAPTION
        return _OF_TASK.get(_learnt_task(source), likely)
    with naming_faults(whole):
        config = AutoConfig.from_pretrained(whole)
    if isinstance(config, TrOCREncoderDecoderConfig):
        return _OF_TASK.get(_learnt_task(source), Ability.READ)
    if isinstance(config, CnnLstmConfig):
        return Ability.CAPTION
    if isinstance(config, VQVAEConfig | DVAEConfig):
        return Ability.TOKENS
    if isinstance(config, VAEConfig):
        return Ability.LATENTS
    if isinstance(config, LlavaVisionLanguageConfig):
        return Ability.CHAT
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return Ability.CHAT if _has_chat_template(whole) else Ability.CAPTION
    if _is_classifier(config):
        return Ability.CLASSIFY
    if _sees(config):
        return Ability.ATTENTION
    raise ValueError(
        f"{source} must hold a model that reads, describes, answers, encodes or classifies pictures, got "
        f"`{config.model_type}`. Name another folder."
    )


def _is_classifier(config: PreTrainedConfig) -> bool:
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
    classes = classes if isinstance(classes, tuple) else (classes,)
    return bool({one.__name__ for one in classes} & set(config.architectures or ()))


def _sees(config: PreTrainedConfig) -> bool:
    """Whether it is a vision model, or one with a vision model in it."""
    vision = getattr(config, "vision_config", config)
    return type(vision) in MODEL_MAPPING and hasattr(vision, "image_size")


def _has_chat_template(source: str) -> bool:
    if any(find_file(source, file) for file in ("chat_template.jinja", "chat_template.json")):
        return True
    files = (find_file(source, file) for file in ("processor_config.json", "tokenizer_config.json"))
    return any(file is not None and bool(read_json(file).get("chat_template")) for file in files)


def _learnt_task(source: str) -> str:
    """The task that a model learnt, by its card or its run's recipe; "" if neither tells."""
    card = find_file(source, "README.md")
    tags = (_card_data(card).get("tags") or []) if card is not None else []
    if known := [tag for tag in tags if tag in _OF_TASK]:
        return known[0]
    recipe = find_file(source, "recipe.yaml")
    if recipe is None:
        return ""
    try:
        stored = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):  # tells nothing; the model itself may be whole
        return ""
    return str(stored.get("task", "ocr")) if isinstance(stored, Mapping) else ""


def _card_data(card: Path) -> dict[str, Any]:
    try:
        return ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError):
        return {}
