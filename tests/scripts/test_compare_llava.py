"""The baselines of the comparison say what they are to say, on pictures whose features are made by hand; the table is whole."""

import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_chat import COLOURS, coloured, tiny_chat_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_llava.py"
FEATURES = datasets.Features(
    {
        "messages": datasets.List(
            {
                "role": datasets.Value("string"),
                "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
            }
        ),
        "images": datasets.List(datasets.Image()),
        "kind": datasets.Value("string"),
    }
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_llava", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ByColour:
    """A vision encoder whose features are the picture's colour, on two patches; the second is twice as bright."""

    def vision_features(self, pixel_values):
        colour = pixel_values.mean(dim=(-2, -1))  # (pictures, 3)
        return torch.stack([colour, 2 * colour], dim=1)

    def prepare_images(self, images):
        return torch.stack([torch.tensor(np.asarray(image) / 255).movedim(-1, 0).float() for image in images])


def row(colours, *exchanges, kind="name"):
    messages = []
    for number, (question, answer) in enumerate(exchanges):
        pictures = [{"type": "image", "text": None}] * len(colours) if number == 0 else []
        messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"messages": messages, "images": [coloured(c) if isinstance(c, str) else c for c in colours], "kind": kind}


@pytest.fixture
def read(script, tmp_path):
    def written(*rows):
        folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        datasets.Dataset.from_list(list(rows), features=FEATURES).save_to_disk(str(folder))
        return script.read_conversations(folder)

    return written


TRAIN = [
    row(["red"], ("What is it?", "a fire"), ('Is it "hot"?', "yes")),
    row(["red"], ('Is it "cold"?', "no")),
    row(["blue"], ("What is it?", "a sea"), ('Is it "wet"?', "yes")),
    row(["green"], ("What is it?", "a sea"), ("How many are there?", "one")),
]


@pytest.fixture
def known(script, read):
    return script.Known(read(*TRAIN), ByColour(), ByColour())


def test_commonest_answer_is_that_of_the_same_words(known, read):
    asked = read(
        row(["red"], ("What is it?", "?")),
        row(["red"], ('Is it "cold"?', "?")),  # what is quoted does not count
        row(["red"], ("How many there are?", "?")),  # nearest in words
        row(["red"], ("What is it?", "a lie"), ("How many are there?", "?")),  # the last question is asked
    )
    assert known.most_common(asked) == ["a sea", "yes", "one", "one"]


def test_nearest_neighbour_looks_at_the_picture_and_then_at_the_words(script, known, read, monkeypatch):
    monkeypatch.setattr(script, "NEIGHBOURS", 1)
    reddish = Image.new("RGB", (32, 32), (90, 20, 20))  # darker: the direction counts alone
    asked = read(
        row([reddish], ("What is it?", "?")),
        row(["blue"], ("What is it?", "?")),
        row(["blue"], ('Is it "dry"?', "?")),
        row(["green"], ("How many are there here?", "?")),
        row(["green"], ('Is it "dry"?', "?")),  # of this picture no such question is known
    )
    assert known.nearest(asked) == ["a fire", "a sea", "yes", "one", "a sea"]
    monkeypatch.setattr(script, "NEIGHBOURS", 4)
    assert known.nearest(asked.select([4])) != ["a sea"]  # of the four nearest one is asked so


def test_features_of_a_row_are_the_mean_of_its_pictures_at_length_one(known, read):
    rows = read(row(["red", "blue"], ("q", "a")), row(["green"], ("q", "a")))
    colours = {name: np.array(value) / 255 for name, value in COLOURS.items()}
    wanted = [colours["red"] + colours["blue"], colours["green"]]
    wanted = np.stack([vector / np.linalg.norm(vector) for vector in wanted])
    np.testing.assert_allclose(known.features_of(rows), wanted, atol=1e-4)
    assert known.nearest(read(row([], ("What is it?", "?")))) != []
    rows = read(row(["red", "blue"], ("q", "a")), row([], ("q", "a")), row(["green"], ("q", "a")))
    wanted = np.stack([wanted[0], np.zeros(3), wanted[1]])  # a row of words alone is near to none
    np.testing.assert_allclose(known.features_of(rows), wanted, atol=1e-4)


def test_questions_are_spread_over_the_set(script):
    assert script.indices_of(10, 4) == [0, 3, 6, 9]
    assert script.indices_of(3, 400) == [0, 1, 2]
    assert script.overlap("What is it", "what was IT") == pytest.approx(2 / 4)


def test_script_compares_runs_with_the_baselines(script, tmp_path, monkeypatch, capsys):
    model, processor = tiny_chat_model()
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    asked = [
        row([name], ("colours?", name), kind=kind) for name, kind in zip(COLOURS, ("warm", "cold", "cold"), strict=True)
    ]
    sets = {"train": asked, "validation": asked}
    datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows, features=FEATURES) for split, rows in sets.items()}
    ).save_to_disk(str(tmp_path / "data" / "colours"))
    options = ["--runs", f"mine={tmp_path / 'run'}", "--blind", "mine", "--train", "colours"]
    options += ["--sets", "colours:validation", "--max-new-tokens", "2", "--json", str(tmp_path / "scores.json")]
    monkeypatch.setattr("sys.argv", ["compare_llava.py", str(tmp_path / "data"), *options])
    script.main()
    results = json.loads((tmp_path / "scores.json").read_text())
    assert list(results) == ["most common answer", "nearest neighbour", "mine", "mine, without pictures"]
    scores = {name: of_sets["colours:validation"] for name, of_sets in results.items()}
    assert scores["nearest neighbour"]["exact_match"] == 1  # the same pictures were learnt
    assert scores["most common answer"]["exact_match"] == pytest.approx(1 / 3)
    assert {kind: found["num_questions"] for kind, found in scores["mine"]["by_kind"].items()} == {"cold": 2, "warm": 1}
    assert len(set(scores["mine, without pictures"]["answers"])) == 1  # nothing tells the questions apart
    table = capsys.readouterr().out.splitlines()[-6:]
    assert table[0] == "| exact match, % / chrF | colours:validation |"
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in results]
    assert table[3] == "| nearest neighbour | 100.0 / 100.0 |"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--runs", "runs/mine"], "wants NAME=FOLDER, got 'runs/mine'"),
        (["--runs", "mine=runs/mine", "--blind", "yours"], "wants names among mine, got 'yours'"),
    ],
)
def test_runs_without_a_name_are_refused(script, monkeypatch, capsys, options, told):
    monkeypatch.setattr("sys.argv", ["compare_llava.py", "data", *options, "--train", "a", "--sets", "a:b"])
    with pytest.raises(SystemExit):
        script.main()
    assert told in capsys.readouterr().err
