"""Conversations made of a small data set, whose answers are worked out again from its tables."""

import importlib.util
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_picture_conversations.py"
GROUPS = {"food-drink": "drink", "animals-nature": "animal-bug", "objects": "tool"}
ONLY_OPENMOJI = "3FDD"
ALIKE = ("drink new", "drink brand new")  # google draws them alike
VARIANTS = ("woman climbing", "man climbing: facing right", "person climbing")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_picture_conversations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def picture(seed: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def emoji_tables() -> dict[str, list[dict]]:
    """Three groups of 30 meanings, and what is to be dropped."""
    meanings = [
        {
            "name_en": f"{subgroup} {number}", "group": group, "subgroup": subgroup,
            "keywords": [f"{subgroup}word", f"own{'abcdefghij'[number % 10]}x", "143", f"{subgroup}like", f"{subgroup}ish"],
            "hexcode": f"{place}F{number:02}",
        }
        for place, (group, subgroup) in enumerate(GROUPS.items())
        for number in range(30)
    ]  # fmt: skip
    for number, name in enumerate((*ALIKE, *VARIANTS)):
        meanings.append({**meanings[0], "name_en": name, "hexcode": f"3F{number:02}"})
    meanings.append({**meanings[0], "name_en": "drink in the dark", "hexcode": "3FAA-1F3FF"})
    meanings.append({**meanings[0], "name_en": "flag: Sark", "hexcode": "1F1E8-1F1F6"})  # google's drawing is wrong
    meanings.append({**meanings[0], "hexcode": "3FBB"})  # its name is taken
    meanings.append({**meanings[40], "name_en": "bug code", "keywords": ["XY"], "hexcode": "3FCC"})
    tables = {}
    for first_seed, vendor in enumerate(("google", "twitter", "openmoji")):
        rows = [
            {**meaning, "vendor": vendor, "image": {"bytes": picture(1000 * first_seed + number), "path": None}}
            for number, meaning in enumerate(meanings)
        ]
        by_name = {row["name_en"]: row for row in rows}
        if vendor == "google":
            by_name[ALIKE[1]]["image"] = by_name[ALIKE[0]]["image"]
        if vendor == "openmoji":
            image = {"bytes": picture(9999), "path": None}
            rows.append({**rows[1], "name_en": "drink unheard of", "hexcode": ONLY_OPENMOJI, "image": image})
        tables[vendor] = rows
    return tables


@pytest.fixture(scope="module")
def emoji(script, tmp_path_factory):
    """Stored tables, sets made of them, and what was dropped."""
    folder = tmp_path_factory.mktemp("data")
    tables = emoji_tables()
    (folder / "emoji").mkdir()
    for vendor, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "emoji" / f"{vendor}.parquet")
    dropped = Counter()
    sets = script.make_emoji(folder, seed=0, num_seen=20, dropped=dropped)
    return folder, tables, sets, dropped


@pytest.fixture(scope="module")
def photos(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for split, first in (("train", 0), ("validation", 100)):
        for name, rows in {
            "photo_captions": [
                {"file_name": f"{n}.jpg", "captions": [f"a dog of {n} , number {k} ." for k in range(5)]}
                for n in range(3)
            ],
            "vqa_rooms": [
                {
                    "file_name": f"{n}.jpg",
                    "question": [f"what is {k} in {n}?" for k in range(13)]
                    + ["how many?", "what colour?", "what is 0 in 0?"],
                    "answer": [str(k) for k in range(13)] + ["2", "red, blue", "again"],
                }
                for n in range(2)
            ],
        }.items():
            (folder / name / split).mkdir(parents=True)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
            for row in rows:
                seed = first + int(row["file_name"][0]) + (10 if name == "vqa_rooms" else 0)
                (folder / name / split / row["file_name"]).write_bytes(picture(seed, "JPEG"))
    repeated = (folder / "vqa_rooms" / "train" / "1.jpg").read_bytes()
    (folder / "vqa_rooms" / "validation" / "1.jpg").write_bytes(repeated)
    return folder


def said(message: dict) -> str:
    return message["content"][-1]["text"]


def exchanges(row: dict) -> list[tuple[str, str]]:
    messages = row["messages"]
    return [(said(one), said(other)) for one, other in zip(messages[::2], messages[1::2], strict=True)]


def kind_of(script, question: str) -> tuple[str, str]:
    """The kind of a question, and the word put into it."""
    found = [
        (kind, match.group(1) if match.groups() else "")
        for kind, wordings in script.WORDINGS.items()
        for wording in wordings
        if (match := re.fullmatch(re.escape(wording).replace(r"\{\}", "(.+)"), question))
    ]
    assert len(found) == 1, f"{question}: {found}"
    return found[0]


def right_answer(kind: str, word: str, drawn: list[dict]) -> str | None:
    """The answer by the stored rows of the pictures; None where several are right."""
    first = drawn[0]
    if kind == "name":
        return first["name_en"]
    if kind == "group":
        return first["group"].replace("-", " and ")
    if kind == "subgroup":
        return first["subgroup"].replace("-", " ")
    if kind == "yes_no_group":
        return "yes" if first["group"].replace("-", " and ") == word else "no"
    if kind == "yes_no_keyword":
        return "yes" if word in first["keywords"] else "no"
    if kind == "same_meaning":
        return "yes" if first["hexcode"] == drawn[1]["hexcode"] else "no"
    if kind == "first_or_second":
        return {drawn[1]["name_en"]: "second", first["name_en"]: "first"}[word]
    return None


def stored_by_picture(tables: dict) -> dict[bytes, dict]:
    # The shorter name of those drawn alike comes last.
    rows = [row for table in tables.values() for row in table]
    return {row["image"]["bytes"]: row for row in sorted(rows, key=lambda row: -len(row["name_en"]))}


def test_every_answer_is_the_one_the_tables_give(script, emoji):
    _, tables, sets, _ = emoji
    stored = stored_by_picture(tables)
    checked = Counter()
    for split, rows in sets["emoji-chat"].items():
        for row in rows:
            drawn = [stored[image["bytes"]] for image in row["images"]]
            for question, answer in exchanges(row):
                kind, word = kind_of(script, question)
                expected = right_answer(kind, word, drawn)
                if kind == "keywords":
                    words = answer.split(", ")
                    assert 2 <= len(words) == len(set(words)) <= 3
                    assert set(words) <= {word for word in drawn[0]["keywords"] if len(word) > 3}
                else:
                    assert answer == expected, (row["id"], question)
                checked[split, kind] += 1
                if split != "train":
                    assert row["kind"] == kind
    assert len(checked) == 4 * 8


def test_captions_are_the_names(script, emoji):
    _, tables, sets, _ = emoji
    stored = stored_by_picture(tables)
    for rows in sets["emoji-captions"].values():
        for row in rows:
            [(question, answer)] = exchanges(row)
            assert question in script.WORDINGS["emoji_caption"]
            assert answer == stored[row["images"][0]["bytes"]]["name_en"]


def test_messages_alternate_and_pictures_stand_in_the_first(emoji, script, photos):
    _, _, sets, _ = emoji
    for splits in (sets | script.make_photos(photos, 0, Counter())).values():
        for rows in splits.values():
            for row in rows:
                assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * len(exchanges(row))
                types = [[part["type"] for part in message["content"]] for message in row["messages"]]
                assert types[0] == ["image"] * len(row["images"]) + ["text"]
                assert all(others == ["text"] for others in types[1:])
            ids = [row["id"] for row in rows]
            assert len(set(ids)) == len(ids)


def test_splits_but_train_ask_one_question_a_row(emoji, script, photos):
    _, _, sets, _ = emoji
    for splits in (sets | script.make_photos(photos, 0, Counter())).values():
        for split, rows in splits.items():
            if split != "train":
                assert {len(row["messages"]) for row in rows} == {2}
    assert max(len(row["messages"]) for row in sets["emoji-chat"]["train"]) == 6


def test_meanings_are_wholly_in_train_or_held_out(emoji):
    _, tables, sets, _ = emoji
    names_of = {row["hexcode"]: row["name_en"] for table in tables.values() for row in table}
    for name in ("emoji-captions", "emoji-chat"):
        meanings, vendors, pictures = {}, {}, {}
        for split, rows in sets[name].items():
            meanings[split] = {row["id"].split("/")[1] for row in rows}
            vendors[split] = {vendor for row in rows for vendor in row["id"].split("/")[0].split("+")}
            pictures[split] = {image["bytes"] for row in rows for image in row["images"]}
        held = meanings["validation"] | meanings["openmoji_unseen"]
        assert not held & meanings["train"]
        assert not (pictures["validation"] | pictures["openmoji_unseen"]) & pictures["train"]
        assert meanings["openmoji_seen"] <= meanings["train"] and len(meanings["openmoji_seen"]) == 20
        assert ONLY_OPENMOJI in meanings["openmoji_unseen"]
        assert vendors["train"] == vendors["validation"] == {"google", "twitter"}
        assert 0.05 <= len(meanings["validation"]) / len(meanings["train"] | meanings["validation"]) <= 0.08
        for together in (ALIKE, VARIANTS):
            assert len({hexcode in held for hexcode, one in names_of.items() if one in together}) == 1


def test_variants_and_drawings_alike_are_held_out_together_whatever_the_seed(script, emoji):
    folder, tables, _, _ = emoji
    places = set()
    for seed in range(30):
        sets = script.make_emoji(folder, seed=seed, num_seen=20, dropped=Counter())
        rows = {split: {exchanges(row)[0][1] for row in rows} for split, rows in sets["emoji-captions"].items()}
        for together in (ALIKE, VARIANTS):
            held = {name in rows["validation"] for name in together}
            assert len(held) == 1
            places |= held
    assert places == {True, False}


def test_half_of_the_answers_is_yes(script, emoji):
    _, _, sets, _ = emoji
    for split, rows in sets["emoji-chat"].items():
        answers = {}
        for row in rows:
            for number, (question, answer) in enumerate(exchanges(row)):
                kind, _ = kind_of(script, question)
                if kind in script.TWO_ANSWERS and not (number and kind == "first_or_second"):
                    answers.setdefault(kind, []).append(answer)
        assert set(answers) == set(script.TWO_ANSWERS)
        for kind, given in answers.items():
            assert abs(2 * given.count(script.TWO_ANSWERS[kind][0]) - len(given)) <= 1, (split, kind)


def test_every_question_is_asked_once_and_not_beside_one_that_gives_it_away(script, emoji):
    _, _, sets, _ = emoji
    of_drawing = {}
    for row in sets["emoji-chat"]["train"]:
        kinds = [kind_of(script, question)[0] for question, _ in exchanges(row)]
        assert not {"group", "yes_no_group"} <= {*kinds}
        assert not {"keywords", "yes_no_keyword"} <= {*kinds}
        if len(row["images"]) == 1:
            of_drawing.setdefault(row["id"].rsplit("/", 1)[0], []).extend(kinds)
    assert Counter(len(kinds) for kinds in of_drawing.values()) == {6: len(of_drawing) - 2, 4: 2}  # no keywords twice
    assert all(len(set(kinds)) == len(kinds) for kinds in of_drawing.values())


def test_pairs_of_the_vendor_kept_out_hold_a_drawing_of_it(emoji):
    _, tables, sets, _ = emoji
    stored = stored_by_picture(tables)
    for split in ("openmoji_seen", "openmoji_unseen"):
        for row in sets["emoji-chat"][split]:
            vendors = sorted(stored[image["bytes"]]["vendor"] for image in row["images"])
            if row["kind"] == "same_meaning":
                assert vendors in (["google", "openmoji"], ["openmoji", "twitter"])
            else:
                assert set(vendors) == {"openmoji"}


def test_what_is_dropped_is_counted_by_reason(emoji):
    _, tables, _, dropped = emoji
    assert dropped["google: a skin tone"] == dropped["openmoji: a skin tone"] == 1
    assert dropped["google: drawing shows something else"] == 1
    assert "twitter: drawing shows something else" not in dropped
    assert dropped["twitter: name of another meaning too"] == 1
    assert dropped["google: drawing of another meaning too"] == 1
    assert "twitter: drawing of another meaning too" not in dropped
    # `bug code` has no keyword that is a word; it lies in train, drawn twice
    assert (
        dropped["train: nothing to ask of kind keywords"]
        == dropped["train: nothing to ask of kind yes_no_keyword"]
        == 2
    )
    assert dropped["openmoji_unseen: nothing to ask of kind same_meaning"] == 1
    assert dropped["openmoji_seen: more than --openmoji-seen"] > 0


def test_one_seed_gives_one_data_set(script, emoji):
    folder, _, sets, _ = emoji
    assert script.make_emoji(folder, seed=0, num_seen=20, dropped=Counter()) == sets
    assert script.make_emoji(folder, seed=1, num_seen=20, dropped=Counter()) != sets


def test_too_few_drawings_for_wrong_answers_raise(script):
    drawing = script.Drawing("tea", ("hot",), "food-drink", "drink", "1", "google", 0, b"")
    questions = script.EmojiQuestions([drawing], [], [drawing], script.random.Random(0))
    for kind in ("yes_no_group", "yes_no_keyword"):
        with pytest.raises(ValueError, match="got 1 alike. Take a larger"):
            questions.about_one(kind, drawing, is_yes=False)


def test_every_question_has_six_wordings_of_its_own(script):
    for kind, wordings in script.WORDINGS.items():
        assert len(set(wordings)) >= 6
        has_word = kind in ("first_or_second", "yes_no_group", "yes_no_keyword")
        assert {wording.count("{}") for wording in wordings} == {int(has_word)}


def test_saved_sets_are_read_back_with_the_stored_bytes(script, emoji, photos, tmp_path, capsys):
    folder, tables, _, _ = emoji
    (photos / "emoji").symlink_to(folder / "emoji")
    script.main([str(photos), str(tmp_path), "--openmoji-seen", "20"])
    printed = capsys.readouterr().out
    assert "| emoji-chat | openmoji_unseen |" in printed and "| photos-chat | validation |" in printed
    assert "| google: a skin tone | 1 |" in printed
    files = {*stored_by_picture(tables)} | {file.read_bytes() for file in photos.glob("*/*/*.jpg")}
    for name in ("emoji-captions", "emoji-chat", "photos-captions", "photos-chat"):
        for split in datasets.load_from_disk(tmp_path / name).values():
            assert isinstance(split[0]["images"][0], Image.Image)
            raw = split.cast_column("images", datasets.List(datasets.Image(decode=False)))
            assert {image["bytes"] for row in raw for image in row["images"]} <= files


def test_kinds_say_what_is_made(script, emoji, tmp_path, capsys):
    folder, _, _, _ = emoji
    script.main([str(folder), str(tmp_path), "--kinds", "emoji", "--openmoji-seen", "20"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji-captions", "emoji-chat"]


@pytest.mark.parametrize(
    ("stored", "cleaned"),
    [
        ("A dog swims .", "A dog swims."),
        ("a boy jumps", "A boy jumps."),
        ("A man , seen from behind , on ski 's .", "A man, seen from behind, on ski's."),
        ("A dog catches a toy ,", "A dog catches a toy."),
        ('Her sign says " active . "', 'Her sign says "active."'),
        ("A woman in a ' devil ' outfit .", "A woman in a 'devil' outfit."),
        ("Who is it ?", "Who is it?"),
    ],
)
def test_caption_is_put_together_again(script, stored, cleaned):
    assert script.clean_caption(stored) == cleaned


def test_questions_about_a_room_are_all_asked_once(script, photos):
    dropped = Counter()
    rows = script.make_photos(photos, 0, dropped)["photos-chat"]["train"]
    rooms = [row for row in rows if row["id"].startswith("vqa_rooms")]
    # The photograph that lies in validation too is not trained on.
    assert dropped["vqa_rooms, train: photograph again"] == 1
    assert [len(row["messages"]) // 2 for row in rooms] == [5, 5, 5]
    asked = [exchange for row in rooms for exchange in exchanges(row)]
    numbers = [(f"what is {number} in 0?", str(number)) for number in range(13)]
    assert sorted(asked) == sorted([*numbers, ("how many?", "2"), ("what colour?", "red, blue")])
    assert dropped["vqa_rooms, train: question asked again about the photograph"] == 1


def test_photographs_of_validation_give_one_reference_a_question(script, photos):
    sets = script.make_photos(photos, 0, Counter())
    kinds = Counter(row["kind"] for row in sets["photos-chat"]["validation"])
    # 13 questions and one more about the second room, of which the first has it among the 13
    assert kinds == {"caption": 3, "count": 2, "colour": 2, "object": 27}
    assert len(sets["photos-captions"]["train"]) == 15
    captions = sorted(exchanges(row)[0][1] for row in sets["photos-captions"]["validation"])
    assert captions == [f"A dog of {number}, number 0." for number in range(3)]
