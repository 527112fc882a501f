"""Recipes of image classifiers and of their masked pre-training.

task:       `image-classification` or `masked-image-modeling`
model:      where the weights come from
data:       the folder of pictures, its splits, how training pictures are changed
lora:       adapters, which train in the place of a pretrained model's weights; see `LoraSection`
optimizer:  what the Trainer has no setting for
training:   any setting of transformers' `TrainingArguments`
"""

import dataclasses
from typing import Any

from hf_vlm.data.labelled_images import ImageAugmentation
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.recipe_files import listed

CLASSIFICATION, MASKED_MODELING = "image-classification", "masked-image-modeling"


@dataclasses.dataclass(kw_only=True)
class ImageModelSection:
    """Origin of the model: exactly one of `pretrained`, `config` and `backbone`.

    Attributes:
        pretrained: folder or Hub name of a model that transformers' auto class of the task loads; a classifier of other
            classes, or a model of another task, gets a new head.
        config: settings of a model to be trained from scratch, with its `model_type`.
        backbone: folder or Hub name of a pretrained convolutional network, before a vision transformer from scratch.
        tokenizer: folder or Hub name of a visual tokenizer, whose codes a model of `masked_image_target: codes` is to
            predict; for masked-image-modeling only.
        settings: settings over those of `pretrained` or `config`, such as `image_size`, `label_smoothing` or
            `drop_path_rate`; with `backbone` those of `VisionTransformer...from_pretrained_parts`.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    backbone: str | None = None
    tokenizer: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("pretrained", "config", "backbone") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "The section `model` wants `pretrained`, `config` or `backbone`, got "
                f"{listed(given) or 'none of them'}. Give exactly one of the three."
            )


@dataclasses.dataclass(kw_only=True)
class ImageDataSection:
    """Pictures to learn from and to validate on, as `hf_vlm.data.labelled_images.read_images` reads them.

    Attributes:
        folder: of the data set.
        train: split to learn from; None if the folder has one split only.
        validation: split to validate on; None for no validation.
        augmentation: how training pictures are changed.
    """

    folder: str
    train: str | None = "train"
    validation: str | None = "validation"
    augmentation: ImageAugmentation = dataclasses.field(default_factory=ImageAugmentation)


@dataclasses.dataclass(kw_only=True)
class OptimizerSection:
    """What `TrainingArguments` has no setting for.

    Attributes:
        layer_decay: in (0, 1]: the learning rate of each layer is that of the next times this; 1 is the same for all.

    Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254, appendix on fine-tuning.
    """

    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`optimizer.layer_decay` must be in (0, 1], got {self.layer_decay}. 1 is none.")


@dataclasses.dataclass(kw_only=True)
class ImageRecipe(Recipe):
    """One training run of an image classifier, or of masked image modelling: see the module's docstring.

    Raises:
        ValueError: if settings contradict each other, or a section holds a key or a value that it does not know.
    """

    tasks = (CLASSIFICATION, MASKED_MODELING)

    task: str
    model: ImageModelSection
    data: ImageDataSection
    lora: LoraSection | None = None
    optimizer: OptimizerSection = dataclasses.field(default_factory=OptimizerSection)
    training: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.optimizer.layer_decay != 1:
            raise ValueError(
                f"`optimizer.layer_decay` is for whole weights, got {self.optimizer.layer_decay} with `lora`. Set it to 1."
            )
        is_mixing = self.data.augmentation.is_mixing
        if self.task == MASKED_MODELING and is_mixing:
            raise ValueError(
                "`data.augmentation` mixes labels, got `mixup` or `cutmix` for masked-image-modeling, which has none. Set "
                "both to 0."
            )
        if self.task != MASKED_MODELING and self.model.tokenizer:
            raise ValueError(
                f"`model.tokenizer` is for {MASKED_MODELING}, got it for {self.task}. Leave it out, or set `task`."
            )
        if is_mixing and self.training.get("label_smoothing_factor"):
            raise ValueError(
                "`training.label_smoothing_factor` wants one class a picture, got `mixup` or `cutmix` besides. Set "
                "`model.settings.label_smoothing` in its place."
            )
