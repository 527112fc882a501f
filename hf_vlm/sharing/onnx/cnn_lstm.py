"""The CNN + LSTM captioner as two ONNX graphs, the picture and one word.

encoder.onnx   pixel_values -> hidden, cell: the state before the first word (; features, keys: what attention looks at)
decoder.onnx   token_ids, hidden, cell (, features, keys) -> logits, next_hidden, next_cell (, attention)
"""

from typing import Any

import torch
from torch import nn

from hf_vlm.models.cnn_lstm.lstm_decoder import LstmState
from hf_vlm.parts.vision_features import configured_image_size
from hf_vlm.sharing.onnx.generation import generation_settings
from hf_vlm.sharing.onnx.graphs import OnnxGraph

_STATE_AXES = {1: "batch"}
_AXES = {
    "pixel_values": {0: "batch"},
    "token_ids": {0: "batch"},
    "logits": {0: "batch"},
    "attention": {0: "batch"},
    "features": {0: "batch"},
    "keys": {0: "batch"},
    "hidden": _STATE_AXES,
    "cell": _STATE_AXES,
    "next_hidden": _STATE_AXES,
    "next_cell": _STATE_AXES,
}


class _Encoder(nn.Module):
    """Pictures as the state before the first word."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.model.encoder(pixel_values).last_hidden_state
        state = self.model.decoder._first_state(self.model.projector(features), features)
        given = {"hidden": state.hidden, "cell": state.cell}
        if state.features is not None:
            given |= {"features": state.features, "keys": state.keys}
        return given


class _Decoder(nn.Module):
    """One word."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        cell: torch.Tensor,
        features: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        outputs = self.decoder(token_ids, state=LstmState(hidden, cell, features=features, keys=keys))
        given = {
            "logits": outputs.logits[:, -1].float(),
            "next_hidden": outputs.state.hidden,
            "next_cell": outputs.state.cell,
        }
        if outputs.attentions is not None:
            given["attention"] = outputs.attentions[:, -1]
        return given


def captioner_graphs(model: Any) -> tuple[list[OnnxGraph], dict[str, Any], list[str]]:
    """The two graphs of a captioner, what its runtime must know, and notes; for pictures of the configured size.

    Raises:
        ValueError: if a generation setting is not known.
    """
    config = model.config
    generation, notes = generation_settings(model, prompt_length=1)
    height, width = configured_image_size(config.vision_config)
    channels = getattr(config.vision_config, "num_channels", 3)
    encoder = _Encoder(model)
    pictures = [{"pixel_values": torch.randn(batch, channels, height, width)} for batch in (2, 3)]
    states = [encoder(**one) for one in pictures]
    examples = [
        {"token_ids": torch.randint(config.vocab_size, (len(one["pixel_values"]), 1)), **state}
        for one, state in zip(pictures, states, strict=True)
    ]
    start = model.generation_config.decoder_start_token_id
    settings = {
        "image_size": [height, width],
        "start_token_id": config.decoder_start_token_id if start is None else start,
        "generation": generation,
    }
    graphs = [
        OnnxGraph("encoder", encoder, pictures[0], pictures[1], _AXES),
        OnnxGraph("decoder", _Decoder(model), examples[0], examples[1], _AXES),
    ]
    return graphs, settings, notes
