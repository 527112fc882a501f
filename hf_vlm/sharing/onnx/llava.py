"""LLaVA as three ONNX graphs, for any causal language model that keeps keys and values.

vision.onnx           pixel_values -> image_features: pictures as words, through encoder and projector
embedding.onnx        input_ids -> inputs_embeds; the runtime puts the pictures' in the image tokens' places
language_model.onnx   inputs_embeds, attention_mask, position_ids, past_key_0, ... -> logits of the last token, present_key_0, ...
"""

from typing import Any

import torch
from torch import nn

from hf_vlm.parts.language_model import accepted_arguments
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.sharing.onnx.generation import cache_of, check_dynamic_cache, generation_settings, past_names, tensors_of
from hf_vlm.sharing.onnx.graphs import OnnxGraph


class _Vision(nn.Module):
    """Pictures as words."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_features": self.model.projector(self.model.vision_features(pixel_values))}


class _Embedding(nn.Module):
    """Words as vectors, scaled where the language model's own table scales them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"inputs_embeds": self.embedding(input_ids)}


class _LanguageModel(nn.Module):
    """Logits of the next token, and keys and values of all so far."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.language_model
        accepted = accepted_arguments(model.language_model)
        self.takes_positions = "position_ids" in accepted
        self.can_leave_out = "logits_to_keep" in accepted

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        **past: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        arguments: dict[str, Any] = {"logits_to_keep": 1} if self.can_leave_out else {}
        if self.takes_positions:
            arguments["position_ids"] = position_ids
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=cache_of(past, "past"),
            use_cache=True,
            return_dict=True,
            **arguments,
        )
        return {"logits": outputs.logits[:, -1].float(), **tensors_of(outputs.cache, "present")}


def llava_graphs(model: Any) -> tuple[list[OnnxGraph], dict[str, Any], list[str]]:
    """The three graphs of an assistant, what its runtime must know, and notes.

    Raises:
        ValueError: if a generation setting is not known, or the language model's cache is of another kind.
    """
    config = model.config
    generation, notes = generation_settings(model, prompt_length=None)
    height, width = config.image_size or configured_image_size(config.vision_config)
    channels = getattr(config.vision_config, "num_channels", 3)
    pictures = [{"pixel_values": torch.rand(batch, channels, height, width)} for batch in (2, 3)]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [{"input_ids": torch.randint(vocabulary, (batch, tokens))} for batch, tokens in ((2, 5), (3, 4))]
    language_model = _LanguageModel(model)
    examples = [
        _step_example(model, language_model, batch=2, past=3, new=4),
        _step_example(model, language_model, batch=3, past=6, new=1),
    ]
    num_layers = sum(name.startswith("past_key_") for name in examples[0])
    text_axes = {0: "batch", 1: "tokens"}
    axes: dict[str, dict[int, str]] = {
        "inputs_embeds": text_axes,
        "position_ids": text_axes,
        "attention_mask": {0: "batch", 1: "all_tokens"},
        "logits": {0: "batch"},
        **{name: {0: "batch", 2: "past_tokens"} for name in past_names(num_layers, "past")},
        **{name: {0: "batch", 2: "all_tokens"} for name in past_names(num_layers, "present")},
    }
    graphs = [
        OnnxGraph(
            "vision",
            _Vision(model),
            pictures[0],
            pictures[1],
            {"pixel_values": {0: "pictures"}, "image_features": {0: "pictures"}},
        ),
        OnnxGraph("embedding", _Embedding(model), ids[0], ids[1], {"input_ids": text_axes, "inputs_embeds": text_axes}),
        OnnxGraph("language_model", language_model, examples[0], examples[1], axes),
    ]
    settings = {
        "image_size": [height, width],
        "image_token_id": config.image_token_id,
        "num_image_tokens": config.num_image_tokens,
        "generation": generation,
    }
    return graphs, settings, notes


def _step_example(
    model: Any, language_model: _LanguageModel, batch: int, past: int, new: int
) -> dict[str, torch.Tensor]:
    """Embeddings behind a past that the language model made itself, the first row padded on the left."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    embeds = model.get_input_embeddings()(torch.randint(vocabulary, (batch, past + new)))
    mask = torch.ones(batch, past + new, dtype=torch.long)
    mask[0, 0] = 0
    embeds = embeds * mask[..., None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    arguments = {"position_ids": positions[:, :past]} if language_model.takes_positions else {}
    outputs = model.language_model(
        inputs_embeds=embeds[:, :past], attention_mask=mask[:, :past], use_cache=True, return_dict=True, **arguments
    )
    cache = getattr(outputs, "cache", None)
    check_dynamic_cache(cache, model.language_model.config.model_type)
    example = {"inputs_embeds": embeds[:, past:], "attention_mask": mask}
    if language_model.takes_positions:
        example["position_ids"] = positions[:, past:]
    return {**example, **tensors_of(cache, "past")}
