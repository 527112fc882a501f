"""Pictures -> `pixel_values` of a vision transformer; for lines of text also at their own width, with a `pixel_mask`.

Two classes, as transformers has it: one resizes with torchvision, one with Pillow; `AutoImageProcessor` chooses.
"""

from typing import Any

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from ...parts.image_preparation import GrayscaleKwargs, PreparedImages


class VisionTransformerImageProcessorKwargs(GrayscaleKwargs, total=False):  # type: ignore[call-arg]
    """Settings beyond those of every image processor.

    keep_aspect_ratio: whether a picture is scaled to `size["height"]` and its width follows, up to `size["width"]` (a
        wider one is squeezed into it); the batch is padded on the right with white, and `pixel_mask` says where.
    pad_multiple: pixels; the padded width is a multiple of it. A multiple of the model's patch width.
    """

    keep_aspect_ratio: bool
    pad_multiple: int


class _VisionTransformerImages(PreparedImages):
    """What both backends share. Stands before a backend in the list of bases."""

    valid_kwargs = VisionTransformerImageProcessorKwargs
    size = {"height": 32, "width": 32}
    resample = PILImageResampling.BICUBIC
    image_mean = 0.5
    image_std = 0.5
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_convert_grayscale = False
    keep_aspect_ratio = False
    pad_multiple = 32

    @property
    def model_input_names(self) -> list[str]:
        """Names of what comes out: `pixel_values`, and `pixel_mask` where pictures keep their aspect ratio."""
        return ["pixel_values", "pixel_mask"] if self.keep_aspect_ratio else ["pixel_values"]

    def _preprocess(
        self,
        images: list,
        size: SizeDict,
        keep_aspect_ratio: bool = False,
        pad_multiple: int = 32,
        do_resize: bool = True,
        resample: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resize, pad and normalise pictures that `process_image` prepared."""
        if not keep_aspect_ratio:
            return super()._preprocess(  # type: ignore[misc]
                images, size=size, do_resize=do_resize, resample=resample, return_tensors=return_tensors, **kwargs
            )
        if not size.height or not size.width or size.width % pad_multiple:
            raise ValueError(
                "With `keep_aspect_ratio`, `size` must have a height and a width that is a multiple of `pad_multiple`, "
                f"{pad_multiple}, got {dict(size)}. Change one of them."
            )
        if kwargs.get("do_center_crop"):
            raise ValueError("`keep_aspect_ratio` shows whole pictures, got `do_center_crop` as well. Leave one out.")
        if do_resize:
            images = [self._resize_line(image, size, resample) for image in images]
        widest = max(image.shape[-1] for image in images)
        padded = SizeDict(height=size.height, width=-(-widest // pad_multiple) * pad_multiple)
        white = 1 / kwargs["rescale_factor"] if kwargs["do_rescale"] else 1.0
        images, masks = self.pad(images, pad_size=padded, fill_value=white, return_mask=True)  # type: ignore[attr-defined]
        kwargs["do_pad"] = False
        features = super()._preprocess(  # type: ignore[misc]
            images, size=size, do_resize=False, resample=resample, return_tensors=None, **kwargs
        )
        data = {"pixel_values": features["pixel_values"], "pixel_mask": masks}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _resize_line(self, image: Any, size: SizeDict, resample: Any) -> Any:
        """(channels, height, width) scaled to `size.height`, at most `size.width` wide."""
        height, width = image.shape[-2:]
        scaled_width = max(1, min(size.width, round(width * size.height / height)))
        if (height, width) == (size.height, scaled_width):
            return image
        return self.resize(image, SizeDict(height=size.height, width=scaled_width), resample=resample)  # type: ignore[attr-defined]


class VisionTransformerImageProcessor(_VisionTransformerImages, TorchvisionBackend):
    """Pictures (PIL, numpy, torch; single or lists) -> `pixel_values`, float (batch, channels, height, width).

    With `keep_aspect_ratio` also `pixel_mask`, int64 (batch, height, width), 1 for the picture, 0 for padding.
    """


class VisionTransformerImageProcessorPil(_VisionTransformerImages, PilBackend):
    """`VisionTransformerImageProcessor` on Pillow's resizing."""
