"""Our image processors as transformers' own, where the pixels are the same, and in words what else a model wants."""

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_vlm.parts.image_preparation import PreparedImages

# What both have.
_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)


def stock_image_processor(image_processor: Any) -> tuple[Any, list[str]]:
    """Transformers' image processor that makes the same pixels of a picture in RGB; notes on pictures that it treats otherwise.

    Args:
        image_processor: ours, or one of transformers, which stays itself.

    Returns: None in its place where transformers has none; the notes then say what pixels the model wants.
    """
    if not isinstance(image_processor, PreparedImages):
        return image_processor, []
    settings = image_processor.to_dict()
    for name, fault in (
        ("do_convert_grayscale", "makes pictures of one channel"),
        ("keep_aspect_ratio", "keeps a picture's aspect ratio, pads it on the right and masks the padding"),
    ):
        if settings.get(name):
            return None, [f"{_left_out(name, fault)}; {_wanted_pixels(settings)}"]
    is_pil = type(image_processor).__name__.endswith("Pil")
    stock_class: Any = ViTImageProcessorPil if is_pil else ViTImageProcessor
    stock = stock_class(**{name: settings[name] for name in _SETTINGS if settings.get(name) is not None})
    if not _same_pixels(image_processor, stock, _photo("RGB")):
        return None, [f"{_left_out('size', 'makes other pixels')}; {_wanted_pixels(settings)}"]
    others = [mode for mode, picture in _unusual().items() if not _same_pixels(image_processor, stock, picture)]
    notes = []
    if others:
        notes.append(
            f"`{stock_class.__name__}` treats some pictures otherwise than ours: {', '.join(others)}; convert them to upright, "
            "opaque RGB before"
        )
    return stock, notes


def _left_out(setting: str, fault: str) -> str:
    return (
        f"no image processor was written: ours, with `{setting}`, {fault}, and no image processor of transformers does"
    )


def _wanted_pixels(settings: dict[str, Any]) -> str:
    """The pixels that a model wants, for whoever prepares them by hand."""
    size = dict(settings.get("size") or {})
    grey = bool(settings.get("do_convert_grayscale"))
    words = [
        "the model wants `pixel_values` float (batch, "
        f"{1 if grey else 3}, {size.get('height')}, {size.get('width')}) of {'luma (ITU-R BT.601)' if grey else 'RGB'}"
    ]
    if settings.get("keep_aspect_ratio"):
        words.append(
            f"the picture scaled to {size.get('height')} rows, at most {size.get('width')} wide, white on its right up to the "
            "whole width"
        )
    if settings.get("do_rescale"):
        words.append(f"times {settings['rescale_factor']:.6g}")
    if settings.get("do_normalize"):
        words.append(f"minus {json.dumps(settings['image_mean'])}, divided by {json.dumps(settings['image_std'])}")
    return ", ".join(words)


def _same_pixels(ours: Any, stock: Any, picture: Image.Image) -> bool:
    expected = ours(picture, return_tensors="pt")
    try:
        got = stock(picture, return_tensors="pt")
    except Exception:  # whatever it raises for a picture that it can't take
        return False
    return set(got) == set(expected) and torch.equal(got["pixel_values"], expected["pixel_values"])


def _photo(mode: str) -> Image.Image:
    """A picture with detail in every channel."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def _unusual() -> dict[str, Image.Image]:
    """Pictures that are not plain RGB, by what a reader calls them."""
    turned = _photo("RGB")
    turned.getexif()[0x0112] = 6  # EXIF: to be shown turned by 90 degrees
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (61, 83)).astype(np.uint16))
    return {
        "grey": _photo("L"),
        "with a palette": _photo("P"),
        "CMYK": _photo("CMYK"),
        "transparent": _photo("RGBA"),
        "turned by EXIF": turned,
        "of 16 bits": wide,
    }
