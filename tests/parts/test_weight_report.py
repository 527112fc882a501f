import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_vlm.parts.weight_report import (
    PartReport,
    PartSource,
    WeightReport,
    card_metadata,
    describe_part,
    hash_weights,
    part_source,
    read_report,
    stated_license,
)
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner


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


def test_parts_whose_weights_differ_are_named():
    report, module = make_report()
    report.rehash({"projector": nn.Linear(2, 2)})
    assert report.changed({"decoder": module}) == ["projector"]
    with torch.no_grad():
        module[1].weight += 1
    assert report.changed({"decoder": module}) == ["decoder", "projector"]


def test_licence_and_revision_of_a_source_are_reported():
    source = PartSource("some/model", "mit", "f" * 40)
    part = describe_part("vision", make_module(), source=source)
    assert (part.source, part.license, part.revision) == ("some/model", "mit", "f" * 40)
    assert not part.new and describe_part("vision", make_module(), source=PartSource()).copied == {}


def test_reports_of_other_versions_are_read(tmp_path):
    report, _ = make_report()
    path = report.save(tmp_path)
    content = json.loads(path.read_text())
    for part in content["parts"]:
        del part["license"], part["revision"]
        part["from_a_later_version"] = 1
    path.write_text(json.dumps(content))
    assert WeightReport.load(tmp_path) == report


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: [mit]", "mit"),
        ("license: [mit, gpl-3.0]", ""),
        ("license: other\nlicense_name: terms\nlicense_link: https://x.org", "other (terms, https://x.org)"),
        ("license: other", "other"),
        ("license: unknown", ""),
        ("language: en", ""),
        ("license: [", ""),
        ("- a list", ""),
    ],
)
def test_licence_is_what_the_card_beside_a_part_states(header, expected, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "README.md").write_text(f"---\n{header}\n---\n# Part\n")
    assert part_source(tmp_path / "part") == PartSource("part", expected, "")
    assert stated_license(card_metadata(tmp_path / "part")) == expected


def test_part_that_has_no_card_has_no_licence(tmp_path):
    (tmp_path / "part").mkdir()
    assert part_source(tmp_path / "part") == PartSource("part")
    assert part_source("org/never-downloaded") == PartSource("org/never-downloaded")
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5))
    assert part_source(model) == PartSource("GPT2LMHeadModel instance")


def test_report_is_written_by_the_main_process_alone(tmp_path):
    model = tiny_captioner()
    model.weight_report = WeightReport(
        [describe_part("decoder", model.decoder), describe_part("gone", nn.Linear(2, 2))]
    )
    model.save_pretrained(tmp_path / "of-others", is_main_process=False)
    assert not (tmp_path / "of-others" / "weight_report.json").exists()
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    model.save_pretrained(tmp_path / "main")
    saved = WeightReport.load(tmp_path / "main")
    assert [part.name for part in saved.parts] == ["decoder"]  # a part that was taken off is not told any more
    assert saved["decoder"].sha256 == hash_weights(model.decoder.state_dict())
    assert type(model).from_pretrained(tmp_path / "main").weight_report == saved


DAMAGED = [
    "",
    '{"parts": [{"na',
    "{}",
    "[]",
    '{"parts": [{}]}',
    '{"parts": [3]}',
    '{"parts": [{"name": "x", "new": 3}]}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_report_is_a_clear_error_to_who_asks_for_it(tmp_path, text):
    path = make_report()[0].save(tmp_path)
    path.write_text(text)
    with pytest.raises(
        ValueError, match="weight_report.json` must hold a report of a model's parts, got a file that is damaged"
    ):
        WeightReport.load(tmp_path)
    with pytest.warns(UserWarning, match="Without a report .*weight_report.json` must hold"):
        assert read_report(path) is None


@pytest.mark.parametrize("text", DAMAGED)
def test_model_with_a_damaged_report_loads_without_it(tmp_path, text):
    model = tiny_captioner()
    model.save_pretrained(tmp_path)
    (tmp_path / "weight_report.json").write_text(text)
    with pytest.warns(UserWarning, match="Without a report of the model's parts: .*weight_report.json"):
        loaded = type(model).from_pretrained(tmp_path)
    assert getattr(loaded, "weight_report", None) is None
    loaded.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "weight_report.json").exists()


def test_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    report, _ = make_report()
    before = report.save(tmp_path).read_bytes()

    def full(self, text, **settings):
        with open(self, "w") as file:
            file.write(text[:10])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            WeightReport().save(tmp_path)
    assert (tmp_path / "weight_report.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
