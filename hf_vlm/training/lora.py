"""LoRA: small matrices that train beside frozen ones, in parts chosen by role, saved as one plain PEFT folder.

A linear layer W of a part gets two matrices, B (out_features, rank) and A (rank, in_features), and computes
W x + alpha / rank * B A x. B starts at zero: an adapter that has learnt nothing changes nothing.

Every model of ours takes them; `lora_layers.py` tells which of its layers. The folder is read by
`peft.PeftModel.from_pretrained(base, folder)`, by `base.load_adapter(folder)` and, where its base is found, by the model's
own class or auto class, `AutoModelForImageTextToText.from_pretrained(folder)`. It holds the adapter, the parts that trained in
full beside it (a LLaVA's projector, a classifier's head), generation settings, and in `base_weights.json` which weights it
belongs to: on others it would say something else. An adapter that peft saves by itself (`get_peft_model`, or `add_adapter` of a
model) names its base by the same rule, as no model of ours tells an absolute path; it has no `base_weights.json` unless the
model wrote it.

While adapters learn, what they stand on stays as it is, running means of batch normalisation and codebooks included
(`hold_base`).

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685; quantised base: Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314
"""

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_vlm.parts.adapter_loading import find_base, take_generation_settings
from hf_vlm.parts.base_weights import (
    base_of,
    check_base,
    exactly_hashed,
    hash_parts,
    kept_roles,
    role_paths,
    write_base_weights,
)
from hf_vlm.parts.checkpoint_files import find_file, processor_source, read_config, read_tensors
from hf_vlm.parts.licences import copy_licence, known_licence, write_merge_record
from hf_vlm.parts.model_class import model_class
from hf_vlm.parts.model_origin import is_way, note_origin, origin_of, published_name
from hf_vlm.training.lora_layers import LoraSection, exact_pattern, path_of, target_layers
from hf_vlm.training.recipe_files import listed

_RUN_FILES = ("recipe.yaml", "trainer_state.json", "run_environment.json")  # which a card is written of
_QUANTIZED_ROLES = ("language", "decoder")  # the rest is small, or reads pixels
# Settings that an adapter's base may have otherwise: they change no output of the trained model.
_FREE_SETTINGS = ("_name_or_path", "architectures", "dtype", "label_smoothing", "transformers_version", "use_cache")


def lora_config(model: PreTrainedModel, section: LoraSection) -> LoraConfig:
    """PEFT's configuration for a model, its modules named by exact paths.

    Raises:
        ValueError: as `target_layers`; if a part in `train` is not one of the model's or is a whole model; or if PEFT, which
            goes by the ends of names, would take another module for it.
    """
    section = section.settled(model)
    layers = target_layers(model, section)
    paths = role_paths(model)
    in_full = [path_of(paths, part, "train") for part in section.train or ()]
    for part, path in zip(section.train or (), in_full, strict=True):
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleDict | nn.ModuleList):
            raise ValueError(
                f"`lora.train` is for modules that are called, got `{part}`, a `{type(module).__name__}`. Leave it out, or train "
                "without LoRA."
            )
        if isinstance(module, PreTrainedModel):
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


# The base


def loading_arguments(section: LoraSection | None, base: str | os.PathLike) -> dict[str, Any]:
    """What `from_pretrained` of the base is called with besides its name: nothing, or how its weights are quantised.

    With `nf4` the linear layers of the part that writes, a LLaVA's language model or a reader's decoder, are kept in four bits
    and computed with in bfloat16; its output layer, the vision encoder and the projector are not quantised (Dettmers et al.
    2023, section 3; LLaVA's `finetune_qlora.sh`).

    What is tested is what is asked for, and that it is refused where it can't work. Training on a base in four bits was not run
    here: it wants an NVIDIA GPU. An adapter's base is hashed from its files then, loaded once more in bfloat16, and adapters
    are merged into the unquantised base.

    Args:
        base: folder or Hub name of a model in our layout.

    Raises:
        ValueError: if `nf4` is asked for and there is no GPU, or the model has no language model.
        ImportError: if bitsandbytes is missing.
    """
    if section is None or section.quantization == "none":
        return {}
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = model_class(config)(config)
    written = [
        role
        for role, path in role_paths(model).items()
        if role in _QUANTIZED_ROLES and isinstance(model.get_submodule(path), PreTrainedModel)
    ]
    if not written:
        raise ValueError(
            f"`lora.quantization: nf4` is for models with a language model, which is most of their weights, got a "
            f"`{config.model_type}`. Set it to `none`."
        )
    if not torch.cuda.is_available():
        raise ValueError("`lora.quantization: nf4` is for NVIDIA GPUs, got none. Set it to `none`, or train on one.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("`lora.quantization: nf4` wants bitsandbytes, got none. Run `pip install bitsandbytes`.")
    output_layer = model.get_output_embeddings()
    kept = [path for role, path in role_paths(model).items() if role not in written]
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


# Training


def add_lora(
    model: PreTrainedModel, section: LoraSection, base: str | os.PathLike | None = None, *, base_is_saved: bool = True
) -> PeftModel:
    """The model with adapters, in place: they and the parts in `train` learn, all else is frozen.

    What learns is in float32 whatever the base is in; with a base in bfloat16 train under autocast (`bf16: true`).
    Adapters learn under gradient checkpointing of either kind: the embeddings of adapted parts ask for gradients.

    Args:
        model: made of parts, without adapters.
        base: folder or Hub name under which the adapter will find its base; where the model came from by default.
        base_is_saved: False where the caller saves the model there before any adapter: it is not looked for then.

    Raises:
        ValueError: as `lora_config`; or if `base` could not be loaded as the model is: it has no name, another layout, or
            other settings.
    """
    section = section.settled(model)
    config = lora_config(model, section)
    layers = target_layers(model, section)
    origin = origin_of(model)
    as_loaded = not base or published_name(base) == origin.published
    name = origin.place if as_loaded else os.fspath(base or "")
    if base_is_saved:
        _check_settings(model, name)
    hashes = hash_parts(model, kept_roles(model, config.modules_to_save))
    note_origin(model, name, **(origin.hub_arguments if as_loaded else {}))  # PEFT takes the name from there
    adapted: Any = get_peft_model(model, config)
    wrapped = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert wrapped == set(layers), sorted(wrapped ^ set(layers))[:3]
    paths = role_paths(model)
    for part in section.train or ():
        for parameter in model.get_submodule(paths[part]).parameters():  # the copy that learns, and the base's
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()  # steps of 2e-5 would round to none
    for role in section.roles or ():
        adapted_part = model.get_submodule(paths[role])
        if isinstance(adapted_part, PreTrainedModel) and adapted_part.supports_gradient_checkpointing:
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
    if other := differing_setting(model, base):
        raise ValueError(
            f"An adapter's base must have the settings that it is trained with, got another `{other}` in "
            f"{published_name(base)}. Save the changed model with `save_pretrained` and pass its folder as `base`."
        )


def differing_setting(model: PreTrainedModel, base: str | os.PathLike) -> str | None:
    """The first setting, by its dotted name, that a folder or Hub name has otherwise than a model; None if they agree."""
    stored, own = _settings(AutoConfig.from_pretrained(base).to_dict()), _settings(model.config.to_dict())
    return next((name for name in sorted(stored | own) if stored.get(name) != own.get(name)), None)


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
    base, paths, section = base_of(model), role_paths(model), section.settled(model)
    left_out = []
    for part in (*(section.roles or ()), *(section.train or ())):
        trained = [
            value for value in base.get_submodule(path_of(paths, part, "roles")).parameters() if value.requires_grad
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


def save_adapter(
    adapted: PeftModel,
    folder: str | os.PathLike,
    base_folder: str | os.PathLike | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    adapter_name: str = "default",
    rehash: bool = True,
) -> None:
    """Write adapter, card, generation settings and `base_weights.json`, the hashes of the base that it belongs to.

    Args:
        adapted: what `add_lora` gave, or PEFT loaded.
        base_folder: folder or Hub name of the base, if it is to be found elsewhere than where it was loaded from. It must
            hold the same weights.
        state_dict: of the whole model by name, where those that it holds are split over processes; the base's hashes are
            then those that `add_lora` took.
        adapter_name: which of several; one of another name than `default` is written to the folder of its name in `folder`,
            as PEFT does.
        rehash: hash the base as it is now, and warn if training has changed it. Without, as for every checkpoint of a run, and
            of a quantised base, the hashes are those that `add_lora` took: they take about 2 s for a billion weights.

    Raises:
        ValueError: if there is no such adapter.
    """
    model = base_of(adapted)
    if adapter_name not in adapted.peft_config:
        raise ValueError(
            f"`adapter_name` must be one of {listed(adapted.peft_config)}, got {adapter_name!r}. Correct it."
        )
    config = adapted.peft_config[adapter_name]
    if base_folder is not None:
        origin = origin_of(model)
        note_origin(model, origin.place or base_folder, published=base_folder, **origin.hub_arguments)
        config.base_model_name_or_path = model.name_or_path
    roles = kept_roles(model, getattr(config, "modules_to_save", None))
    at_start: dict[str, str] = getattr(adapted, "base_hashes", {})
    # Of a quantised base the files are hashed, which training doesn't touch.
    taken = at_start and (not rehash or state_dict is not None or getattr(model, "is_quantized", False))
    hashes = at_start if taken else hash_parts(model, roles)
    at_start = hashes | at_start
    if changed := [role for role in hashes if hashes[role] != at_start[role]]:
        warnings.warn(
            f"A base must stay as it is while an adapter trains, got other weights in {listed(changed)} than at the start. "
            "The adapter will not give on its base what it gives now. Keep frozen parts in evaluation mode, and out of the "
            "optimizer.",
            stacklevel=2,
        )
    adapted.save_pretrained(
        os.fspath(folder), save_embedding_layers=False, state_dict=state_dict, selected_adapters=[adapter_name]
    )
    _correct_card(Path(folder) / "README.md", config.base_model_name_or_path)
    place = Path(folder) if adapter_name == "default" else Path(folder) / adapter_name
    if model.can_generate():
        model.generation_config.save_pretrained(place)
    wanted = {role: at_start[role] for role in hashes}
    write_base_weights(place, config.base_model_name_or_path, wanted, exact=exactly_hashed(model))


def _correct_card(path: Path, base: str | None) -> None:
    """Take a base that is no Hub name out of the card's header, where the Hub refuses it."""
    if base is None or is_way(base) or os.path.isdir(base):
        card = ModelCard.load(path)
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags or () if not tag.startswith("base_model:")]
        card.save(path)


# Merging


def merge_adapter(
    folder: str | os.PathLike, out: str | os.PathLike, base: str | os.PathLike | None = None
) -> PreTrainedModel:
    """Add an adapter to its base's weights and save the whole model, and the processor beside adapter or base, in a folder.

    What the adapter's run left behind, and licence and notice of both, are taken along; `merged_from.json` tells of which licence
    they were, for the card.

    Merged and unmerged model give the same up to rounding in the base's dtype, which the merged one keeps.

    Args:
        folder: of the adapter, or its Hub name.
        out: a new or an empty folder.
        base: folder or Hub name of the base, by default the one that the adapter names.

    Returns: the merged model.

    Raises:
        ValueError: if `out` is a file or holds something, `folder` holds no adapter, the base can't be found, or
            they don't fit each other.
    """
    if Path(out).is_file() or (Path(out) / "config.json").exists():
        raise ValueError(f"`out` must be a folder without a model, got {out}. Name a new one.")
    if (Path(out) / "adapter_config.json").exists():  # which loaders would add to the merged model once more
        raise ValueError(f"`out` must be a folder without an adapter, got {out}. Name a new one.")
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise ValueError(f"`out` must be a new or an empty folder, got {out}. Name another one.")
    files = [find_file(folder, name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    if files[0] is None or files[1] is None:
        raise ValueError(
            f"A PEFT folder is wanted, with `adapter_config.json` and `adapter_model.safetensors`, got {folder}. Name the "
            "folder of an adapter."
        )
    tensors = read_tensors(files[1])
    config = PeftConfig.from_pretrained(os.fspath(folder))
    name = os.fspath(base or find_base(folder, config.base_model_name_or_path or ""))
    if not name:
        raise ValueError(f"The base of {folder} is wanted, got none in its `adapter_config.json`. Name it by `--base`.")
    try:
        read_config(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"The base of {folder} is wanted in {name}, got none there ({error}). Name it by `--base`."
        ) from error
    of_adapter = (config.auto_mapping or {}).get("base_model_class")
    model: Any = model_class(AutoConfig.from_pretrained(name), of_adapter).from_pretrained(name)
    check_base(model, folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, os.fspath(folder))
        placed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if left := sum(".lora_" in tensor for tensor in tensors) - sum(".lora_" in tensor for tensor in placed):
            raise ValueError(f"{left} of them have no place there.")
        merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, UserWarning, ValueError) as error:  # `NotImplementedError` of grouped convolutions too
        raise ValueError(
            f"The {len(tensors)} tensors of the adapter {folder} must fit its base, got {name}, which they don't: "
            f"{str(error).strip().splitlines()[0]} Name the base that it was trained on by `--base`."
        ) from error
    take_generation_settings(merged, folder)
    with tempfile.TemporaryDirectory(dir=_existing(Path(out).parent), prefix=".merged-") as partial:
        merged.save_pretrained(partial)
        if source := processor_source(folder, name):
            AutoProcessor.from_pretrained(source).save_pretrained(partial)
        _take_provenance(folder, name, Path(partial))
        Path(out).mkdir(parents=True, exist_ok=True)
        for file in sorted(
            Path(partial).iterdir(), key=lambda file: file.name == "config.json"
        ):  # which makes it a model
            os.replace(file, Path(out) / file.name)
    note_origin(merged, out)
    return merged


def _take_provenance(adapter: str | os.PathLike, base: str, out: Path) -> None:
    """Put beside a merged model what tells of its training and its licence."""
    for place in (base, adapter):
        copy_licence(place, out)
    for name in _RUN_FILES:
        if (file := find_file(adapter, name)) is not None:
            shutil.copyfile(file, out / name)
    told = [{"name": published_name(place), "license": known_licence(place)} for place in (base, adapter)]
    write_merge_record(out, *told)


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
