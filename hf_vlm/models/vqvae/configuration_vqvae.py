"""Settings of the VQ-VAE."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ...blocks.codebook import CodebookUpdate
from ...blocks.likelihoods import LikelihoodName, ScaleKind
from ...parts.hub_config import HubConfig
from ...parts.settings import check_conv_stages, check_likelihood, check_ranges

_LARGEST_CODEBOOK = 2**20


@strict
class VQVAEConfig(HubConfig):
    """Settings of a `VQVAEModel`; the defaults are small enough to train in a test.

    Args:
        image_size, hidden_channels, num_residual_blocks, residual_channels: as in `VAEConfig`.
        discretisation: how a latent vector becomes one of finitely many: `codebook`, its nearest codeword; `binary`, the
            signs of its coordinates; `levels`, each coordinate rounded to one of so many levels.
        num_codes: of a codebook; otherwise what `code_dim` bits or `levels` make, and filled in.
        code_dim: numbers a latent vector; with `levels` it is filled in.
        levels: how many values each coordinate is rounded to.
        codebook_update: how codewords are learnt: `loss`, by gradients, or `ema`, as running means.
        ema_decay: of the running means, and of the counts that tell which codewords are in use, in [0, 1).
        revive_below: a codeword is put on a vector of the batch where its running count falls below this share of an even
            one; 0 for never.
        kmeans_iterations: of the codebook's start from the first training batch; 0 for random codewords.
        commitment_weight: of the loss that holds latents to their codewords, 0 or more; the paper's is 0.25.
        loss_reduction: `mean`: codebook and commitment loss are means over latent values, the reconstruction over pixel
            values; `sum`: all are sums over a picture, as the paper's equation has them.
        likelihood, likelihood_scale, likelihood_scale_kind: as in `VAEConfig`.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
    """

    model_type = "hf_vlm_vqvae"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    hidden_channels: list[int] | tuple[int, ...] = (16, 32)
    num_residual_blocks: list[int] | tuple[int, ...] = (0, 1)
    residual_channels: int | None = None
    hidden_act: str = "relu"
    discretisation: Literal["codebook", "binary", "levels"] = "codebook"
    num_codes: int | None = None
    code_dim: int | None = None
    levels: list[int] | tuple[int, ...] | None = None
    codebook_update: CodebookUpdate = "ema"
    ema_decay: float | int = 0.99
    revive_below: float | int = 0.03
    kmeans_iterations: int = 10
    commitment_weight: float | int = 0.25
    loss_reduction: Literal["mean", "sum"] = "mean"
    likelihood: LikelihoodName = "gaussian"
    likelihood_scale: float | int = 1.0
    likelihood_scale_kind: ScaleKind = "fixed"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.discretisation == "codebook":
            self.num_codes = 64 if self.num_codes is None else self.num_codes
            self.code_dim = 8 if self.code_dim is None else self.code_dim
        elif self.discretisation == "binary":
            self.code_dim = 8 if self.code_dim is None else self.code_dim
            self.num_codes = 2**self.code_dim if self.num_codes is None else self.num_codes
        else:
            self.levels = (8, 8, 8) if self.levels is None else self.levels
            self.code_dim = len(self.levels) if self.code_dim is None else self.code_dim
            self.num_codes = math.prod(self.levels) if self.num_codes is None else self.num_codes
        super().__post_init__(**kwargs)

    @property
    def downsampling(self) -> int:
        """Pixels along a side of a code."""
        return 2 ** len(self.hidden_channels)

    @property
    def hidden_size(self) -> int | None:
        """Numbers a codeword, as a decoder that reads pictures sees them."""
        return self.code_dim

    def validate_ranges(self) -> None:
        """Widths are positive, shares are shares, weights no rewards, the activation is known."""
        check_ranges(
            self, positive=("num_channels", "code_dim"), shares=("ema_decay", "revive_below"), activation="hidden_act"
        )
        for name in ("commitment_weight", "kmeans_iterations"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}. Correct it.")

    def validate_codes(self) -> None:
        """There are two codes or more, as many as bits or levels make."""
        assert self.num_codes is not None and self.code_dim is not None
        if self.num_codes < 2:
            raise ValueError(f"`num_codes` must be 2 or more, got {self.num_codes}: one code says nothing. Raise it.")
        if self.num_codes > _LARGEST_CODEBOOK:
            raise ValueError(
                f"`num_codes` must be at most {_LARGEST_CODEBOOK}, got {self.num_codes}. Use fewer bits or levels a place, on "
                "a finer grid."
            )
        if self.levels is not None and self.discretisation != "levels":
            raise ValueError(
                f"`levels` are those of `discretisation='levels'`, got them with {self.discretisation!r}. Leave one out."
            )
        levels = [2] * self.code_dim if self.discretisation == "binary" else self.levels
        if levels is None:
            return
        if any(level < 2 for level in levels):
            raise ValueError(f"Each of `levels` must be 2 or more, got {list(levels)}. Leave single ones out.")
        if len(levels) != self.code_dim or math.prod(levels) != self.num_codes:
            raise ValueError(
                f"Rounding to {list(levels)} makes {math.prod(levels)} codes of {len(levels)} numbers, got "
                f"`num_codes={self.num_codes}` and `code_dim={self.code_dim}`. Leave these out."
            )

    def validate_stages(self) -> None:
        """Every stage is complete, and the picture has a whole number of codes."""
        check_conv_stages(self.hidden_channels, self.num_residual_blocks, self.residual_channels, self.image_size)

    def validate_likelihood(self) -> None:
        """The likelihood has a scale that means something."""
        check_likelihood(self.likelihood, self.likelihood_scale, self.likelihood_scale_kind)
