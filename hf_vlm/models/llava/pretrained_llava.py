"""Loading a LLaVA: our folders, those of `llava-hf`, and the original layout of LLaVA-1.5."""

import os
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...parts.checkpoint_files import find_file, read_config, read_weights
from ...parts.model_origin import note_origin
from ...parts.pretrained_model import HUB_ARGUMENTS, HubModel
from ...parts.vision_features import load_vision_model
from .configuration_llava import LlavaVisionLanguageConfig
from .weights_llava import (
    check_not_delta,
    config_from_llava,
    config_from_original,
    is_original_layout,
    weights_from_llava,
    weights_from_original,
)


class LlavaVisionLanguagePreTrainedModel(HubModel):
    """What reads the layouts, and what each part is called."""

    config: LlavaVisionLanguageConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    part_paths = {"vision": "vision_model", "projector": "projector", "language": "language_model"}
    resizable = ()
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def foreign_config(cls, config: dict) -> PreTrainedConfig | None:
        """Our config for a `llava-hf` folder."""
        if config.get("model_type") != "llava" or is_original_layout(config):
            return None
        return LlavaVisionLanguageConfig(**config_from_llava(config))

    @classmethod
    def foreign_weights(cls, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a `llava-hf` folder under our names."""
        return weights_from_llava(weights, config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        vision: str | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a folder or Hub repository: ours, `llava-hf`'s, or the original layout of LLaVA-1.5.

        Args:
            vision: for the original layout only, whose folders leave the vision encoder out: Hub name, folder or loaded
                model of the one that `mm_vision_tower` in its config names (openai/clip-vit-large-patch14-336 for 1.5).
            kwargs: as for `HubModel.from_pretrained`.

        Raises:
            ValueError: as `HubModel.from_pretrained`; if the original layout comes without `vision`, or holds differences
                to LLaMA's weights (the released "delta" folders) instead of weights.
        """
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is not None:
            file = find_file(pretrained_model_name_or_path, "config.json", **where)  # an adapter's folder has none
            stored = {} if file is None else read_config(pretrained_model_name_or_path, **where)
            if is_original_layout(stored):
                return cls._from_original(pretrained_model_name_or_path, stored, vision, where, kwargs)
            if vision is not None:
                raise ValueError(
                    "`vision` is for the original layout, whose folders leave the vision encoder out, got it with "
                    f"{pretrained_model_name_or_path}, which has its own. Leave it out."
                )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_original(
        cls,
        name_or_path: str | os.PathLike,
        stored: dict[str, Any],
        vision: str | PreTrainedModel | None,
        where: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> Any:
        if vision is None:
            raise ValueError(
                f"{name_or_path} is in LLaVA's original layout, which leaves the vision encoder out: `vision` is wanted, got "
                f"none. Pass `vision={stored.get('mm_vision_tower')!r}`, or its folder."
            )
        vision_model, _ = load_vision_model(vision)
        config = LlavaVisionLanguageConfig(**config_from_original(stored, vision_model.config))
        weights = read_weights(name_or_path, **where)
        check_not_delta(weights)
        mapped = weights_from_original(weights, config, vision_model.state_dict())
        kwargs.setdefault("dtype", mapped["projector.linears.0.weight"].dtype)  # as a `llava-hf` folder keeps its own
        loading = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        model = super().from_pretrained(None, config=config, state_dict=mapped, **loading)
        loaded = model[0] if isinstance(model, tuple) else model
        note_origin(loaded, name_or_path, **where)
        return model
