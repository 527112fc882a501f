"""A projector by itself goes into a model of the same parts, and into no other."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_vlm.training.projector_files import PROJECTOR_FILE, load_projector, save_projector
from tests.models.llava.tiny_llava import CLIP_VISION, GEMMA, tiny_llava


def test_projector_is_the_same_after_a_round_trip(tmp_path):
    torch.manual_seed(1)
    first = tiny_llava()
    torch.manual_seed(2)
    second = tiny_llava()
    others = {name: tensor.clone() for name, tensor in second.state_dict().items() if not name.startswith("projector.")}
    path = save_projector(first, tmp_path)
    assert path == tmp_path / "projector.safetensors"
    assert list(load_file(path)) == ["linears.0.bias", "linears.0.weight", "linears.1.bias", "linears.1.weight"]
    with safe_open(path, "pt") as stored:
        assert stored.metadata() == {
            "format": "pt",
            "vision": "hf_vlm_vit",
            "language": "llama",
            "vision_feature_layer": "-1",
            "vision_feature_select_strategy": "default",
        }
    for place in (path, str(tmp_path)):
        with torch.no_grad():
            second.projector.linears[0].weight.zero_()
        load_projector(second, place)
        for name, tensor in first.projector.state_dict().items():
            assert torch.equal(second.projector.state_dict()[name], tensor), name
    for name, tensor in others.items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_projector_is_taken_out_of_the_weights_of_the_whole_model(tmp_path):
    model = tiny_llava()
    whole = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    stored = load_file(save_projector(model, tmp_path, whole))
    assert len(stored) == 4
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(stored[name], tensor + 1), name


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_linear_layers": 1}, "`num_linear_layers`"),
        ({"vision": {"hidden_size": 8}}, r"`linears\.0\.weight`.*8"),
        ({"text": {"hidden_size": 32}}, r"`linears\.0\.bias`.*32.*24"),
        ({"vision_feature_layer": 0}, "layer -1.*layer 0"),
        ({"vision": CLIP_VISION, "vision_feature_layer": -1}, "`hf_vlm_vit`.*`clip_vision_model`"),
        ({"text": GEMMA}, "`llama`.*`gemma`"),
    ],
)
def test_projector_of_other_parts_is_refused(tmp_path, settings, told):
    save_projector(tiny_llava(), tmp_path)
    model = tiny_llava(**settings)
    before = {name: tensor.clone() for name, tensor in model.projector.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        load_projector(model, tmp_path)
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_file_of_tensors_alone_is_taken_by_its_shapes(tmp_path):
    """As other code writes it: without a word on the parts."""
    model = tiny_llava()
    wanted = {name: torch.randn_like(tensor) for name, tensor in model.projector.state_dict().items()}
    save_file(wanted, tmp_path / "ours.safetensors")
    load_projector(model, tmp_path / "ours.safetensors")
    assert all(torch.equal(model.projector.state_dict()[name], tensor) for name, tensor in wanted.items())


def test_missing_or_damaged_file_is_named(tmp_path):
    model = tiny_llava()
    with pytest.raises(FileNotFoundError, match=PROJECTOR_FILE):
        load_projector(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        load_projector(model, tmp_path / "gone.safetensors")
    path = save_projector(model, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"projector\.safetensors.*Copy it again"):
        load_projector(model, tmp_path)
