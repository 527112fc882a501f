"""Which parameters decay, and how fast each layer learns."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """An optimizer's groups: `params`, `lr` and `weight_decay`; the highest learning rate first.

    Weight decay is for matrices and kernels, parameters named `weight` of two axes or more. Biases, norms, embedding and
    position tables, tables of relative positions and learned tokens get none.

    Args:
        model: of transformers, with its layers' class names in `_no_split_modules` where `layer_decay` is below 1.
        layer_decay: factor from one layer to the one before, in (0, 1]: a parameter of depth d (see `parameter_depths`)
            learns at `learning_rate * layer_decay ** (num_layers + 1 - d)`.

    Raises:
        ValueError: if layers are to differ and the model doesn't name any.

    Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254, and its code; Liu et al. 2021 (Swin),
        https://arxiv.org/abs/2103.14030, section A2.1 for what does not decay.
    """
    depths, num_layers = parameter_depths(model)
    if layer_decay != 1 and not num_layers:
        raise ValueError(
            f"`layer_decay` wants a model that names its layers in `_no_split_modules`, got `{type(model).__name__}`, "
            "which has none. Set it to 1."
        )
    decayed = _decayed_names(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths[name] if layer_decay != 1 else num_layers + 1
        key = (-depth, name not in decayed)
        if key not in groups:
            groups[key] = {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_layers + 1 - depth),
                "weight_decay": weight_decay if name in decayed else 0.0,
            }
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def part_groups(
    model: nn.Module, parts: Mapping[str, str], rates: Mapping[str, float], *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups by part: `params`, `lr` and `weight_decay`, as of `parameter_groups`; the highest rate first.

    Args:
        parts: part -> the path of its module.
        rates: learning rate by part, where it is not `learning_rate`.
    """
    decayed = _decayed_names(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = next((part for part, path in parts.items() if f".{path}." in f".{name}"), None)
        rate = rates.get(part, learning_rate) if part is not None else learning_rate
        key = (-rate, name not in decayed)
        if key not in groups:
            groups[key] = {"params": [], "lr": rate, "weight_decay": weight_decay if name in decayed else 0.0}
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def parameter_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """Each parameter's depth by name, and how many layers there are: the modules of a class in `_no_split_modules` that
    stand in a list, the outermost only.

    What comes before the first layer has depth 0, that of layer i, from 0, has i + 1, what follows the last has
    num_layers + 1. What stands between two layers belongs to the first of them, as Swin's patch merging does, and the
    entries of a list beside that of the layers, as long as it, to one each, as BEiT's tables of relative positions do.
    """
    classes = set(getattr(model, "_no_split_modules", None) or ())
    layers: list[str] = []
    for name, module in model.named_modules():
        in_list = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList | nn.Sequential)
        is_inside = any(name.startswith(f"{layer}.") for layer in layers)
        if type(module).__name__ in classes and in_list and not is_inside:
            layers.append(name)
    num_layers = len(layers)
    of_layers = {name: depth for depth, name in enumerate(layers, start=1)}
    beside = layers[0].split(".")[:-2] if layers else []  # where the list of layers hangs
    for name, module in model.named_modules():
        is_beside = name.split(".")[:-1] == beside
        if is_beside and isinstance(module, nn.ModuleList) and len(module) == num_layers:
            of_layers |= {f"{name}.{index}": index + 1 for index in range(num_layers)}
    depths = {}
    passed = 0  # layers so far, in the order of the model's modules
    for module_name, module in model.named_modules():
        of_module = next((of_layers[part] for part in _paths(module_name) if part in of_layers), None)
        if module_name in layers:
            passed = of_layers[module_name]
        depth = of_module if of_module is not None else (passed if passed < num_layers else num_layers + 1)
        for name, _ in module.named_parameters(prefix=module_name, recurse=False):
            depths[name] = depth
    return depths, num_layers


def _paths(name: str) -> list[str]:
    """`a.b.c` and all that it is inside of, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _decayed_names(model: nn.Module) -> set[str]:
    return {
        name
        for module_name, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False)
        if parameter.ndim >= 2 and name.endswith("weight")
    }
