"""Recipes: a YAML file and `key=value` overrides, parsed into one strict dataclass; here those of TrOCR.

    task:       which kind of training; `ocr` where a recipe doesn't say
    model:      where the weights come from
    data:       which lines are learnt from, which are read for validation
    lora:       adapters, which train in the place of a pretrained model's weights; see `LoraSection`
    training:   any setting of transformers' `Seq2SeqTrainingArguments`, and `global_batch_size`: items an update, over all
                devices; see `hf_vlm.training.arguments`
    generation: any setting of transformers' `GenerationConfig`; saved with the model

Nothing is kept that is not understood: an unknown key is refused and the nearest known one named.
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_vlm.data.lines.augmentation import augmentation_name
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.recipe_files import listed, read_sections

ITEMS_OF_UPDATE = "global_batch_size"  # the one key of `training` that is ours
_COUNTS = ("num_beams", "num_return_sequences", "max_new_tokens", "max_length")  # transformers checks none of them


@dataclasses.dataclass(kw_only=True)
class ModelSection:
    """Origin of model and processor: `pretrained`, or `vision` with `text`, or `vision_config` with `text_config`.

    Attributes:
        pretrained: folder or Hub name of a whole model to go on with; `default` for the one that comes with the package.
        vision: folder or Hub name of a pretrained vision encoder.
        text: folder or Hub name of a pretrained text model, whose tokenizer is taken too.
        vision_config: settings of a vision encoder to be trained from scratch, with its `model_type`.
        text_config: settings of a decoder to be trained from scratch, with its `model_type`.
        tokenizer: for `text_config`: `characters` (one token a character of `alphabet`), or the folder or Hub name of
            a tokenizer.
        alphabet: the characters that `tokenizer: characters` knows, the space included; None means those of Western
            European languages and every further one of the training lines.
        image_processor: for `vision_config`: settings of the `VisionTransformerImageProcessor`.
        max_label_length: tokens in a label at most, its end token included; None means what the decoder has positions
            for.
        settings: settings of the whole model, such as `label_smoothing`; with `vision` and `text` also those of
            `from_pretrained_parts`, such as `num_decoder_layers`.
    """

    pretrained: str | None = None
    vision: str | None = None
    text: str | None = None
    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    tokenizer: str | None = None
    alphabet: str | None = None
    image_processor: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_label_length: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        origins = ("pretrained", "vision", "text", "vision_config", "text_config")
        given = {name for name in origins if getattr(self, name)}
        if given not in ({"pretrained"}, {"vision", "text"}, {"vision_config", "text_config"}):
            raise ValueError(
                "The section `model` wants `pretrained`, or `vision` with `text`, or `vision_config` with "
                f"`text_config`, got {listed(sorted(given)) or 'none of them'}. Give exactly one of the three; to "
                "replace what a recipe has, give the whole section: `'model={pretrained: FOLDER}'`."
            )
        if self.text_config and not self.tokenizer:
            raise ValueError(
                "`model.text_config` wants `model.tokenizer`, got none. Set it to `characters` or a tokenizer's folder."
            )
        only_from_scratch = [name for name in ("tokenizer", "alphabet", "image_processor") if getattr(self, name)]
        if only_from_scratch and not self.text_config:
            raise ValueError(
                f"Pretrained parts bring their own processor, got `model.{only_from_scratch[0]}` besides. Leave it out."
            )


@dataclasses.dataclass(kw_only=True)
class LineSource:
    """Real lines to learn from.

    Attributes:
        path: folder or file that `hf_vlm.data.lines.image_text.read_lines` reads, relative to `data.folder`.
        split: which split of it; None if it has one only.
        where: columns and the value, or list of values, that a row must hold there to be kept; `*` matches anything, and
            what follows `!` is left out.
        weight: its share among the sources; only the ratio of the weights counts.
        augment: how its pictures are changed: `mild` (slightly turned, stretched and blurred; true means the same),
            `da2` or `randaugment` (TrOCR's), or false.
    """

    path: str
    split: str | None = None
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    augment: bool | str = True

    def __post_init__(self) -> None:
        augmentation_name(self.augment)  # refuses unknown ones


@dataclasses.dataclass(kw_only=True)
class SyntheticLines:
    """Lines rendered on the fly.

    Attributes:
        texts: UTF-8 file of sentences, one a line, relative to `data.folder`; None means the few that the package brings.
        fonts: font files or folders of them; None means the fonts of the system.
        height: pixels of the highest line.
        kinds: how often `print`, `typewriter`, `fax`, `photocopy`, `receipt` and `pen` are drawn, relative to each other;
            None means the renderer's own mixture.
        augment: as in `LineSource`, after a line is drawn with all its looks.
        weight: its share among the sources.
    """

    texts: str | None = None
    fonts: list[str] | None = None
    height: int = 40
    kinds: dict[str, float] | None = None
    augment: bool | str = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        augmentation_name(self.augment)


@dataclasses.dataclass(kw_only=True)
class ValidationLines:
    """Lines that are read during training to measure CER and WER.

    Attributes:
        path, split, where: as in `LineSource`.
        ignore_case: whether case is folded before scoring, for sets transcribed in upper case.
        max_lines: how many lines are read, spread evenly over the set; None means all.
    """

    path: str
    split: str | None = None
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    ignore_case: bool = False
    max_lines: int | None = None


@dataclasses.dataclass(kw_only=True)
class DataSection:
    """What is learnt from and what is read for validation.

    Attributes:
        folder: the folder that the other paths are relative to.
        train: real lines.
        synthetic: rendered lines.
        validation: validation sets by name; their CER is logged as `eval_<name>_cer`, the mean of all as `eval_cer`.
        short_first: how many of the first lines are short ones; a decoder learns to look at the picture sooner on them.
    """

    folder: str = "."
    train: list[LineSource] = dataclasses.field(default_factory=list)
    synthetic: SyntheticLines | None = None
    validation: dict[str, ValidationLines] = dataclasses.field(default_factory=dict)
    short_first: int = 0

    def __post_init__(self) -> None:
        if not self.train and self.synthetic is None:
            raise ValueError("`data` wants lines to learn from, got none. Set `data.train` or `data.synthetic`.")


class Recipe:
    """What recipes of every task share. A task's recipe is a dataclass of its sections, `training` among them.

    Attributes:
        tasks: values of `task` that the recipe is for.
        architectures: values of `architecture` that it is for; empty where recipes of its tasks don't say.
        arguments_class: whose settings the section `training` holds.
        model, data, training: the sections; every task has its own of the first two.
    """

    tasks: ClassVar[tuple[str, ...]]
    architectures: ClassVar[tuple[str, ...]] = ()
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments
    task: str
    model: Any
    data: Any
    training: dict[str, Any]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(self.arguments_class)
        hints["fsdp"] = bool | str | None  # transformers says str and means bool
        hints[ITEMS_OF_UPDATE] = int
        known = self.section_keys()
        for key, value in self.training.items():
            refuse_unknown(key, known["training"], "training", known)
            _parse(hints[key], value, f"training.{key}", known)
        if getattr(self, "lora", None) is not None and not self.model.pretrained:
            raise ValueError(
                "`lora` wants a base that the adapter finds again, `model.pretrained`, got another `model`. Name a trained "
                "model, or leave `lora` out."
            )
        if (items := self.training.get(ITEMS_OF_UPDATE, 1)) < 1:
            raise ValueError(f"`training.{ITEMS_OF_UPDATE}` must be at least 1 item an update, got {items}. Change it.")
        if "output_dir" not in self.training:
            raise ValueError("A recipe wants `training.output_dir`, got none. Set it to a folder for the model.")

    @classmethod
    def architectures_of(cls, task: str) -> tuple[str, ...]:
        """The architectures that the recipe trains for one of its tasks."""
        return cls.architectures if task in cls.tasks else ()

    @classmethod
    def section_keys(cls) -> dict[str, list[str]]:
        """The keys of each section whose keys are known."""
        sections = {
            name: [field.name for field in dataclasses.fields(section)]
            for name, section in typing.get_type_hints(cls).items()
            if isinstance(section, type) and dataclasses.is_dataclass(section)
        }
        settings = [field.name for field in dataclasses.fields(cls.arguments_class) if field.init]
        return sections | {"training": [*settings, ITEMS_OF_UPDATE]}

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The recipe of a YAML file, with some values replaced.

        Args:
            path: a YAML file, or the name of a shipped recipe such as `trocr-mini-lines`.
            overrides: `key=value` with the key's sections joined by dots (`training.learning_rate=1e-4`,
                `data.train.0.weight=2`) and the value in YAML.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a key or a value is not understood.
        """
        return cls.parse(read_sections(path, overrides))

    @classmethod
    def parse(cls, sections: dict[str, Any]) -> Self:
        """The recipe of its sections, as `read_sections` gives them.

        Raises:
            ValueError: if a key or a value is not understood, or the recipe is one of another task.
        """
        if (task := sections.get("task", cls.tasks[0])) not in cls.tasks:
            raise ValueError(f"`task` must be {listed(cls.tasks)} here, got {task!r}. Run it by `hf-vlm train`.")
        return _parse(cls, sections, "", cls.section_keys())

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, as in the YAML file, with every default written out."""
        assert dataclasses.is_dataclass(self)
        return dataclasses.asdict(self)


@dataclasses.dataclass(kw_only=True)
class TrOCRRecipe(Recipe):
    """One training run of `TrOCREncoderDecoderForConditionalGeneration`: see the module's docstring.

    Raises:
        ValueError: if settings contradict each other, or a section holds a key or a value that it does not know.
    """

    tasks = ("ocr",)
    architectures = ("trocr",)
    arguments_class = Seq2SeqTrainingArguments

    task: str = "ocr"
    architecture: str = "trocr"
    model: ModelSection
    data: DataSection
    lora: LoraSection | None = None
    training: dict[str, Any]
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.section_keys()
        for key, value in self.generation.items():
            refuse_unknown(key, known["generation"], "generation", known)
            if key in _COUNTS and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`generation.{key}` must be a number of at least 1, got {value!r}. Change it.")

    @classmethod
    def section_keys(cls) -> dict[str, list[str]]:
        """The keys of each section whose keys are known."""
        return super().section_keys() | {"generation": list(vars(GenerationConfig()))}


def build_config(settings: Mapping[str, Any], section: str) -> PreTrainedConfig:
    """A configuration from a recipe's dict with its `model_type`.

    Raises:
        ValueError: if `model_type` is missing or unknown, or if the configuration has no such field; transformers'
            configurations would keep a misspelt field silently.
    """
    model_type = settings.get("model_type")
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f"Did you mean `{near[0]}`?" if near else "Name a registered one, such as `hf_vlm_vit`."
        raise ValueError(f"`{section}.model_type` must be a registered model type, got {model_type!r}. {hint}")
    config_class = CONFIG_MAPPING[model_type]
    fields = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for key in settings:
        refuse_unknown(key, fields | {"model_type"}, section)
    with named_section(section):
        return AutoConfig.for_model(**settings)


@contextlib.contextmanager
def named_section(section: str) -> Iterator[None]:
    """Around the making of a configuration: its own words on a wrong setting, with the recipe's section in front.

    Raises:
        ValueError: for a setting of the wrong type or value.
    """
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"`{section}`: {error.__cause__ or error}") from error


def _parse(wanted: Any, value: Any, key: str, sections: Mapping[str, Iterable[str]]) -> Any:
    """`value` as the annotated type `wanted`: dataclasses are built, the rest is checked. `key` is its dotted path.

    `sections` are the recipe's with the keys that they know, for hints.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, dict):
            raise ValueError(f"`{key or 'recipe'}` must be a section of keys, got {value!r}. See the shipped recipes.")
        hints = typing.get_type_hints(wanted)
        for name in value:
            refuse_unknown(name, [field.name for field in dataclasses.fields(wanted)], key, sections)
        missing = [
            field.name
            for field in dataclasses.fields(wanted)
            if field.name not in value
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"`{_joined(key, missing[0])}` is wanted, got nothing. Add it to the recipe.")
        return wanted(**{name: _parse(hints[name], part, _joined(key, name), sections) for name, part in value.items()})
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return _parse(inner[0], value, key, sections)
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], part, f"{key}.{index}", sections) for index, part in enumerate(value)]
    if origin is dict and isinstance(value, dict) and arguments[1] is not Any:
        return {name: _parse(arguments[1], part, f"{key}.{name}", sections) for name, part in value.items()}
    try:
        type_validator(key, value, wanted)
    except TypeError as error:
        if isinstance(value, int) and not isinstance(value, bool) and value == float(value):
            try:
                type_validator(key, float(value), wanted)  # 1 is a fine float
                return value
            except TypeError:
                pass
        name = getattr(wanted, "__name__", None) if origin is None else None
        raise ValueError(
            f"`{key}` must be {name or str(wanted).replace('typing.', '')}, got {value!r}. Change it in the recipe."
        ) from error
    return value


def refuse_unknown(
    key: str, known: Iterable[str], section: str, sections: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Checks that a section knows a key.

    Args:
        known: the section's keys.
        sections: those of the recipe with their keys: a key may have been meant for another.

    Raises:
        ValueError: if not; the message names the nearest key that is known.
    """
    known = sorted(known)
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        hint = f"Did you mean `{_joined(section, near[0])}`?"
    elif elsewhere := _section_of(str(key), sections or {}):
        hint = f"Did you mean `{elsewhere}`?"
    else:
        hint = f"It knows {listed(known[:12])}{' and more' if len(known) > 12 else ''}."
    raise ValueError(f"A known key is wanted in {f'`{section}`' if section else 'a recipe'}, got `{key}`. {hint}")


def _section_of(key: str, sections: Mapping[str, Iterable[str]]) -> str | None:
    """The dotted path of a key that was given without its section."""
    for section, known in sections.items():
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            return f"{section}.{near[0]}"
    return None


def _joined(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
