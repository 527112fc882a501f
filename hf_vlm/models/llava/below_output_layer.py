"""A LLaVA up to its last hidden state, for trainers that make the logits themselves, a few tokens at a time, such as trl's."""

from typing import Any

import torch
from transformers import Cache


class BelowOutputLayer:
    """A LLaVA without its output layer; what it is asked for, or given, otherwise is the model's.

    Args:
        model: the `LlavaVisionLanguageForConditionalGeneration`.
    """

    def __init__(self, model: Any) -> None:
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_model" not in self.__dict__:  # while it is copied, or pickled
            raise AttributeError(name)
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the language model's body gives: `last_hidden_state`, float (batch, tokens, hidden_size), and its cache.

        Args: as of the model's `forward`; `kwargs` go to the body.

        Raises:
            ValueError: as `forward`; or if the language model has no body apart from its output layer.
        """
        body = self._model.language_model.base_model
        if body is self._model.language_model:
            raise ValueError(
                "A language model with its output layer apart is wanted, to make logits of a few tokens at a time, got "
                f"`{body.config.model_type}`. Call the model itself, which gives its `logits`."
            )
        arguments, _ = self._model._language_inputs(
            input_ids, pixel_values, image_features, inputs_embeds, attention_mask, position_ids, cache
        )
        return body(**{**arguments, "return_dict": True, **kwargs})
