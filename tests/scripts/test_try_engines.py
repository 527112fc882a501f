"""Trying engines: the recipes are those of the families, and what is told is what was run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_vlm.training.tasks import load_recipe

SCRIPT = Path(__file__).parents[2] / "scripts" / "try_engines.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("try_engines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipes_of_all_families_have_one_update_whatever_divides_it(script, tmp_path):
    recipes = {name: load_recipe(file) for name, file in script.write_recipes(tmp_path).items()}
    tasks = {name: (recipe.task, getattr(recipe, "architecture", None)) for name, recipe in recipes.items()}
    assert tasks == {
        "ocr": ("ocr", "trocr"),
        "classification": ("image-classification", None),
        "pretraining": ("masked-image-modeling", None),
        "tokenization": ("image-tokenization", None),
        "caption": ("caption", "cnn_lstm"),
        "chat": ("chat", "llava"),
    }
    assert {recipe.training["global_batch_size"] for recipe in recipes.values()} == {2, 8}


def test_largest_difference_is_that_of_any_weight_and_other_names_are_refused(script, tmp_path):
    for name, far in (("a", 0.0), ("b", -0.25)):
        (tmp_path / name).mkdir()
        weights = {"near": torch.ones(3), "far": torch.tensor([0.0, far])}
        save_file(weights, tmp_path / name / "model.safetensors")
    assert script.largest_difference(tmp_path / "a", tmp_path / "b") == 0.25
    save_file({"near": torch.ones(3)}, tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="The same weights are wanted"):
        script.largest_difference(tmp_path / "a", tmp_path / "b")


def test_tables_tell_what_ran_what_failed_and_what_was_not_run(script):
    notes = {"optimizer": "AdamW", "parameters": 40, "divided": 40}
    trials = [
        script.Trial("chat", "python", num_processes=1),
        script.Trial("chat", "torchrun", fault="hf-vlm: no"),
        script.Trial("chat", "fsdp2", 4e-7, 2, notes=notes),
    ]
    told = script.tables(trials, ["zero3"]).splitlines()
    assert told[2:6] == ["| python | - |", "| torchrun | failed |", "| fsdp2 | 4.0e-07 |", "| zero3 | not run |"]
    assert f"| fsdp2 | {script.ENGINES['fsdp2'][0]} | 2 | 40 of 40 (AdamW) |" in told


@pytest.mark.slow
def test_two_nodes_and_weights_in_parts_end_where_one_process_does(script, tmp_path, monkeypatch, capsys):
    engines = ["two-nodes", "fsdp2", "fsdp2-asked"]
    command = ["try_engines.py", str(tmp_path), "--families", "classification", "--json", str(tmp_path / "told.json")]
    monkeypatch.setattr(sys, "argv", [*command, "--engines", *engines])
    assert script.main() == 0, capsys.readouterr()
    trials = {trial["engine"]: trial for trial in json.loads((tmp_path / "told.json").read_text())}
    assert list(trials) == ["python", "two-nodes", "fsdp2-asked", "fsdp2"]
    assert [trial["num_processes"] for trial in trials.values()] == [1, 2, 2, 2]
    assert all(trials[engine]["difference"] < 1e-5 for engine in engines)
    assert trials["fsdp2"]["notes"]["divided"] == trials["fsdp2"]["notes"]["parameters"] > 0
    assert trials["fsdp2-asked"]["warned"] and not trials["two-nodes"]["warned"]
