"""Pictures of a tokenizer's training: originals above reconstructions, samples, and which codes are in use.

A run leaves them in `pictures/` of its output folder, and in TensorBoard, at each evaluation.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_GAP = 2  # pixels between pictures
_SMALLEST_SIDE = 64  # pixels: smaller pictures are enlarged, so that they can be looked at
_HEAT_COLUMN = 12  # pixels, of one evaluation
_HEAT_HEIGHT = 256
USAGE_FILE = "code_usage.csv"


def picture_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size row by row, small ones enlarged by whole factors."""
    width, height = pictures[0].size
    factor = max(1, math.ceil(_SMALLEST_SIDE / min(width, height)))
    width, height = width * factor, height * factor
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def paired_grid(rows: Sequence[Sequence[Image.Image]], names: Sequence[str]) -> Image.Image:
    """One row of pictures a name, such as originals and reconstructions, each row under its name."""
    font = ImageFont.load_default(size=12)
    grids = [picture_grid(pictures, len(pictures)) for pictures in rows]
    line = 16
    sheet = Image.new("RGB", (max(grid.width for grid in grids), sum(grid.height + line for grid in grids)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for grid, name in zip(grids, names, strict=True):
        draw.text((_GAP, top), name, fill="black", font=font)
        sheet.paste(grid, (0, top + line))
        top += grid.height + line
    return sheet


class CodeUsage:
    """How often each code was used, evaluation after evaluation: a table on disk, and its picture.

    Args:
        folder: where `code_usage.csv` is, or will be; a table that is there is gone on with.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / USAGE_FILE
        self.counts: dict[int, list[int]] = {}
        if self.file.is_file():
            with self.file.open(encoding="utf-8", newline="") as lines:
                for row in csv.reader(lines):
                    if len(row) > 1 and all(cell.isdigit() for cell in row):  # the last may be cut off
                        self.counts[int(row[0])] = [int(cell) for cell in row[1:]]

    def add(self, step: int, counts: torch.Tensor) -> None:
        """Notes an evaluation's counts, (num_codes,); later ones of a run that was stopped are forgotten."""
        new = counts.long().tolist()
        self.counts = {
            before: values for before, values in self.counts.items() if before < step and len(values) == len(new)
        }
        self.counts[step] = new
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([at, *values] for at, values in self.counts.items())
        temporary.replace(self.file)

    def draw(self) -> Image.Image:
        """A column an evaluation: codes from the most used (top) to the least, dark where often used, white where never."""
        table = np.array([sorted(values, reverse=True) for values in self.counts.values()], dtype=np.float64)
        shares = table / table.sum(axis=1, keepdims=True).clip(min=1) * table.shape[1]  # 1: an even share
        darkness = np.where(shares > 0, 0.15 + 0.85 * (np.log2(1 + shares) / 4).clip(max=1), 0)
        levels = Image.fromarray((255 * (1 - darkness.T)).astype(np.uint8))
        heat = levels.resize((len(table) * _HEAT_COLUMN, _HEAT_HEIGHT), Image.Resampling.NEAREST)
        steps = list(self.counts)
        used = [(values > 0).sum() for values in table]
        sheet = Image.new("RGB", (max(heat.width + 8, 340), _HEAT_HEIGHT + 44), "white")
        sheet.paste(heat, (4, 24))
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
        draw.text(
            (4, 4), f"codes by use, {table.shape[1]} in all; used at the end: {used[-1]}", fill="black", font=font
        )
        draw.text((4, _HEAT_HEIGHT + 26), f"step {steps[0]} to {steps[-1]}", fill="black", font=font)
        draw.rectangle((3, 23, 4 + heat.width, 24 + _HEAT_HEIGHT), outline="gray")
        return sheet
