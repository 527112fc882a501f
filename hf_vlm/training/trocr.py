"""Training TrOCR on text lines: a recipe in, a folder with model, processor, checkpoints and logs out.

The data's way: rows of real lines and a renderer of synthetic ones -> `LineMixture` (which item comes when is a pure
function of seed and step) -> `LineCollator` (pictures and labels) -> transformers' `Seq2SeqTrainer`.
"""

import dataclasses
import inspect
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments, set_seed

from hf_vlm.data.collators import LineCollator
from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET, build_character_tokenizer
from hf_vlm.data.lines.image_text import TextLines, read_lines
from hf_vlm.data.lines.line_mixture import LineMixture
from hf_vlm.data.lines.ocr_lines import LineRenderer
from hf_vlm.models.trocr.assembly import load_parts
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.parts.picture_text_processor import check_vocabulary, load_tokenizer
from hf_vlm.parts.pictures import to_grayscale, to_rgb
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.training.arguments import items_per_update, training_arguments
from hf_vlm.training.recipe import LineSource, TrOCRRecipe, ValidationLines, build_config, named_section, refuse_unknown
from hf_vlm.training.runs import Resume, run
from hf_vlm.training.scores.metrics import require_jiwer
from hf_vlm.training.trainers.adapter_training import with_adapters
from hf_vlm.training.trainers.line_trainer import LineTrainer, ReferenceLines

logger = logging.getLogger(__name__)

MAX_RENDERED_CHARACTERS = 90
TEXTS_AT_A_TIME = 10_000  # whose labels are checked: work for a tokenizer's threads, and of millions not all in memory

# What this trainer needs to be right; a recipe that asks for something else is refused.
FIXED_SETTINGS = {
    "remove_unused_columns": False,  # rows hold `image` and `text`, which `forward` has no parameters for
    "predict_with_generate": True,  # CER is measured on text that the model reads by itself
    "train_sampling_strategy": "sequential",  # the mixture is shuffled by its seed; its batches are of like width
}


def train(recipe: TrOCRRecipe, resume: Resume = True) -> LineTrainer:
    """The trainer after the run, its model the best of the run (lowest `eval_cer`; the last if nothing was validated).

    `training.output_dir` then holds model and processor as a folder for `from_pretrained`, the recipe as it was run,
    and the checkpoints.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one, or "required". The resumed run ends
            with the weights that the uninterrupted one would have.

    Raises:
        ValueError: if recipe, model, tokenizer and data do not fit each other, before any training.
    """
    trainer = build_trainer(recipe)
    run(trainer, recipe, resume)
    return trainer


def build_trainer(recipe: TrOCRRecipe) -> LineTrainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: as `train`.
        ImportError: if CER is asked for and jiwer is missing.
    """
    if recipe.data.validation:
        require_jiwer()
    arguments = build_arguments(recipe)
    set_seed(arguments.seed)  # new weights are drawn before the Trainer would set it
    sources = [read_set(recipe, source) for source in recipe.data.train]
    validation = {
        name: ReferenceLines(read_set(recipe, lines), max_lines=lines.max_lines, ignore_case=lines.ignore_case)
        for name, lines in recipe.data.validation.items()
    }
    model, processor = build_model(recipe, [text for rows in sources for text in rows.texts])
    check_vocabulary(model, processor.tokenizer)
    if arguments.use_cpu and arguments.bf16:
        model.set_attn_implementation("eager")  # torch's flash attention for CPUs goes back slowly in bf16
    for rows in (*sources, *(lines.rows for lines in validation.values())):
        check_labels(rows, processor)
    items_per_step = items_per_update(arguments)
    if arguments.max_steps <= 0:  # the mixture is one endless epoch: count its steps from the real lines
        lines = sum(len(rows) for rows in sources)
        if not lines:
            raise ValueError("Rendered lines have no end: `training.max_steps` is wanted, got none. Set it.")
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * lines / items_per_step))
    mixture = LineMixture(
        [(rows, source.weight, source.augment) for source, rows in zip(recipe.data.train, sources, strict=True)],
        renderer=build_renderer(recipe, processor, arguments.seed),
        renderer_weight=recipe.data.synthetic.weight if recipe.data.synthetic else 0.0,
        renderer_augment=recipe.data.synthetic.augment if recipe.data.synthetic else False,
        seed=arguments.seed,
        length=arguments.max_steps * items_per_step,
        group_size=items_per_step,  # processes wait for each other at every step; the same lines, however they share it
        short_first=recipe.data.short_first,
        prepare=to_grayscale if getattr(model.config.vision_config, "num_channels", 3) == 1 else to_rgb,
    )
    name = str(default_ocr_model()) if recipe.model.pretrained == "default" else recipe.model.pretrained
    return LineTrainer(
        model=with_adapters(model, recipe.lora, name, arguments, processor),
        args=arguments,
        train_dataset=mixture,
        eval_dataset=(validation if len(validation) > 1 else next(iter(validation.values()), None)),
        data_collator=LineCollator(processor, model if arguments.label_smoothing_factor else None),
        processing_class=processor,
        lora=recipe.lora,
    )


def build_arguments(recipe: TrOCRRecipe) -> Seq2SeqTrainingArguments:
    """The Trainer's settings: the recipe's, over defaults that keep the best checkpoint where lines are validated.

    Raises:
        ValueError: if the recipe asks for one of `FIXED_SETTINGS` otherwise, or the settings contradict each other.
    """
    defaults: dict[str, Any] = {"label_names": ["labels"]}
    if recipe.data.validation:
        defaults.update(
            eval_strategy="steps", metric_for_best_model="cer", greater_is_better=False, load_best_model_at_end=True
        )
    return training_arguments(recipe, defaults, FIXED_SETTINGS)


def build_model(
    recipe: TrOCRRecipe, texts: Sequence[str]
) -> tuple[TrOCREncoderDecoderForConditionalGeneration, TrOCREncoderDecoderProcessor]:
    """Model, in fp32 whatever its file holds, and processor of a recipe.

    Args:
        texts: what a character tokenizer without an `alphabet` takes further characters from.

    Raises:
        ValueError: if the settings fit no model.
    """
    section = recipe.model
    known = {field.name for field in dataclasses.fields(TrOCREncoderDecoderConfig)}
    if section.vision:
        known |= set(inspect.signature(load_parts).parameters)
    elif section.pretrained:
        known.add("image_size")
    image_size = section.settings.get("image_size")
    for name in section.settings:
        refuse_unknown(name, known, "model.settings", recipe.section_keys())
    with named_section("model.settings"):
        if section.pretrained:
            name = str(default_ocr_model()) if section.pretrained == "default" else section.pretrained
            model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(
                name, dtype=torch.float32, **section.settings
            )
            processor = TrOCREncoderDecoderProcessor.from_pretrained(name)
            if image_size is not None:
                processor.resize(image_size)
        elif section.vision and section.text:
            processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(
                vision=section.vision, text=section.text, image_size=image_size
            )
            model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained_parts(
                vision=section.vision, text=section.text, processor=processor, **section.settings
            )
        else:
            model, processor = _build_from_configs(recipe, texts)
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    longest = section.max_label_length or processor.max_label_length or positions
    if positions is not None and longest > positions:
        raise ValueError(
            f"`model.max_label_length` must be at most the decoder's {positions} positions, got {longest}. Lower it, or "
            "give the decoder more `max_position_embeddings`."
        )
    processor.max_label_length = longest
    if recipe.generation:
        model.generation_config.update(**recipe.generation)
        model.generation_config.validate(strict=True)
    return model, processor


def _build_from_configs(
    recipe: TrOCRRecipe, texts: Sequence[str]
) -> tuple[TrOCREncoderDecoderForConditionalGeneration, TrOCREncoderDecoderProcessor]:
    section = recipe.model
    assert section.tokenizer is not None  # `ModelSection` sees to it
    vision_config = build_config(section.vision_config or {}, "model.vision_config")
    if section.tokenizer == "characters":
        tokenizer = (
            build_character_tokenizer(alphabet=section.alphabet)
            if section.alphabet is not None
            else build_character_tokenizer(texts, alphabet=LATIN_ALPHABET)
        )
    else:
        tokenizer = load_tokenizer(section.tokenizer)
    for name in section.image_processor:
        refuse_unknown(name, VisionTransformerImageProcessor.valid_kwargs.__annotations__, "model.image_processor")
    height, width = configured_image_size(vision_config)
    image_processor = VisionTransformerImageProcessor(
        **{
            "size": {"height": height, "width": width},
            "do_convert_grayscale": getattr(vision_config, "num_channels", 3) == 1,
            **section.image_processor,
        }
    )
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(vision=image_processor, text=tokenizer)
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": processor.start_token_id,
        "eos_token_id": processor.end_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text_config = build_config({**tokens, **(section.text_config or {})}, "model.text_config")
    config = TrOCREncoderDecoderConfig(vision_config=vision_config, text_config=text_config, **section.settings)
    return TrOCREncoderDecoderForConditionalGeneration(config), processor


def check_labels(rows: TextLines, processor: TrOCREncoderDecoderProcessor) -> None:
    """Checks that every text can be a label, and tells how much of all of them the tokenizer does not know.

    Raises:
        ValueError: if a text holds nothing but unknown characters, or is too long for the decoder; the run would stop
            when it came to that row.
    """
    unknown_id = processor.tokenizer.unk_token_id
    limit = processor.max_label_length
    unknown = total = 0
    token_ids = (
        ids
        for first in range(0, len(rows.texts), TEXTS_AT_A_TIME)
        for ids in processor.tokenizer(
            list(rows.texts[first : first + TEXTS_AT_A_TIME]), add_special_tokens=False, return_attention_mask=False
        )["input_ids"]
    )
    for source, text, ids in zip(rows.sources, rows.texts, token_ids, strict=True):
        in_row = sum(token == unknown_id for token in ids)
        if ids and in_row == len(ids):
            raise ValueError(
                f"{source}: a text with characters that the tokenizer knows is wanted, got {text!r}. Leave the row "
                "out, or take a tokenizer that knows them."
            )
        if limit is not None and len(ids) + 1 > limit:
            raise ValueError(
                f"{source}: a label of at most {limit} tokens is wanted, got {len(ids) + 1} with the end token for "
                f"{text!r}. Leave the row out, or give the decoder more `max_position_embeddings`."
            )
        unknown, total = unknown + in_row, total + len(ids)
    if unknown:
        logger.warning("%s and on: %d of %d tokens are unknown to the tokenizer.", rows.sources[0], unknown, total)


def build_renderer(recipe: TrOCRRecipe, processor: TrOCREncoderDecoderProcessor, seed: int) -> LineRenderer | None:
    """The renderer of a recipe's synthetic lines, None if it wants none.

    With a character tokenizer only characters that it knows are drawn, and no line is longer than a label may be.
    """
    synthetic = recipe.data.synthetic
    if synthetic is None:
        return None
    settings: dict[str, Any] = {"seed": seed, "height": synthetic.height, "kinds": synthetic.kinds}
    if synthetic.fonts is not None:
        settings["faces"] = synthetic.fonts
    entries = set(processor.tokenizer.get_vocab()) - set(processor.tokenizer.all_special_tokens)
    if all(len(entry) == 1 for entry in entries):  # a character tokenizer, that of a pretrained reader too
        settings["alphabet"] = "".join(sorted(entries))
        if processor.max_label_length is not None:
            settings["max_characters"] = min(MAX_RENDERED_CHARACTERS, processor.max_label_length - 1)
    if synthetic.texts is not None:
        settings["texts"] = Path(recipe.data.folder) / synthetic.texts
    return LineRenderer(**settings)


def read_set(recipe: TrOCRRecipe, source: LineSource | ValidationLines) -> TextLines:
    """The lines of one of a recipe's sets."""
    return read_lines(Path(recipe.data.folder) / source.path, split=source.split, where=source.where)
