"""Sets that were published become conversations and the published files again: fields, words and pictures are the same."""

import base64
import csv
import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversation_files import ConversationError
from hf_vlm.data.conversations.conversations import read_conversations, text_of
from hf_vlm.data.tasks.convert import convert
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS
from hf_vlm.data.tasks.format_writer import (
    ConversationRow,
    StoredPicture,
    as_number,
    ten_answers,
    without_format_prompt,
)
from hf_vlm.data.tasks.published_writers import FORMATS, WRITERS, format_writer
from hf_vlm.data.tasks.question_writers import choices_of
from hf_vlm.data.tasks.task_rows import read_task


def picture(seed, kind="png", size=(5, 4)):
    """The bytes of a picture that differs from those of other seeds."""
    stream = io.BytesIO()
    Image.new("RGB", size, (seed * 40 % 256, seed, 7)).save(stream, kind)
    return stream.getvalue()


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(file):
    return json.loads(file.read_text(encoding="utf-8"))


def load_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def told(rows):
    """Words, references, kind, group and picture bytes of every row."""
    return [
        (
            [(message["role"], text_of(message)) for message in rows.messages(index)],
            rows.references(index),
            rows.kind(index),
            rows.group(index),
            rows.stored_images(index),
        )
        for index in range(len(rows))
    ]


def there_and_back(
    tmp_path, to, task, prompt=None, columns=None, images="images", split="train", source_images=None, **more
):
    """Convert tmp_path/in to conversations and back into `to`; what is read of all three must be the same."""
    source, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    folder = source_images or (source / images if images else None)
    first = convert(source, out, task=task, prompt=prompt, columns=columns, image_folder=folder, **more)
    assert not first.num_bad_rows, str(first)
    second = convert(out, back, task="chat", to=to, prompt=prompt, columns=columns if to == "multi30k" else None)
    assert not second.num_bad_rows, str(second)
    before = read_task(source, split, task=task, prompt=prompt, columns=columns, image_folder=folder, **more)
    stored = read_conversations(out, split)
    again = read_task(
        back, split, task=task, prompt=prompt, columns=columns, image_folder=back / images if images else None, **more
    )
    assert told(stored) == told(before) == told(again)
    assert (first.num_rows, second.num_rows) == ({split: len(before)}, {split: len(before)})
    return back


def answers(*texts):
    return [{"answer": text, "answer_confidence": "yes", "answer_id": at} for at, text in enumerate(texts, start=1)]


TEN = ["net"] * 6 + ["netting"] * 2 + ["mesh", "pitch"]


def test_llava_there_and_back(tmp_path):
    rows = [
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
                {"from": "gpt", "value": "White and red."},
                {"from": "human", "value": "Is it “new”?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {
            "id": "wgByO4Y_0",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello\n\n1. a\n2. b"}],
        },
        {
            "id": "two",
            "image": ["a.jpg", "b.png"],
            "conversations": [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "No."}],
        },
    ]
    put(tmp_path / "in/train.json", rows)
    put(tmp_path / "in/images/coco/train2017/000000033471.jpg", picture(1, "jpeg"))
    put(tmp_path / "in/images/a.jpg", picture(2, "jpeg"))
    put(tmp_path / "in/images/b.png", picture(3))
    back = there_and_back(tmp_path, "llava", "chat")
    assert load(back / "train.json") == rows
    assert (back / "images/coco/train2017/000000033471.jpg").read_bytes() == picture(1, "jpeg")


def test_messages_there_and_back(tmp_path):
    rows = [
        {
            "id": "a",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "text": "Left"}, {"type": "image"}, {"type": "image"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            ],
            "images": ["images/a.png", "images/b/c.png"],
            "references": ["A cat.", "cat"],
            "kind": "other",
            "group": "g",
        }
    ]
    put(tmp_path / "in/train.jsonl", lines(*rows))
    put(tmp_path / "in/images/a.png", picture(1))
    put(tmp_path / "in/images/b/c.png", picture(2))
    back = there_and_back(tmp_path, "messages", "chat", images=None)
    assert load_lines(back / "train.jsonl") == rows


def test_vqav2_there_and_back(tmp_path):
    head = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014"}
    questions = [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 262148, "question": "What is behind him?", "question_id": 262148001},
    ]
    annotations = [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": said[0],
            "answers": answers(*said),
            "image_id": 262148,
            "answer_type": "other",
            "question_id": question["question_id"],
        }
        for question, said in zip(questions, (["down"] * 10, TEN), strict=True)
    ]
    put(tmp_path / "in/v2_OpenEnded_mscoco_val_questions.json", {**head, "questions": questions})
    put(tmp_path / "in/v2_mscoco_val_annotations.json", {**head, "annotations": annotations})
    put(tmp_path / "in/images/COCO_val2014_000000262148.jpg", picture(1, "jpeg"))
    back = there_and_back(tmp_path, "vqav2", "vqa", "short-answer", split="val")
    assert load(back / "v2_OpenEnded_mscoco_val_questions.json") == {**head, "questions": questions}
    assert load(back / "v2_mscoco_val_annotations.json") == {**head, "annotations": annotations}
    assert [file.name for file in (back / "images").iterdir()] == ["COCO_val2014_000000262148.jpg"]


def test_gqa_there_and_back(tmp_path):
    rows = {
        "201307251": {"isBalanced": True, "question": "Is it overcast?", "imageId": "n161313", "answer": "no"},
        "05451384": {
            "isBalanced": True,
            "question": "Who is wearing the dress?",
            "imageId": "2405722",
            "answer": "woman",
        },
    }
    put(tmp_path / "in/train_balanced_questions.json", rows)
    put(tmp_path / "in/images/n161313.jpg", picture(1, "jpeg"))
    put(tmp_path / "in/images/2405722.jpg", picture(2, "jpeg"))
    back = there_and_back(tmp_path, "gqa", "vqa", "short-answer")
    assert load(back / "train_questions.json") == rows and list(load(back / "train_questions.json")) == list(rows)


def test_textvqa_there_and_back(tmp_path):
    row = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_width": 5,
        "image_height": 4,
        "question_id": 34602,
        "answers": ["dakota"] * 7 + ["clos culombu", "dakota digital", "nous les gosses"],
        "set_name": "val",
    }
    whole = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": [row]}
    put(tmp_path / "in/TextVQA_0.5.1_val.json", whole)
    put(tmp_path / "in/images/003a8ae2ef43b901.jpg", picture(1, "jpeg"))
    back = there_and_back(tmp_path, "textvqa", "vqa", "short-answer", split="val")
    assert load(back / "TextVQA_0.5.1_val.json") == whole


def test_vizwiz_there_and_back(tmp_path):
    rows = [
        {
            "image": "VizWiz_val_00000000.jpg",
            "question": "Ok. There is another picture I hope it is a better one.",
            "answers": [{"answer_confidence": "yes", "answer": text} for text in ["unanswerable"] * 9 + ["oily"]],
            "answer_type": "unanswerable",
            "answerable": 0,
        },
        {
            "image": "VizWiz_val_00000001.jpg",
            "question": "Is this a net?",
            "answers": [{"answer_confidence": "yes", "answer": text} for text in TEN],
            "answer_type": "other",
            "answerable": 1,
        },
    ]
    put(tmp_path / "in/val.json", rows)
    put(tmp_path / "in/images/VizWiz_val_00000000.jpg", picture(1, "jpeg"))
    put(tmp_path / "in/images/VizWiz_val_00000001.jpg", picture(2, "jpeg"))
    back = there_and_back(tmp_path, "vizwiz", "vqa", "unanswerable", split="val")
    assert load(back / "val.json") == rows


@pytest.mark.parametrize("answer", [None, "explained_answer"])
def test_scienceqa_there_and_back(tmp_path, answer):
    def problem(split, **fields):
        told = {"task": "closed choice", "grade": "", "topic": "", "category": "", "skill": "", "lecture": ""}
        solution = "Look at it. So it is." if answer else ""
        return {**fields, **told, "subject": "natural science", "solution": solution, "split": split}

    problems = {
        "1": problem("train", question="Which is farthest north?", choices=["Utah", "Iowa", "Ohio"], answer=1, hint="",
                     image="image.png"),
        "7": problem("train", question="Is rain water?", choices=["yes", "no"], answer=0, hint="Read.\nThen answer.",
                     image=None),
        "9": problem("test", question="What is it?", choices=["a", "b"], answer=1, hint="", image=None),
    }  # fmt: skip
    splits = {"train": ["1", "7"], "test": ["9"]}
    put(tmp_path / "in/problems.json", problems)
    put(tmp_path / "in/pid_splits.json", splits)
    put(tmp_path / "in/train/1/image.png", picture(1))
    source, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    columns = {"answer": answer} if answer else None
    convert(source, out, task="vqa", prompt="option-letter", columns=columns)
    report = convert(out, back, task="chat", to="scienceqa", prompt="option-letter")
    assert not report.num_bad_rows and report.num_rows == {"train": 2, "test": 1}
    assert load(back / "problems.json") == problems and load(back / "pid_splits.json") == splits
    for split in splits:
        before, again = (
            read_task(place, split, task="vqa", prompt="option-letter", columns=columns) for place in (source, back)
        )
        assert told(before) == told(read_conversations(out, split)) == told(again)


def test_ocrvqa_there_and_back(tmp_path):
    def book(split, *asked):
        told = {"imageURL": "", "questions": [one for one, _ in asked], "answers": [one for _, one in asked]}
        return {**told, "title": "", "authorName": "", "genre": "Travel", "split": split}

    books = {
        "0761183272": book(1, ("Who wrote this book?", "Sandra Boynton"), ("What is the title?", "Mom's Calendar")),
        "1435159586": book(2, ("Is this a journey related book?", "Yes")),
    }
    put(tmp_path / "in/dataset.json", books)
    put(tmp_path / "in/images/0761183272.jpg", picture(1, "jpeg"))
    put(tmp_path / "in/images/1435159586.gif", picture(2, "gif"))
    source, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    for number, most in ((0, 1), (1, 8)):
        conversations, again = out / str(number), back / str(number)
        convert(source, conversations, task="vqa", prompt="short-answer", max_exchanges=most)
        report = convert(conversations, again, task="chat", to="ocrvqa", prompt="short-answer")
        assert not report.num_bad_rows and report.num_rows == {"train": 2 - number, "val": 1}
        found = load(again / "dataset.json")
        assert found | {"0761183272": {**found["0761183272"], "genre": "Travel"}} == books
        assert found["0761183272"]["genre"] == ("" if number else "Travel")  # a kind is of one question only
        for split in ("train", "val"):
            before, after = (told(read_task(place, split, task="vqa")) for place in (source, again))
            assert [(one[:2], one[4]) for one in before] == [(one[:2], one[4]) for one in after]


def test_mmbench_there_and_back(tmp_path):
    rows = [
        {"index": "241", "question": "Which is true?", "hint": "Two magnets.", "A": "Weak.", "B": "Strong.", "C": "Same.",
         "D": "", "answer": "B", "category": "physics", "image": base64.b64encode(picture(1, "jpeg")).decode()},
        {"index": "252", "question": 'Is it "red"?', "hint": "", "A": "yes", "B": "no", "C": "", "D": "", "answer": "A",
         "category": "color", "image": base64.b64encode(picture(2)).decode()},
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    with (tmp_path / "in/dev.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    back = there_and_back(tmp_path, "mmbench", "vqa", "option-letter", images=None, split="dev")
    assert (back / "dev.tsv").read_bytes() == (tmp_path / "in/dev.tsv").read_bytes()


def test_question_files_there_and_back(tmp_path):
    words = FORMAT_PROMPTS["short-answer"]
    questions = [
        {"question_id": 1, "image": "a.png", "text": f"What is it?\n{words}", "category": "conv"},
        {"question_id": "b-2", "image": "b.png", "text": f"And this?\n{words}", "category": "detail"},
    ]
    replies = [
        {"question_id": one["question_id"], "prompt": one["text"], "text": text, "answer_id": str(one["question_id"]),
         "model_id": "reference", "metadata": {}}
        for one, text in zip(questions, ("A cat", "A dog"), strict=True)
    ]  # fmt: skip
    put(tmp_path / "in/questions_test.jsonl", lines(*questions))
    put(tmp_path / "in/answers_test.jsonl", lines(*replies))
    put(tmp_path / "in/images/a.png", picture(1))
    put(tmp_path / "in/images/b.png", picture(2))
    back = there_and_back(tmp_path, "questions", "vqa", split="test")
    assert load_lines(back / "questions_test.jsonl") == questions
    assert load_lines(back / "answers_test.jsonl") == replies


def test_nlvr2_there_and_back(tmp_path):
    rows = [
        {"sentence": "Both are dogs.", "label": "True", "identifier": "train-10171-0-0", "directory": 55},
        {"sentence": "Both are dogs.", "label": "False", "identifier": "train-10171-1-0", "directory": 55},
    ]
    put(tmp_path / "in/train.json", lines(*rows))
    for pair in (0, 1):
        for side in (0, 1):
            put(tmp_path / f"in/images/55/train-10171-{pair}-img{side}.png", picture(1 + 2 * pair + side))
    back = there_and_back(tmp_path, "nlvr2", "nlvr", "true-false")
    assert load_lines(back / "train.json") == rows


def test_multi30k_there_and_back(tmp_path):
    put(tmp_path / "in/train.en", "Two dogs.\nA man in\x85a “hat” .\n")
    put(tmp_path / "in/train.de", "Zwei Hunde.\nEin Mann mit Hut .\n")
    put(tmp_path / "in/image_splits/train.txt", "1.jpg\n2.jpg\n")
    put(tmp_path / "in/images/1.jpg", picture(1, "jpeg"))
    put(tmp_path / "in/images/2.jpg", picture(2, "jpeg"))
    columns = {"question": "en", "answer": "de"}
    back = there_and_back(tmp_path, "multi30k", "translate", "translate-de", columns)
    for name in ("train.en", "train.de", "image_splits/train.txt"):
        assert (back / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


@pytest.mark.parametrize("every_answer", [False, True])
def test_coco_captions_there_and_back(tmp_path, every_answer):
    whole = {
        "info": {},
        "images": [
            {"id": 391895, "file_name": "COCO_train2014_000000391895.jpg", "width": 5, "height": 4},
            {"id": 522418, "file_name": "COCO_train2014_000000522418.jpg", "width": 5, "height": 4},
        ],
        "annotations": [
            {"image_id": 391895, "id": 1, "caption": "A man with a red helmet."},
            {"image_id": 391895, "id": 2, "caption": "A man riding."},
            {"image_id": 522418, "id": 3, "caption": "A woman cutting a cake."},
        ],
        "licenses": [],
    }
    put(tmp_path / "in/annotations/captions_train.json", whole)
    for number, image in enumerate(whole["images"]):
        put(tmp_path / "in/train" / image["file_name"], picture(number, "jpeg"))
    back = there_and_back(tmp_path, "coco-captions", "caption", images=None, every_answer=every_answer)
    assert load(back / "annotations/captions_train.json") == whole
    assert sorted(file.name for file in (back / "annotations").iterdir()) == ["captions_train.json"]
    convert(tmp_path / "out", tmp_path / "results", task="chat", to="coco-results", split="train")
    results = load(tmp_path / "results/captions_train_results.json")
    if not every_answer:
        assert results == [
            {"image_id": 391895, "caption": "A man with a red helmet."},
            {"image_id": 522418, "caption": "A woman cutting a cake."},
        ]


@pytest.mark.parametrize("task", ["caption", "vqa"])
@pytest.mark.parametrize("to", ["imagefolder", "csv", "webdataset"])
def test_folders_with_a_table_there_and_back(tmp_path, task, to):
    if task == "caption":
        rows = [{"file_name": "a.png", "captions": ["One, two", "Zwei\n"]}, {"file_name": "b.png", "captions": ['"B"']}]
    else:
        rows = [
            {"file_name": "a.png", "id": "1", "question": "What, here?", "answer": "x", "kind": "k"},
            {"file_name": "a.png", "id": "2", "question": 'And "there"?', "answer": "y", "group": "g"},
        ]
    put(tmp_path / "in/train/metadata.jsonl", lines(*rows))
    put(tmp_path / "in/train/a.png", picture(1))
    put(tmp_path / "in/train/b.png", picture(2))
    prompt = "caption" if task == "caption" else "short-answer"
    back = there_and_back(tmp_path, to, task, prompt, images=None)
    if to == "imagefolder":
        found = load_lines(back / "train/metadata.jsonl")
        assert [row["file_name"] for row in found] == [row["file_name"] for row in rows]
        table = datasets.load_dataset("imagefolder", data_dir=str(back), cache_dir=str(tmp_path / "cache"))["train"]
        assert len(table) == 2 and table[0]["image"].size == (5, 4)
    elif to == "webdataset":
        with tarfile.open(back / "train-00000.tar") as tar:
            assert tar.getnames() == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]


def test_class_folders_there_and_back(tmp_path):
    put(tmp_path / "in/train/tench/a.png", picture(1))
    put(tmp_path / "in/train/great_white_shark/a.png", picture(2))
    back = there_and_back(tmp_path, "class-folders", "vqa", images=None)
    assert sorted(str(file.relative_to(back)) for file in back.rglob("*.png")) == [
        "train/great_white_shark/a.png",
        "train/tench/a.png",
    ]


# One row at a time


def row(question="What?", answer="A.", pictures=1, **fields):
    parts = [*[{"type": "image"}] * pictures, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    held = [StoredPicture(picture(number + 1), f"{number}.png") for number in range(pictures)]
    return ConversationRow(messages, held, "FILE, row 3", **fields)


@pytest.mark.parametrize(
    ("to", "bad", "told"),
    [
        (
            to,
            ConversationRow(row().messages * 2, row().pictures * 2, "", "1"),
            "wanted one question a row, as `.*` has no place for others, got 2",
        )
        for to in ("vqav2", "gqa", "textvqa", "vizwiz", "scienceqa", "mmbench", "questions", "nlvr2", "coco-captions", "csv")
    ]
    + [
        ("vqav2", row(pictures=2), "wanted 1 picture a row, .* got 2"),
        ("vqav2", row(pictures=0), "wanted 1 picture a row, .* got 0"),
        ("questions", row(pictures=2), "wanted 0 or 1 picture a row"),
        ("nlvr2", row(answer="true"), "wanted 2 pictures a row, .* got 1"),
        ("nlvr2", row(answer="maybe", pictures=2), "`true` or `false`, .* got 'maybe'"),
        ("vqav2", row(FORMAT_PROMPTS["caption"]), "a question with words .* none but the format prompt"),
        ("gqa", ConversationRow([{"role": "system", "content": "x"}, *row().messages], row().pictures, ""), "no system message"),
        ("scienceqa", row(), "choices as lines"),
        ("scienceqa", row("Q\nA. a\nB. b", "C"), "wanted one of A, B as the answer, got 'C'"),
        ("scienceqa", row("Q\nA. a\nB. b", "A", id="../x"), "folder's name"),
        ("mmbench", row("Q\nA. a\nB. b\nC. c\nD. d\nE. e", "A"), "2 to 4 choices"),
        ("multi30k", row("Two\nlines"), "sentences of one line"),
        ("class-folders", row(answer="../../etc"), "name of a class"),
        ("class-folders", row(answer=".hidden"), "name of a class"),
        ("vqav2", ConversationRow(row().messages, [StoredPicture(b"<html>", "a.jpg")], ""), "wanted a picture, got a.jpg"),
        ("imagefolder", ConversationRow(row().messages, [StoredPicture(None, "a.jpg")], ""), "its name alone, a.jpg"),
        ("mmbench", ConversationRow(row("Q\nA. a\nB. b", "A").messages, [StoredPicture(None, "a.jpg")], ""), "name alone"),
    ],
)  # fmt: skip
def test_a_row_that_the_format_cannot_hold_is_refused_and_nothing_of_it_written(tmp_path, to, bad, told):
    columns = {"question": "en", "answer": "de"}
    with format_writer(to, tmp_path / "out", columns=columns) as writer:
        writer.begin("train")
        with pytest.raises(ConversationError, match=told):
            writer.add(bad)
        assert not writer.num_rows and not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("to", ["vqav2", "gqa", "textvqa", "questions", "nlvr2", "mmbench", "scienceqa"])
def test_an_id_that_comes_again_is_refused(tmp_path, to):
    question = "Q\nA. a\nB. b" if to in ("mmbench", "scienceqa") else "Q"
    answer = {"nlvr2": "true", "mmbench": "A", "scienceqa": "A"}.get(to, "x")
    one = row(question, answer, 2 if to == "nlvr2" else 1, id="train-1-0-0")
    with format_writer(to, tmp_path / "out") as writer:
        writer.begin("train")
        writer.add(one)
        with pytest.raises(ConversationError, match="an `id` of its own.* got 'train-1-0-0' again"):
            writer.add(one)
        assert writer.num_rows == 1


@pytest.mark.parametrize("to", ["scienceqa", "ocrvqa"])
def test_an_id_is_unique_over_the_splits_of_one_file(tmp_path, to):
    with format_writer(to, tmp_path / "out") as writer:
        writer.begin("train")
        writer.add(row("Q\nA. a\nB. b", "A", id="1"))
        writer.end()
        writer.begin("test")
        with pytest.raises(ConversationError, match="an `id` of its own.* got '1' again"):
            writer.add(row("Q\nA. a\nB. b", "B", id="1"))


def test_two_books_with_one_picture_stay_two(tmp_path):
    with format_writer("ocrvqa", tmp_path / "out") as writer:
        writer.begin("train")
        for name in ("1", "1", "2"):
            writer.add(row(f"Q{name}?", id=name))
        writer.end()
        writer.finish()
    books = load(tmp_path / "out/dataset.json")
    assert {name: book["questions"] for name, book in books.items()} == {"1": ["Q1?", "Q1?"], "2": ["Q2?"]}


def test_two_pictures_of_one_name_are_both_kept_and_one_picture_is_written_once(tmp_path):
    with format_writer("llava", tmp_path) as writer:
        writer.begin("train")
        for number in (1, 2, 1, 2):
            writer.add(ConversationRow(row().messages, [StoredPicture(picture(number), "a.png")], ""))
        writer.add(ConversationRow(row().messages, [StoredPicture(picture(5, "jpeg"))], ""))
        writer.end()
    names = [one["image"] for one in load(tmp_path / "train.json")]
    assert names[:4] == ["a.png", "a-2.png", "a.png", "a-2.png"] and names[4].endswith(".jpg")
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == sorted({*names})
    assert (tmp_path / "images/a-2.png").read_bytes() == picture(2)


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "C:\\a.png", "a/../../b.png", ".hidden.png", "x" * 250 + ".png"]
)
def test_a_name_that_leaves_the_folder_is_not_taken(tmp_path, name):
    with format_writer("llava", tmp_path / "out") as writer:
        writer.begin("train")
        writer.add(ConversationRow(row().messages, [StoredPicture(picture(1), name)], ""))
        writer.end()
    (file,) = tmp_path.rglob("*.png")
    assert file.parent == tmp_path / "out" / "images" and len(file.stem) == 16


def test_every_writer_is_whole_without_rows(tmp_path):
    for name in WRITERS:
        with format_writer(name, tmp_path / name, columns={"question": "en", "answer": "de"}) as writer:
            writer.begin("train")
            writer.end()
            writer.finish()
    whole = [file for file in tmp_path.rglob("*.json") if file.parent.name != "nlvr2"]  # NLVR2's are lines
    assert len(whole) > 5
    for file in whole:
        load(file)  # raises where a list or an object is not closed


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of `conversations`, `llava`, .* got 'vqa'"):
        format_writer("vqa", tmp_path / "out")
    with pytest.raises(ValueError, match="`multi30k` wants languages"):
        format_writer("multi30k", tmp_path / "out")
    assert FORMATS[0] == "conversations" and len(set(FORMATS)) == len(FORMATS)


@pytest.mark.parametrize(
    ("question", "prompt", "left"),
    [
        (f"Q?\n{FORMAT_PROMPTS['short-answer']}", "short-answer", "Q?"),
        (f"Q?\n{FORMAT_PROMPTS['short-answer']}", None, f"Q?\n{FORMAT_PROMPTS['short-answer']}"),
        ("Q?", "short-answer", "Q?"),
        ("Q? Be brief please.", "Be brief please.", "Q? Be brief please."),
        (FORMAT_PROMPTS["caption"], "caption", ""),
        (FORMAT_PROMPTS["caption"], None, ""),
    ],
)  # fmt: skip
def test_a_format_prompt_is_taken_off_where_it_stands(question, prompt, left):
    assert without_format_prompt(question, prompt) == left


def test_answers_become_ten():
    assert ten_answers(TEN) == TEN
    assert ten_answers(["a"]) == ["a"] * 10
    assert ten_answers(["a", "b", "c"]) == ["a", "b", "c"] * 3 + ["a"]


def test_choices_are_parted_from_hint_and_question():
    assert choices_of("H1\nH2\nQ?\nA. a. b\nB. c") == ("H1\nH2", "Q?", ["a. b", "c"])
    assert choices_of("A. not a choice\nQ?\nA. x\nB. y") == ("A. not a choice", "Q?", ["x", "y"])
    for text in ("Q?", "Q?\nA. x\nC. y", "A. x\nB. y", "Q?\nA. x\nB. y\nmore"):
        assert choices_of(text) == ("", text, [])


def test_ids_become_numbers_where_they_read_so():
    assert [as_number(one) for one in ("0", "12", "007", "-1", "1.0", "x", "9" * 18, "9" * 19)] == [
        0, 12, "007", "-1", "1.0", "x", int("9" * 18), "9" * 19]  # fmt: skip
