"""What the first layer of a vision transformer gets: patches, prefix tokens, positions.

pixel_values float (batch, channels, height, width)
  -> if there is a backbone: its feature map                            parts/vision_features.py
  -> patches, some replaced by the mask token                           (batch, rows * columns, hidden_size)
  -> positions added, the hidden ones left out                          blocks/position_embedding.py
  -> CLS, distillation and register tokens in front                     (batch, tokens, hidden_size)
"""

import torch
from torch import nn
from transformers import AutoModel

from ...blocks.patch_embed import PatchEmbedding, as_pair
from ...blocks.position_embedding import crop_positions, resample_axis, resample_positions, sincos_positions
from ...parts.vision_features import VisionDescription, describe_vision_model, vision_features
from .configuration_vit import VisionTransformerConfig


class VisionTransformerEmbeddings(nn.Module):
    """Patches, prefix tokens and positions."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        assert config.patch_stride is not None and config.stem_strides is not None  # the config fills them in
        self.config = config
        self.image_size = as_pair(config.image_size)
        width, num_channels = config.hidden_size, config.num_channels
        self.backbone = None
        if config.backbone_config is not None:
            self.backbone = AutoModel.from_config(config.backbone_config)
            num_channels = self._backbone_layout(*self.image_size).hidden_size
        self.patch_embedding = PatchEmbedding(
            num_channels,
            width,
            as_pair(config.patch_size),
            as_pair(config.patch_stride),
            config.stem_channels,
            [as_pair(stride) for stride in config.stem_strides],
        )
        rows, columns = self.grid_size(*self.image_size)
        if min(rows, columns) < 1:
            raise ValueError(
                f"A picture must hold a patch, got {config.image_size} pixels, of which the backbone makes "
                f"{self._backbone_layout(*self.image_size).grid} places for patches of {config.patch_size}. Enlarge "
                "`image_size`, or use smaller patches or an earlier `backbone_layer`."
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_cls_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_distillation_token else None
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_register_tokens, width)) if config.num_register_tokens else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_mask_token else None

        self.num_placed = config.num_placed_prefix_tokens
        num_positions = self.num_placed + rows * columns
        self.position_embedding: nn.Parameter | torch.Tensor | None = None
        if config.position_embedding == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(1, num_positions, width))
        elif config.position_embedding == "sincos":  # saved, so that a resampled table comes back as such
            del self.position_embedding
            self.register_buffer("position_embedding", self.fixed_positions().to(torch.get_default_dtype()))
        elif config.position_embedding == "learned_2d":
            self.prefix_positions = nn.Parameter(torch.zeros(1, self.num_placed, width)) if self.num_placed else None
            self.row_positions = nn.Parameter(torch.zeros(1, rows, width // 2))
            self.column_positions = nn.Parameter(torch.zeros(1, columns, width // 2))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.train()

    def train(self, mode: bool = True) -> "VisionTransformerEmbeddings":
        """Switch to training or evaluation; a frozen backbone stays in evaluation, its batch norms as they are."""
        super().train(mode)
        if self.backbone is not None and self.config.freeze_backbone:
            self.backbone.eval().requires_grad_(False)  # here, because loading a checkpoint makes its weights anew
        return self

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches that a picture of `height` x `width` pixels gives."""
        return self.patch_embedding.grid_size(*self.map_size(height, width))

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of what is cut into patches: the backbone's map, or without one the picture itself."""
        return (height, width) if self.backbone is None else self._backbone_layout(height, width).grid

    def _backbone_layout(self, height: int, width: int) -> VisionDescription:
        return describe_vision_model(self.config.backbone_config, (height, width), self.config.backbone_layer)

    def positions(self) -> torch.Tensor | None:
        """The table, float (1, placed prefix tokens + rows * columns, hidden_size), or None."""
        if self.config.position_embedding != "learned_2d":
            return self.position_embedding
        rows, columns = self.row_positions.shape[1], self.column_positions.shape[1]
        both = torch.cat(
            (
                self.column_positions[:, None].expand(-1, rows, -1, -1),
                self.row_positions[:, :, None].expand(-1, -1, columns, -1),
            ),
            dim=-1,
        ).flatten(1, 2)  # (1, rows * columns, hidden_size)
        return both if self.prefix_positions is None else torch.cat((self.prefix_positions, both), dim=1)

    @torch.no_grad()
    def resize(self, image_size: tuple[int, int]) -> None:
        """Stretch the positions to pictures of another size, (height, width), for good."""
        stored_grid, grid = self.grid_size(*self.image_size), self.grid_size(*image_size)
        mode = self.config.position_resampling
        if self.config.position_embedding == "learned_2d":
            for name, length in (("row_positions", grid[0]), ("column_positions", grid[1])):
                old = getattr(self, name)
                new = resample_axis(old.detach(), length, mode)
                setattr(self, name, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
        elif self.position_embedding is not None:
            old = self.position_embedding
            new = resample_positions(old.detach(), grid, stored_grid, self.num_placed, mode).clone()
            is_learned = isinstance(old, nn.Parameter)
            self.position_embedding = nn.Parameter(new, requires_grad=old.requires_grad) if is_learned else new
        self.image_size = image_size

    def fixed_positions(self) -> torch.Tensor:
        """What the table of `sincos` positions starts from."""
        return sincos_positions(self.grid_size(*self.image_size), self.num_placed, self.config.hidden_size)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        visible_patches: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """Embed pictures, as `VisionTransformerModel.forward` takes them: float (batch, tokens, hidden_size)."""
        batch = pixel_values.shape[0]
        grid = self.grid_size(*pixel_values.shape[-2:])
        if self.backbone is not None:
            pixel_values = self._feature_map(pixel_values)  # (batch, backbone channels, map rows, map columns)
        patches = self.patch_embedding(pixel_values, pixel_mask)  # (batch, rows * columns, hidden_size)
        if bool_masked_pos is not None and self.mask_token is not None:
            patches = torch.where(bool_masked_pos.bool()[..., None], self.mask_token, patches)
        prefix: list[torch.Tensor] = [token for token in (self.cls_token, self.distillation_token) if token is not None]

        positions = self.positions()
        if positions is not None:
            stored_grid = self.grid_size(*self.image_size)
            if interpolate_pos_encoding:
                mode = self.config.position_resampling
                positions = resample_positions(positions, grid, stored_grid, self.num_placed, mode)
            else:
                positions = crop_positions(positions, grid, stored_grid, self.num_placed)
            patches = patches + positions[:, self.num_placed :]  # Dosovitskiy eq. 1
            if prefix:
                prefix = [torch.cat(prefix, dim=1) + positions[:, : self.num_placed]]
        if visible_patches is not None:
            patches = patches.gather(1, visible_patches[..., None].expand(-1, -1, patches.shape[-1]))
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if prefix:
            patches = torch.cat((*(token.expand(batch, -1, -1) for token in prefix), patches), dim=1)
        return self.dropout(patches)

    def _feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float (batch, channels, height, width) -> the backbone's map, float (batch, backbone channels, rows, columns)."""
        assert self.backbone is not None
        layout = self._backbone_layout(*pixel_values.shape[-2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            tokens = vision_features(self.backbone, pixel_values, layer=self.config.backbone_layer).features
        return tokens[:, layout.num_prefix_tokens :].transpose(1, 2).unflatten(2, layout.grid)
