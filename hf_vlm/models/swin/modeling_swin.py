"""Swin transformer: attention within shifted windows, on maps that halve from stage to stage.

pixel_values float (batch, channels, height, width)
  -> patches                 (batch, rows * columns, embed_dim)          blocks/patch_embed.py
  -> stages: layers of window attention and MLP                          window_attention.py, blocks/transformer.py
             then four neighbours merged, but in the last                (batch, rows / 2 * columns / 2, twice the width)
  -> last_hidden_state       (batch, last rows * last columns, hidden_size), pooler_output (batch, hidden_size)

Its cost grows with the picture's area, not with the area's square: each patch meets those of its window only (eq. 2).

For pictures of several sizes, or after a model of another size in the same process, compile with `torch.compile(model,
dynamic=False)`, one graph a size: the sizes of maps and windows as symbols cost the compiler minutes.

Where the equations are; a comment on each line names its own:

    Liu eq. 3    two layers, the second's windows shifted              `SwinTransformerStage.__init__`
    Liu eq. 4    attention with a bias for the way between patches     window_attention.py `WindowAttention._attend`

Differs from the home implementation in four ways: drop path acts on both branches of a layer, as in the paper's code; a map
smaller than the window is one window, whose bias is the middle of the table, where the reference fails; windows need not be
square; a picture that was smaller than a window leaves no trace in the model.

Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...blocks.classification import ClassificationHead
from ...blocks.patch_embed import PatchEmbedding, as_pair, check_pixels
from ...blocks.position_embedding import crop_positions, resample_positions
from ...blocks.relative_position import RelativePositionBias
from ...blocks.transformer import PreNormLayer
from ...parts.classifier import ResettableHead
from ...parts.pretrained_model import HubModel
from .configuration_swin import SwinTransformerConfig
from .weights_swin import config_from_home, config_from_original, weights_from_elsewhere
from .window_attention import WindowAttention


class SwinTransformerEmbeddings(nn.Module):
    """Patches, normalised, with absolute positions if the config wants them."""

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__()
        self.image_size = as_pair(config.image_size)
        patch_size = as_pair(config.patch_size)
        self.patch_embedding = PatchEmbedding(config.num_channels, config.embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)
        rows, columns = self.grid_size(*self.image_size)
        self.position_embedding = (
            nn.Parameter(torch.zeros(1, rows * columns, config.embed_dim)) if config.use_absolute_positions else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of a picture; a last one that is cut off counts."""
        patch_height, patch_width = self.patch_embedding.patch_size
        return -(-height // patch_height), -(-width // patch_width)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        """Float (batch, channels, height, width) -> float (batch, rows * columns, embed_dim)."""
        height, width = pixel_values.shape[-2:]
        grid, patch_size = self.grid_size(height, width), self.patch_embedding.patch_size
        below, right = grid[0] * patch_size[0] - height, grid[1] * patch_size[1] - width
        if below or right:
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, below))
        hidden_states = self.norm(self.patch_embedding(pixel_values))
        if self.position_embedding is not None:
            stored_grid = self.grid_size(*self.image_size)
            fit = resample_positions if interpolate_pos_encoding else crop_positions
            hidden_states = hidden_states + fit(self.position_embedding, grid, stored_grid, 0)
        return self.dropout(hidden_states)


class PatchMerging(nn.Module):
    """Four neighbouring patches as one of twice the width: half the rows, half the columns.

    Source: Liu et al. 2021, section 3.1.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.reduction = nn.Linear(4 * hidden_size, 2 * hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Merge a map; where its rows or columns are odd, one of zeros is added.

        Args:
            hidden_states: float (batch, rows * columns, hidden_size).
            grid: (rows, columns).

        Returns: float (batch, ceil(rows / 2) * ceil(columns / 2), 2 * hidden_size).
        """
        batch, _, width = hidden_states.shape
        hidden_states = hidden_states.view(batch, *grid, width)
        if grid[0] % 2 or grid[1] % 2:
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        rows, columns = merged_grid(grid)
        neighbours = hidden_states.view(batch, rows, 2, columns, 2, width).permute(0, 1, 3, 4, 2, 5)
        neighbours = neighbours.reshape(batch, rows * columns, 4 * width)  # column by column, as the released weights
        return self.reduction(self.norm(neighbours))


def merged_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) after a merging."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


class SwinTransformerStage(nn.Module):
    """Layers on maps of one size, the even ones shifted, and the merging that follows them in all but the last stage."""

    def __init__(self, config: SwinTransformerConfig, stage: int) -> None:
        super().__init__()
        width = config.embed_dim * 2**stage
        before, depth = sum(config.depths[:stage]), sum(config.depths)
        self.layers = nn.ModuleList(
            PreNormLayer(
                WindowAttention(
                    config,
                    hidden_size=width,
                    num_heads=config.num_attention_heads[stage],
                    window=as_pair(config.window_size),
                    is_shifted=layer % 2 == 1,  # Liu eq. 3
                    dropout=config.attention_dropout,
                    bias=config.qkv_bias,
                ),
                hidden_size=width,
                intermediate_size=int(config.mlp_ratio * width),
                activation=config.hidden_act,
                dropout=config.hidden_dropout_prob,
                drop_path_rate=config.drop_path_rate * (before + layer) / max(depth - 1, 1),
                layer_norm_eps=config.layer_norm_eps,
            )
            for layer in range(config.depths[stage])
        )
        self.merging = PatchMerging(width) if stage < len(config.depths) - 1 else None

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the patches of a map, then merge them.

        Args:
            hidden_states: float (batch, rows * columns, width).
            grid: (rows, columns).

        Returns: the map for the next stage, float (batch, ceil(rows / 2) * ceil(columns / 2), 2 * width), in the last
            stage the same as the second: the map before it is merged, float (batch, rows * columns, width).
        """
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid=grid, **kwargs)
        merged = self.merging(hidden_states, grid) if self.merging is not None else hidden_states
        return merged, hidden_states


class SwinTransformerPreTrainedModel(HubModel):
    """What every Swin transformer shares: flags for transformers, and how new weights start."""

    config: SwinTransformerConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    part_paths = {"encoder": "vision_model", "classifier": "classifier", "feature_norms": "feature_norms"}
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    resizable = ("image_size", "window_size")
    _no_split_modules = ["SwinTransformerEmbeddings", "PreNormLayer"]
    _supports_sdpa = True
    _supports_flash_attn = _supports_flex_attn = False  # they add no learned bias to the scores
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SwinTransformerStage, index=0),
        "attentions": OutputRecorder(WindowAttention, index=1),
    }
    _input_embed_layer = "patch_embedding"

    @classmethod
    def foreign_config(cls, config: dict) -> SwinTransformerConfig | None:
        """Our config for a `swin` one, else None."""
        return config_from_home(config)

    @classmethod
    def config_of_weights(cls, weights: Mapping[str, torch.Tensor]) -> SwinTransformerConfig:
        """Our config for the tensors of an original `.pth` file, which brings none."""
        return config_from_original(weights)

    @classmethod
    def foreign_weights(cls, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of such a folder or file under our names."""
        return cls.place_weights(*weights_from_elsewhere(config, weights))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, RelativePositionBias):
            init.trunc_normal_(module.table, std=std)
        elif isinstance(module, SwinTransformerEmbeddings) and module.position_embedding is not None:
            init.trunc_normal_(module.position_embedding, std=std)

    def _check_pictures(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
        embeddings = self.base_model.embeddings
        check_pixels(pixel_values, embeddings.patch_embedding.num_channels)
        size = tuple(pixel_values.shape[-2:])
        if min(size) < 1:
            raise ValueError(f"Pictures must hold a pixel, got {size[0]} x {size[1]}. Leave empty ones out.")
        if embeddings.position_embedding is not None and size != embeddings.image_size and not interpolate_pos_encoding:
            raise ValueError(
                f"Pictures must be of {embeddings.image_size[0]} x {embeddings.image_size[1]} pixels for absolute "
                f"positions, got {size[0]} x {size[1]}. Resize them with the image processor, pass "
                "`interpolate_pos_encoding=True`, or call `model.resize(image_size=...)`."
            )

    def resize(
        self,
        image_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Stretch the tables to another picture or window size for good, bicubic; the config follows.

        Args:
            image_size: pixels, one number or (height, width). It matters to absolute positions only.
            window_size: patches, one number or (rows, columns). The bias tables of all layers are resampled.

        Raises:
            ValueError: if a size is not positive, or a picture of that size holds no patch.
        """
        embeddings = self.base_model.embeddings
        if image_size is not None and any(
            size < patch for size, patch in zip(as_pair(image_size), embeddings.patch_embedding.patch_size, strict=True)
        ):
            raise ValueError(
                f"`image_size` must be at least one patch, {embeddings.patch_embedding.patch_size}, got "
                f"{as_pair(image_size)}. Give a larger size."
            )
        if window_size is not None and min(as_pair(window_size)) < 1:
            raise ValueError(f"`window_size` must be at least one patch, got {window_size}. Give a larger window.")
        if image_size is not None:
            size = as_pair(image_size)
            table = embeddings.position_embedding
            if table is not None:
                stored_grid, grid = embeddings.grid_size(*embeddings.image_size), embeddings.grid_size(*size)
                resampled = resample_positions(table.detach(), grid, stored_grid, 0)
                embeddings.position_embedding = nn.Parameter(resampled.clone(), requires_grad=table.requires_grad)
            embeddings.image_size = size
            self.config.image_size = image_size if isinstance(image_size, int) else size
        if window_size is not None:
            for module in self.modules():
                if isinstance(module, RelativePositionBias):
                    module.resize(as_pair(window_size))
            self.config.window_size = window_size if isinstance(window_size, int) else as_pair(window_size)


class SwinTransformerModel(SwinTransformerPreTrainedModel):
    """Pictures -> one vector a patch of the last stage, and their mean."""

    part_paths = {"encoder": ""}

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__(config)
        self.embeddings = SwinTransformerEmbeddings(config)
        self.stages = nn.ModuleList(SwinTransformerStage(config, stage) for stage in range(len(config.depths)))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the last stage's map for a picture of `height` x `width` pixels."""
        grid = self.embeddings.grid_size(height, width)
        for _ in self.stages[1:]:
            grid = merged_grid(grid)
        return grid

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode pictures.

        Args:
            pixel_values: float (batch, num_channels, height, width), of any size; what is missing to whole patches, to
                whole windows and to even maps is filled with zeros.
            interpolate_pos_encoding: whether to stretch absolute positions to a picture size other than `image_size`.

        Returns: `last_hidden_state`, float (batch, last rows * last columns, hidden_size), row by row (`grid_size` tells
            how many); `pooler_output`, its mean, float (batch, hidden_size). `hidden_states`, if asked for: the patches
            and what each stage hands on.

        Raises:
            ValueError: if the pictures' channels or size don't suit the model, or a pixel is not a number.
        """
        hidden_states, _, _ = self.encode(pixel_values, interpolate_pos_encoding, **kwargs)
        hidden_states = self.final_norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(dim=1))

    def encode(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[tuple[int, int]]]:
        """The map of the last stage before the final norm, and all on the way to it.

        Args:
            pixel_values, interpolate_pos_encoding: as in `forward`.

        Returns: float (batch, last rows * last columns, hidden_size); the patches and then each stage's map before it is
            merged, float (batch, rows * columns, width); and the (rows, columns) of each of these.
        """
        if kwargs.get("pixel_mask") is not None:
            raise ValueError(
                "Swin's windows see padding as picture, got a `pixel_mask`. Give pictures of one size, without a mask."
            )
        self._check_pictures(pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.embeddings.patch_embedding.projection.weight.dtype)
        grid = self.embeddings.grid_size(*pixel_values.shape[-2:])
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        maps, grids = [hidden_states], [grid]
        for stage in self.stages:
            hidden_states, unmerged = stage(hidden_states, grid, **kwargs)
            maps.append(unmerged)
            grids.append(grid)
            grid = merged_grid(grid)
        return hidden_states, maps, grids


class SwinTransformerForImageClassification(ResettableHead, SwinTransformerPreTrainedModel):
    """A class for each picture, from the mean of the last map's patches."""

    heads = ("classifier",)
    accepts_loss_kwargs = False  # the loss is a mean over pictures: the Trainer is to average accumulated batches

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__(config)
        self.vision_model = SwinTransformerModel(config)
        self.classifier = ClassificationHead(config.hidden_size, config.num_labels, config.num_linear_layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: object,
    ) -> ImageClassifierOutput:
        """Classify pictures.

        Args:
            pixel_values, interpolate_pos_encoding: as for `SwinTransformerModel`.
            labels: int64 (batch,), or float (batch, num_labels): see `blocks.classification.classification_loss`.

        Returns: `logits`, float (batch, num_labels); `loss`, a fp32 scalar, None without labels.

        Raises:
            ValueError: if pictures or labels don't suit the model.
        """
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.head_loss(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SwinTransformerBackbone(BackboneMixin, SwinTransformerPreTrainedModel):
    """Feature maps of the stages that `config.out_features` names, for detection and segmentation heads."""

    heads = ("feature_norms",)

    def __init__(self, config: SwinTransformerConfig) -> None:
        super().__init__(config)
        self.vision_model = SwinTransformerModel(config)
        self.num_features = [config.embed_dim, *(config.embed_dim * 2**stage for stage in range(len(config.depths)))]
        self.feature_norms = nn.ModuleDict(
            {name: nn.LayerNorm(self.out_feature_channels[name]) for name in config.out_features}
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> BackboneOutput:
        """Pictures as maps, each before it is merged.

        Args:
            pixel_values, interpolate_pos_encoding: as for `SwinTransformerModel`.

        Returns: `feature_maps`, one float (batch, channels, rows, columns) for each of `out_features`, normalised.

        Raises:
            ValueError: as for `SwinTransformerModel`.
        """
        _, maps, grids = self.vision_model.encode(pixel_values, interpolate_pos_encoding, **kwargs)
        feature_maps = tuple(
            self.feature_norms[name](features).unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
            for name, features, grid in zip(self.stage_names, maps, grids, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps)
