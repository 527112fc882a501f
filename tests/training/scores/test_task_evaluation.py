"""What a task's evaluation writes down, what it does without pictures and with broken ones, and which pairs it refuses."""

import hashlib
import json

import pytest
import torch
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data.tasks.task_rows import read_task
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.scores.conversation_evaluation import load_visual_chat
from hf_vlm.training.scores.task_evaluation import (
    architecture_of,
    check_pair,
    data_hash,
    evaluate_rows,
    load_answerer,
    spread_rows,
)
from tests.models.trocr.tiny_models import tiny_reader
from tests.tiny_chat import COLOURS, chat_folder, coloured

__all__ = ["chat_folder"]


@pytest.fixture
def questions(tmp_path):
    """One question a picture, whose answer the tiny model knows, but for the last."""
    for name in COLOURS:
        coloured(name).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "question": "colours?", "answers": [name], "kind": name[0]} for name in COLOURS]
    rows[-1]["answers"] = ["something else", "nothing"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def run(chat_folder, questions, *options):
    arguments = ["evaluate", chat_folder, str(questions), "--task", "vqa", *options]
    return main(arguments)


def test_record_holds_all_that_the_score_depends_on(chat_folder, questions, tmp_path, capsys):
    record_file = tmp_path / "record.json"
    options = ["--record", str(record_file), "--prompt", "none", "--max-new-tokens", "9", "--batch-size", "2"]
    assert run(chat_folder, questions, *options) == 0
    record = json.loads(record_file.read_text())
    names = list(COLOURS)
    assert [example["answer"] for example in record["examples"]] == names
    assert [example["references"] for example in record["examples"]] == [[names[0]], [names[1]],
                                                                         ["something else", "nothing"]]  # fmt: skip
    assert record["vqa_accuracy"] == pytest.approx(2 / 3) and record["by_kind"][names[0][0]]["vqa_accuracy"] == 1
    assert record["decoding"]["max_new_tokens"] == 9 and record["decoding"]["do_sample"] is False
    assert record["metrics"] == "vqa" and record["columns"] == {}
    assert (record["prompt"], record["prompt_text"], record["pictures"], record["batch_size"]) == ("none", "", "own", 2)
    assert torch.__version__.startswith(record["versions"]["torch"]) and record["model"] == chat_folder
    model, _ = load_visual_chat(chat_folder)
    assert record["weights_sha256"] == hash_weights(model.state_dict())
    assert "vqa accuracy 66.7 %" in capsys.readouterr().out


def test_data_hash_tells_pictures_answers_and_prompts_apart(questions):
    rows = read_task(questions, task="vqa")
    first = data_hash(rows)
    assert first == data_hash(read_task(questions, task="vqa")) and len(first) == len(hashlib.sha256().hexdigest())
    assert data_hash(read_task(questions, task="vqa", prompt="Be brief please.")) != first
    assert data_hash(rows.select([0, 1])) != first
    picture = questions.parent / "red.png"
    Image.new("RGB", (32, 32), (221, 30, 30)).save(picture)
    assert data_hash(read_task(questions, task="vqa")) != first
    coloured("red").save(picture)
    text = questions.read_text()
    questions.write_text(text.replace('"nothing"', '"anything"'))
    assert data_hash(read_task(questions, task="vqa")) != first


def test_picture_modes_show_none_or_those_of_another_row(chat_folder, questions):
    chat = load_visual_chat(chat_folder)
    rows = read_task(questions, task="vqa")
    own = evaluate_rows(*chat, rows, task="vqa").answers
    names = list(COLOURS)
    assert own == names
    other = evaluate_rows(*chat, rows, task="vqa", pictures="other").answers
    assert sorted(other) == sorted(names) and all(one != two for one, two in zip(other, names, strict=True))
    blind = evaluate_rows(*chat, rows, task="vqa", pictures="none").answers
    assert len(set(blind)) == 1
    with pytest.raises(ValueError, match="`pictures` must be one of `own`, `none`, `other`, got 'all'"):
        evaluate_rows(*chat, rows, task="vqa", pictures="all")


def test_broken_picture_costs_its_row_only(chat_folder, questions, tmp_path, capsys):
    (questions.parent / "blue.png").write_bytes(b"no picture")
    record_file = tmp_path / "record.json"
    assert run(chat_folder, questions, "--record", str(record_file)) == 1
    told = capsys.readouterr()
    assert "rows.jsonl, line 2" in told.err and "blue.png" in told.err
    record = json.loads(record_file.read_text())
    assert record["num_questions"] == 2 and record["vqa_accuracy"] == 0.5
    assert [example["answer"] for example in record["examples"]] == ["red", None, "green"]
    assert list(record["failed"]) == ["1"] and "not scored" in told.out
    for name in ("red", "green"):
        (questions.parent / f"{name}.png").write_bytes(b"no picture")
    assert run(chat_folder, questions) == 1
    assert "Pictures that can be read are wanted, got none" in capsys.readouterr().err


def test_statements_are_asked_in_whole_groups(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"images": ["a.png", "a.png"], "sentence": f"s{at % 5}", "label": at < 10} for at in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_task(tmp_path / "rows.jsonl", task="nlvr")
    chosen = spread_rows(read, 8, "nlvr")
    groups = [chosen.group(index) for index in range(len(chosen))]
    assert len(groups) == 8 and {groups.count(group) for group in groups} == {4}
    assert len(spread_rows(read, 7, "vqa")) == 7 and spread_rows(read, None, "nlvr") is read


def test_columns_and_picture_folder_are_those_of_the_recipe(chat_folder, questions, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    row = {"photo": "red.png", "ask": "colours?", "reply": "red"}
    (tmp_path / "elsewhere" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = [
        "--columns",
        "image=photo",
        "question=ask",
        "answer=reply",
        "--image-folder",
        str(questions.parent),
        "--json",
    ]
    assert run(chat_folder, tmp_path / "elsewhere" / "rows.jsonl", *options) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["answers"] == ["red"]
    assert run(chat_folder, questions, "--columns", "question") == 1
    assert "`--columns` wants NAME=COLUMN" in capsys.readouterr().err


def test_other_metrics_can_be_asked_for(chat_folder, questions, capsys):
    text = questions.read_text()
    questions.write_text("".join(
        json.dumps({"image": f"{name}.png", "question": "colours?", "answer": answer}) + "\n"
        for name, answer in zip(COLOURS, ["yes", "no", "yes"], strict=True)
    ))  # fmt: skip
    assert run(chat_folder, questions, "--metrics", "yes-no", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] == 0 and told["unanswered_share"] == 1
    questions.write_text(text)


def test_pairs_that_do_not_go_are_refused_with_those_that_do(chat_folder, tmp_path, questions, capsys):
    reader = tiny_reader()
    reader.save_pretrained(tmp_path / "reader")
    assert architecture_of(str(tmp_path / "reader")) == "trocr" and architecture_of(chat_folder) == "llava"
    with pytest.raises(
        ValueError, match="task `nlvr` wants a model of `llava`, got .*reader, `trocr`, which does `caption`"
    ):
        load_answerer(str(tmp_path / "reader"), "nlvr")
    with pytest.raises(ValueError, match="A task must be one of `caption`, .*, got 'captions'"):
        check_pair("captions", "llava", "m")
    with pytest.raises(ValueError, match="another kind of model"):
        check_pair("caption", None, "m")
    assert main(["evaluate", str(tmp_path / "reader"), str(questions), "--record", "r.json"]) == 1
    assert "`--record` is for tasks, got it without one" in capsys.readouterr().err
