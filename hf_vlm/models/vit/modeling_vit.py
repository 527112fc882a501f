"""Vision transformer: patches of a picture as tokens, mixed by attention. One model for ViT, DeiT and BEiT.

pixel_values float (batch, channels, height, width)
  -> patches                 (batch, rows * columns, hidden_size)       blocks/patch_embed.py
  -> CLS (, distillation) in front, positions added                     (batch, tokens, hidden_size)
  -> num_hidden_layers x (attention + MLP)                              blocks/transformer.py, relative_position.py
  -> last_hidden_state       (batch, tokens, hidden_size), pooler_output (batch, hidden_size) or None

Differs from the home implementations in three ways: a convolutional stem (Xiao 2021) if wanted; grids that need not be
square; pictures of different size in one batch by `pixel_mask`, each of which gives what it gives alone.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; Touvron et al. 2021 (DeiT), https://arxiv.org/abs/2012.12877;
Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...blocks.attention import SelfAttention
from ...blocks.patch_embed import PatchEmbedding, as_pair
from ...blocks.position_embedding import crop_positions, resample_positions
from ...blocks.relative_position import RelativePositionBias, relative_position_index
from ...blocks.transformer import PreNormLayer
from ...parts.pretrained_model import HubModel
from .configuration_vit import VisionTransformerConfig
from .weights_vit import config_from_home, weights_from_home


class VisionTransformerEmbeddings(nn.Module):
    """Patches, prefix tokens and positions: what the first layer gets."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        assert config.patch_stride is not None and config.stem_strides is not None  # the config fills them in
        self.image_size = as_pair(config.image_size)
        self.num_prefix_tokens = config.num_prefix_tokens
        width = config.hidden_size
        self.patch_embedding = PatchEmbedding(
            config.num_channels,
            width,
            as_pair(config.patch_size),
            as_pair(config.patch_stride),
            config.stem_channels,
            [as_pair(stride) for stride in config.stem_strides],
        )
        rows, columns = self.patch_embedding.grid_size(*self.image_size)
        num_positions = self.num_prefix_tokens + rows * columns
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_cls_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_distillation_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_mask_token else None
        learned = config.position_embedding == "learned"
        self.position_embedding = nn.Parameter(torch.zeros(1, num_positions, width)) if learned else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None,
        interpolate_pos_encoding: bool,
    ) -> torch.Tensor:
        """Embed pictures, as `VisionTransformerModel.forward` takes them: float (batch, tokens, hidden_size)."""
        batch = pixel_values.shape[0]
        hidden_states = self.patch_embedding(pixel_values, pixel_mask)  # (batch, rows * columns, hidden_size)
        if bool_masked_pos is not None and self.mask_token is not None:
            hidden_states = torch.where(bool_masked_pos.bool()[..., None], self.mask_token, hidden_states)
        prefix = [
            token.expand(batch, -1, -1) for token in (self.cls_token, self.distillation_token) if token is not None
        ]
        if prefix:
            hidden_states = torch.cat((*prefix, hidden_states), dim=1)  # (batch, tokens, hidden_size)
        if self.position_embedding is not None:
            grid = self.patch_embedding.grid_size(*pixel_values.shape[-2:])
            stored_grid = self.patch_embedding.grid_size(*self.image_size)
            fit = resample_positions if interpolate_pos_encoding else crop_positions
            hidden_states = hidden_states + fit(self.position_embedding, grid, stored_grid, self.num_prefix_tokens)
        return self.dropout(hidden_states)


class VisionTransformerPooler(nn.Module):
    """One vector for the whole picture."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.num_prefix_tokens = config.num_prefix_tokens
        if self.pooling == "cls":
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        elif self.pooling == "mean":
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """Float (batch, tokens, hidden_size) and bool (batch, tokens) or None -> float (batch, hidden_size)."""
        if self.pooling == "cls":
            return torch.tanh(self.dense(hidden_states[:, 0]))
        if self.pooling == "cls_token":
            return hidden_states[:, 0]
        patches = hidden_states[:, self.num_prefix_tokens :]
        if token_mask is None:
            return self.norm(patches.mean(dim=1))
        real = token_mask[:, self.num_prefix_tokens :, None].to(patches.dtype)  # (batch, rows * columns, 1)
        return self.norm((patches * real).sum(dim=1) / real.sum(dim=1))


class VisionTransformerPreTrainedModel(HubModel):
    """What every vision transformer shares: flags for transformers, and how new weights start."""

    config: VisionTransformerConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionTransformerEmbeddings", "PreNormLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PreNormLayer, "attentions": SelfAttention}
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: VisionTransformerConfig) -> None:
        if config.relative_position_bias != "none":  # those kernels add no learned bias to the scores
            self._supports_flash_attn = self._supports_flex_attn = False
        super().__init__(config)

    @classmethod
    def foreign_config(cls, config: dict) -> VisionTransformerConfig | None:
        """Our config for a `vit`, `deit` or `beit` one, else None."""
        return config_from_home(config)

    @classmethod
    def foreign_weights(cls, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of such a folder under our names."""
        return weights_from_home(config, weights)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformerEmbeddings):
            for token in (module.cls_token, module.distillation_token, module.mask_token):
                if token is not None:
                    init.zeros_(token)
            if module.position_embedding is not None:
                init.trunc_normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, RelativePositionBias):
            init.zeros_(module.table)
        elif isinstance(module, PreNormLayer) and module.attention_scale is not None:
            init.constant_(module.attention_scale, self.config.layer_scale_init_value)
            init.constant_(module.mlp_scale, self.config.layer_scale_init_value)


class VisionTransformerModel(VisionTransformerPreTrainedModel):
    """Pictures -> one vector a patch, and a pooled one if the config says so."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        self.embeddings = VisionTransformerEmbeddings(config)
        assert config.intermediate_size is not None  # the config fills it in
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            PreNormLayer(
                SelfAttention(
                    config,
                    hidden_size=config.hidden_size,
                    num_heads=config.num_attention_heads,
                    dropout=config.attention_dropout,
                    bias=config.qkv_bias,
                    key_bias=config.key_bias,
                ),
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                activation=config.hidden_act,
                dropout=config.hidden_dropout_prob,
                drop_path_rate=config.drop_path_rate * layer / max(depth - 1, 1),
                layer_scale_init_value=config.layer_scale_init_value,
                layer_norm_eps=config.layer_norm_eps,
            )
            for layer in range(depth)
        )
        num_tables = {"none": 0, "shared": 1, "per_layer": depth}[config.relative_position_bias]
        window = self.grid_size(*as_pair(config.image_size))
        self.relative_position_biases = nn.ModuleList(
            RelativePositionBias(window, config.num_attention_heads, with_cls=config.use_cls_token)
            for _ in range(num_tables)
        )
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.final_norm else nn.Identity()
        )
        self.pooler = VisionTransformerPooler(config) if config.pooling != "none" else None
        self.post_init()

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens come before the patches in `last_hidden_state`."""
        return self.config.num_prefix_tokens

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches that a picture of `height` x `width` pixels gives."""
        return self.embeddings.patch_embedding.grid_size(height, width)

    def patch_mask(self, pixel_mask: torch.Tensor) -> torch.Tensor:
        """Which tokens of `last_hidden_state` are real: the prefix tokens, and patches that show some of the picture.

        Args:
            pixel_mask: int64 or bool (batch, height, width), 1 for the picture, 0 for padding.

        Returns: bool (batch, tokens).
        """
        patches = self.embeddings.patch_embedding.patch_mask(pixel_mask)
        return nn.functional.pad(patches, (self.num_prefix_tokens, 0), value=True)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: object,
    ) -> BaseModelOutputWithPooling:
        """Encode pictures.

        Args:
            pixel_values: float (batch, num_channels, height, width).
            pixel_mask: int64 or bool (batch, height, width), 1 for the picture (the top-left part), 0 for padding. The
                picture may then have any size up to `image_size`: its positions are the top-left part of the table's.
            bool_masked_pos: bool (batch, rows * columns), True for patches to be replaced by the mask token.
            interpolate_pos_encoding: whether to stretch the positions to a picture size other than `image_size`.

        Returns: `last_hidden_state`, float (batch, num_prefix_tokens + rows * columns, hidden_size), undefined where
            `patch_mask` is False; `pooler_output`, float (batch, hidden_size), or None.

        Raises:
            ValueError: if the pictures' channels or size don't suit the model.
        """
        self._check_pictures(pixel_values, pixel_mask, bool_masked_pos, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.embeddings.patch_embedding.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, pixel_mask, bool_masked_pos, interpolate_pos_encoding)
        token_mask = self.patch_mask(pixel_mask) if pixel_mask is not None else None
        attention_mask = create_bidirectional_mask(self.config, hidden_states, token_mask)

        height, width = pixel_values.shape[-2:]
        biases = self._position_biases(height, width, interpolate_pos_encoding)
        for layer, bias in zip(self.layers, biases, strict=True):
            hidden_states = layer(hidden_states, attention_mask, bias, **kwargs)  # (batch, tokens, hidden_size)
        hidden_states = self.final_norm(hidden_states)
        pooled = self.pooler(hidden_states, token_mask) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def resize(self, image_size: int | tuple[int, int] | None = None) -> None:
        """Stretch the position tables to another picture size for good; the config follows.

        Args:
            image_size: pixels, one number or (height, width).

        Raises:
            ValueError: if a picture of that size holds no patch.
        """
        if image_size is None:
            return
        size = as_pair(image_size)
        patch_size = as_pair(self.config.patch_size)
        if size[0] < patch_size[0] or size[1] < patch_size[1]:
            raise ValueError(f"`image_size` must be at least one patch, {patch_size}, got {size}. Give a larger size.")
        stored_grid, grid = self.grid_size(*self.embeddings.image_size), self.grid_size(*size)
        table = self.embeddings.position_embedding
        if table is not None:
            resampled = resample_positions(table.detach(), grid, stored_grid, self.num_prefix_tokens)
            self.embeddings.position_embedding = nn.Parameter(resampled.clone(), requires_grad=table.requires_grad)
        for bias in self.relative_position_biases:
            assert isinstance(bias, RelativePositionBias)
            bias.resize(grid)
        self.embeddings.image_size = size
        self.config.image_size = image_size if isinstance(image_size, int) else size

    def _position_biases(self, height: int, width: int, interpolate_pos_encoding: bool) -> list[torch.Tensor | None]:
        """Each layer's float (1, heads, tokens, tokens) to add to its scores, or None."""
        tables = self.relative_position_biases
        if len(tables) == 0:
            return [None] * len(self.layers)
        grid = self.grid_size(height, width)
        table_grid = grid if interpolate_pos_encoding else self.grid_size(*self.embeddings.image_size)
        index = relative_position_index(grid, table_grid, self.config.use_cls_token, self.device)
        biases = [table(index, grid if interpolate_pos_encoding else None) for table in tables]
        return biases * len(self.layers) if len(tables) == 1 else biases

    def _check_pictures(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None,
        interpolate_pos_encoding: bool,
    ) -> None:
        """Refuse pictures that the model can't take, with what to do."""
        patch_embedding, image_size = self.embeddings.patch_embedding, self.embeddings.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != patch_embedding.num_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {patch_embedding.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. Use the model's image processor."
            )
        size = tuple(pixel_values.shape[-2:])
        if pixel_mask is not None:
            if tuple(pixel_mask.shape) != (pixel_values.shape[0], *size):
                raise ValueError(
                    f"`pixel_mask` must be (batch, height, width) of `pixel_values`, {(pixel_values.shape[0], *size)}, "
                    f"got {tuple(pixel_mask.shape)}. Pass both as the image processor returns them."
                )
            if interpolate_pos_encoding:
                raise ValueError(
                    "`pixel_mask` crops the positions and `interpolate_pos_encoding` stretches them, got both. "
                    "Leave one out."
                )
        fits = size[0] <= image_size[0] and size[1] <= image_size[1] if pixel_mask is not None else size == image_size
        if not fits and not interpolate_pos_encoding:
            wanted = "at most" if pixel_mask is not None else "of"
            raise ValueError(
                f"Pictures must be {wanted} {image_size[0]} x {image_size[1]} pixels, got {size[0]} x {size[1]}. "
                "Resize them with the image processor, pass `interpolate_pos_encoding=True` without a mask, or call "
                "`model.resize(image_size=...)`."
            )
        if size[0] < patch_embedding.patch_size[0] or size[1] < patch_embedding.patch_size[1]:
            raise ValueError(
                f"Pictures must hold a patch of {patch_embedding.patch_size} pixels, got {size}. Enlarge or pad them."
            )
        if bool_masked_pos is not None and self.embeddings.mask_token is None:
            raise ValueError(
                "`bool_masked_pos` needs a mask token, got a model without. Build it with `use_mask_token=True`."
            )
