"""Pictures -> `pixel_values` of a discrete VAE, and back.

Two classes, as transformers has it: one resizes with torchvision, one with Pillow; `AutoImageProcessor` chooses.
"""

from typing import Any

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import PILImageResampling

from ...parts.image_preparation import UnitRangeImages

# The released notebook: the shorter side to 256 pixels, then the middle.
PRESETS: dict[str, dict[str, Any]] = {
    "dall-e": {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "resample": PILImageResampling.LANCZOS,
    }
}


class DVAEImageProcessor(UnitRangeImages, TorchvisionBackend):
    """Pictures (PIL, numpy, torch; single or lists) -> `pixel_values`, float (batch, channels, height, width) in [0, 1]."""


class DVAEImageProcessorPil(UnitRangeImages, PilBackend):
    """`DVAEImageProcessor` on Pillow's resizing."""
