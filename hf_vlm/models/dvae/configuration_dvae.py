"""Settings of the discrete VAE."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict

from ...blocks.likelihoods import LikelihoodName, ScaleKind
from ...parts.hub_config import HubConfig
from ...parts.settings import check_grid, check_likelihood

# Appendix A.2 of the paper, and its released code. The KL weight and the temperature are those at the end of training.
PRESETS: dict[str, dict[str, Any]] = {
    "dall-e": {
        "image_size": 256,
        "group_channels": 256,
        "num_groups": 4,
        "num_blocks_per_group": 2,
        "num_codes": 8192,
        "code_dim": 128,
        "likelihood": "logit_laplace",
        "likelihood_scale_kind": "predicted",
        "temperature": 1 / 16,
        "kl_weight": 6.6,
    }
}


@strict
class DVAEConfig(HubConfig):
    """Settings of a `DVAEModel`; the defaults are small enough to train in a test.

    Args:
        image_size: pixels, one number or (height, width): of the pictures that are sampled, and that a decoder which reads
            visual words is made for. Any other size that is a multiple of `downsampling` is taken as it is.
        group_channels: width of the first group of the encoder and of the last of the decoder; each further from the pixels
            has twice the width on half the rows and columns.
        num_groups: of residual blocks; sides are halved between them.
        num_blocks_per_group: residual blocks of each.
        num_codes: visual words.
        code_dim: numbers of a visual word, where the decoder begins.
        temperature: of the Gumbel-softmax, above 0.
        is_hard: whether the decoder sees one visual word a place in training too, gradients straight through.
        kl_weight: of KL(q || uniform), 0 or more.
        start_logit_deviation: on the first training batch the encoder's output layer is shifted and scaled so that the logit
            of each word has mean 0 and this deviation over all places: all words begin in use, and few learn to take over.
            None, as published: the layer begins as it was drawn.
        num_latent_samples: Gumbel-softmax samples a picture in training.
        likelihood, likelihood_scale, likelihood_scale_kind: as in `VAEConfig`.

    Source: Jang et al. 2017, https://arxiv.org/abs/1611.01144; Ramesh et al. 2021, https://arxiv.org/abs/2102.12092;
        Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, section 3 (a start from data)
    """

    model_type = "hf_vlm_dvae"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    group_channels: int = 16
    num_groups: int = 3
    num_blocks_per_group: int = 1
    num_codes: int = 64
    code_dim: int = 16
    temperature: float | int = 1.0
    is_hard: bool = False
    kl_weight: float | int = 1.0
    start_logit_deviation: float | int | None = None
    num_latent_samples: int = 1
    likelihood: LikelihoodName = "logit_laplace"
    likelihood_scale: float | int = 1.0
    likelihood_scale_kind: ScaleKind = "predicted"

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "DVAEConfig":
        """The settings of a published model.

        Args:
            name: `dall-e`, DALL-E's tokenizer: 256 x 256 pixels to 32 x 32 of 8,192 visual words.
            settings: what is to differ, such as `image_size=128`.

        Raises:
            ValueError: if there is no such model.
        """
        if name not in PRESETS:
            raise ValueError(f"A published model is wanted, one of {', '.join(PRESETS)}, got `{name}`. Choose one.")
        return cls(**{**PRESETS[name], **settings})

    @property
    def hidden_size(self) -> int:
        """Numbers of a visual word's vector, as a decoder that reads pictures sees them."""
        return self.code_dim

    @property
    def downsampling(self) -> int:
        """Pixels along a side of a visual word."""
        return 2 ** (self.num_groups - 1)

    def validate_ranges(self) -> None:
        """Widths and counts are positive, there are two codes or more, temperature and weight mean something."""
        for name in ("num_channels", "num_groups", "num_blocks_per_group", "code_dim", "num_latent_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}. Correct it.")
        if self.group_channels < 4 or self.group_channels % 4:
            raise ValueError(
                f"`group_channels` must be a multiple of 4, as blocks narrow to a quarter, got {self.group_channels}. Change it."
            )
        if self.num_codes < 2:
            raise ValueError(f"`num_codes` must be 2 or more, got {self.num_codes}: one code says nothing. Raise it.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}. The paper ends at 1/16.")
        if self.start_logit_deviation is not None and not self.start_logit_deviation > 0:
            raise ValueError(
                f"`start_logit_deviation` must be above 0, got {self.start_logit_deviation}. 3 is usual, null leaves it out."
            )
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"`kl_weight` must be 0 or more, got {self.kl_weight}. The paper's is 6.6.")

    def validate_grid(self) -> None:
        """The picture has a whole number of visual words."""
        check_grid(self.image_size, self.downsampling)

    def validate_likelihood(self) -> None:
        """The likelihood has a scale that means something."""
        check_likelihood(self.likelihood, self.likelihood_scale, self.likelihood_scale_kind)
