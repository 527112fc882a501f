"""`hf-vlm train`: its JSON, and going on from a run's folder."""

import json
import shutil

import pytest
import yaml

from hf_vlm.cli import main
from hf_vlm.cli.commands.train import recipe_of
from hf_vlm.cli.parser import parse
from tests.tiny_lines import lines_folder, recipe_sections  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)


@pytest.fixture
def recipe(recipe_sections, tmp_path):
    """A tiny recipe's file; its run goes into `out` beside it."""
    recipe_sections["training"] |= {"max_steps": 2, "save_steps": 1, "logging_steps": 1}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_sections), encoding="utf-8")
    return file


def test_json_of_a_run_is_all_of_stdout_and_its_folder_is_gone_on_with(recipe, tmp_path, capsys, caplog):
    assert main(["train", str(recipe), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    assert (told["folder"], told["steps"]) == (str(tmp_path / "out"), 2)
    assert told["metrics"]["train_loss"] == state["log_history"][-1]["train_loss"]
    assert told["metrics"]["loss"] == [entry["loss"] for entry in state["log_history"] if "loss" in entry][-1]

    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    assert main(["train", str(moved), "--resume", "training.max_steps=3", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["steps"] == 3 and json.loads(printed.out)["folder"] == str(moved)
    assert f"Going on from {moved / 'checkpoint-2'}." in caplog.messages
    assert (moved / "checkpoint-3").is_dir() and not (tmp_path / "out").exists()


def test_resume_wants_a_checkpoint(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--resume"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("hf-vlm: A checkpoint to go on from is wanted in") and str(tmp_path / "out") in told


def test_dry_run_as_json_holds_the_report(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--dry-run", "--json"]) == 0
    assert "2 steps of 8 lines" in json.loads(capsys.readouterr().out)["report"]


@pytest.mark.parametrize(("given", "resume"), [([], True), (["--resume"], "required"), (["--no-resume"], False)])
def test_options_say_where_a_run_begins(given, resume, recipe, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hf_vlm.training.tasks.train", lambda recipe, resume: asked.append(resume) or (_ for _ in ()).throw(OSError())
    )
    main(["train", str(recipe), *given])
    assert asked == [resume]


def test_folder_that_is_no_run_is_told_or_passed_over_for_the_shipped_recipe_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llava-chat").mkdir()
    assert recipe_of(parse(["train", "llava-chat", "a=1"])[1]) == ("llava-chat", ["a=1"])
    (tmp_path / "pictures").mkdir()
    assert main(["train", "pictures"]) == 1
    assert "The folder of a run is wanted, with its `recipe.yaml`, got pictures without." in capsys.readouterr().err


def test_run_in_its_own_folder_keeps_its_recipe_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("training: {output_dir: run}")
    assert recipe_of(parse(["train", "run", "a=1"])[1]) == ("run/recipe.yaml", ["a=1"])
    monkeypatch.chdir(tmp_path / "run")
    assert recipe_of(parse(["train", ".", "a=1"])[1]) == ("recipe.yaml", ["training.output_dir=.", "a=1"])
