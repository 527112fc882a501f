"""What a picture becomes in a visual tokenizer, and comes out as again: codes, or latents and the way between two pictures."""

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vlm.pipelines.attention_sheets import Panel
from hf_vlm.pipelines.image_tokenization import ImageTokenizationPipeline

_GOLDEN = (
    0.618033988749895  # of a turn around the colour wheel from a code to the next: neighbours in number differ in hue
)
_CODE_SIDE = 16  # px a code


@dataclass
class Coded:
    """A picture through a tokenizer.

    Attributes:
        panels: the picture as the tokenizer sees it, its codes as colours, and the picture made of them.
        code_ids: int64 (rows, columns).
        summary: a sentence about them.
    """

    panels: list[Panel]
    code_ids: np.ndarray
    summary: str


def code_picture(pipe: ImageTokenizationPipeline, picture: Image.Image) -> Coded:
    """The codes of a picture, and the picture that they decode to.

    Raises:
        ValueError: if its size doesn't suit the model.
    """
    pixels = pipe.prepare(picture)
    (code_ids,) = pipe.encode([pixels])
    (again,) = pipe.decode(code_ids)
    (seen,) = pipe.image_processor.post_process(torch.from_numpy(pixels)[None])
    rows, columns = code_ids.shape
    error = np.abs(np.asarray(seen, dtype=float) - np.asarray(again, dtype=float)).mean()
    summary = (
        f"{rows} x {columns} codes, {len(np.unique(code_ids))} different ones, of {pipe.num_codes}. The picture made of them "
        f"differs by {error:.1f} of 255 levels a value on average."
    )
    panels = [
        (f"What the tokenizer sees, {seen.width} x {seen.height} px", seen),
        (f"Its codes, a colour each, {columns} x {rows}", draw_codes(code_ids)),
        ("Made again of the codes alone", again),
    ]
    return Coded(panels, code_ids, summary)


def draw_codes(code_ids: np.ndarray) -> Image.Image:
    """A square of one colour a code, the same colour for the same code; RGB.

    Args:
        code_ids: int (rows, columns).
    """
    known, places = np.unique(code_ids, return_inverse=True)
    colours = [
        colorsys.hsv_to_rgb(code * _GOLDEN % 1, 0.45 + 0.5 * (code % 2), 0.95 - 0.35 * (code % 3) / 2) for code in known
    ]
    levels = (255 * np.asarray(colours)).round().astype(np.uint8)
    pixels = levels[places.reshape(code_ids.shape)]
    return Image.fromarray(pixels.repeat(_CODE_SIDE, axis=0).repeat(_CODE_SIDE, axis=1))


@torch.no_grad()
def reconstruct(
    model: Any, image_processor: Any, first: Image.Image, second: Image.Image | None = None, num_steps: int = 7
) -> list[Panel]:
    """A picture and what an autoencoder makes of it again, or the way to a second picture through the latents.

    Args:
        num_steps: pictures on the way, both ends among them.
    """
    pictures = [first] if second is None else [first, second]
    pixels = image_processor(pictures, return_tensors="pt")["pixel_values"].to(model.device)
    seen = image_processor.post_process(pixels)
    if second is None:
        (again,) = image_processor.post_process(model.reconstruct(pixels))
        size = f"{seen[0].width} x {seen[0].height} px"
        return [(f"What the model sees, {size}", seen[0]), ("Made again of its latents", again)]
    way = image_processor.post_process(model.interpolate(pixels[:1], pixels[1:], num_steps)[0])
    return [
        ("The first, as the model sees it", seen[0]),
        *((f"{100 * step / (num_steps - 1):.0f} % of the way", one) for step, one in enumerate(way)),
        ("The second, as the model sees it", seen[1]),
    ]
