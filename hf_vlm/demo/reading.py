"""The text of a line or a page, and where it stands."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from hf_vlm.data.lines.page_files import LineText, PageText
from hf_vlm.pipelines.page_reading import PageReader

Kind = Literal["By its shape", "One line", "A page"]
_LINE_ASPECT = 5.0  # a picture so much wider than high is taken for a line
_SHOWN_SIDE = 1600  # px, of the page that is shown
_BOX = "#1d4ed8"


@dataclass
class PictureText:
    """What was read in a picture.

    Attributes:
        page: its lines; of a line read alone the box is the whole picture.
        shown: the picture with a numbered box around every line, RGB.
        notes: what to tell about it.
    """

    page: PageText
    shown: Image.Image
    notes: list[str] = field(default_factory=list)


def read_picture(reader: PageReader, picture: Image.Image, kind: Kind = "By its shape") -> PictureText:
    """The text of a picture.

    Args:
        picture: upright, in mode RGB.
        kind: what is in it; by its shape, a picture at least five times as wide as high is a line.

    Raises:
        ImportError: if it is a page and the extra `ocr` is missing, which finds the lines.
        ValueError: if the detector of lines fails on it.
    """
    is_line = kind == "One line" or (kind == "By its shape" and picture.width >= _LINE_ASPECT * picture.height)
    with _told_warnings() as told:
        page = _read_line(reader, picture) if is_line else reader(picture)
    if kind == "By its shape":
        told.append(f"Read as {'one line' if is_line else 'a page'}, by its shape.")
    return PictureText(page, picture if is_line else _with_boxes(picture, page), told)


def _read_line(reader: PageReader, picture: Image.Image) -> PageText:
    (read,) = reader.read_lines([picture])
    width, height = picture.size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    return PageText(width, height, [LineText(read.text, read.score, read.words, corners, read.abstained)])


def _with_boxes(picture: Image.Image, page: PageText) -> Image.Image:
    """The page, at most `_SHOWN_SIDE` px, and on it every line's box and number."""
    scale = min(1.0, _SHOWN_SIDE / max(picture.size))
    shown = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    brush = ImageDraw.Draw(shown)
    size = max(12, max(shown.size) // 45)
    font = ImageFont.load_default(size=size)
    for number, line in enumerate(page.lines, start=1):
        corners = [(x * scale, y * scale) for x, y in line.polygon]
        brush.polygon(corners, outline=_BOX, width=max(1, size // 8))
        left, top = corners[0]
        width = font.getlength(str(number)) + 4
        left = left - width if left >= width else left
        brush.rectangle((left, top, left + width, top + size + 2), fill=_BOX)
        brush.text((left + 2, top), str(number), fill="white", font=font)
    return shown


@contextlib.contextmanager
def _told_warnings() -> Iterator[list[str]]:
    """Collects what is warned of within, such as a page of several columns."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hf_vlm.pipelines")
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
