"""An audit finds what was put wrong into a data set, each in its place, and nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data.audit import audit_lines
from hf_vlm.data.character_tokenizer import build_character_tokenizer
from hf_vlm.data.image_text import find_splits

TOKENIZER = build_character_tokenizer(alphabet=" abcdefghijklmnopqrstuvwxyz")


def write_split(folder, rows, seed):
    """Rows `file name -> text`, pictures of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in rows:
        Image.fromarray(rng.integers(0, 255, (20, 60 + seed), dtype=np.uint8)).save(folder / name)
    content = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows.items())
    (folder / "metadata.jsonl").write_text(content + "\n", encoding="utf-8")


@pytest.fixture
def lines(tmp_path):
    write_split(tmp_path / "train", {"a.png": "a cat", "b.png": "two dogs", "c.png": "rain"}, seed=1)
    write_split(tmp_path / "validation", {"a.png": "a ship"}, seed=2)
    return tmp_path


def test_sound_lines_are_usable_and_measured(lines):
    audit = audit_lines(lines, tokenizer=TOKENIZER, max_label_length=9)
    assert audit.is_usable and not audit.faults and not audit.characters
    assert audit.num_lines == {"train": 3, "validation": 1}
    assert audit.heights == {32: 4} and audit.aspects == {5: 4}  # 20 px high, 61 and 62 px wide


def damage(lines, kind):
    train = lines / "train"
    if kind == "bad rows":
        with (train / "metadata.jsonl").open("a") as file:
            file.write('{"file_name": "gone.png", "text": "x"}\nnonsense\n{"file_name": "a.png", "text": " "}\n')
        return ["line 4: wanted the picture gone.png", "line 5: wanted a JSON", "line 6: wanted a `text`"]
    if kind == "labels":
        (train / "metadata.jsonl").write_text(
            '{"file_name": "a.png", "text": "\u6f22\u5b57"}\n{"file_name": "b.png", "text": "one too long"}\n'
        )
        return ["line 1: wanted a label that the tokenizer can write", "line 2: wanted at most 9 tokens, got 13"]
    if kind == "unreadable pictures":
        (train / "b.png").write_bytes((train / "b.png").read_bytes()[:200])
        return ["b.png: wanted a whole picture"]
    if kind == "empty pictures":
        Image.new("L", (40, 20), 255).save(train / "c.png")
        return ["line 3: wanted a picture with text, got one grey level, 255"]
    assert kind == "pictures in two splits"
    Image.open(train / "b.png").save(lines / "validation" / "a.png", compress_level=0)  # other bytes, the same pixels
    return ["validation/metadata.jsonl, line 1: the same picture is in `train`"]


@pytest.mark.parametrize(
    "kind", ["bad rows", "labels", "unreadable pictures", "empty pictures", "pictures in two splits"]
)
def test_every_fault_is_told_with_its_place_and_no_other(lines, kind):
    wanted = damage(lines, kind)
    audit = audit_lines(lines, tokenizer=TOKENIZER, max_label_length=9)
    assert not audit.is_usable
    assert list(audit.faults) == [kind]
    assert len(audit.faults[kind]) == len(wanted)
    for message, part in zip(audit.faults[kind], wanted, strict=True):
        assert part in message


def test_characters_that_do_not_come_back_are_counted(lines):
    write_split(lines / "train", {"a.png": "A cat", "b.png": "a Cat, Ah"}, seed=3)
    audit = audit_lines(lines, tokenizer=TOKENIZER)
    assert {row["character"]: row["count"] for row in audit.characters} == {"A": 2, "C": 1, ",": 1}
    assert audit.characters[0]["first"].endswith("train/metadata.jsonl, line 1")
    assert audit.is_usable  # the rest of the label can be learnt


def test_splits_are_found_once_each(lines, tmp_path):
    assert find_splits(lines) == ["train", "validation"]
    assert find_splits(lines / "train") == [None]


def test_command_tells_by_its_exit_code(lines, capsys):
    assert main(["audit", str(lines)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "usable"
    damage(lines, "empty pictures")
    assert main(["audit", str(lines), "--json", "--split", "train"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(told["faults"]) == ["empty pictures"] and told["num_lines"] == {"train": 3}
    assert told["is_usable"] is False
