"""Any picture that Pillow opens -> 8 bits a channel, upright, opaque: what an image processor can work on."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112  # tag number, EXIF 2.3, table 4
_UPRIGHT = 1
_WIDE_MODES = ("I", "F")  # 32 bits a pixel; the modes `I;16...` have 16


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode `RGB`, as a viewer shows it on white paper.

    EXIF orientation is applied; 16- and 32-bit values are scaled to 8 bits, not clipped; transparency lets white
    through. Of an animation it is the current frame, in a freshly opened file the first.

    Raises:
        ValueError: if the picture is empty.
    """
    return _convert(_flatten(image), "RGB")


def to_grayscale(image: Image.Image) -> Image.Image:
    """The picture in mode `L` (luma, ITU-R BT.601), otherwise as from `to_rgb`.

    Raises:
        ValueError: if the picture is empty.
    """
    flat = _flatten(image)
    return flat if flat.mode == "L" else _convert(flat, "RGB").convert("L")  # of colours the luma, whatever their mode


def check_finite(image: Any) -> None:
    """Checks that every pixel of an array or tensor is a number; pictures of Pillow and whole numbers pass.

    Raises:
        ValueError: if a pixel is NaN or infinite.
    """
    if isinstance(image, torch.Tensor):
        is_finite = bool(image.isfinite().all())
    elif isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):
        is_finite = bool(np.isfinite(image).all())
    else:
        return
    if not is_finite:
        raise ValueError(
            f"A picture's pixels must be finite numbers, got NaN or infinity in an array of shape {tuple(image.shape)}. "
            "Repair the picture, or leave it out."
        )


def _flatten(image: Image.Image) -> Image.Image:
    """The picture upright, with at most 8 bits a channel and no transparency, in whatever mode that is."""
    if image.width == 0 or image.height == 0:
        raise ValueError(f"A picture must have at least one pixel, got {image.width} x {image.height}. Leave it out.")
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT)
    except (SyntaxError, ValueError, OSError):  # a damaged block says nothing about the picture beside it
        orientation = _UPRIGHT
    if orientation != _UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
        return _scale_to_8_bits(image)
    if image.has_transparency_data:
        rgba = _convert(image, "RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    return image


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """A gray picture of 16 or 32 bits a pixel in mode `L`.

    Mode `I;16` counts to 65535. `I` and `F` also hold what was made from 8- or 16-bit pictures, so the smallest usual
    range that holds the brightest pixel is taken: 1 (`F` only), 255, 65535, or the brightest pixel itself.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    brightest = float(values.max())
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((limit for limit in usual if brightest <= limit), brightest)
    return Image.fromarray(np.rint(values.clip(min=0) * (255 / white)).astype(np.uint8))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """`image.convert(mode)`, without a copy where the mode is right already."""
    if image.mode == "La":
        image = image.convert("LA")  # the only way that Pillow knows out of gray with premultiplied alpha
    return image if image.mode == mode else image.convert(mode)
