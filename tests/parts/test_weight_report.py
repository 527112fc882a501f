import hashlib
import json

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_vlm.parts.weight_report import PartReport, WeightReport, describe_part, hash_weights


def make_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def make_report() -> tuple[WeightReport, nn.Sequential]:
    module = make_module()
    part = describe_part(
        "decoder",
        module,
        source="some/model",
        new=["1.weight"],
        folded={"segments": "into 0.bias"},
        dropped={f"head.{index}": "no place for a head" for index in range(5)},
    )
    return WeightReport([part, describe_part("projector", nn.Linear(2, 2))]), module


def test_every_tensor_of_a_part_is_copied_or_new():
    report, module = make_report()
    part = report["decoder"]
    assert part.copied == {"0.weight": 12, "0.bias": 4}
    assert part.new == {"1.weight": 8}
    assert sum((part.copied | part.new).values()) == sum(tensor.numel() for tensor in module.parameters())


def test_part_without_a_source_is_all_new():
    report, _ = make_report()
    assert report["projector"].copied == {}
    assert report["projector"].new == {"weight": 4, "bias": 2}


def test_tied_tensor_is_told_once_and_not_hashed():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6))
    part = describe_part("decoder", model, source="some/gpt2")
    assert part.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert "lm_head.weight" not in part.copied | part.new
    assert sum(part.copied.values()) == model.num_parameters()
    assert part.sha256 == hash_weights({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"})


def test_declared_tie_that_does_not_hold_is_not_reported():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=6))
    model.lm_head.weight = nn.Parameter(torch.zeros(11, 8))
    part = describe_part("decoder", model, source="some/gpt2")
    assert part.tied == {}
    assert "lm_head.weight" in part.copied


def test_hash_is_sha256_of_names_dtypes_shapes_and_bytes_in_order_of_names():
    weights = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(3, dtype=torch.int64)}
    wanted = hashlib.sha256(
        b"a torch.int64 ()\n" + (3).to_bytes(8, "little") + b"b torch.float32 (1, 2)\n" + weights["b"].numpy().tobytes()
    ).hexdigest()
    assert hash_weights(weights) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool])
def test_hash_sees_values_but_not_memory_layout(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    transposed = tensor.T.contiguous().T  # the same values, columns first in memory
    changed = tensor.clone()
    changed[1, 2] = 0
    assert hash_weights({"x": tensor}) == hash_weights({"x": transposed})
    assert hash_weights({"x": tensor}) != hash_weights({"x": changed})
    assert hash_weights({"x": tensor}) != hash_weights({"x": tensor.reshape(3, 2)})
    assert hash_weights({"x": tensor}) != hash_weights({"y": tensor})


def test_rehash_follows_training():
    report, module = make_report()
    before = report["decoder"].sha256
    report.rehash({"decoder": module})
    assert report["decoder"].sha256 == before
    with torch.no_grad():
        module[0].bias += 1
    report.rehash({"decoder": module})
    assert report["decoder"].sha256 == hash_weights(module.state_dict()) != before


def test_saved_report_loads_back_equal(tmp_path):
    report, _ = make_report()
    path = report.save(tmp_path)
    assert path.name == "weight_report.json"
    assert json.loads(path.read_text())["parts"][0]["new"] == {"1.weight": 8}
    assert WeightReport.load(tmp_path) == report


def test_folder_without_report_is_an_error_that_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="written for models made by `from_pretrained_parts`"):
        WeightReport.load(tmp_path)


def test_table_tells_counts_and_every_reason():
    report, _ = make_report()
    lines = report.table().splitlines()
    assert lines[0].split() == ["part", "source", "copied", "new", "tied", "folded", "dropped", "sha256"]
    assert lines[1].split() == "decoder some/model 2 (16) 1 (8) 0 1 5".split() + [report["decoder"].sha256[:12]]
    assert "decoder: folded segments: into 0.bias" in lines
    assert "decoder: dropped head.0, head.1, head.2 and 2 more: no place for a head" in lines
    assert "decoder: new 1.weight" in lines


def test_name_that_the_part_lacks_is_refused():
    with pytest.raises(ValueError, match=r"tensors of the part `vision`, got `vision\.0\.weight`"):
        describe_part("vision", make_module(), source="some/model", new=["vision.0.weight"])


def test_unknown_part_names_those_there_are():
    with pytest.raises(KeyError, match=r"\(vision\), got 'text'"):
        WeightReport([PartReport("vision")])["text"]
