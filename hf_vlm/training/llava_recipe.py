"""Recipes of LLaVA: which parts, which conversations, what trains.

task:       what the sets hold where they don't say so themselves: `chat`, `caption`, `vqa`, `nlvr` or `translate`
model:      where the weights come from
data:       which conversations are learnt from, which are validated, and how they share a batch
parts:      which parts train, how fast each, and whether by LoRA
training:   any setting of transformers' `TrainingArguments`
generation: any setting of transformers' `GenerationConfig`; saved with the model
"""

import dataclasses
from typing import Any, Literal

from transformers import GenerationConfig

from hf_vlm.data.worker_processes import check_num_proc
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.recipe import Recipe, refuse_unknown
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.task_sources import TaskSource, WeightedSource

ROLES = ("projector", "language", "vision")


@dataclasses.dataclass(kw_only=True)
class LlavaModelSection:
    """Origin of model and processor: `pretrained`, or `vision` with `text`.

    Attributes:
        pretrained: folder or Hub name of a whole LLaVA to go on with, such as that of the first phase.
        vision: folder or Hub name of a pretrained vision encoder.
        text: folder or Hub name of a pretrained causal language model, whose tokenizer is taken too.
        projector: file `projector.safetensors` of an earlier run for the same parts, to start the projector from.
        settings: settings of the whole model, such as `label_smoothing`; with `vision` and `text` also those of
            `from_pretrained_parts`, such as `image_size` and `num_linear_layers`.
        chat_template: with `vision` and `text`: `llava_v1` and the like, or Jinja; None means the tokenizer's own.
        image_aspect_ratio: with `vision` and `text`: "pad" makes pictures square first, "square" leaves them to the image
            processor.
    """

    pretrained: str | None = None
    vision: str | None = None
    text: str | None = None
    projector: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    chat_template: str | None = None
    image_aspect_ratio: Literal["pad", "square"] = "pad"

    def __post_init__(self) -> None:
        given = {name for name in ("pretrained", "vision", "text") if getattr(self, name)}
        if given not in ({"pretrained"}, {"vision", "text"}):
            raise ValueError(
                "The section `model` wants `pretrained`, or `vision` with `text`, got "
                f"{listed(sorted(given)) or 'none of them'}. Give exactly one of the two; to "
                "replace what a recipe has, give the whole section: `'model={pretrained: FOLDER}'`."
            )
        if self.pretrained and self.chat_template:
            raise ValueError(
                "A pretrained model brings its chat template, got `model.chat_template` besides. Leave it out."
            )


@dataclasses.dataclass(kw_only=True)
class MixtureSource(WeightedSource):
    """One set of a mixture.

    Attributes:
        max_exchanges: how many questions about one picture make a conversation, where rows are single questions.
    """

    max_exchanges: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_exchanges < 1:
            raise ValueError(
                f"`max_exchanges` of `{self.path}` must be 1 or more, got {self.max_exchanges}. Correct it."
            )


@dataclasses.dataclass(kw_only=True)
class LlavaDataSection:
    """What is learnt from, and how it shares batches.

    Attributes:
        folder: the folder that the other paths are relative to.
        train: the mixture, every row once an epoch, or as often as its set's `weight` says.
        validation: sets by name; their loss is logged as `eval_<name>_loss`.
        context: None takes conversations as they are. For captions, whose conversations have one exchange: "instruction" asks
            for each by one of our brief requests, "plain" shows picture and caption alone, as LLaVA's first phase does.
        max_length: the most tokens of a conversation, those of pictures included; longer ones lose exchanges at their end.
        max_tokens: of a row into which several conversations are packed; None packs none, and pads batches. A batch is one row,
            unless `training.per_device_train_batch_size` asks for more, which then lie in one row of so many times the length.
        grouping: how conversations that share a batch are chosen: "none" at random, "length" of like length, "modality" all
            with pictures or all without, of like length within (LLaVA-1.5). Without meaning for packed rows.
        bad_pictures: "fail" stops at a picture that can't be read, naming its row; "skip" learns nothing from the row, and
            lists it in `skipped_rows.txt` of the output folder.
        features_folder: where the vision encoder's features are kept, relative to `training.output_dir`; they are computed
            once and read from then on. None computes them in every step. For a vision encoder that doesn't train; takes
            4 bytes a number: 96 kB a picture for 64 tokens of 384.
        num_proc: processes that turn the conversations into tokens before the first step. With 2 and more, the first process of
            each machine has it done, and what they made is kept in the cache of `datasets` (`HF_DATASETS_CACHE`) for the others
            and for later runs on the same data.
    """

    folder: str = "."
    train: list[MixtureSource] = dataclasses.field(default_factory=list)
    validation: dict[str, TaskSource] = dataclasses.field(default_factory=dict)
    context: Literal["instruction", "plain"] | None = None
    max_length: int = 2048
    max_tokens: int | None = None
    grouping: Literal["none", "length", "modality"] = "none"
    bad_pictures: Literal["fail", "skip"] = "fail"
    features_folder: str | None = None
    num_proc: int = 1

    def __post_init__(self) -> None:
        check_num_proc(self.num_proc, "data.num_proc")
        if not self.train:
            raise ValueError("`data` wants conversations to learn from, got none. Set `data.train`.")
        if self.max_length < 2:
            raise ValueError(f"`data.max_length` must be 2 or more, got {self.max_length}. LLaVA's is 2048.")
        if self.max_tokens is not None and self.max_tokens < self.max_length:
            raise ValueError(
                f"A row of `data.max_tokens` must hold the longest conversation, got {self.max_tokens} for "
                f"`data.max_length` {self.max_length}. Raise it, or lower `max_length`."
            )
        if self.max_tokens is not None and self.grouping != "none":
            raise ValueError(
                f"`data.grouping` is for padded batches, got {self.grouping!r} with `max_tokens`. Leave one of them out."
            )
        if self.features_folder is not None and self.bad_pictures == "skip":
            raise ValueError(
                "`data.features_folder` wants pictures that can all be read, got `data.bad_pictures` 'skip'. Leave one of them "
                "out, or take the rows out (`hf-vlm audit` names them)."
            )


@dataclasses.dataclass(kw_only=True)
class RecipeLora(LoraSection):
    """As `LoraSection`; what trains in full beside the adapters is `parts.train`."""

    roles: list[str] = dataclasses.field(default_factory=lambda: ["language"])
    train: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class PartsSection:
    """Which parts train.

    Attributes:
        train: of `projector`, `language` and `vision`; what is not named is frozen and runs without gradient. The first
            phase trains the projector, the second projector and language model. With `lora` the parts named here beside
            the adapted ones train in full.
        learning_rates: rate by part, where it is not `training.learning_rate`. An adapter's is that of its part.
        lora: adapters instead of the whole weights of the parts in its `roles`.
    """

    train: list[str] = dataclasses.field(default_factory=lambda: ["projector", "language"])
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict)
    lora: RecipeLora | None = None

    def __post_init__(self) -> None:
        for name in (*self.train, *self.learning_rates):
            if name not in ROLES:
                raise ValueError(f"A part must be one of {listed(ROLES)}, got {name!r} in `parts`. Correct it.")
        if not self.train and self.lora is None:
            raise ValueError("`parts.train` wants a part that trains, got none. Name `projector`.")
        adapted = set(self.lora.roles) if self.lora is not None else set()
        if both := sorted(adapted & set(self.train)):
            raise ValueError(
                f"A part trains in full or by LoRA, got `{both[0]}` in `parts.train` and in `parts.lora.roles`. Take it out "
                "of one."
            )
        for name in self.learning_rates:
            if name not in adapted | set(self.train):
                raise ValueError(
                    f"`parts.learning_rates` is for parts that train, got `{name}`, which doesn't. Leave it out, or name it in "
                    "`parts.train`."
                )
        if self.lora is not None:
            if self.lora.train not in ([], self.train):
                raise ValueError(
                    f"`parts.train` tells what trains in full beside adapters, got {self.lora.train} in `parts.lora.train`. "
                    "Leave that out."
                )
            self.lora.train = list(self.train)


@dataclasses.dataclass(kw_only=True)
class LlavaRecipe(Recipe):
    """One training run of `LlavaVisionLanguageForConditionalGeneration`: see the module's docstring.

    Raises:
        ValueError: if settings contradict each other, or a section holds a key or a value that it does not know.
    """

    tasks = ("chat", "caption", "vqa", "nlvr", "translate")
    architectures = ("llava",)

    task: str
    architecture: str = "llava"
    model: LlavaModelSection
    data: LlavaDataSection
    parts: PartsSection = dataclasses.field(default_factory=PartsSection)
    training: dict[str, Any]
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.section_keys()
        for key in self.generation:
            refuse_unknown(key, known["generation"], "generation", known)
        if self.training.get("label_smoothing_factor"):
            raise ValueError(
                "Labels are smoothed by the model, which shifts them, got `training.label_smoothing_factor`. Set "
                "`model.settings.label_smoothing` in its place."
            )
        trains_vision = "vision" in self.parts.train or (
            self.parts.lora is not None and "vision" in self.parts.lora.roles
        )
        if self.data.features_folder is not None and trains_vision:
            raise ValueError(
                "`data.features_folder` keeps features of a vision encoder that stays as it is, got one that trains. Leave it "
                "out, or freeze the encoder."
            )
        if self.parts.lora is not None and "vision" in self.parts.train:
            raise ValueError(
                "Beside adapters the projector trains in full, got `vision` in `parts.train`. Name it in `parts.lora.roles`."
            )
        if self.parts.lora is not None and (self.training.get("fsdp") or self.training.get("deepspeed")):
            raise ValueError(
                "`parts.lora` is saved from whole weights, got `training.fsdp` or `training.deepspeed`, which split them. Train "
                "adapters by DDP (`torchrun`), or without `parts.lora`."
            )
        if self.parts.lora is not None and not self.model.pretrained:
            raise ValueError(
                "`parts.lora` wants a base that the adapter finds again, `model.pretrained`, got parts. Train the projector "
                "first (`llava-projector`), or save the assembled model, and name that folder."
            )

    @classmethod
    def section_keys(cls) -> dict[str, list[str]]:
        """The keys of each section whose keys are known."""
        return super().section_keys() | {"generation": list(vars(GenerationConfig()))}
