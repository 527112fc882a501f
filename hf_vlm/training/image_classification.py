"""Training on pictures: a recipe in, a folder with model, image processor, checkpoints and logs out.

The data's way: a folder of pictures -> `TrainingImages` (which item comes when, and how it is changed, is a function of
seed and step) -> `TrainingBatch` (normalised, mixed by MixUp or CutMix) -> transformers' `Trainer`. Any model of
`AutoModelForImageClassification` is trained, and any of `AutoModelForMaskedImageModeling` that masks by itself, on
pixels or on the codes of a visual tokenizer.
"""

import math
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from hf_vlm.data.labelled_images import LabelledImages, ProcessedBatch, TrainingBatch, TrainingImages, read_images
from hf_vlm.training.arguments import items_per_update, training_arguments
from hf_vlm.training.image_models import build_model, measure_processor, model_names
from hf_vlm.training.image_recipe import CLASSIFICATION, ImageRecipe
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.runs import Resume, run
from hf_vlm.training.trainers.adapter_training import with_adapters
from hf_vlm.training.trainers.code_targets import CodeTargets, load_code_targets
from hf_vlm.training.trainers.image_trainer import ImageTrainer

# What this trainer needs to be right; a recipe that asks for something else is refused.
FIXED_SETTINGS = {
    "remove_unused_columns": False,  # rows hold `image`, which `forward` has no parameter for
    "train_sampling_strategy": "sequential",  # the training set is shuffled by its seed
}


def train(recipe: ImageRecipe, resume: Resume = True) -> ImageTrainer:
    """The trainer after the run, its model the best of the run (highest `eval_accuracy`, of masked modelling the lowest
    `eval_loss`; the last if nothing was validated).

    `training.output_dir` then holds model and image processor as a folder for `from_pretrained`, the recipe as it was
    run, and the checkpoints.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one, or "required". The resumed run ends
            with the weights that the uninterrupted one would have.

    Raises:
        ValueError: if recipe, model and pictures do not fit each other, before any training.
    """
    trainer = build_trainer(recipe)
    run(trainer, recipe, resume)
    return trainer


def build_trainer(recipe: ImageRecipe) -> ImageTrainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: as `train`.
    """
    arguments = build_arguments(recipe)
    set_seed(arguments.seed)  # new weights are drawn before the Trainer would set it
    is_classifier = recipe.task == CLASSIFICATION
    data = recipe.data
    rows = read_images(data.folder, data.train, with_labels=is_classifier)
    validation = None
    if data.validation is not None:
        validation = read_images(data.folder, data.validation, with_labels=is_classifier)
    if is_classifier and len(rows.names) < 2:
        raise ValueError(f"Two classes or more are wanted to tell apart, got {listed(rows.names)}. Add pictures.")
    model, processor = build_model(recipe, rows.names)
    if is_classifier:
        rows, validation = _numbered_as_in(model, rows), validation and _numbered_as_in(model, validation)
        _check_loss(model, arguments)
    statistics, prepare = measure_processor(processor, model.config)
    code_targets = None
    if recipe.model.tokenizer:
        code_targets = load_code_targets(recipe.model.tokenizer, model, statistics, _patch_grid(model, statistics.size))
    if not is_classifier:
        _check_masking(model, statistics.size, code_targets)
    items_per_step = items_per_update(arguments)
    if arguments.max_steps <= 0:  # the training set is one endless epoch: count its steps from the pictures
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * len(rows) / items_per_step))
    pictures = TrainingImages(
        rows,
        data.augmentation.transform(statistics.size, statistics.mean_level),
        seed=arguments.seed,
        length=arguments.max_steps * items_per_step,
        prepare=prepare,
    )
    collator = TrainingBatch(
        statistics.scale, statistics.offset, data.augmentation, num_classes=len(rows.names), seed=arguments.seed
    )
    return ImageTrainer(
        model=with_adapters(model, recipe.lora, recipe.model.pretrained, arguments, processor),
        args=arguments,
        train_dataset=pictures,
        eval_dataset=validation,
        data_collator=collator,
        eval_collator=ProcessedBatch(processor, prepare),
        processing_class=processor,
        layer_decay=recipe.optimizer.layer_decay,
        is_classifier=is_classifier,
        code_targets=code_targets,
        lora=recipe.lora,
    )


def build_arguments(recipe: ImageRecipe) -> TrainingArguments:
    """The Trainer's settings: the recipe's, over defaults that keep the best checkpoint where pictures are validated.

    Raises:
        ValueError: if the recipe asks for one of `FIXED_SETTINGS` otherwise, or the settings contradict each other.
    """
    is_classifier = recipe.task == CLASSIFICATION
    defaults: dict[str, Any] = {"label_names": ["labels"] if is_classifier else []}
    if recipe.data.validation is not None:
        defaults.update(
            eval_strategy="steps",
            metric_for_best_model="accuracy" if is_classifier else "loss",
            greater_is_better=is_classifier,
            load_best_model_at_end=True,
        )
    return training_arguments(recipe, defaults, FIXED_SETTINGS)


def _numbered_as_in(model: Any, rows: LabelledImages) -> LabelledImages:
    return rows.with_names(model_names(model.config))


def _patch_grid(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the patches whose codes a model predicts.

    Raises:
        ValueError: if it is not one of ours that predicts codes.
    """
    if getattr(model.config, "masked_image_target", None) != "codes":
        raise ValueError(
            f"A tokenizer's codes are predicted by a model of `masked_image_target: codes`, got `{type(model).__name__}` with "
            "other targets. Set it in `model.config`, or leave `model.tokenizer` out."
        )
    return model.vision_model.grid_size(*size)


@torch.no_grad()
def _check_masking(model: Any, size: tuple[int, int], code_targets: CodeTargets | None) -> None:
    """Raises ValueError if a model gives no loss on pictures alone, or with the codes of a tokenizer."""
    picture = torch.zeros(1, getattr(model.config, "num_channels", 3), *size)
    targets = {} if code_targets is None else {"code_ids": code_targets(picture)}
    if getattr(model(pixel_values=picture, **targets), "loss", None) is None:
        raise ValueError(
            "Masked pre-training here wants a model that draws its masks and predicts pixels, or a tokenizer's codes, got "
            f"`{type(model).__name__}` with other targets. Set `masked_image_target: pixels` of an `hf_vlm_vit`, or name a "
            "`model.tokenizer`."
        )


def _check_loss(model: Any, arguments: TrainingArguments) -> None:
    """Raises ValueError if labels would be smoothed twice."""
    smoothing = getattr(model.config, "label_smoothing", 0)
    if smoothing and arguments.label_smoothing_factor:
        raise ValueError(
            f"Labels are smoothed by model or Trainer, got `label_smoothing`={smoothing} in the model's config beside "
            "Trainer's `label_smoothing_factor`. Set one of the two to 0."
        )
