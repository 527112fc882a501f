"""Training LLaVA on conversations: a recipe in, a folder with model, processor, checkpoints and logs out.

The data's way: conversations -> `EncodedConversations` (tokens, what is learnt, pictures or their features) ->
`ConversationSchedule` (which come when, and share a row, is a function of seed and step) -> `ConversationCollator` ->
`ConversationTrainer`.

The papers' two phases are two recipes: the projector alone on captions, then projector and language model on conversations.

Source: Liu et al. 2023a, section 4.2, https://arxiv.org/abs/2304.08485
"""

import contextlib
import dataclasses
import inspect
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from hf_vlm.data.collators import ConversationCollator
from hf_vlm.data.conversations.conversation_order import ConversationSchedule
from hf_vlm.data.conversations.conversations import Conversations
from hf_vlm.data.conversations.encoded_conversations import EncodedConversations, JoinedConversations
from hf_vlm.models.llava.assembly import check_processor, load_parts
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.parts.language_model import packing_way
from hf_vlm.training.arguments import items_per_update, training_arguments
from hf_vlm.training.feature_cache import cached_features
from hf_vlm.training.freezing import freeze
from hf_vlm.training.llava_recipe import LlavaRecipe, MixtureSource
from hf_vlm.training.lora import add_lora, loading_arguments
from hf_vlm.training.projector_files import load_projector
from hf_vlm.training.recipe import named_section, refuse_unknown
from hf_vlm.training.runs import Resume, run
from hf_vlm.training.task_sources import TaskSource, read_source
from hf_vlm.training.trainers.conversation_trainer import ConversationTrainer

logger = logging.getLogger(__name__)

LOSS_CHUNK_SIZE = 1024  # tokens whose logits exist at a time: 200 MB of a vocabulary of 49,152 in fp32

# What this trainer needs to be right; a recipe that asks for something else is refused.
FIXED_SETTINGS = {
    "remove_unused_columns": False,  # items are lists of encoded conversations
    "train_sampling_strategy": "sequential",  # the schedule is shuffled by its seed
    "prediction_loss_only": True,  # the logits of a validation set would fill the memory
}


def train(recipe: LlavaRecipe, resume: Resume = True) -> ConversationTrainer:
    """The trainer after the run.

    `training.output_dir` then holds model (or adapter) and processor as a folder for `from_pretrained`, the projector by
    itself, the recipe as it was run, and the checkpoints.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one, or "required". The resumed run ends
            with the weights that the uninterrupted one would have.

    Raises:
        ValueError: if recipe, model and conversations do not fit each other, before any training.
        FloatingPointError: if a loss, gradient or weight is NaN or infinite, naming step and rows.
        TrainingStopped: after a signal, with a checkpoint of the last step.
    """
    trainer = build_trainer(recipe)
    run(trainer, recipe, resume)
    return trainer


def build_trainer(recipe: LlavaRecipe) -> ConversationTrainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: as `train`.
    """
    defaults: dict[str, Any] = {"label_names": ["labels"]}
    data = recipe.data
    if data.validation:
        defaults["eval_strategy"] = "steps"
    if data.max_tokens is not None:  # a packed row is a batch; transformers' default of 8 would lie in one long row
        defaults |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    arguments: TrainingArguments = training_arguments(recipe, defaults, FIXED_SETTINGS)
    set_seed(arguments.seed)  # new weights are drawn before the Trainer would set it
    train_rows = [_read(recipe, source) for source in data.train]
    validation_rows = {name: _read(recipe, source) for name, source in data.validation.items()}
    model, processor = build_model(recipe)
    if data.max_tokens is not None:
        prepare_packing(model)
    model.loss_chunk_size = LOSS_CHUNK_SIZE
    freeze(model, recipe.parts.train)
    sets = {f"train-{index}": rows for index, rows in enumerate(train_rows)}
    sets |= {f"validation-{name}": rows for name, rows in validation_rows.items()}
    encoded = _encoded_sets(recipe, arguments, sets, model, processor)
    training_set = JoinedConversations(
        [encoded[f"train-{index}"] for index in range(len(train_rows))],
        [source.weight for source in data.train],
        seed=arguments.seed,
    )
    _tell_of(training_set, data.max_length)
    schedule, for_validation = _schedules(
        recipe, arguments, training_set, {name: encoded[f"validation-{name}"] for name in validation_rows}
    )
    lora = recipe.parts.lora
    trained: Any = model if lora is None else add_lora(model, lora, recipe.model.pretrained)
    return ConversationTrainer(
        model=trained,
        args=arguments,
        train_dataset=schedule,
        eval_dataset=(for_validation if len(for_validation) > 1 else next(iter(for_validation.values()), None)),
        data_collator=ConversationCollator(
            model.config.pad_token_id if model.config.pad_token_id is not None else 0,
            is_packed=data.max_tokens is not None,
            keep_sources=True,
        ),
        processing_class=processor,
        learning_rates=recipe.parts.learning_rates,
        lora=lora,
    )


def _encoded_sets(
    recipe: LlavaRecipe, arguments: TrainingArguments, sets: Mapping[str, Conversations], model: Any, processor: Any
) -> dict[str, EncodedConversations]:
    """Sets of conversations as tokens, with their pictures or, where the recipe keeps those, their features.

    Args:
        sets: by the names of their folders of features.
    """
    data, output_dir = recipe.data, Path(arguments.output_dir)
    if data.bad_pictures == "skip":
        output_dir.mkdir(parents=True, exist_ok=True)
    encoded: dict[str, EncodedConversations] = {}
    for name, rows in sets.items():
        features: np.ndarray | None = None
        if data.features_folder is not None:
            with arguments.main_process_first(desc="vision features"):
                features = cached_features(model, processor, rows, output_dir / data.features_folder / name)
        # What several processes encode is kept: those of the run that come after find it.
        in_turn = arguments.main_process_first(desc="encoding") if data.num_proc > 1 else contextlib.nullcontext()
        with in_turn:
            encoded[name] = EncodedConversations(
                rows,
                processor,
                max_length=data.max_length,
                context=data.context,
                seed=arguments.seed,
                features=features,
                bad_pictures=data.bad_pictures,
                skipped_file=output_dir / "skipped_rows.txt",
                num_proc=data.num_proc,
            )
    return encoded


def _tell_of(training_set: JoinedConversations, max_length: int) -> None:
    """Says how much there is to learn from, and how much of it is cut off."""
    learnt, every = int(training_set.num_learnt.sum()), int(training_set.lengths.sum())
    logger.warning(
        "%d conversations, %d tokens, %.1f %% of them learnt, %d pictures.",
        len(training_set),
        every,
        100 * learnt / every,
        int(training_set.num_images.sum()),
    )
    if training_set.num_cut:
        logger.warning(
            "%d conversations are cut to `data.max_length`=%d tokens: `hf-vlm audit` names them.",
            training_set.num_cut,
            max_length,
        )


def _schedules(
    recipe: LlavaRecipe,
    arguments: TrainingArguments,
    training_set: JoinedConversations,
    validation: Mapping[str, EncodedConversations],
) -> tuple[ConversationSchedule, dict[str, ConversationSchedule]]:
    """Which conversations come when: of the training set as many as the run's steps take, of the others each once.

    Sets `arguments.max_steps` where the recipe counts epochs; the last step is filled up from the pass after.
    """

    def scheduled(rows: Any, **settings: Any) -> ConversationSchedule:
        return ConversationSchedule(
            rows,
            lengths=rows.lengths,
            num_images=rows.num_images,
            batch_size=arguments.train_batch_size,
            num_processes=arguments.world_size,
            accumulation_steps=arguments.gradient_accumulation_steps,
            max_tokens=recipe.data.max_tokens,
            **settings,
        )

    order: dict[str, Any] = {"seed": arguments.seed, "grouping": recipe.data.grouping}
    items_per_step = items_per_update(arguments)
    if arguments.max_steps <= 0:
        items = len(scheduled(training_set, num_epochs=arguments.num_train_epochs, **order))
        arguments.max_steps = math.ceil(items / items_per_step)
    return scheduled(training_set, length=arguments.max_steps * items_per_step, **order), {
        name: scheduled(rows, seed=0, num_epochs=1, grouping="none") for name, rows in validation.items()
    }


def build_model(
    recipe: LlavaRecipe,
) -> tuple[LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor]:
    """Model, in fp32 whatever its file holds, and processor of a recipe.

    Raises:
        ValueError: if the settings fit no model, or model and processor each other.
    """
    section = recipe.model
    known = {field.name for field in dataclasses.fields(LlavaVisionLanguageConfig)}
    if section.vision:
        known |= set(inspect.signature(load_parts).parameters) - {"processor", "vision", "text"}
    for name in section.settings:
        refuse_unknown(name, known, "model.settings", recipe.section_keys())
    with named_section("model.settings"):
        if section.pretrained:
            loading = {"dtype": torch.float32, **loading_arguments(recipe.parts.lora, section.pretrained)}
            model = LlavaVisionLanguageForConditionalGeneration.from_pretrained(
                section.pretrained, **loading, **section.settings
            )
            processor = LlavaVisionLanguageProcessor.from_pretrained(section.pretrained)
            check_processor(model.config, processor, model.config.num_image_tokens or 0)
        else:
            of_pictures = ("image_size", "vision_feature_layer", "vision_feature_select_strategy")
            processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
                section.vision,
                section.text or "",
                chat_template=section.chat_template,
                image_aspect_ratio=section.image_aspect_ratio,
                **{name: section.settings[name] for name in of_pictures if name in section.settings},
            )
            model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
                section.vision or "", section.text or "", processor=processor, **section.settings
            )
    if section.projector:
        load_projector(model, section.projector)
    if recipe.generation:
        model.generation_config.update(**recipe.generation)
        model.generation_config.validate(strict=True)
    return model, processor


def prepare_packing(model: LlavaVisionLanguageForConditionalGeneration) -> None:
    """Find out how samples in a row are kept apart, and set the model to it.

    Raises:
        ValueError: if the language model mixes them.
    """
    way = packing_way(model.language_model)
    if way is None:
        raise ValueError(
            f"Packed conversations must not see each other, got `{model.language_model.config.model_type}`, whose attention or "
            "recurrence mixes them. Set `data.max_tokens` to null: batches are padded then."
        )
    model.packs_by_mask = way == "mask"


def _read(recipe: LlavaRecipe, source: TaskSource) -> Conversations:
    mixed = isinstance(source, MixtureSource)
    return read_source(
        recipe.data.folder,
        source,
        recipe.task,
        every_answer=mixed,
        max_exchanges=source.max_exchanges if isinstance(source, MixtureSource) else 1,
    )
