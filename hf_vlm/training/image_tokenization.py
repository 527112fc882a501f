"""Training of visual tokenizers: a recipe in, a folder with tokenizer, image processor, checkpoints, logs and pictures out.

The data's way: a folder of pictures -> `TrainingImages` (which item comes when, and how it is changed, is a function of
seed and step) -> `TrainingBatch` -> `TokenizerTrainer`.
"""

import logging
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, TrainingArguments, set_seed
from transformers.processing_utils import ImagesKwargs

from hf_vlm.data.labelled_images import ProcessedBatch, TrainingBatch, TrainingImages, read_images
from hf_vlm.parts.checkpoint_files import naming_faults, read_config
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.training.arguments import items_per_update, training_arguments
from hf_vlm.training.image_models import (
    check_unit_range,
    measure_processor,
    new_processor,
    refuse_unknown_settings,
    resized_processor,
    saved_processor,
)
from hf_vlm.training.recipe import build_config, named_section, refuse_unknown
from hf_vlm.training.recipe_files import listed
from hf_vlm.training.runs import Resume, run
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe
from hf_vlm.training.trainers.adapter_training import with_adapters
from hf_vlm.training.trainers.schedules import AnnealingCallback, Schedule, check_schedules
from hf_vlm.training.trainers.tokenizer_trainer import TokenizerTrainer

logger = logging.getLogger(__name__)

# What this trainer needs to be right; a recipe that asks for something else is refused.
FIXED_SETTINGS = {
    "remove_unused_columns": False,  # rows hold `image`, which `forward` has no parameter for
    "train_sampling_strategy": "sequential",  # the training set is shuffled by its seed
    "label_names": [],
}


def train(recipe: TokenizerRecipe, resume: Resume = True) -> TokenizerTrainer:
    """The trainer after the run.

    `training.output_dir` then holds tokenizer and image processor as a folder for `from_pretrained`, the recipe as it was
    run, the checkpoints, and `pictures/`.

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


def build_trainer(recipe: TokenizerRecipe) -> TokenizerTrainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: as `train`.
    """
    arguments = build_arguments(recipe)
    set_seed(arguments.seed)  # new weights are drawn before the Trainer would set it
    model, processor = build_tokenizer(recipe)  # before the pictures: a wrong setting is told at once
    data = recipe.data
    rows = read_images(data.folder, data.train, with_labels=False)
    validation = None
    if data.validation is not None:
        validation = read_images(data.folder, data.validation, with_labels=False)
    schedules = dict(recipe.annealing)
    of_learning_rate = schedules.pop("learning_rate", None)
    if of_learning_rate is not None:
        _check_learning_rate(recipe, of_learning_rate)
        arguments.learning_rate = of_learning_rate.start
        arguments.warmup_steps = 0
    check_schedules(model, schedules)
    statistics, prepare = measure_processor(processor, model.config)
    check_unit_range(processor, statistics)
    items_per_step = items_per_update(arguments)
    if arguments.max_steps <= 0:  # the training set is one endless epoch: count its steps from the pictures
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * len(rows) / items_per_step))
    for name, schedule in recipe.annealing.items():
        if schedule.num_steps is not None and arguments.max_steps < schedule.num_steps:
            logger.warning(
                "`annealing.%s` ends after %d steps, the run after %d: shorten it, or train longer.",
                name,
                schedule.num_steps,
                arguments.max_steps,
            )
    pictures = TrainingImages(
        rows,
        data.augmentation.transform(statistics.size, statistics.mean_level),
        seed=arguments.seed,
        length=arguments.max_steps * items_per_step,
        prepare=prepare,
    )
    return TokenizerTrainer(
        model=with_adapters(model, recipe.lora, recipe.model.pretrained, arguments, processor),
        args=arguments,
        train_dataset=pictures,
        eval_dataset=validation,
        data_collator=TrainingBatch(statistics.scale, statistics.offset, data.augmentation, seed=arguments.seed),
        eval_collator=ProcessedBatch(processor, prepare),
        processing_class=processor,
        annealing=AnnealingCallback(schedules) if schedules else None,
        of_learning_rate=of_learning_rate,
        weight_average=recipe.optimizer.weight_average,
        lora=recipe.lora,
    )


def build_tokenizer(recipe: TokenizerRecipe) -> tuple[PreTrainedModel, Any]:
    """Tokenizer, in fp32 whatever its file holds, and image processor of a recipe.

    Raises:
        ValueError: if the settings fit no tokenizer.
    """
    section = recipe.model
    with named_section("model.settings"):
        if section.pretrained:
            read_config(section.pretrained)  # tells of a missing folder by its name
            stored = AutoConfig.from_pretrained(section.pretrained)
            _check_is_tokenizer(stored)
            refuse_unknown_settings(section.settings, type(stored))
            with naming_faults(section.pretrained):
                model = AutoModel.from_pretrained(section.pretrained, dtype=torch.float32, **section.settings)
            processor = saved_processor(section.pretrained, model.config)
            if "image_size" in section.settings:
                processor = _resized(processor, model.config)
            return model.float(), processor
        given = section.config or {}
        refuse_unknown_settings(section.settings, type(build_config(given, "model.config")))
        config = build_config({**given, **section.settings}, "model.config")
        _check_is_tokenizer(config)
        model = AutoModel.from_config(config)
    processor = new_processor(config)
    known = set(type(processor).valid_kwargs.__annotations__) | set(ImagesKwargs.__annotations__)
    for name in section.image_processor:
        refuse_unknown(name, known, "model.image_processor")
    return model.float(), type(processor)(**{**processor.to_dict(), **section.image_processor})


def _resized(processor: Any, config: PreTrainedConfig) -> Any:
    """The processor, made to give pictures of the configured size; one that crops goes on cropping."""
    does_crop = processor.do_center_crop
    processor = resized_processor(processor, config)
    if does_crop:
        height, width = configured_image_size(config)
        processor.size, processor.do_center_crop = {"shortest_edge": max(height, width)}, True
        processor.crop_size = {"height": height, "width": width}
    return processor


def build_arguments(recipe: TokenizerRecipe) -> TrainingArguments:
    """The Trainer's settings: the recipe's, over defaults that validate where there are pictures for it.

    Raises:
        ValueError: if the recipe asks for one of `FIXED_SETTINGS` otherwise, or the settings contradict each other.
    """
    defaults = {"eval_strategy": "steps"} if recipe.data.validation is not None else {}
    return training_arguments(recipe, defaults, FIXED_SETTINGS)


def _check_learning_rate(recipe: TokenizerRecipe, schedule: Schedule) -> None:
    """Says what is not used beside a schedule of the learning rate; raises ValueError if that is no rate."""
    unused = [name for name in ("learning_rate", "lr_scheduler_type", "warmup_steps") if name in recipe.training]
    if unused:
        logger.warning(
            "`annealing.learning_rate` sets the rate; not used: %s.", listed(f"training.{x}" for x in unused)
        )
    if not schedule.start > 0 or (schedule.end is not None and not schedule.end >= 0):
        raise ValueError(
            f"`annealing.learning_rate` must start above 0 and end at 0 or more, got {schedule.start} and {schedule.end}. "
            "Correct it."
        )


def _check_is_tokenizer(config: PreTrainedConfig) -> None:
    known = type(config) in AutoModel._model_mapping
    if not known or not hasattr(AutoModel._model_mapping[type(config)], "reconstruct"):
        raise ValueError(
            f"A visual tokenizer is wanted, got a `{config.model_type}`. Name one of `hf_vlm_vae`, `hf_vlm_vqvae`, "
            "`hf_vlm_dvae`."
        )
