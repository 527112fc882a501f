"""Statements whose labels are worked out again from the tables, and whose words tell nothing; translations as named."""

import importlib
import io
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.task_rows import read_task
from hf_vlm.training.scores.task_metrics import score_task

SCRIPTS = Path(__file__).parents[2] / "scripts"
GROUPS = {"food-drink": "drink", "animals-nature": "bug", "objects": "tool"}
SPLITS = ("train", "validation", "openmoji_seen", "openmoji_unseen")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("make_task_sets")
    sys.path.remove(str(SCRIPTS))
    for name in ("make_task_sets", "make_picture_conversations"):
        sys.modules.pop(name, None)


def picture(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    """The folder of sets, and each stored picture's meaning."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "emoji").mkdir()
    meanings = [
        {"name_en": f"{subgroup} {number}", "name_de": f"{subgroup} {number} de", "name_fr": f"{subgroup} {number} fr",
         "group": group, "subgroup": subgroup, "hexcode": f"{place}F{number:02}",
         "keywords": [f"{subgroup}word", f"common{'abc'[number % 3]}"]}
        for place, (group, subgroup) in enumerate(GROUPS.items())
        for number in range(60)
    ]  # fmt: skip
    of_picture = {}
    for vendor_number, vendor in enumerate(("google", "twitter", "openmoji")):
        rows = []
        for number, meaning in enumerate(meanings):
            stored = picture(1000 * vendor_number + number)
            of_picture[stored] = {**meaning, "vendor": vendor}
            rows.append({**meaning, "vendor": vendor, "image": {"bytes": stored, "path": None}})
        pq.write_table(pa.Table.from_pylist(rows), folder / "emoji" / f"{vendor}.parquet")
    script.main([str(folder), str(folder / "out"), "--sentences", "60", "--talks", "80"])
    return folder / "out", of_picture


def fits(meaning, sentence):
    """Whether a drawing is what a statement speaks of, read out of its words."""
    if found := re.search(r'with the word "(.+)"', sentence):
        return found[1] in meaning["keywords"]
    group = re.search(r"to the group (.+)\.$", sentence)[1]
    return meaning["group"].replace("-", " and ") == group


def is_true(sentence, pair):
    first, second = (fits(meaning, sentence) for meaning in pair)
    for begin, truth in (
        ("Both", first and second), ("Neither", not first and not second), ("Exactly one", first != second),
        ("At least one", first or second), ("The first", first), ("The second", second),
    ):  # fmt: skip
        if sentence.startswith(begin):
            return truth
    raise AssertionError(sentence)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_right_and_every_statement_is_half_true(made, split):
    folder, of_picture = made
    rows = read_task(folder / "emoji-nlvr", split, task="nlvr")
    labels = defaultdict(Counter)
    for index in range(len(rows)):
        sentence = rows.question(index).split("\n")[0]
        pair = [of_picture[stored] for stored in rows.stored_images(index)]
        (label,) = rows.references(index)
        assert label == ("true" if is_true(sentence, pair) else "false"), (sentence, pair)
        assert pair[0]["hexcode"] != pair[1]["hexcode"]
        assert {meaning["vendor"] for meaning in pair} <= (
            {"openmoji"} if "openmoji" in split else {"google", "twitter"}
        )
        labels[rows.group(index)][label] += 1
    assert all(counts == {"true": 2, "false": 2} for counts in labels.values())
    assert len(labels) == (60 if split == "train" else 12)


def test_conversations_of_statements_are_right_and_lean_to_neither_answer(made):
    folder, of_picture = made
    rows = read_task(folder / "emoji-nlvr-talk", "train", task="nlvr")
    lean = Counter()
    for index in range(len(rows)):
        pair = [of_picture[stored] for stored in rows.stored_images(index)]
        messages = rows.messages(index)
        for asked, said in zip(messages[::2], messages[1::2], strict=True):
            sentence, answer = text_of(asked).split("\n")[0], text_of(said)
            if sentence.startswith("Which groups"):
                assert answer == "; ".join(meaning["group"].replace("-", " and ") for meaning in pair)
                continue
            assert answer == ("true" if is_true(sentence, pair) else "false"), (sentence, pair)
            form = (sentence.split(" picture")[0], "word" in sentence)
            lean[form] += 1 if answer == "true" else -1
    assert len(rows) == 80 and len(lean) == 12 and all(abs(number) <= 1 for number in lean.values())


def test_words_alone_are_right_in_half_of_all_cases_whatever_they_say(made):
    rows = read_task(made[0] / "emoji-nlvr", "train", task="nlvr")
    references = [rows.references(index) for index in range(len(rows))]
    groups = [rows.group(index) for index in range(len(rows))]
    by_words = ["true" if len(rows.question(index)) % 2 else "false" for index in range(len(rows))]
    scores = score_task("nlvr", references, by_words, groups)
    assert scores["accuracy"] == 0.5 and scores["consistency"] == 0


def test_meanings_held_out_are_in_no_training_row(made):
    folder, of_picture = made
    seen = defaultdict(set)
    for name in ("emoji-nlvr", "emoji-translate"):
        for split in SPLITS:
            rows = read_task(folder / name, split, task="nlvr" if name.endswith("nlvr") else "translate")
            seen[split] |= {of_picture[s]["hexcode"] for index in range(len(rows)) for s in rows.stored_images(index)}
    assert seen["openmoji_seen"] <= seen["train"] and len(seen["validation"]) > 5
    assert not seen["train"] & (seen["validation"] | seen["openmoji_unseen"])


@pytest.mark.parametrize("split", SPLITS)
def test_translations_are_those_of_the_drawing_with_or_without_it(made, split):
    folder, of_picture = made
    sides = {}
    for kind in ("", "-text", "-picture"):
        rows = read_task(folder / f"emoji-translate{kind}", split, task="translate")
        for index in range(len(rows)):
            language = rows.kind(index).removeprefix("en-")
            (answer,) = rows.references(index)
            assert answer.endswith(f" {language}")
            assert rows.num_images(index) == (0 if kind == "-text" else 1)
            if kind != "-text":
                assert of_picture[rows.stored_images(index)[0]][f"name_{language}"] == answer
            asked = text_of(rows.messages(index)[0])
            assert (answer.removesuffix(f" {language}") in asked) == (kind != "-picture")
            assert {"de": "German", "fr": "French"}[language] in asked
        sides[kind] = sorted((rows.name(index), rows.references(index)[0]) for index in range(len(rows)))
    assert sides[""] == sides["-text"] == sides["-picture"]
    assert len(datasets.load_from_disk(str(folder / "emoji-translate"))[split]) == len(sides[""])
