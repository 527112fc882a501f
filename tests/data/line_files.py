"""What the data tests are made of: Pillow's own font as a font file, and small pictures of known pixels."""

import io
from pathlib import Path

from PIL import Image, ImageFont

SENTENCES = [
    "The quick brown fox jumps over the lazy dog while seven wizards brew a potion.",
    "It rained for days, and nobody in the village remembered such a summer.",
    "She counted the coins twice; there were fewer than she had hoped.",
]


def write_font(folder: Path) -> Path:
    """The font that comes inside Pillow (Aileron, ASCII and little more), as a file: no test needs fonts installed."""
    font = ImageFont.load_default(size=20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    path = folder / "aileron.ttf"
    path.write_bytes(font.font_bytes)
    return path


def grey_picture(width: int = 40, height: int = 16, level: int = 200) -> Image.Image:
    return Image.new("L", (width, height), level)


def picture_bytes(image: Image.Image, picture_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, picture_format)
    return buffer.getvalue()
