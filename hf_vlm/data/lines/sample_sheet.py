"""A page of lines as one picture, with what each says beside it: what a model is about to learn from, seen at a glance."""

from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _CAPTION = 8, 16  # px


def sample_sheet(lines: Iterable[Mapping[str, Any]], *, columns: int = 2, width: int = 720) -> Image.Image:
    """The lines in columns, each under a caption: its kind, face and augmentation where known, and its text.

    Args:
        lines: `{"image", "text"}`, with `kind`, `face` and `augment` where they are known, such as `LineRenderer`'s.
        columns: lines side by side.
        width: px of a column; longer lines are cut off at its edge.

    Returns: PIL "L" or, where a line is coloured, "RGB".

    Raises:
        ValueError: if there is no line.
    """
    lines = list(lines)
    if not lines:
        raise ValueError("`lines` must hold lines to show, got none. Take some of a renderer.")
    font = _caption_font()
    rows = [lines[start : start + columns] for start in range(0, len(lines), columns)]
    heights = [max(line["image"].height for line in row) + _CAPTION + _MARGIN for row in rows]
    is_grey = all(line["image"].mode == "L" for line in lines)
    sheet = Image.new("L" if is_grey else "RGB", (columns * width + _MARGIN, sum(heights) + _MARGIN), "#b0b8b0")
    brush = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, line in enumerate(row):
            left = _MARGIN + column * width
            known = [str(line[key]) for key in ("kind", "face", "augment") if line.get(key)]
            caption = f"{' / '.join(known)}: {line['text']}" if known else line["text"]
            brush.text((left, top), caption[:160], fill="black", font=font)
            picture = line["image"].crop((0, 0, min(line["image"].width, width - _MARGIN), line["image"].height))
            sheet.paste(picture, (left, top + _CAPTION))
        top += height
    return sheet


def _caption_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 10)  # has every letter; Pillow finds it where it is installed
    except OSError:
        return ImageFont.load_default(size=11)
