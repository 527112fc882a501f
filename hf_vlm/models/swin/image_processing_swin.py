"""Pictures -> `pixel_values` of a Swin transformer.

Two classes, as transformers has it: one resizes with torchvision, one with Pillow; `AutoImageProcessor` chooses.
"""

from typing import Any

from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ...parts.pictures import check_finite, to_rgb


class _SwinTransformerImages:
    """What both backends share. Stands before a backend in the list of bases."""

    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> Any:
        """One picture as the backend's array, (channels, height, width)."""
        check_finite(image)
        if isinstance(image, Image.Image) and do_convert_rgb:
            image, do_convert_rgb = to_rgb(image), False
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)  # type: ignore[misc]


class SwinTransformerImageProcessor(_SwinTransformerImages, TorchvisionBackend):
    """Pictures (PIL, numpy, torch; single or lists) -> `pixel_values`, float (batch, channels, height, width)."""


class SwinTransformerImageProcessorPil(_SwinTransformerImages, PilBackend):
    """`SwinTransformerImageProcessor` on Pillow's resizing."""
