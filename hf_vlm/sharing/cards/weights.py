"""The weights that a card is of: their size, and hashes that tell whether they are those that were measured or reported."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModel

from hf_vlm.parts.checkpoint_files import read_config, read_weights
from hf_vlm.parts.model_saving import split_by_part
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from hf_vlm.sharing.cards import architectures
from hf_vlm.sharing.cards.facts import Facts
from hf_vlm.training.scores.image_evaluation import load_classifier
from hf_vlm.training.scores.task_evaluation import load_answerer
from hf_vlm.training.scores.tokenizer_evaluation import load_tokenizer


def weights_hash(folder: Path) -> str:
    """SHA-256 of the tensors as they are in the files."""
    file = folder / "adapter_model.safetensors"
    try:
        return hash_weights(read_weights(folder) if (folder / "config.json").is_file() else _tensors(file))
    except FileNotFoundError as error:
        raise ValueError(
            f"The weights of a model are wanted in {folder}, got none ({error}) Name another folder."
        ) from error


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"`{file.name}` is missing.")
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)


def num_values(folder: Path) -> int:
    """Numbers in the weight files, tied ones once."""
    number = 0
    for file in _weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                number += torch.Size(tensors.get_slice(name).get_shape()).numel()
    return number


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if file.name != "projector.safetensors")


def measured_hash(facts: Facts) -> str | None:
    """SHA-256 of the weights as `hf-vlm evaluate` takes it; None where they can't be loaded, as an adapter without its base."""
    task = next(record.task for record in facts.records if record.weights_sha256)
    folder = os.fspath(facts.folder)
    loaders = {"image-classification": load_classifier, "image-tokenization": load_tokenizer}
    try:
        model, _ = loaders[task](folder) if task in loaders else load_answerer(folder, task)
    except (OSError, ValueError):
        return None
    return hash_weights(model.state_dict())


def changed_parts(folder: str | os.PathLike) -> list[str]:
    """The parts of a model whose weights are not those that its `weight_report.json` describes, by their hashes.

    Args:
        folder: of a model of ours with a report.

    Raises:
        FileNotFoundError: if there is no report, or no weights.
        ValueError: if the model is none of ours.
    """
    report = WeightReport.load(folder)
    model_type = read_config(folder).get("model_type")
    if model_type not in architectures.ARCHITECTURES:
        raise ValueError(
            f"A model of hf-vlm is wanted, got `{model_type}` in {os.fspath(folder)}. Its report can't be checked "
            f"by other models."
        )
    model_class = AutoModel._model_mapping[CONFIG_MAPPING[model_type]]
    return report.changed(split_by_part(read_weights(folder), model_class.part_paths))
