"""Pictures -> `pixel_values` of a Swin transformer.

Two classes, as transformers has it: one resizes with torchvision, one with Pillow; `AutoImageProcessor` chooses.
"""

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ...parts.image_preparation import PreparedImages


class _SwinTransformerImages(PreparedImages):
    """What both backends share. Stands before a backend in the list of bases."""

    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True


class SwinTransformerImageProcessor(_SwinTransformerImages, TorchvisionBackend):
    """Pictures (PIL, numpy, torch; single or lists) -> `pixel_values`, float (batch, channels, height, width)."""


class SwinTransformerImageProcessorPil(_SwinTransformerImages, PilBackend):
    """`SwinTransformerImageProcessor` on Pillow's resizing."""
