"""What an export begins with: a whole model of ours, with its processor and its licence."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedModel

from hf_vlm.parts.checkpoint_files import find_file, read_config
from hf_vlm.parts.model_class import model_class

_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")


def own_model_type(folder: str | os.PathLike, instead: str) -> str:
    """The model type of a folder or Hub name, if it is of a whole model of ours.

    Args:
        instead: what to do with a model of another package, a sentence.

    Raises:
        ValueError: if it is an adapter's or another package's.
        FileNotFoundError: if there is none.
    """
    if find_file(folder, "adapter_config.json") is not None and find_file(folder, "config.json") is None:
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
    """The processor or image processor beside a model; None where there is none."""
    for file, loader in (("processor_config.json", AutoProcessor), ("preprocessor_config.json", AutoImageProcessor)):
        if find_file(folder, file) is not None:
            return loader.from_pretrained(folder)
    return None


def copy_licence(folder: str | os.PathLike, out: Path) -> None:
    """Take licence and notice of a model along with what is made of it."""
    for name in _LICENCE_FILES:
        file = find_file(folder, name)
        if file is not None:
            shutil.copyfile(file, out / name)
