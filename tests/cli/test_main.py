"""The `hf-vlm` command: what it prints, and what its exit code tells."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import lines_folder, recipe_of, recipe_sections, tiny_recipe, write_splits  # noqa: F401 (fixtures)
from tests.tiny_pages import drawn_page, find_drawn_lines
from tests.tiny_tokenizers import random_pictures, saved, tiny_dvae, tiny_vqvae
from tests.training.tiny_pictures import tiny_picture_recipe, write_picture_splits

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


def test_train_evaluate_and_dry_run_of_an_image_classifier(tmp_path, capsys):
    pictures = write_picture_splits(tmp_path / "pictures")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_picture_recipe(pictures, tmp_path / "out")), encoding="utf-8")
    assert main(["train", str(file), "--dry-run", "training.max_steps=7"]) == 0
    assert "7 steps of 8 pictures" in capsys.readouterr().out
    assert main(["train", str(file), "training.max_steps=2"]) == 0
    assert f"Model saved in {tmp_path / 'out'}" in capsys.readouterr().out

    evaluate = ["evaluate", str(tmp_path / "out"), str(pictures), "--split", "validation"]
    assert main(evaluate) == 0
    told = capsys.readouterr().out
    assert re.search(r"pictures: top-1 accuracy [\d.]+ %, on 9 pictures \([\d.]+ pictures/s\)", told)
    assert main([*evaluate, "--json"]) == 0
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"data"')]
    assert told["num_pictures"] == len(told["predictions"]) == 9
    assert set(told["predictions"][0]) == {"label", "predicted", "probability"}
    assert main([*evaluate, "--ignore-case"]) == 1
    assert "are for lines, got a model of pictures" in capsys.readouterr().err


def test_extend_alphabet_saves_a_model_that_can_be_read_with_and_trained(
    model_folder, recipe_sections, lines_folder, tmp_path, capsys
):
    texts = tmp_path / "texts.txt"
    texts.write_text("\ufeffzażółć gęślą\njaźń\n", encoding="utf-8")
    out = tmp_path / "extended"
    told = ["extend-alphabet", "--model", str(model_folder), "--out", str(out), "--characters", "∞", str(lines_folder)]
    assert main([*told, "--texts", str(texts)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"'ą'\s+U\+0105\s+1\s+added\s+starts from 'a'", printed)
    assert re.search(r"'∞'\s+U\+221E\s+0\s+added\s+starts from the mean", printed)
    assert "10 characters added" in printed and "whole lines written, of 13: 84.61 % -> 100.00 %" in printed
    assert f"model.pretrained={out} data.folder={lines_folder}" in printed

    assert main(["read", str(lines_folder / "validation"), "--model", str(out)]) == 0
    recipe_sections["model"] = {"pretrained": str(out)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_sections), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml"), "training.max_steps=1"]) == 0
    capsys.readouterr()

    again = ["extend-alphabet", "--model", str(tmp_path / "out"), "--texts", str(texts), "--out", str(tmp_path / "no")]
    assert main([*again, "--json"]) == 0
    report = next(json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"out"'))
    assert report["out"] is None and not (tmp_path / "no").exists()
    assert {row["status"] for row in report["characters"]} == {"known"}


def test_extend_alphabet_tells_mistakes_and_what_it_could_not_add(model_folder, lines_folder, tmp_path, capsys):
    to = ["--model", str(model_folder), "--out", str(tmp_path / "new")]
    for arguments, told in (
        (to, "must hold characters"),
        ([*to, "--texts", str(tmp_path / "none.txt")], "none.txt"),
        ([*to, "--texts", str(lines_folder / "train" / "line_0.png")], "must be UTF-8 text"),
        (["--model", str(model_folder), "--characters", "ą", "--out", str(model_folder)], "a folder without a model"),
    ):
        assert main(["extend-alphabet", *arguments]) == 1
        assert told in capsys.readouterr().err
    (tmp_path / "texts.txt").write_text("a\x07ą\n", encoding="utf-8")
    assert (
        main(["extend-alphabet", *to, "--texts", str(tmp_path / "texts.txt")]) == 0
    )  # saved, with what could be added
    told = capsys.readouterr()
    assert "refused" in told.out and "some characters can't be written" in told.err
    never = ["--model", str(model_folder), "--out", str(tmp_path / "none"), "--texts", str(tmp_path / "controls.txt")]
    (tmp_path / "controls.txt").write_text("a\u200bb\n", encoding="utf-8")  # a space without width
    assert main(["extend-alphabet", *never]) == 1
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    (tmp_path / "lines.csv").write_text("file_name,text\nline_0.png,ę\n", encoding="utf-8")
    (tmp_path / "line_0.png").write_bytes((lines_folder / "train" / "line_0.png").read_bytes())
    assert main(["extend-alphabet", str(tmp_path / "lines.csv"), *to[:2], "--out", str(tmp_path / "other")]) == 0
    assert f"data.folder={tmp_path} data.train='[{{path: lines.csv}}]'" in capsys.readouterr().out
    assert (tmp_path / "new" / "tokenizer.json").exists()


def test_explain_writes_a_sheet_a_picture_and_tells_a_broken_one(model_folder, lines_folder, tmp_path, capsys):
    folder, out = lines_folder / "validation", tmp_path / "sheets"
    told = ["explain", "--model", str(model_folder), "--out", str(out), str(folder)]
    assert main(told) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3:] == [f"{folder / f'line_{i}.png'}\t{out / f'line_{i}-attention.png'}" for i in range(3)]
    assert all(Image.open(line.split("\t")[1]).height > 100 for line in printed[-3:])
    assert main([*told, "--json", str(tmp_path / "none.png")]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines() if line.startswith('{"file"')]
    assert [set(row) for row in rows] == [{"file", "files", "rows", "columns", "rollout", "classes"}] * 3
    assert all(len(row["rollout"]) == row["rows"] and len(row["rollout"][0]) == row["columns"] for row in rows)
    assert f"hf-vlm: {tmp_path / 'none.png'}" in printed.err


@pytest.mark.parametrize("make", [tiny_vqvae, tiny_dvae])
def test_tokenize_and_back_tells_a_broken_picture(make, tmp_path, capsys):
    model, cache, out = saved(make(), tmp_path / "model"), tmp_path / "cache", tmp_path / "out"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(random_pictures(3)):
        picture.save(pictures / f"{number}.png")
    (pictures / "1.png").write_bytes(b"no picture")
    told = ["tokenize", str(pictures), "--out", str(cache), "--model", model]
    assert main(told) == 1
    printed = capsys.readouterr()
    size = "2 x 2" if make is tiny_vqvae else "4 x 4"
    assert [line for line in printed.out.splitlines() if "\t" in line] == [
        f"{pictures / name}\t{size} codes" for name in ("0.png", "2.png")
    ]
    assert printed.err.count("hf-vlm: ") == 1 and f"hf-vlm: {pictures / '1.png'}: wanted a picture" in printed.err

    random_pictures(1)[0].save(pictures / "1.png")
    assert main([*told, "--json", "--batch-size", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"file"')]
    assert [row["is_new"] for row in rows] == [False, True, False]
    assert {row["num_codes"] for row in rows} == {64} and set(rows[0]) > {"file", "rows", "columns"}

    back = ["tokenize", str(cache), "--decode", "--out", str(out), "--model", model]
    assert main(back) == 0
    assert f"{pictures / '0.png'}\t{out / '0.png'}" in capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    assert {Image.open(path).size for path in out.iterdir()} == {(8, 8)}
    assert main(back) == 1
    assert "new or empty folder is wanted" in capsys.readouterr().err
    assert main([*back, str(pictures)]) == 1
    assert "`--decode` wants one token cache, got 2" in capsys.readouterr().err
    other = saved(make(), tmp_path / "other")
    assert main([*told[:-1], other]) == 1
    assert "wanted codes of the tokenizer with the SHA-256" in capsys.readouterr().err


@pytest.fixture
def pages_folder(tmp_path, monkeypatch):
    """Three pages, the second broken, read without a detector."""
    monkeypatch.setattr("hf_vlm.pipelines.page_reading.TextDetector", lambda: find_drawn_lines)
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, texts in enumerate([["a cat", "no"], [], ["two dogs ran"]], start=1):
        drawn_page(texts).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"")
    return folder


def test_read_page_prints_text_or_json_and_tells_a_broken_page(model_folder, pages_folder, capsys):
    told = ["read", "--page", str(pages_folder), "--model", str(model_folder)]
    assert main(told) == 1
    printed = capsys.readouterr()
    heads = [line for line in printed.out.splitlines() if line.startswith("==> ")]
    assert heads == [f"==> {pages_folder / name} <==" for name in ("1.png", "3.png")]
    assert [line for line in printed.err.splitlines() if line.startswith("hf-vlm: ")] == [
        f"hf-vlm: {pages_folder / '2.png'}: wanted a picture, got an empty file. Copy or download it again."
    ]
    assert main([*told, "--json"]) == 1
    pages = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"file"')]
    assert [(page["width"], page["height"], len(page["lines"])) for page in pages] == [(260, 200, 2), (260, 200, 1)]
    assert set(pages[0]["lines"][0]) == {"text", "score", "words", "polygon", "box", "abstained"}


@pytest.mark.parametrize(
    ("kind", "file"), [("text", "1.txt"), ("json", "1.json"), ("page", "1.xml"), ("alto", "1.xml")]
)
def test_read_page_writes_a_file_a_page(model_folder, pages_folder, tmp_path, capsys, kind, file):
    out = tmp_path / "out"
    told = ["read", "--page", str(pages_folder), "--model", str(model_folder), "--out", str(out), "--format", kind]
    assert main(told) == 1
    assert f"{pages_folder / '1.png'}\t{out / file}" in capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in out.iterdir()) == [file, file.replace("1", "3")]


@pytest.mark.parametrize("kind", ["pages", "lines"])
def test_lines_below_a_score_are_listed_and_can_be_trained_on(
    model_folder, pages_folder, lines_folder, recipe_sections, tmp_path, capsys, kind
):
    todo = tmp_path / "todo.csv"
    given = ["--page", str(pages_folder)] if kind == "pages" else [str(lines_folder / "validation")]
    told = ["read", *given, "--model", str(model_folder), "--below", "0.9", "--out", str(todo)]
    assert main(told) == (1 if kind == "pages" else 0)
    assert "3 lines to correct in" in capsys.readouterr().err
    assert main(told) == 1
    assert "must be new, got" in capsys.readouterr().err

    rows = todo.read_text(encoding="utf-8-sig").splitlines()
    names = [row.partition(",")[0] for row in rows[1:]]
    corrected = "".join(f"{text};{name};;\r\n" for name, text in zip(names, ["a cat", "no", "two dogs"], strict=True))
    todo.write_bytes(f"\ufefftext;file_name;;\r\n{corrected}".encode())
    recipe_sections["data"]["train"] = [{"path": str(todo)}]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_sections), encoding="utf-8")
    assert main(["train", str(file), "training.max_steps=1"]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--below", "0.9"], "`--below` wants `--out FILE.csv`"),
        (["--page", "--out", "todo.csv"], "`--out todo.csv` wants `--below SCORE`"),
        (["--out", "folder"], "`--out` wants `--page`"),
        (["--format", "page", "--out", "folder"], "`--out` wants `--page`"),
        (["--page", "--format", "alto"], "`--format alto` wants `--page` and `--out FOLDER`"),
        (["--page", "--format", "page", "--below", "0.9", "--out", "a.csv"], "`--format page` wants"),
        (["--below", "90", "--out", "a.csv"], "must be a probability in [0, 1], got 90.0"),
        (["--below", "0.9", "--out", "todo.txt"], "must be a .csv file, got todo.txt"),
    ],
)
def test_options_of_read_that_do_not_go_together_are_refused(options, told, capsys):
    assert main(["read", "a.png", *options]) == 1
    assert told in capsys.readouterr().err


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
    "arguments",
    [[], ["write"], ["read"], ["read", "a.png", "--num-beams", "0"], ["read", "a", "-x"], ["tokenize", "a.png"]],
)
def test_wrong_command_line_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: hf-vlm" in capsys.readouterr().err


def test_traceback_is_shown_when_asked_for():
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "train", "no-such-recipe"])


def test_interrupted_command_says_that_it_can_go_on(model_folder, lines_folder, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_vlm.pipelines.picture_files.read_files", stop)
    assert main(["read", str(lines_folder), "--model", str(model_folder)]) == 130
    assert capsys.readouterr().err.startswith("hf-vlm: stopped. What was written stays")


def test_a_name_in_another_encoding_is_printed(model_folder, lines_folder, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb") as file:
        file.write((lines_folder / "train" / "line_0.png").read_bytes())
    command = [sys.executable, "-m", "hf_vlm.cli", "read", name, "--model", str(model_folder)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=strict, capture_output=True, check=True)
    assert b"caf\\udce9.png\t" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("module", ["hf_vlm", "hf_vlm.cli"])
def test_module_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hf-vlm ") and done.stderr == ""


LIGHT = """
import contextlib, io, sys
import hf_vlm
from hf_vlm.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
print(*sorted({module.partition(".")[0] for module in sys.modules}))
"""


@pytest.mark.slow
def test_import_and_help_load_no_package_that_can_wait():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"hf_vlm", "torch", "transformers"} <= loaded
    waiting = "datasets pyarrow pandas peft scipy sklearn matplotlib timm gradio onnx onnxruntime jiwer rapidocr shtab"
    assert loaded & set(waiting.split()) == set()
