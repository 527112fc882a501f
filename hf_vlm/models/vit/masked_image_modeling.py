"""Masked pre-training of a vision transformer: hidden patches are predicted from those that are seen.

BEiT, `masked_image_target="codes"`: a mask token stands for each hidden patch; the encoder's output there tells which of a
visual tokenizer's codes the patch has. Loss: cross-entropy over the hidden patches, nats a patch.

    pixel_values, code_ids -> all patches, mask tokens among them -> logits (batch, rows * columns, num_codes)

MAE, `masked_image_target="pixels"`: the encoder sees the visible patches only (with three in four hidden, at a quarter of the
cost); a small decoder, given mask tokens for the others, draws all. Loss: mean squared error over the hidden patches' pixels,
each patch normalised by its own mean and deviation.

    pixel_values -> visible patches -> decoder, all patches -> reconstruction (batch, channels, height, width)

Where the equations are; a comment on each line names its own:

    Bao eq. 1    cross-entropy over hidden patches    `VisionTransformerForMaskedImageModeling._predict_codes`

Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254; He et al. 2022 (MAE), https://arxiv.org/abs/2111.06377
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...blocks.attention import SelfAttention
from ...blocks.patch_embed import as_pair, check_pixels
from ...blocks.patch_masks import block_patch_mask, num_masked_patches, random_patch_mask
from ...blocks.position_embedding import resample_positions, sincos_positions
from ...blocks.transformer import PreNormLayer
from .configuration_vit import VisionTransformerConfig
from .modeling_vit import VisionTransformerModel, VisionTransformerPreTrainedModel

_SMALLEST_VARIANCE = 1e-6  # of a patch's pixels (MAE's code)


@dataclass
class VisionTransformerMaskedImageModelingOutput(ModelOutput):
    """What masked pre-training gives.

    Attributes:
        loss: a fp32 scalar, the mean over the hidden patches; None for codes without `code_ids`.
        logits: for codes, float (batch, rows * columns, num_codes).
        reconstruction: for pixels, float (batch, num_channels, height, width), in the range of `pixel_values`: what the
            decoder draws, also where the patch was seen.
        bool_masked_pos: bool (batch, rows * columns), which patches were hidden.
        hidden_states, attentions: of the encoder, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class CodeHead(nn.Module):
    """Patch vectors -> logits of the tokenizer's codes."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output_layer = nn.Linear(config.hidden_size, config.num_codes)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Float (batch, rows * columns, hidden_size) -> float (batch, rows * columns, num_codes)."""
        return self.output_layer(self.norm(patches))


class PixelDecoder(nn.Module):
    """The vectors of visible patches -> the pixels of all."""

    def __init__(self, config: VisionTransformerConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        assert config.decoder_hidden_size is not None and config.decoder_num_attention_heads is not None
        width, (patch_height, patch_width) = config.decoder_hidden_size, as_pair(config.patch_size)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.num_placed = config.num_placed_prefix_tokens
        self.grid, self.resampling = grid, config.position_resampling
        self.embedding = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: torch.Tensor
        self.register_buffer("positions", self.fixed_positions().to(torch.get_default_dtype()))
        self.layers = nn.ModuleList(
            PreNormLayer(
                SelfAttention(config, hidden_size=width, num_heads=config.decoder_num_attention_heads),
                hidden_size=width,
                intermediate_size=4 * width,
                activation=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output_layer = nn.Linear(width, patch_height * patch_width * config.num_channels)

    def fixed_positions(self) -> torch.Tensor:
        """What the table of positions starts from."""
        return sincos_positions(self.grid, self.num_placed, self.mask_token.shape[-1])

    def stretched_positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table for a picture of (rows, columns) patches, float (1, placed prefix tokens + rows * columns, width)."""
        return resample_positions(self.positions, grid, self.grid, self.num_placed, self.resampling)

    def forward(self, tokens: torch.Tensor, places: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Draw all patches.

        Args:
            tokens: float (batch, num_prefix_tokens + visible patches, hidden_size).
            places: int64 (batch, rows * columns), where each patch of the picture is among the visible patches followed
                by the hidden ones.
            grid: (rows, columns) of a picture that the positions are to be stretched to.

        Returns: float (batch, rows * columns, patch pixels * channels), a patch's pixels row by row, channels last.
        """
        positions = self.positions if grid is None else self.stretched_positions(grid)
        tokens = self.embedding(tokens)
        prefix, visible = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        num_hidden = places.shape[1] - visible.shape[1]
        patches = torch.cat((visible, self.mask_token.expand(len(tokens), num_hidden, -1)), dim=1)
        patches = patches.gather(1, places[..., None].expand(-1, -1, patches.shape[-1]))
        placed, registers = prefix[:, : self.num_placed], prefix[:, self.num_placed :]
        placed, patches = placed + positions[:, : self.num_placed], patches + positions[:, self.num_placed :]
        hidden_states = torch.cat((placed, registers, patches), dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.output_layer(self.norm(hidden_states[:, self.num_prefix_tokens :]))


class VisionTransformerForMaskedImageModeling(VisionTransformerPreTrainedModel):
    """Predicts the codes (BEiT) or the pixels (MAE) of hidden patches."""

    may_be_new = ("pooler", "mask_token")  # absent from encoders that were not pre-trained this way
    heads = ("code_head", "pixel_decoder")
    _no_split_modules = ["VisionTransformerEmbeddings", "PreNormLayer", "PixelDecoder"]
    _can_compile_fullgraph = False  # masks are drawn, and checked, outside a graph
    accepts_loss_kwargs = False  # the loss is a mean over patches: the Trainer is to average accumulated batches

    def __init__(self, config: VisionTransformerConfig) -> None:
        assert config.patch_stride is not None  # the config fills it in
        is_of_codes = config.masked_image_target == "codes"
        if is_of_codes:
            config.use_mask_token = True
        elif (
            config.backbone_config is not None
            or len(config.stem_channels) > 0
            or as_pair(config.patch_stride) != as_pair(config.patch_size)
            or config.relative_position_bias != "none"
        ):
            raise ValueError(
                "For `masked_image_target='pixels'` patches must not see each other before attention, got a stem, a "
                "backbone, overlapping patches or relative position biases. Use plain patches, or 'codes'."
            )
        super().__init__(config)
        self.vision_model = VisionTransformerModel(config)
        if not is_of_codes:  # patches are compared with the whole picture
            self.vision_model.check_size(as_pair(config.image_size), "`image_size`")
        grid = self.vision_model.grid_size(*as_pair(config.image_size))
        self.code_head = CodeHead(config) if is_of_codes else None
        self.pixel_decoder = None if is_of_codes else PixelDecoder(config, grid)
        if self.vision_model.pooler is not None and config.pooling != "cls_token":
            self.vision_model.pooler.requires_grad_(False)  # nothing here is pooled
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PixelDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.positions, module.fixed_positions())

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        code_ids: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> VisionTransformerMaskedImageModelingOutput:
        """Hide patches and predict them.

        Args:
            pixel_values, interpolate_pos_encoding: as for `VisionTransformerModel`.
            bool_masked_pos: bool (batch, rows * columns), True for hidden patches; for pixels as many in every picture.
                By default drawn at random, by the config's `mask_pattern` and `mask_ratio`.
            code_ids: int64 (batch, rows, columns) or (batch, rows * columns), the tokenizer's code of each patch.

        Raises:
            ValueError: if the pictures don't suit the model, or mask or codes are of another grid.
        """
        check_pixels(pixel_values, self.config.num_channels)
        if kwargs.get("pixel_mask") is not None:
            raise ValueError(
                "Padding can't be predicted, got a `pixel_mask`. Give pictures of one size, without a mask."
            )
        grid = self.vision_model.grid_size(*pixel_values.shape[-2:])
        if code_ids is not None:
            self._check_codes(code_ids, len(pixel_values), grid)
        if bool_masked_pos is None:
            assert self.config.mask_ratio is not None  # the config fills it in
            draw = block_patch_mask if self.config.mask_pattern == "blocks" else random_patch_mask
            hidden = draw(len(pixel_values), grid, self.config.mask_ratio, pixel_values.device)
            num_visible = grid[0] * grid[1] - num_masked_patches(grid, self.config.mask_ratio)
        else:
            hidden = bool_masked_pos.bool()
            num_visible = self._num_visible(hidden, (len(pixel_values), grid[0] * grid[1]))
        kwargs["interpolate_pos_encoding"] = interpolate_pos_encoding
        if self.code_head is not None:
            return self._predict_codes(self.code_head, pixel_values, hidden, code_ids, **kwargs)
        assert self.pixel_decoder is not None
        return self._predict_pixels(self.pixel_decoder, pixel_values, hidden, num_visible, **kwargs)

    def _predict_codes(
        self,
        head: CodeHead,
        pixel_values: torch.Tensor,
        hidden: torch.Tensor,
        code_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> VisionTransformerMaskedImageModelingOutput:
        outputs = self.vision_model(pixel_values, bool_masked_pos=hidden, **kwargs)
        logits = head(outputs.last_hidden_state[:, self.config.num_prefix_tokens :])
        loss = None
        if code_ids is not None:
            targets = code_ids.flatten(1).to(logits.device, torch.int64)
            losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
            loss = mean_over(losses, hidden)  # Bao eq. 1
        return VisionTransformerMaskedImageModelingOutput(
            loss=loss,
            logits=logits,
            bool_masked_pos=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _predict_pixels(
        self,
        decoder: PixelDecoder,
        pixel_values: torch.Tensor,
        hidden: torch.Tensor,
        num_visible: int,
        **kwargs: Any,
    ) -> VisionTransformerMaskedImageModelingOutput:
        order = hidden.int().argsort(dim=1, stable=True)  # visible patches, then hidden ones
        outputs = self.vision_model(pixel_values, visible_patches=order[:, :num_visible], **kwargs)
        stretched = (
            self.vision_model.grid_size(*pixel_values.shape[-2:]) if kwargs["interpolate_pos_encoding"] else None
        )
        drawn = decoder(outputs.last_hidden_state, order.argsort(dim=1), stretched).float()
        loss, reconstruction = self._compare_pixels(drawn, pixel_values.float(), hidden)
        return VisionTransformerMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            bool_masked_pos=hidden,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def resize(self, image_size: int | tuple[int, int] | None = None) -> None:
        """Stretch the position tables, the decoder's too; see `VisionTransformerModel.resize`."""
        super().resize(image_size)
        if self.pixel_decoder is not None:
            grid = self.vision_model.grid_size(*as_pair(self.config.image_size))
            self.pixel_decoder.positions = self.pixel_decoder.stretched_positions(grid).clone()
            self.pixel_decoder.grid = grid

    def _compare_pixels(
        self, drawn: torch.Tensor, pixel_values: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the drawn patches (batch, rows * columns, pixels) as pictures."""
        patch_size = as_pair(self.config.patch_size)
        target, hidden = cut_into_patches(pixel_values, patch_size).to(drawn.device), hidden.to(drawn.device)
        if self.config.normalize_target_pixels:
            mean = target.mean(dim=-1, keepdim=True)
            deviation = (target.var(dim=-1, keepdim=True) + _SMALLEST_VARIANCE).sqrt()
            target = (target - mean) / deviation
            as_pixels = drawn.detach() * deviation + mean
        else:
            as_pixels = drawn.detach()
        loss = mean_over((drawn - target).square().mean(dim=-1), hidden)
        return loss, join_patches(as_pixels, patch_size, (pixel_values.shape[-2], pixel_values.shape[-1]))

    def _check_codes(self, code_ids: torch.Tensor, batch: int, grid: tuple[int, int]) -> None:
        if self.code_head is None:
            raise ValueError(
                "`code_ids` are for `masked_image_target='codes'`, got a model of 'pixels'. Leave them out, or build the "
                "model for codes."
            )
        rows, columns = grid
        if code_ids.is_floating_point() or code_ids.dtype == torch.bool:
            raise ValueError(f"`code_ids` must be int64, got {code_ids.dtype}. Give the numbers of the codes.")
        if tuple(code_ids.shape) not in ((batch, rows, columns), (batch, rows * columns)):
            raise ValueError(
                f"`code_ids` must have one code a patch, {(batch, rows, columns)}, got {tuple(code_ids.shape)}. Use a "
                "tokenizer whose grid is that of the patches, or give it pictures of another size."
            )
        if code_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = int(code_ids.min()), int(code_ids.max())
            if lowest < 0 or highest >= self.config.num_codes:
                raise ValueError(
                    f"`code_ids` must be from 0 to {self.config.num_codes - 1}, got {lowest} to {highest}. Set "
                    "`num_codes` to the size of the tokenizer's codebook."
                )

    def _num_visible(self, hidden: torch.Tensor, shape: tuple[int, int]) -> int:
        if tuple(hidden.shape) != shape:
            raise ValueError(
                f"`bool_masked_pos` must be (batch, rows * columns), {shape}, got {tuple(hidden.shape)}. Make the mask for "
                "the grid of these pictures."
            )
        if self.code_head is not None:
            return shape[1]  # mask tokens stand in for the hidden ones
        counts = (~hidden).sum(dim=1)
        if counts.min() != counts.max() or counts.min() == 0 or counts.max() == shape[1]:
            raise ValueError(
                "`bool_masked_pos` must hide as many patches in every picture, some but not all, got "
                f"{hidden.sum(dim=1).tolist()[:8]} of {shape[1]}. Draw the masks with `blocks.patch_masks`, or leave them "
                "out."
            )
        return int(counts[0])


def mean_over(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean of the values, float (batch, rows * columns), where `chosen`, bool of that shape, is True."""
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def cut_into_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Float (batch, channels, height, width) -> float (batch, rows * columns, patch pixels * channels), channels last."""
    height, width = patch_size
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def join_patches(patches: torch.Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> torch.Tensor:
    """The way back from `cut_into_patches`, to pictures of `image_size` = (height, width)."""
    height, width = patch_size
    pictures = patches.unflatten(2, (height, width, -1)).unflatten(1, (image_size[0] // height, -1))
    return pictures.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
