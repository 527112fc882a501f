"""A picture as a model sees it, and maps of attention laid over it."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


def seen_picture(image_processor: Any, pixels: torch.Tensor) -> Image.Image:
    """A picture as a model sees it, padding included, in mode RGB.

    Args:
        image_processor: that made the pixels.
        pixels: float (channels, height, width).
    """
    levels = pixels.float().cpu().numpy()
    if getattr(image_processor, "do_normalize", False):
        mean, std = (np.reshape(value, (-1, 1, 1)) for value in (image_processor.image_mean, image_processor.image_std))
        levels = levels * std + mean
    if getattr(image_processor, "do_rescale", False):
        levels = levels / image_processor.rescale_factor
    array = levels.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).convert("RGB")


def overlay_map(picture: Image.Image, shares: torch.Tensor) -> Image.Image:
    """A faded picture under its map: clear is the map's least, dark red its most.

    Args:
        shares: float (rows, columns).
    """
    least, most = float(shares.min()), float(shares.max())
    levels = (shares - least) / (most - least) if most > least else torch.zeros_like(shares)
    heat = Image.fromarray((255 * levels).round().cpu().numpy().astype(np.uint8))
    heat = heat.resize(picture.size, Image.Resampling.NEAREST)
    colour = ImageOps.colorize(heat, black="#ffe9a8", mid="#fd8d3c", white="#a50026")
    faded = Image.blend(ImageOps.grayscale(picture), Image.new("L", picture.size, "white"), 0.4).convert("RGB")
    return Image.composite(colour, faded, heat.point([round(0.7 * level) for level in range(256)]))
