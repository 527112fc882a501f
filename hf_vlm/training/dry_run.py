"""`hf-vlm train --dry-run`: what a run would do, shown on its first batch."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Trainer

from hf_vlm.parts.base_weights import base_of
from hf_vlm.training.estimates.memory import one_pass, training_memory
from hf_vlm.training.picture_text import PictureTextTrainer
from hf_vlm.training.recipe import Recipe
from hf_vlm.training.tasks import build_trainer
from hf_vlm.training.trainers.conversation_trainer import PICTURE_INPUTS, ConversationTrainer
from hf_vlm.training.trainers.gradient_checks import check_gradients
from hf_vlm.training.trainers.line_trainer import LineTrainer

MAX_LISTED = 16
MAX_SHOWN_SAMPLES = 2


def dry_run(recipe: Recipe) -> str:
    """A report on the run that a recipe asks for: parts, parameters, memory, and the labels of the first batch.

    Loads and checks everything as `train` does, runs the first batch forward and backward once (so that a part without
    a gradient shows up now), changes no weight, and writes the batch's pictures, as the model sees them, with their
    labels in words to `dry_run.png` in `training.output_dir`. Of conversations it shows which words are learnt.

    Raises:
        ValueError: as `hf_vlm.training.tasks.train`.
    """
    trainer = build_trainer(recipe)
    if isinstance(trainer, ConversationTrainer):
        return _conversation_report(trainer)
    is_reader = isinstance(trainer, LineTrainer | PictureTextTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    texts = _decoded_labels(trainer, batch["labels"]) if is_reader else _class_labels(trainer, batch)
    if "pixel_values" in batch:
        picture = Path(trainer.args.output_dir) / "dry_run.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_batch(batch["pixel_values"], texts).save(picture)
        shown = f"pixel_values {tuple(batch['pixel_values'].shape)}, drawn in {picture}"
    else:
        shown = f"image_features {tuple(batch['image_features'].shape)}, computed before"
    loss, activation_bytes = one_pass(trainer, batch)
    if is_reader:  # the layers below a new head, which is zero, rightly have no gradient yet
        check_gradients(trainer.model)

    args, items = trainer.args, _items_per_step(trainer)
    steps = (
        args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(trainer.get_train_dataloader()))
    )
    unit = "lines" if isinstance(trainer, LineTrainer) else "texts" if is_reader else "pictures"
    lines = [
        f"{steps} steps of {items} {unit}; first loss {loss:.3f}{' nats a token' if is_reader else ''}, "
        f"output in {args.output_dir}",
        "",
        *_part_table(trainer.model),
        "",
        *_memory_table(trainer, activation_bytes),
        "",
        f"first batch: {shown}",
        *(_label_table(trainer, batch["labels"], texts) if is_reader else _class_list(texts)),
    ]
    for name, rows in _evaluation_sets(trainer):
        lines.append(f"validation set {name}: {rows} {unit}")
    return "\n".join(lines)


def _conversation_report(trainer: ConversationTrainer) -> str:
    """The report of a run on conversations: instead of a picture of the batch, what is learnt of its first samples."""
    batch = next(iter(trainer.get_train_dataloader()))
    sources = batch.pop("sources", [])
    loss, activation_bytes = one_pass(trainer, batch)
    if any(name in batch for name in PICTURE_INPUTS):  # without pictures the projector's gradient is rightly zero
        trainer.check_gradients(trainer.model)
    args, learnt = trainer.args, int((batch["labels"] >= 0).sum())
    rows = "rows of packed conversations" if "position_ids" in batch else "conversations"
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
    lines = [
        f"{args.max_steps} steps of {_items_per_step(trainer)} {rows}; first loss {loss:.3f} nats a token, "
        f"output in {args.output_dir}",
        "",
        *_part_table(trainer.model),
        "",
        *_memory_table(trainer, activation_bytes),
        "",
        f"first batch: {shapes}; {learnt} of {batch['labels'].numel()} tokens are learnt",
    ]
    schedule: Any = trainer.train_dataset
    for sample in schedule[0][:MAX_SHOWN_SAMPLES]:
        shown = trainer.processing_class.show_labels(sample, in_colour=sys.stdout.isatty())
        lines += ["", f"what is learnt of {sample['source']}:", shown.rstrip("\n")]
    lines += ["", f"{len(sources)} conversations in the batch"]
    lines += [f"validation set {name}: {rows} items" for name, rows in _evaluation_sets(trainer)]
    return "\n".join(lines)


def _items_per_step(trainer: Trainer) -> int:
    args = trainer.args
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def draw_batch(pixel_values: torch.Tensor, texts: Sequence[str]) -> Image.Image:
    """A picture of a batch: each picture as the model sees it, its text below.

    Args:
        pixel_values: float (batch, channels, height, width) of any range; each is stretched to black and white.
        texts: one a line.
    """
    font = ImageFont.load_default(size=12)
    batch, _, height, width = pixel_values.shape
    row_height = height + 20
    sheet = Image.new("RGB", (max(width, 320) + 8, batch * row_height + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, text) in enumerate(zip(pixel_values.float().cpu(), texts, strict=True)):
        low, high = pixels.min(), pixels.max()
        levels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
        levels = levels.movedim(0, -1)[..., :3]  # (height, width, 1 or 3)
        array = levels.expand(-1, -1, 3) if levels.shape[-1] == 1 else levels
        top = 4 + index * row_height
        sheet.paste(Image.fromarray(array.contiguous().numpy()), (4, top))
        draw.text((4, top + height + 2), text, fill=(160, 0, 0), font=font)
    return sheet


def _decoded_labels(trainer: Trainer, labels: torch.Tensor) -> list[str]:
    pad_token_id = trainer.model.config.pad_token_id
    return trainer.processing_class.batch_decode(labels.masked_fill(labels < 0, pad_token_id), skip_special_tokens=True)


def _class_labels(trainer: Trainer, batch: dict[str, Any]) -> list[str]:
    """Each picture's class in words, or the classes it was mixed of with their shares; nothing where it has none."""
    if "labels" not in batch:
        return [""] * len(batch["pixel_values"])
    names, labels = trainer.model.config.id2label, batch["labels"]
    if not labels.is_floating_point():
        return [names[label] for label in labels.tolist()]
    return [
        ", ".join(f"{names[number]} {row[number]:.2f}" for number in row.nonzero().flatten().tolist()) for row in labels
    ]


def _class_list(texts: Sequence[str]) -> list[str]:
    shown = [f"  {text}" for text in texts[:MAX_LISTED] if text]
    return [*shown, f"  and {len(texts) - MAX_LISTED} more"] if shown and len(texts) > MAX_LISTED else shown


def _part_table(model: torch.nn.Module) -> list[str]:
    counts: dict[str, list[int]] = {}
    for name, parameter in base_of(model).named_parameters():  # adapters among their parts
        of_part = counts.setdefault(".".join(name.split(".")[:2]), [0, 0])
        of_part[0] += parameter.numel()
        of_part[1] += parameter.numel() if parameter.requires_grad else 0
    rows = [f"{'part':<28}{'parameters':>14}{'trained':>14}"]
    rows += [f"{part:<28}{every:>14,}{trained:>14,}" for part, (every, trained) in counts.items()]
    every, trained = (sum(column) for column in zip(*counts.values(), strict=True))
    return [*rows, f"{'all':<28}{every:>14,}{trained:>14,}"]


def _memory_table(trainer: Trainer, activation_bytes: int) -> list[str]:
    memory = training_memory(trainer.model, activation_bytes=activation_bytes, optim=trainer.args.optim)
    return ["memory, at least (a longer batch keeps more activations)", *memory.rows()]


def _label_table(trainer: Trainer, labels: torch.Tensor, texts: Sequence[str]) -> list[str]:
    unknown_id = trainer.processing_class.tokenizer.unk_token_id
    rows = [f"{'tokens':>8}{'unknown':>8}  text"]
    for row, text in zip(labels, texts, strict=True):
        unknown = 0 if unknown_id is None else int((row == unknown_id).sum())
        rows.append(f"{int((row >= 0).sum()):>8}{unknown:>8}  {text}")
    return rows


def _evaluation_sets(trainer: Trainer) -> list[tuple[str, int]]:
    sets = trainer.eval_dataset
    if sets is None:
        return []
    return [(name, len(of_set)) for name, of_set in sets.items()] if isinstance(sets, dict) else [("eval", len(sets))]
