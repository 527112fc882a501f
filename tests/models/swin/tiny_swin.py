"""Small Swin transformers whose every weight is random."""

import torch
from transformers import PreTrainedModel

from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.modeling_swin import SwinTransformerModel

TINY = {"embed_dim": 8, "depths": (2, 2), "num_attention_heads": (2, 4), "window_size": 4, "image_size": 32}


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Zero-initialised weights too: one that is put in the wrong place must show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def tiny_swin(model_class: type = SwinTransformerModel, **settings: object) -> PreTrainedModel:
    """A model for 32 x 32 pictures: maps of 16 x 16 and 8 x 8 patches."""
    return randomise(model_class(SwinTransformerConfig(**{**TINY, **settings})))
