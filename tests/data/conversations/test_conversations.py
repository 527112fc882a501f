"""Conversations come out of every layout alike, and whatever is wrong with a row is told with its place."""

import json
import pickle
import shutil

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hf_vlm.data.conversations import conversation_files
from hf_vlm.data.conversations.conversations import (
    check_messages,
    find_conversation_splits,
    holds_conversations,
    read_conversations,
)

IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def llava(*turns, **fields):
    """A row of LLaVA's form: `human` and `gpt` by turns."""
    spoken = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(turns)]
    return {"conversations": spoken, **fields}


def draw(file, level):
    """A picture of one colour, so that it is known by it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level, 0, 0)).save(file)


def levels(images):
    return [image.convert("RGB").getpixel((0, 0))[0] for image in images]


def write_json(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = map(json.dumps, rows)
    file.write_text("\n".join(lines) if file.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path):
    for level, name in ((10, "a.png"), (20, "b.png"), (30, "coco/c.png")):
        draw(tmp_path / name, level)
    return tmp_path


ONE = [user([IMAGE, text("What is it?")]), assistant("Red.")]
TWO = [
    user([text("Compare "), IMAGE, text(" with "), IMAGE]),
    assistant([text("Both red.")]),
    user("Sure?"),
    assistant("Yes."),
]
NONE = [{"role": "system", "content": "Be brief."}, user("Hello"), assistant("Hello.")]
ROWS = [
    {"messages": ONE, "images": ["a.png"], "id": "one"},
    {"messages": TWO, "images": ["coco/c.png", "b.png"], "id": "two"},
    {"messages": NONE, "images": [], "id": "none"},
]


def as_parts(messages):
    """Tables want contents of one type."""
    return [m | {"content": [text(m["content"])] if isinstance(m["content"], str) else m["content"]} for m in messages]


def table(folder):
    rows = [
        {
            "messages": as_parts(row["messages"]),
            "images": [{"bytes": (folder / name).read_bytes(), "path": name} for name in row["images"]],
            "id": row["id"],
        }
        for row in ROWS
    ]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def write_layout(folder, layout):
    """The three rows in a layout, and what to read."""
    out = folder / "set"
    if layout in ("json", "jsonl"):
        return write_json(folder / f"rows.{layout}", ROWS)
    if layout == "save_to_disk":
        table(folder).save_to_disk(out)
    elif layout == "save_to_disk with splits":
        datasets.DatasetDict({"train": table(folder)}).save_to_disk(out)
    elif layout == "parquet":
        table(folder).to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    elif layout == "parquet of names":
        plain = [row | {"messages": as_parts(row["messages"])} for row in ROWS]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), folder / "rows.parquet")
        return folder / "rows.parquet"
    return out


@pytest.mark.parametrize(
    "layout", ["json", "jsonl", "save_to_disk", "save_to_disk with splits", "parquet", "parquet of names"]
)
def test_layouts_give_the_same_conversations(folder, layout):
    path = write_layout(folder, layout)
    read = read_conversations(path)
    in_tables = layout not in ("json", "jsonl")
    for index, row in enumerate(ROWS):
        messages = as_parts(row["messages"]) if in_tables else row["messages"]
        assert read.messages(index) == messages and read[index]["messages"] == messages
        assert read[index]["id"] == row["id"]
        assert read.num_images(index) == len(row["images"])
        assert read[index]["source"] == read.sources[index]
    assert [levels(read.images(index)) for index in range(3)] == [[10], [30, 20], []]
    place = path / "train" if layout == "save_to_disk with splits" else path
    wanted = (
        [f"{place}, line {line}" for line in (1, 2, 3)]
        if layout == "jsonl"
        else [f"{place}, row {row}" for row in range(3)]
    )
    assert list(read.sources) == wanted
    assert len(read) == len(list(read)) == 3


def test_llava_rows_have_pictures_first_and_known_roles(folder):
    file = write_json(
        folder / "llava.json",
        [
            llava("What is\n<image>", "Red. ", "Why?", "Paint.", id=7, image="coco/c.png"),
            llava("<image>\nOne, <image> two", "Yes.", image=["b.png", "a.png"]),
            llava("<image>", "A caption", image="a.png"),
            {"conversations": [{"from": "system", "value": "S"}, *llava("Q ", "A")["conversations"]], "image": None},
        ],
    )
    read = read_conversations(file)
    assert read.messages(0) == [user([IMAGE, text("What is")]), assistant("Red. "), user("Why?"), assistant("Paint.")]
    assert read.messages(1)[0] == user([IMAGE, IMAGE, text("One,  two")])
    assert read.messages(2)[0] == user([IMAGE])
    assert read.messages(3) == [{"role": "system", "content": "S"}, user("Q "), assistant("A")]
    assert [read[index]["id"] for index in range(4)] == ["7", None, None, None]
    assert [levels(read.images(index)) for index in range(4)] == [[30], [20, 10], [10], []]
    assert read.image_counts.tolist() == [1, 2, 1, 0]


def test_keys_that_tables_add_to_parts_are_left_out(folder):
    part = {"type": "image", "text": None, "index": 0}
    row = {
        "messages": [user([part, {"type": "text", "text": "What?", "image": None, "index": None}]), assistant("Red.")]
    }
    read = read_conversations(write_json(folder / "rows.jsonl", [row | {"image": "a.png"}]))
    assert read.messages(0) == [user([IMAGE, text("What?")]), assistant("Red.")]


@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "absolute path"])
def test_one_image_column_serves_and_may_be_empty(folder, as_bytes):
    picture = {"bytes": (folder / "b.png").read_bytes() if as_bytes else None, "path": str(folder / "b.png")}
    rows = [{"messages": as_parts(ONE), "image": picture}, {"messages": as_parts(NONE), "image": None}]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(folder / "saved")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    for path in (folder / "saved", folder / "rows.parquet"):
        read = read_conversations(path)
        assert [levels(read.images(index)) for index in range(2)] == [[20], []]


def test_bad_row_of_a_table_leaves_pictures_with_their_rows(folder):
    rows = table(folder).to_list()
    rows[0]["messages"] = []
    shards = [folder / "train-0.parquet", folder / "train-1.parquet"]
    for file, part in zip(shards, (rows[:2], rows[2:]), strict=True):
        features = table(folder).features
        datasets.Dataset.from_list(part, features=features).to_parquet(file)
    errors = []
    read = read_conversations(folder, "train", on_bad_row=errors.append)
    assert [levels(read.images(index)) for index in range(2)] == [[30, 20], []]
    assert list(read.sources) == [f"{shards[0]}, row 1", f"{shards[1]}, row 0"]
    assert [str(error).split(":")[0] for error in errors] == [f"{shards[0]}, row 0"]


def test_selected_and_pickled_conversations_are_the_same(folder):
    for path in (write_json(folder / "rows.json", ROWS), write_layout(folder, "save_to_disk")):
        read = read_conversations(path)
        chosen = pickle.loads(pickle.dumps(read.select([2, 1]).select([1, 0])))
        assert [item["id"] for item in chosen] == ["two", "none"]
        assert list(chosen.sources) == [read.sources[1], read.sources[2]]
        assert levels(chosen.images(0)) == [30, 20] and chosen.num_images(0) == 2 and chosen.num_images(1) == 0
        with pytest.raises(IndexError):
            chosen[2]


def test_picture_is_opened_only_when_asked_for(folder):
    (folder / "a.png").write_bytes(b"no picture")
    read = read_conversations(write_json(folder / "rows.json", ROWS))
    assert read.messages(0) == ONE and read.num_images(0) == 1
    with pytest.raises(ValueError, match=r"rows\.json, row 0, a\.png: wanted a picture in a format"):
        read.images(0)
    (folder / "coco" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"rows\.json, row 1, coco/c\.png: wanted a picture, got no such file"):
        read[1]


def test_damaged_bytes_are_told_with_row_and_picture(folder):
    broken = (folder / "b.png").read_bytes()[:-30]
    row = {"messages": as_parts(ONE), "images": [{"bytes": broken, "path": None}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 0, picture 0: wanted a whole picture"):
        read_conversations(folder / "rows.parquet").images(0)


@pytest.mark.parametrize(("named", "stored"), [("d.png", "d.jpg"), ("x/d.gif", "x/d.jpg"), ("d.jpg", "d.png")])
def test_picture_is_found_under_another_suffix(folder, named, stored):
    draw(folder / stored, 90)
    read = read_conversations(write_json(folder / "rows.json", [llava("<image>", "A", image=named)]))
    assert levels(read.images(0))[0] in range(85, 95)  # JPEG


def test_picture_of_its_own_name_goes_before_another_suffix(folder):
    draw(folder / "a.jpg", 200)
    read = read_conversations(write_json(folder / "rows.json", [llava("<image>", "A", image="./a.png")]))
    assert levels(read.images(0)) == [10]


def test_image_folder_may_be_another(folder):
    file = write_json(folder / "texts" / "rows.json", ROWS)
    assert levels(read_conversations(file, image_folder=folder).images(1)) == [30, 20]
    with pytest.raises(FileNotFoundError, match=r"row 0: wanted the picture a\.png, got no such file in .*texts\. Add"):
        read_conversations(file)
    with pytest.raises(FileNotFoundError, match="`image_folder` must be a folder"):
        read_conversations(file, image_folder=folder / "gone")


NAMES = {
    "../outside.png": "inside the folder, got ../outside.png",
    "coco/../../outside.png": "inside the folder",
    "coco\\..\\..\\outside.png": "inside the folder",
    "C:\\a.png": "inside the folder",
    "OUTSIDE": "inside the folder",
    "https://example.org/a.png": "got the URL https://example.org/a.png",
    "file:///a.png": "got the URL",
    "data:image/png;base64,AAAA": "got the URL",
    "a.png\0": "no such file",
    "a" * 5000: "no such file",
    "a": "no such file",
}


@pytest.mark.parametrize(
    ("name", "stored"),
    # datasets makes paths absolute: such ones are as they should be
    [(name, stored) for name in NAMES for stored in (False, True) if (name, stored) != ("OUTSIDE", True)],
)
def test_name_that_is_no_picture_in_the_folder_is_refused(folder, name, stored):
    inner = folder / "inner"
    for file in ("a.png", "coco/c.png"):
        draw(inner / file, 10)
    draw(folder / "outside.png", 10)
    told, name = NAMES[name], name.replace("OUTSIDE", str(folder / "outside.png"))
    if stored:
        file = inner / "rows.parquet"
        row = {"messages": as_parts(ONE), "images": [{"bytes": None, "path": name}]}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    else:
        file = write_json(inner / "rows.json", [llava("<image>", "A", image=name)])
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_conversations(file)
    assert str(raised.value).startswith(f"{file}, row 0: ") and told in str(raised.value)


FAULTS = {
    "more pictures than places": ({"messages": ONE, "images": ["a.png", "b.png"]}, "got 2 pictures and 1 places"),
    "more places than pictures": (llava("<image>", "A"), "got 0 pictures and 1 places"),
    "a picture without a marker": (llava("Q", "A", image="a.png"), "got 1 pictures and 0 places"),
    "unknown role": ({"messages": [user("Q"), {"role": "bot", "content": "A"}]}, "`user`, `assistant`, got 'bot'"),
    "unknown LLaVA role": ({"conversations": [{"from": "user", "value": "Q"}]}, "`human`, `gpt`, got 'user'"),
    "no role": ({"messages": [{"content": "Q"}]}, "got None"),
    "assistant first": ({"messages": [assistant("A")]}, "wanted `user` to speak first, got `assistant` as `messages[0]`"),
    "assistant first after system": ({"messages": [NONE[0], assistant("A")]}, "wanted `user` to speak first"),
    "two answers": ({"messages": [*ONE, assistant("B")], "images": ["a.png"]}, "got `assistant` again as `messages[2]`"),
    "two questions": ({"messages": [user("Q"), user("R"), assistant("A")]}, "got `user` again as `messages[1]`"),
    "late system": ({"messages": [user("Q"), NONE[0], assistant("A")]}, "wanted `system` first if at all"),
    "no answer": ({"messages": [*NONE, user("And?")]}, "wanted the last word from `assistant`, got it from `user`"),
    "empty answer": (llava("Q", " \n"), "wanted words in `messages[1]` of `assistant`, got none"),
    "null answer": ({"messages": [user("Q"), assistant(None)]}, "wanted words in `messages[1]`"),
    "empty question": ({"messages": [user([text("")]), assistant("A")]}, "wanted words in `messages[0]` of `user`"),
    "marker in a part": ({"messages": [user([text("See <image>")]), assistant("A")]}, "got one in `messages[0]`"),
    "marker in a text": ({"messages": [user("<image>"), assistant("A")], "images": ["a.png"]}, "no `<image>` in texts"),
    "marker across parts": ({"messages": [user([text("<im"), text("age>")]), assistant("A")]}, "no `<image>` in texts"),
    "marker in an answer": (llava("Q", "Put <image> here"), "no `<image>` in texts"),
    "picture in an answer": ({"messages": [user("Q"), assistant([IMAGE])], "image": "a.png"}, "in messages of `user`"),
    "picture in a part": ({"messages": [user([IMAGE | {"url": "x"}]), assistant("A")]}, "in the row's `images`"),
    "pictures out of order": (
        {"messages": [user([IMAGE | {"index": 1}, IMAGE | {"index": 0}]), assistant("A")], "images": ["a.png", "b.png"]},
        "got picture 1 as number 0",
    ),
    "unknown part": ({"messages": [user([{"type": "video"}]), assistant("A")]}, "`image` or `text` in `messages[0]`"),
    "part without text": ({"messages": [user([{"type": "text"}]), assistant("A")]}, "wanted a `text` in a part"),
    "part that is none": ({"messages": [user(["Q"]), assistant("A")]}, "wanted parts of `type`"),
    "content that is none": ({"messages": [user(3), assistant("A")]}, "a text or a list of parts"),
    "message that is none": ({"messages": ["Q"]}, "wanted `messages[0]` to be an object, got 'Q'"),
    "turn without value": ({"conversations": [{"from": "human"}]}, "wanted a text as `value` of `conversations[0]`"),
    "no messages": ({"messages": []}, "wanted a list `messages`, got none"),
    "messages as text": ({"messages": "Q"}, "wanted a list `messages`, got str 'Q'"),
    "no turns": ({"conversations": []}, "wanted a list `conversations`, got none"),
    "no fields": ({"text": "Q"}, "wanted `messages` or `conversations`, got `text`"),
    "no row": (3, "wanted a JSON object, got int"),
    "two columns": ({"messages": ONE, "image": "a.png", "images": ["a.png"]}, "got both"),
    "picture without name": ({"messages": ONE, "images": [None]}, "wanted a picture's name in `images`, got none"),
    "picture that is none": ({"messages": ONE, "images": [{"bytes": "AA"}]}, "wanted a picture's name in `images`, got"),
    "missing picture": (llava("<image>", "A", image="gone.png"), "wanted the picture gone.png, got no such file"),
    "half a character": (llava("Q", "\ud83d"), "wanted whole characters, got half of one in `messages[1]`"),
    "half a character in the name": (llava("Q", "A", id="\ud83d"), "half of one in its `id`"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_told_with_its_row_and_leaves_the_others(folder, fault, suffix):
    row, told = FAULTS[fault]
    file = write_json(folder / f"rows{suffix}", [ROWS[2], row, ROWS[0]])
    place = f"{file}, row 1: " if suffix == ".json" else f"{file}, line 2: "
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_conversations(file)
    assert str(raised.value).startswith(place) and told in str(raised.value)
    assert ". " in str(raised.value)[len(place) :], "what to do is wanted"
    errors = []
    read = read_conversations(file, on_bad_row=errors.append)
    assert [str(error) for error in errors] == [str(raised.value)]
    assert [item["id"] for item in read] == ["none", "one"]
    assert levels(read.images(1)) == [10]
    assert list(read.sources) == (
        [f"{file}, row 0", f"{file}, row 2"] if suffix == ".json" else [f"{file}, line 1", f"{file}, line 3"]
    )


def test_null_in_a_list_of_pictures_of_a_table_is_told(folder):
    held = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    row = {"messages": as_parts(TWO), "images": [held, None]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 0: wanted a picture's name in `images`, got none"):
        read_conversations(folder / "rows.parquet")


def test_check_messages_knows_another_image_token():
    check_messages(ONE, 1)
    check_messages([user("An <image>"), assistant("A")], 0, image_token="<img>")
    with pytest.raises(ValueError, match="wanted no `<img>` in texts"):
        check_messages([user("An <img>"), assistant("A")], 0, image_token="<img>")
    with pytest.raises(ValueError, match="wanted a list of messages, got none"):
        check_messages([], 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps({"data": []}), "must hold a JSON list of conversations"),
        ("", "must hold a JSON list"),
        ('[{"messages": [}]', "row 0: wanted a JSON object"),
        (json.dumps([ROWS[2]])[:-1], "row 1: wanted a JSON object, got the end of the file"),
        (json.dumps([ROWS[2], ROWS[2]])[:-9], "row 1: wanted a JSON object, got"),
        (json.dumps([ROWS[2]])[:-1] + " " + json.dumps(ROWS[2]) + "]", "row 1: wanted a JSON object, got"),
        ("[]", "must hold conversations, got none"),
        ('[{"id": "\xff"}]'.encode("latin-1"), "must be UTF-8"),
    ],
)
def test_file_that_is_no_list_of_rows_is_told(folder, content, told):
    file = folder / "rows.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told) as raised:
        read_conversations(file, on_bad_row=lambda error: None)
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_list_read_in_pieces_is_what_json_reads(folder, monkeypatch, size):
    rows = [{"messages": [user("Q\u2028 \U0001f600"), assistant(str(number))], "id": "x"} for number in range(5)]
    file = folder / "rows.json"
    file.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    monkeypatch.setattr(conversation_files, "_CHARACTERS", size)
    read = read_conversations(file)
    assert [read.messages(index) for index in range(len(read))] == [row["messages"] for row in rows]


def test_lines_do_not_end_at_separators_in_texts(folder):
    file = folder / "rows.jsonl"
    rows = [json.dumps({"messages": [user("Q\u2028\x85"), assistant("A")]}, ensure_ascii=False), "", "nonsense"]
    file.write_text("\r\n".join([*rows, rows[0]]), encoding="utf-8", newline="")
    errors = []
    read = read_conversations(file, on_bad_row=errors.append)
    assert list(read.sources) == [f"{file}, line 1", f"{file}, line 4"]
    assert [str(error).partition(": wanted a JSON object")[0] for error in errors] == [f"{file}, line 3"]


def test_splits_are_told_apart(folder):
    write_json(folder / "train.json", ROWS)
    write_json(folder / "validation" / "rows.jsonl", [ROWS[2]])
    write_json(folder / "settings.json", [{"x": 1}])
    (folder / "data").mkdir()
    table(folder).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    assert find_conversation_splits(folder) == ["train", "validation", "test"]
    assert [len(read_conversations(folder, split)) for split in ("train", "validation", "test")] == [3, 1, 3]
    with pytest.raises(ValueError, match=r"must hold val\.json, .*got a\.png"):
        read_conversations(folder, "val")


def test_split_is_not_taken_for_one_of_a_longer_name(folder):
    table(folder).to_parquet(folder / "validation-00000-of-00001.parquet")
    assert find_conversation_splits(folder) == ["validation"]
    assert find_conversation_splits(folder / "validation-00000-of-00001.parquet") == [None]


def test_split_of_saved_data_sets_is_wanted(folder):
    saved = datasets.DatasetDict({"train": table(folder), "holdout": table(folder).select([2])})
    saved.save_to_disk(folder / "set")
    assert find_conversation_splits(folder / "set") == ["train", "holdout"]
    read = read_conversations(folder / "set", "holdout")
    assert list(read.sources) == [f"{folder / 'set' / 'holdout'}, row 0"]
    with pytest.raises(ValueError, match="`split` must be one of train, holdout"):
        read_conversations(folder / "set")


def test_folder_that_is_not_told_apart_is_refused(folder):
    write_json(folder / "one.json", ROWS)
    assert len(read_conversations(folder)) == 3
    write_json(folder / "settings.json", [{"x": 1}])
    assert len(read_conversations(folder)) == 3
    write_json(folder / "two.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"`split` must say which part of .* got None and one\.json, two\.jsonl"):
        read_conversations(folder)
    with pytest.raises(ValueError, match="must be a file .json, .jsonl or .parquet"):
        read_conversations(folder / "a.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_conversations(folder / "gone")
    shutil.rmtree(folder / "coco")
    with pytest.raises(ValueError, match="must hold one"):
        (folder / "empty").mkdir()
        read_conversations(folder / "empty")


def test_table_without_the_columns_is_refused(folder):
    file = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "text": ["A"]}), file)
    with pytest.raises(ValueError, match=r"must have a column `messages` or `conversations`, got image, text"):
        read_conversations(file)
    assert not holds_conversations(file)


def test_data_of_conversations_is_known_by_its_fields(folder):
    lines = folder / "lines"
    write_json(lines / "train" / "metadata.jsonl", [{"file_name": "a.png", "text": "A"}])
    assert not holds_conversations(lines) and not holds_conversations(lines / "train" / "metadata.jsonl")
    assert not holds_conversations(folder / "gone") and not holds_conversations(folder / "a.png")
    for layout in ("jsonl", "save_to_disk", "parquet"):
        assert holds_conversations(write_layout(folder, layout))
    assert holds_conversations(folder)  # by rows.jsonl and rows.parquet
    datasets.Dataset.from_dict({"text": ["A"]}).save_to_disk(folder / "texts")
    assert not holds_conversations(folder / "texts")
    (folder / "bad.json").write_text("{}")
    assert holds_conversations(folder / "bad.json")


def test_rows_are_kept_as_text(folder):
    """Half a million Python dicts would take many times the file."""
    read = read_conversations(write_json(folder / "rows.json", [ROWS[2]] * 1000))
    assert len(pickle.dumps(read)) < 1.5 * (folder / "rows.json").stat().st_size
    assert isinstance(read.image_counts, np.ndarray) and len(read) == 1000


def test_settings_beside_parquet_files_are_no_data(folder):
    write_json(folder / "dataset_infos.json", [{"x": 1}])
    table(folder).to_parquet(folder / "rows-0.parquet")
    assert len(read_conversations(folder)) == 3
