"""The whole reader."""
import torch
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from tests.model_contract import Batch, GenerationContract, ModelContract
from tests.models.trocr.tiny_models import line_batch, randomise, tiny_config


class ReaderContract(ModelContract, GenerationContract):
    """What every pair of parts owes: pictures of different widths share a batch."""

    model_class = TrOCREncoderDecoderForConditionalGeneration
    vision: dict = {}
    text: dict = {}

    def config(self):
        return tiny_config(self.vision, self.text)

    def batch(self, model) -> Batch:
        return line_batch()

    def single(self, batch, row):
        width = int(batch["pixel_mask"][row, 0].sum())
        alone = {"pixel_values": batch["pixel_values"][row : row + 1, ..., :width]}
        alone["pixel_mask"] = torch.ones(1, *alone["pixel_values"].shape[-2:], dtype=torch.long)
        length = None
        if "labels" in batch:
            length = int((batch["labels"][row] != -100).sum())
            alone["labels"] = batch["labels"][row : row + 1, :length]
        return alone, slice(0, length)

    def prompt(self, model) -> Batch:
        randomise(model)
        return super().prompt(model)


class TestPostNormReader(ReaderContract):
    """Parts as in the paper."""


class TestPreNormReader(ReaderContract):
    """As in the shipped checkpoint: a convolutional stem, pre-norm layers."""

    vision = {"stem_channels": (4, 8), "stem_strides": (2, 2), "patch_size": (16, 8)}
    text = {"norm_position": "pre", "position_embedding": "sinusoidal", "embedding_norm": False, "scale_embedding": True}
