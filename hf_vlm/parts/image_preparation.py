"""What image processors of every architecture do to one picture before it is resized.

Stands before one of transformers' backends in a class's bases: `class X(PreparedImages, TorchvisionBackend)`.
"""

import sys
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor
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

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved; `auto_map` names code only where that is saved along, and the classes of both backends.

        What transformers writes there of an image processor that was loaded with code is the class at hand alone.
        """
        settings: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        auto_map = dict(settings.pop("auto_map", None) or {})
        if self._auto_class is None:  # type: ignore[attr-defined]
            return settings
        name = type(self).__name__.removesuffix("Pil")
        home = sys.modules[type(self).__module__]
        if isinstance(auto_map.get("AutoImageProcessor"), str) and hasattr(home, name) and hasattr(home, f"{name}Pil"):
            module = home.__name__.rpartition(".")[2]
            auto_map["AutoImageProcessor"] = {"torchvision": f"{module}.{name}", "pil": f"{module}.{name}Pil"}
        return {**settings, "auto_map": auto_map} if auto_map else settings


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


def without_timm(image_processor: Any) -> Any:
    """Transformers' wrapper of timm's pre-processing as an image processor of the usual settings; any other as it is."""
    settings = getattr(image_processor, "data_config", None)
    if settings is None:
        return image_processor
    return ViTImageProcessor(
        size=dict(zip(("height", "width"), settings["input_size"][-2:], strict=True)),
        resample=PILImageResampling[settings["interpolation"].upper()],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def picture_size(image_processor: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of what an image processor makes of any picture; None if that depends on the picture."""
    sizes = set()
    for size in ((48, 80), (80, 48)):
        try:
            pixels = image_processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
        except (ValueError, RuntimeError):
            return None
        sizes.add(tuple(pixels.shape[-2:]))
    return sizes.pop() if len(sizes) == 1 else None


def fix_picture_size(
    image_processor: Any, size: tuple[int, int] | None, *, otherwise: tuple[int, int], keep_all: bool
) -> Any:
    """An image processor whose pictures all come out in one size; it is changed itself where it need not be replaced.

    Args:
        size: (height, width) in pixels; None keeps the processor's own.
        otherwise: the size where it has none of its own.
        keep_all: whether squares are to come out whole, where it would cut off a margin.

    Raises:
        ValueError: if it can't be made to.
    """
    image_processor = without_timm(image_processor)
    own = picture_size(image_processor)
    wanted = size or own or otherwise
    scaled = {"height": wanted[0], "width": wanted[1]}
    if keep_all and wanted[0] == wanted[1] and getattr(image_processor, "do_center_crop", False):
        image_processor.size = {"shortest_edge": wanted[0]}
        image_processor.crop_size = scaled
    elif own != wanted:
        if getattr(image_processor, "do_center_crop", False):
            image_processor.size = {"shortest_edge": max(wanted)}
            image_processor.crop_size = scaled
        elif "shortest_edge" in dict(getattr(image_processor, "size", None) or {}) and wanted[0] == wanted[1]:
            image_processor.size = {"shortest_edge": wanted[0]}
    if picture_size(image_processor) != wanted:
        image_processor.size = scaled
    if keep_all and wanted[0] == wanted[1] and _cuts_margin(image_processor):  # ConvNeXT's does without saying so
        kept = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        settings = {name: getattr(image_processor, name) for name in kept if hasattr(image_processor, name)}
        image_processor = ViTImageProcessor(size=scaled, **settings)
    if picture_size(image_processor) != wanted:
        raise ValueError(
            f"The image processor must make pictures of {wanted[0]} x {wanted[1]} pixels, got "
            f"`{type(image_processor).__name__}`, which makes {picture_size(image_processor) or 'them of any size'}. Pass an "
            "image processor that does, such as a `ViTImageProcessor`, as `vision`."
        )
    return image_processor


def _cuts_margin(image_processor: Any) -> bool:
    """Whether an image processor leaves out the edges of a square: the ends of a ramp from black to white are then gone."""
    ramp = np.tile(np.linspace(0, 255, 512).round().astype(np.uint8), (512, 1))
    pictures = [Image.fromarray(ramp), Image.new("L", (512, 512), 0), Image.new("L", (512, 512), 255)]
    pixels = image_processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]
    across, black, white = pixels[:, 0, pixels.shape[2] // 2]  # one row of one channel
    first = (across[0] - black[0]) / (white[0] - black[0])
    return bool(first > 1 / pixels.shape[3] + 0.005)  # half a pixel's width, were it whole
