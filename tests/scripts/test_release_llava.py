"""The shipped folder of an adapter is made of a base that is rebuilt from its parts, and fits it."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Dinov2Config,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

from hf_vlm.parts.base_weights import check_base
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from scripts.tiny_parts import END, PAD, START, VOCAB_SIZE, randomise, tiny_image_processor, tiny_tokenizer
from tests.scripts.test_compare_llava import FEATURES, row

CHECKOUT = Path(__file__).parents[2]
SHIPPED = CHECKOUT / "model_cards" / "llava-smollm2-135m-emoji"
COLOURS = ("red", "blue", "green")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    spec = importlib.util.spec_from_file_location("release_llava", CHECKOUT / "scripts" / "release_llava.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SETTINGS", {"image_size": 32})
    monkeypatch.setattr(module, "SHOWN", 2)
    yield module
    sys.modules.pop("compare_llava", None)


@pytest.fixture
def parts(script, tmp_path) -> Path:
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    vision = ViTModel(ViTConfig(**layers, num_hidden_layers=1, image_size=32, patch_size=16), add_pooling_layer=False)
    randomise(vision)
    special = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    text = LlamaForCausalLM(LlamaConfig(**layers, **special, num_hidden_layers=1, vocab_size=VOCAB_SIZE))
    for name, files in {
        script.VISION: (vision, tiny_image_processor(32, 32)),
        script.TEXT: (text, tiny_tokenizer()),
    }.items():
        for file in files:
            file.save_pretrained(tmp_path / "parts" / name)
    return tmp_path / "parts"


@pytest.fixture
def data(script, tmp_path) -> Path:
    def asked(vendor: str) -> datasets.Dataset:
        rows = [
            {**row([colour], (f"{kind}?", colour), kind=kind), "id": f"{vendor}/{colour}/{kind}"}
            for colour in COLOURS
            for kind in script.ASKED
        ]
        features = datasets.Features({**FEATURES, "id": datasets.Value("string")})
        return datasets.Dataset.from_list(rows, features=features)

    sets = datasets.DatasetDict({"validation": asked("google"), "openmoji_seen": asked("openmoji")})
    sets.save_to_disk(str(tmp_path / "data" / "emoji-chat"))
    return tmp_path / "data"


def run_script(script, monkeypatch, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["release_llava.py", *map(str, arguments)])
    script.main()


def train_adapter(base: Path, run: Path) -> None:
    """An adapter of random matrices, and a projector of its own."""
    model = AutoModelForImageTextToText.from_pretrained(base)
    adapted = add_lora(model, LoraSection(rank=2, alpha=4), base)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_adapter(adapted, run)


def test_adapter_is_shipped_with_hashes_of_the_base_that_is_rebuilt(script, parts, data, tmp_path, monkeypatch):
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "llava-emoji"
    run_script(script, monkeypatch, "base", parts, base)
    train_adapter(base, run)
    run_script(script, monkeypatch, "ship", run, base, data, "--out", out)

    names = {path.name for path in out.iterdir()}
    assert names == {
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors", "base_weights.json", "drawings.png"
    }  # fmt: skip
    assert {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == script.BASE_NAME
    run_script(script, monkeypatch, "base", parts, tmp_path / "again")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert check_base(again, out)  # warns, and the test is red, where weights differ
    adapted = PeftModel.from_pretrained(again, out)
    stored = load_file(run / "adapter_model.safetensors")
    own = adapted.get_base_model().language_model.model.layers[0].mlp.up_proj.lora_B["default"].weight
    torch.testing.assert_close(
        own, stored["base_model.model.language_model.model.layers.0.mlp.up_proj.lora_B.weight"], rtol=1e-2, atol=0
    )
    card = (out / "README.md").read_text()
    assert "1. name?" in card
    assert "- name?" in card  # OpenMoji's
    assert Image.open(out / "drawings.png").size == (2 * 64, 64)  # and those of OpenMoji are in no file
    assert str(tmp_path) not in card


def test_figures_come_into_the_card(script, parts, data, tmp_path, monkeypatch):
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "llava-emoji"
    run_script(script, monkeypatch, "base", parts, base)
    train_adapter(base, run)
    kind = {"exact_match": 0.25, "chrf": 31.4, "num_questions": 7}
    of_set = {"emoji-chat:validation": {**kind, "by_kind": {"name": {**kind, "exact_match": 0.5}}}}
    (tmp_path / "figures.json").write_text(json.dumps({"nearest neighbour": of_set, "LoRA": of_set}))
    run_script(script, monkeypatch, "ship", run, base, data, "--out", out, "--figures", tmp_path / "figures.json")
    card = (out / "README.md").read_text()
    assert "| LoRA | 25.0 / 31.4 |" in card
    assert "| name | 50.0 / 31.4 | 50.0 / 31.4 |" in card
    assert "7 questions of each set" in card


def test_adapter_of_another_base_is_not_shipped(script, parts, data, tmp_path, monkeypatch):
    run_script(script, monkeypatch, "base", parts, tmp_path / "base")
    train_adapter(tmp_path / "base", tmp_path / "run")
    text = AutoModelForCausalLM.from_pretrained(parts / script.TEXT)
    with torch.no_grad():
        text.model.norm.weight.mul_(1.1)
    text.save_pretrained(parts / script.TEXT)
    run_script(script, monkeypatch, "base", parts, tmp_path / "other")
    with pytest.warns(UserWarning, match="SHA-256"), pytest.raises(SystemExit, match="Make the base again"):
        run_script(script, monkeypatch, "ship", tmp_path / "run", tmp_path / "other", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shipped_adapter_fits_parts_of_its_shapes():
    """DINOv2-small's and SmolLM2-135M's shapes, without weights: the adapter's layers and matrices are theirs."""
    with torch.device("meta"):
        vision = AutoModel.from_config(Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6))
        language = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                vocab_size=49153,
            )
        )
    layers = {f"language_model.{name}": module for name, module in language.named_modules()}
    weights = load_file(SHIPPED / "adapter_model.safetensors")
    rank = json.loads((SHIPPED / "adapter_config.json").read_text())["r"]
    for name, tensor in weights.items():
        name = name.removeprefix("base_model.model.")
        if name.startswith("projector."):
            continue
        layer, matrix = name.removesuffix(".weight").rsplit(".", 1)
        out_features, in_features = layers[layer].weight.shape
        assert tensor.shape == ((out_features, rank) if matrix == "lora_B" else (rank, in_features)), name
        assert matrix == "lora_A" or tensor.any(), name  # B starts at zero
    assert len(weights) == 2 * 30 * 7 + 4
    projector = {tuple(tensor.shape) for name, tensor in weights.items() if ".projector." in name}
    assert projector == {(576, vision.config.hidden_size), (576, 576), (576,)}
    assert set(json.loads((SHIPPED / "base_weights.json").read_text())["sha256"]) == {"vision", "language"}
