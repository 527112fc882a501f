"""An adapter's folder loaded as a model: its base, the adapter on it, and the settings that lie beside the adapter."""

import contextlib
import os
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from .checkpoint_files import base_of_adapter, find_file, processor_source


def load_with_adapter(
    model_class: Any, name_or_folder: str | os.PathLike, adapter_from: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """A whole model, or an adapter on its base, in evaluation mode.

    transformers' auto classes load an adapter's folder too, but look for its base from the working directory alone.

    Args:
        model_class: with `from_pretrained`, an auto class too.
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
        return model_class.from_pretrained(name_or_folder, **where, **kwargs)
    on_hub = {name: value for name, value in where.items() if name not in ("revision", "subfolder")}
    loaded = model_class.from_pretrained(base, **on_hub, **kwargs)
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
