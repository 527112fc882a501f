"""What image processors of every architecture do to one picture before it is resized.

Stands before one of transformers' backends in a class's bases: `class X(PreparedImages, TorchvisionBackend)`.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .pictures import check_finite, to_grayscale, to_rgb

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode `L`


class GrayscaleKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings beyond those of every image processor.

    do_convert_grayscale: whether one channel comes out, float (batch, 1, height, width).
    """

    do_convert_grayscale: bool


class PreparedImages:
    """Pictures upright, opaque, in the right number of channels, with finite pixels."""

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        do_convert_grayscale: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """One picture as the backend's array, (channels, height, width), in the right number of channels.

        Raises:
            ValueError: if a pixel is NaN or infinite, or an array to be made grey has neither 1 nor 3 channels.
        """
        check_finite(image)
        if isinstance(image, Image.Image) and (do_convert_rgb or do_convert_grayscale):
            image = to_grayscale(image) if do_convert_grayscale else to_rgb(image)
            do_convert_rgb = False
        prepared = super().process_image(image, do_convert_rgb=do_convert_rgb and not do_convert_grayscale, **kwargs)  # type: ignore[misc]
        if do_convert_grayscale and prepared.shape[0] != 1:
            prepared = _luma(prepared)
        return prepared


class UnitRangeImages(PreparedImages):
    """Pictures for visual tokenizers: `pixel_values` in [0, 1], not normalised further; and back."""

    valid_kwargs = GrayscaleKwargs
    size = {"height": 32, "width": 32}
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = False
    do_convert_rgb = True
    do_convert_grayscale = False

    def post_process(self, pixel_values: torch.Tensor) -> list[Image.Image]:
        """What a tokenizer decodes, as pictures of 8 bits a channel; values beyond [0, 1] are cut.

        Args:
            pixel_values: float (batch, 1 or 3, height, width).

        Raises:
            ValueError: if the shape is another.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
            raise ValueError(
                f"`pixel_values` must be (batch, 1 or 3, height, width), got {tuple(pixel_values.shape)}. Pass what `decode` "
                "or `sample` gives."
            )
        levels = (pixel_values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        return [
            Image.fromarray((picture[0] if len(picture) == 1 else picture.movedim(0, -1)).contiguous().numpy())
            for picture in levels
        ]


def _luma(image: Any) -> Any:
    """Brightness of an RGB array, (3, height, width) -> (1, height, width), in the same type of numbers."""
    if image.shape[0] != 3:
        raise ValueError(
            f"A picture array must have 1 or 3 channels, got {image.shape[0]}. Convert it, or pass a PIL picture."
        )
    if isinstance(image, torch.Tensor):
        weights = torch.tensor(_LUMA_WEIGHTS, device=image.device)[:, None, None]
        luma = (image.to(torch.float32) * weights).sum(dim=0, keepdim=True)
        return luma.to(image.dtype) if image.is_floating_point() else luma.round().to(image.dtype)
    luma = (image.astype(np.float32) * np.array(_LUMA_WEIGHTS, np.float32)[:, None, None]).sum(axis=0, keepdims=True)
    return luma.astype(image.dtype) if np.issubdtype(image.dtype, np.floating) else np.rint(luma).astype(image.dtype)
