"""The thin base class between `PreTrainedConfig` and our configs: which version of hf-vlm wrote a folder.

A setting that a config class doesn't know is kept by transformers and read by nobody: a folder of a newer hf-vlm would load
and compute something else. So `config.json` names the version that wrote it, and one from a newer version is taken only if
this version knows all that it says.
"""

import os
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from packaging.version import InvalidVersion, Version
from transformers import PreTrainedConfig

from .package_version import __version__

VERSION_KEY = "hf_vlm_version"
# transformers' own, of every config
_OF_ALL = (
    *("_name_or_path", "architectures", "auto_map", "attn_implementation", "model_type", "quantization_config"),
    *("torch_dtype", "torchscript"),
)


@strict
class HubConfig(PreTrainedConfig):
    """A `PreTrainedConfig` whose `config.json` names the version of hf-vlm that wrote it."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`, by which every `config.json` comes.

        Raises:
            ValueError: if a newer version wrote it, and it has settings that this one doesn't know or can't take.
        """
        settings = {name: value for name, value in config_dict.items() if name != VERSION_KEY}
        newer = newer_version(config_dict)
        if newer is None:
            return super().from_dict(settings, **kwargs)
        if unknown := unknown_settings(cls, settings):
            raise ValueError(_told(newer, f"got `{unknown[0]}`, which it does not know"))
        try:
            return super().from_dict(settings, **kwargs)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ValueError(_told(newer, f"got one that it can't take ({error.__cause__ or error})")) from error

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        """As `PreTrainedConfig.from_json_file`.

        Raises:
            ValueError: as `from_dict`.
        """
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to `config.json`.

        `auto_map` names code only where that is saved along, and of parts no folder on this machine is told: where they came
        from stands in the weight report.
        """
        settings = {**super().to_diff_dict(), VERSION_KEY: __version__}
        for part in settings.values():
            if isinstance(part, dict):
                part.pop("_name_or_path", None)
        if self._auto_class is None:
            settings.pop("auto_map", None)
        return settings


def newer_version(config: Mapping[str, Any]) -> str | None:
    """The version of hf-vlm that wrote a `config.json`, if it is newer than this one; None otherwise, or if it names none."""
    written_by = config.get(VERSION_KEY)
    try:
        return written_by if written_by is not None and Version(written_by) > Version(__version__) else None
    except (InvalidVersion, TypeError):
        return str(written_by)  # of a scheme that comes after this version


def unknown_settings(config_class: type[PreTrainedConfig], settings: Mapping[str, Any]) -> list[str]:
    """The names in a `config.json` that a config class doesn't have, those of our nested configs after a dot.

    Args:
        config_class: the class of its model type.
        settings: the file's content.
    """
    known = set(config_class().to_dict()) | set(config_class.attribute_map)
    unknown = [name for name in settings if name not in known and not hasattr(config_class, name)]
    unknown = [name for name in unknown if name not in _OF_ALL]
    specs: Mapping[str, Any] = getattr(config_class, "sub_configs_defaults", {})
    for name, value in settings.items():
        if not isinstance(value, dict) or not str(value.get("model_type")).startswith("hf_vlm_"):
            continue
        try:
            nested_class = specs[name].get_config_class(value["model_type"])
        except (KeyError, ValueError):
            unknown.append(f"{name}.model_type")
        else:
            unknown += [f"{name}.{setting}" for setting in unknown_settings(nested_class, value)]
    return unknown


def _told(newer: str, came: str) -> str:
    return (
        f"`config.json` must hold settings of hf-vlm {__version__}, {came}: hf-vlm {newer} wrote it. "
        "Run `pip install --upgrade hf-vlm`."
    )
