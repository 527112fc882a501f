"""What a measurement depends on, whatever was measured: model and its weights, data, settings, versions, machine, command."""

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

_PACKAGES = ("hf-vlm", "transformers", "torch", "peft", "sacrebleu", "jiwer")


def describe_measurement(
    model: Any, name: str, data: str, settings: Mapping[str, Any], weights_sha256: str
) -> dict[str, Any]:
    """What a score depends on, for its record.

    Args:
        model: as it is measured.
        name: folder or Hub name that it was loaded from.
        data: folder.
        settings: of the measurement, such as `split`.
        weights_sha256: hash of the model's `state_dict()`, which is the same for every folder.
    """
    return {
        "data": data,
        "model": name,
        "weights_sha256": weights_sha256,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **settings,
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "command": " ".join(sys.argv),
    }


def decoding_of(model: Any, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `generate` that a model answers or reads with: its own, and over them those that are given."""
    config = model.generation_config.to_diff_dict()
    config.pop("transformers_version", None)
    if hasattr(model.config, "image_token_id"):  # a chat
        config["do_sample"] = False
    return {**config, **generation}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
