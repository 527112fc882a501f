"""`hf-vlm make-data` and `hf-vlm convert`: what they print, write and give back."""

import json

import pytest
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data.conversations.conversations import read_conversations


@pytest.fixture
def contexts(tmp_path):
    folder = tmp_path / "contexts"
    folder.mkdir()
    rows = []
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
        boxes = [("dog", [0.02, 0.2, 0.3, 0.6]), ("boat", [0.5, 0.1, 0.95, 0.9]), ("kite", [0.32, 0.02, 0.44, 0.12])]
        instances = [{"category": name, "bbox": box} for name, box in boxes[: 2 + index % 2]]
        rows.append({"id": str(index), "image": f"{index}.png", "captions": ["A day at sea."], "instances": instances})
    (folder / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "contexts.jsonl"


def test_data_is_made_by_rules(contexts, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "make-data",
        str(contexts),
        "--teacher",
        "rules",
        "--image-folder",
        str(contexts.parent),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "conversation: 3 of 3 accepted (100.0 %)" in told.out
    assert f"in {out}" in told.out
    assert main(["audit", str(out)]) == 0
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accepted"]["conversation"] == 3


def test_bad_contexts_are_told_with_their_lines(contexts, tmp_path, capsys):
    rows = contexts.read_text().splitlines()
    bad = json.loads(rows[0]) | {"id": "wide", "instances": [{"category": "dog", "bbox": [10, 20, 300, 400]}]}
    contexts.write_text("\n".join([*rows, json.dumps(bad)]) + "\n")
    assert main(["make-data", str(contexts), "--teacher", "rules", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "contexts left out" in told
    assert "contexts.jsonl, line 4" in told
    assert "`bbox_format`" in told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--kinds", "talk"], "`kinds` must be"),
        (["--language", "xx"], "`language` must be one of en, de, fr, es"),
        (
            ["--teacher-model", "m"],
            "`--teacher-model` is for teachers of the kind `endpoint`, got it with `--teacher rules`",
        ),
        (["--temperature", "0"], "`--temperature` is for teachers of the kind `model` or `endpoint`"),
        (
            ["--teacher", "http://127.0.0.1:1/v1", "--batch-size", "2"],
            "`--batch-size` is for teachers of the kind `model`",
        ),
        (["--teacher", "localhost:8000"], "an endpoint's URL, which begins with http:// or https://"),
        (["--teacher", "no/such/folder"], "no/such/folder"),
        (["--prompts", "no/such/folder"], "no/such/folder"),
        (["--image-folder", "no/such/folder"], "`image_folder` must be a folder"),
        (["--teacher", "ftp://somewhere"], "ftp"),
    ],
)
def test_wrong_options_are_told(contexts, tmp_path, capsys, more, told):
    command = ["make-data", str(contexts), "--out", str(tmp_path / "out"), *more]
    if "--teacher" not in more:
        command += ["--teacher", "rules"]
    assert main(command) == 1
    assert told in capsys.readouterr().err


def test_missing_contexts_are_told(tmp_path, capsys):
    assert main(["make-data", str(tmp_path / "none.jsonl"), "--teacher", "rules", "--out", str(tmp_path / "out")]) == 1
    assert "none.jsonl, which does not exist" in capsys.readouterr().err


def test_set_is_converted_and_back(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What is it?", "answer": "a dog"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "conversations"
    assert main(["convert", str(tmp_path / "train.jsonl"), "--task", "vqa", "--split", "train", "--out", str(out)]) == 0
    assert len(read_conversations(out, "train")) == 1
    assert main(["convert", str(out), "--to", "llava", "--out", str(tmp_path / "llava")]) == 0
    capsys.readouterr()
    assert main(["convert", str(out), "--to", "lava", "--out", str(tmp_path / "other")]) == 1
    assert "llava" in capsys.readouterr().err


def test_first_fault_is_told_where_nothing_can_be_used(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "captions": [" "]}) + "\n")
    assert main(["make-data", str(tmp_path / "rows.jsonl"), "--teacher", "rules", "--out", str(tmp_path / "out")]) == 1
    assert "rows.jsonl, line 1: wanted captions, instances or regions" in capsys.readouterr().err
    command = ["convert", str(tmp_path / "rows.jsonl"), "--task", "vqa", "--out", str(tmp_path / "converted")]
    assert main(command) == 1
    assert "rows.jsonl, line 1: wanted `question` as the question" in capsys.readouterr().err
