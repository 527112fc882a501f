"""TrOCR as two ONNX graphs.

encoder.onnx   pixel_values (, pixel_mask) -> cross_key_0, cross_value_0, ...: the picture as the decoder's layers meet it,
               projected once (; picture_mask; spelling, the CTC head's log-probabilities)
decoder.onnx   token_ids, past_key_0, past_value_0, ..., what the encoder gave -> logits, present_key_0, ...
               for any number of tokens behind any past: a prompt, a draft, or the newest token
"""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import EncoderDecoderCache

from hf_vlm.blocks.patch_embed import as_pair
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration, cross_attention_size
from hf_vlm.parts.language_model import accepted_arguments
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.sharing.onnx.generation import (
    cache_of,
    check_dynamic_cache,
    generation_settings,
    past_names,
    tensors_of,
)
from hf_vlm.sharing.onnx.graphs import OnnxGraph


class _Encoder(nn.Module):
    """Pictures as the decoder's cross-attention meets them, and as the CTC head spells them."""

    def __init__(self, model: TrOCREncoderDecoderForConditionalGeneration, with_spelling: bool) -> None:
        super().__init__()
        self.model, self.with_spelling = model, with_spelling

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        seen = self.model.encoder(pixel_values, pixel_mask)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.zeros(len(pixel_values), 1, dtype=torch.long)
        self.model.decoder(  # what it makes of the token is dropped from the graph
            input_ids=start, encoder_hidden_states=seen.last_hidden_state, cache=cache, use_cache=True, return_dict=True
        )
        given = tensors_of(cache.cross_attention_cache, "cross")
        if seen.attention_mask is not None:
            given["picture_mask"] = seen.attention_mask.bool()
        if self.with_spelling:
            given["spelling"] = self.model.ctc_head(seen.last_hidden_state).float().log_softmax(dim=-1)
        return given


class _Decoder(nn.Module):
    """Tokens behind a past, with the picture's keys and values."""

    def __init__(self, model: TrOCREncoderDecoderForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.width = cross_attention_size(model.config)
        self.takes_positions = "position_ids" in accepted_arguments(model.decoder)

    def forward(self, token_ids: torch.Tensor, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        cache = EncoderDecoderCache(cache_of(tensors, "past"), cache_of(tensors, "cross"))
        cache.is_updated = dict.fromkeys(range(len(cache.cross_attention_cache.layers)), True)
        batch, _, num_picture_tokens, _ = tensors["cross_key_0"].shape
        arguments: dict[str, Any] = {}
        if self.takes_positions:
            seen = tensors["past_key_0"].shape[2]
            arguments["position_ids"] = torch.arange(token_ids.shape[1])[None] + seen
        outputs = self.decoder(
            input_ids=token_ids,
            # Its keys and values are in the cache: only its shape is read.
            encoder_hidden_states=torch.zeros(batch, num_picture_tokens, self.width),
            encoder_attention_mask=tensors.get("picture_mask"),
            cache=cache,
            use_cache=True,
            return_dict=True,
            **arguments,
        )
        return {"logits": outputs.logits.float(), **tensors_of(outputs.cache.self_attention_cache, "present")}


def trocr_graphs(model: Any, processor: Any) -> tuple[list[OnnxGraph], dict[str, Any], list[str]]:
    """The two graphs of a reader, what its runtime must know, and notes.

    Where the processor pads lines to a common width, and the encoder takes their mask, pictures may have any width up to the
    configured one; elsewhere they have the configured size.

    Raises:
        ValueError: if a generation setting is not known, or the decoder's cache is of another kind.
    """
    config = model.config
    generation, notes = generation_settings(model, prompt_length=1)
    size = configured_image_size(config.vision_config)
    channels = getattr(config.vision_config, "num_channels", 3)
    pads = processor is not None and "pixel_mask" in processor.image_processor.model_input_names
    takes_mask = "pixel_mask" in accepted_arguments(model.encoder.vision_model)
    if pads and not takes_mask:
        raise ValueError(
            "A vision encoder that takes `pixel_mask` is wanted where the image processor pads lines, got "
            f"`{config.vision_config.model_type}`. Use an image processor that gives pictures of one size."
        )
    step = None
    if pads:
        size = (processor.image_processor.size["height"], processor.image_processor.size["width"])
        step = _step_width(config.vision_config)
    encoder = _Encoder(model, bool(config.ctc_decoding_weight))

    lines = [_picture(2, channels, size, None), _picture(3, channels, size, None)]
    if step is not None:
        first, stride = step  # pixels of the first patch, and of each further one
        most = (size[1] - first) // stride
        # The whole width is not traced: the exporter would take it for the only one.
        widths = (first + most // 2 * stride, first + most * stride)
        lines = [_picture(2, channels, size, widths[0]), _picture(3, channels, size, widths[1])]
    given = [encoder(**line) for line in lines]
    check_dynamic_cache(cache_of(given[0], "cross"), config.text_config.model_type)
    num_layers = sum(name.startswith("cross_key_") for name in given[0])
    cross = past_names(num_layers, "cross")
    cross_axes = {name: {0: "batch", 2: "picture_tokens"} for name in cross}
    cross_axes |= {"picture_mask": {0: "batch", 1: "picture_tokens"}, "spelling": {0: "batch", 1: "picture_tokens"}}
    is_open = step is not None
    encoder_graph = OnnxGraph(
        "encoder",
        encoder,
        lines[0],
        lines[1],
        {
            "pixel_values": {0: "batch", **({3: "width"} if is_open else {})},
            "pixel_mask": {0: "batch", **({2: "width"} if is_open else {})},
            **cross_axes,
        },
    )
    decoder = _Decoder(model)
    states = [{name: value for name, value in one.items() if name != "spelling"} for one in given]
    text_axes = {0: "batch", 1: "tokens"}
    past_axes = {name: {0: "batch", 2: "past_tokens"} for name in past_names(num_layers, "past")}
    present_axes = {name: {0: "batch", 2: "all_tokens"} for name in past_names(num_layers, "present")}
    vocabulary = model.decoder.get_input_embeddings().weight.shape[0]
    decoder_graph = OnnxGraph(
        "decoder",
        decoder,
        _decoder_example(decoder, states[0], vocabulary, past=3, new=2),
        _decoder_example(decoder, states[1], vocabulary, past=6, new=1),
        {"token_ids": text_axes, "logits": text_axes, **past_axes, **present_axes, **cross_axes},
    )
    settings = {
        "image_size": list(size),
        "width_steps": step,
        "start_token_id": config.decoder_start_token_id,
        "blank_token_id": config.pad_token_id or 0,
        "ctc_decoding_weight": config.ctc_decoding_weight,
        "max_positions": getattr(config.text_config, "max_position_embeddings", None),
        "generation": generation,
    }
    start = model.generation_config.decoder_start_token_id
    if start is not None:
        settings["start_token_id"] = start
    return [encoder_graph, decoder_graph], settings, notes


def _step_width(config: Any) -> list[int]:
    """Pixels across the first patch of a row, and from one to the next."""
    patch = as_pair(config.patch_size)[1]
    return [patch, as_pair(getattr(config, "patch_stride", None) or patch)[1]]


def _picture(batch: int, channels: int, size: tuple[int, int], width: int | None) -> dict[str, torch.Tensor]:
    """Noise of the configured size; of another width with a mask that ends earlier in the last row."""
    if width is None:
        return {"pixel_values": torch.randn(batch, channels, *size)}
    mask = torch.ones(batch, size[0], width, dtype=torch.long)
    mask[-1, :, (width + 1) // 2 :] = 0
    return {"pixel_values": torch.randn(batch, channels, size[0], width) * mask[:, None], "pixel_mask": mask}


def _decoder_example(
    decoder: _Decoder, state: dict[str, torch.Tensor], vocabulary: int, past: int, new: int
) -> dict[str, torch.Tensor]:
    """Tokens behind a past that the decoder made itself."""
    batch = len(state["cross_key_0"])
    heads, width = state["cross_key_0"].shape[1], state["cross_key_0"].shape[3]
    empty = {
        name.replace("cross", "past"): torch.zeros(batch, heads, 0, width)
        for name in state
        if name.startswith("cross_")
    }
    ids = torch.randint(vocabulary, (batch, past + new))
    outputs = decoder(ids[:, :past], **empty, **state)
    kept = {
        name.replace("present", "past"): value.clone() for name, value in outputs.items() if name.startswith("present")
    }
    return {"token_ids": ids[:, past:], **kept, **state}
