"""`hf-vlm card` and the three exports: what they write and print, and what they refuse."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_vlm import VisionTransformerConfig, VisionTransformerForImageClassification, VisionTransformerImageProcessor
from hf_vlm.cli import main
from hf_vlm.sharing.onnx.runtime import OnnxVisionModel, load_onnx

EXPORTS = ["export-transformers", "export-code", "export-onnx"]


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    """In a working directory with the folder `classifier`."""
    monkeypatch.chdir(tmp_path)
    config = VisionTransformerConfig(hidden_size=16, pooling="cls_token", id2label={0: "cat", 1: "dog"})
    model = VisionTransformerForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.normal_()
    model.save_pretrained("classifier")
    VisionTransformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained("classifier")
    return model


def test_card_is_written_beside_the_model(classifier, tmp_path, capsys):
    (tmp_path / "classifier/LICENSE").write_text("text")
    assert main(["card", "classifier", "--license", "mit", "--name", "cats", "--limits", "Knows no eels."]) == 0
    assert capsys.readouterr().out == "Card written: classifier/README.md\n"
    card = ModelCard.load(tmp_path / "classifier/README.md")
    assert (card.data.license, card.data.model_name) == ("mit", "cats")
    assert "Knows no eels." in card.text
    assert main(["card", "classifier", "--json", "--out", "elsewhere.md", "--license", "other",
                 "--license-name", "house", "--license-link", "https://example.com/licence"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out) == {"file": "elsewhere.md"}
    assert ModelCard.load(tmp_path / "elsewhere.md").data.license_name == "house"


def test_card_wants_a_licence(classifier, tmp_path, capsys):
    assert main(["card", "classifier"]) == 1
    assert "--license" in capsys.readouterr().err
    assert not (tmp_path / "classifier/README.md").exists()


def test_model_leaves_for_transformers(classifier, tmp_path, capsys):
    assert main(["export-transformers", "classifier", "--out", "stock", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["model_class"]) == ("stock", "ViTForImageClassification")
    pixels = torch.randn(2, 3, 32, 32)
    stock = AutoModelForImageClassification.from_pretrained("stock")
    assert type(stock).__module__.startswith("transformers.")
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).logits, classifier(pixels).logits, atol=1e-5, rtol=0)
    assert main(["export-transformers", "classifier", "--out", "again"]) == 0
    assert capsys.readouterr().out.startswith("ViTForImageClassification with ")


def test_model_leaves_with_its_code(classifier, tmp_path, capsys):
    assert main(["export-code", "classifier", "--out", "code", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "code"}
    assert "AutoModelForImageClassification" in json.loads((tmp_path / "code/config.json").read_text())["auto_map"]
    (tmp_path / "classifier/README.md").write_text("Install hf-vlm.")
    assert main(["export-code", "classifier", "--out", "again"]) == 0
    told = capsys.readouterr()
    wanted = [f"{name}.from_pretrained(..., trust_remote_code=True)"
              for name in ("AutoModelForImageClassification", "AutoImageProcessor")]  # fmt: skip
    assert all(program in told.out.splitlines()[-1] for program in wanted)
    assert "again/README.md came along as it was, and still speaks of hf-vlm" in told.err


STOPPED = """
import os, signal, sys, time
from hf_vlm.cli import main
from hf_vlm.sharing import code_folder, new_folder

def stop(folder):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(20)

code_folder.check_code = stop
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit that it is ignored
sys.exit(main(["export-code", "classifier", "--out", "new"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_export_leaves_nothing_and_says_so(classifier, tmp_path, name, code):
    done = subprocess.run([sys.executable, "-c", STOPPED, name], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == "hf-vlm: stopped. Nothing was written: run it again from the start."
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]


def test_signal_is_handled_as_before_after_an_export(classifier):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["export-code", "classifier", "--out", "code"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_processor_of_another_size_is_noted(classifier, tmp_path, capsys):
    VisionTransformerImageProcessor(size={"height": 24, "width": 40}).save_pretrained("classifier")
    assert main(["export-transformers", "classifier", "--out", "stock"]) == 0
    assert "makes pictures of 24 x 40 pixels, and the model is configured for 32 x 32" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "precision"), [([], "float32"), (["--precision", "int8"], "int8")])
def test_model_leaves_as_onnx(classifier, option, precision, tmp_path, capsys):
    assert main(["export-onnx", "classifier", "--out", "onnx", "--json", *option]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["out"], told["precision"], list(told["files"])) == ("onnx", precision, ["model.onnx"])
    runtime = load_onnx(tmp_path / "onnx")
    assert isinstance(runtime, OnnxVisionModel)
    pixels = AutoImageProcessor.from_pretrained("onnx")([torch.zeros(3, 32, 32)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = classifier(pixels).logits.numpy()
    assert runtime(pixels.numpy())["logits"] == pytest.approx(expected, abs=1e-4 if precision == "float32" else 0.3)


@pytest.mark.parametrize("command", EXPORTS)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["classifier", "--out", "classifier"], "`out` must be a new or an empty folder, got classifier"),
        (["nowhere", "--out", "new"], "`nowhere`"),
        (["foreign", "--out", "new"], "whose model type begins with `hf_vlm_`, got `vit` in foreign"),
        (["adapter", "--out", "new"], "Merge it first: `hf-vlm merge adapter --out MERGED`"),
    ],
)
def test_what_can_not_be_exported_is_told(command, arguments, told, classifier, tmp_path, capsys):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    assert main([command, *arguments]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "classifier", "foreign"]
