"""Training a CNN + LSTM or TrOCR to write about pictures: a recipe in, a folder with model, processor and checkpoints out.

The data's way: rows of a task (`task_rows.py`) -> `PictureTextRows` (picture or its features, text, question) ->
`RowOrder` (which row comes when) -> `LineCollator` -> `PictureTextTrainer`, which scores what the model writes as the task is
scored.
"""

import dataclasses
import inspect
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import TrainingArguments, set_seed

from hf_vlm.data.collators import LineCollator
from hf_vlm.data.conversations.conversation_order import weighted_rows
from hf_vlm.data.conversations.conversations import Conversations, text_of
from hf_vlm.data.row_order import RowOrder
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.models.cnn_lstm import assembly as cnn_lstm_assembly
from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.trocr import assembly as trocr_assembly
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.picture_text_processor import check_vocabulary
from hf_vlm.training.arguments import items_per_update, training_arguments
from hf_vlm.training.feature_cache import cached_features
from hf_vlm.training.freezing import freeze
from hf_vlm.training.picture_text_recipe import PictureTextRecipe
from hf_vlm.training.recipe import named_section, refuse_unknown
from hf_vlm.training.runs import Resume, run
from hf_vlm.training.scores.task_evaluation import check_start_token, evaluate_rows, rows_by_question_length
from hf_vlm.training.scores.task_metrics import TASK_METRICS, score_task
from hf_vlm.training.task_sources import read_source
from hf_vlm.training.trainers.adapter_training import with_adapters
from hf_vlm.training.trainers.gradient_checks import GradientCheck
from hf_vlm.training.trainers.validation_loss import TokenLossTrainer

logger = logging.getLogger(__name__)

# Model, processor, config and the settings of joining parts, by architecture.
_CLASSES: dict[str, tuple[Any, Any, Any, Any]] = {
    "cnn_lstm": (CnnLstmForConditionalGeneration, CnnLstmProcessor, CnnLstmConfig, cnn_lstm_assembly),
    "trocr": (
        TrOCREncoderDecoderForConditionalGeneration,
        TrOCREncoderDecoderProcessor,
        TrOCREncoderDecoderConfig,
        trocr_assembly,
    ),
}

# What this trainer needs to be right; a recipe that asks for something else is refused.
FIXED_SETTINGS = {
    "remove_unused_columns": False,  # rows hold `image` and `text`, which `forward` has no parameters for
    "train_sampling_strategy": "random",  # `RowOrder`, the same on any number of processes
    "prediction_loss_only": True,  # scores are of what the model writes by itself
}


class PictureTextRows(Dataset):
    """Map-style: item i is row i, its picture or that picture's features, its text and, of a question, the question.

    Args:
        rows: of one picture each.
        asks: whether the text goes on from the question.
        features: (distinct pictures, tokens, width) in place of pixels, and int64 (rows,), whose each row's are; None for pixels.
    """

    def __init__(self, rows: Conversations, asks: bool, features: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.rows, self.asks, self.features = rows, asks, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: `image` or `image_features`, float (tokens, width); `text`; `source`; `prompt`.

        Raises:
            ValueError: if the picture can't be read; the message names the row.
        """
        messages = self.rows.messages(index)
        item: dict[str, Any] = {"text": text_of(messages[-1]), "source": self.rows.sources[index]}
        if self.asks:
            item["prompt"] = text_of(messages[-2])
        if self.features is None:
            (item["image"],) = self.rows.images(index)
        else:
            features, of_row = self.features
            item["image_features"] = torch.from_numpy(np.array(features[of_row[index]]))
        return item


class PictureTextTrainer(TokenLossTrainer):
    """`Trainer` that scores what `generate` writes about the pictures of the validation sets, as the task is scored.

    Evaluation sets are `PictureTextRows`; with several by name, the means of their scores are logged too.

    Args:
        task: whose scores are taken.
    """

    def __init__(self, *args: Any, task: str, **kwargs: Any) -> None:
        self.task = task
        super().__init__(*args, **kwargs)
        self.add_callback(GradientCheck(self.check_gradients))

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return RowOrder(len(rows), seed=seed, length=self.args.max_steps * items_per_update(self.args))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss of `Trainer.evaluate`, and the scores of the task."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if isinstance(chosen, dict):  # each of them came by here
            names = [name.removeprefix(f"{metric_key_prefix}_{next(iter(chosen))}_") for name in metrics]
            scores = {
                f"{metric_key_prefix}_{name}": float(
                    np.mean([metrics[f"{metric_key_prefix}_{of_set}_{name}"] for of_set in chosen])
                )
                for name in ("loss", *TASK_METRICS[self.task])
                if name in names
            }
        else:
            dataset = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
            scores = {f"{metric_key_prefix}_{name}": value for name, value in self._score(dataset).items()}
        self.log(scores)
        metrics.update(scores)
        return metrics

    def _score(self, dataset: PictureTextRows) -> dict[str, float]:
        """Scores of a set, of which every process asks a share."""
        model, rows = self.accelerator.unwrap_model(self.model), dataset.rows
        # Of every length as many rows, some asked twice: where weights are split, no process may be done before the others.
        number, share = self.args.world_size, []
        for alike in rows_by_question_length(self.processing_class, rows, self.task):
            asked = range(self.args.process_index, -(-len(alike) // number) * number, number)
            share += [alike[place % len(alike)] for place in asked]
        settings = {"task": self.task, "batch_size": self.args.per_device_eval_batch_size}
        was_training = model.training
        with self.accelerator.autocast():
            said = evaluate_rows(model, self.processing_class, rows.select(share), **settings).answers
        model.train(was_training)
        pairs = dict(gather_object(list(zip(share, said, strict=True))))
        return score_answers(self.task, rows, [pairs[index] or "" for index in range(len(rows))])


def score_answers(task: str, rows: Conversations, answers: list[str]) -> dict[str, float]:
    """The scores of a task of answers to all rows."""
    groups = [rows.group(index) or rows.question(index) for index in range(len(rows))]
    return score_task(task, [rows.references(index) for index in range(len(rows))], answers, groups)


def train(recipe: PictureTextRecipe, resume: Resume = True) -> PictureTextTrainer:
    """The trainer after the run, its model the best of the run by the task's main score (the last if nothing was validated).

    `training.output_dir` then holds model and processor as a folder for `from_pretrained`, the recipe as it was run, and the
    checkpoints.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one, or "required". The
            resumed run ends with the weights that the uninterrupted one would have.

    Raises:
        ValueError: if recipe, model and data do not fit each other, before any training.
    """
    trainer = build_trainer(recipe)
    run(trainer, recipe, resume)
    return trainer


def build_trainer(recipe: PictureTextRecipe) -> PictureTextTrainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: as `train`.
    """
    defaults: dict[str, Any] = {"label_names": ["labels"]}
    if recipe.data.validation:
        defaults |= {
            "eval_strategy": "steps",
            "metric_for_best_model": TASK_METRICS[recipe.task][0],
            "greater_is_better": True,
            "load_best_model_at_end": True,
        }
    arguments = training_arguments(recipe, defaults, FIXED_SETTINGS)
    set_seed(arguments.seed)  # new weights are drawn before the Trainer would set it
    folder, task = recipe.data.folder, recipe.task
    train_rows = [read_source(folder, source, task, every_answer=True) for source in recipe.data.train]
    validation_rows = {name: read_source(folder, source, task) for name, source in recipe.data.validation.items()}
    texts = [text_of(rows.messages(index)[-1]) for rows in train_rows for index in range(len(rows))]
    model, processor = build_model(recipe, texts)
    check_vocabulary(model, processor.tokenizer)
    check_engine(model, arguments)
    freeze(model, recipe.parts.train)
    asks = task == "vqa"
    if asks:
        check_start_token(model, processor)
    train_rows = [check_rows(rows, processor, asks) for rows in train_rows]
    validation_rows = {name: check_rows(rows, processor, asks) for name, rows in validation_rows.items()}
    output_dir = Path(arguments.output_dir)

    def dataset(rows: Conversations, name: str) -> PictureTextRows:
        if recipe.data.features_folder is None:
            return PictureTextRows(rows, asks)
        distinct, of_row = rows.distinct_pictures()
        with arguments.main_process_first(desc="vision features"):
            features = cached_features(model, processor, distinct, output_dir / recipe.data.features_folder / name)
        return PictureTextRows(rows, asks, (features, of_row))

    sets: list[Dataset] = []
    for index, (source, rows) in enumerate(zip(recipe.data.train, train_rows, strict=True)):
        of_source = dataset(rows, f"train-{index}")
        chosen = weighted_rows(len(rows), source.weight, seed=arguments.seed, source=index)
        sets.append(Subset(of_source, chosen.tolist()))
    validation = {name: dataset(rows, f"validation-{name}") for name, rows in validation_rows.items()}
    joined: ConcatDataset = ConcatDataset(sets)
    if arguments.max_steps <= 0:  # the order is one endless epoch: count its steps from the rows
        items = arguments.num_train_epochs * len(joined)
        arguments.max_steps = max(1, math.ceil(items / items_per_update(arguments)))
    logger.warning("%d rows to learn from, %d for validation.", len(joined), sum(map(len, validation.values())))
    return PictureTextTrainer(
        model=with_adapters(model, recipe.lora, recipe.model.pretrained, arguments, processor),
        args=arguments,
        train_dataset=joined,
        eval_dataset=(validation if len(validation) > 1 else next(iter(validation.values()), None)),
        data_collator=LineCollator(processor, model if arguments.label_smoothing_factor else None),
        processing_class=processor,
        task=task,
        lora=recipe.lora,
    )


def build_model(recipe: PictureTextRecipe, texts: list[str]) -> tuple[Any, Any]:
    """Model, in fp32 whatever its file holds, and processor of a recipe.

    Args:
        texts: of the training rows, which `model.text: words` takes its words from.

    Raises:
        ValueError: if the settings fit no model, or the texts give no vocabulary.
    """
    section = recipe.model
    model_class, processor_class, config_class, assembly = _CLASSES[recipe.architecture]
    known = {field.name for field in dataclasses.fields(config_class)}
    if section.vision:
        known |= set(inspect.signature(assembly.load_parts).parameters) - {"processor", "vision", "text"}
    for name in section.settings:
        refuse_unknown(name, known, "model.settings", recipe.section_keys())
    with named_section("model.settings"):
        if section.pretrained:
            model = model_class.from_pretrained(section.pretrained, dtype=torch.float32, **section.settings)
            processor = processor_class.from_pretrained(section.pretrained)
        else:
            text: Any = build_word_tokenizer(texts, section.min_word_count) if section.text == "words" else section.text
            processor = processor_class.from_pretrained_parts(vision=section.vision, text=text)
            joined = {"processor": processor} if recipe.architecture == "trocr" else {}
            text = processor.tokenizer if recipe.architecture == "cnn_lstm" else text
            model = model_class.from_pretrained_parts(vision=section.vision, text=text, **joined, **section.settings)
    text_config = getattr(model.config, "text_config", None)
    positions = getattr(text_config, "max_position_embeddings", None)
    longest = section.max_label_length or processor.max_label_length or positions
    if positions is not None and longest > positions:
        raise ValueError(
            f"`model.max_label_length` must be at most the decoder's {positions} positions, got {longest}. Lower it."
        )
    processor.max_label_length = longest
    if recipe.generation:
        model.generation_config.update(**recipe.generation)
        model.generation_config.validate(strict=True)
    return model, processor


def check_engine(model: Any, arguments: TrainingArguments) -> None:
    """Checks that the engine that is to divide a model's weights can do so.

    Raises:
        ValueError: for ZeRO-3 with an LSTM that looks again at every word: processes gather a layer's weights at each call, and
            texts of other lengths make other numbers of calls.
    """
    engine = getattr(arguments, "deepspeed_plugin", None)
    looks_again = getattr(getattr(model, "decoder", None), "looks_again", False)
    if looks_again and engine is not None and engine.hf_ds_config.is_zero3():
        raise ValueError(
            "DeepSpeed's ZeRO-3 wants layers that all processes call equally often, got `model.settings.attention: "
            f"{model.config.attention}`, which calls them once a word. Take ZeRO-2, FSDP2 or DDP, or `attention: none`."
        )


def check_rows(rows: Conversations, processor: Any, asks: bool) -> Conversations:
    """The rows that can be learnt from: a text or question of words that the tokenizer knows not one of is left out, with a
    warning.

    Raises:
        ValueError: if a row has not one picture or is too long for the decoder, naming it, or if none is left.
    """
    unknown, limit = processor.tokenizer.unk_token_id, processor.max_label_length
    texts = [text_of(rows.messages(index)[-1]) for index in range(len(rows))]
    questions = [rows.question(index) if asks else "" for index in range(len(rows))]
    of_texts, of_questions = (
        processor.tokenizer(side, add_special_tokens=False)["input_ids"] for side in (texts, questions)
    )
    kept = []
    for index, (ids, asked) in enumerate(zip(of_texts, of_questions, strict=True)):
        if rows.num_images(index) != 1:
            raise ValueError(
                f"{rows.sources[index]}: one picture a row is wanted, got {rows.num_images(index)}. Use `architecture: llava`."
            )
        length = len(ids) + 1 + (len(asked) + 1 if asks else 0)
        if limit is not None and length > limit:
            raise ValueError(
                f"{rows.sources[index]}: a text of at most {limit} tokens is wanted, got {length} with its end token for "
                f"{texts[index]!r}. Leave the row out, or raise `model.max_label_length` as far as the decoder has positions."
            )
        if all(any(token != unknown for token in side) for side in ([ids, asked] if asks else [ids])):
            kept.append(index)
    if not kept:
        raise ValueError(
            f"Texts with words that the tokenizer knows are wanted, got none, first in {rows.sources[0]}. Take rows in the "
            "tokenizer's language, or words of these texts by `model.text: words`."
        )
    if len(kept) < len(rows):
        logger.warning("%d rows are left out, none of whose words the tokenizer knows.", len(rows) - len(kept))
    return rows if len(kept) == len(rows) else rows.select(kept)
