"""Settings of the Swin transformer."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from ...blocks.classification import validate_head_settings
from ...blocks.patch_embed import as_pair
from ...parts.hub_config import HubConfig
from ...parts.settings import check_ranges

# Table 7 and section 4 of the paper: width, depth, heads and drop path rate (for ImageNet-1K) of each published size.
PRESETS: dict[str, dict[str, Any]] = {
    "swin-t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_attention_heads": (3, 6, 12, 24), "drop_path_rate": 0.2},
    "swin-s": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_attention_heads": (3, 6, 12, 24), "drop_path_rate": 0.3},
    "swin-b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_attention_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
    "swin-l": {
        "embed_dim": 192,
        "depths": (2, 2, 18, 2),
        "num_attention_heads": (6, 12, 24, 48),
        "drop_path_rate": 0.2,
    },
}


@strict
class SwinTransformerConfig(BackboneConfigMixin, HubConfig):
    """Settings of a `SwinTransformerModel`; the defaults are small enough to train in a test.

    Args:
        embed_dim: width of a token of the first stage; each later stage has twice the width on half the rows and columns.
        depths, num_attention_heads: layers and heads of each stage.
        window_size: patches along a window, one number or (rows, columns); even layers shift their windows by half of it.
        mlp_ratio: width inside the MLP, as a multiple of the stage's.
        hidden_dropout_prob, attention_dropout: in [0, 1).
        drop_path_rate: rate of the last layer, in [0, 1); the first has 0, those between rise evenly (Huang 2016).
        initializer_range: standard deviation of new weights.
        image_size: pixels, one number or (height, width). Pictures of any other size are taken as they are, unless there
            are absolute positions.
        patch_size: pixels, one number or (height, width).
        use_absolute_positions: whether a learned position is added to each patch (the paper's ablation, table 4).
        num_linear_layers: linear layers of the classification head, tanh between them.
        label_smoothing: the share of a class label spread evenly over all classes in training, in [0, 1).
        out_features, out_indices: which of `stage_names` a `SwinTransformerBackbone` gives, by name or number.

    Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030
    """

    model_type = "hf_vlm_swin"

    embed_dim: int = 16
    depths: list[int] | tuple[int, ...] = (2, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4)
    window_size: int | list[int] | tuple[int, ...] = 4
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 32
    patch_size: int | list[int] | tuple[int, ...] = 2
    use_absolute_positions: bool = False
    num_linear_layers: int = 1
    label_smoothing: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stem", *(f"stage{stage + 1}" for stage in range(len(self.depths)))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "SwinTransformerConfig":
        """The settings of a published size.

        Args:
            name: `swin-t`, `swin-s`, `swin-b` or `swin-l`; patches of 4 pixels, windows of 7, pictures of 224.
            settings: what is to differ, such as `image_size=384, window_size=12`.

        Raises:
            ValueError: if there is no such size.
        """
        if name not in PRESETS:
            raise ValueError(f"A published size is wanted, one of {', '.join(PRESETS)}, got `{name}`. Choose one.")
        published = {"image_size": 224, "patch_size": 4, "window_size": 7, **PRESETS[name]}
        return cls(**{**published, **settings})

    @property
    def hidden_size(self) -> int:
        """Width of a token of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def num_hidden_layers(self) -> int:
        """How many stages there are: one recorded hidden state each, as in transformers' Swin."""
        return len(self.depths)

    def validate_ranges(self) -> None:
        """Widths and counts are positive, rates are shares, the activation is known."""
        check_ranges(
            self,
            positive=("embed_dim", "mlp_ratio", "num_channels"),
            shares=("hidden_dropout_prob", "attention_dropout", "drop_path_rate"),
            activation="hidden_act",
        )

    def validate_stages(self) -> None:
        """Each stage has layers, and heads that share its width evenly."""
        if not self.depths or len(self.depths) != len(self.num_attention_heads):
            raise ValueError(
                "`depths` and `num_attention_heads` must have one entry a stage, got "
                f"{list(self.depths)} and {list(self.num_attention_heads)}. Give as many of one as of the other."
            )
        if min(self.depths) < 1 or min(self.num_attention_heads) < 1:
            raise ValueError(
                "Every stage must have a layer and a head, got "
                f"{list(self.depths)} layers and {list(self.num_attention_heads)} heads. Leave the stage out."
            )
        for stage, heads in enumerate(self.num_attention_heads):
            width = self.embed_dim * 2**stage
            if width % heads:
                raise ValueError(
                    f"The width of a stage must be a multiple of its heads, got {width} for {heads} heads in stage "
                    f"{stage + 1}. Change `embed_dim` or `num_attention_heads`."
                )

    def validate_sizes(self) -> None:
        """Sizes are one positive number or two, and the picture holds a patch."""
        for name in ("image_size", "patch_size", "window_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2 or min(as_pair(value)) < 1:
                raise ValueError(f"`{name}` must be one positive number or a pair, got {value!r}. Correct it.")
        if any(size < patch for size, patch in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True)):
            raise ValueError(
                f"`patch_size` must not exceed `image_size`, got {self.patch_size} for pictures of {self.image_size}. "
                "Use smaller patches or larger pictures."
            )

    def validate_head(self) -> None:
        """The head has a layer, the smoothing is a share."""
        validate_head_settings(self.num_linear_layers, self.label_smoothing)
