"""Conversions find splits, leave out bad rows and tell of them, and leave nothing half behind."""

import io
import json
import resource

import pyarrow.parquet
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversation_audit import audit_conversations
from hf_vlm.data.conversations.conversation_writer import ConversationWriter
from hf_vlm.data.conversations.conversations import read_conversations, text_of
from hf_vlm.data.tasks.convert import convert
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS

ASKED = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A."}]},
]


def picture(seed=1, kind="png"):
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (seed * 40 % 256, seed, 7)).save(stream, kind)
    return stream.getvalue()


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def load(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def questions(tmp_path):
    """Two splits of questions about a picture each."""
    for split, number in (("train", 3), ("validation", 2)):
        rows = [
            {"image": f"{at}.png", "question": f"{split} {at}?", "answers": ["x", "x", "y"], "id": str(at)}
            for at in range(number)
        ]
        put(tmp_path / "in" / f"{split}.jsonl", rows)
    for at in range(3):
        put(tmp_path / "in" / f"{at}.png", picture(at))
    return tmp_path / "in"


def test_all_splits_become_conversations_that_can_be_trained_on(questions, tmp_path):
    report = convert(questions, tmp_path / "out", task="vqa", prompt="short-answer")
    assert report.num_rows == {"train": 3, "validation": 2} and report.num_pictures == 5 and not report.num_bad_rows
    assert entries(tmp_path / "out") == ["data"] and report.num_bytes > 0
    rows = read_conversations(tmp_path / "out", "validation")
    assert rows.question(1) == f"validation 1?\n{FORMAT_PROMPTS['short-answer']}"
    assert rows.references(1) == ["x", "x", "y"] and rows.stored_images(1) == [picture(1)]
    audit = audit_conversations(tmp_path / "out")
    assert audit.is_usable and audit.num_conversations == {"train": 3, "validation": 2}
    assert "train: 3 conversations\nvalidation: 2 conversations\n5 pictures" in str(report)
    told = json.loads(json.dumps(report.to_dict()))
    assert (told["to"], told["num_bad_rows"], told["num_rows"]) == ("conversations", 0, report.num_rows)


def test_one_split_is_converted_when_it_is_named(questions, tmp_path):
    assert convert(questions, tmp_path / "out", task="vqa", split="validation").num_rows == {"validation": 2}
    assert entries(tmp_path / "out/data") == ["validation-00000-of-00001.parquet"]


def test_a_file_without_a_split_is_called_by_its_name_or_train(questions, tmp_path):
    assert convert(questions / "validation.jsonl", tmp_path / "a", task="vqa").num_rows == {"validation": 2}
    (questions / "validation.jsonl").rename(questions / "mix665k.jsonl")
    assert convert(questions / "mix665k.jsonl", tmp_path / "b", task="vqa").num_rows == {"train": 2}


def test_bad_rows_are_left_out_counted_and_told_by_kind_and_place(questions, tmp_path):
    with (questions / "train.jsonl").open("a") as file:
        for row in [{"image": "none.png", "question": "q", "answer": "a"}] * 7 + [
            {"image": "page.jpg", "question": "q", "answer": "a"},
            {"image": "0.png", "question": "q", "answer": " "},
        ]:
            file.write(json.dumps(row) + "\n")
        file.write("{broken\n")
    put(questions / "page.jpg", b"<!DOCTYPE html><html>")
    seen = []
    report = convert(questions, tmp_path / "out", task="vqa", on_bad_row=seen.append)
    assert report.num_rows == {"train": 3, "validation": 2} and report.num_bad_rows == len(seen) == 10
    assert report.bad_rows["missing pictures"][0] == 7 and len(report.bad_rows["missing pictures"][1]) == 5
    text = str(report)
    assert "left out, missing pictures: 7" in text and "... and 2 more" in text
    assert "train.jsonl, line 4" in text and "page.jpg" in text and "line 13" in text
    assert report.bad_share == pytest.approx(10 / 15) and "left out in all: 66.7 % of rows" in text
    assert len(read_conversations(tmp_path / "out", "train")) == 3


def test_rows_that_a_format_cannot_hold_are_left_out_by_their_place(tmp_path):
    put(tmp_path / "a.png", picture())
    one = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]},
           {"role": "assistant", "content": "A."}]  # fmt: skip
    more = [*one, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "B."}]
    with ConversationWriter(tmp_path / "in") as writer:
        writer.add(one, [tmp_path / "a.png"])
        writer.add(more, [tmp_path / "a.png"])
    report = convert(tmp_path / "in", tmp_path / "out", task="chat", to="gqa")
    ((kind, (number, (told,))),) = report.bad_rows.items()
    assert (kind, number) == ("rows that the format can't hold", 1)
    assert "00000-of-00001.parquet, row 1: wanted one question a row, as `gqa` has no place for others, got 2" in told
    assert list(load(tmp_path / "out/train_questions.json")) == ["0"]


def test_nothing_is_left_where_no_row_can_be_converted(questions, tmp_path):
    with pytest.raises(ValueError, match=r"must hold rows that become `nlvr2`, got none\. .*wanted 2 pictures a row"):
        convert(questions, tmp_path / "out", task="vqa", to="nlvr2")
    assert entries(tmp_path) == ["in"]


def test_an_output_that_is_there_is_refused_and_an_empty_folder_is_taken(questions, tmp_path):
    put(tmp_path / "out/a.txt", b"mine")
    with pytest.raises(FileExistsError, match="new or empty folder is wanted, got .*out"):
        convert(questions, tmp_path / "out", task="vqa")
    assert entries(tmp_path / "out") == ["a.txt"]
    (tmp_path / "out/a.txt").unlink()
    convert(questions, tmp_path / "out", task="vqa")
    assert entries(tmp_path / "out") == ["data"] and entries(tmp_path) == ["in", "out"]


@pytest.mark.parametrize("to", ["conversations", "llava", "webdataset"])
def test_a_full_disk_is_told_and_leaves_nothing(questions, tmp_path, to):
    rows = [{"image": "big.bmp", "question": f"{at}?", "answer": "a"} for at in range(3)]
    put(questions / "train.jsonl", rows)
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(stream, "bmp")
    put(questions / "big.bmp", stream.getvalue())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"out must be written, got: .*\. Make room there"):
            convert(questions, tmp_path / "out", task="vqa", to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(tmp_path) == ["in"]


def test_what_a_killed_run_left_is_no_output_and_is_told(questions, tmp_path):
    put(tmp_path / ".out.x1.unfinished/out/data/train-00000-of-00001.parquet", b"half")
    report = convert(questions, tmp_path / "out", task="vqa")
    assert entries(tmp_path) == [".out.x1.unfinished", "in", "out"]
    assert len(read_conversations(tmp_path / "out", "train")) == 3
    assert ".out.x1.unfinished: of runs that were killed, or still write" in str(report)


def test_of_two_runs_into_one_folder_the_first_to_end_wins_and_the_other_is_told(questions, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vlm.data.tasks.convert._SECONDS", -1.0)

    def run_another(split, done, left_out):
        if done == 1 and split == "train":
            assert convert(questions, tmp_path / "out", task="vqa", split="validation").num_rows == {"validation": 2}

    with pytest.raises(FileExistsError, match="out must be new or empty, got files that came while this was written"):
        convert(questions, tmp_path / "out", task="vqa", progress=run_another)
    assert entries(tmp_path) == ["in", "out"]
    assert entries(tmp_path / "out/data") == ["validation-00000-of-00001.parquet"]


def test_the_folder_has_the_usual_rights(questions, tmp_path):
    (tmp_path / "usual").mkdir()
    convert(questions, tmp_path / "out", task="vqa")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_damaged_source_is_told_by_its_file_and_not_as_a_full_disk(tmp_path):
    with ConversationWriter(tmp_path / "in") as writer:
        writer.add(ASKED, [picture()])
    (file,) = writer.files
    data = bytearray(file.read_bytes())
    data[4:60] = b"\xff" * 56  # the head of the first page
    file.write_bytes(data)
    for to in ("conversations", "llava"):
        with pytest.raises(
            ValueError, match="train-00000-of-00001.parquet: wanted parquet data, got a damaged"
        ) as told:
            convert(tmp_path / "in", tmp_path / "out", task="chat", to=to)
        assert "\n" not in str(told.value) and "Make room" not in str(told.value)
    assert entries(tmp_path) == ["in"]


def test_a_source_that_cannot_be_read_is_not_told_as_a_full_disk(questions, tmp_path, monkeypatch):
    def fail(*args, **settings):
        raise OSError(5, "Input/output error")
        yield

    monkeypatch.setattr("hf_vlm.data.tasks.convert.stream_task", fail)
    with pytest.raises(ValueError, match="in: wanted a source that can be read, got .*Input/output error"):
        convert(questions, tmp_path / "out", task="vqa")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_options_without_use_are_refused_of_conversations(tmp_path, suffix):
    if suffix == "parquet":
        with ConversationWriter(tmp_path / "in") as writer:
            writer.add(ASKED, [picture()])
    else:
        put(tmp_path / "in/a.png", picture())
        put(tmp_path / "in/train.jsonl", [{"messages": ASKED, "image": "a.png"}])
    with pytest.raises(ValueError, match="`columns` must be left out for conversations, .* got `foo`"):
        convert(tmp_path / "in", tmp_path / "out", task="chat", columns={"foo": "bar"})
    with pytest.raises(ValueError, match="`columns` must be left out for conversations, .* got `foo`"):
        columns = {"question": "en", "answer": "de", "foo": "bar"}
        convert(tmp_path / "in", tmp_path / "out", task="chat", to="multi30k", columns=columns)
    with pytest.raises(FileNotFoundError, match="`image_folder` must be a folder, got nope, which is none"):
        convert(tmp_path / "in", tmp_path / "out", task="chat", image_folder="nope")
    with pytest.raises(ValueError, match="`task` must be one of .* got 'caht'"):
        convert(tmp_path / "in", tmp_path / "out", task="caht")
    assert entries(tmp_path) == ["in"]


def test_that_pictures_were_not_carried_along_is_told(tmp_path):
    with ConversationWriter(tmp_path / "in") as writer:
        writer.add(ASKED, ["a.png"])
    for to in ("conversations", "llava"):
        report = convert(tmp_path / "in", tmp_path / to, task="chat", to=to)
        assert "no picture was carried along, as the source has their names alone" in str(report)
    with ConversationWriter(tmp_path / "in", replace=True) as writer:
        writer.add(ASKED, ["a.png"])
        writer.add(ASKED, [picture()])
    report = convert(tmp_path / "in", tmp_path / "some", task="chat")
    assert "1 of the pictures were not carried along" in str(report)
    put(tmp_path / "photos/a.png", picture())
    report = convert(tmp_path / "in", tmp_path / "all", task="chat", image_folder=tmp_path / "photos")
    assert "carried along" not in str(report)


def test_a_picture_that_is_cut_short_is_left_out_and_told(questions, tmp_path):
    put(questions / "0.png", picture()[:-30])
    for to in ("conversations", "llava"):
        report = convert(questions, tmp_path / to, task="vqa", to=to)
        assert report.num_rows == {"train": 2, "validation": 1}
        (number, (told, _)) = report.bad_rows["unreadable pictures"]
        assert number == 2 and "train.jsonl, line 1: wanted a whole picture, got " in told and "0.png" in told


def test_conversations_that_a_format_of_questions_cannot_hold_get_advice_that_works(questions, tmp_path):
    more = [*ASKED, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "B."}]
    with ConversationWriter(tmp_path / "talk") as writer:
        writer.add(more, [picture()])
        writer.add(ASKED, [picture()])
    report = convert(tmp_path / "talk", tmp_path / "a", task="chat", to="csv")
    ((told,),) = [messages for _, messages in report.bad_rows.values()]
    assert "got 2. Leave the row out, or write `llava` or `messages`." in told and "max_exchanges" not in told
    rows = [{"image": name, "question": f"{at}?", "answer": "x"} for at, name in enumerate(["0.png", "0.png", "1.png"])]
    put(questions / "train.jsonl", rows)
    report = convert(questions / "train.jsonl", tmp_path / "b", task="vqa", to="csv", max_exchanges=4)
    ((told,),) = [messages for _, messages in report.bad_rows.values()]
    assert "Or convert with `max_exchanges=1`." in told
    report = convert(questions / "train.jsonl", tmp_path / "c", task="vqa", to="csv", max_exchanges=1)
    assert not report.bad_rows and report.num_rows == {"train": 3}


def test_another_format_is_written_straight_from_a_set_of_a_task(questions, tmp_path):
    report = convert(questions, tmp_path / "llava", task="vqa", to="llava", prompt="short-answer")
    (first, *_) = load(tmp_path / "llava/train.json")
    assert first["conversations"][0]["value"] == f"<image>\ntrain 0?\n{FORMAT_PROMPTS['short-answer']}"
    assert "give it as `image_folder`" in str(report)
    convert(questions, tmp_path / "gqa", task="vqa", to="gqa", prompt="short-answer")
    assert load(tmp_path / "gqa/train_questions.json")["0"]["question"] == "train 0?"


def test_a_format_prompt_that_stays_in_bare_questions_is_told(questions, tmp_path):
    convert(questions, tmp_path / "out", task="vqa", prompt="short-answer")
    kept = convert(tmp_path / "out", tmp_path / "a", task="chat", to="gqa")
    assert "5 questions end with the format prompt `short-answer`; `prompt=short-answer` takes it off" in str(kept)
    gone = convert(tmp_path / "out", tmp_path / "b", task="chat", to="gqa", prompt="short-answer")
    assert "format prompt" not in str(gone)
    assert load(tmp_path / "b/train_questions.json")["1"]["question"] == "train 1?"


def test_conversations_get_a_prompt_when_they_become_conversations(questions, tmp_path):
    convert(questions, tmp_path / "out", task="vqa")
    convert(tmp_path / "out", tmp_path / "again", task="chat", prompt="Be brief please.")
    assert read_conversations(tmp_path / "again", "train").question(0) == "train 0?\nBe brief please."


def test_names_and_notes_of_conversations_are_kept_when_they_are_written_again(tmp_path):
    put(tmp_path / "in/train.jsonl", [
        {"id": "1", "image": "coco/a.png", "kind": "k", "group": "g", "references": ["A.", "B."],
         "messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A."}]}
    ])  # fmt: skip
    put(tmp_path / "in/coco/a.png", picture())
    for source, out in (("in", "out"), ("out", "again")):
        convert(tmp_path / source, tmp_path / out, task="chat")
        (row,) = pyarrow.parquet.read_table(tmp_path / out / "data/train-00000-of-00001.parquet").to_pylist()
        assert row["images"] == [{"bytes": picture(), "path": "coco/a.png"}]
        assert (row["id"], row["kind"], row["group"], row["references"]) == ("1", "k", "g", ["A.", "B."])


def test_a_split_whose_name_begins_like_another_is_not_mixed_in(tmp_path):
    for split in ("test", "test_2016", "train"):
        with ConversationWriter(tmp_path / "in", split) as writer:
            writer.add([{"role": "user", "content": split}, {"role": "assistant", "content": "a"}])
    report = convert(tmp_path / "in", tmp_path / "out", task="chat", to="messages")
    assert report.num_rows == {"test": 1, "test_2016": 1, "train": 1}
    assert text_of(json.loads((tmp_path / "out/test.jsonl").read_text())["messages"][0]) == "test"


def test_pictures_known_by_name_alone_are_read_from_their_folder_or_named(tmp_path):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]},
                {"role": "assistant", "content": "A."}]  # fmt: skip
    with ConversationWriter(tmp_path / "in") as writer:
        writer.add(messages, ["coco/a.png"], id=1)
    put(tmp_path / "photos/coco/a.png", picture())
    convert(tmp_path / "in", tmp_path / "named", task="chat", to="llava")
    assert load(tmp_path / "named/train.json")[0]["image"] == "coco/a.png" and not (tmp_path / "named/images").exists()
    convert(tmp_path / "in", tmp_path / "out", task="chat", to="llava", image_folder=tmp_path / "photos")
    assert (tmp_path / "out/images/coco/a.png").read_bytes() == picture()


def test_a_split_that_is_there_but_damaged_is_told(questions, tmp_path):
    put(questions / "test.jsonl", b"\xff\xfe\x00")
    report = convert(questions, tmp_path / "out", task="vqa")
    assert report.num_rows == {"train": 3, "validation": 2}
    assert "test.jsonl must be UTF-8" in report.failed_splits["test"] and report.num_bad_rows == 1
    assert "test: not read:" in str(report)


def test_a_folder_of_pictures_is_not_taken_for_a_split(questions, tmp_path):
    (questions / "train.jsonl").unlink()
    (questions / "images").mkdir()
    for at in range(3):
        (questions / f"{at}.png").rename(questions / "images" / f"{at}.png")
    report = convert(questions, tmp_path / "out", task="vqa", image_folder=questions / "images")
    assert report.num_rows == {"validation": 2} and not report.num_bad_rows


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"to": "coco"}, "`to` must be one of `conversations`, `llava`, .* got 'coco'"),
        ({"task": "vqas"}, "`task` must be one of"),
        ({"prompt": "shrt-answer"}, "Did you mean `short-answer`"),
        ({"to": "multi30k"}, "`multi30k` wants languages"),
        ({"split": "test"}, "must hold test.json"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_written(questions, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        convert(questions, tmp_path / "out", **{"task": "vqa", **settings})
    assert entries(tmp_path) == ["in"]


def test_a_missing_source_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        convert(tmp_path / "none", tmp_path / "out", task="vqa")


def test_progress_is_told(questions, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vlm.data.tasks.convert._SECONDS", -1.0)
    seen = []
    convert(questions, tmp_path / "out", task="vqa", progress=lambda *told: seen.append(told))
    assert seen == [("train", 1, 0), ("train", 2, 0), ("train", 3, 0), ("validation", 1, 0), ("validation", 2, 0)]
