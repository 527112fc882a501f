"""Tiny random visual tokenizers saved as folders, and pictures for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_vlm import DVAEConfig, DVAEImageProcessor, DVAEModel, VQVAEConfig, VQVAEImageProcessor, VQVAEModel


def tiny_vqvae(**settings) -> VQVAEModel:
    """8 x 8 pixels to 2 x 2 of 64 codes."""
    stages = {"hidden_channels": (8, 8), "num_residual_blocks": (0, 0)}
    config = VQVAEConfig(**{"image_size": 8, "code_dim": 4, **stages, **settings})
    model = VQVAEModel(config).eval()
    with torch.no_grad():
        latents = model.encoder(2 * torch.rand(64, config.num_channels, 8, 8) - 1)
        if config.discretisation == "codebook":  # codewords where latents are: codes differ from picture to picture
            model.codebook.codewords.copy_(latents.movedim(1, -1).reshape(-1, 4)[:64])
    return model


def tiny_dvae(**settings) -> DVAEModel:
    """8 x 8 pixels to 4 x 4 of 64 codes."""
    return DVAEModel(DVAEConfig(image_size=8, group_channels=8, num_groups=2, code_dim=8, **settings)).eval()


def saved(model: VQVAEModel | DVAEModel, folder: Path, **processor_settings) -> str:
    """The folder, with the model and its image processor in it."""
    model.save_pretrained(folder)
    settings = {"size": {"height": 8, "width": 8}, "do_convert_grayscale": model.config.num_channels == 1}
    processor_class = VQVAEImageProcessor if isinstance(model, VQVAEModel) else DVAEImageProcessor
    processor_class(**{**settings, **processor_settings}).save_pretrained(folder)
    return str(folder)


def random_pictures(number: int, size: tuple[int, int] = (12, 10)) -> list[Image.Image]:
    """Pictures of mode RGB, (width, height) px."""
    generator = np.random.default_rng(0)
    shape = (number, size[1], size[0], 3)
    return [Image.fromarray(pixels) for pixels in generator.integers(0, 256, shape, dtype=np.uint8)]
