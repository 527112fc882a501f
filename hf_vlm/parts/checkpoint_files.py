"""Read the config and the weights of a checkpoint, folder or Hub name: no model is built, no code is run.

Used where a checkpoint's layout is not that of the model that reads it, so that `from_pretrained` alone can't.
"""

import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

# In the order that transformers prefers them: safetensors before pickles, one file before shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_config(name_or_folder: str | os.PathLike, **hub_kwargs: Any) -> dict[str, Any]:
    """Give back what `config.json` says, as the file has it: no defaults filled in.

    Args:
        name_or_folder: a Hub name or a folder.
        hub_kwargs: where the Hub's files are found, as in `from_pretrained`: `revision`, `subfolder`, `cache_dir`,
            `token`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: if there is no `config.json`, or the Hub can't be asked and its cache lacks the file.
        ValueError: if the file is not a JSON object.
    """
    path = find_file(name_or_folder, "config.json", **hub_kwargs)
    if path is None:
        raise FileNotFoundError(
            f"`config.json` wanted in `{name_or_folder}`, got {_contents(name_or_folder)}. "
            "Give a folder written by `save_pretrained` or a model of the Hub; offline, one that was downloaded before."
        )
    return _read_json(path)


def read_weights(name_or_folder: str | os.PathLike, **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """Give back every tensor of a checkpoint under its name in the file, in the file's dtype, on the CPU.

    Safetensors are read, single or sharded, and where there are none, PyTorch's `.bin` files, tensors only: a pickle
    that asks for anything else is refused, never executed.

    Args:
        name_or_folder: a Hub name or a folder.
        hub_kwargs: as in `read_config`.

    Raises:
        FileNotFoundError: if there are no weights, or a shard that the index names is missing.
        ValueError: if a file is damaged, lacks a tensor that the index promises, or pickles more than tensors.
    """
    for file_name in WEIGHT_FILES:
        path = find_file(name_or_folder, file_name, **hub_kwargs)
        if path is None:
            continue
        if file_name.endswith(".index.json"):
            return _read_shards(name_or_folder, path, **hub_kwargs)
        return read_tensors(path)
    raise FileNotFoundError(
        f"Weights wanted in `{name_or_folder}` as one of {', '.join(f'`{name}`' for name in WEIGHT_FILES)}, "
        f"got {_contents(name_or_folder)}. Copy or download the checkpoint again, weights included."
    )


@contextlib.contextmanager
def naming_faults(name_or_folder: str | os.PathLike, **hub_kwargs: Any) -> Iterator[None]:
    """Around a loader of transformers': where it fails, say which file is at fault, if one is.

    Loaders stop at a damaged checkpoint with whatever the library below them raised, often without the file's name.

    Raises:
        FileNotFoundError: as `read_config` and `read_weights`.
        ValueError: as these; also if a setting or a tensor's shape is not what the model wants.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, StrictDataclassError) as error:
        read_config(name_or_folder, **hub_kwargs)
        if isinstance(error, StrictDataclassError):
            raise ValueError(
                f"`config.json` of `{name_or_folder}` must hold settings that fit, got one that doesn't: "
                f"{error.__cause__ or error} Correct it, or copy the file again."
            ) from error
        read_weights(name_or_folder, **hub_kwargs)
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(
                f"The tensors of `{name_or_folder}` must have the shapes that its `config.json` asks for, got others, "
                "listed above. Take weights and config of one version."
            ) from error
        raise


def base_of_adapter(name_or_folder: str | os.PathLike) -> str | None:
    """Folder or Hub name of the base of a PEFT adapter; None for a whole model.

    Raises:
        FileNotFoundError: if the base is not there.
        ValueError: if the adapter's config is damaged.
    """
    file = find_file(name_or_folder, "adapter_config.json")
    if file is None or find_file(name_or_folder, "config.json") is not None:  # with both: a model with adapters in it
        return None
    base = _read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(
            f"`{file}` must name the adapter's base, `base_model_name_or_path`, got {base!r}. Save or copy the adapter again."
        )
    try:
        read_config(base)
    except OSError as error:
        raise FileNotFoundError(
            f"The base model `{base}` of the adapter {name_or_folder} is wanted, got none ({error}) Copy it there, or correct "
            "`base_model_name_or_path` in `adapter_config.json`."
        ) from error
    return base


def processor_source(name_or_folder: str | os.PathLike, base: str | os.PathLike | None) -> str | None:
    """Where a model's processor is: beside it, or, where an adapter has none, beside its base; None if it is nowhere."""
    for place in (name_or_folder, base):
        files = ("processor_config.json", "preprocessor_config.json")
        if place is not None and any(find_file(place, file) for file in files):
            return os.fspath(place)
    return None


def said_by(error: Exception) -> str:
    """An error of another library in one line, to follow "got"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"none that loads ({type(error).__name__}: {lines[0] if lines else ''})"


def _read_shards(name_or_folder: str | os.PathLike, index_path: Path, **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """Join the shards of an index; each tensor is taken from the shard that the index names."""
    index = _read_json(index_path)
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"`{index_path}` must hold a `weight_map`, got {sorted(index)}. Copy or download it again.")
    names_by_shard: dict[str, list[str]] = {}
    for name, shard in index["weight_map"].items():
        names_by_shard.setdefault(shard, []).append(name)

    # All shards are looked for before the first is read: a missing one is told at once.
    paths = {shard: find_file(name_or_folder, shard, **hub_kwargs) for shard in names_by_shard}
    missing = [shard for shard, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"`{index_path.name}` of `{name_or_folder}` names {len(paths)} shards, got {len(paths) - len(missing)}: "
            f"{', '.join(f'`{shard}`' for shard in missing)} missing. Copy or download what is missing into the folder."
        )
    weights: dict[str, torch.Tensor] = {}
    for shard, path in paths.items():
        assert path is not None
        tensors = read_tensors(path)
        absent = [name for name in names_by_shard[shard] if name not in tensors]
        if absent:
            raise ValueError(
                f"`{path}` must hold {len(names_by_shard[shard])} tensors by its index, got none named "
                f"`{absent[0]}` (and {len(absent) - 1} more). Copy or download shard and index again, of one version."
            )
        weights |= {name: tensors[name] for name in names_by_shard[shard]}
    return weights


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Give back every tensor of one weights file; a dict of them under the only key `model` is taken out of it.

    Raises:
        ValueError: if the file is damaged, or pickles more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"`{path}` must be a whole safetensors file, got {path.stat().st_size} bytes that don't read as one "
                f"({error}). Copy or download it again; with git, `git lfs pull` fetches what a pointer stands for."
            ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`{path}` must hold tensors only, got a damaged file or one that pickles other objects, which are never "
            "executed here. Ask its author for `model.safetensors`, or write one yourself where you trust the file."
        ) from error
    if isinstance(tensors, dict) and set(tensors) == {"model"}:  # as Swin's authors release them
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(
            f"`{path}` must hold a dict of names and tensors, got {type(tensors).__name__} with other values. "
            "Save the model's `state_dict()` alone, not a whole training checkpoint."
        )
    return tensors


def find_file(name_or_folder: str | os.PathLike, file_name: str, **hub_kwargs: Any) -> Path | None:
    """Give back the path of a checkpoint's file, None where the checkpoint lacks it."""
    try:
        path = cached_file(
            str(name_or_folder),
            file_name,
            _raise_exceptions_for_missing_entries=False,
            **hub_kwargs,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"`{file_name}` of `{name_or_folder}` wanted, got neither a folder of that name nor a model of the Hub or "
            f"its cache ({str(error).splitlines()[0]}). Check the spelling; offline, name a folder, or download before."
        ) from error
    return None if path is None else Path(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be JSON, got text that isn't ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got {type(content).__name__}. Copy or download it again.")
    return content


def _contents(name_or_folder: str | os.PathLike) -> str:
    """Say what there is under that name, for an error."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        return "no such folder, nor that file in the Hub or its cache"
    names = sorted(path.name for path in folder.iterdir())
    return f"a folder with {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "an empty folder"
