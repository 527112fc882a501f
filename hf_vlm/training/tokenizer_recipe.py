"""Recipes of visual tokenizers: VAE, VQ-VAE and discrete VAE.

task:       `image-tokenization`
model:      where the weights come from
data:       the folder of pictures, its splits, how training pictures are changed
lora:       adapters, which train in the place of a pretrained tokenizer's weights; see `LoraSection`
optimizer:  what the Trainer has no setting for
annealing:  values that change over the run, each with its schedule: `learning_rate`, and of the model `beta`,
            `temperature`, `kl_weight`
training:   any setting of transformers' `TrainingArguments`
"""

import dataclasses
from typing import Any

from hf_vlm.training.image_recipe import ImageDataSection
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.trainers.schedules import Schedule


@dataclasses.dataclass(kw_only=True)
class TokenizerModelSection:
    """Origin of the tokenizer: exactly one of `pretrained` and `config`.

    Attributes:
        pretrained: folder or Hub name of a tokenizer to go on with.
        config: settings of one to be trained from scratch, with its `model_type`: `hf_vlm_vae`, `hf_vlm_vqvae` or
            `hf_vlm_dvae`.
        settings: settings over those.
        image_processor: settings of its image processor, over those that follow from `image_size`; for `config` only.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_processor: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("pretrained", "config") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "The section `model` wants `pretrained` or `config`, got "
                f"{listed(given) or 'none of them'}. Give exactly one of the two."
            )
        if self.pretrained and self.image_processor:
            raise ValueError(
                "A pretrained tokenizer brings its image processor, got `model.image_processor` besides. Leave it out."
            )


@dataclasses.dataclass(kw_only=True)
class TokenizerOptimizerSection:
    """What `TrainingArguments` has no setting for.

    Attributes:
        weight_average: decay of a running mean of the weights, in (0, 1), which is validated and saved; None for none.
    """

    weight_average: float | None = None

    def __post_init__(self) -> None:
        if self.weight_average is not None and not 0 < self.weight_average < 1:
            raise ValueError(
                f"`optimizer.weight_average` must be in (0, 1), got {self.weight_average}. Usual is 0.999."
            )


@dataclasses.dataclass(kw_only=True)
class TokenizerRecipe(Recipe):
    """One training run of a visual tokenizer: see the module's docstring.

    Raises:
        ValueError: if settings contradict each other, or a section holds a key or a value that it does not know.
    """

    tasks = ("image-tokenization",)

    task: str
    model: TokenizerModelSection
    data: ImageDataSection
    lora: LoraSection | None = None
    optimizer: TokenizerOptimizerSection = dataclasses.field(default_factory=TokenizerOptimizerSection)
    annealing: dict[str, Schedule] = dataclasses.field(default_factory=dict)
    training: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.optimizer.weight_average is not None:
            raise ValueError(
                f"`optimizer.weight_average` is of whole weights, got {self.optimizer.weight_average} with `lora`. Set it to "
                "null."
            )
        if self.data.augmentation.is_mixing:
            raise ValueError(
                "`data.augmentation` mixes labels, got `mixup` or `cutmix` for pictures without. Set both to 0."
            )
