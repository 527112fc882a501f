"""A projector by itself: what the first phase learnt, in one light file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

PROJECTOR_FILE = "projector.safetensors"
_PREFIX = "projector."
_SECTIONS = {"vision": "vision_config", "language": "text_config"}


def save_projector(model: Any, folder: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write `projector.safetensors` of a LLaVA into a folder that exists, and give back its path.

    Args:
        weights: of the whole model by name, where those that it holds are split over processes.
    """
    path = Path(folder) / PROJECTOR_FILE
    if weights is None:
        own = model.projector.state_dict()
    else:
        own = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    metadata = {
        "format": "pt",
        **{part: getattr(model.config, section).model_type for part, section in _SECTIONS.items()},
        "vision_feature_layer": str(model.config.vision_feature_layer),
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
    }
    save_file(own, path, metadata=metadata)
    return path


def load_projector(model: Any, path: str | Path) -> None:
    """Put a saved projector into a model of the same parts.

    Args:
        path: the file, or the folder that has it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of other parts, or damaged.
    """
    file = Path(path) / PROJECTOR_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"A projector is wanted in `{path}`, got no file `{PROJECTOR_FILE}`. Name the file.")
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}
    except SafetensorError as error:
        raise ValueError(f"`{file}` must be a whole safetensors file, got {error}. Copy it again.") from error
    own = model.projector.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if wrong := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        raise ValueError(
            f"A projector with `{wrong[0]}` of shape {wanted.get(wrong[0])} is wanted, got {shapes.get(wrong[0])} in `{file}`. "
            "Take the one that was trained with these parts and this `num_linear_layers`."
        )
    for part in ("vision", "language"):
        own_type = getattr(model.config, _SECTIONS[part]).model_type
        if metadata.get(part, own_type) != own_type:
            raise ValueError(
                f"A projector between the parts that it was trained with is wanted, got one of `{metadata[part]}` in `{file}` "
                f"for a model of `{own_type}`. Take the one of this model's parts."
            )
    layer = str(model.config.vision_feature_layer)
    if metadata.get("vision_feature_layer", layer) != layer:
        raise ValueError(
            f"A projector reads the layer that it was trained on, got one of layer {metadata['vision_feature_layer']} in "
            f"`{file}` for a model that shows layer {layer}. Set `vision_feature_layer` alike."
        )
    strategy = model.config.vision_feature_select_strategy
    if metadata.get("vision_feature_select_strategy", strategy) != strategy:
        raise ValueError(
            "A projector reads the tokens that it was trained on, got one of "
            f"{metadata['vision_feature_select_strategy']!r} in `{file}` for a model that shows {strategy!r}. Set "
            "`vision_feature_select_strategy` alike."
        )
    with torch.no_grad():
        model.projector.load_state_dict(weights)
