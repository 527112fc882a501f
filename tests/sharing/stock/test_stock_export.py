"""The exported folders themselves: read without this package, and never half written."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.modeling_swin import SwinTransformerForImageClassification
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vae.configuration_vae import VAEConfig
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from hf_vlm.models.vqvae.configuration_vqvae import VQVAEConfig
from hf_vlm.sharing.stock import export, vit
from hf_vlm.sharing.stock.export import export_transformers, load_stock, stock_part
from hf_vlm.sharing.stock.weights import fill_stock
from tests.models.trocr.tiny_models import randomise, tiny_reader

SETTINGS = {"hidden_size": 24, "num_attention_heads": 3, "image_size": 16}
VIT = {"model_type": "hf_vlm_vit", **SETTINGS}

# Reads what was exported with transformers alone, and compares it with what ours gave.
READER = """
import importlib.util, sys, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForImageTextToText, AutoProcessor
assert importlib.util.find_spec("hf_vlm") is None
stored = torch.load(sys.argv[1] + "/expected.pt")
for name in ("vit", "swin"):
    model = AutoModelForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}-out").eval()
    processor = AutoImageProcessor.from_pretrained(f"{sys.argv[1]}/vit-out")
    pixels = processor(stored["picture"].numpy(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, stored["pixels"], atol=0, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, stored[name], atol=1e-5, rtol=1e-5)
    assert model.config.id2label == {0: "cat", 1: "dog"}
reader = AutoModelForImageTextToText.from_pretrained(f"{sys.argv[1]}/trocr-out").eval()
processor = AutoProcessor.from_pretrained(f"{sys.argv[1]}/trocr-out")
assert torch.equal(reader.generate(processor(images=stored["picture"].numpy(), return_tensors="pt").pixel_values), stored["ids"])
assert processor.batch_decode(stored["ids"], skip_special_tokens=True) == stored["text"]
"""


def classifier(**settings: Any) -> VisionTransformerForImageClassification:
    config = VisionTransformerConfig(**{**SETTINGS, "id2label": {0: "cat", 1: "dog"}, **settings})
    model = VisionTransformerForImageClassification(config).eval()
    randomise(model)
    return model


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
@pytest.mark.slow  # another process imports transformers
def test_exported_folders_are_read_where_this_package_is_not(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8)
    image_processor = VisionTransformerImageProcessor(size={"height": 16, "width": 16})
    pixels = image_processor(picture.numpy(), return_tensors="pt")["pixel_values"]
    expected: dict[str, Any] = {"picture": picture, "pixels": pixels}

    swin = SwinTransformerForImageClassification(
        SwinTransformerConfig(image_size=16, window_size=2, id2label={0: "cat", 1: "dog"})
    ).eval()
    randomise(swin)
    for name, model in (("vit", classifier()), ("swin", swin)):
        model.save_pretrained(tmp_path / name)
        image_processor.save_pretrained(tmp_path / name)
        expected[name] = model(pixels).logits
        assert export_transformers(tmp_path / name, tmp_path / f"{name}-out").largest_difference < 1e-5

    tokenizer = build_character_tokenizer(alphabet="abcdefghijklmnopqrstuvwxyz0123456789")
    processor = TrOCREncoderDecoderProcessor(image_processor, tokenizer)
    reader = tiny_reader(VIT, {"cross_attention_size": 24})
    reader.generation_config.update(max_new_tokens=9, num_beams=2, no_repeat_ngram_size=1)
    reader.save_pretrained(tmp_path / "trocr")
    processor.save_pretrained(tmp_path / "trocr")
    export = export_transformers(tmp_path / "trocr", tmp_path / "trocr-out")
    assert (export.model_class, export.processor_class) == ("VisionEncoderDecoderModel", "TrOCRProcessor")
    assert "VisionEncoderDecoderModel with TrOCRProcessor" in str(export) and f"- {export.notes[0]}" in str(export)
    expected["ids"] = reader.generate(pixels)
    expected["text"] = tokenizer.batch_decode(expected["ids"], skip_special_tokens=True)
    assert len(set(expected["text"][0])) > 2
    torch.save(expected, tmp_path / "expected.pt")

    # `-S` reads no `.pth` file, so that an editable install of this package isn't found either.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [sys.executable, "-S", "-c", READER, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_stored_dtype_is_kept(tmp_path: Path) -> None:
    classifier().half().save_pretrained(tmp_path / "own")
    export = export_transformers(tmp_path / "own", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert export.processor_class is None and "no processor beside the model" in export.notes[-1]


def test_what_is_computed_for_a_half_precision_model_is_not_rounded(tmp_path: Path) -> None:
    text = {"cross_attention_size": 24, "norm_position": "pre", "embedding_norm": False, "scale_embedding": True}
    for name, settings in (
        ("scaled", {}),
        ("sinusoidal", {"position_embedding": "sinusoidal", "scale_embedding": False}),
    ):
        tiny_reader(VIT, text | settings).half().save_pretrained(tmp_path / name)
        export = export_transformers(tmp_path / name, tmp_path / f"{name}-out")
        assert export.largest_difference < 1e-5
        assert any("float32" in note for note in export.notes)


def test_empty_folder_is_filled_and_any_other_refused(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    export_transformers(tmp_path / "own", tmp_path / "empty")
    for taken in (tmp_path / "empty", tmp_path / "own" / "config.json"):
        with pytest.raises(ValueError, match="new or an empty folder"):
            export_transformers(tmp_path / "own", taken)
    assert left_in(tmp_path) == ["empty", "own"]


def test_other_outputs_are_an_error_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier().save_pretrained(tmp_path / "own")

    def exchanged(model: Any) -> Any:
        stock, notes = stock_vit_to_stock(model)
        with torch.no_grad():
            stock.vit.layers[0].layernorm_before.weight.copy_(stock.vit.layers[1].layernorm_before.weight)
        return stock, notes

    stock_vit_to_stock = vit.to_stock
    monkeypatch.setattr(vit, "to_stock", exchanged)
    with pytest.raises(ValueError, match=r"to within 0.0001, got a difference of(.|\n)*export-code"):
        export_transformers(tmp_path / "own", tmp_path / "new" / "out")
    assert left_in(tmp_path) == ["new", "own"] and left_in(tmp_path / "new") == []


def test_not_a_number_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier().save_pretrained(tmp_path / "own")
    monkeypatch.setattr(vit, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="difference of nan"):
        export_transformers(tmp_path / "own", tmp_path / "out")


def test_head_is_that_of_the_folder(tmp_path: Path) -> None:
    model = VisionTransformerModel(VisionTransformerConfig(**SETTINGS, pooling="cls"))
    model.save_pretrained(tmp_path / "own")
    assert export_transformers(tmp_path / "own", tmp_path / "out").model_class == "ViTModel"


def test_setting_without_a_counterpart_leaves_nothing(tmp_path: Path) -> None:
    classifier(stem_channels=[8]).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="stem_channels"):
        export_transformers(tmp_path / "own", tmp_path / "out")
    assert left_in(tmp_path) == ["own"]


@pytest.mark.parametrize("config_class", [CnnLstmConfig, VAEConfig, VQVAEConfig, DVAEConfig])
def test_architecture_without_a_counterpart_is_refused_by_name(config_class: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": config_class.model_type}))
    with pytest.raises(ValueError, match=rf"{config_class.model_type}(.|\n)*export-code(.|\n)*export-onnx"):
        export_transformers(tmp_path, tmp_path / "out")


def test_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Merge it first: `hf-vlm merge"):
        export_transformers(tmp_path, tmp_path / "out")


def test_folder_of_transformers_needs_no_export(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="`vit`(.|\n)*needs no export"):
        export_transformers(tmp_path, tmp_path / "out")


def test_part_of_transformers_stays_itself_and_ours_is_exchanged() -> None:
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32, image_size=16)
    part = ViTModel(config)
    assert stock_part(part) == (part, [])
    stock, notes = stock_part(VisionTransformerModel(VisionTransformerConfig(**SETTINGS)))
    assert type(stock) is ViTModel and notes[0].startswith("vision encoder: ")
    with pytest.raises(ValueError, match="TrOCREncoderDecoderForCausalLM"):
        stock_part(tiny_reader(VIT, {"cross_attention_size": 24}).decoder)


def test_written_folder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32, image_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 tensors missing or left over, the first `pooler.dense.bias`"):
        load_stock(tmp_path, ViTModel)


def test_every_tensor_of_both_sides_is_accounted_for() -> None:
    stock = torch.nn.Linear(3, 2)

    def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"ours.{name}": tensor for name, tensor in weights.items()}

    own = {"ours.weight": torch.randn(2, 3), "ours.bias": torch.randn(2)}
    wrapped: Any = stock_transformers_model(stock)
    fill_stock(wrapped, own, rename)
    assert torch.equal(stock.weight, own["ours.weight"]) and torch.equal(stock.bias, own["ours.bias"])
    fill_stock(wrapped, {"ours.weight": own["ours.weight"]}, rename, new={"bias": 0.5})
    assert stock.bias.tolist() == [0.5, 0.5]
    fill_stock(wrapped, own, lambda weights: {"ours.weight": weights["weight"]}, new={"bias": 0.0}, left_out=("bias",))
    for weights, read, word in (
        ({**own, "ours.scale": own["ours.bias"]}, rename, "1 of ours without a place: `ours.scale`"),
        ({"ours.weight": own["ours.weight"]}, rename, "1 there that ours lacks"),
        ({"ours.weight": own["ours.weight"]}, lambda given: {"ours.weight": given["weight"]}, "got none for `bias`"),
        ({**own, "ours.bias": torch.randn(3)}, rename, "must be of the shape of our `ours.bias`"),
    ):
        with pytest.raises(ValueError, match=word):
            fill_stock(wrapped, weights, read)


def stock_transformers_model(module: torch.nn.Module) -> torch.nn.Module:
    """A module with what `fill_stock` asks a stock model for."""
    module.tie_weights = lambda: None  # type: ignore[assignment]
    module.config = None  # type: ignore[assignment]
    module._weight_conversions = []  # type: ignore[assignment]
    return module


def test_modules_are_found_by_model_type() -> None:
    assert set(export.NO_COUNTERPART) | set(export._MODULES) == {
        "hf_vlm_cnn_lstm",
        "hf_vlm_vae",
        "hf_vlm_vqvae",
        "hf_vlm_dvae",
        "hf_vlm_vit",
        "hf_vlm_swin",
        "hf_vlm_trocr",
        "hf_vlm_llava",
    }
