"""VQ-VAE: an autoencoder whose latents are codewords; rounding is its discretisation without a codebook.

pixel_values float (batch, channels, height, width), in [0, 1]
  -> latents z_e                 (batch, rows, columns, code_dim)        blocks/conv.py
  -> nearest codewords e         (batch, rows, columns, code_dim)        blocks/codebook.py, blocks/rounding.py
     code_ids                    (batch, rows, columns)
  -> p(x | e)                    (batch, channels, height, width)        blocks/conv.py, blocks/likelihoods.py

    loss = -log p(x | e) / number of pixel values + |sg[z_e] - e|^2 + commitment_weight |z_e - sg[e]|^2

sg stops the gradient: the second term moves codewords to latents, the third holds latents to their codewords, and the gradient
of the first passes from e to z_e as if they were one. Squares are means over latent values; with `loss_reduction="sum"` all is a
sum over the picture, as in the paper. With codewords that are running means (`ema`), or none, the second term is 0.

Where the equations are; a comment on each line names its own:

    van den Oord eq. 1         the nearest codeword                 blocks/codebook.py `Codebook.forward`
    van den Oord eq. 2         it takes the latent's place          blocks/codebook.py `Codebook.forward`
    van den Oord eq. 3         the loss's terms of latents          blocks/codebook.py `Codebook.forward`
    van den Oord eq. 3         the whole loss                       `VQVAEModel.forward`
    van den Oord eq. 6 to 8    codewords that are running means     blocks/codebook.py `Codebook._learn`

The prior over codes is uniform, so the KL term is the constant log num_codes a code: in `kl_nats` and `bits_per_dim`, not in the
loss.

Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...blocks.codebook import Codebook, DiscreteLatents, check_code_ids, code_counts, codebook_perplexity
from ...blocks.conv import ConvDecoder, ConvEncoder, DownStage, grid_size, init_convolution
from ...blocks.likelihoods import PixelLikelihood, Pixels
from ...blocks.patch_embed import as_pair, check_pixels
from ...blocks.rounding import RoundedLevels
from ...blocks.variational import bits_per_dim, picture_loss
from ...parts.pretrained_model import HubModel
from ...parts.settings import check_num_images
from .configuration_vqvae import VQVAEConfig


@dataclass
class VQVAEOutput(ModelOutput):
    """What a VQ-VAE gives.

    Attributes:
        last_hidden_state: float (batch, code_dim, rows, columns), the codewords; gradients go straight through. First, as of any
            encoder: what takes `outputs[0]` for features, such as `pipeline("image-feature-extraction")`, gets them.
        loss: fp32 scalar, see the module's docstring.
        reconstruction: float (batch, num_channels, height, width), the mode of p(x | e).
        reconstruction_nats, kl_nats: fp32 scalars, nats a picture, means over the batch; the latter is log num_codes a code.
        codebook_loss, commitment_loss: fp32 scalars, mean squares over latent values, without weight.
        bits_per_dim: fp32 scalar, the codes and the picture given them, in bits a pixel value of 8 bits.
        perplexity: fp32 scalar in [1, num_codes], of the codes of this batch.
        used_codes: fp32 scalar, how many different ones there are in this batch.
        code_ids: int64 (batch, rows, columns), in [0, num_codes).
        hidden_states: if asked for, the encoder's feature maps, one a stage, float (batch, channels, rows, columns).
    """

    last_hidden_state: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    reconstruction_nats: torch.Tensor | None = None
    kl_nats: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    bits_per_dim: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    used_codes: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class VQVAEModel(HubModel):
    """Pictures to a grid of codes and back: `encode`, `decode`, `reconstruct`, `sample`."""

    config_class = VQVAEConfig
    main_input_name = "pixel_values"
    part_paths = {"encoder": "encoder", "codebook": "codebook", "decoder": "decoder", "likelihood": "likelihood"}
    _can_record_outputs = {"hidden_states": OutputRecorder(DownStage, capture_initial_hidden_state=False)}
    _no_split_modules = ["ResidualConvBlock", "Codebook"]  # a codebook writes its own weight: see `set_weight`
    accepts_loss_kwargs = False  # the loss is a mean over pictures: the Trainer is to average accumulated batches
    _keep_in_fp32_modules_strict = {"codebook"}  # running means of a codeword need more digits than half precision has

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        assert config.num_codes is not None and config.code_dim is not None  # the config fills them in
        config.validate_codes()  # settings may have been changed since
        conv_settings = (config.hidden_channels, config.num_residual_blocks, config.residual_channels)
        self.encoder = ConvEncoder(config.num_channels, *conv_settings, config.code_dim, config.hidden_act)
        self.codebook: Codebook | RoundedLevels
        if config.discretisation == "codebook":
            self.codebook = Codebook(
                config.num_codes,
                config.code_dim,
                update=config.codebook_update,
                decay=config.ema_decay,
                revive_below=config.revive_below,
                kmeans_iterations=config.kmeans_iterations,
            )
        else:
            self.codebook = RoundedLevels(config.levels or [2] * config.code_dim)
        self.likelihood = PixelLikelihood(
            config.likelihood,
            config.num_channels,
            scale=config.likelihood_scale,
            scale_kind=config.likelihood_scale_kind,
        )
        self.decoder = ConvDecoder(config.code_dim, *conv_settings, self.likelihood.num_maps, config.hidden_act)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init_convolution(module)
        elif isinstance(module, Codebook):
            module.reset_parameters()
        elif isinstance(module, PixelLikelihood) and module.log_scale is not None:
            init.constant_(module.log_scale, module.initial_log_scale)

    def resize(self, *, image_size: int | tuple[int, int]) -> None:
        """Sets the size, pixels, of the pictures that `sample` gives and a reader of codewords is made for.

        Raises:
            ValueError: if it has no whole number of codes on a side.
        """
        grid_size(*as_pair(image_size), self.config.downsampling)
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the codes of a picture of so many pixels.

        Raises:
            ValueError: if a side is no multiple of the downsampling.
        """
        return grid_size(height, width, self.config.downsampling)

    def _discretise(self, pixel_values: torch.Tensor, is_learning: bool) -> DiscreteLatents:
        check_pixels(pixel_values, self.config.num_channels)
        self.grid_size(*pixel_values.shape[-2:])
        if is_learning:  # pixels that the likelihood refuses are not to move codewords before that
            self.likelihood.check_domain(pixel_values)
        latents = self.encoder(2 * pixel_values.to(self.dtype) - 1)  # [0, 1] -> [-1, 1]
        # None leaves it to the codebook, which below adapters stays as it is.
        return self.codebook(latents.movedim(1, -1), is_learning=None if is_learning else False)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The codes: int64 (batch, rows, columns), in [0, num_codes).

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1].
        """
        return self._discretise(pixel_values, is_learning=False).code_ids

    def pixels(self, codewords: torch.Tensor) -> Pixels:
        """p(x | e) of codewords float (batch, code_dim, rows, columns); it has `mode` and `sample`."""
        return self.likelihood(self.decoder(codewords.to(self.dtype)))

    def decode(self, code_ids: torch.Tensor) -> torch.Tensor:
        """The likeliest pictures: float (batch, num_channels, height, width).

        Args:
            code_ids: int64 (batch, rows, columns), in [0, num_codes).

        Raises:
            TypeError, ValueError: if they are no codes of this model.
        """
        check_code_ids(code_ids, self.config.num_codes)
        return self.pixels(self.codebook.lookup(code_ids.long()).movedim(-1, 1)).mode

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pictures again, through their codes: `decode(encode(pixel_values))`."""
        return self.decode(self.encode(pixel_values))

    @torch.no_grad()
    def sample(self, num_images: int = 1, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Pictures of random codes, drawn from the uniform prior: float (num_images, num_channels, height, width).

        They look like texture: which codes go together is for a second model to learn, over the codes of pictures.

        Args:
            num_images: how many.
            image_size: pixels, one number or (height, width); by default that of the config.
        """
        check_num_images(num_images)
        grid = self.grid_size(*as_pair(self.config.image_size if image_size is None else image_size))
        return self.decode(torch.randint(self.config.num_codes, (num_images, *grid), device=self.device))

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True, **kwargs: Any) -> VQVAEOutput:
        """Encode, discretise, decode, and compare.

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1]; sides are multiples of the downsampling.
            return_loss: False for codes and codewords only: nothing is decoded, and running means stay as they are.

        Raises:
            ValueError: if the pictures have another shape, or pixels that the likelihood has no density for.
        """
        latents = self._discretise(pixel_values, is_learning=self.training and return_loss)
        codewords = latents.quantized.movedim(-1, 1)  # (batch, code_dim, rows, columns)
        if not return_loss:
            return VQVAEOutput(code_ids=latents.code_ids, last_hidden_state=codewords.to(self.dtype))

        self.likelihood.check_domain(pixel_values)
        pixels = self.pixels(codewords)
        num_values, num_places = pixel_values[0].numel(), latents.code_ids[0].numel()
        reconstruction_nats = -pixels.log_prob(pixel_values.float()).sum() / len(pixel_values)
        kl_nats = torch.full_like(reconstruction_nats, num_places * math.log(self.config.num_codes))
        of_latents = (
            latents.codebook_loss + self.config.commitment_weight * latents.commitment_loss
        )  # van den Oord eq. 3
        of_latents = of_latents.to(reconstruction_nats.device)
        if self.config.loss_reduction == "sum":
            loss = reconstruction_nats + of_latents * num_places * self.config.code_dim
        else:
            loss = picture_loss(reconstruction_nats, kl_nats, 0.0, num_values) + of_latents
        counts = code_counts(latents.code_ids, self.config.num_codes)
        return VQVAEOutput(
            loss=loss,
            reconstruction=pixels.mode,
            reconstruction_nats=reconstruction_nats,
            kl_nats=kl_nats,
            codebook_loss=latents.codebook_loss,
            commitment_loss=latents.commitment_loss,
            bits_per_dim=bits_per_dim(reconstruction_nats + kl_nats, num_values, self.likelihood.level_nats),
            perplexity=codebook_perplexity(counts),
            used_codes=(counts > 0).float().sum(),
            code_ids=latents.code_ids,
            last_hidden_state=codewords.to(self.dtype),  # as a reader in half precision takes it
        )
