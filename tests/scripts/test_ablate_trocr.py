import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import recipe_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "ablate_trocr.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("ablate_trocr", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reader(recipe_sections, tmp_path):
    """A folder with a tiny reader and its processor."""
    trainer = build_trainer(recipe_of(recipe_sections))
    trainer.model.save_pretrained(tmp_path / "reader")
    trainer.processing_class.save_pretrained(tmp_path / "reader")
    return tmp_path / "reader"


def run_script(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["ablate_trocr.py", *map(str, arguments)])
    script.main()


def weights_of(folder):
    return TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder).state_dict()


def test_arms_differ_in_their_start_and_are_not_run_twice(script, reader, lines_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ablation"
    small = {"steps": 2, "batch-size": 2, "learning-rate": 0, "set": ".", "reader": reader}
    settings = [lines_folder, out, *(f"--{name}={value}" for name, value in small.items())]
    run_script(script, monkeypatch, *settings)
    results = json.loads((out / "ablation.json").read_text())["arms"]
    assert list(results) == [arm.name for arm in script.READER_ARMS]
    told = capsys.readouterr().out
    assert all(f"| {arm.name} |" in told for arm in script.READER_ARMS)

    # Nothing was learnt at a rate of 0: the arms still hold what they started from.
    before, stage1, scratch = (weights_of(folder) for folder in (reader, out / "--stage-1", out / "from-scratch"))
    name = "decoder.model.layers.0.mlp.fc1.weight"
    assert torch.equal(before[name], stage1[name])
    assert not torch.equal(before[name], scratch[name])
    assert torch.equal(scratch[name], weights_of(out / "from-scratch--augmented")[name])
    assert "augment: da2" in (out / "from-scratch--augmented" / "recipe.yaml").read_text()
    assert "augment: false" in (out / "from-scratch" / "recipe.yaml").read_text()

    monkeypatch.setattr(script, "run", lambda arm, arguments: pytest.fail(f"{arm.name} is run again"))
    run_script(script, monkeypatch, *settings)
    assert f"| from scratch | {results['from scratch']['word_f1']:.2f} |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_script(script, monkeypatch, *settings, "--steps=3")
    assert "holds arms of steps=2, got 3" in capsys.readouterr().err


def test_parts_or_a_reader_are_asked_for(script, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_script(script, monkeypatch, tmp_path, tmp_path, "--vision", "a")
    assert "--reader or --vision and --text" in capsys.readouterr().err
