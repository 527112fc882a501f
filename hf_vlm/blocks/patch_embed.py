"""Pixels -> patch vectors, by one strided convolution or by a convolutional stem before it.

pixel_values float (batch, channels, height, width) -> patches float (batch, rows * columns, hidden_size).

Source: Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929; the stem: Xiao et al. 2021 ("Early
convolutions help transformers see better"), https://arxiv.org/abs/2106.14881, with a layer norm over channels in place
of batch norm.
"""

from collections.abc import Sequence

import torch
from torch import nn


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one whole number or as a pair.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(size, int):
        return size, size
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(number, int) for number in size):
        raise ValueError(f"A size must be one whole number or (height, width), got {size!r}. Correct it.")
    return size[0], size[1]


class ConvolutionalStemLayer(nn.Module):
    """A 3x3 convolution, a layer norm over the channels of each position, GELU.

    The norm looks at one position at a time, never at the batch: a picture gives the same alone and among others, and
    eight small batches the gradient of a big one.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convolve, normalise, activate, and zero the padding again, as the space beyond a border is.

        Args:
            features: float (batch, in_channels, height, width).
            mask: float (batch, 1, height, width), 1 for the picture, 0 for padding, or None.

        Returns: float (batch, out_channels, ceil(height / row stride), ceil(width / column stride)), and its mask.
        """
        features = self.convolution(features).permute(0, 2, 3, 1).contiguous()  # channels last, as the norm wants them
        features = nn.functional.gelu(self.norm(features))
        features = features.permute(0, 3, 1, 2)  # a view: the next convolution takes channels-last memory as it is
        if mask is None:
            return features, None
        row_stride, column_stride = self.stride
        mask = mask[:, :, ::row_stride, ::column_stride]  # an output is real where the pixel at its centre is
        return features * mask.to(features.dtype), mask


class PatchEmbedding(nn.Module):
    """Each patch of the picture as one vector.

    Args:
        patch_size: pixels of the picture that a patch covers, (height, width).
        patch_stride: pixels from one patch to the next, at most `patch_size`; less for overlapping patches.
        stem_channels: output channels of each stem layer; empty for the plain ViT.
        stem_strides: stride of each stem layer, (rows, columns). Their products must divide `patch_size` and
            `patch_stride`; the last convolution covers what is left.
    """

    def __init__(
        self,
        num_channels: int,
        hidden_size: int,
        patch_size: tuple[int, int],
        patch_stride: tuple[int, int],
        stem_channels: Sequence[int] = (),
        stem_strides: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.patch_stride = patch_stride
        widths = (num_channels, *stem_channels)
        self.stem = nn.ModuleList(
            ConvolutionalStemLayer(before, after, stride)
            for before, after, stride in zip(widths[:-1], stem_channels, stem_strides, strict=True)
        )
        rows, columns = 1, 1
        for stride in stem_strides:
            rows, columns = rows * stride[0], columns * stride[1]
        self.projection = nn.Conv2d(
            widths[-1],
            hidden_size,
            kernel_size=(patch_size[0] // rows, patch_size[1] // columns),
            stride=(patch_stride[0] // rows, patch_stride[1] // columns),
        )

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches that a picture of `height` x `width` pixels gives."""
        return (
            (height - self.patch_size[0]) // self.patch_stride[0] + 1,
            (width - self.patch_size[1]) // self.patch_stride[1] + 1,
        )

    def patch_mask(self, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Which patches show some of the picture that the patches before them don't.

        Where patches don't overlap, that is every patch with a pixel of the picture; where they do, one whose new part
        is all padding would not exist, were the picture alone.

        Args:
            pixel_mask: int64 or bool (batch, height, width), 1 for the picture (the top-left part), 0 for padding.

        Returns: bool (batch, rows * columns).
        """
        pixel_mask = pixel_mask.bool()
        rows = self._axis_mask(pixel_mask.any(dim=2), self.patch_size[0], self.patch_stride[0])
        columns = self._axis_mask(pixel_mask.any(dim=1), self.patch_size[1], self.patch_stride[1])
        return (rows[:, :, None] & columns[:, None, :]).flatten(1)

    @staticmethod
    def _axis_mask(real: torch.Tensor, size: int, stride: int) -> torch.Tensor:
        """Pixels along one axis, bool (batch, pixels) -> patches along it, bool (batch, rows or columns)."""
        shown = real[:, size - stride :].unfold(1, stride, stride).any(dim=-1)  # the last `stride` pixels are new
        return torch.cat((shown[:, :1] | real[:, :1], shown[:, 1:]), dim=1)  # all of the first patch is

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed the patches, row by row.

        Args:
            pixel_values: float (batch, num_channels, height, width).
            pixel_mask: int64 or bool (batch, height, width), or None where nothing is padded. Padding counts as zero
                before every convolution, just like the space beyond a picture's border: a padded picture gives what it
                gives alone.

        Returns: float (batch, rows * columns, hidden_size).
        """
        # Pixels beyond the last whole patch are left out, before a stem would round them up to one patch more.
        rows, columns = self.grid_size(*pixel_values.shape[-2:])
        height = (rows - 1) * self.patch_stride[0] + self.patch_size[0]
        width = (columns - 1) * self.patch_stride[1] + self.patch_size[1]
        features, mask = pixel_values[..., :height, :width], None
        if pixel_mask is not None:
            mask = pixel_mask[:, None, :height, :width].to(features.dtype)  # (batch, 1, height, width)
            features = features * mask
        for layer in self.stem:
            features, mask = layer(features, mask)
        return self.projection(features).flatten(2).transpose(1, 2)


def check_pixels(pixel_values: torch.Tensor, num_channels: int) -> None:
    """Checks that `pixel_values` is a batch of pictures that a model can read.

    That every pixel is a number is checked on CPUs only: elsewhere it would make the host wait for the device; image
    processors check it before.

    Args:
        pixel_values: float (batch, num_channels, height, width).

    Raises:
        TypeError: if it is no tensor.
        ValueError: if shape or dtype is another, there is no picture, or a pixel is infinite or not a number.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(
            f"`pixel_values` must be a tensor, got {type(pixel_values).__name__}. Use the model's image processor."
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` must be (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}. Use the "
            "model's image processor."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be float, got {pixel_values.dtype}. Use the model's image processor, which scales and "
            "normalises."
        )
    if pixel_values.shape[0] == 0:
        raise ValueError(f"Pictures are wanted, got a batch of none, {tuple(pixel_values.shape)}. Leave it out.")
    if pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
        return
    is_finite = pixel_values.isfinite().flatten(1).all(dim=1)
    if not is_finite.all():
        faulty = (~is_finite).nonzero().flatten().tolist()
        raise ValueError(
            f"`pixel_values` must be finite numbers, got NaN or infinity in picture {faulty[0]} of the batch of "
            f"{len(is_finite)}. Look at that picture before it is normalised, or leave it out."
        )
