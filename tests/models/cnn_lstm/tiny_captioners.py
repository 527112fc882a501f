"""Tiny captioners and batches that the tests of the CNN + LSTM captioner share."""

from typing import Any

import torch

from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration

PAD, START, END = 0, 1, 2
VOCAB_SIZE = 32
SIZE = (48, 32)  # pixels, (height, width)
GRID = (3, 2)  # of the encoder below, which halves a picture four times

RESNET = {
    "model_type": "resnet",
    "embedding_size": 6,
    "hidden_sizes": (6, 8, 10),
    "depths": (1, 1, 1),
    "layer_type": "basic",
}
DECODER = {
    "vocab_size": VOCAB_SIZE,
    "embedding_size": 16,
    "hidden_size": 16,
    "attention_size": 16,
    "dropout": 0.0,
    "initializer_range": 0.2,
}


def tiny_config(attention: str = "none", vision: dict[str, Any] | None = None, **settings: Any) -> CnnLstmConfig:
    """A decoder of few units on a convolutional encoder, or on that of `vision`."""
    return CnnLstmConfig(**{"vision_config": dict(vision or RESNET), "attention": attention, **DECODER, **settings})


def tiny_captioner(attention: str = "none", std: float = 0.3, **settings: Any) -> CnnLstmForConditionalGeneration:
    """A captioner whose weights, biases and running statistics too, are random and matter."""
    torch.manual_seed(0)
    model = CnnLstmForConditionalGeneration(tiny_config(attention, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=std)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def caption_batch(
    num_pictures: int = 3, size: tuple[int, int] = SIZE, vocab_size: int = VOCAB_SIZE, num_channels: int = 3
) -> dict[str, torch.Tensor]:
    """Pictures, and labels of six, five or four tokens, the last of them the end token."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, vocab_size, (num_pictures, 6), generator=generator)
    for row in range(num_pictures):
        labels[row, 5 - row % 3] = END
        labels[row, 6 - row % 3 :] = -100
    # Noise on a colour: of noise alone the mean of a map knows nothing.
    colors = torch.randn(num_pictures, num_channels, 1, 1, generator=generator)
    noise = torch.randn(num_pictures, num_channels, *size, generator=generator)
    return {"pixel_values": 2 * colors + 0.5 * noise, "labels": labels}
