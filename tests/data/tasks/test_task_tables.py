"""Tables of captions and questions are read row by row, as Flickr's, MMBench's and spreadsheets' are written."""

import base64
import csv
import io
import pickle

import pytest
from PIL import Image

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.task_rows import read_task, stream_task


def picture_bytes(level=0):
    data = io.BytesIO()
    Image.effect_noise((16, 16), 9).convert("RGB").point(lambda value: value // 8 + level).save(data, "PNG")
    return data.getvalue()


def write_pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(picture_bytes())


def said(rows):
    return [[text_of(message) for message in rows.messages(index)] for index in range(len(rows))]


def captions_of(path, split=None, **settings):
    rows = read_task(path, split, task="caption", **settings)
    return [(rows.name(index), rows.references(index)) for index in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", 'image,caption\na.jpg,A dog .\na.jpg,"A dog , brown"\nb.jpg,A cat .\n'),
        ("table.csv", '\ufefffile_name;caption\r\na.jpg;A dog .\r\na.jpg;"A dog , brown"\r\nb.jpg;A cat .\r\n'),
        ("table.tsv", "split\tcaption\tfilename\nx\tA dog .\ta.jpg\nx\tA dog , brown\ta.jpg\n\nx\tA cat .\tb.jpg\n"),
        (
            "results.csv",
            "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| A dog , brown\nb.jpg| 0| A cat .\n",
        ),
        ("Flickr8k.token.txt", "\ufeffa.jpg#0\tA dog .\na.jpg#1\tA dog , brown\nb.jpg#0\tA cat .\n"),
    ],
)
def test_captions_of_a_picture_are_joined_whatever_the_table(tmp_path, name, text):
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    for path in (tmp_path, tmp_path / name):
        rows = read_task(path, task="caption")
        assert [rows.references(index) for index in range(len(rows))] == [["A dog .", "A dog , brown"], ["A cat ."]]
    assert len(read_task(tmp_path, task="caption", every_answer=True)) == 3
    assert f"{name}, line " in rows.sources[0]


def test_flickr30ks_quotes_are_words(tmp_path):
    write_pictures(tmp_path, "a.jpg", "b.jpg")
    text = 'image_name| comment_number| comment\na.jpg| 0|"Stop" says a sign .\nb.jpg| 0|"Go .\n'
    (tmp_path / "results.csv").write_text(text)
    assert [answers for _, answers in captions_of(tmp_path)] == [['"Stop" says a sign .'], ['"Go .']]


def test_flickr8ks_splits_are_lists_beside(tmp_path):
    write_pictures(tmp_path / "Images", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,A dog .\nb.jpg,A cat .\nc.jpg,A cow .\n")
    assert len(captions_of(tmp_path, "train")) == 3  # a set that knows no split is for training
    with pytest.raises(ValueError, match="`split` must be one that .*captions.txt tells, .* got `test`"):
        captions_of(tmp_path, "test")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\nc.jpg\n")
    assert [answers for _, answers in captions_of(tmp_path, "validation")] == [["A cat ."], ["A cow ."]]


def test_metadata_of_all_pictures_serves_a_split_by_its_folder(tmp_path):
    write_pictures(tmp_path / "train", "a.jpg")
    write_pictures(tmp_path / "val", "b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,caption\ntrain/a.jpg,A dog\nval/b.jpg,A cat\n")
    assert captions_of(tmp_path, "val") == [("val/b.jpg", ["A cat"])]
    (tmp_path / "metadata.csv").write_text("file_name,caption,split\ntrain/a.jpg,A dog,test\nval/b.jpg,A cat,train\n")
    assert captions_of(tmp_path, "test") == [("train/a.jpg", ["A dog"])]


def test_questions_and_sentences_are_read_from_tables(tmp_path):
    write_pictures(tmp_path, "a.jpg")
    (tmp_path / "rows.csv").write_text('image,question,answer\na.jpg,"What, where?",here\n')
    assert said(read_task(tmp_path / "rows.csv", task="vqa")) == [["What, where?", "here"]]
    (tmp_path / "rows.csv").write_text("photo,frage,antwort\na.jpg,Was?,Hund\n")
    columns = {"image": "photo", "question": "frage", "answer": "antwort"}
    assert read_task(tmp_path / "rows.csv", task="vqa", columns=columns).num_images(0) == 1
    (tmp_path / "train.tsv").write_text("source\ttarget\nA dog.\tEin Hund.\n")
    assert said(read_task(tmp_path, "train", task="translate")) == [["A dog.", "Ein Hund."]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "A dog.\thttp://x/a.jpg\n", r"a.tsv must name files of pictures, got URLs, such as http://x/a.jpg"),
        ("a.tsv", "a.jpg\tA dog.\n", "a.tsv must name its columns in its first line, got 'a.jpg.*Put `file_name<TAB>caption`"),
        ("a.csv", "name,words\na.jpg,x\n", "a.csv must name its columns in its first line, one of them `file_name` or `image`"),
        ("a.csv", "file_name,caption\na.jpg,A dog, brown\n", "a.csv, line 2: wanted 2 values parted by ',', got 3"),
        ("a.csv", 'file_name,caption\na.jpg,"A "dog"\n', "a.csv, line 2: wanted a row whose texts are quoted"),
        ("a.csv", "file_name,caption\na.jpg,\n", "a.csv, line 2: wanted an answer with words, got none"),
        ("a.csv", "file_name,caption,caption\na.jpg,x,y\n", "a.csv must name each column once, got `caption` twice"),
        ("a.csv", "file_name,caption\nhttp://x/a.jpg,x\n", "a.csv, line 2: wanted a picture's file in the folder, got the URL"),
        ("a.csv", b"file_name,caption\na.jpg,caf\xe9\n", "a.csv, line 2: wanted UTF-8 text, got byte 9 of the line"),
        ("a.csv", "file_name,caption\n", "a.csv must hold rows of the task `caption`, got none"),
        ("a.csv", "image_name| comment_number| comment\na.jpg| 4   A dog\n", "line 2: wanted 3 values parted by '|', got 2"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(tmp_path, name, text, message):
    write_pictures(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message):
        read_task(tmp_path / name, task="caption")


# MMBench


@pytest.fixture
def bench(tmp_path):
    """Three questions about two pictures: the third has the index of the first, whose picture it is about."""
    pictures = [base64.b64encode(picture_bytes(level)).decode() for level in (0, 100)]
    rows = [
        {"index": 241, "question": "Which is\nright?", "hint": "Look well.", "A": "a", "B": "b", "C": "c", "D": "nan",
         "answer": "B", "category": "ocr", "image": pictures[0]},
        {"index": 2, "question": 'Say "what"?', "hint": "nan", "A": "x", "B": "y", "C": "", "D": "", "answer": "A",
         "category": "count", "image": pictures[1]},
        {"index": 1000241, "question": "Which?", "hint": "", "A": "b", "B": "a", "C": "c", "D": "d", "answer": "A",
         "category": "ocr", "image": "241"},
    ]  # fmt: skip

    def write(*changes):
        with (tmp_path / "dev.tsv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows([row | change for row, change in zip(rows, [*changes, {}, {}, {}], strict=False)])
        return tmp_path / "dev.tsv"

    return write


def test_mmbench_asks_for_letters_about_pictures_in_its_rows(bench):
    file = bench()
    rows = read_task(file, task="vqa", prompt="option-letter")
    assert [text.rpartition("\n")[0] for text, _ in said(rows)] == [
        "Look well.\nWhich is\nright?\nA. a\nB. b\nC. c",
        'Say "what"?\nA. x\nB. y',
        "Which?\nA. b\nB. a\nC. c\nD. d",
    ]
    assert [rows.references(index) for index in range(3)] == [["B"], ["A"], ["A"]]
    assert (rows.name(0), rows.kind(1)) == ("241", "count")
    rows = pickle.loads(pickle.dumps(rows))
    assert [rows.images(index)[0].getpixel((0, 0))[0] >= 100 for index in range(3)] == [False, True, False]
    assert [row.images for row in stream_task(file.parent, "dev", task="vqa")] == [
        rows.stored_images(at) for at in range(3)
    ]
    assert [row.images for row in stream_task(file, task="vqa")][0] == [picture_bytes_of(file)]
    csv.reader(["x" * 131072])  # Python's limit on fields is as it was
    assert csv.field_size_limit() == 131072


def test_mmbenchs_pictures_stay_with_the_rows_of_a_split(bench):
    file = bench({"category": "dev"}, {"category": "test"})
    text = file.read_text().replace("category", "split", 1)
    file.unlink()
    (file.parent / "both.tsv").write_text(text)
    rows = read_task(file.parent / "both.tsv", "test", task="vqa")
    assert len(rows) == 1 and rows.images(0)[0].getpixel((0, 0))[0] >= 100


def picture_bytes_of(file):
    with file.open(newline="") as stream:
        return base64.b64decode(next(csv.DictReader(stream, delimiter="\t"))["image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, "line 2: wanted the letter of the right choice as `answer`, got none, as in a hidden test"),
        ({"answer": "D"}, "line 2: wanted one of A, B, C as `answer`, got 'D'"),
        ({"image": "7"}, "line 2: wanted a picture in base64 or the `index` of a row that has it, got '7'"),
        ({"question": ""}, "line 2: wanted a question with words, got none"),
    ],
)
def test_bad_rows_of_mmbench_are_named(bench, change, message):
    with pytest.raises(ValueError, match=message):
        read_task(bench(change), task="vqa")


def test_pictures_longer_than_pythons_limit_on_fields_are_read(bench):
    data = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(data, "PNG")
    file = bench({"image": base64.b64encode(data.getvalue()).decode()})
    assert len(data.getvalue()) > 131072
    assert read_task(file, task="vqa").images(0)[0].size == (400, 400)
