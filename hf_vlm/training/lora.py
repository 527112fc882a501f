"""LoRA: small matrices that train beside frozen ones, in parts chosen by role, saved as one plain PEFT folder.

A linear layer W of a part gets two matrices, B (out_features, rank) and A (rank, in_features), and computes
W x + alpha / rank * B A x. B starts at zero: an adapter that has learnt nothing changes nothing.

The folder is read by `peft.PeftModel.from_pretrained(base, folder)` and, where its base is found, by
`AutoModelForImageTextToText.from_pretrained(folder)`. It holds the adapter, the parts that trained in full beside it (the
projector), and in `base_weights.json` which weights it belongs to: on others it would say something else.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685; quantised base: Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314
"""

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_vlm.parts.base_weights import BASE_FILE, base_of, check_base, hash_parts, published_name, role_paths
from hf_vlm.parts.checkpoint_files import find_file, processor_source, read_config, read_tensors
from hf_vlm.training.recipe_files import listed

_QUANTIZED_ROLES = ("language", "decoder")  # the rest is small, or reads pixels
# Settings that an adapter's base may have otherwise: they change no output of the trained model.
_FREE_SETTINGS = ("_name_or_path", "architectures", "dtype", "label_smoothing", "transformers_version", "use_cache")


@dataclass(kw_only=True)
class LoraSection:
    """Adapters, and what trains in full beside them. The defaults are LLaVA-1.5's (its `finetune_lora.sh`).

    LLaVA-1.5 trains them at a learning rate of 2e-4, the projector beside them at 2e-5.

    Attributes:
        rank: columns of B and rows of A.
        alpha: their product counts `alpha / rank`.
        dropout: share of an adapter's inputs left out in training, in [0, 1).
        roles: parts that get adapters: `language`, `vision` or `projector` of a LLaVA, `vision` or `decoder` of a TrOCR.
        train: parts that train in full and are saved with the adapter.
        target_modules: names of the linear layers within `roles` that get an adapter, such as `q_proj` or
            `self_attn.q_proj`; None means every one but the output layer, as in LLaVA-1.5.
        quantization: `nf4` keeps the language model's frozen weights in four bits (QLoRA), on a GPU.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    roles: list[str] = field(default_factory=lambda: ["language"])
    train: list[str] = field(default_factory=lambda: ["projector"])
    target_modules: list[str] | None = None
    quantization: Literal["none", "nf4"] = "none"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`lora.rank` must be 1 or more, got {self.rank}. LLaVA-1.5's is 128.")
        if self.alpha <= 0:
            raise ValueError(f"`lora.alpha` must be above 0, got {self.alpha}. LLaVA-1.5's is 256, twice its rank.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`lora.dropout` must be in [0, 1), got {self.dropout}. LLaVA-1.5's is 0.05.")
        if not self.roles:
            raise ValueError("`lora.roles` wants a part that gets adapters, got none. Name `language`.")
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("`lora.target_modules` wants names of linear layers, got none. Set it to null for all.")
        if both := sorted(set(self.roles) & set(self.train)):
            raise ValueError(
                f"A part has adapters or trains in full, got `{both[0]}` in `lora.roles` and among the parts that train in "
                "full. Take it out of one."
            )


# Parts and their layers


def _path_of(paths: Mapping[str, str], role: str, setting: str) -> str:
    if role not in paths:
        raise ValueError(f"`lora.{setting}` must name parts of the model, {listed(paths)}, got `{role}`. Correct it.")
    return paths[role]


def target_layers(model: PreTrainedModel, section: LoraSection) -> list[str]:
    """Full paths of the linear layers that get an adapter, in the model's order; never the output layer.

    Raises:
        ValueError: if a role is not one of the model's, has no linear layer, or a name of `target_modules` is none of them.
    """
    paths = role_paths(model)
    output_layer = model.get_output_embeddings()
    names = section.target_modules
    found: list[str] = []
    for role in section.roles:
        path = _path_of(paths, role, "roles")
        layers = [f"{path}.{name}" for name, layer in _linear_layers(model.get_submodule(path), output_layer)]
        if not layers:
            raise ValueError(f"A part with linear layers is wanted in `lora.roles`, got `{role}`, which has none.")
        found += layers
    for name in names or ():
        if not any(layer.endswith(f".{name}") for layer in found):
            known = listed(sorted({layer.rpartition(".")[2] for layer in found}))
            raise ValueError(
                f"`lora.target_modules` must name linear layers of {listed(section.roles)}: {known}; got `{name}`. Correct "
                "it, or set it to null for all."
            )
    return [layer for layer in found if names is None or any(layer.endswith(f".{name}") for name in names)]


def _linear_layers(part: nn.Module, output_layer: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers that are called: torch's own attention reads the weights of its output layer without calling it."""
    for name, module in part.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is output_layer or not name:
            continue
        if not isinstance(part.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            yield name, module


def exact_pattern(model: nn.Module, layers: list[str]) -> str:
    r"""A regular expression that these modules' full paths match and no other module's.

    Layers that differ in their number alone share an alternative: `language_model\.model\.layers\.\d+\.mlp\.up_proj`.
    """
    shapes = [r"\.".join(r"\d+" if word.isdigit() else re.escape(word) for word in name.split(".")) for name in layers]
    pattern = "|".join(dict.fromkeys(shapes))
    matched = {name for name, _ in model.named_modules(remove_duplicate=False) if re.fullmatch(pattern, name)}
    return pattern if matched == set(layers) else "|".join(re.escape(name) for name in layers)


def lora_config(model: PreTrainedModel, section: LoraSection) -> LoraConfig:
    """PEFT's configuration for a model, its modules named by exact paths.

    Raises:
        ValueError: as `target_layers`; if a part in `train` is not one of the model's or is a whole model; or if PEFT, which
            goes by the ends of names, would take another module for it.
    """
    layers = target_layers(model, section)
    paths = role_paths(model)
    in_full = [_path_of(paths, part, "train") for part in section.train]
    for part, path in zip(section.train, in_full, strict=True):
        if isinstance(model.get_submodule(path), PreTrainedModel):
            raise ValueError(
                f"`lora.train` is for layers beside the adapted parts, such as `projector`, got `{part}`, a whole model. Put "
                "it into `lora.roles`, or train without LoRA."
            )
        if taken := [name for name, _ in model.named_modules() if name != path and name.endswith(path)]:
            raise ValueError(
                f"The name of `{part}`, `{path}`, must be its own, got a `{taken[0]}` too, which PEFT would take for it. "
                "Train without LoRA."
            )
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=exact_pattern(model, layers),
        modules_to_save=in_full or None,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )


# Training


def loading_arguments(section: LoraSection | None, base: str | os.PathLike) -> dict[str, Any]:
    """What `from_pretrained` of the base is called with besides its name: nothing, or how its weights are quantised.

    With `nf4` the language model's linear layers are kept in four bits and computed with in bfloat16; its output layer, the
    vision encoder and the projector are not quantised (Dettmers et al. 2023, section 3; LLaVA's `finetune_qlora.sh`).

    Args:
        base: folder or Hub name of a model in our layout.

    Raises:
        ValueError: if `nf4` is asked for and there is no GPU.
        ImportError: if bitsandbytes is missing.
    """
    if section is None or section.quantization == "none":
        return {}
    if not torch.cuda.is_available():
        raise ValueError("`lora.quantization: nf4` is for NVIDIA GPUs, got none. Set it to `none`, or train on one.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("`lora.quantization: nf4` wants bitsandbytes, got none. Run `pip install bitsandbytes`.")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base))
    output_layer = model.get_output_embeddings()
    kept = [path for role, path in role_paths(model).items() if role not in _QUANTIZED_ROLES]
    kept += [name for name, module in model.named_modules() if module is output_layer]
    return {
        "dtype": torch.bfloat16,
        "device_map": {"": torch.cuda.current_device()},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
        ),
    }


def add_lora(model: PreTrainedModel, section: LoraSection, base: str | os.PathLike | None = None) -> PeftModel:
    """The model with adapters, in place: they and the parts in `train` learn, all else is frozen.

    What learns is in float32 whatever the base is in; with a base in bfloat16 train under autocast (`bf16: true`).
    Adapters learn under gradient checkpointing of either kind: the embeddings of adapted parts ask for gradients.

    Args:
        model: made of parts, without adapters.
        base: folder or Hub name under which the adapter will find its base; where the model came from by default.

    Raises:
        ValueError: as `lora_config`; or if `base` could not be loaded as the model is: it has no name, another layout, or
            other settings.
    """
    config = lora_config(model, section)
    layers = target_layers(model, section)
    name = str(base or model.name_or_path)
    _check_settings(model, name)
    hashes = hash_parts(model, [role for role in role_paths(model) if role not in section.train])
    _set_name(model, published_name(name))
    adapted: Any = get_peft_model(model, config)
    wrapped = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert wrapped == set(layers), sorted(wrapped ^ set(layers))[:3]
    paths = role_paths(model)
    for part in section.train:
        for parameter in model.get_submodule(paths[part]).parameters():  # the copy that learns, and the base's
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()  # steps of 2e-5 would round to none
    for role in section.roles:
        adapted_part = model.get_submodule(paths[role])
        if isinstance(adapted_part, PreTrainedModel):
            adapted_part.enable_input_require_grads()
    adapted.base_hashes = hashes
    return adapted


def _check_settings(model: PreTrainedModel, base: str) -> None:
    """Checks that `base` is a folder or Hub name that loads as this model."""
    if not base:
        raise ValueError(
            "An adapter goes with a base that can be loaded, got a model that was made in memory. Save it with "
            "`save_pretrained` and pass its folder as `base`."
        )
    model_type = read_config(base).get("model_type")
    if model_type != model.config.model_type:
        raise ValueError(
            f"An adapter's base must be a `{model.config.model_type}` folder, got `{model_type}` in {published_name(base)}. "
            "Save the loaded model with `save_pretrained` and pass its folder as `base`."
        )
    stored, own = _settings(AutoConfig.from_pretrained(base).to_dict()), _settings(model.config.to_dict())
    if others := sorted(name for name in stored | own if stored.get(name) != own.get(name)):
        raise ValueError(
            f"An adapter's base must have the settings that it is trained with, got another `{others[0]}` in "
            f"{published_name(base)}. Save the changed model with `save_pretrained` and pass its folder as `base`."
        )


def _settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's settings by dotted names, those left out that any base may have."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            flat |= _settings(value, f"{prefix}{name}.")
        elif name not in _FREE_SETTINGS and name != "quantization_config":
            flat[prefix + name] = json.loads(json.dumps(value, default=str))  # tuples as a file has them
    return flat


def check_adapter_gradients(model: nn.Module, section: LoraSection) -> None:
    """Checks after a backward pass that every part with adapters, and every part in `train`, got a gradient.

    One value of a part is enough: in the first step A has none, as B is zero.

    Raises:
        ValueError: if a part has none, or is frozen.
    """
    base, paths = base_of(model), role_paths(model)
    left_out = []
    for part in (*section.roles, *section.train):
        trained = [
            value for value in base.get_submodule(_path_of(paths, part, "roles")).parameters() if value.requires_grad
        ]
        if not trained:
            left_out.append(f"`{part}`, which is frozen")
        elif not any(value.grad is not None and bool(value.grad.any()) for value in trained):
            left_out.append(f"`{part}`")
    if left_out:
        raise ValueError(
            f"A gradient is wanted in every part that trains, got none in {', '.join(left_out)}. Take it out of `lora.roles` "
            "and of the parts that train, or check that the forward pass uses it."
        )


# Files


def _set_name(model: Any, name: str) -> None:
    """PEFT's config is filled from the one, its card from the other."""
    model.name_or_path = name
    model.config.name_or_path = name


def save_adapter(
    adapted: PeftModel,
    folder: str | os.PathLike,
    base_folder: str | os.PathLike | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write adapter, card and `base_weights.json`, the hashes of the base that it belongs to.

    Args:
        adapted: what `add_lora` gave, or PEFT loaded.
        base_folder: folder or Hub name of the base, if it is to be found elsewhere than where it was loaded from. It must
            hold the same weights.
        state_dict: of the whole model by name, where those that it holds are split over processes; the base's hashes are
            then those that `add_lora` took.
    """
    model = base_of(adapted)
    config = adapted.peft_config["default"]
    if base_folder is not None:
        _set_name(model, published_name(base_folder))
        config.base_model_name_or_path = model.name_or_path
    in_full = set(config.modules_to_save or ())
    roles = [role for role, path in role_paths(model).items() if path not in in_full]
    at_start: dict[str, str] = getattr(adapted, "base_hashes", {})
    hashes = at_start if at_start and state_dict is not None else hash_parts(model, roles)
    at_start = at_start or hashes
    if changed := [role for role in hashes if hashes[role] != at_start[role]]:
        warnings.warn(
            f"A base must stay as it is while an adapter trains, got other weights in {listed(changed)} than at the start. "
            "The adapter will not give on its base what it gives now. Keep frozen parts in evaluation mode: batch "
            "normalisation moves its averages in training.",
            stacklevel=2,
        )
    adapted.save_pretrained(os.fspath(folder), save_embedding_layers=False, state_dict=state_dict)
    _correct_card(Path(folder) / "README.md", config.base_model_name_or_path)
    content = {"base": config.base_model_name_or_path, "dtype": "bfloat16", "sha256": at_start}
    (Path(folder) / BASE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _correct_card(path: Path, base: str | None) -> None:
    """Take a base that is no Hub name out of the card's header, where the Hub refuses it."""
    if base is None or os.path.isdir(base):
        card = ModelCard.load(path)
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags or () if not tag.startswith("base_model:")]
        card.save(path)


# Merging


def merge_adapter(
    folder: str | os.PathLike, out: str | os.PathLike, base: str | os.PathLike | None = None
) -> PreTrainedModel:
    """Add an adapter to its base's weights and save the whole model, and the processor beside adapter or base, in a folder.

    Merged and unmerged model give the same up to rounding in the base's dtype, which the merged one keeps.

    Args:
        folder: of the adapter, or its Hub name.
        out: a new folder.
        base: folder or Hub name of the base, by default the one that the adapter names.

    Returns: the merged model.

    Raises:
        ValueError: if `out` is a file or holds a model, `folder` holds no adapter, the base can't be found, or they don't fit
            each other.
    """
    if Path(out).is_file() or (Path(out) / "config.json").exists():
        raise ValueError(f"`out` must be a folder without a model, got {out}. Name a new one.")
    files = [find_file(folder, name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    if files[0] is None or files[1] is None:
        raise ValueError(
            f"A PEFT folder is wanted, with `adapter_config.json` and `adapter_model.safetensors`, got {folder}. Name the "
            "folder of an adapter."
        )
    tensors = read_tensors(files[1])
    config = PeftConfig.from_pretrained(os.fspath(folder))
    name = os.fspath(base or config.base_model_name_or_path or "")
    if not name:
        raise ValueError(f"The base of {folder} is wanted, got none in its `adapter_config.json`. Name it by `--base`.")
    try:
        read_config(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"The base of {folder} is wanted in {name}, got none there ({error}). Name it by `--base`."
        ) from error
    model = AutoModelForImageTextToText.from_pretrained(name)
    check_base(model, folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, os.fspath(folder))
    except (RuntimeError, UserWarning, ValueError) as error:
        raise ValueError(
            f"The {len(tensors)} tensors of the adapter {folder} must fit its base, got {name}, which they don't: "
            f"{str(error).strip().splitlines()[0]} Name the base that it was trained on by `--base`."
        ) from error
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)
    if source := processor_source(folder, name):
        AutoProcessor.from_pretrained(source).save_pretrained(out)
    return merged
