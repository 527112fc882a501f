"""Which parts train: those that are named, and no other."""

import pytest

from hf_vlm.training.freezing import freeze
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner


@pytest.mark.parametrize("roles", [["decoder"], ["projector", "vision"], []])
def test_named_parts_train_and_no_other_whatever_trained_before(roles):
    model = tiny_captioner()
    prefixes = {"vision": "encoder.vision_model.", "projector": "projector.", "decoder": "decoder."}
    model.decoder.requires_grad_(False)
    freeze(model, roles)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    wanted = tuple(prefixes[role] for role in roles)
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(wanted)}
    assert bool(trained) == bool(roles)
