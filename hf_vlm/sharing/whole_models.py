"""What an export begins with: a whole model of ours, its processor, and which files are theirs."""

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_vlm.parts.checkpoint_files import find_file, read_config, read_json
from hf_vlm.parts.model_class import model_class
from hf_vlm.parts.vision_features import configured_image_size

# Files that belong to a model; what a training run leaves beside it stays behind.
MODEL_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("README.md", "LICENSE*", "NOTICE*", "weight_report.json", "merged_from.json"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg"),
)


def own_model_type(folder: str | os.PathLike, instead: str) -> str:
    """The model type of a folder or Hub name, if it is of a whole model of ours.

    Args:
        instead: what to do with a model of another package, a sentence.

    Raises:
        ValueError: if it is an adapter's or another package's.
        FileNotFoundError: if there is none.
    """
    if find_file(folder, "config.json") is None and find_file(folder, "adapter_config.json") is not None:
        raise ValueError(
            f"A whole model is wanted, got an adapter in {folder}. Merge it first: `hf-vlm merge {folder} --out MERGED`."
        )
    model_type = str(read_config(folder).get("model_type"))
    if not model_type.startswith("hf_vlm_"):
        raise ValueError(
            f"A folder of this package is wanted, whose model type begins with `hf_vlm_`, got `{model_type}` in {folder}. "
            f"{instead}"
        )
    return model_type


def load_whole(folder: str | os.PathLike) -> PreTrainedModel:
    """A model with the head that its folder was saved with, in its stored dtype, on the CPU."""
    model: Any = model_class(AutoConfig.from_pretrained(folder))
    return model.from_pretrained(folder).eval()


def load_processor(folder: str | os.PathLike) -> Any:
    """The processor or image processor beside a model; None where there is none.

    Raises:
        ValueError: if its file is damaged, or it is of another kind of model.
    """
    for name, loader in (("processor_config.json", AutoProcessor), ("preprocessor_config.json", AutoImageProcessor)):
        if (file := find_file(folder, name)) is not None:
            read_json(file)  # the loaders don't name a file that is damaged
            processor = loader.from_pretrained(folder)
            _check_kind(processor, AutoConfig.from_pretrained(folder), file)
            return processor
    return None


def files_of_model(folder: Path, also: Iterable[str] = ()) -> list[Path]:
    """What belongs to a folder's model, relative to the folder.

    Args:
        also: further patterns of names, besides `MODEL_FILES`; a `/` in a name wants one in its pattern.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if any(_matches(path.as_posix(), pattern) for pattern in (*MODEL_FILES, *also))]


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _check_kind(processor: Any, config: PreTrainedConfig, file: Path) -> None:
    """Raises ValueError if a processor is not one that serves the model of a config."""
    own = PROCESSOR_MAPPING.get(type(config), None)
    if not isinstance(processor, own or BaseImageProcessor):
        kind = "an image processor" if own is None else f"a `{own.__name__}`"
        raise ValueError(
            f"`{file}` of a `{config.model_type}` must hold the settings of {kind}, got those of a "
            f"`{type(processor).__name__}`. Save the model's own processor there, or take the file away."
        )
    vision: Any = config if own is None else getattr(config, "vision_config", None)
    images = processor if own is None else getattr(processor, "image_processor", None)
    served = _served_kinds(images)
    if vision is not None and served and _kind(vision.model_type) not in served:
        raise ValueError(
            f"`{file}` must hold the settings of an image processor for `{vision.model_type}`, got those of a "
            f"`{type(images).__name__}`. Save the model's own processor there, or take the file away."
        )


def _served_kinds(image_processor: Any) -> set[str]:
    """The kinds of models that an image processor of ours is for; empty for one of transformers, which may be for any."""
    found = type(image_processor)
    return {
        _kind(config_class.model_type)
        for config_class, by_backend in IMAGE_PROCESSOR_MAPPING._extra_content.items()
        if found.__module__.startswith("hf_vlm.") and isinstance(by_backend, dict) and found in by_backend.values()
    }


def _kind(model_type: str) -> str:
    """One name for the models that take each other's pictures; autoencoders, which give pictures back, have each their own."""
    return model_type if model_type in ("hf_vlm_vae", "hf_vlm_vqvae", "hf_vlm_dvae") else "vision encoder"


def picture_size_notes(processor: Any, model: Any) -> list[str]:
    """A note where a processor makes pictures of one size, and the model was configured for another."""
    images = getattr(processor, "image_processor", processor)
    size: Any = getattr(images, "crop_size" if getattr(images, "do_center_crop", False) else "size", None)
    made = (getattr(size, "height", None), getattr(size, "width", None))
    config = model.config
    if getattr(config, "image_size", None) is None:
        config = getattr(config, "vision_config", None)
    if None in made or getattr(config, "image_size", None) is None or getattr(images, "keep_aspect_ratio", False):
        return []
    wanted = configured_image_size(config)
    if made == wanted:
        return []
    return [
        f"the processor makes pictures of {made[0]} x {made[1]} pixels, and the model is configured for {wanted[0]} x "
        f"{wanted[1]}: it wants `interpolate_pos_encoding=True` with them, or a processor of its size"
    ]
