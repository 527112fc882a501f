"""What `generate` asks of a LLaVA: pictures that enter with the prompt, caches and masks of any language model."""

from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig
from transformers.masking_utils import create_masks_for_generate

from ...parts.language_model import check_static_cache


class PictureGenerationMixin(GenerationMixin):
    """`GenerationMixin` of a model with `language_model`, `vision_features` and `config.image_token_id`."""

    _checked_cache_length = 0

    def _prepare_static_cache(
        self, cache_implementation: str, batch_size: int, max_cache_len: int, **kwargs: Any
    ) -> Any:
        """As transformers', for a language model that is right with one; tried once for a length."""
        if max_cache_len > self._checked_cache_length:
            check_static_cache(self.language_model, max_cache_len)
            self._checked_cache_length = max_cache_len
        return super()._prepare_static_cache(
            cache_implementation=cache_implementation, batch_size=batch_size, max_cache_len=max_cache_len, **kwargs
        )

    def create_masks_for_generate(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> Any:
        """The language model's own masks for a static cache, where it makes its own; transformers' otherwise."""
        make = getattr(self.language_model, "create_masks_for_generate", create_masks_for_generate)
        return make(config.get_text_config(), *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs of one decoding step: pictures enter with the prompt."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        cache = inputs.get("cache")
        if not is_first_iteration and cache is not None:
            inputs.pop("image_features", None)
            if all(getattr(cache, "is_linear", None) or [False]):  # a recurrence has its past in its state
                inputs.pop("attention_mask", None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Rows for beams: a row's pictures, however many, go with each of its copies, seen once."""
        pictures = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_features")}
        features = pictures["image_features"]
        if expand_size > 1 and pictures["pixel_values"] is not None:
            features = self.vision_features(pictures["pixel_values"])
        if expand_size > 1 and features is not None and input_ids is not None:
            places = input_ids.eq(self.config.image_token_id).sum(dim=1) // features.shape[1]
            of_rows = features.split(places.tolist())
            features = torch.cat([part for part in of_rows for _ in range(expand_size)])
        ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if features is not None:
            expanded["image_features"] = features
        elif pictures["pixel_values"] is not None:
            expanded["pixel_values"] = pictures["pixel_values"]
        return ids, expanded
