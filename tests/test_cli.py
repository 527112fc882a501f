"""The `hf-vlm` command: what it prints, and what its exit code tells."""

import json
import re

import pytest
import yaml
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import lines_folder, recipe_of, recipe_sections, tiny_recipe, write_splits  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A saved model that learnt nothing yet."""
    folder = tmp_path_factory.mktemp("cli")
    trainer = build_trainer(recipe_of(tiny_recipe(write_splits(folder / "lines"), folder / "out")))
    trainer.save_model()
    return folder / "out"


def test_train_writes_a_model_and_evaluate_and_read_use_it(recipe_sections, lines_folder, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_sections), encoding="utf-8")
    assert main(["train", str(file), "training.max_steps=2"]) == 0
    assert f"Model saved in {tmp_path / 'out'}" in capsys.readouterr().out

    assert main(["evaluate", str(tmp_path / "out"), str(lines_folder), "--split", "validation"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"lines: CER [\d.]+ %, WER [\d.]+ %, word F1 [\d.]+ % on 3 lines", told)

    pictures = sorted(str(path) for path in (lines_folder / "validation").glob("*.png"))
    assert main(["read", "--model", str(tmp_path / "out"), *pictures]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == pictures


def test_dry_run_prints_a_report_and_saves_no_model(recipe_sections, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_sections), encoding="utf-8")
    assert main(["train", str(file), "--dry-run", "training.max_steps=7"]) == 0
    assert "7 steps of 8 lines" in capsys.readouterr().out
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_evaluate_json_holds_every_line_read(model_folder, lines_folder, capsys):
    assert main(["evaluate", str(model_folder), "--json", "--split", "train", str(lines_folder)]) == 0
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"data"')]
    assert told["num_lines"] == len(told["predictions"]) == 8
    assert told["data"] == str(lines_folder)


def test_read_json_gives_score_and_word_confidences(model_folder, lines_folder, capsys):
    folder = lines_folder / "validation"
    assert main(["read", str(folder), "--model", str(model_folder), "--json", "--num-beams", "2"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"file"')]
    assert [row["file"] for row in told] == [str(folder / f"line_{index}.png") for index in range(3)]
    for row in told:
        assert set(row) == {"file", "text", "score", "words", "abstained"}
        assert 0 <= row["score"] <= 1
        assert row["text"].split() == [word["word"] for word in row["words"]]
        assert all(0 <= word["confidence"] <= 1 for word in row["words"])


def test_read_abstains_below_the_threshold(model_folder, lines_folder, capsys):
    folder = str(lines_folder / "validation")
    main(["read", folder, "--model", str(model_folder), "--json", "--abstain-below", "1"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"file"')]
    assert len(told) == 3 and all(row["text"] == "" for row in told)


@pytest.mark.parametrize("batch_size", ["1", "2", "16"])
def test_bad_picture_is_told_and_the_others_are_read(model_folder, lines_folder, tmp_path, capsys, batch_size):
    good = [str(lines_folder / "validation" / f"line_{index}.png") for index in range(3)]
    empty, text, cut = (tmp_path / name for name in ("empty.png", "text.png", "cut.png"))
    empty.write_bytes(b"")
    text.write_text("no picture")
    cut.write_bytes((lines_folder / "train" / "line_1.png").read_bytes()[:60])
    (tmp_path / "no_pictures").mkdir()
    bad = [str(empty), str(text), str(cut), str(tmp_path / "missing.png"), str(tmp_path / "no_pictures")]
    given = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], bad[4], good[2]]
    assert main(["read", *given, "--model", str(model_folder), "--batch-size", batch_size]) == 1
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines() if "\t" in line] == good
    complaints = [line for line in told.err.splitlines() if line.startswith("hf-vlm: ")]
    assert len(complaints) == len(bad)
    for name, complaint in zip(bad, complaints, strict=True):
        assert name in complaint


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.new("RGB", (1, 1)),
        lambda: Image.new("L", (20_000, 30), 255),
        lambda: Image.new("CMYK", (60, 30)),
        lambda: Image.new("I;16", (60, 30), 40_000),
        lambda: Image.new("RGBA", (60, 30), (0, 0, 0, 0)).convert("P"),
    ],
    ids=["1x1", "20,000 px wide", "CMYK", "16 bit", "palette with alpha"],
)
def test_unusual_picture_is_read(model_folder, tmp_path, capsys, make):
    picture = make()
    file = tmp_path / ("picture.tif" if picture.mode in ("CMYK", "I;16") else "picture.png")
    picture.save(file)
    assert main(["read", str(file), "--model", str(model_folder)]) == 0
    assert str(file) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "no-such-recipe"], "recipe's YAML file is wanted"),
        (["train", "trocr-finetune-lines", "training.learning_rat=1"], "`training.learning_rate`"),
        (["evaluate", "no-such-folder", "."], "no-such-folder"),
    ],
)
def test_mistake_is_told_in_one_line_with_exit_code_1(arguments, told, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [[], ["write"], ["read"], ["read", "a.png", "--num-beams", "0"], ["read", "a", "-x"]]
)
def test_wrong_command_line_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: hf-vlm" in capsys.readouterr().err


def test_traceback_is_shown_when_asked_for():
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "train", "no-such-recipe"])
