"""Answers are measured against the last word of each conversation, for whole models, adapters and other layouts."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from hf_vlm.training.scores.conversation_evaluation import answer_conversations, is_visual_chat, load_visual_chat
from hf_vlm.training.scores.metrics import chrf
from hf_vlm.training.scores.task_evaluation import evaluate_rows
from tests.models.trocr.tiny_models import tiny_reader
from tests.tiny_chat import COLOURS, chat_folder, coloured

__all__ = ["chat_folder"]


def asked(*names, words="colours?"):
    return {"role": "user", "content": [*[{"type": "image"}] * len(names), {"type": "text", "text": words}]}


def said(words):
    return {"role": "assistant", "content": words}


# What the model has learnt to say, with the answer that the data have for it: two of them are wrong.
ROWS = [
    (["red"], [asked("red"), said("Red.")]),
    (["green", "blue"], [asked("green", "blue"), said("green blue")]),
    ([], [{"role": "user", "content": "hello"}, said("hi")]),
    (["blue"], [asked("blue"), said("red")]),
    (
        ["green", "blue"],
        [asked("green", "blue"), said("green blue"), {"role": "user", "content": "first?"}, said("blue")],
    ),
    (["red"], [asked("red"), said("red"), {"role": "user", "content": "first?"}, said("red")]),
]
ANSWERS = ["red", "green blue", "hi", "blue", "green", "red"]
KINDS = ["one", "two", "none", "one", "later", "later"]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name in COLOURS:
        coloured(name).save(folder / f"{name}.png")
    rows = [
        {"messages": messages, "images": [f"{name}.png" for name in names], "kind": kind}
        for (names, messages), kind in zip(ROWS, KINDS, strict=True)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


@pytest.fixture(scope="module")
def rows(rows_file):
    return read_conversations(rows_file)


@pytest.fixture(scope="module")
def chat(chat_folder):
    return load_visual_chat(chat_folder)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_answers_come_in_the_order_of_the_rows(chat, rows, batch_size):
    assert answer_conversations(*chat, rows, batch_size=batch_size) == ANSWERS


def test_answer_knows_nothing_of_the_reference(chat, rows_file, tmp_path):
    rows = json.loads(rows_file.read_text())
    for row in rows:
        row["messages"][-1]["content"] = "something else"
    (rows_file.parent / "other.json").write_text(json.dumps(rows))
    assert answer_conversations(*chat, read_conversations(rows_file.parent / "other.json")) == ANSWERS


def test_scores_are_those_of_the_last_answers(chat, rows):
    scores = evaluate_rows(*chat, rows, task="chat")
    assert scores.answers == ANSWERS and scores.num_questions == 6
    assert scores.scores["exact_match"] == pytest.approx(4 / 6)
    references = [messages[-1]["content"] for _, messages in ROWS]
    assert scores.scores["chrf"] == pytest.approx(chrf(references, ANSWERS))
    of_kinds = {kind: (of["exact_match"], of["num_questions"]) for kind, of in scores.by_kind.items()}
    assert of_kinds == {"one": (0.5, 2), "two": (1, 1), "none": (1, 1), "later": (0.5, 2)}
    assert scores.by_kind["two"]["chrf"] == pytest.approx(100)
    assert str(scores).startswith("exact match 66.7 %, chrf ") and "later: exact match 50.0 %" in str(scores)


def test_pictures_can_be_left_out(chat, rows):
    blind = answer_conversations(*chat, rows, lambda index: [])
    assert blind[2] == "hi"
    assert blind[0] == blind[3]  # the words alone do not tell red from blue


def test_settings_of_generate_are_handed_on(chat, rows):
    assert answer_conversations(*chat, rows, max_new_tokens=2)[1] == ANSWERS[1][:2]


def test_no_rows_are_refused(chat, rows):
    with pytest.raises(ValueError, match="got none"):
        evaluate_rows(*chat, rows.select([]), task="chat")


def test_command_measures_each_set(chat_folder, rows_file, capsys):
    assert main(["evaluate", chat_folder, str(rows_file), str(rows_file), "--json", "--batch-size", "4"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["data"] for line in told] == [str(rows_file)] * 2
    assert told[0]["answers"] == ANSWERS and told[0]["exact_match"] == pytest.approx(4 / 6)
    assert main(["evaluate", chat_folder, str(rows_file), "--num-beams", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{rows_file}: exact match 66.7 %, chrf ")


def test_command_refuses_what_is_for_lines_and_data_without_conversations(chat_folder, rows_file, tmp_path, capsys):
    assert main(["evaluate", chat_folder, str(rows_file), "--ignore-case"]) == 1
    assert "`--ignore-case` is for lines" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert main(["evaluate", chat_folder, str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_command_measures_an_adapter_with_or_without_a_processor(chat_folder, rows_file, tmp_path, capsys):
    model, processor = load_visual_chat(chat_folder)
    adapted = add_lora(model, LoraSection(rank=2, alpha=2), base=chat_folder)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.002)
            elif "modules_to_save" in name:
                parameter.zero_()  # no picture is told from another
    save_adapter(adapted, tmp_path / "adapter")
    for has_processor in (False, True):  # without one the base's is taken
        if has_processor:
            processor.save_pretrained(tmp_path / "adapter")
        assert is_visual_chat(str(tmp_path / "adapter"))
        assert main(["evaluate", str(tmp_path / "adapter"), str(rows_file), "--json"]) == 0, capsys.readouterr().err
        answers = json.loads(capsys.readouterr().out)["answers"]
        assert answers[2] == "hi" and answers[0] == answers[3]


def test_other_models_are_no_visual_chat(chat_folder, tmp_path):
    assert is_visual_chat(chat_folder)
    reader = tiny_reader()
    reader.save_pretrained(tmp_path / "reader")
    assert not is_visual_chat(str(tmp_path / "reader"))
    adapted = get_peft_model(reader, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "processor_config.json").write_text(
        json.dumps({"processor_class": "TrOCREncoderDecoderProcessor"})
    )
    assert not is_visual_chat(str(tmp_path / "adapter"))
