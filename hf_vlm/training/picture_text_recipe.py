"""Recipes of encoder-decoders that write about one picture: captions by a CNN + LSTM or TrOCR, answers by TrOCR.

task:         `caption` or `vqa`; for lines of text see the recipes of `ocr`
architecture: `cnn_lstm` or `trocr`
model:        where the weights come from
data:         what is learnt from and what is validated
parts:        which parts train
lora:         adapters, which train in the place of a pretrained model's weights; see `LoraSection`
training:     any setting of transformers' `TrainingArguments`
generation:   any setting of transformers' `GenerationConfig`; saved with the model
"""

import dataclasses
from typing import Any, Literal

from transformers import GenerationConfig

from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.recipe import Recipe, refuse_unknown
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.task_sources import TaskSource, WeightedSource

ROLES = ("vision", "projector", "decoder")


@dataclasses.dataclass(kw_only=True)
class PictureTextModelSection:
    """Origin of model and processor: `pretrained`, or `vision` with `text`.

    Attributes:
        pretrained: folder or Hub name of a whole model to go on with.
        vision: folder or Hub name of a pretrained vision encoder.
        text: folder or Hub name: of a pretrained text model for TrOCR, of a tokenizer for a CNN + LSTM; for the latter also
            `words`, a vocabulary of the words of the training captions.
        min_word_count: for `words`: how often a word must be there.
        max_label_length: tokens in a label at most, question and end token included; None means what the decoder has
            positions for.
        settings: settings of the whole model, such as `attention` or `label_smoothing`; with `vision` and `text` also those
            of `from_pretrained_parts`.
    """

    pretrained: str | None = None
    vision: str | None = None
    text: str | None = None
    min_word_count: int = 4
    max_label_length: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name for name in ("pretrained", "vision", "text") if getattr(self, name)}
        if given not in ({"pretrained"}, {"vision", "text"}):
            raise ValueError(
                "The section `model` wants `pretrained`, or `vision` with `text`, got "
                f"{listed(sorted(given)) or 'none of them'}. Give exactly one of the two; to "
                "replace what a recipe has, give the whole section: `'model={pretrained: FOLDER}'`."
            )


@dataclasses.dataclass(kw_only=True)
class PictureTextDataSection:
    """What is learnt from and what is validated.

    Attributes:
        folder: the folder that the other paths are relative to.
        train: the mixture, every row once an epoch, or as often as its set's `weight` says; each caption is a row.
        validation: sets by name; loss and the task's scores are logged as `eval_<name>_...`, means of several as `eval_...`.
        features_folder: where the vision encoder's features are kept, relative to `training.output_dir`; they are computed
            once a picture and read from then on. None computes them in every step. For a vision encoder that doesn't train.
    """

    folder: str = "."
    train: list[WeightedSource] = dataclasses.field(default_factory=list)
    validation: dict[str, TaskSource] = dataclasses.field(default_factory=dict)
    features_folder: str | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("`data` wants sets to learn from, got none. Set `data.train`.")


@dataclasses.dataclass(kw_only=True)
class PictureTextPartsSection:
    """Which parts train.

    Attributes:
        train: of `vision`, `projector` and `decoder`; what is not named is frozen.
    """

    train: list[str] = dataclasses.field(default_factory=lambda: ["projector", "decoder"])

    def __post_init__(self) -> None:
        for name in self.train:
            if name not in ROLES:
                raise ValueError(f"A part must be one of {listed(ROLES)}, got {name!r} in `parts.train`. Correct it.")
        if not self.train:
            raise ValueError("`parts.train` wants a part that trains, got none. Name `decoder`.")


@dataclasses.dataclass(kw_only=True)
class PictureTextRecipe(Recipe):
    """One training run of a CNN + LSTM or TrOCR on captions or questions: see the module's docstring.

    Raises:
        ValueError: if settings contradict each other, or a section holds a key or a value that it does not know.
    """

    tasks = ("caption", "vqa")
    architectures = ("cnn_lstm", "trocr")

    task: str
    architecture: Literal["cnn_lstm", "trocr"]
    model: PictureTextModelSection
    data: PictureTextDataSection
    parts: PictureTextPartsSection = dataclasses.field(default_factory=PictureTextPartsSection)
    lora: LoraSection | None = None
    training: dict[str, Any]
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.section_keys()
        for key in self.generation:
            refuse_unknown(key, known["generation"], "generation", known)
        if self.lora is not None and self.parts != PictureTextPartsSection():
            raise ValueError(
                f"`lora.train` tells what trains in full beside adapters, got {self.parts.train} in `parts.train` too. Leave "
                "that out."
            )
        adapted = [] if self.lora is None else [*(self.lora.roles or ()), *(self.lora.train or ())]
        if self.data.features_folder is not None and "vision" in [*self.parts.train, *adapted]:
            raise ValueError(
                "`data.features_folder` keeps features of a vision encoder that stays as it is, got one that trains. Leave it "
                "out, or take `vision` out of `parts.train`."
            )
        if self.model.text == "words" and self.architecture != "cnn_lstm":
            raise ValueError(
                "`model.text: words` makes a vocabulary for a CNN + LSTM, got it with `trocr`. Name a pretrained text model."
            )
        for source in (*self.data.train, *self.data.validation.values()):
            if source.task not in (None, self.task):
                raise ValueError(
                    f"All sets must be of the recipe's task `{self.task}`, got `{source.path}` of `{source.task}`. Mix tasks "
                    "with `architecture: llava`."
                )

    @classmethod
    def architectures_of(cls, task: str) -> tuple[str, ...]:
        """The architectures that the recipe trains for one of its tasks."""
        return {"caption": ("cnn_lstm", "trocr"), "vqa": ("trocr",)}.get(task, ())

    @classmethod
    def section_keys(cls) -> dict[str, list[str]]:
        """The keys of each section whose keys are known."""
        return super().section_keys() | {"generation": list(vars(GenerationConfig()))}
