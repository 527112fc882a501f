"""The diagonal Gaussian of a variational autoencoder: reparameterised samples, and its KL from the standard normal.

Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114: section 2.4 (the samples), appendix B (the KL)
"""

import dataclasses
import math

import torch

_LOG_VARIANCE_RANGE = (-30.0, 20.0)  # exp of it is finite and positive in fp32


@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distributions, in fp32 whatever came: half precision overflows at a variance of exp(11).

    Attributes:
        mean: float, any shape.
        log_variance: float, the same shape; cut to [-30, 20].
    """

    mean: torch.Tensor
    log_variance: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.float())
        object.__setattr__(self, "log_variance", self.log_variance.float().clamp(*_LOG_VARIANCE_RANGE))

    @property
    def deviation(self) -> torch.Tensor:
        """The standard deviation, fp32, shaped like `mean`."""
        return (0.5 * self.log_variance).exp()

    def sample(self, num_samples: int = 1, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Samples, mean + deviation * noise: fp32 (num_samples, *shape), differentiable in mean and log variance.

        Args:
            num_samples: how many of each.
            noise: standard normal, of a shape that broadcasts to (num_samples, *shape); by default it is drawn.
        """
        if noise is None:
            noise = torch.randn(num_samples, *self.mean.shape, device=self.mean.device)
        return self.mean + self.deviation * noise  # Kingma eq. 4

    def log_prob(self, values: torch.Tensor) -> torch.Tensor:
        """Log density of each value, nats: fp32, the broadcast shape."""
        squares = (values.float() - self.mean) ** 2 * (-self.log_variance).exp()
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi))

    def kl_from_standard_normal(self) -> torch.Tensor:
        """KL(q || N(0, 1)) of each, nats: fp32, shaped like `mean`, 0 or more."""
        return 0.5 * (self.mean**2 + self.log_variance.expm1() - self.log_variance)  # Kingma eq. 10, its first term
