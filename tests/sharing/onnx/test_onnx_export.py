"""Every architecture through ONNX gives what it gives in PyTorch, on other sizes than were traced; or says why not."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import BertConfig, BertModel, ResNetConfig

from hf_vlm import (
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    VAEConfig,
    VAEModel,
    VisionTransformerBackbone,
    VisionTransformerForImageClassification,
    VisionTransformerForMaskedImageModeling,
    VisionTransformerModel,
)
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.sharing.onnx import export, graphs
from hf_vlm.sharing.onnx.export import export_onnx
from hf_vlm.sharing.onnx.runtime import OnnxTokenizer, OnnxVisionModel, load_onnx
from tests import tiny_tokenizers
from tests.sharing.onnx.tiny_onnx import LABELS, random_weights, saved, swin_config, vit_config


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A ViT with a classifier, its folder, and its export."""
    folder = tmp_path_factory.mktemp("classifier")
    model = random_weights(VisionTransformerForImageClassification(vit_config()))
    model.save_pretrained(folder / "model")
    VisionTransformerImageProcessor(size={"height": 16, "width": 24}).save_pretrained(folder / "model")
    (folder / "model" / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    return model, folder, export_onnx(folder / "model", folder / "onnx")


def test_classifier_gives_the_same_for_any_number_of_pictures(classifier):
    model, folder, export = classifier
    assert 0 < export.largest_difference < 1e-4 and export.same_tokens is None
    runtime = load_onnx(folder / "onnx")
    for batch in (1, 5):
        pixels = torch.randn(batch, 3, 16, 24)
        with torch.no_grad():
            wanted = model(pixels).logits
        np.testing.assert_allclose(runtime(pixels.numpy())["logits"], wanted, atol=1e-5)
    pictures = tiny_tokenizers.random_pictures(2)
    first, second = runtime.classify(pictures)
    with torch.no_grad():
        inputs = runtime.processor(images=pictures, return_tensors="pt")
        scores = model(**inputs).logits.softmax(-1)
    assert [first["label"], second["label"]] == [LABELS[place] for place in scores.argmax(-1)]
    assert first["score"] == pytest.approx(float(scores[0].max()), rel=1e-4)


def test_folder_holds_what_runs_it_and_says_what_that_is(classifier):
    _, folder, export = classifier
    names = {path.name for path in (folder / "onnx").iterdir()}
    assert names == {
        "model.onnx",
        "runtime.py",
        "decoding.py",
        "config.json",
        "preprocessor_config.json",
        "onnx_export.json",
        "LICENSE",
    }
    assert "the processor, which makes them of pictures and texts, needs hf-vlm, transformers and PyTorch" in str(
        export
    )
    assert "model.onnx" in str(export) and "float32" in str(export)
    manifest = json.loads((folder / "onnx" / "onnx_export.json").read_text(encoding="utf-8"))
    assert manifest["graphs"]["model"] == {
        "file": "model.onnx",
        "inputs": [{"name": "pixel_values", "dtype": "float", "shape": ["batch", 3, 16, 24]}],
        "outputs": [{"name": "logits", "dtype": "float", "shape": ["batch", 3]}],
    }
    assert manifest["settings"] == {"image_size": [16, 24], "labels": list(LABELS)}
    assert manifest["opset"] == onnx.load(folder / "onnx" / "model.onnx").opset_import[0].version


def test_int8_rounds_the_weights_and_tells_what_that_changes(classifier, tmp_path):
    model, folder, export = classifier
    rounded = export_onnx(folder / "model", tmp_path / "int8", precision="int8")
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node]
    assert nodes.count("MatMulInteger") == 7  # q, k, v, o and two of the MLP, and the classifier
    assert export.largest_difference < rounded.largest_difference < 0.1
    assert not list((tmp_path / "int8").glob("*-int8.onnx"))
    pixels = torch.randn(4, 3, 16, 24)
    with torch.no_grad():
        wanted = model(pixels).logits
    np.testing.assert_allclose(load_onnx(tmp_path / "int8")(pixels.numpy())["logits"], wanted, atol=0.1)


class _Add(torch.nn.Module):
    """One more."""

    def forward(self, pixel_values):
        return {"out": pixel_values + 1}


def test_a_file_that_gives_something_else_is_refused(tmp_path, monkeypatch):
    example = {"pixel_values": torch.rand(2, 3)}
    graph = graphs.OnnxGraph("model", _Add(), example, example, {"pixel_values": {0: "batch"}})
    assert graphs.write_graph(graph, tmp_path).largest_difference < 1e-6
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *args: [value + np.float32(0.002) for value in run(*args)]
    )
    with pytest.raises(
        ValueError, match=r"`model.onnx` must give what the model gives, to 0.001, got a difference of 0.00"
    ):
        graphs.write_graph(graph, tmp_path)


@pytest.mark.parametrize(
    ("got", "wanted", "difference"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.25),  # relative to the largest
        ([0.5, 0.0], [0.25, 0.0], 0.25),
        ([-np.inf, 1.0], [-np.inf, 1.0], 0.0),
        ([-np.inf, 1.0], [0.0, 1.0], np.inf),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([1, 2], [1, 3], 1.0),
        ([1] * 200, [1] * 199 + [2], 0.0),  # a near tie
    ],
)
def test_difference_is_relative_to_the_largest_and_counts_codes(got, wanted, difference):
    assert graphs.difference(np.array(got), np.array(wanted)) == difference


@pytest.mark.parametrize(
    ("got", "same", "margin"),
    [
        ([[3, 1, 2], [0, 0, 0]], 1.0, 0.0),
        ([[3, 2, 2], [0, 0, 0]], 5 / 6, 0.25),
        ([[3, 2, 0], [0, 0, 0]], 4 / 6, 0.25),  # what follows has no margin of its own
        ([[3, 2, 2], [0, 0, 3]], 4 / 6, 4.0),  # the largest of the rows
        ([[1, 1, 2], [0, 0, 0]], 5 / 6, np.inf),  # a token that a rule forbids
    ],
)
def test_texts_are_compared_up_to_where_they_part(got, same, margin):
    wanted = np.array([[3, 1, 2], [0, 0, 0]])
    scores = np.zeros((2, 3, 4), dtype=np.float32)
    scores[0, 0] = [0, -np.inf, 0, 2]
    scores[0, 1] = [0, 1, 0.75, 0]
    scores[0, 2] = [0, 0, 9, 0]
    scores[1, :, 0] = 4
    assert export.compare(wanted, np.array(got), scores) == (pytest.approx(same), margin)


def test_config_of_the_export_says_float32_for_a_model_in_bfloat16(classifier, tmp_path):
    _, folder, _ = classifier
    shutil.copytree(folder / "model", tmp_path / "model")
    model_config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert model_config["dtype"] == "float32"
    (tmp_path / "model" / "config.json").write_text(json.dumps(model_config | {"dtype": "bfloat16"}), encoding="utf-8")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert json.loads((tmp_path / "onnx" / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


def test_a_missing_graph_and_pictures_of_other_channels_are_named(classifier, tmp_path):
    _, folder, _ = classifier
    with pytest.raises(
        ValueError, match=r"`model.onnx` takes `pixel_values` of .* \(batch, 3, 16, 24\), got \(2, 1, 16, 24\)"
    ):
        load_onnx(folder / "onnx")(np.zeros((2, 1, 16, 24)))
    with pytest.raises(ValueError, match=r"takes `pixel_values` .*, got \(3, 16, 24\)"):
        load_onnx(folder / "onnx")(np.zeros((3, 16, 24)))
    shutil.copytree(folder / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx" / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"without `model.onnx`"):
        load_onnx(tmp_path / "onnx")


class _Loop(torch.nn.Module):
    """Runs as often as a tensor says, which no exporter knows."""

    def forward(self, pixel_values):
        for _ in range(int(pixel_values.sum().item()) % 3):
            pixel_values = pixel_values + 1
        return {"out": pixel_values}


def test_what_stops_the_exporter_is_named(tmp_path):
    example = {"pixel_values": torch.rand(2, 3)}
    graph = graphs.OnnxGraph("model", _Loop(), example, example, {"pixel_values": {0: "batch"}})
    with pytest.raises(ValueError, match=r"(?s)`model` must be made of operators .* got .*test_onnx_export.py:\d+"):
        graphs.write_graph(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_an_export_that_failed(classifier, tmp_path, monkeypatch):
    _, folder, _ = classifier

    def fail(graph, folder, **settings):
        (folder / "model.onnx").write_bytes(b"half")
        raise ValueError("stopped")

    monkeypatch.setattr(export, "write_graph", fail)
    with pytest.raises(ValueError, match="stopped"):
        export_onnx(folder / "model", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Bad input


def test_bad_arguments_are_refused_by_name(classifier, tmp_path):
    _, folder, _ = classifier
    with pytest.raises(ValueError, match="`precision` must be one of float32, int8, got 'int4'"):
        export_onnx(folder / "model", tmp_path / "out", precision="int4")
    with pytest.raises(ValueError, match="new or an empty folder"):
        export_onnx(folder / "model", folder / "onnx")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="Merge it first: `hf-vlm merge"):
        export_onnx(tmp_path / "adapter", tmp_path / "out")
    bert = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="got `bert`.*optimum"):
        export_onnx(tmp_path / "bert", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        export_onnx(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_with_the_extra(classifier, tmp_path, monkeypatch):
    _, folder, _ = classifier
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"got no onnxscript. Run `pip install 'hf-vlm\[export\]'`"):
        export_onnx(folder / "model", tmp_path / "out")


def test_a_pretraining_head_is_refused_with_what_to_do(tmp_path):
    config = vit_config(masked_image_target="pixels")
    folder = saved(VisionTransformerForMaskedImageModeling(config), tmp_path / "mae")
    with pytest.raises(ValueError, match=r"VisionTransformerModel.from_pretrained"):
        export_onnx(folder, tmp_path / "out")


def test_runtime_of_another_kind_and_other_folders_are_refused(classifier, tmp_path):
    _, folder, _ = classifier
    with pytest.raises(ValueError, match="runs a `tokenizer`, got a `vision_model`"):
        OnnxTokenizer(folder / "onnx")
    with pytest.raises(FileNotFoundError, match=r"onnx_export.json"):
        load_onnx(tmp_path)


# The other models of pictures

VISION_MODELS = {
    "vit": lambda: VisionTransformerModel(vit_config(pooling="cls", relative_position_bias="per_layer")),
    "vit-backbone": lambda: VisionTransformerBackbone(vit_config(num_hidden_layers=2, out_indices=[1, 2])),
    "vit-on-resnet": lambda: VisionTransformerModel(
        vit_config(
            patch_size=1,
            image_size=64,
            backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        )
    ),
    "swin": lambda: SwinTransformerForImageClassification(swin_config()),
    "swin-backbone": lambda: SwinTransformerBackbone(swin_config(out_indices=[1, 2])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION_MODELS)
def test_vision_models_give_the_same(name, tmp_path):
    model = random_weights(VISION_MODELS[name]())
    export_onnx(saved(model, tmp_path / "model"), tmp_path / "onnx")
    runtime = OnnxVisionModel(tmp_path / "onnx")
    pixels = torch.randn(5, 3, *runtime.settings["image_size"])
    with torch.no_grad():
        outputs = model(pixels)
    wanted = {f"feature_map_{place}": one for place, one in enumerate(getattr(outputs, "feature_maps", None) or ())}
    wanted = wanted or {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    got = runtime(pixels.numpy())
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, atol=1e-4 * max(1, float(value.abs().max())))


STAGES = {"hidden_channels": (8, 8), "num_residual_blocks": (1, 0)}
TOKENIZERS = {
    "vae": lambda: VAEModel(VAEConfig(image_size=8, latent_channels=3, **STAGES)),
    "autoencoder": lambda: VAEModel(
        VAEConfig(image_size=8, latent_channels=3, beta=0, is_deterministic=True, **STAGES)
    ),
    "vqvae": lambda: tiny_tokenizers.tiny_vqvae(num_channels=1),
    "fsq": lambda: tiny_tokenizers.tiny_vqvae(discretisation="levels", levels=[3, 4, 2, 5]),
    "bits": lambda: tiny_tokenizers.tiny_vqvae(discretisation="binary"),
    "dvae": lambda: tiny_tokenizers.tiny_dvae(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_visual_tokenizers_give_the_same_for_pictures_of_any_size(name, tmp_path):
    model = TOKENIZERS[name]().eval()
    export_onnx(saved(model, tmp_path / "model"), tmp_path / "onnx")
    runtime = OnnxTokenizer(tmp_path / "onnx")
    cell = runtime.settings["cell_size"]
    for batch, rows, columns in ((1, 1, 1), (2, 3, 7)):
        pixels = torch.rand(batch, model.config.num_channels, rows * cell, columns * cell)
        with torch.no_grad():
            codes = model.encode(pixels)
            pictures = model.decode(codes)
        got = runtime.encode(pixels.numpy())
        if name in ("vae", "autoencoder"):
            np.testing.assert_allclose(got, codes, atol=1e-5)
        else:
            assert len(codes.unique()) > 1 or codes.numel() < 3
            np.testing.assert_array_equal(got, codes)
            with pytest.raises(ValueError, match="Codes must be from 0"):
                runtime.decode(codes.numpy() - model.config.num_codes)
            with pytest.raises(ValueError, match=r"`code_ids` must be whole numbers, got 1.7"):
                runtime.decode(np.full(codes.shape, 1.7))
        np.testing.assert_allclose(runtime.decode(codes.numpy()), pictures, atol=1e-5)
    with pytest.raises(ValueError, match="multiples of"):
        runtime.encode(np.zeros((1, model.config.num_channels, cell + 1, cell), dtype=np.float32))


@pytest.mark.slow
def test_int8_of_convolutions_changes_nothing_and_says_so(tmp_path):
    model = tiny_tokenizers.tiny_vqvae()
    export = export_onnx(saved(model, tmp_path / "model"), tmp_path / "onnx", precision="int8")
    assert any("no weights were rounded" in note for note in export.notes)
    pixels = torch.rand(2, 3, 16, 16)
    np.testing.assert_array_equal(load_onnx(tmp_path / "onnx").encode(pixels.numpy()), model.encode(pixels))
