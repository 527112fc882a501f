"""Settings of the vision transformer; ViT, DeiT and BEiT are settings, not classes."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...blocks.patch_embed import as_pair


@strict
class VisionTransformerConfig(PreTrainedConfig):
    """Settings of a `VisionTransformerModel`; the defaults are small enough to train in a test.

    Args:
        hidden_size: width of a token; `num_attention_heads` divides it.
        intermediate_size: width inside the MLP, by default 4 * `hidden_size` (Dosovitskiy 2021, table 1).
        hidden_dropout_prob, attention_dropout: in [0, 1).
        drop_path_rate: rate of the last layer, in [0, 1); the first has 0, those between rise evenly (Huang 2016).
        initializer_range: standard deviation of new weights.
        image_size: pixels, one number or (height, width): the picture size, or with a `pixel_mask` the largest one.
        patch_size, patch_stride: pixels, one number or (height, width); `patch_stride` is by default `patch_size`,
            less for overlapping patches.
        stem_channels: output channels of 3x3 convolutions before the patches (Xiao 2021); empty for none.
        stem_strides: stride of each of them, one number or (rows, columns); all 2 by default.
        use_cls_token: whether a learned token comes first.
        use_distillation_token: whether a second one follows it (DeiT, Touvron 2021, section 4).
        use_mask_token: whether there is a learned stand-in for patches hidden by `bool_masked_pos` (BEiT).
        position_embedding: `learned` is added to the tokens; `none` for BEiT, which has relative positions only.
        relative_position_bias: a learned number a head and offset, added to the attention scores: one table a layer,
            one for all layers, or none.
        layer_scale_init_value: start of the factors on each residual branch (BEiT 0.1, Bao 2022), 0 for none.
        qkv_bias, key_bias: whether the attention's projections have a bias; BEiT has none on the keys.
        final_norm: whether `last_hidden_state` is normalised; by default unless `pooling` is `mean`, as BEiT has it.
        pooling: `pooler_output` is the CLS token through a linear layer and tanh (`cls`, ViT and DeiT), as it is
            (`cls_token`), the normalised mean of the patches (`mean`, BEiT), or None (`none`).

    Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; Touvron et al. 2021 (DeiT),
        https://arxiv.org/abs/2012.12877; Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254; Xiao et al. 2021,
        https://arxiv.org/abs/2106.14881
    """

    model_type = "hf_vlm_vit"

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
    use_cls_token: bool = True
    use_distillation_token: bool = False
    use_mask_token: bool = False
    position_embedding: Literal["learned", "none"] = "learned"
    relative_position_bias: Literal["none", "per_layer", "shared"] = "none"
    layer_scale_init_value: float | int = 0.0
    qkv_bias: bool = True
    key_bias: bool = True
    final_norm: bool | None = None
    pooling: Literal["none", "cls", "cls_token", "mean"] = "none"

    def __post_init__(self, **kwargs: object) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.patch_stride is None:
            self.patch_stride = self.patch_size
        if self.stem_strides is None:
            self.stem_strides = [2] * len(self.stem_channels)
        if self.final_norm is None:
            self.final_norm = self.pooling != "mean"
        super().__post_init__(**kwargs)

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens come before the patches."""
        return int(self.use_cls_token) + int(self.use_distillation_token)

    def validate_heads(self) -> None:
        """Heads share the width evenly."""
        if self.hidden_size % self.num_attention_heads:
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
            if patch_size[axis] > image_size[axis]:
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
        if self.use_distillation_token and self.relative_position_bias != "none":
            raise ValueError(
                "`relative_position_bias` is defined for patches and a CLS token, got a distillation token as well. "
                "Set `use_distillation_token=False`."
            )
