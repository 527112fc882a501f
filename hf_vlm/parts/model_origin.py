"""Where a loaded model came from: what may be published of it, and, kept privately, the place to read it from again.

The two differ. A way relative to the working directory names another folder once that directory is another one, and one that
looks like `org/name` is read as a Hub name where there is no such folder. An absolute path tells of the machine.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

_IN_CACHE = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\]|$)")


@dataclass(frozen=True)
class Origin:
    """Where a model's weights were read.

    Attributes:
        place: absolute path of a folder or file, or Hub name; empty for a model made in memory.
        revision: of a Hub repository, its commit where that is known; None for its main branch, and for folders.
        subfolder: of a folder or repository.
        cache_dir: where the Hub's files are kept, if elsewhere than by default.
        published: the model's `name_or_path` that belongs to it.
    """

    place: str = ""
    revision: str | None = None
    subfolder: str | None = None
    cache_dir: str | None = None
    published: str = ""

    @property
    def hub_arguments(self) -> dict[str, str]:
        """What `from_pretrained` and `read_config` want besides the place."""
        found = {"revision": self.revision, "subfolder": self.subfolder, "cache_dir": self.cache_dir}
        return {name: value for name, value in found.items() if value}


def note_origin(
    model: nn.Module, place: str | os.PathLike, published: str | os.PathLike | None = None, **hub_kwargs: Any
) -> None:
    """Set a model's `name_or_path` to what may be published, and remember where its weights really are.

    Args:
        model: with a `config`. The place is kept in the attribute `_loaded_from`, which no file gets.
        place: folder, file or Hub name.
        published: folder or Hub name to be told in its stead.
        hub_kwargs: of which `revision`, `subfolder` and `cache_dir` are remembered.
    """
    known: Any = model
    told = published_name(place if published is None else published)
    hub_kwargs.setdefault("revision", getattr(known.config, "_commit_hash", None))
    kept = {
        name: os.fspath(hub_kwargs[name]) for name in ("revision", "subfolder", "cache_dir") if hub_kwargs.get(name)
    }
    known._loaded_from = Origin(_true_place(place), published=told, **kept)
    known.name_or_path = known.config.name_or_path = told


def origin_of(model: nn.Module) -> Origin:
    """Where a model, without PEFT's wrapper, came from.

    Other libraries' models have their `name_or_path` alone, and one whose `name_or_path` was set by hand goes by that.
    """
    name = os.fspath(getattr(model, "name_or_path", "") or "")
    noted = getattr(model, "_loaded_from", None)
    if isinstance(noted, Origin) and noted.published == name:
        return noted
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    return Origin(_true_place(name) if name else "", commit, published=name)


def published_name(place: str | os.PathLike) -> str:
    """What files may say of a folder or Hub repository: never an absolute path.

    A Hub name stays as it is, and a folder in the Hub's cache has the name of its repository. Another folder is told by the way
    there from the working directory, which begins with `./` or `../` and so is no Hub name: transformers' auto classes load an
    adapter's folder from the directory that it was trained in; our own classes and the commands of `hf-vlm` look around the
    adapter's folder too (`find_base`), `peft` takes a base loaded by hand, and `hf-vlm merge` has `--base`. Before publishing,
    name the base's Hub repository in `save_adapter`.
    """
    name = os.fspath(place)
    if not os.path.isabs(name):
        if is_way(name) and not os.path.exists(name):
            return Path(name).as_posix() if name.startswith("..") else f"./{Path(name).as_posix()}"
        if not os.path.exists(name):
            return name
    path = _true_place(name) if not os.path.isabs(name) else os.path.normpath(name)
    if repository := cached_repository(path):
        return repository[0]
    try:
        around = os.path.relpath(os.path.dirname(path))  # of the folder itself it would be `.`, which names none
    except (OSError, ValueError):  # the working directory was deleted, or is on another drive
        around = "."
    way = Path(around, os.path.basename(path)).as_posix()
    return way if way.startswith("../") else f"./{way}"


def is_way(name: str | os.PathLike) -> bool:
    """Whether a name is a way through folders by its form, and so none of the Hub: absolute, or from `.` or `..` on."""
    text = os.fspath(name)
    return os.path.isabs(text) or re.match(r"\.\.?(?:[/\\]|$)", text) is not None


def cached_repository(place: str | os.PathLike) -> tuple[str, str] | None:
    """Name and commit of the Hub repository to whose copy in a cache a folder or file belongs; None for others."""
    found = _IN_CACHE.search(os.fspath(place))
    return (found[1].replace("--", "/"), found[2]) if found else None


def _true_place(place: str | os.PathLike) -> str:
    name = os.fspath(place)
    try:
        return os.path.abspath(name) if os.path.exists(name) else name
    except OSError:  # of a working directory that was deleted
        return name
