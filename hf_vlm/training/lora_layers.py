"""Which layers get LoRA adapters: parts by role, and the layers of a part that peft can adapt.

| layer                                              | adapters                                                         |
|----------------------------------------------------|------------------------------------------------------------------|
| linear, fused query-key-value and GPT-2's too      | yes, but the output layer of a language model                    |
| 2-D convolution                                    | in parts without linear layers, or by name in `target_modules`   |
| 2-D convolution with groups, dilation, or another  | no: peft's adapter would not merge into it, or not compute the   |
| padding than zeros; one that changes its weights   | same once merged                                                 |
| layer that is read as a table, as a `DVAEModel`'s   | no: its adapter would be passed over                              |
| decoder reads its codewords                        |                                                                   |
| transposed convolution                             | no: peft has none                                                |
| LSTM                                               | no: peft has none; around it the word table and the output layer |
|                                                    | get adapters, which other parts leave alone                      |
| norms, tables of positions, learned tokens         | no; a small part may train in full (`train`)                     |

So an adapted decoder of a `VAEModel` or `VQVAEModel` leaves its upsampling as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_vlm.parts.base_weights import base_of, role_paths
from hf_vlm.training.recipe_files import listed

_PADDING_CONVOLUTIONS = ("Conv2dSame",)  # of timm: they pad their input and use their weights as they are


@dataclass(kw_only=True)
class LoraSection:
    """Adapters, and what trains in full beside them. The numbers are LLaVA-1.5's (its `finetune_lora.sh`).

    LLaVA-1.5 trains them at a learning rate of 2e-4, the projector beside them at 2e-5.

    Attributes:
        rank: columns of B and rows of A.
        alpha: their product counts `alpha / rank`.
        dropout: share of an adapter's inputs left out in training, in [0, 1).
        roles: parts that get adapters, by the names in the model class's `part_paths`, such as `language`, `vision` and
            `projector` of a LLaVA; None means the part that writes (`language`, or `decoder` beside `vision`), of a model
            without one its `encoder`.
        train: parts that train in full and are saved with the adapter; None means the projector of a LLaVA and the heads of
            a vision model, where they are not among `roles`.
        target_modules: names of the layers within `roles` that get an adapter, such as `q_proj` or `self_attn.q_proj`; None
            means all that the module's table names.
        quantization: `nf4` keeps the frozen weights of the part that writes in four bits (QLoRA), on a GPU.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    roles: list[str] | None = None
    train: list[str] | None = None
    target_modules: list[str] | None = None
    quantization: Literal["none", "nf4"] = "none"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`lora.rank` must be 1 or more, got {self.rank}. LLaVA-1.5's is 128.")
        if self.alpha <= 0:
            raise ValueError(f"`lora.alpha` must be above 0, got {self.alpha}. LLaVA-1.5's is 256, twice its rank.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`lora.dropout` must be in [0, 1), got {self.dropout}. LLaVA-1.5's is 0.05.")
        if self.roles is not None and not self.roles:
            raise ValueError(
                "`lora.roles` wants a part that gets adapters, got none. Set it to null for the usual one."
            )
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("`lora.target_modules` wants names of layers, got none. Set it to null for all.")
        if both := sorted(set(self.roles or ()) & set(self.train or ())):
            raise ValueError(
                f"A part has adapters or trains in full, got `{both[0]}` in `lora.roles` and among the parts that train in "
                "full. Take it out of one."
            )

    def settled(self, model: nn.Module) -> "LoraSection":
        """The section with `roles` and `train` written out for a model, with or without adapters.

        Raises:
            ValueError: if the model has no part that is usually adapted.
        """
        base, paths = base_of(model), role_paths(model)
        usual = ("language", "decoder", "encoder") if "vision" in paths else ("language", "encoder")
        roles = self.roles if self.roles is not None else [role for role in usual if role in paths][:1]
        if not roles:
            raise ValueError(f"`lora.roles` must name parts of the model, {listed(paths)}, got none. Set it.")
        train = self.train
        if train is None:
            beside = [role for role in getattr(base, "heads", None) or () if role in paths]
            beside += ["projector"] if "language" in paths else []
            train = [
                role
                for role in beside
                if role in paths
                and role not in roles
                and not isinstance(base.get_submodule(paths[role]), nn.ModuleDict)
            ]
        return replace(self, roles=list(roles), train=list(train))


def path_of(paths: Mapping[str, str], role: str, setting: str) -> str:
    """The path of a part.

    Raises:
        ValueError: if the model has none of that role; the message names `lora.<setting>` and the roles that it has.
    """
    if role not in paths:
        raise ValueError(f"`lora.{setting}` must name parts of the model, {listed(paths)}, got `{role}`. Correct it.")
    return paths[role]


def target_layers(model: PreTrainedModel, section: LoraSection) -> list[str]:
    """Full paths of the layers that get an adapter, in the model's order.

    Raises:
        ValueError: if a role is not one of the model's, has no layer that peft can adapt, or a name of `target_modules` is
            none of them; the message says what can't be adapted and why.
    """
    section, paths = section.settled(model), role_paths(model)
    output_layer = model.get_output_embeddings()
    names = section.target_modules
    found: list[str] = []
    known: set[str] = set()
    faults: dict[str, str] = {}
    for role in section.roles or ():
        path = path_of(paths, role, "roles")
        part = model.get_submodule(path)
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in part.modules())
        able: dict[str, nn.Module] = {}
        for inner, layer in part.named_modules():
            name = f"{path}.{inner}".strip(".")
            reason = why_not(model, name, layer) if name else None
            if reason:
                faults[name] = reason
            is_word_layer = isinstance(layer, nn.Embedding) or layer is output_layer
            if is_recurrent if is_word_layer else reason == "":
                able[name] = layer
        linear = [name for name, layer in able.items() if not isinstance(layer, nn.Conv2d)]
        usual = linear or list(able)
        if not usual:
            told = f": {_told(faults)}" if faults else ""
            raise ValueError(
                f"A part with linear layers or convolutions is wanted in `lora.roles`, got `{role}`, which has none{told}. "
                "Name another."
            )
        known |= {name.rpartition(".")[2] for name in usual}
        found += usual if names is None else [name for name in able if _is_named(name, names)]
    for name in names or ():
        if not any(_is_named(layer, [name]) for layer in found):
            cannot = {layer: reason for layer, reason in faults.items() if _is_named(layer, [name])}
            raise ValueError(
                f"`lora.target_modules` must name linear layers of {listed(section.roles or ())}: {listed(sorted(known))}; got "
                f"`{name}`{f', {_told(cannot)}' if cannot else ''}. Correct it, or set it to null for all."
            )
    return found


def _is_named(layer: str, names: list[str]) -> bool:
    return any(f".{layer}".endswith(f".{name}") for name in names)


def _told(faults: Mapping[str, str]) -> str:
    name, reason = next(iter(faults.items()))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"`{name}` {reason}{more}"


def why_not(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Why peft can't adapt a layer; "" if it can, None for a module without weights that its input is multiplied by.

    Args:
        model: the layer's.
        name: its path there.
    """
    if name in getattr(model, "read_layers", ()):
        return "is read as a table without being called"
    if isinstance(layer, nn.Linear | Conv1D):  # torch's own attention reads its output layer's weights without a call
        parent = model.get_submodule(name.rpartition(".")[0])
        return "is read by torch's attention without being called" if isinstance(parent, nn.MultiheadAttention) else ""
    if isinstance(layer, nn.Conv2d):
        if type(layer) is not nn.Conv2d and type(layer).__name__ not in _PADDING_CONVOLUTIONS:
            return f"is a `{type(layer).__name__}`, which may change its weights before it uses them"
        if layer.groups > 1:
            return f"has {layer.groups} groups, into which an adapter can't be merged"
        if any(step != 1 for step in layer.dilation) or layer.padding_mode != "zeros":
            return "has dilation or a padding other than zeros, which adapters don't follow"
        return ""
    if isinstance(layer, nn.modules.conv._ConvNd | nn.RNNBase | nn.RNNCellBase):
        return f"is a `{type(layer).__name__}`, which peft has no adapter for"
    return None


def exact_pattern(model: nn.Module, layers: list[str]) -> str:
    r"""A regular expression that these modules' full paths match and no other module's.

    Layers that differ in their number alone share an alternative: `language_model\.model\.layers\.\d+\.mlp\.up_proj`.
    """
    shapes = [r"\.".join(r"\d+" if word.isdigit() else re.escape(word) for word in name.split(".")) for name in layers]
    pattern = "|".join(dict.fromkeys(shapes))
    matched = {name for name, _ in model.named_modules(remove_duplicate=False) if re.fullmatch(pattern, name)}
    return pattern if matched == set(layers) else "|".join(re.escape(name) for name in layers)
