"""Configuration of LLaVA: a vision encoder, a projector, a causal language model, and which vision tokens it is shown."""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from ...parts.hub_config import HubConfig

_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_VICUNA = {"model_type": "llama", "vocab_size": 32001, "max_position_embeddings": 4096, "pad_token_id": 0}
_7B = _VICUNA  # the Llama configuration's own defaults are those of 7B
_13B = {
    **_VICUNA,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}

# Liu et al. 2023a, section 5: CLIP ViT-L/14 at 224 pixels, a linear projector. 2023b, section 3.3: at 336, an MLP of two layers.
PRESETS: dict[str, dict[str, Any]] = {
    "llava-7b": {"vision_config": {**_CLIP_LARGE, "image_size": 224}, "text_config": _7B, "num_linear_layers": 1},
    "llava-13b": {"vision_config": {**_CLIP_LARGE, "image_size": 224}, "text_config": _13B, "num_linear_layers": 1},
    "llava-1.5-7b": {"vision_config": {**_CLIP_LARGE, "image_size": 336}, "text_config": _7B, "num_linear_layers": 2},
    "llava-1.5-13b": {"vision_config": {**_CLIP_LARGE, "image_size": 336}, "text_config": _13B, "num_linear_layers": 2},
}


@strict
class LlavaVisionLanguageConfig(HubConfig):
    """Configuration of a whole LLaVA: any vision encoder and any causal language model of the Hub.

    Args:
        vision_config: of the vision encoder; a dict needs its `model_type`.
        text_config: of the causal language model; a dict needs its `model_type`.
        image_size: [height, width] in pixels of the pictures it is given; None means the vision encoder's own.
        image_aspect_ratio: how its processor makes them square, "pad" or "square"; the model itself never asks.
        vision_feature_layer: -1 for the vision encoder's last output, after its final norm; any other number is an index into
            its `hidden_states`: -2 is LLaVA's choice for CLIP.
        vision_feature_select_strategy: "default" shows the patches alone, "full" also the tokens before them (CLS, ...).
        vision_hidden_size: width of a vision token; None asks the vision encoder when a model is made.
        num_prefix_tokens: tokens in front of its patches; None asks it.
        num_image_tokens: tokens that the language model reads for one picture; None asks it.
        num_linear_layers: of the projector: 1 as in LLaVA, 2 as in LLaVA-1.5.
        projector_hidden_act: activation between them.
        label_smoothing: share of the target spread over the vocabulary, in [0, 1); 0 is the papers' setting. Not to be
            combined with the Trainer's `label_smoothing_factor`.
        image_token_id: the token that stands for a picture's place; there are `num_image_tokens` of it a picture.

    Source: Liu et al. 2023a, https://arxiv.org/abs/2304.08485; Liu et al. 2023b (1.5), https://arxiv.org/abs/2310.03744
    """

    model_type = "hf_vlm_llava"
    keys_to_ignore_at_inference = ["cache"]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="hf_vlm_vit"),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 128,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
            },
        ),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_size: list[int] | tuple[int, ...] | None = None
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    vision_hidden_size: int | None = None
    num_prefix_tokens: int | None = None
    num_image_tokens: int | None = None
    num_linear_layers: int = 2
    projector_hidden_act: str = "gelu"
    label_smoothing: float | int = 0.0
    image_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        text: Any = self.text_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(text, name, None))
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "LlavaVisionLanguageConfig":
        """The settings of a published model, the row of the image token included.

        Args:
            name: `llava-7b`, `llava-13b`, `llava-1.5-7b` or `llava-1.5-13b`.
            settings: what is to differ.

        Raises:
            ValueError: if there is no such model.
        """
        if name not in PRESETS:
            raise ValueError(f"A published model is wanted, one of {', '.join(PRESETS)}, got `{name}`. Choose one.")
        published = {"image_token_id": 32000, "vision_feature_layer": -2, **copy.deepcopy(PRESETS[name])}
        return cls(**{**published, **settings})

    def validate_projector(self) -> None:
        """The projector has a layer or more, and an activation that there is."""
        if self.num_linear_layers < 1:
            raise ValueError(f"`num_linear_layers` must be 1 or more, got {self.num_linear_layers}. LLaVA-1.5 has 2.")
        if self.projector_hidden_act not in ACT2FN:
            raise ValueError(
                "`projector_hidden_act` must be one of transformers' activations, got "
                f"{self.projector_hidden_act!r}. LLaVA-1.5 uses `gelu`."
            )

    def validate_label_smoothing(self) -> None:
        """A share of the target, below all of it."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}. The papers use 0.")

    def validate_image_size(self) -> None:
        """The picture has a height and a width."""
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"`image_size` must be [height, width] in pixels, got {self.image_size!r}. Correct it.")
