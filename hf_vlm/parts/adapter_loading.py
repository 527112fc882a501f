"""An adapter's folder loaded as a model: its base, the adapter on it, and the settings that lie beside the adapter."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from .base_weights import BASE_FILE, hash_parts
from .checkpoint_files import find_file, processor_source, read_config, read_json
from .model_class import model_class
from .shipped_models import default_ocr_model


def base_of_adapter(name_or_folder: str | os.PathLike, **hub_kwargs: Any) -> str | None:
    """Folder or Hub name of the base of a PEFT adapter; None for a whole model.

    Args:
        name_or_folder: folder or Hub name of either.
        hub_kwargs: as in `read_config`, of the adapter; but for `revision` and `subfolder` of the base too.

    Raises:
        FileNotFoundError: if the base is not there.
        ValueError: if the adapter's config is damaged.
    """
    file = find_file(name_or_folder, "adapter_config.json", **hub_kwargs)
    if file is None or find_file(name_or_folder, "config.json", **hub_kwargs) is not None:
        return None  # with both: a model with adapters in it
    named = read_json(file).get("base_model_name_or_path")
    if not isinstance(named, str):
        raise ValueError(
            f"`{file}` must name the adapter's base, `base_model_name_or_path`, got {named!r}. Save or copy the adapter again."
        )
    base = find_base(name_or_folder, named)
    try:
        read_config(base, **_of_base(hub_kwargs))
    except OSError as error:
        raise FileNotFoundError(
            f"The base model `{named}` of the adapter {name_or_folder} is wanted, got none ({error}) Copy it there, merge the "
            "adapter with it by `hf-vlm merge ADAPTER --base BASE`, or load the base and put the adapter on it: "
            "`PeftModel.from_pretrained(base, adapter)`."
        ) from error
    return base


def find_base(adapter: str | os.PathLike, named: str) -> str:
    """Where the base of an adapter lies, which may name a folder by the way there from where it was trained.

    That way is tried from the working directory. Then, around an adapter in a folder, from that and from those around it, and
    the base's folder is looked for in and beside the adapter's; and among the models that come with the package.

    A name that the Hub could have, `user/name` or `name`, is the Hub's, whatever lies around the adapter: a folder there is
    the base only if it holds the weights that `base_weights.json` tells of, for which it is loaded.

    Args:
        adapter: folder or Hub name of the adapter.
        named: folder or Hub name of the base, as the adapter has it.

    Returns: the first that is there; `named` if none is, a Hub name among others.
    """
    if not named or (Path(named) / "config.json").is_file():
        return named
    places: list[Path] = []
    if os.path.isdir(adapter):
        folder = Path(adapter).absolute()
        around = (folder, *folder.parents)
        places = [Path(os.path.normpath(place / named)) for place in around]
        places += [place / Path(named).name for place in around[:2]]
    with contextlib.suppress(FileNotFoundError):
        shipped = default_ocr_model()
        if Path(named).parts[-2:] == shipped.parts[-2:]:  # a folder's name alone may be anyone's
            places.append(shipped)
    is_path = not _may_be_on_hub(named)
    for place in dict.fromkeys(places):
        if (place / "config.json").is_file() and (is_path or _holds_base(place, adapter)):
            return os.fspath(place)
    return named


def _may_be_on_hub(name: str) -> bool:
    try:
        validate_repo_id(name)  # refuses `./x`, `../x`, `/x` and `x/y/z`
    except HFValidationError:
        return False
    return True


def _holds_base(folder: Path, adapter: str | os.PathLike) -> bool:
    """Whether a model's folder holds the weights that an adapter was trained on; no where the adapter doesn't tell."""
    file = Path(adapter) / BASE_FILE
    try:
        wanted: dict[str, str] = read_json(file).get("sha256") or {}
        model = model_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder)
        return bool(wanted) and hash_parts(model, list(wanted)) == wanted
    except (OSError, ValueError):  # no such file, or a model of others
        return False


def _of_base(hub_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Where the Hub's files of an adapter's base are found, given where the adapter's are."""
    return {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}


def load_with_adapter(
    loader: Any, name_or_folder: str | os.PathLike, adapter_from: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """A whole model, or an adapter on its base, in evaluation mode.

    transformers' auto classes load an adapter's folder too, but look for its base from the working directory alone.

    Args:
        loader: with `from_pretrained`, an auto class too.
        name_or_folder: folder or Hub name of a model or of a PEFT adapter.
        adapter_from: where the Hub's files of an adapter are found, as in `read_config`.
        kwargs: of `from_pretrained`, of the model or of the base.

    Raises:
        FileNotFoundError: if it is not there, or the adapter's base is not, see `base_of_adapter`.
        ValueError: if adapter and base don't fit each other.
    """
    where = adapter_from or {}
    base = base_of_adapter(name_or_folder, **where)
    if base is None:
        return loader.from_pretrained(name_or_folder, **where, **kwargs)
    loaded = loader.from_pretrained(base, **_of_base(where), **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.load_adapter(os.fspath(name_or_folder), adapter_kwargs=where)
    take_generation_settings(model, name_or_folder, **where)
    model.eval()
    return loaded


def take_generation_settings(model: PreTrainedModel, adapter: str | os.PathLike, **hub_kwargs: Any) -> None:
    """Set what the `generation_config.json` beside an adapter says over the model's own settings, if there is one."""
    if not model.can_generate() or find_file(adapter, "generation_config.json", **hub_kwargs) is None:
        return
    with contextlib.suppress(OSError):
        stored = GenerationConfig.from_pretrained(adapter, **hub_kwargs).to_diff_dict()
        model.generation_config.update(**{name: value for name, value in stored.items() if name[0] != "_"})


def processor_folder(name_or_folder: str | os.PathLike) -> str:
    """Where to load the processor of a model or adapter from: beside it, or beside the adapter's base.

    Raises:
        FileNotFoundError: as `base_of_adapter`.
    """
    return processor_source(name_or_folder, base_of_adapter(name_or_folder)) or os.fspath(name_or_folder)
