"""What a decoder says about pixels: p(pixel_values | latents), independent from value to value.

A decoder gives maps; `PixelLikelihood` reads them as one of four distributions. Of a distribution, `log_prob` is a
reconstruction loss with its constant (so that losses are nats, and bits a dimension comparable), `mode` the picture to show,
`sample` one with the noise that the model believes in.

    gaussian        density over any numbers                       location, log deviation
    laplace         density over any numbers                       location, log scale
    bernoulli       probability of 0 or 1; grey values in between  logit
    logit_laplace   density over [0, 1], zero outside              location and log scale of logit(0.8 x + 0.1)

The logit-Laplace density is that of `pixel_values` themselves: DALL-E's, of 0.8 x + 0.1, is smaller by log 0.8 a value.

Source: Kingma and Welling 2014, appendix C, https://arxiv.org/abs/1312.6114; Ramesh et al. 2021, appendix A.3 (logit-Laplace),
    https://arxiv.org/abs/2102.12092; Rybkin et al. 2021 (one learnt scale), https://arxiv.org/abs/2006.13202
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

LikelihoodName = Literal["gaussian", "laplace", "bernoulli", "logit_laplace"]
ScaleKind = Literal["fixed", "shared", "predicted"]

NUM_LEVELS = 256  # of an 8-bit pixel
_MAP_EPSILON = 0.1  # of DALL-E's pixel map
# exp(-7) is a quarter of an 8-bit level, of the Gaussian and the Laplace: densities of pixels mean nothing so far below one.
_LOG_SCALE_RANGE = (-7.0, 7.0)


def map_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] -> [0.1, 0.9], where the logit is finite: 0.8 x + 0.1."""
    return (1 - 2 * _MAP_EPSILON) * pixel_values + _MAP_EPSILON


def unmap_pixels(mapped: torch.Tensor) -> torch.Tensor:
    """The inverse of `map_pixels`, cut to [0, 1]."""
    return ((mapped - _MAP_EPSILON) / (1 - 2 * _MAP_EPSILON)).clamp(0, 1)


@dataclasses.dataclass(frozen=True)
class GaussianPixels:
    """Normal distributions around `location`, float of any shape, with `log_scale`, the log of the deviation."""

    location: torch.Tensor
    log_scale: torch.Tensor

    def log_prob(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log density of each value, nats."""
        pixel_values = pixel_values.to(self.location.device)
        squares = ((pixel_values - self.location) * (-self.log_scale).exp()) ** 2
        return -0.5 * squares - self.log_scale - 0.5 * math.log(2 * math.pi)

    @property
    def mode(self) -> torch.Tensor:
        """The likeliest values."""
        return self.location

    def sample(self) -> torch.Tensor:
        """A draw of each value."""
        return self.location + self.log_scale.exp() * torch.randn_like(self.location)


@dataclasses.dataclass(frozen=True)
class LaplacePixels:
    """Laplace distributions around `location`, float of any shape, with `log_scale`, the log of their scale b."""

    location: torch.Tensor
    log_scale: torch.Tensor

    def log_prob(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log density of each value, nats."""
        pixel_values = pixel_values.to(self.location.device)
        return -(pixel_values - self.location).abs() * (-self.log_scale).exp() - self.log_scale - math.log(2)

    @property
    def mode(self) -> torch.Tensor:
        """The likeliest values."""
        return self.location

    def sample(self) -> torch.Tensor:
        """A draw of each value."""
        return self.location + self.log_scale.exp() * _laplace_noise(self.location)


@dataclasses.dataclass(frozen=True)
class BernoulliPixels:
    """Values of 0 or 1, the latter with probability sigmoid(`logits`), float of any shape."""

    logits: torch.Tensor

    def log_prob(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log probability of each value, nats; of a grey value, x log p + (1 - x) log(1 - p)."""
        return -F.binary_cross_entropy_with_logits(self.logits, pixel_values.to(self.logits), reduction="none")

    @property
    def mode(self) -> torch.Tensor:
        """The probability of 1, in [0, 1]: as a grey value, which of two levels nobody wants to see."""
        return self.logits.sigmoid()

    def sample(self) -> torch.Tensor:
        """A draw of each value, 0 or 1."""
        return torch.bernoulli(self.logits.sigmoid())


@dataclasses.dataclass(frozen=True)
class LogitLaplacePixels:
    """logit(0.8 x + 0.1) of a value x is Laplace around `location`, float of any shape, with `log_scale`."""

    location: torch.Tensor
    log_scale: torch.Tensor

    def log_prob(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log density of each value in [0, 1], nats."""
        mapped = map_pixels(pixel_values.to(self.location))
        log_mapped, log_rest = mapped.log(), (1 - mapped).log()
        distance = (log_mapped - log_rest - self.location).abs() * (-self.log_scale).exp()
        # d logit(y) / dx, y = 0.8 x + 0.1: 0.8 / (y (1 - y))
        log_slope = math.log(1 - 2 * _MAP_EPSILON) - log_mapped - log_rest
        return -distance - self.log_scale - math.log(2) + log_slope  # Ramesh eq. 2, of x in the place of 0.8 x + 0.1

    @property
    def mode(self) -> torch.Tensor:
        """DALL-E's reconstruction, in [0, 1]: the median, mapped back."""
        return unmap_pixels(self.location.sigmoid())

    def sample(self) -> torch.Tensor:
        """A draw of each value, cut to [0, 1]."""
        return unmap_pixels((self.location + self.log_scale.exp() * _laplace_noise(self.location)).sigmoid())


Pixels = GaussianPixels | LaplacePixels | BernoulliPixels | LogitLaplacePixels
_WITH_SCALE: dict[str, type[GaussianPixels | LaplacePixels | LogitLaplacePixels]] = {
    "gaussian": GaussianPixels,
    "laplace": LaplacePixels,
    "logit_laplace": LogitLaplacePixels,
}


class PixelLikelihood(nn.Module):
    """Reads a decoder's maps as a distribution over pixels.

    Args:
        name: which distribution, see the module's docstring.
        num_channels: of a picture.
        scale: the deviation (gaussian) or b (laplace, logit_laplace), above 0; where it is learnt, what it begins with.
        scale_kind: `fixed`: one number; `shared`: one number, learnt; `predicted`: one a value, by a second set of maps.
            No setting of `bernoulli`.
    """

    def __init__(
        self, name: LikelihoodName, num_channels: int, *, scale: float = 1.0, scale_kind: ScaleKind = "fixed"
    ) -> None:
        super().__init__()
        self.name, self.num_channels, self.scale_kind = name, num_channels, scale_kind
        self.initial_log_scale = math.log(scale)
        self.has_predicted_scale = name != "bernoulli" and scale_kind == "predicted"
        self.log_scale: nn.Parameter | None = None
        if name != "bernoulli" and scale_kind == "shared":
            self.log_scale = nn.Parameter(torch.tensor(self.initial_log_scale))

    @property
    def num_maps(self) -> int:
        """How many maps a decoder is to give."""
        return self.num_channels * (2 if self.has_predicted_scale else 1)

    @property
    def level_nats(self) -> float:
        """What makes nats of a value in [0, 1] those of its 8-bit level: log 255 for a density, 0 for a probability."""
        return 0.0 if self.name == "bernoulli" else math.log(NUM_LEVELS - 1)

    def forward(self, maps: torch.Tensor) -> Pixels:
        """The distribution, in fp32.

        Args:
            maps: float (batch, num_maps, height, width): location or logit, then log scale where it is predicted.
        """
        maps = maps.float()
        if self.name == "bernoulli":
            return BernoulliPixels(maps)
        location = maps
        if self.has_predicted_scale:
            location, offset = maps.chunk(2, dim=1)
            log_scale = offset + self.initial_log_scale
        elif self.log_scale is not None:
            log_scale = self.log_scale.float()
        else:
            log_scale = torch.full((), self.initial_log_scale, device=maps.device)
        return _WITH_SCALE[self.name](location, log_scale.clamp(*_LOG_SCALE_RANGE))

    def check_domain(self, pixel_values: torch.Tensor) -> None:
        """Checks that pixels are where the distribution has a density; on CPUs only, as elsewhere the host would wait.

        Raises:
            ValueError: if a pixel is outside [0, 1], unless the distribution takes any number.
        """
        if self.name in ("gaussian", "laplace") or pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
            return
        low, high = pixel_values.aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                f"`pixel_values` must be in [0, 1] for the likelihood `{self.name}`, got [{low:.3g}, {high:.3g}]. Use the "
                "model's image processor, which divides by 255 and doesn't normalise."
            )


def _laplace_noise(like: torch.Tensor) -> torch.Tensor:
    """Draws of the standard Laplace distribution: a difference of two exponential ones."""
    return torch.empty_like(like).exponential_() - torch.empty_like(like).exponential_()
