"""Read the config and the weights of a checkpoint, folder or Hub name: no model is built, no code is run.

Used where a checkpoint's layout is not that of the model that reads it, so that `from_pretrained` alone can't.
"""

import contextlib
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from .hub_errors import hub_fault

# In the order that transformers prefers them: safetensors before pickles, one file before shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WHOLE_OR_INDEX = WEIGHT_FILES[:2]
_SAVED_WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json")


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
    path, unasked = _look_for(name_or_folder, "config.json", **hub_kwargs)
    if path is None:
        raise FileNotFoundError(
            _told_missing(
                "`config.json`",
                name_or_folder,
                hub_kwargs,
                unasked,
                "Give a folder written by `save_pretrained` or a model of the Hub.",
            )
        ) from unasked
    return read_json(path)


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
    unasked: Exception | None = None
    for file_name in WEIGHT_FILES:
        path, reason = _look_for(name_or_folder, file_name, **hub_kwargs)
        if unasked is None and reason is not None:
            unasked = reason
            hub_kwargs |= {"local_files_only": True}  # asking again takes long, and would fail again
        if path is None:
            continue
        if file_name.endswith(".index.json"):
            return _read_shards(name_or_folder, path, **hub_kwargs)
        return read_tensors(path)
    raise FileNotFoundError(
        _told_missing(
            "Weights",
            name_or_folder,
            hub_kwargs,
            unasked,
            "Copy or download the checkpoint again, weights included.",
            f" as one of {', '.join(f'`{name}`' for name in WEIGHT_FILES)}",
        )
    ) from unasked


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
    index = read_json(index_path)
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


def is_weight_file(name: str) -> bool:
    """Whether a file is one of those that `save_pretrained` keeps a model's weights in: one file, shards or their index."""
    return _SAVED_WEIGHTS.fullmatch(name) is not None


def drop_old_weights(folder: str | os.PathLike, before: Mapping[str, object]) -> None:
    """Remove what an earlier save left where it wrote one file and the last one shards, or the other way round.

    transformers removes old shards only. An old `model.safetensors` would stay beside new shards, and be what loads. Where it
    can't be told what was written last, nothing is removed.

    Args:
        folder: as `save_pretrained` of transformers left it.
        before: name of each file that was there before -> its stamp, as of `list_files`. No other file is removed.
    """
    now = list_files(folder)
    written = [name for name in _WHOLE_OR_INDEX if name in now and now[name] != before.get(name)]
    if len(written) != 1:
        return
    kept = {*written}
    if written[0].endswith(".index.json"):
        kept |= set(read_json(Path(folder) / written[0])["weight_map"].values())
    for name in before:
        if is_weight_file(name) and name not in kept:
            (Path(folder) / name).unlink(missing_ok=True)


def list_files(folder: str | os.PathLike) -> dict[str, tuple[int, int, int]]:
    """Name of each file of a folder -> its stamp, which changes when it is written anew.

    Returns: inode, time of the last change in nanoseconds, size in bytes; empty for a folder that isn't there.
    """
    if not Path(folder).is_dir():
        return {}
    stats = {path.name: path.stat() for path in Path(folder).iterdir() if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def find_file(name_or_folder: str | os.PathLike, file_name: str, **hub_kwargs: Any) -> Path | None:
    """Give back the path of a checkpoint's file, None where the checkpoint lacks it.

    Without a network that is also a file which the Hub's cache doesn't have.

    Raises:
        FileNotFoundError: if there is neither a folder of that name nor a repository of the Hub that may be read.
    """
    return _look_for(name_or_folder, file_name, **hub_kwargs)[0]


def _look_for(
    name_or_folder: str | os.PathLike, file_name: str, **hub_kwargs: Any
) -> tuple[Path | None, Exception | None]:
    """The file's path; or None, and the error by which the Hub could not be asked, if that is why."""
    try:
        path = cached_file(str(name_or_folder), file_name, **hub_kwargs)
    except OSError as error:
        if error.__cause__ is None:  # of a file that is not there nothing else is the cause
            return None, None
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            return None, error
        told = _told_missing(f"`{file_name}`", name_or_folder, hub_kwargs, error, "Check the spelling.")
        raise FileNotFoundError(told) from error
    return None if path is None else Path(path), None


def _told_missing(
    what: str,
    name_or_folder: str | os.PathLike,
    hub_kwargs: Mapping[str, Any],
    error: Exception | None,
    advice: str,
    kinds: str = "",
) -> str:
    """The message for what a checkpoint lacks.

    Args:
        error: by which the Hub could not be asked, or refused; None if the file simply isn't there.
        advice: what to do in that case.
        kinds: what would do, to follow the checkpoint's name.
    """
    revision = hub_kwargs.get("revision")
    where = f"`{name_or_folder}`" + (f" at revision `{revision}`" if revision is not None else "")
    if error is None:
        came = _contents(name_or_folder)
    elif fault := hub_fault(error):
        came, advice = fault
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            came = f"none in the cache of the Hub, and {came}"
    else:
        came = said_by(error)
    return f"{what} wanted in {where}{kinds}, got {came}. {advice}"


def read_json(path: Path) -> dict[str, Any]:
    """Give back the object that a JSON file holds.

    Raises:
        ValueError: if it holds something else.
    """
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
        return "a repository of the Hub without"
    names = sorted(path.name for path in folder.iterdir())
    return f"a folder with {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "an empty folder"
