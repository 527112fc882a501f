"""Data sets of tasks are read as conversations: what is asked, what is right, and how rows are grouped."""

import gzip
import json
import pickle

import datasets
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS
from hf_vlm.data.tasks.task_rows import read_task, stream_task


def write_pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number * 40, 0, 0)).save(folder / name)


def write_lines(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(rows):
    """Question and answer of every exchange of every row."""
    return [[text_of(message) for message in rows.messages(index)] for index in range(len(rows))]


@pytest.fixture
def captions(tmp_path):
    write_pictures(tmp_path / "train", "a.png", "b.png")
    write_lines(
        tmp_path / "train" / "metadata.jsonl",
        {"file_name": "a.png", "captions": ["A dog .", "Dog runs .", "A dog ."]},
        {"file_name": "b.png", "captions": ["A cat ."]},
    )
    return tmp_path


def test_captions_are_rows_of_their_own_for_training(captions):
    rows = read_task(captions, "train", task="caption", every_answer=True)
    prompt = FORMAT_PROMPTS["caption"]
    assert said(rows) == [[prompt, "A dog ."], [prompt, "Dog runs ."], [prompt, "A cat ."]]
    assert [picture.getpixel((0, 0)) for index in range(3) for picture in rows.images(index)] == [
        (0, 0, 0),
        (0, 0, 0),
        (40, 0, 0),
    ]
    assert rows.sources[1].endswith("metadata.jsonl, line 1, answer 1")


def test_captions_without_a_split_are_read(captions):
    assert len(read_task(captions / "train", task="caption")) == 2


def test_captions_of_a_picture_never_share_a_conversation(captions):
    assert len(read_task(captions, "train", task="caption", every_answer=True, max_exchanges=8)) == 3


def test_captions_are_references_of_one_row_for_scoring(captions):
    rows = read_task(captions, "train", task="caption", prompt="Say what it is.")
    assert said(rows) == [["Say what it is.", "A dog ."], ["Say what it is.", "A cat ."]]
    assert rows.references(0) == ["A dog .", "Dog runs .", "A dog ."] and rows.references(1) == ["A cat ."]
    assert rows.name(0) == "a.png"


def test_equal_captions_of_the_whole_set_are_refused(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    write_lines(tmp_path / "rows.jsonl", *({"image": f"{name}.png", "caption": "A photo."} for name in "ab"))
    assert len(read_task(tmp_path / "rows.jsonl", task="caption")) == 2
    with pytest.raises(ValueError, match="captions that differ, got 2 times 'A photo.'"):
        read_task(tmp_path / "rows.jsonl", task="caption", every_answer=True)


def test_empty_captions_are_refused_by_row_and_can_be_left_out(captions):
    with (captions / "train" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "a.png", "captions": ["  ", ""]}) + "\n")
    with pytest.raises(ValueError, match="metadata.jsonl, line 3: wanted an answer with words, got none"):
        read_task(captions, "train", task="caption")
    told = []
    assert len(read_task(captions, "train", task="caption", on_bad_row=told.append)) == 2 and len(told) == 1


@pytest.fixture
def rooms(tmp_path):
    write_pictures(tmp_path / "train", "a.png", "b.png")
    write_lines(
        tmp_path / "train" / "metadata.jsonl",
        {"file_name": "a.png", "question": ["q1?", "q2?", "q1?", "q3?"], "answer": ["a1", "a2", "a1", "a3"]},
        {"file_name": "b.png", "question": ["q4?"], "answer": ["a4"]},
    )
    return tmp_path


def test_questions_are_rows_for_scoring_and_asked_once(rooms):
    rows = read_task(rooms, "train", task="vqa", prompt="short-answer")
    assert [rows.question(index).split("\n")[0] for index in range(len(rows))] == ["q1?", "q2?", "q3?", "q4?"]
    assert rows.question(0).endswith(f"\n{FORMAT_PROMPTS['short-answer']}")
    assert [rows.references(index) for index in range(4)] == [["a1"], ["a2"], ["a3"], ["a4"]]
    assert [rows.num_images(index) for index in range(4)] == [1, 1, 1, 1]
    assert "line 1, question 3" in rows.sources[2]


def test_questions_about_a_picture_share_a_conversation_whose_first_has_picture_and_prompt(rooms):
    rows = read_task(rooms, "train", task="vqa", prompt="Be brief please.", max_exchanges=2)
    assert said(rows) == [["q1?\nBe brief please.", "a1", "q2?", "a2"], ["q3?\nBe brief please.", "a3"],
                          ["q4?\nBe brief please.", "a4"]]  # fmt: skip
    places = [sum(part["type"] == "image" for part in message["content"]) for message in rows.messages(0)[::2]]
    assert places == [1, 0] and [rows.num_images(index) for index in range(3)] == [1, 1, 1]
    assert rows.images(2)[0].getpixel((0, 0)) == (40, 0, 0)
    assert rows.references(0) == ["a2"]  # the last answer: those of the first question are not its references


def test_pictures_held_in_a_table_stay_with_their_questions(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    table = datasets.Dataset.from_dict(
        {
            "picture": [str(tmp_path / "a.png"), str(tmp_path / "b.png")],
            "question": [["q1?", "q2?"], ["q3?"]],
            "reply": [["a1", "a2"], ["a3"]],
        }
    ).cast_column("picture", datasets.Image())
    table.rename_column("picture", "image").to_parquet(tmp_path / "train.parquet")
    rows = read_task(tmp_path / "train.parquet", task="vqa", columns={"answer": "reply"})
    assert [rows.images(index)[0].getpixel((0, 0))[0] for index in range(3)] == [0, 0, 40]
    assert [rows.images(index)[0].getpixel((0, 0))[0] for index in range(2)] == [0, 0]
    distinct, of_row = rows.distinct_pictures()
    assert of_row.tolist() == [0, 0, 1]
    assert [distinct.images(index)[0].getpixel((0, 0))[0] for index in range(2)] == [0, 40]
    merged = read_task(tmp_path / "train.parquet", task="vqa", columns={"answer": "reply"}, max_exchanges=9)
    assert said(merged) == [["q1?", "a1", "q2?", "a2"], ["q3?", "a3"]]
    assert pickle.loads(pickle.dumps(rows)).images(2)[0].size == (4, 4)


def test_pictures_stored_in_a_table_are_never_mixed_up(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png", "c.png")
    rows = [
        {
            "photo": {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None},
            "question": f"q{name}?",
            "answer": name,
        }
        for name in "abc"
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(
        {"photo": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    ))  # fmt: skip
    table.to_parquet(tmp_path / "train.parquet")
    for exchanges in (1, 8):
        read = read_task(tmp_path, "train", task="vqa", columns={"image": "photo"}, max_exchanges=exchanges)
        assert said(read) == [[f"q{name}?", name] for name in "abc"]
        assert [read.images(index)[0].getpixel((0, 0))[0] for index in range(3)] == [0, 40, 80]


def test_questions_without_pictures_stay_apart(tmp_path):
    write_lines(tmp_path / "rows.jsonl", {"question": "q1?", "answer": "a1"}, {"question": "q2?", "answer": "a2"})
    assert said(read_task(tmp_path / "rows.jsonl", task="vqa", max_exchanges=8)) == [["q1?", "a1"], ["q2?", "a2"]]


def test_a_list_of_rows_is_read_by_its_name(tmp_path):
    write_pictures(tmp_path, "a.png")
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.png", "question": "q?", "answer": "a"}]))
    assert said(read_task(tmp_path / "rows.json", task="vqa")) == [["q?", "a"]]


def test_one_pictures_different_captions_are_fine_to_learn(tmp_path):
    write_pictures(tmp_path, "a.png")
    write_lines(tmp_path / "rows.jsonl", {"image": "a.png", "captions": ["A dog.", "Dog."]})
    assert len(read_task(tmp_path / "rows.jsonl", task="caption", every_answer=True)) == 2


def test_several_answers_give_the_commonest_and_all_as_references(tmp_path):
    write_pictures(tmp_path, "a.png")
    write_lines(tmp_path / "rows.jsonl", {"image": "a.png", "question": "q?", "answers": ["x", "y", "y", "z"]})
    rows = read_task(tmp_path / "rows.jsonl", task="vqa")
    assert said(rows) == [["q?", "y"]] and rows.references(0) == ["x", "y", "y", "z"]


def test_statements_are_true_or_false_and_grouped(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    write_lines(
        tmp_path / "rows.jsonl",
        {"images": ["a.png", "b.png"], "sentence": "Both are red.", "label": True},
        {"images": ["b.png", "a.png"], "sentence": "Both are red.", "label": "False"},
    )
    rows = read_task(tmp_path / "rows.jsonl", task="nlvr", prompt="true-false")
    assert [rows.references(index) for index in range(2)] == [["true"], ["false"]]
    assert rows.group(0) == rows.group(1) == "Both are red." and rows.num_images(0) == 2
    assert rows.question(0) == f"Both are red.\n{FORMAT_PROMPTS['true-false']}"
    write_lines(tmp_path / "bad.jsonl", {"images": ["a.png"], "sentence": "s", "label": "maybe"})
    with pytest.raises(ValueError, match="line 1: wanted true or false as a statement's label, got 'maybe'"):
        read_task(tmp_path / "bad.jsonl", task="nlvr")


def test_other_columns_are_named(tmp_path):
    write_pictures(tmp_path, "a.png")
    write_lines(tmp_path / "rows.jsonl", {"image": "a.png", "name_en": "dog", "name_de": "Hund", "group": "animals"})
    with pytest.raises(ValueError, match=r"line 1: wanted `source` or `question` .* got `image`, `name_en`.*columns"):
        read_task(tmp_path / "rows.jsonl", task="translate")
    columns = {"question": "name_en", "answer": "name_de", "kind": "group"}
    rows = read_task(tmp_path / "rows.jsonl", task="translate", columns=columns, prompt="translate-de")
    assert said(rows) == [["dog\nTranslate this into German.", "Hund"]] and rows.kind(0) == "animals"
    with pytest.raises(ValueError, match="`columns` knows `question`, .* got 'answr'"):
        read_task(tmp_path / "rows.jsonl", task="translate", columns={"answr": "name_de"})


def test_conversations_serve_any_task_and_get_the_prompt_once(tmp_path):
    write_pictures(tmp_path, "a.png")
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q1?"}]},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2?"},
        {"role": "assistant", "content": "a2"},
    ]
    row = {"messages": messages, "images": ["a.png"], "references": ["a2", "A2"], "kind": "k", "group": "g"}
    write_lines(tmp_path / "rows.jsonl", row)
    for task in ("vqa", "chat"):
        rows = read_task(tmp_path / "rows.jsonl", task=task, prompt="Be brief please.")
        assert said(rows) == [["s", "q1?\nBe brief please.", "a1", "q2?", "a2"]]
        assert rows.messages(0)[1]["content"][0] == {"type": "image"}
        assert (rows.references(0), rows.kind(0), rows.group(0)) == (["a2", "A2"], "k", "g")
    assert rows.select([0]).question(0) == "q2?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": []}, "wanted a list of texts as `references`, got"),
        ({"references": "a2"}, "wanted a list of texts as `references`, got 'a2'"),
        ({"kind": 3}, "wanted a text as `kind`, got 3"),
    ],
)
def test_notes_of_the_wrong_kind_are_refused(tmp_path, change, message):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    write_lines(tmp_path / "rows.jsonl", row | change)
    with pytest.raises(ValueError, match=f"rows.jsonl, line 1: {message}"):
        read_task(tmp_path / "rows.jsonl", task="chat")


def test_bad_rows_are_named(rooms):
    file = rooms / "train" / "metadata.jsonl"
    write_lines(file, {"file_name": "a.png", "question": ["q1?", "q2?"], "answer": ["a1"]})
    with pytest.raises(ValueError, match="line 1: wanted an answer a question, got 1 answers for 2 questions"):
        read_task(rooms, "train", task="vqa")
    write_lines(file, {"file_name": "a.png", "question": " ", "answer": "a1"})
    with pytest.raises(ValueError, match="line 1: wanted a question with words, got none"):
        read_task(rooms, "train", task="vqa")
    write_lines(file, {"file_name": "c.png", "question": "q?", "answer": "a1"})
    with pytest.raises(FileNotFoundError, match="line 1: wanted the picture c.png, got no such file"):
        read_task(rooms, "train", task="vqa")
    with pytest.raises(ValueError, match="`task` must be one of `caption`, .* got 'captions'"):
        read_task(rooms, "train", task="captions")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_task(rooms / "none", task="vqa")


# As published


def test_coco_captions_are_read(tmp_path):
    write_pictures(tmp_path / "val", "1.jpg", "2.jpg")
    content = {
        "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "2.jpg"}],
        "annotations": [
            {"image_id": 8, "id": 1, "caption": "A cat."},
            {"image_id": 7, "id": 2, "caption": "A dog."},
            {"image_id": 7, "id": 3, "caption": "Dog."},
        ],
    }
    (tmp_path / "captions_val.json").write_text(json.dumps(content))
    for split in (None, "val"):
        rows = read_task(tmp_path, split, task="caption", image_folder=tmp_path / "val")
    assert [rows.references(index) for index in range(2)] == [["A dog.", "Dog."], ["A cat."]]
    assert rows.images(1)[0].getpixel((0, 0))[0] > 20 and rows.name(0) == "7"


def test_vqav2_is_read(tmp_path):
    write_pictures(tmp_path, "COCO_val2014_000000000042.jpg")
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 420, "image_id": 42, "question": "What?"}]}
    answers = [{"answer": word, "answer_id": number} for number, word in enumerate(["cat"] * 6 + ["dog"] * 4)]
    annotations = {"data_subtype": "val2014", "annotations": [{"question_id": 420, "image_id": 42, "answers": answers,
                   "answer_type": "other", "multiple_choice_answer": "cat"}]}  # fmt: skip
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(annotations))
    rows = read_task(tmp_path, "val2014", task="vqa")
    assert said(rows) == [["What?", "cat"]] and rows.references(0) == ["cat"] * 6 + ["dog"] * 4
    assert rows.kind(0) == "other" and rows.name(0) == "420" and rows.images(0)[0].size == (4, 4)
    annotations["annotations"][0]["question_id"] = 421
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(annotations))
    with pytest.raises(ValueError, match="must hold the answers to every question of .*, got none for 420"):
        read_task(tmp_path, "val2014", task="vqa")


def test_gqa_and_textvqa_are_read(tmp_path):
    write_pictures(tmp_path, "n1.jpg")
    (tmp_path / "gqa.json").write_text(json.dumps({"55": {"question": "Red?", "answer": "yes", "imageId": "n1"}}))
    rows = read_task(tmp_path / "gqa.json", task="vqa")
    assert said(rows) == [["Red?", "yes"]] and rows.name(0) == "55"
    row = {"question": "Which brand?", "answers": ["a", "a", "b"], "image_id": "n1", "question_id": 3}
    (tmp_path / "TextVQA.json").write_text(json.dumps({"data": [row]}))
    assert said(read_task(tmp_path / "TextVQA.json", task="vqa")) == [["Which brand?", "a"]]
    (tmp_path / "odd.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="must hold GQA's questions or TextVQA's `data`.* got `rows`"):
        read_task(tmp_path / "odd.json", task="vqa")


def test_nlvr2_is_read(tmp_path):
    write_pictures(tmp_path / "dev", "dev-1-0-img0.png", "dev-1-0-img1.png")
    rows = [
        {"sentence": "Two dogs.", "label": label, "identifier": f"dev-1-0-{number}", "left_url": "u", "right_url": "v"}
        for number, label in enumerate(["True", "False"])
    ]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    read = read_task(tmp_path, "dev", task="nlvr", image_folder=tmp_path / "dev")
    assert [read.references(index) for index in range(2)] == [["true"], ["false"]]
    assert [picture.getpixel((0, 0))[0] for picture in read.images(0)] == [0, 40]
    assert read.group(0) == "Two dogs." and read.name(1) == "dev-1-0-1"
    write_pictures(tmp_path / "dev" / "7", "dev-1-0-img0.png", "dev-1-0-img1.png")
    (tmp_path / "train.json").write_text(json.dumps(rows[0] | {"directory": 7}) + "\n")
    assert read_task(tmp_path, "train", task="nlvr", image_folder=tmp_path / "dev").num_images(0) == 2
    with pytest.raises(ValueError, match="must hold one file of the split, got dev.json, train.json"):
        read_task(tmp_path, task="nlvr", image_folder=tmp_path / "dev")


def test_multi30k_is_read(tmp_path):
    write_pictures(tmp_path / "images", "1.png", "2.png")
    with gzip.open(tmp_path / "val.en.gz", "wt") as file:
        file.write("A dog.\nA cat.\n")
    (tmp_path / "val.de").write_text("Ein Hund.\nEine Katze.\n")
    (tmp_path / "image_splits").mkdir()
    (tmp_path / "image_splits" / "val.txt").write_text("1.png\n2.png\n")
    settings = {"task": "translate", "columns": {"question": "en", "answer": "de"}}
    rows = read_task(tmp_path, "val", image_folder=tmp_path / "images", **settings)
    assert said(rows) == [["A dog.", "Ein Hund."], ["A cat.", "Eine Katze."]]
    assert rows.images(1)[0].getpixel((0, 0))[0] == 40 and rows.sources[1].endswith("line 2")
    (tmp_path / "raw").mkdir()
    for file in ("val.en.gz", "val.de"):
        (tmp_path / file).rename(
            tmp_path / "raw" / file
        )  # as the release has it: the lists of pictures beside the folder
    rows = read_task(tmp_path / "raw", "val", image_folder=tmp_path / "images", **settings)
    assert rows.num_images(0) == 1
    for file in ("val.en.gz", "val.de"):
        (tmp_path / "raw" / file).rename(tmp_path / file)
    (tmp_path / "val.de").write_text("Ein Hund.\n")
    with pytest.raises(ValueError, match="must have as many lines, got 2, 1, 2"):
        read_task(tmp_path, "val", image_folder=tmp_path / "images", **settings)


# One by one


def test_streamed_rows_are_those_that_are_read(captions):
    for every_answer in (False, True):
        rows = read_task(captions, "train", task="caption", every_answer=every_answer)
        streamed = list(stream_task(captions, "train", task="caption", every_answer=every_answer))
        assert [row.messages for row in streamed] == [rows.messages(index) for index in range(len(rows))]
        assert [row.source for row in streamed] == list(rows.sources)
        assert [row.notes["references"] for row in streamed] == [rows.references(index) for index in range(len(rows))]
    assert streamed[0].images == [captions / "train" / "a.png"] and streamed[0].notes["id"] == "a.png"


def test_streamed_rows_have_the_bytes_that_a_table_holds(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    held = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    features = datasets.Features({"image": datasets.Image(), "question": [datasets.Value("string")],
                                  "answer": [datasets.Value("string")]})  # fmt: skip
    rows = [
        {"image": {"bytes": data, "path": None}, "question": ["q1?", "q2?"], "answer": ["a1", "a2"]} for data in held
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert [row.images for row in stream_task(tmp_path, "train", task="vqa")] == [
        held[:1],
        held[:1],
        held[1:],
        held[1:],
    ]
    merged = list(stream_task(tmp_path, "train", task="vqa", max_exchanges=2))
    assert [row.images for row in merged] == [held[:1], held[1:]] and len(merged[1].messages) == 4


def test_streamed_conversations_keep_pictures_notes_and_prompt(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    turns = [{"from": "human", "value": "q?\n<image>"}, {"from": "gpt", "value": "a"}]
    content = [{"id": 5, "image": f"{name}.jpg", "conversations": turns} for name in "ab"]
    (tmp_path / "llava.json").write_text(json.dumps([*content, {"id": 6, "conversations": []}]))
    told = []
    for task in ("chat", "vqa"):
        rows = list(stream_task(tmp_path / "llava.json", task=task, prompt="Be brief please.", on_bad_row=told.append))
        assert [row.images for row in rows] == [[tmp_path / "a.png"], [tmp_path / "b.png"]]
        assert text_of(rows[1].messages[0]) == "q?\nBe brief please." and rows[0].notes == {"id": "5"}
        assert rows[1].source.endswith("llava.json, row 1")
    assert len(told) == 2 and "row 2: wanted a list `conversations`, got none" in str(told[0])
    held = [(tmp_path / f"{name}.png").read_bytes() for name in "ab"]
    table = [{"images": [{"bytes": data, "path": None}], "messages": read_messages(turns)} for data in held]
    text = datasets.Value("string")
    messages = [{"role": text, "content": [{"type": text, "text": text}]}]
    features = datasets.Features({"images": [datasets.Image()], "messages": messages})
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "train.parquet")
    assert [row.images for row in stream_task(tmp_path / "train.parquet", task="chat")] == [held[:1], held[1:]]


def read_messages(turns):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "q?"}]
    answer = [{"type": "text", "text": turns[1]["value"]}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def test_streaming_leaves_out_files_that_are_no_pictures(captions):
    (captions / "train" / "a.png").write_bytes(b"<html>404</html>")
    told = []
    rows = list(stream_task(captions, "train", task="caption", on_bad_row=told.append))
    assert [row.notes["id"] for row in rows] == ["b.png"]
    assert told[0].kind == "unreadable pictures" and "a.png: wanted a picture, got something else" in str(told[0])
    with pytest.raises(ValueError, match="line 1, .*a.png: wanted a picture"):
        list(stream_task(captions, "train", task="caption"))


def test_streaming_tells_at_once_what_is_wrong_with_arguments_and_at_the_end_with_the_set(tmp_path):
    with pytest.raises(ValueError, match="`task` must be one of"):
        stream_task(tmp_path, task="captions")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stream_task(tmp_path / "none", task="chat")
    write_pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(FileNotFoundError, match="`image_folder` must be a folder"):
        write_lines(tmp_path / "rows.jsonl", {"image": "a.png", "caption": "x"})
        stream_task(tmp_path / "rows.jsonl", task="caption", image_folder=tmp_path / "none")
    write_lines(tmp_path / "rows.jsonl", *({"image": f"{name}.png", "caption": "A photo."} for name in "ab"))
    stream = stream_task(tmp_path / "rows.jsonl", task="caption", every_answer=True)
    assert next(stream).images == [tmp_path / "a.png"]
    with pytest.raises(ValueError, match="captions that differ, got 2 times 'A photo.'"):
        list(stream)
    with pytest.raises(ValueError, match="must hold rows of the task `caption`, got none"):
        list(
            stream_task(tmp_path / "rows.jsonl", task="caption", columns={"answer": "z"}, on_bad_row=lambda error: None)
        )


def test_bad_rows_keep_their_kinds(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [1], {"image": "http://x/a.png", "caption": "x"}, {"caption": "y"})
    kinds = []
    read_task(tmp_path / "rows.jsonl", task="caption", on_bad_row=lambda error: kinds.append(error.kind))
    assert kinds == ["bad rows", "unwanted names of pictures"]
