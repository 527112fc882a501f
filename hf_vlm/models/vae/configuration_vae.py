"""Settings of the variational autoencoder."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict

from ...blocks.likelihoods import LikelihoodName, ScaleKind
from ...parts.hub_config import HubConfig
from ...parts.settings import check_conv_stages, check_likelihood, check_ranges


@strict
class VAEConfig(HubConfig):
    """Settings of a `VAEModel`; the defaults are small enough to train in a test.

    Args:
        image_size: pixels, one number or (height, width): of the pictures that are sampled, and that a decoder which reads
            latents is made for. Any other size that is a multiple of `downsampling` is taken as it is.
        hidden_channels: width of each stage of the encoder, the first nearest to the pixels; each halves both sides. The
            decoder is its mirror image. Without a stage both are linear maps of a pixel.
        num_residual_blocks: of each stage.
        residual_channels: inside residual blocks; None for the stage's own width.
        latent_channels: numbers a place of the grid.
        beta: weight of the KL term, 0 or more: 1 is the VAE, others the beta-VAE.
        is_deterministic: whether there is no posterior variance and nothing is sampled: a plain autoencoder. None means:
            where `beta` is 0. (False with a `beta` of 0 is a VAE whose weight rises later.)
        num_latent_samples: draws from the posterior a picture, in training and evaluation.
        likelihood: distribution of pixels, see `blocks/likelihoods.py`.
        likelihood_scale: deviation (gaussian) or scale b (laplace, logit_laplace); where it is learnt, the first one.
        likelihood_scale_kind: `fixed`, `shared` (one learnt number) or `predicted` (one a pixel value).

    Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114; Higgins et al. 2017 (beta)
    """

    model_type = "hf_vlm_vae"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    hidden_channels: list[int] | tuple[int, ...] = (16, 32)
    num_residual_blocks: list[int] | tuple[int, ...] = (0, 1)
    residual_channels: int | None = None
    hidden_act: str = "relu"
    latent_channels: int = 4
    beta: float | int = 1.0
    is_deterministic: bool | None = None
    num_latent_samples: int = 1
    likelihood: LikelihoodName = "gaussian"
    likelihood_scale: float | int = 1.0
    likelihood_scale_kind: ScaleKind = "fixed"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.is_deterministic is None:
            self.is_deterministic = self.beta == 0
        super().__post_init__(**kwargs)

    @property
    def downsampling(self) -> int:
        """Pixels along a side of a latent."""
        return 2 ** len(self.hidden_channels)

    @property
    def hidden_size(self) -> int:
        """Numbers a latent, as a decoder that reads pictures sees them."""
        return self.latent_channels

    def validate_ranges(self) -> None:
        """Widths and counts are positive, beta is no reward for information, the activation is known."""
        check_ranges(
            self, positive=("num_channels", "latent_channels", "num_latent_samples"), shares=(), activation="hidden_act"
        )
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"`beta` must be 0 or more, got {self.beta}. 1 is the VAE, 0 a plain autoencoder.")
        if self.is_deterministic and self.beta != 0:
            raise ValueError(
                f"A deterministic autoencoder has no KL term, got `beta={self.beta}`. Set it to 0, or `is_deterministic` "
                "to False."
            )

    def validate_stages(self) -> None:
        """Every stage is complete, and the picture has a whole number of latents."""
        check_conv_stages(self.hidden_channels, self.num_residual_blocks, self.residual_channels, self.image_size)

    def validate_likelihood(self) -> None:
        """The likelihood has a scale that means something."""
        check_likelihood(self.likelihood, self.likelihood_scale, self.likelihood_scale_kind)
