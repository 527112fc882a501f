"""Discrete VAE: a picture is a grid of visual words, learnt by Gumbel-softmax; DALL-E's tokenizer is a preset.

pixel_values float (batch, channels, height, width), in [0, 1]
  -> logits of q(word | x)       (batch, num_codes, rows, columns)       encoder: groups of residual blocks, max-pooled between
  -> words: in training a relaxed sample, otherwise the likeliest        blocks/gumbel.py
  -> vectors of the words        (batch, code_dim, rows, columns)        the decoder's input layer, 1 x 1
  -> p(x | words)                (batch, channels, height, width)        decoder: groups, upsampled between; blocks/likelihoods.py

    loss = (-E_q[log p(x | words)] + kl_weight KL(q || uniform)) / number of pixel values

as in DALL-E's training: for 256 x 256 pixels and 32 x 32 words a weight of 6.6 is one of 6.6 / 192 beside the mean KL of a word.
The KL is that of the categorical distribution of the logits, whatever the temperature (openai/DALL-E, issue 26). `bits_per_dim`
counts log num_codes a word: what its number costs to write down.

Where the equations are; a comment on each line names its own:

    Jang eq. 1      a sample by Gumbel noise               blocks/gumbel.py `gumbel_max`
    Jang eq. 2      its relaxation                         blocks/gumbel.py `gumbel_softmax`
    Ramesh eq. 1    the bound, the KL weighted             blocks/variational.py `picture_loss`
    Ramesh eq. 2    the logit-Laplace density              blocks/likelihoods.py `LogitLaplacePixels.log_prob`

Source: Jang et al. 2017, https://arxiv.org/abs/1611.01144; Ramesh et al. 2021, section 2.1 and appendix A,
    https://arxiv.org/abs/2102.12092
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...blocks.codebook import check_code_ids, code_counts, codebook_perplexity
from ...blocks.conv import grid_size, init_convolution
from ...blocks.gumbel import gumbel_softmax, kl_from_uniform
from ...blocks.likelihoods import PixelLikelihood, Pixels, map_pixels
from ...blocks.patch_embed import as_pair, check_pixels
from ...blocks.processes import mean_over_processes, spread_over_processes
from ...blocks.straight_through import straight_through
from ...blocks.variational import bits_per_dim, picture_loss
from ...blocks.weight_placement import set_weight, with_weights
from ...parts.pretrained_model import HubModel
from ...parts.settings import check_num_images
from .configuration_dvae import DVAEConfig

_SMALLEST_SPREAD = 1e-3  # of a word's logits over a batch, to be scaled by it


@dataclass
class DVAEOutput(ModelOutput):
    """What a discrete VAE gives.

    Attributes:
        last_hidden_state: float (batch, code_dim, rows, columns), the vectors of the likeliest words. First, as of any encoder:
            what takes `outputs[0]` for features, such as `pipeline("image-feature-extraction")`, gets them.
        loss: fp32 scalar, nats a pixel value, see the module's docstring.
        reconstruction: float (batch, num_channels, height, width), the mode of p(x | words) at the first sample.
        reconstruction_nats, kl_nats: fp32 scalars, the two terms, nats a picture, means over the batch; the KL without its
            weight, at most log num_codes a word.
        bits_per_dim: fp32 scalar, the words, log num_codes each, and the picture given them, in bits a pixel value of 8 bits.
        perplexity: fp32 scalar in [1, num_codes], of the likeliest words of this batch.
        used_codes: fp32 scalar, how many different ones there are in this batch.
        code_ids: int64 (batch, rows, columns), the likeliest words, in [0, num_codes).
        logits: float (batch, num_codes, rows, columns), of q(word | x).
        hidden_states: if asked for, the encoder's feature maps, one a stage, float (batch, channels, rows, columns).
    """

    last_hidden_state: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    reconstruction_nats: torch.Tensor | None = None
    kl_nats: torch.Tensor | None = None
    bits_per_dim: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    used_codes: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class DVAEBlock(nn.Module):
    """Four convolutions beside a shortcut, scaled by 1 / (number of blocks)^2.

    Args:
        in_channels, out_channels: where they differ the shortcut is a 1x1 convolution. Inside, a quarter of the latter.
        kernel_sizes: of the four.
        scale: of the four's output.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        widths = [in_channels, *[out_channels // 4] * (len(kernel_sizes) - 1), out_channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[index], widths[index + 1], size, padding=size // 2)
            for index, size in enumerate(kernel_sizes)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float (batch, in_channels, height, width) -> float (batch, out_channels, height, width)."""
        hidden = features
        for convolution in self.convolutions:
            hidden = convolution(F.relu(hidden))
        return self.shortcut(features) + self.scale * hidden


class DVAEGroup(nn.Sequential):
    """Blocks at one size of the map."""


def _groups(widths: list[int], num_blocks: int, kernel_sizes: tuple[int, ...]) -> nn.ModuleList:
    """One group of blocks for each step from one of `widths` to the next."""
    scale = 1 / ((len(widths) - 1) * num_blocks) ** 2
    return nn.ModuleList(
        DVAEGroup(
            *(
                DVAEBlock(widths[group] if block == 0 else width, width, kernel_sizes, scale)
                for block in range(num_blocks)
            )
        )
        for group, width in enumerate(widths[1:])
    )


class CodeLogits(nn.Conv2d):
    """Features -> logits of the visual words."""

    def forward(self, features: torch.Tensor, start_deviation: float | None = None) -> torch.Tensor:
        """Float (batch, in_channels, rows, columns) -> float (batch, num_codes, rows, columns).

        Args:
            start_deviation: the layer is first shifted and scaled so that logits have mean 0 and this deviation over the
                batches of all processes; None leaves it.
        """
        if start_deviation is not None:
            self._start(features, start_deviation)
        return super().forward(features)

    @torch.no_grad()
    def _start(self, features: torch.Tensor, deviation: float) -> None:
        logits = super().forward(features).float().movedim(1, -1).flatten(0, 2)  # (places, num_codes)
        mean, spread = mean_over_processes(logits), spread_over_processes(logits)
        # one place, or black pictures, tell nothing
        scale = torch.where(spread > _SMALLEST_SPREAD, deviation / spread, 1.0)
        assert self.bias is not None
        bias, weight = (self.bias - mean) * scale, self.weight * scale[:, None, None, None]
        set_weight(self, "bias", bias)
        set_weight(self, "weight", weight)


class DVAEEncoder(nn.Module):
    """Pictures -> logits of the visual words."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        widths = [config.group_channels * 2**group for group in range(config.num_groups)]
        self.input_layer = nn.Conv2d(config.num_channels, widths[0], 7, padding=3)
        self.groups = _groups([widths[0], *widths], config.num_blocks_per_group, (3, 3, 3, 1))
        self.output_layer = CodeLogits(widths[-1], config.num_codes, 1)
        self.start_deviation = config.start_logit_deviation
        self.is_started: torch.Tensor
        if self.start_deviation is not None:
            self.register_buffer("is_started", torch.tensor(False))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float (batch, num_channels, height, width) -> fp32 (batch, num_codes, rows, columns)."""
        features = self.input_layer(pixel_values)
        for index, group in enumerate(self.groups):
            features = group(F.max_pool2d(features, 2) if index else features)
        with maybe_autocast(
            features.device.type, enabled=False
        ):  # under autocast the choice among words stays in full precision
            features = F.relu(features).to(self.output_layer.weight.dtype)
            if self.training and self.start_deviation is not None and not self.is_started:
                self.is_started.fill_(True)
                return self.output_layer(features, start_deviation=self.start_deviation).float()
            return self.output_layer(features).float()


class DVAEDecoder(nn.Module):
    """One-hot or relaxed visual words -> maps as large as the picture."""

    def __init__(self, config: DVAEConfig, num_maps: int) -> None:
        super().__init__()
        widths = [config.group_channels * 2**group for group in reversed(range(config.num_groups))]
        self.input_layer = nn.Conv2d(config.num_codes, config.code_dim, 1)
        self.groups = _groups([config.code_dim, *widths], config.num_blocks_per_group, (1, 3, 3, 3))
        self.output_layer = nn.Conv2d(widths[-1], num_maps, 1)

    def lookup(self, code_ids: torch.Tensor) -> torch.Tensor:
        """What the input layer makes of words, int64 (batch, rows, columns): float (batch, code_dim, rows, columns)."""
        layer = self.input_layer

        def look_up(ids: torch.Tensor) -> torch.Tensor:
            vectors = F.embedding(ids, layer.weight[:, :, 0, 0].T)
            assert layer.bias is not None
            return (vectors + layer.bias).movedim(-1, 1)

        return with_weights(layer, look_up, code_ids)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Float (batch, code_dim, rows, columns) -> float (batch, num_maps, height, width)."""
        features = vectors
        for index, group in enumerate(self.groups):
            features = group(F.interpolate(features, scale_factor=2, mode="nearest") if index else features)
        return self.output_layer(F.relu(features))


class DVAEModel(HubModel):
    """Pictures to a grid of visual words and back: `encode`, `decode`, `reconstruct`, `sample`."""

    config_class = DVAEConfig
    main_input_name = "pixel_values"
    part_paths = {"encoder": "encoder", "decoder": "decoder", "likelihood": "likelihood"}
    read_layers = ("decoder.input_layer",)  # by codes
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DVAEGroup, layer_name="encoder", capture_initial_hidden_state=False)
    }
    _no_split_modules = ["DVAEBlock", "CodeLogits"]  # which writes its own weights: see `set_weight`
    accepts_loss_kwargs = False  # the loss is a mean over pictures: the Trainer is to average accumulated batches

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__(config)
        self.encoder = DVAEEncoder(config)
        self.likelihood = PixelLikelihood(
            config.likelihood,
            config.num_channels,
            scale=config.likelihood_scale,
            scale_kind=config.likelihood_scale_kind,
        )
        self.decoder = DVAEDecoder(config, self.likelihood.num_maps)
        self.temperature: torch.Tensor
        self.kl_weight: torch.Tensor
        self.register_buffer("temperature", torch.tensor(float(config.temperature)), persistent=False)
        self.register_buffer("kl_weight", torch.tensor(float(config.kl_weight)), persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init_convolution(module)
        elif isinstance(module, PixelLikelihood) and module.log_scale is not None:
            init.constant_(module.log_scale, module.initial_log_scale)
        elif isinstance(module, DVAEEncoder) and module.start_deviation is not None:
            init.zeros_(module.is_started)
        elif isinstance(module, DVAEModel):
            init.constant_(module.temperature, float(module.config.temperature))
            init.constant_(module.kl_weight, float(module.config.kl_weight))

    def anneal(self, *, temperature: float | None = None, kl_weight: float | None = None) -> None:
        """Sets temperature and KL weight from now on, in model and config; None leaves one as it is.

        Raises:
            ValueError: if the temperature is not above 0, or the weight below 0; then neither changes.
        """
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must be above 0, got {temperature}. End the schedule above 0.")
        if kl_weight is not None and not 0 <= kl_weight < math.inf:
            raise ValueError(f"`kl_weight` must be 0 or more, got {kl_weight}. Correct the schedule.")
        if temperature is not None:
            self.config.temperature = float(temperature)
            self.temperature.fill_(temperature)
        if kl_weight is not None:
            self.config.kl_weight = float(kl_weight)
            self.kl_weight.fill_(kl_weight)

    def resize(self, *, image_size: int | tuple[int, int]) -> None:
        """Sets the size, pixels, of the pictures that `sample` gives and a reader of visual words is made for.

        Raises:
            ValueError: if it has no whole number of words on a side.
        """
        grid_size(*as_pair(image_size), self.config.downsampling)
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the words of a picture of so many pixels.

        Raises:
            ValueError: if a side is no multiple of the downsampling.
        """
        return grid_size(height, width, self.config.downsampling)

    def code_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unnormalised log q(word | x): fp32 (batch, num_codes, rows, columns).

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1].
        """
        check_pixels(pixel_values, self.config.num_channels)
        self.grid_size(*pixel_values.shape[-2:])
        return self.encoder(map_pixels(pixel_values).to(self.dtype))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The likeliest words: int64 (batch, rows, columns), in [0, num_codes).

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1].
        """
        return self.code_logits(pixel_values).argmax(dim=1)

    def pixels(self, vectors: torch.Tensor) -> Pixels:
        """p(x | words) of their vectors, float (batch, code_dim, rows, columns); it has `mode` and `sample`."""
        return self.likelihood(self.decoder(vectors))

    def decode(self, code_ids: torch.Tensor) -> torch.Tensor:
        """The likeliest pictures: float (batch, num_channels, height, width).

        Args:
            code_ids: int64 (batch, rows, columns), in [0, num_codes).

        Raises:
            TypeError, ValueError: if they are no codes of this model.
        """
        check_code_ids(code_ids, self.config.num_codes)
        return self.pixels(self.decoder.lookup(code_ids.long())).mode

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pictures again, through their words: `decode(encode(pixel_values))`."""
        return self.decode(self.encode(pixel_values))

    @torch.no_grad()
    def sample(self, num_images: int = 1, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Pictures of random words, drawn from the uniform prior: float (num_images, num_channels, height, width).

        They look like texture: which words go together is for a second model to learn, over the words of pictures.

        Args:
            num_images: how many.
            image_size: pixels, one number or (height, width); by default that of the config.
        """
        check_num_images(num_images)
        grid = self.grid_size(*as_pair(self.config.image_size if image_size is None else image_size))
        return self.decode(torch.randint(self.config.num_codes, (num_images, *grid), device=self.device))

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True, **kwargs: Any) -> DVAEOutput:
        """Encode, sample words, decode, and compare.

        Args:
            pixel_values: float (batch, num_channels, height, width), in [0, 1]; sides are multiples of the downsampling.
            return_loss: False for words and their vectors only: nothing is decoded. In training their gradient reaches the
                encoder straight through the choice of a word.

        Raises:
            ValueError: if the pictures have another shape, or pixels that the likelihood has no density for.
        """
        logits = self.code_logits(pixel_values)
        code_ids = logits.argmax(dim=1)
        if not return_loss:
            vectors = self._chosen_vectors(logits, code_ids)
            return DVAEOutput(code_ids=code_ids, last_hidden_state=vectors, logits=logits)

        self.likelihood.check_domain(pixel_values)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            vectors = self.decoder.lookup(code_ids)
        decoded = vectors
        if self.training:
            num_samples = self.config.num_latent_samples
            words = gumbel_softmax(  # (samples * batch, num_codes, rows, columns)
                logits.repeat(num_samples, 1, 1, 1) if num_samples > 1 else logits,
                self.temperature,
                is_hard=self.config.is_hard,
                dim=1,
            )
            decoded = self.decoder.input_layer(words.to(self.dtype))
        pixels = self.pixels(decoded)
        log_probs = pixels.log_prob(pixel_values.float().repeat(len(decoded) // len(pixel_values), 1, 1, 1))
        reconstruction_nats = -log_probs.sum() / len(log_probs)
        kl_nats = kl_from_uniform(logits, dim=1).sum() / len(logits)
        code_nats = code_ids[0].numel() * math.log(self.config.num_codes)
        num_values = pixel_values[0].numel()
        counts = code_counts(code_ids, self.config.num_codes)
        return DVAEOutput(
            loss=picture_loss(reconstruction_nats, kl_nats, self.kl_weight, num_values),
            reconstruction=pixels.mode[: len(pixel_values)],
            reconstruction_nats=reconstruction_nats,
            kl_nats=kl_nats,
            bits_per_dim=bits_per_dim(reconstruction_nats + code_nats, num_values, self.likelihood.level_nats),
            perplexity=codebook_perplexity(counts),
            used_codes=(counts > 0).float().sum(),
            code_ids=code_ids,
            last_hidden_state=vectors,
            logits=logits,
        )

    def _chosen_vectors(self, logits: torch.Tensor, code_ids: torch.Tensor) -> torch.Tensor:
        """The likeliest words' vectors; in training with a gradient to the encoder, that of the softmax."""
        if not (self.training and torch.is_grad_enabled()):
            return self.decoder.lookup(code_ids)
        one_hot = torch.zeros_like(logits).scatter_(1, code_ids[:, None], 1.0)
        words = straight_through(one_hot, gradient_to=logits.softmax(dim=1))
        return self.decoder.input_layer(words.to(self.dtype))
