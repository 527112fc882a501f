"""A recipe's file with its `key=value` overrides -> nested dicts and lists, whatever the recipe is for."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

RECIPE_FOLDER = Path(__file__).with_name("recipes")


def read_sections(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a recipe's file with some values replaced, of whatever task; see `Recipe.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML of sections, or an override names no place in it.
    """
    file = Path(path)
    if not file.is_file():
        file = RECIPE_FOLDER / f"{path}.yaml"
    if not file.is_file():
        shipped = sorted(recipe.stem for recipe in RECIPE_FOLDER.glob("*.yaml"))
        if len(Path(path).parts) > 1 or Path(path).suffix:
            raise FileNotFoundError(
                f"A recipe's YAML file, or the folder of a run with its `recipe.yaml`, is wanted, got `{path}`, which is not "
                "there. Check the path."
            )
        near = difflib.get_close_matches(str(path), shipped, n=1)
        advice = f"Did you mean `{near[0]}`?" if near else f"Give a file, or one of {listed(shipped)}."
        raise FileNotFoundError(f"A recipe's YAML file is wanted, got `{path}`. {advice}")
    sections = _load_yaml(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(sections, dict):
        raise ValueError(f"{file}: sections such as `model:` are wanted, got {sections!r:.40}. See the shipped ones.")
    for override in overrides:
        _apply_override(sections, override)
    return sections


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The sections and values that `key=value` pairs name, without a file.

    Raises:
        ValueError: if one is no such pair, or its value no YAML.
    """
    sections: dict[str, Any] = {}
    for override in overrides:
        _apply_override(sections, override)
    return sections


def _apply_override(sections: dict[str, Any], override: str) -> None:
    """Sets one dotted key in nested dicts and lists; a section on the way that is missing is made."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"An override is wanted as `key=value`, got `{override}`. Write `training.max_steps=100`.")
    value = _load_yaml(text, f"override `{path}`")
    *parents, last = path.split(".")
    place: Any = sections
    for name in parents:
        if isinstance(place, list):
            place = place[_list_index(place, name, path)]
            continue
        if place.get(name) is None:
            place[name] = {}
        place = place[name]
        if not isinstance(place, dict | list):
            raise ValueError(f"A section is wanted at `{name}` of `{path}`, got {place!r}. Check the key.")
    if isinstance(place, list):
        place[_list_index(place, last, path)] = value
    else:
        place[last] = value


def _list_index(place: list[Any], name: str, path: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise ValueError(f"A number from 0 to {len(place) - 1} is wanted in `{path}`, got `{name}`. Count from 0.")
    return int(name)


class _RecipeLoader(yaml.SafeLoader):
    """YAML where `1e-3` is a number (YAML 1.1 reads it as text) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(
                    f"{node.start_mark.name}, line {key_node.start_mark.line + 1}: a key is wanted once, got `{key}` "
                    "twice. Remove one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _load_yaml(text: str, name: str) -> Any:
    loader = _RecipeLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: YAML is wanted, got text that is not: {error}. Correct it.") from error
    finally:
        loader.dispose()


def listed(names: Iterable[str]) -> str:
    """Names in backticks, for a message."""
    return ", ".join(f"`{name}`" for name in names)
