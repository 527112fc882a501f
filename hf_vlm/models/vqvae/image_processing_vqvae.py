"""Pictures -> `pixel_values` of a VQ-VAE, and back.

Two classes, as transformers has it: one resizes with torchvision, one with Pillow; `AutoImageProcessor` chooses.
"""

from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from ...parts.image_preparation import UnitRangeImages


class VQVAEImageProcessor(UnitRangeImages, TorchvisionBackend):
    """Pictures (PIL, numpy, torch; single or lists) -> `pixel_values`, float (batch, channels, height, width) in [0, 1]."""


class VQVAEImageProcessorPil(UnitRangeImages, PilBackend):
    """`VQVAEImageProcessor` on Pillow's resizing."""
