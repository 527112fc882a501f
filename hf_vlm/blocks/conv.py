"""Convolutional encoder and decoder of a visual tokenizer: pixels to a grid of latent vectors, and back.

    (batch, num_channels, height, width) -> a convolution of stride 2 and residual blocks a stage -> (batch, out_channels,
    height / 2^stages, width / 2^stages)                            the decoder is its mirror image

Source: van den Oord et al. 2017, section 4.1, https://arxiv.org/abs/1711.00937: strided 4x4 convolutions, residual blocks of
    ReLU, 3x3, ReLU, 1x1
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN


class ResidualConvBlock(nn.Module):
    """x + conv1x1(act(conv3x3(act(x)))).

    Args:
        channels: of input and output.
        inner_channels: between the two convolutions.
        activation: name of one of transformers' activations.
    """

    def __init__(self, channels: int, inner_channels: int, activation: str) -> None:
        super().__init__()
        self.activation = ACT2FN[activation]
        self.spatial = nn.Conv2d(channels, inner_channels, 3, padding=1)
        self.pointwise = nn.Conv2d(inner_channels, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float (batch, channels, height, width), the same shape."""
        inner = self.activation(self.spatial(self.activation(features)))
        return features + self.pointwise(inner)


def _residual_blocks(num_blocks: int, channels: int, inner_channels: int | None, activation: str) -> nn.Sequential:
    return nn.Sequential(
        *(ResidualConvBlock(channels, inner_channels or channels, activation) for _ in range(num_blocks))
    )


class DownStage(nn.Module):
    """A strided convolution and residual blocks: float (batch, in, height, width) -> (batch, out, height / 2, width / 2)."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, inner_channels: int | None, activation: str
    ) -> None:
        super().__init__()
        self.downsampling = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.blocks = _residual_blocks(num_blocks, out_channels, inner_channels, activation)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The stage's output."""
        return self.blocks(self.downsampling(features))


class UpStage(nn.Module):
    """Residual blocks and a transposed convolution: float (batch, in, rows, columns) -> (batch, out, 2 rows, 2 columns)."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, inner_channels: int | None, activation: str
    ) -> None:
        super().__init__()
        self.blocks = _residual_blocks(num_blocks, in_channels, inner_channels, activation)
        self.activation = ACT2FN[activation]
        self.upsampling = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The stage's output."""
        return self.upsampling(self.activation(self.blocks(features)))


class ConvEncoder(nn.Module):
    """Pictures -> a grid of vectors, each side divided by 2^len(hidden_channels).

    Args:
        num_channels: of a picture.
        hidden_channels: width of each stage, the first nearest to the pixels; none: a linear map of each pixel.
        num_blocks: residual blocks of each stage.
        inner_channels: inside residual blocks; None for the stage's own width.
        out_channels: of the grid.
        activation: name of one of transformers' activations.
    """

    def __init__(
        self,
        num_channels: int,
        hidden_channels: Sequence[int],
        num_blocks: Sequence[int],
        inner_channels: int | None,
        out_channels: int,
        activation: str,
    ) -> None:
        super().__init__()
        widths = [num_channels, *hidden_channels]
        self.stages = nn.ModuleList(
            DownStage(widths[index], widths[index + 1], blocks, inner_channels, activation)
            for index, blocks in enumerate(num_blocks)
        )
        self.activation = ACT2FN[activation]
        self.output_layer = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float (batch, num_channels, height, width) -> float (batch, out_channels, rows, columns)."""
        features = pixel_values
        for stage in self.stages:
            features = self.activation(stage(features))
        return self.output_layer(features)


class ConvDecoder(nn.Module):
    """A grid of vectors -> maps as large as the picture. The arguments are those of `ConvEncoder`, stages in its order.

    Args:
        in_channels: of the grid.
        num_maps: how many maps of the picture's size.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        num_blocks: Sequence[int],
        inner_channels: int | None,
        num_maps: int,
        activation: str,
    ) -> None:
        super().__init__()
        widths = [num_maps, *hidden_channels]
        kernel_size = 3 if hidden_channels else 1
        self.input_layer = nn.Conv2d(in_channels, widths[-1], kernel_size, padding=kernel_size // 2)
        self.stages = nn.ModuleList(
            UpStage(widths[index + 1], widths[index], num_blocks[index], inner_channels, activation)
            for index in reversed(range(len(hidden_channels)))
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Float (batch, in_channels, rows, columns) -> float (batch, num_maps, height, width)."""
        features = self.input_layer(latents)
        for stage in self.stages:
            features = stage(features)
        return features


def init_convolution(module: nn.Module, gain: float = 1.0) -> None:
    """Normal weights of deviation gain / sqrt(numbers that make one output), zero biases.

    Args:
        module: a 2-D convolution, transposed or not.
        gain: 1 keeps the size of features; before an activation that drops half of them, sqrt(2) does.
    """
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    taps = math.prod(module.kernel_size) * module.in_channels
    if isinstance(module, nn.ConvTranspose2d):
        taps //= math.prod(module.stride)
    init.normal_(module.weight, std=gain / math.sqrt(taps))
    if module.bias is not None:
        init.zeros_(module.bias)


def grid_size(height: int, width: int, downsampling: int) -> tuple[int, int]:
    """(rows, columns) of the grid of a picture of so many pixels.

    Raises:
        ValueError: if a side is no multiple of `downsampling`, or the picture is smaller than that.
    """
    if height % downsampling or width % downsampling or height < 1 or width < 1:
        near = [max(1, round(side / downsampling)) * downsampling for side in (height, width)]
        raise ValueError(
            f"Pictures with sides that are multiples of {downsampling} pixels are wanted, got {height} x {width}. Resize "
            f"or crop them, for example to {near[0]} x {near[1]}, by the `size` of the image processor."
        )
    return height // downsampling, width // downsampling
