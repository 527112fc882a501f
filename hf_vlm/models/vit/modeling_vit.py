"""Vision transformer: patches of a picture as tokens, mixed by attention. One model for ViT, DeiT and BEiT.

pixel_values float (batch, channels, height, width)
  -> patches                 (batch, rows * columns, hidden_size)       blocks/patch_embed.py
  -> CLS (, distillation, registers) in front, positions added          (batch, tokens, hidden_size)   embeddings.py
  -> num_hidden_layers x (attention + MLP)                              blocks/transformer.py, relative_position.py
  -> last_hidden_state       (batch, tokens, hidden_size), pooler_output (batch, hidden_size) or None

Where the equations are; a comment on each line names its own:

    Dosovitskiy eq. 1    patches and positions               embeddings.py `VisionTransformerEmbeddings.forward`
    Dosovitskiy eq. 2    attention, with its residual        blocks/transformer.py `PreNormLayer.forward`
    Dosovitskiy eq. 3    the MLP, with its residual          blocks/transformer.py `PreNormLayer.forward`
    Dosovitskiy eq. 4    the last norm                       `VisionTransformerModel.forward`

Differs from the home implementations in four ways: patches of a convolutional stem (Xiao 2021) or of a CNN's feature map if
wanted; grids that need not be square; pictures of different size in one batch by `pixel_mask`, each of which gives what it
gives alone; hidden patches left out by `visible_patches` (MAE), where transformers has a model of its own for that.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; Touvron et al. 2021 (DeiT), https://arxiv.org/abs/2012.12877;
Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...blocks.attention import SelfAttention
from ...blocks.patch_embed import as_pair, check_pixels
from ...blocks.relative_position import RelativePositionBias, relative_position_index
from ...blocks.transformer import PreNormLayer
from ...parts.pretrained_model import HubModel
from ...parts.vision_features import load_vision_model
from .configuration_vit import VisionTransformerConfig
from .embeddings import VisionTransformerEmbeddings
from .weights_vit import config_from_home, weights_from_home


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
        return self.norm(mean_of_patches(hidden_states, token_mask, self.num_prefix_tokens))


def mean_of_patches(
    hidden_states: torch.Tensor, token_mask: torch.Tensor | None, num_prefix_tokens: int
) -> torch.Tensor:
    """The mean over a picture's real patches, float (batch, hidden_size).

    Args:
        hidden_states: float (batch, tokens, hidden_size), prefix tokens first.
        token_mask: bool (batch, tokens), False for padding, or None where all is real.
    """
    patches = hidden_states[:, num_prefix_tokens:]
    if token_mask is None:
        return patches.mean(dim=1)
    real = token_mask[:, num_prefix_tokens:, None].to(patches.dtype)  # (batch, rows * columns, 1)
    return (patches * real).sum(dim=1) / real.sum(dim=1)


class VisionTransformerPreTrainedModel(HubModel):
    """What every vision transformer shares: flags for transformers, and how new weights start."""

    config: VisionTransformerConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    part_paths = {
        "encoder": "vision_model",
        "classifier": "classifier",
        "distillation_classifier": "distillation_classifier",
        "code_head": "code_head",
        "pixel_decoder": "pixel_decoder",
    }
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionTransformerEmbeddings", "PreNormLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PreNormLayer, "attentions": SelfAttention}
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: VisionTransformerConfig) -> None:
        if config.backbone_config is not None:  # the layout of its map is asked of it as pictures come
            self._can_compile_fullgraph = False
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
        return cls.place_weights(*weights_from_home(config, weights))

    @classmethod
    def from_pretrained_parts(cls, backbone: str | PreTrainedModel, **settings: Any) -> Any:
        """A new vision transformer on the feature map of a pretrained model, usually a CNN.

        Args:
            backbone: Hub name, folder, or a loaded model.
            settings: fields of `VisionTransformerConfig`, such as `hidden_size`, `freeze_backbone=True` or
                `backbone_layer=-2`. `patch_size` is 1 unless given.

        Raises:
            ValueError: if a weight of the backbone is not in its checkpoint, or the settings don't fit each other.
        """
        pretrained, _ = load_vision_model(backbone)
        defaults = {"patch_size": 1, "num_channels": getattr(pretrained.config, "num_channels", 3)}
        config = cls.config_class(**{**defaults, **settings, "backbone_config": pretrained.config})
        model = cls(config)
        model.base_model.embeddings.backbone.load_state_dict(pretrained.state_dict())
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformerEmbeddings):
            for token in (module.cls_token, module.distillation_token, module.mask_token):
                if token is not None:
                    init.zeros_(token)
            # Of the picture's own scale, as in the paper's code (Flax's default); smaller, positions drown the patches.
            projection = module.patch_embedding.projection.weight
            init.trunc_normal_(projection, std=projection[0].numel() ** -0.5)
            std = self.config.initializer_range
            if module.register_tokens is not None:  # equal ones would stay equal
                init.trunc_normal_(module.register_tokens, std=std)
            if self.config.position_embedding == "learned":
                init.trunc_normal_(module.position_embedding, std=std)
            elif self.config.position_embedding == "sincos":
                init.copy_(module.position_embedding, module.fixed_positions())
            elif self.config.position_embedding == "learned_2d":
                for table in (module.prefix_positions, module.row_positions, module.column_positions):
                    if table is not None:
                        init.trunc_normal_(table, std=std)
        elif isinstance(module, RelativePositionBias):
            init.zeros_(module.table)
        elif isinstance(module, PreNormLayer) and module.attention_scale is not None:
            init.constant_(module.attention_scale, self.config.layer_scale_init_value)
            init.constant_(module.mlp_scale, self.config.layer_scale_init_value)

    def resize(self, image_size: int | tuple[int, int] | None = None) -> None:
        """Stretch the position tables to another picture size for good; the config follows.

        Args:
            image_size: pixels, one number or (height, width).

        Raises:
            ValueError: if a picture of that size holds no patch, or no whole number of them.
        """
        if image_size is None:
            return
        size, model = as_pair(image_size), self.base_model
        model.check_size(size, "`image_size`")
        grid = model.grid_size(*size)
        model.embeddings.resize(size)
        for bias in model.relative_position_biases:
            bias.resize(grid)
        self.config.image_size = image_size if isinstance(image_size, int) else size


class VisionTransformerModel(VisionTransformerPreTrainedModel):
    """Pictures -> one vector a patch, and a pooled one if the config says so."""

    part_paths = {"encoder": ""}

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
        return self.embeddings.grid_size(height, width)

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
        visible_patches: torch.Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPooling:
        """Encode pictures.

        Args:
            pixel_values: float (batch, num_channels, height, width).
            pixel_mask: int64 or bool (batch, height, width), 1 for the picture (the top-left part), 0 for padding. The
                picture may then have any size up to `image_size`: its positions are the top-left part of the table's.
            bool_masked_pos: bool (batch, rows * columns), True for patches to be replaced by the mask token.
            interpolate_pos_encoding: whether to stretch the positions to a picture size other than `image_size`.
            visible_patches: int64 (batch, number of them), which patches are looked at; the others are left out, and
                `last_hidden_state` has these only, in that order (MAE).

        Returns: `last_hidden_state`, float (batch, num_prefix_tokens + rows * columns, hidden_size), undefined where
            `patch_mask` is False; `pooler_output`, float (batch, hidden_size), or None.

        Raises:
            ValueError: if the pictures' channels or size don't suit the model.
        """
        self._check_pictures(pixel_values, pixel_mask, interpolate_pos_encoding)
        self._check_hidden_patches(pixel_values, bool_masked_pos, visible_patches, pixel_mask)
        pixel_values = pixel_values.to(self.embeddings.patch_embedding.projection.weight.dtype)
        hidden_states = self.embeddings(
            pixel_values, pixel_mask, bool_masked_pos, visible_patches, interpolate_pos_encoding
        )
        token_mask = attention_mask = None
        # Without padding no mask is made, not even asked for: torch before 2.14 would compile one that is True all over, and
        # with it a GPU's slowest attention.
        if pixel_mask is not None:
            token_mask = self.patch_mask(pixel_mask)
            attention_mask = create_bidirectional_mask(self.config, hidden_states, token_mask)

        height, width = pixel_values.shape[-2:]
        biases = self._position_biases(height, width, interpolate_pos_encoding, hidden_states.device)
        for layer, bias in zip(self.layers, biases, strict=True):
            hidden_states = layer(hidden_states, attention_mask, bias, **kwargs)  # (batch, tokens, hidden_size)
        hidden_states = self.final_norm(hidden_states)  # Dosovitskiy eq. 4, of every token
        pooled = self.pooler(hidden_states, token_mask) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _position_biases(
        self, height: int, width: int, interpolate_pos_encoding: bool, device: torch.device
    ) -> list[torch.Tensor | None]:
        """Each layer's float (1, heads, tokens, tokens) to add to its scores, or None."""
        tables = self.relative_position_biases
        if len(tables) == 0:
            return [None] * len(self.layers)
        grid = self.grid_size(height, width)
        table_grid = grid if interpolate_pos_encoding else self.grid_size(*self.embeddings.image_size)
        index = relative_position_index(grid, table_grid, self.config.use_cls_token, device)
        biases = [table(index, grid if interpolate_pos_encoding else None) for table in tables]
        return biases * len(self.layers) if len(tables) == 1 else biases

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Checks that a picture of `size`, (height, width) in pixels, holds a patch, and nothing but whole ones.

        Raises:
            ValueError: if not; `name` says what was wrong.
        """
        if min(size) < 1:
            raise ValueError(f"{name} must be at least 1 x 1 pixels, got {size[0]} x {size[1]}. Give a larger size.")
        patch_embedding = self.embeddings.patch_embedding
        unit, whole = "pixels", size
        if self.embeddings.backbone is not None:
            unit, whole = "places of the backbone's map", self.embeddings.map_size(*size)
        patch_size, patch_stride = patch_embedding.patch_size, patch_embedding.patch_stride
        if whole[0] < patch_size[0] or whole[1] < patch_size[1]:
            raise ValueError(
                f"{name} must hold a patch of {patch_size[0]} x {patch_size[1]} {unit}, at least one, got {whole[0]} x "
                f"{whole[1]}. Give a larger size."
            )
        left_over = [
            (pixels - patch) % stride for pixels, patch, stride in zip(whole, patch_size, patch_stride, strict=True)
        ]
        if any(left_over):
            raise ValueError(
                f"{name} must be a whole number of patches of {patch_size[0]} x {patch_size[1]} {unit}"
                f"{'' if patch_stride == patch_size else f', every {patch_stride[0]} x {patch_stride[1]}'}, got {whole[0]} "
                f"x {whole[1]}: the last {left_over[0]} rows and {left_over[1]} columns would not be seen. Resize or pad "
                f"to {whole[0] - left_over[0]} x {whole[1] - left_over[1]}, or the next larger size."
            )

    def _check_pictures(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, interpolate_pos_encoding: bool
    ) -> None:
        """Refuse pictures that the model can't take, with what to do."""
        image_size = self.embeddings.image_size
        check_pixels(pixel_values, self.config.num_channels)
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
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
            if self.embeddings.backbone is not None:
                raise ValueError(
                    "`pixel_mask` is for patches of pixels, got a model with a backbone, which sees the padding. Resize "
                    "all pictures to one size."
                )
        fits = size[0] <= image_size[0] and size[1] <= image_size[1] if pixel_mask is not None else size == image_size
        if not fits and not interpolate_pos_encoding:
            wanted = "at most" if pixel_mask is not None else "of"
            raise ValueError(
                f"Pictures must be {wanted} {image_size[0]} x {image_size[1]} pixels, got {size[0]} x {size[1]}. "
                "Resize them with the image processor, pass `interpolate_pos_encoding=True` without a mask, or call "
                "`model.resize(image_size=...)`."
            )
        if size != image_size:
            self.check_size(size, "Pictures")

    def _check_hidden_patches(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None,
        visible_patches: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
    ) -> None:
        if bool_masked_pos is not None:
            if self.embeddings.mask_token is None:
                raise ValueError(
                    "`bool_masked_pos` needs a mask token, got a model without. Build it with `use_mask_token=True`."
                )
            rows, columns = self.grid_size(*pixel_values.shape[-2:])
            if tuple(bool_masked_pos.shape) != (pixel_values.shape[0], rows * columns):
                raise ValueError(
                    f"`bool_masked_pos` must be (batch, rows * columns), {(pixel_values.shape[0], rows * columns)} for "
                    f"{rows} x {columns} patches, got {tuple(bool_masked_pos.shape)}. Make the mask for that grid."
                )
        if visible_patches is not None:
            batch, num_patches = len(pixel_values), math.prod(self.grid_size(*pixel_values.shape[-2:]))
            if visible_patches.ndim != 2 or len(visible_patches) != batch or visible_patches.dtype != torch.int64:
                raise ValueError(
                    f"`visible_patches` must be int64 ({batch}, number of them), got {visible_patches.dtype} "
                    f"{tuple(visible_patches.shape)}. Name as many patches of each picture."
                )
            on_cpu = visible_patches.device.type == "cpu" and not torch.compiler.is_compiling()
            if (
                on_cpu
                and visible_patches.numel()
                and not 0 <= visible_patches.min() <= visible_patches.max() < num_patches
            ):
                raise ValueError(
                    f"`visible_patches` must be from 0 to {num_patches - 1}, got {int(visible_patches.min())} to "
                    f"{int(visible_patches.max())}. Count the patches row by row."
                )
        if visible_patches is not None and (pixel_mask is not None or len(self.relative_position_biases)):
            raise ValueError(
                "`visible_patches` can't be combined with a `pixel_mask` or relative position biases, got both. Leave "
                "one out, or hide patches by `bool_masked_pos`."
            )


class VisionTransformerBackbone(BackboneMixin, VisionTransformerPreTrainedModel):
    """Feature maps of the layers that `config.out_features` names, for detection and segmentation heads."""

    heads = ()

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        self.vision_model = VisionTransformerModel(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> BackboneOutput:
        """Pictures as maps.

        Args:
            pixel_values, interpolate_pos_encoding: as for `VisionTransformerModel`.

        Returns: `feature_maps`, one float (batch, hidden_size, rows, columns) for each of `out_features`, after the
            model's final norm.

        Raises:
            ValueError: as for `VisionTransformerModel`.
        """
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        grid = self.vision_model.grid_size(*pixel_values.shape[-2:])
        feature_maps = tuple(
            self.vision_model.final_norm(hidden_states)[:, self.vision_model.num_prefix_tokens :]
            .transpose(1, 2)
            .unflatten(2, grid)
            for name, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
