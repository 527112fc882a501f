"""Variational autoencoder; beta-VAE and the plain autoencoder are settings of it.

pixel_values float (batch, channels, height, width), in [0, 1]
  -> posterior q(z | x): mean, log variance   (batch, latent_channels, rows, columns)     blocks/conv.py, blocks/gaussian.py
  -> latents: samples of it                   (samples * batch, latent_channels, rows, columns)
  -> p(x | z)                                 (samples * batch, channels, height, width)  blocks/conv.py, blocks/likelihoods.py

    loss = (-E_q[log p(x | z)] + beta KL(q(z | x) || N(0, 1))) / number of pixel values

Where the equations are; a comment on each line names its own:

    Kingma eq. 4     samples, as a function of noise          blocks/gaussian.py `DiagonalGaussian.sample`
    Kingma eq. 10    the KL of a diagonal Gaussian            blocks/gaussian.py `DiagonalGaussian.kl_from_standard_normal`
    Kingma eq. 3     the bound                                blocks/variational.py `picture_loss`
    Higgins eq. 4    the same with beta                       blocks/variational.py `picture_loss`

Both terms are also given in nats a picture. Everything is convolutional: any picture size that is a multiple of the
downsampling is taken, and a deep encoder whose grid is one latent is the VAE of textbooks.

In evaluation the posterior is sampled with the same noise for every picture, so that the loss of a picture depends on the
picture and the weights alone; a compiled model draws it anew.

Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114; Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl (beta-VAE)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...blocks.conv import ConvDecoder, ConvEncoder, DownStage, ResidualConvBlock, grid_size, init_convolution
from ...blocks.gaussian import DiagonalGaussian
from ...blocks.likelihoods import PixelLikelihood, Pixels
from ...blocks.patch_embed import as_pair, check_pixels
from ...blocks.variational import bits_per_dim, importance_weighted_bound, picture_loss
from ...parts.pretrained_model import HubModel
from ...parts.settings import check_num_images
from .configuration_vae import VAEConfig

_EVALUATION_SEED = 0
_BRANCH_GAIN = 0.1  # of what a residual block adds, so that a deep stack begins with features of one size


@dataclass
class VAEOutput(ModelOutput):
    """What a VAE gives.

    Attributes:
        last_hidden_state: float (batch, latent_channels, rows, columns), the posterior's mean. First, as of any encoder:
            what takes `outputs[0]` for features, such as `pipeline("image-feature-extraction")`, gets them.
        loss: fp32 scalar, nats a pixel value, see the module's docstring.
        reconstruction: float (batch, num_channels, height, width), the mode of p(x | z) at the first sample.
        reconstruction_nats, kl_nats: fp32 scalars, the two terms, nats a picture, means over the batch; the KL without its
            weight, 0 of a deterministic autoencoder.
        bits_per_dim: fp32 scalar, both terms in bits a pixel value of 8 bits: about the cost of the picture, as long as the
            likelihood's scale is above a level (1/255).
        kl_per_channel: fp32 (latent_channels,), nats a picture: a channel near 0 tells the decoder nothing.
        log_variance: the posterior's, the same shape; None of a deterministic autoencoder.
        hidden_states: if asked for, the encoder's feature maps, one a stage, float (batch, channels, rows, columns).
    """

    last_hidden_state: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    reconstruction_nats: torch.Tensor | None = None
    kl_nats: torch.Tensor | None = None
    bits_per_dim: torch.Tensor | None = None
    kl_per_channel: torch.Tensor | None = None
    log_variance: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class VAEModel(HubModel):
    """Pictures to continuous latents and back: `encode`, `decode`, `reconstruct`, `sample`, `interpolate`."""

    config_class = VAEConfig
    main_input_name = "pixel_values"
    part_paths = {"encoder": "encoder", "decoder": "decoder", "likelihood": "likelihood"}
    _can_record_outputs = {"hidden_states": OutputRecorder(DownStage, capture_initial_hidden_state=False)}
    _no_split_modules = ["ResidualConvBlock"]
    accepts_loss_kwargs = False  # the loss is a mean over pictures: the Trainer is to average accumulated batches

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        conv_settings = (config.hidden_channels, config.num_residual_blocks, config.residual_channels)
        num_statistics = 1 if config.is_deterministic else 2  # mean, log variance
        self.encoder = ConvEncoder(
            config.num_channels, *conv_settings, num_statistics * config.latent_channels, config.hidden_act
        )
        self.likelihood = PixelLikelihood(
            config.likelihood,
            config.num_channels,
            scale=config.likelihood_scale,
            scale_kind=config.likelihood_scale_kind,
        )
        self.decoder = ConvDecoder(config.latent_channels, *conv_settings, self.likelihood.num_maps, config.hidden_act)
        self.beta: torch.Tensor
        self.register_buffer("beta", torch.tensor(float(config.beta)), persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init_convolution(module, gain=math.sqrt(2))  # activations halve the square: He et al. 2015
        elif isinstance(module, ResidualConvBlock):
            init_convolution(module.pointwise, gain=_BRANCH_GAIN)
        elif isinstance(module, ConvEncoder):
            init_convolution(module.output_layer)
        elif isinstance(module, ConvDecoder) and len(module.stages):
            init_convolution(module.stages[-1].get_submodule("upsampling"))
        elif isinstance(module, PixelLikelihood) and module.log_scale is not None:
            init.constant_(module.log_scale, module.initial_log_scale)
        elif isinstance(module, VAEModel):
            init.constant_(module.beta, float(module.config.beta))

    def anneal(self, *, beta: float) -> None:
        """Sets the weight of the KL term from now on, in model and config.

        Raises:
            ValueError: if the model is deterministic and has no such term, or the weight is negative or no number.
        """
        if self.config.is_deterministic:
            raise ValueError(
                f"A deterministic autoencoder has no KL term, got `beta={beta}` for it. Make the model with "
                "`is_deterministic=False`."
            )
        if not 0 <= beta < math.inf:
            raise ValueError(f"`beta` must be 0 or more, got {beta}. Correct the schedule.")
        self.config.beta = float(beta)
        self.beta.fill_(beta)

    def resize(self, *, image_size: int | tuple[int, int]) -> None:
        """Sets the size, pixels, of the pictures that `sample` gives and a reader of latents is made for.

        Raises:
            ValueError: if it has no whole number of latents on a side.
        """
        grid_size(*as_pair(image_size), self.config.downsampling)
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the latents of a picture of so many pixels.

        Raises:
            ValueError: if a side is no multiple of the downsampling.
        """
        return grid_size(height, width, self.config.downsampling)

    def posterior(self, pixel_values: torch.Tensor) -> DiagonalGaussian:
        """q(z | x), of latents float (batch, latent_channels, rows, columns).

        Args:
            pixel_values: float (batch, num_channels, height, width).

        Raises:
            ValueError: if the pictures are not of a fitting shape, or the model is deterministic.
        """
        if self.config.is_deterministic:
            raise ValueError(
                "A posterior is wanted, got a deterministic autoencoder, which has none. Use `encode`, or train with `beta` "
                "above 0."
            )
        return DiagonalGaussian(*self._statistics(pixel_values).chunk(2, dim=1))

    def _statistics(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_pixels(pixel_values, self.config.num_channels)
        self.grid_size(*pixel_values.shape[-2:])
        return self.encoder(2 * pixel_values.to(self.dtype) - 1)  # [0, 1] -> [-1, 1]

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The likeliest latents, the posterior's mean: float (batch, latent_channels, rows, columns).

        Args:
            pixel_values: float (batch, num_channels, height, width).
        """
        if self.config.is_deterministic:
            return self._statistics(pixel_values)
        return self.posterior(pixel_values).mean

    def pixels(self, latents: torch.Tensor) -> Pixels:
        """p(x | z) of latents float (batch, latent_channels, rows, columns); it has `mode` and `sample`.

        Raises:
            ValueError: if the latents have another shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"`latents` must be (batch, {self.config.latent_channels}, rows, columns), got {tuple(latents.shape)}. Take "
                "them from `encode`."
            )
        return self.likelihood(self.decoder(latents.to(self.dtype)))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The likeliest pictures: float (batch, num_channels, height, width), those of latents shaped as `encode`'s."""
        return self.pixels(latents).mode

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pictures again, through their likeliest latents: `decode(encode(pixel_values))`."""
        return self.decode(self.encode(pixel_values))

    @torch.no_grad()
    def sample(self, num_images: int = 1, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """New pictures, latents drawn from the prior N(0, 1): float (num_images, num_channels, height, width).

        Args:
            num_images: how many.
            image_size: pixels, one number or (height, width); by default that of the config.
        """
        check_num_images(num_images)
        grid = self.grid_size(*as_pair(self.config.image_size if image_size is None else image_size))
        return self.decode(torch.randn(num_images, self.config.latent_channels, *grid, device=self.device))

    @torch.no_grad()
    def interpolate(self, first: torch.Tensor, second: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Pictures on the straight line between the latents of two: float (batch, num_steps, channels, height, width).

        Args:
            first, second: float (batch, num_channels, height, width), the pictures at both ends.
            num_steps: pictures on the way, both ends among them; 2 or more.

        Raises:
            ValueError: if there are fewer steps, or the ends differ in shape.
        """
        if num_steps < 2:
            raise ValueError(f"`num_steps` must be 2 or more, the ends are two, got {num_steps}. Raise it.")
        if first.shape != second.shape:
            raise ValueError(
                f"`first` and `second` must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}. Resize the "
                "pictures, or repeat one."
            )
        shares = torch.linspace(0, 1, num_steps, device=self.device)[:, None, None, None]
        latents = torch.lerp(self.encode(first)[:, None].float(), self.encode(second)[:, None].float(), shares)
        return self.decode(latents.flatten(0, 1)).unflatten(0, (len(first), num_steps))

    @torch.no_grad()
    def log_likelihood_bound(self, pixel_values: torch.Tensor, num_samples: int = 64) -> torch.Tensor:
        """A lower bound on log p(x) by importance weighting, nats a picture: fp32 (batch,).

        Args:
            pixel_values: float (batch, num_channels, height, width).
            num_samples: draws from the posterior, one after the other: with 1 it is the ELBO, with more it is tighter.

        Raises:
            ValueError: if the model is deterministic, there is no sample, or a pixel has no density.

        Source: Burda et al. 2016, eq. 8, https://arxiv.org/abs/1509.00519
        """
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be 1 or more, got {num_samples}. With 1 the bound is the ELBO.")
        posterior = self.posterior(pixel_values)
        self.likelihood.check_domain(pixel_values)
        prior = DiagonalGaussian(torch.zeros_like(posterior.mean), torch.zeros_like(posterior.mean))
        log_weights = []
        for _ in range(num_samples):
            [latents] = posterior.sample()
            log_joint = self.pixels(latents).log_prob(pixel_values).flatten(1).sum(1)
            log_joint += prior.log_prob(latents).flatten(1).sum(1)
            log_weights.append(log_joint - posterior.log_prob(latents).flatten(1).sum(1))
        return importance_weighted_bound(torch.stack(log_weights), dim=0)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True, **kwargs: Any) -> VAEOutput:
        """Encode, sample, decode, and compare.

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1]; sides are multiples of the downsampling.
            return_loss: False for the latents only, `last_hidden_state`: nothing is decoded.

        Raises:
            ValueError: if the pictures have another shape, or pixels that the likelihood has no density for.
        """
        statistics = self._statistics(pixel_values)
        posterior = None
        if self.config.is_deterministic:
            mean = statistics
        else:
            posterior = DiagonalGaussian(*statistics.chunk(2, dim=1))
            mean = posterior.mean
        log_variance = posterior.log_variance if posterior is not None else None
        last_hidden_state = mean.to(self.dtype)  # as a reader in half precision takes it
        if not return_loss:
            return VAEOutput(last_hidden_state=last_hidden_state, log_variance=log_variance)

        self.likelihood.check_domain(pixel_values)
        latents = self._latents(mean, posterior)  # (samples, batch, latent_channels, rows, columns)
        pixels = self.pixels(latents.flatten(0, 1))
        log_probs = pixels.log_prob(pixel_values.float().repeat(len(latents), 1, 1, 1))
        reconstruction_nats = -log_probs.sum() / len(log_probs)
        kl_per_channel = mean.new_zeros(mean.shape[1], dtype=torch.float32)
        if posterior is not None:
            kl_per_channel = posterior.kl_from_standard_normal().sum(dim=(2, 3)).mean(0)
        kl_nats = kl_per_channel.sum().to(reconstruction_nats.device)
        num_values = pixel_values[0].numel()
        return VAEOutput(
            loss=picture_loss(reconstruction_nats, kl_nats, self.beta, num_values),
            reconstruction=pixels.mode[: len(pixel_values)],
            reconstruction_nats=reconstruction_nats,
            kl_nats=kl_nats,
            bits_per_dim=bits_per_dim(reconstruction_nats + kl_nats, num_values, self.likelihood.level_nats),
            kl_per_channel=kl_per_channel,
            last_hidden_state=last_hidden_state,
            log_variance=log_variance,
        )

    def _latents(self, mean: torch.Tensor, posterior: DiagonalGaussian | None) -> torch.Tensor:
        """What is decoded: float (samples, batch, latent_channels, rows, columns)."""
        if posterior is None:
            return mean[None]
        num_samples = self.config.num_latent_samples
        if self.training or torch.compiler.is_compiling():
            return posterior.sample(num_samples)
        generator = torch.Generator(mean.device).manual_seed(_EVALUATION_SEED)
        shape = (num_samples, 1, *mean.shape[1:])
        return posterior.sample(noise=torch.randn(shape, generator=generator, device=mean.device))
