"""An audit finds what was put wrong into a data set, each in its place, and nothing else."""

import json
import pickle
import shutil

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data import worker_processes
from hf_vlm.data.lines.audit import audit_lines
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.lines.image_text import find_splits, read_lines
from hf_vlm.parts.pictures import to_grayscale

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


@pytest.mark.parametrize("layout", ["files", "table"])
def test_several_processes_find_what_one_finds(lines, layout, monkeypatch):
    write_split(lines / "train", {f"{index}.png": "rain" for index in range(9)} | {"b.png": "\u6f22"}, seed=3)
    damage(lines, "unreadable pictures")
    Image.new("L", (40, 90), 255).save(lines / "train" / "7.png")
    if layout == "table":
        rows = read_lines(lines, "train")
        held = [
            {"bytes": (lines / "train" / name).read_bytes(), "path": None}
            for name in [*map("{}.png".format, range(9)), "b.png"]
        ]
        table = Dataset.from_dict(
            {"image": held, "text": rows.texts}, Features({"image": ImageFeature(), "text": Value("string")})
        )
        shutil.rmtree(lines / "train")
        table.to_parquet(lines / "train.parquet")
    settings = {"tokenizer": TOKENIZER, "max_label_length": 9, "prepare": to_grayscale}
    alone = audit_lines(lines, **settings)
    assert {"labels", "unreadable pictures", "empty pictures"} <= set(alone.faults) and alone.characters
    started = []
    write_parts = worker_processes._write_parts
    monkeypatch.setattr(
        worker_processes, "_write_parts", lambda *given: started.append(given[1]) or write_parts(*given)
    )
    for num_proc in (2, 3):
        found = audit_lines(lines, **settings, num_proc=num_proc)
        assert found.to_dict() == alone.to_dict() and list(found.faults) == list(alone.faults)
    assert started == [2, 3]


def test_chosen_lines_travel_without_the_others(lines):
    rows = read_lines(lines, "train")
    one = rows.select([2]).alone()
    assert len(pickle.dumps(one)) < len(pickle.dumps(rows.select([2]))) and one[0]["source"] == rows.sources[2]
    assert one[0]["image"].tobytes() == rows[2]["image"].tobytes() and one.texts == [rows.texts[2]]


@pytest.mark.parametrize("other", [True, False], ids=["beside another split", "alone"])
def test_split_whose_rows_are_all_bad_is_told_row_by_row(lines, other, capsys):
    split = lines / "validation"
    (split / "metadata.jsonl").write_text('nonsense\n{"file_name": "gone.png", "text": "x"}\n')
    if not other:
        shutil.rmtree(lines / "train")
    audit = audit_lines(lines)
    assert not audit.is_usable
    assert audit.num_lines == {**({"train": 3} if other else {}), "validation": 0}
    assert [message.rpartition(", ")[0] for message in audit.faults["bad rows"][1:]] == [
        f"{split}/metadata.jsonl, line 2: wanted the picture gone.png"
    ]
    assert "metadata.jsonl, line 1: wanted a JSON object" in audit.faults["bad rows"][0]
    assert main(["audit", str(lines)]) == 1
    assert "not usable" in capsys.readouterr().out


def test_split_that_can_not_be_read_does_not_end_the_audit(lines):
    (lines / "train" / "metadata.jsonl").write_bytes(b"\xff")
    audit = audit_lines(lines)
    assert audit.num_lines == {"train": 0, "validation": 1} and not audit.is_usable
    assert "must be UTF-8 text" in audit.faults["splits without lines"][0]
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        audit_lines(lines, ["train"])


def test_rows_of_no_split_are_told_and_each_bad_row_once(tmp_path):
    write_split(tmp_path, dict.fromkeys(["a.png", "b.png", "c.png"], "x"), seed=1)
    (tmp_path / "metadata.jsonl").unlink()
    rows = ["a.png,one,train", "b.png,two,validation", "c.png,three,holdout", "c.png,four,", "gone.png,five,train"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,split", *rows, "a.png,x,train,y"]))
    audit = audit_lines(tmp_path)
    assert audit.num_lines == {"train": 1, "validation": 1} and not audit.is_usable
    assert [message.partition("metadata.csv, ")[2] for message in audit.faults["rows of no split"]] == [
        f"line {line}: wanted a row of train or validation, got the split {split!r}. Correct its `split` or folder."
        for line, split in ((4, "holdout"), (5, ""))
    ]
    assert len(audit.faults["bad rows"]) == 2
    assert list(audit_lines(tmp_path, ["validation"]).faults) == ["bad rows"]


def ink_of(mode):
    """Black letters, told from the paper by opacity or by 16 bits only."""
    grey = np.random.default_rng(0).integers(0, 255, (20, 60), dtype=np.uint8)
    black, opacity = Image.new("L", (60, 20)), Image.fromarray(grey)
    if mode == "16 bits":
        return Image.fromarray(grey.astype(np.uint16) + 300)  # all white where 255 is the limit
    return Image.merge(mode, [black] * (len(mode) - 1) + [opacity])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "16 bits"])
@pytest.mark.parametrize("prepare", [None, to_grayscale], ids=["by default", "as training does"])
def test_ink_in_opacity_or_16_bits_is_no_empty_picture(lines, mode, prepare):
    ink_of(mode).save(lines / "train" / "a.png")
    assert audit_lines(lines, **({"prepare": prepare} if prepare else {})).is_usable


def test_pictures_are_judged_as_training_prepares_them(lines):
    invisible = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 60, 4), dtype=np.uint8))
    invisible.putalpha(0)
    invisible.save(lines / "train" / "a.png")
    audit = audit_lines(lines, prepare=to_grayscale)
    assert list(audit.faults) == ["empty pictures"] and "one grey level, 255" in audit.faults["empty pictures"][0]


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
