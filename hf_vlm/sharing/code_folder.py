"""A folder that brings its own code: one of our models, loadable with `trust_remote_code=True` where hf-vlm is not installed.

folder of ours -> its model's, config's and processor's modules, and all that they import of this package
  -> one flat folder, `models/vit/modeling_vit.py` as `models_vit_modeling_vit.py`, imports rewritten, all else as it is
  -> `auto_classes.py`, from which transformers takes the classes that `auto_map` names; weights and settings as they were

Where transformers has hf-vlm's classes registered, because hf_vlm was imported, it takes those and not the folder's code.

Why there is one module that all classes are taken from: of a folder on disk, transformers copies each module that it is asked
for into a place of its own, with all that the module imports. Asked for a config and for a model in two modules, it imports
everything twice, and nothing of the one is an instance of anything in the other.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from transformers import CONFIG_MAPPING, IMAGE_PROCESSOR_MAPPING, PROCESSOR_MAPPING, AutoConfig
from transformers.models.auto import modeling_auto

from hf_vlm.parts.checkpoint_files import WEIGHT_FILES, read_config, read_json
from hf_vlm.sharing.cards.model_card import write_card
from hf_vlm.sharing.cards.sections import is_handwritten
from hf_vlm.sharing.flat_code import ENTRY_MODULE, PACKAGE, check_code, flat_name, flatten, header
from hf_vlm.sharing.new_folder import check_is_new, new_folder
from hf_vlm.sharing.whole_models import MODEL_FILES, files_of_model, load_processor, own_model_type


@dataclass
class _Part:
    """One of our model types: its config, and the model classes by the Auto class that makes them of it."""

    config_class: type
    models: dict[str, type] = field(default_factory=dict)


@dataclass
class _Classes:
    """What a folder needs of this package.

    Attributes:
        whole: the model itself.
        parts: model type -> a part inside it, or one that its config falls back on.
        processor: of the whole; None where the folder has none of ours.
        image_processors: backend -> class; empty where the image processor is not ours, or there is none.
    """

    whole: _Part
    parts: dict[str, _Part]
    processor: type | None
    image_processors: dict[str, type]

    def all(self) -> dict[type, str]:
        """Every class, and an Auto class that makes it."""
        found: dict[type, str] = {}
        for part in (self.whole, *self.parts.values()):
            found |= {part.config_class: "AutoConfig", **{model: name for name, model in part.models.items()}}
        if self.processor is not None:
            found[self.processor] = "AutoProcessor"
        return found | dict.fromkeys(self.image_processors.values(), "AutoImageProcessor")


def export_code(folder: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write one of our models with the code that it needs, so that transformers loads it without this package.

    `AutoConfig`, `AutoProcessor`, `AutoImageProcessor`, `AutoModel` and the other Auto classes that serve the model load the
    folder with `trust_remote_code=True`; torch, torchvision and Pillow are all that they want beside transformers. What is
    loaded saves its code along with it. A card that `hf-vlm card` wrote is written anew, as the program in it is another one; a
    card written by hand stays.

    Args:
        folder: of a model of ours, or its Hub name.
        out: a new or empty folder.

    Returns: `out`.

    Raises:
        ValueError: if `out` holds something, or `folder` is not a whole model of ours that loads; it names the file that is at
            fault. Nothing is then left.
        FileNotFoundError: if `folder` lacks its weights.
    """
    check_is_new(out)
    source = _whole_model(folder)
    config = read_config(source)
    settings = {name: _read_json(source / name) for name in ("processor_config.json", "preprocessor_config.json")}
    _check_loads(source)
    classes = _needed_classes(config, [value for value in settings.values() if value])

    with new_folder(out) as written:
        for path in files_of_model(source):
            (written / path).parent.mkdir(exist_ok=True)
            # Not a hard link: what is trained further is saved over it.
            shutil.copyfile(source / path, written / path)
        _write_json(written / "config.json", {**_without_auto_map(config), "auto_map": _auto_map(classes.whole)})
        for name, value in settings.items():
            if value:
                _write_json(written / name, _with_processors(value, classes))
        for name, text in _code(classes).items():
            (written / name).write_text(text, encoding="utf-8")
        check_code(written)
        _renew_card(written / "README.md", Path(out).name)
    return Path(out)


# What readers are told


def programs_of(folder: Path) -> list[str]:
    """The calls by which an exported folder's model and processor are loaded."""
    config = read_config(folder)
    named = [f"{ENTRY_MODULE}.{name}" for name in config.get("architectures") or ()]
    loaders = [next((auto_class for auto_class, found in config["auto_map"].items() if found in named), "AutoModel")]
    if (folder / "processor_config.json").is_file():
        loaders.append("AutoProcessor")
    elif (folder / "preprocessor_config.json").is_file():
        loaders.append("AutoImageProcessor")
    return [f"{loader}.from_pretrained(..., trust_remote_code=True)" for loader in loaders]


def card_asks_for_package(folder: Path) -> bool:
    """Whether an exported folder's card, one that could not be written anew, still speaks of this package."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    told = r"hf[-_]vlm" if is_handwritten(text) else r"install hf[-_]vlm|import hf_vlm|from hf_vlm"
    return re.search(told, text) is not None


def _renew_card(card: Path, name: str) -> None:
    """Write a card of `hf-vlm card` anew; one by hand, or one that can't be, stays as it is.

    Args:
        name: of the model, where the card has none.
    """
    if not card.is_file():
        return
    with contextlib.suppress(ValueError, OSError):
        old = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        if not is_handwritten(old.text):
            write_card(card.parent, name=old.data.get("model_name") or name)


# Which files


def _whole_model(folder: str | os.PathLike) -> Path:
    """Where a model of ours lies on disk, downloaded if it is of the Hub."""
    instead = "Load it with our class and save it with `save_pretrained` first; a model of transformers needs no code."
    model_type = own_model_type(folder, instead)
    if model_type not in CONFIG_MAPPING or not _is_ours(CONFIG_MAPPING[model_type]):
        raise ValueError(f"A model type of this package is wanted, got `{model_type}` in {folder}. {instead}")
    if not os.path.isdir(folder):
        folder = snapshot_download(os.fspath(folder), allow_patterns=list(MODEL_FILES))
    source = Path(folder)
    weights = [name for name in WEIGHT_FILES if (source / name).is_file()]
    if not weights:
        raise FileNotFoundError(
            f"Weights are wanted in {source}, one of {', '.join(f'`{name}`' for name in WEIGHT_FILES)}, got none. Copy or "
            "download the checkpoint again, weights included."
        )
    if weights[0].endswith(".index.json"):
        shards = sorted(set(read_json(source / weights[0]).get("weight_map", {}).values()))
        if missing := [shard for shard in shards if not (source / shard).is_file()]:
            raise FileNotFoundError(
                f"`{weights[0]}` of {source} names {len(shards)} shards, got none called `{missing[0]}`. Copy or download what "
                "is missing into the folder."
            )
    return source


def _check_loads(source: Path) -> None:
    """Raises ValueError if a folder's model or processor does not load; of the weights names and shapes are looked at."""
    config = AutoConfig.from_pretrained(source)
    models: list[Any] = list(_models(type(config)).values())
    named = [model for model in models if model.__name__ in (config.architectures or ())]
    if models and getattr(config, "quantization_config", None) is None:  # whose loading wants the device that it is for
        (named or models)[0].from_pretrained(source, device_map="meta")
    load_processor(source)


# Which classes


def _is_ours(found: type) -> bool:
    return found.__module__.split(".")[0] == PACKAGE.name


def _needed_classes(config: Mapping[str, Any], processor_settings: Iterable[Mapping[str, Any]]) -> _Classes:
    """What a folder needs, by its `config.json` and the settings of its processors."""
    whole = CONFIG_MAPPING[config["model_type"]]
    nested = set(_nested_model_types(config))
    defaults = _default_model_types(whole)
    for model_type in nested:
        defaults |= _default_model_types(CONFIG_MAPPING[model_type])
    parts = {name: _Part(CONFIG_MAPPING[name], _models(CONFIG_MAPPING[name], nested=True)) for name in sorted(nested)}
    parts |= {name: _Part(CONFIG_MAPPING[name]) for name in sorted(defaults - nested - {whole.model_type})}

    processor: Any = None
    image_processors: dict[str, type] = {}
    for settings in processor_settings:
        own = PROCESSOR_MAPPING.get(whole, None)
        if own is not None and settings.get("processor_class") == own.__name__:
            processor = own
        image_processors |= _image_processors(settings.get("image_processor", settings).get("image_processor_type"))
    return _Classes(_Part(whole, _models(whole)), parts, processor, image_processors)


def _nested_model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """Those of ours among the configs inside a config."""
    for value in config.values():
        if isinstance(value, dict):
            model_type = value.get("model_type")
            if isinstance(model_type, str) and model_type in CONFIG_MAPPING and _is_ours(CONFIG_MAPPING[model_type]):
                yield model_type
            yield from _nested_model_types(value)


def _default_model_types(config_class: Any) -> set[str]:
    """Those of ours that a config falls back on for a part that it isn't given; saving one compares it with that."""
    found: set[str] = set()
    for spec in config_class.sub_configs_defaults.values():
        if spec.model_type in CONFIG_MAPPING and _is_ours(CONFIG_MAPPING[spec.model_type]):
            found |= {spec.model_type} | _default_model_types(CONFIG_MAPPING[spec.model_type])
    return found


def _models(config_class: type, nested: bool = False) -> dict[str, type]:
    """Auto class -> the model that it makes of a config; of a part only what a whole asks for, `AutoModel` where there is one."""
    found: dict[str, type] = {}
    for name, auto_class in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto_class, "_model_mapping", None) if name.startswith("Auto") else None
        if mapping is not None and config_class in mapping:
            found[name] = mapping[config_class]
    return {"AutoModel": found["AutoModel"]} if nested and "AutoModel" in found else found


def _image_processors(class_name: str | None) -> dict[str, type]:
    """Backend -> class, of the image processor of that name; empty if it is not ours."""
    for by_backend in IMAGE_PROCESSOR_MAPPING._extra_content.values():
        if isinstance(by_backend, dict) and class_name in [found.__name__ for found in by_backend.values() if found]:
            return {backend: found for backend, found in by_backend.items() if found and _is_ours(found)}
    return {}


# Settings


def _reference(found: type) -> str:
    return f"{ENTRY_MODULE}.{found.__name__}"


def _auto_map(part: _Part) -> dict[str, str]:
    return {"AutoConfig": _reference(part.config_class)} | {name: _reference(m) for name, m in part.models.items()}


def _without_auto_map(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without references to code, those of its parts too: of a part that was loaded with code of its own."""
    return {
        name: _without_auto_map(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "auto_map"
    }


def _with_processors(settings: Mapping[str, Any], classes: _Classes) -> dict[str, Any]:
    """The content of `processor_config.json` or `preprocessor_config.json`, with the classes of ours that it wants."""
    changed = {name: value for name, value in settings.items() if name != "auto_map"}
    if "image_processor" in changed:
        changed["image_processor"] = _with_processors(changed["image_processor"], classes)
    auto_map: dict[str, Any] = {}
    if classes.processor is not None and changed.get("processor_class") == classes.processor.__name__:
        auto_map["AutoProcessor"] = _reference(classes.processor)
    if changed.get("image_processor_type") in [found.__name__ for found in classes.image_processors.values()]:
        auto_map["AutoImageProcessor"] = {name: _reference(found) for name, found in classes.image_processors.items()}
    return {**changed, "auto_map": auto_map} if auto_map else changed


def _read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none."""
    return read_json(file) if file.is_file() else {}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# Code


def _code(classes: _Classes) -> dict[str, str]:
    """File name -> text, of every module that the classes need and of the one that they are taken from."""
    modules = flatten([found.__module__.removeprefix(f"{PACKAGE.name}.") for found in classes.all()])
    return {**modules, f"{ENTRY_MODULE}.py": _entry_module(classes)}


_ENTRY = '''\
"""The classes that transformers takes from this folder, and the parts that its model is made of.

A class here is as if it were defined here: where transformers saves one, it copies the file that the class names as its home,
and all that this imports. So the code comes along whole.
"""

{imports}

_CLASSES = (
{classes})
for _class, _auto_class in _CLASSES:
    _class.__module__ = __name__
    _class.register_for_auto_class(_auto_class)
'''

_PARTS = '''
# The configs of this folder know the parts, and nobody else does: a registered model type would be taken for every other
# folder of that type as well, whatever code it brings.
_PARTS = {{
{parts}}}


class _PartSpec(SubConfigSpec):
    """Finds the config class of a part in this folder first, then among those of transformers."""

    def get_config_class(self, model_type=None):
        return _PARTS.get(model_type) or super().get_config_class(model_type)

    def create_subconfig(self, key, subconfig=None, **kwargs):
        if isinstance(subconfig, dict) and subconfig.get("model_type") in _PARTS:
            subconfig = _PARTS[subconfig["model_type"]](**subconfig)
        return super().create_subconfig(key, subconfig, **kwargs)


for _class, _auto_class in _CLASSES:
    if _auto_class == "AutoConfig":
        _class.sub_configs_defaults = {{
            name: _PartSpec(spec.config_class, spec.model_type, spec.init_kwargs, spec.optional)
            for name, spec in _class.sub_configs_defaults.items()
        }}
{registrations}'''


def _entry_module(classes: _Classes) -> str:
    """The module that `auto_map` names."""
    by_module: dict[str, list[str]] = {}
    for found in classes.all():
        module = flat_name(found.__module__.removeprefix(f"{PACKAGE.name}."))
        by_module.setdefault(module, []).append(found.__name__)
    imports = [f"from .{module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())]
    if classes.parts:
        auto_classes = sorted({name for part in classes.parts.values() for name in part.models})
        foreign = [f"from transformers import {', '.join(auto_classes)}"] if auto_classes else []
        imports = [*foreign, "from transformers.configuration_utils import SubConfigSpec", "", *imports]
    text = _ENTRY.format(
        imports="\n".join(imports),
        classes="".join(f'    ({found.__name__}, "{name}"),\n' for found, name in classes.all().items()),
    )
    if classes.parts:
        parts = classes.parts.items()
        text += _PARTS.format(
            parts="".join(f'    "{name}": {part.config_class.__name__},\n' for name, part in parts),
            registrations="".join(
                f"{auto_class}.register({part.config_class.__name__}, {model.__name__}, exist_ok=True)\n"
                for _, part in parts
                for auto_class, model in part.models.items()
            ),
        )
    return header("named by `auto_map`") + text
