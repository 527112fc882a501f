"""What a masked vision transformer is to predict: the codes that a visual tokenizer gives to its patches.

Source: Bao et al. 2022 (BEiT), section 2.1 and 2.3, https://arxiv.org/abs/2106.08254
"""

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_vlm.parts.checkpoint_files import naming_faults, read_config
from hf_vlm.training.image_models import PixelStatistics


class CodeTargets:
    """A tokenizer that looks at the pictures that a model learns from, one code a patch.

    A picture is scaled so that the tokenizer's grid is that of the patches: BEiT's tokenizer, of 8 pixels a code, sees
    112 x 112 pixels where the model sees 224 x 224 in patches of 16.

    Args:
        tokenizer: with `encode`, `config.num_codes` and `config.downsampling`.
        statistics: what the model's image processor did to the pixels.
        grid: (rows, columns) of the model's patches.
    """

    def __init__(self, tokenizer: PreTrainedModel, statistics: PixelStatistics, grid: tuple[int, int]) -> None:
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        side = tokenizer.config.downsampling
        self.size = (grid[0] * side, grid[1] * side)
        self.scale = torch.tensor(statistics.scale, dtype=torch.float32)[:, None, None]
        self.offset = torch.tensor(statistics.offset, dtype=torch.float32)[:, None, None]

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Int64 (batch, rows, columns): the code of each patch of pictures as the model sees them."""
        device = pixel_values.device
        self.tokenizer.to(device)
        levels = (pixel_values.float() - self.offset.to(device)) / self.scale.to(device)  # [0, 255]
        pixels = levels / 255
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True)
        with torch.autocast(device.type, enabled=False):
            return self.tokenizer.encode(pixels.clamp(0, 1))


def load_code_targets(
    name: str, model: PreTrainedModel, statistics: PixelStatistics, grid: tuple[int, int]
) -> CodeTargets:
    """The targets that a saved tokenizer gives to a model.

    Args:
        name: folder or Hub name of the tokenizer.
        model: what is to predict its codes.
        statistics, grid: as in `CodeTargets`.

    Raises:
        ValueError: if it is no tokenizer with codes, of other channels, or the model predicts another number of codes.
    """
    read_config(name)  # tells of a missing folder by its name
    config = AutoConfig.from_pretrained(name)
    if not hasattr(config, "num_codes") or not hasattr(config, "downsampling"):
        raise ValueError(
            f"`model.tokenizer` must have codes, got `{config.model_type}` in {name}. Name a VQ-VAE or a discrete VAE."
        )
    if config.num_codes != model.config.num_codes:
        raise ValueError(
            f"The model must predict the {config.num_codes} codes of {name}, got `num_codes={model.config.num_codes}`. Set "
            f"`model.config.num_codes={config.num_codes}`."
        )
    if config.num_channels != model.config.num_channels:
        raise ValueError(
            f"Model and tokenizer must see the same channels, got {model.config.num_channels} and {config.num_channels}. "
            "Name another tokenizer."
        )
    with naming_faults(name):
        return CodeTargets(AutoModel.from_pretrained(name, dtype=torch.float32), statistics, grid)
