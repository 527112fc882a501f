"""Settings of the vision transformer; ViT, DeiT and BEiT are settings, not classes."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from ...blocks.classification import validate_head_settings
from ...blocks.patch_embed import as_pair
from ...blocks.position_embedding import Resampling
from ...parts.hub_config import HubConfig
from ...parts.settings import check_ranges

# Dosovitskiy 2021, table 1; S and Ti: Touvron 2021 (DeiT), table 1.
PRESETS: dict[str, dict[str, int]] = {
    "vit-ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "patch_size": 16},
    "vit-s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 16},
    "vit-b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16},
    "vit-l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16},
    "vit-h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14},
}


@strict
class VisionTransformerConfig(BackboneConfigMixin, HubConfig):
    """Settings of a `VisionTransformerModel`; the defaults are small enough to train in a test.

    Args:
        hidden_size: width of a token; `num_attention_heads` divides it.
        intermediate_size: width inside the MLP, by default 4 * `hidden_size` (Dosovitskiy 2021, table 1).
        hidden_dropout_prob, attention_dropout: in [0, 1).
        drop_path_rate: rate of the last layer, in [0, 1); the first has 0, those between rise evenly (Huang 2016).
        initializer_range: standard deviation of new weights.
        image_size: pixels, one number or (height, width): the picture size, or with a `pixel_mask` the largest one.
        patch_size, patch_stride: pixels, one number or (height, width); `patch_stride` is by default `patch_size`,
            less for overlapping patches. Behind a backbone they count places of its feature map.
        stem_channels: output channels of 3x3 convolutions before the patches (Xiao 2021); empty for none.
        stem_strides: stride of each of them, one number or (rows, columns); all 2 by default.
        backbone_config: of any vision model of the Hub, usually a CNN, whose feature map is cut into patches instead of
            the picture (the hybrid of Dosovitskiy 2021, section 3.1); its `patch_size` is mostly 1. None for none.
        backbone_layer: which of the backbone's feature maps: -1 its last output, -2 the hidden state before it, and so on.
        freeze_backbone: whether its weights, and the statistics of its batch norms, stay as they are.
        use_cls_token: whether a learned token comes first.
        use_distillation_token: whether a second one follows it (DeiT, Touvron 2021, section 4).
        num_register_tokens: learned tokens without a position before the patches (Darcet 2024).
        use_mask_token: whether there is a learned stand-in for patches hidden by `bool_masked_pos` (BEiT).
        position_embedding: what is added to the tokens: `learned`, a vector a patch; `learned_2d`, a vector of half the
            width a row and one a column (Dosovitskiy 2021, appendix D.4); `sincos`, fixed (MAE); `none` for BEiT, which
            has relative positions only.
        position_resampling: how positions are stretched to other grids: `bicubic` as in transformers,
            `bicubic_antialias` as in timm, `bilinear`, or `linear_1d` along the sequence of patches.
        relative_position_bias: a learned number a head and offset, added to the attention scores: one table a layer,
            one for all layers, or none.
        layer_scale_init_value: start of the factors on each residual branch (BEiT 0.1, Bao 2022), 0 for none.
        qkv_bias, key_bias: whether the attention's projections have a bias; BEiT has none on the keys.
        final_norm: whether `last_hidden_state` is normalised; by default unless `pooling` is `mean`, as BEiT has it.
        pooling: `pooler_output` is the CLS token through a linear layer and tanh (`cls`, ViT and DeiT), as it is
            (`cls_token`), the normalised mean of the patches (`mean`, BEiT), or None (`none`). A classifier without
            pooling reads the CLS token, or the mean of the patches where there is none.
        num_linear_layers: linear layers of the classification head, tanh between them: 2 is the paper's MLP for
            pre-training, 1 its head for fine-tuning.
        use_distillation_head: whether a second head reads the distillation token (DeiT, section 4).
        label_smoothing: the share of a class label spread evenly over all classes in training, in [0, 1).
        masked_image_target: what `VisionTransformerForMaskedImageModeling` predicts of hidden patches: their `pixels`
            (MAE) or the `codes` of a visual tokenizer (BEiT).
        mask_pattern, mask_ratio: which patches are hidden, and what share: by default `random` and 0.75 for pixels,
            `blocks` and 0.4 for codes.
        num_codes: size of the tokenizer's codebook.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: of the decoder of pixels, whose MLP is
            4 times as wide; by default half of `hidden_size`, as many heads, and 2 layers (MAE has 512, 8 and 16).
        normalize_target_pixels: whether each patch's pixels are normalised before they are compared (MAE, table 1d).
        out_features, out_indices: which of `stage_names` a `VisionTransformerBackbone` gives, by name or number.

    Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; Touvron et al. 2021 (DeiT),
        https://arxiv.org/abs/2012.12877; Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254; Xiao et al. 2021,
        https://arxiv.org/abs/2106.14881; He et al. 2022 (MAE), https://arxiv.org/abs/2111.06377; Darcet et al. 2024,
        https://arxiv.org/abs/2309.16588
    """

    model_type = "hf_vlm_vit"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet", optional=True)}

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    patch_size: int | list[int] | tuple[int, ...] = 8
    patch_stride: int | list[int] | tuple[int, ...] | None = None
    stem_channels: list[int] | tuple[int, ...] = ()
    stem_strides: list | tuple | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_layer: int = -1
    freeze_backbone: bool = False
    use_cls_token: bool = True
    use_distillation_token: bool = False
    num_register_tokens: int = 0
    use_mask_token: bool = False
    position_embedding: Literal["learned", "learned_2d", "sincos", "none"] = "learned"
    position_resampling: Resampling = "bicubic"
    relative_position_bias: Literal["none", "per_layer", "shared"] = "none"
    layer_scale_init_value: float | int = 0.0
    qkv_bias: bool = True
    key_bias: bool = True
    final_norm: bool | None = None
    pooling: Literal["none", "cls", "cls_token", "mean"] = "none"
    num_linear_layers: int = 1
    use_distillation_head: bool = False
    label_smoothing: float | int = 0.0
    masked_image_target: Literal["pixels", "codes"] = "pixels"
    mask_pattern: Literal["random", "blocks"] | None = None
    mask_ratio: float | None = None
    num_codes: int = 8192
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    normalize_target_pixels: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.patch_stride is None:
            self.patch_stride = self.patch_size
        if self.stem_strides is None:
            self.stem_strides = [2] * len(self.stem_channels)
        if self.final_norm is None:
            self.final_norm = self.pooling != "mean"
        if self.mask_pattern is None:
            self.mask_pattern = "random" if self.masked_image_target == "pixels" else "blocks"
        if self.mask_ratio is None:
            self.mask_ratio = 0.75 if self.masked_image_target == "pixels" else 0.4
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = self.num_attention_heads
        if self.decoder_hidden_size is None:  # a multiple of the heads, and of 4 for its fixed positions
            multiple = math.lcm(4, max(self.decoder_num_attention_heads, 1))
            self.decoder_hidden_size = max(self.hidden_size // 2 // multiple, 1) * multiple
        self.stage_names = ["stem", *(f"stage{layer + 1}" for layer in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "VisionTransformerConfig":
        """The settings of a published size, for pictures of 224 pixels.

        Args:
            name: `vit-ti`, `vit-s`, `vit-b`, `vit-l` (patches of 16 pixels) or `vit-h` (14).
            settings: what is to differ, such as `image_size=384`.

        Raises:
            ValueError: if there is no such size.
        """
        if name not in PRESETS:
            raise ValueError(f"A published size is wanted, one of {', '.join(PRESETS)}, got `{name}`. Choose one.")
        return cls(**{"image_size": 224, **PRESETS[name], **settings})

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens come before the patches."""
        return self.num_placed_prefix_tokens + self.num_register_tokens

    @property
    def num_placed_prefix_tokens(self) -> int:
        """How many of them come with a position of their own: the CLS and the distillation token."""
        return int(self.use_cls_token) + int(self.use_distillation_token)

    def validate_ranges(self) -> None:
        """Widths and counts are positive, rates are shares, the activation is known."""
        check_ranges(
            self,
            positive=(
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "num_channels",
                "num_codes",
                "decoder_hidden_size",
                "decoder_num_attention_heads",
            ),
            shares=("hidden_dropout_prob", "attention_dropout", "drop_path_rate"),
            activation="hidden_act",
        )

    def validate_heads(self) -> None:
        """Heads share the width evenly."""
        if self.hidden_size % max(self.num_attention_heads, 1):
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}. Change one of them."
            )

    def validate_patches(self) -> None:
        """Sizes are one number or two, positive, and the patches fit the picture and the stem."""
        assert self.patch_stride is not None and self.stem_strides is not None  # filled in above
        for name in ("image_size", "patch_size", "patch_stride"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2 or min(as_pair(value)) < 1:
                raise ValueError(f"`{name}` must be one positive number or (height, width), got {value!r}. Correct it.")
        if len(self.stem_strides) != len(self.stem_channels):
            raise ValueError(
                f"`stem_strides` must have one entry a stem layer, got {len(self.stem_strides)} for "
                f"{len(self.stem_channels)} `stem_channels`. Give one stride a layer, or leave them out for 2."
            )
        image_size, patch_size = as_pair(self.image_size), as_pair(self.patch_size)
        patch_stride = as_pair(self.patch_stride)
        if self.backbone_config is not None and len(self.stem_channels) > 0:
            raise ValueError(
                f"Patches come from a stem or from a backbone, got `stem_channels` {list(self.stem_channels)} and a "
                "`backbone_config`. Leave one out."
            )
        for axis, axis_name in enumerate(("height", "width")):
            stem_stride = 1
            for stride in self.stem_strides:
                stem_stride *= as_pair(stride)[axis]
            if patch_size[axis] % stem_stride or patch_stride[axis] % stem_stride:
                raise ValueError(
                    f"`patch_size` and `patch_stride` must be multiples of the stem's stride, got {patch_size[axis]} "
                    f"and {patch_stride[axis]} for a stem stride of {stem_stride} ({axis_name}). They count pixels of "
                    "the picture, stem included."
                )
            if patch_stride[axis] > patch_size[axis]:
                raise ValueError(
                    f"`patch_stride` must not exceed `patch_size`, got {patch_stride[axis]} for {patch_size[axis]} "
                    f"pixels of {axis_name}. Use a smaller stride: pixels between patches would not be seen."
                )
            if self.backbone_config is None and patch_size[axis] > image_size[axis]:
                raise ValueError(
                    f"`patch_size` must not exceed `image_size`, got {patch_size[axis]} for {image_size[axis]} pixels "
                    f"of {axis_name}. Use smaller patches or larger pictures."
                )

    def validate_tokens(self) -> None:
        """Settings that read the CLS token come with one."""
        if not self.use_cls_token and (self.pooling in ("cls", "cls_token") or self.use_distillation_token):
            raise ValueError(
                f"`pooling={self.pooling!r}` with `use_distillation_token={self.use_distillation_token}` needs a CLS "
                "token, got `use_cls_token=False`. Set it to True, or pool by `mean` without a distillation token."
            )
        if self.num_prefix_tokens > int(self.use_cls_token) and self.relative_position_bias != "none":
            raise ValueError(
                "`relative_position_bias` is defined for patches and a CLS token, got "
                f"`use_distillation_token={self.use_distillation_token}` and `num_register_tokens="
                f"{self.num_register_tokens}` as well. Leave these out."
            )
        if self.use_distillation_head and not self.use_distillation_token:
            raise ValueError(
                "`use_distillation_head` reads the distillation token, got `use_distillation_token=False`. Set both or "
                "neither."
            )

    def validate_positions(self) -> None:
        """Positions can be made at this width, and resampled as wanted."""
        divisor = {"learned_2d": 2, "sincos": 4}.get(self.position_embedding, 1)
        if self.hidden_size % divisor:
            raise ValueError(
                f"`hidden_size` must be a multiple of {divisor} for `{self.position_embedding}` positions, got "
                f"{self.hidden_size}. Change it."
            )
        if self.position_embedding == "learned_2d" and self.position_resampling == "linear_1d":
            raise ValueError(
                "`learned_2d` positions are resampled along rows and columns, got `position_resampling='linear_1d'`, along "
                "the sequence of patches. Use `bilinear` or `bicubic`."
            )

    def validate_masking(self) -> None:
        """Some patches are hidden, some seen; the decoder's heads share its width."""
        assert self.mask_ratio is not None and self.decoder_hidden_size is not None  # filled in above
        assert self.decoder_num_attention_heads is not None
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"`mask_ratio` must be between 0 and 1, got {self.mask_ratio}. MAE hides 0.75, BEiT 0.4.")
        if self.decoder_hidden_size % math.lcm(4, max(self.decoder_num_attention_heads, 1)):
            raise ValueError(
                "`decoder_hidden_size` must be a multiple of 4 and of `decoder_num_attention_heads`, got "
                f"{self.decoder_hidden_size} and {self.decoder_num_attention_heads}. Change one of them."
            )

    def validate_head(self) -> None:
        """The head has a layer, the smoothing is a share."""
        validate_head_settings(self.num_linear_layers, self.label_smoothing)
