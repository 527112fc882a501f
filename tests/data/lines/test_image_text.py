import json

import datasets
import pytest
from PIL import Image

from hf_vlm.data.lines.audit import audit_lines
from hf_vlm.data.lines.image_text import find_splits, read_lines
from tests.data.line_files import grey_picture, picture_bytes


def write_pictures(folder, names, **size):
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names, start=1):
        grey_picture(level=level, **size).save(folder / name)


def write_parquet(path, rows):
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "kind": datasets.Value("string")}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def row(text, kind="a", level=200):
    return {"image": {"bytes": picture_bytes(grey_picture(level=level)), "path": None}, "text": text, "kind": kind}


def test_imagefolder_of_a_split_is_read_with_clean_text(tmp_path):
    write_pictures(tmp_path / "train", ["a.png", "b.png"])
    lines = [{"file_name": "b.png", "text": " cafe\u0301\t au  lait "}, {"file_name": "a.png", "text": "x"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    rows = read_lines(tmp_path, "train")
    assert len(rows) == 2
    assert rows[0]["text"] == "café au lait" and rows[0]["image"].getpixel((0, 0)) == 2
    assert rows.texts == ["café au lait", "x"]
    assert rows[1]["source"].endswith("metadata.jsonl, line 2")


def test_csv_with_quoted_commas_is_read(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"1,50, please"\n')
    assert read_lines(tmp_path).texts == ["1,50, please"]


def test_csv_rows_end_at_line_ends_only(tmp_path):
    """Form feeds and Unicode's line separators are characters of a text as any other."""
    write_pictures(tmp_path, ["a.png", "b.png"])
    content = 'file_name,text\r\na.png,one\x0ctwo\u2028three\r\nb.png,"four\nfive"\r\n'
    (tmp_path / "metadata.csv").write_bytes(content.encode())
    assert read_lines(tmp_path).texts == ["one two three", "four five"]


SPREADSHEETS = {
    "byte order mark and CRLF": '\ufefffile_name,text\r\na.png,one\r\nb.png,"two, ""2"""\r\n',
    "semicolons": 'file_name;text\na.png;one\nb.png;"two, ""2"""\n',
    "tabs": 'file_name\ttext\na.png\tone\nb.png\t"two, ""2"""\n',
    "other order of columns": 'score,text,"file_name",page\n0.5,one,a.png,p\n0.4,"two, ""2""",b.png,p\n',
    "empty columns": 'file_name,text,,\na.png,one,,\nb.png,"two, ""2""",,\n',
    "more fields than names": 'file_name,text\na.png,one,\nb.png,"two, ""2""",, \n',
    "empty rows": 'file_name,text,score\n,,\na.png,one,1\n\n , ,\nb.png,"two, ""2""",1\n,,\n',
    "line ends in a text": 'file_name,text\na.png,"one"\nb.png,"two,\r\n""2"""',
    "spaces in the head": 'file_name , text\na.png,one\nb.png,"two, ""2"""\n',
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_csv_is_read_as_spreadsheets_save_it(tmp_path, kind):
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "todo.csv").write_bytes(SPREADSHEETS[kind].encode())
    for path in (tmp_path, tmp_path / "todo.csv"):
        rows = read_lines(path)
        assert rows.texts == ["one", 'two, "2"']
        assert [rows[index]["image"].getpixel((0, 0)) for index in range(2)] == [1, 2]


def test_rows_of_csv_can_be_chosen_where_some_have_more_fields_than_names(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text,page\na.png,one,1,\nb.png,two,2,\n")
    assert read_lines(tmp_path, where={"page": "2"}).texts == ["two"]
    with pytest.raises(ValueError, match="wanted a column `hand` to choose by, got file_name, text, page"):
        read_lines(tmp_path, where={"hand": "a"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,text\na.png,caf\xe9\n", "must be UTF-8 text, got byte 24 .* Save it as CSV UTF-8"),
        (b'file_name,text\na.png,"one\nb.png,two\n', "line 2: wanted a row whose texts are quoted"),
        (b'file_name,text\na.png,one\nb.png,"two" or "2"\n', "line 3: wanted a row whose texts are quoted"),
        (b'file_name,text\na.png,"' + b"x" * 140_000, "line 2: wanted a row whose texts are quoted"),
        (b"file_name,text\na.png\n", "line 2: wanted a `text`, got None"),
        (b"picture,text\na.png,one\n", "line 2: wanted a `file_name` and a `text`"),
        (
            b"file_name,text\na.png,Dear Sir, the letter\n",
            "line 2: wanted at most 2 values, got 3. Quote texts with ','",
        ),
        (
            b"file_name;text;\na.png;Dear Sir; the letter\n",
            "line 2: wanted at most 2 values, got 3. Quote texts with ';'",
        ),
        (b"file_name,text,page,text\na.png,one,1,two\n", "must name each column once, got `text` twice"),
        (b"file_name,text\n", "must hold lines, got none"),
        (b"", "must hold lines, got none"),
    ],
    ids=[
        "Windows-1252",
        "open quote",
        "quotes not doubled",
        "endless quote",
        "no text",
        "no file_name",
        "unquoted comma",
        "unquoted semicolon",
        "column named twice",
        "head",
        "empty",
    ],
)
def test_csv_that_can_not_be_meant_is_refused(tmp_path, content, message):
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "todo.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"todo\.csv.* ?{message}"):
        read_lines(tmp_path / "todo.csv")


def test_bad_row_of_csv_costs_no_other(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "todo.csv").write_text('file_name,text\na.png,one\nb.png,"two" 2\nc.png,three\na.png,four, five\n')
    faults = []
    assert read_lines(tmp_path, on_bad_row=faults.append).texts == ["one", "three"]
    assert [str(fault).partition(": ")[0].rpartition(", ")[2] for fault in faults] == ["line 3", "line 5"]


def test_several_csv_files_in_a_folder_are_not_chosen_from(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file_name,text\na.png,one\n")
    with pytest.raises(ValueError, match=r"must hold gt_\*\.txt, .*got a\.csv, a\.png, b\.csv"):
        read_lines(tmp_path)


@pytest.mark.parametrize("pictures", ["image", "."])
def test_tab_separated_files_split_at_the_first_tab_only(tmp_path, pictures):
    write_pictures(tmp_path / pictures, ["a.png", "b.png"])
    (tmp_path / "gt_test.txt").write_text("a.png\tone\ttwo\r\nb.png\tthree\n")
    (tmp_path / "gt_train.txt").write_text("a.png\tother\n")
    assert read_lines(tmp_path, "test").texts == ["one two", "three"]
    assert read_lines(tmp_path, "test")[1]["image"].getpixel((0, 0)) == 2


@pytest.mark.parametrize("place", ["train.parquet", "data/train-00000-of-00001.parquet"])
def test_parquet_rows_are_chosen_by_column(tmp_path, place):
    write_parquet(tmp_path / place, [row("one", "a", 1), row("two", "b", 2), row("three", "c", 3)])
    rows = read_lines(tmp_path, "train", where={"kind": ["b", "c"]})
    assert rows.texts == ["two", "three"]
    assert [rows[index]["image"].getpixel((0, 0)) for index in range(2)] == [2, 3]
    assert rows[0]["source"].endswith("row 1")
    assert read_lines(tmp_path / place, where={"kind": "a"}).texts == ["one"]
    assert rows.select([1])[0]["text"] == "three"


def test_aspect_is_width_by_height(tmp_path):
    write_pictures(tmp_path, ["a.png"], width=60, height=20)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    assert read_lines(tmp_path).aspect(0) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a.png", "text": "x"}\nnonsense', "line 2: wanted a JSON object"),
        ('\n["a.png", "x"]', "line 2: wanted a JSON object, got a list"),
        ('{"file_name": "a.png"}', "line 1: wanted a `text`, got None"),
        ('{"file_name": "a.png", "text": " "}', "line 1: wanted a `text`, got an empty one"),
        ('{"image": "a.png", "text": "x"}', "line 1: wanted a `file_name`"),
        ('{"file_name": 5, "text": "x"}', "line 1: wanted a `file_name`"),
        (r'{"file_name": "a.png", "text": "x\ud83d"}', "line 1: wanted a `text` of whole characters, got half of one"),
        ("", "must hold lines, got none"),
    ],
)
def test_bad_rows_name_the_file_and_line(tmp_path, content, message):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl.*{message}"):
        read_lines(tmp_path)


def test_row_without_its_picture_is_named(tmp_path):
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\nb.png,y\n")
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv, line 3: wanted the picture b\.png"):
        read_lines(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, r"\ud83d", r"a\u0000.png"], ids=["long", "surrogate", "null"])
def test_row_whose_file_name_no_disk_takes_is_a_bad_row(tmp_path, name):
    write_pictures(tmp_path, ["a.png"])
    rows = [f'{{"file_name": "{name}", "text": "x"}}', '{"file_name": "a.png", "text": "y"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    faults = []
    assert read_lines(tmp_path, on_bad_row=faults.append).texts == ["y"]
    assert "metadata.jsonl, line 1: wanted the picture" in str(faults[0])
    assert len(str(faults[0])) < 400 and str(faults[0]).encode()


@pytest.mark.parametrize("name", ["metadata.CSV", "metadata.JSONL", "gt_train.TXT", "train.PARQUET"])
def test_suffixes_in_capitals_count_as_small_ones(tmp_path, name):
    write_pictures(tmp_path, ["a.png"])
    content = {"CSV": "file_name,text,split\na.png,one,train\n", "TXT": "a.png\tone\n"}
    if name.endswith("PARQUET"):
        write_parquet(tmp_path / name, [row("one")])
    else:
        suffix = name.rpartition(".")[2]
        (tmp_path / name).write_text(content.get(suffix, '{"file_name": "a.png", "text": "one", "split": "train"}'))
    assert read_lines(tmp_path).texts == ["one"]
    assert read_lines(tmp_path, "train").texts == ["one"]
    assert read_lines(tmp_path / name).texts == ["one"]
    assert find_splits(tmp_path) == ["train"]


def test_line_without_tab_is_named(tmp_path):
    (tmp_path / "gt_train.txt").write_text("a.png one\n")
    with pytest.raises(ValueError, match=r"gt_train\.txt, line 1: wanted `file<TAB>text`"):
        read_lines(tmp_path, "train")


def test_other_encoding_is_refused(tmp_path):
    (tmp_path / "gt_train.txt").write_bytes("a.png\tcafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match="must be UTF-8 text, got byte 9"):
        read_lines(tmp_path, "train")


def test_damaged_picture_is_named_with_its_row_when_it_is_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2, .*a\.png: wanted a picture"):
        read_lines(tmp_path)[0]
    bad = {"image": {"bytes": b"not a picture", "path": None}, "text": "x", "kind": "a"}
    write_parquet(tmp_path / "other" / "train.parquet", [row("one"), bad])
    rows = read_lines(tmp_path / "other", "train")
    with pytest.raises(ValueError, match=r"train\.parquet, row 1: wanted a picture"):
        rows[1]


@pytest.mark.parametrize(
    ("patterns", "texts"),
    [
        ("book-*", ["one", "two"]),
        ("!book-1", ["two", "three", "four"]),
        (["!book-*", "!will[0-9]"], ["four"]),
        (["book-*", "!*-2"], ["one"]),
        (["book-1", "will?"], ["one", "three"]),
        ("will[x]", ["four"]),  # as it stands, before it is a pattern
        ("BOOK-1", None),
    ],
)
@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_documents_are_chosen_and_left_out_by_patterns(tmp_path, layout, patterns, texts):
    rows = [("one", "book-1"), ("two", "book-2"), ("three", "will1"), ("four", "will[x]")]
    if layout == "parquet":
        write_parquet(tmp_path / "train.parquet", [row(text, kind) for text, kind in rows])
    else:
        write_pictures(tmp_path, ["a.png"])
        of_rows = [{"file_name": "a.png", "text": text, "kind": kind} for text, kind in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, of_rows)))
    if texts is None:
        with pytest.raises(ValueError, match="got none where"):
            read_lines(tmp_path, where={"kind": patterns})
    else:
        assert read_lines(tmp_path, where={"kind": patterns}).texts == texts


def test_parquet_without_rows_says_so(tmp_path):
    datasets.Dataset.from_dict({"image": [], "text": []}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet must hold lines, got no rows"):
        read_lines(tmp_path)


def test_column_of_something_else_is_named_without_its_bytes(tmp_path):
    data = list(picture_bytes(grey_picture()))
    columns = {"list": [data], "string": ["/" + "iVBORw0K" * 1000]}
    for kind, images in columns.items():
        datasets.Dataset.from_dict({"image": images, "text": ["x"]}).to_parquet(tmp_path / f"{kind}.parquet")
        with pytest.raises((ValueError, OSError), match=rf"{kind}\.parquet, row 0, .*: wanted a picture") as told:
            read_lines(tmp_path / f"{kind}.parquet")[0]
        assert len(str(told.value)) < len(str(tmp_path)) + 220


def test_parquet_without_the_columns_is_refused(tmp_path):
    datasets.Dataset.from_dict({"picture": ["a"], "text": ["x"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="must have a column `image`, got picture, text"):
        read_lines(tmp_path)


def test_missing_where_column_and_no_match_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [row("one")])
    with pytest.raises(ValueError, match="must have a column `writer`"):
        read_lines(tmp_path, where={"writer": "x"})
    with pytest.raises(ValueError, match="got none where"):
        read_lines(tmp_path, where={"kind": "z"})


def test_folder_of_several_splits_wants_one_named(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}.parquet", [row(split)])
    with pytest.raises(ValueError, match="`split` must say which part"):
        read_lines(tmp_path)
    assert read_lines(tmp_path, "validation").texts == ["validation"]


def test_missing_folder_and_folder_without_lines_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_lines(tmp_path / "gone")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"must hold gt_train\.txt.*got notes\.md"):
        read_lines(tmp_path, "train")


def test_metadata_beside_all_pictures_serves_each_split_its_own_rows(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        Image.new("L", (40, 10)).save(tmp_path / split / "0.png")
    rows = [{"file_name": f"{split}/0.png", "text": text} for split, text in (("train", "one"), ("validation", "two"))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(read_lines(tmp_path, split="train").texts) == ["one"]
    assert list(read_lines(tmp_path, split="validation").texts) == ["two"]
    assert list(read_lines(tmp_path).texts) == ["one", "two"]


def test_metadata_that_names_no_split_is_not_taken_for_all_of_them(tmp_path):
    Image.new("L", (40, 10)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,one\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must say which rows are of the split `validation`"):
        read_lines(tmp_path, split="validation")


def test_folder_saved_by_datasets_is_read(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "page": datasets.Value("int64")}
    )
    columns = {"image": [Image.new("L", (40, 10)), Image.new("L", (60, 10))], "text": ["one", "two"], "page": [1, 2]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    lines = read_lines(tmp_path / "saved", split="train", where={"page": 2})
    assert list(lines.texts) == ["two"]
    assert lines[0]["image"].size == (60, 10)
    assert lines.aspect(0) == 6


def test_saved_data_of_no_split_serve_training_only(tmp_path):
    """Else a model would be validated and tested on what it was trained on."""
    columns = {"image": [Image.linear_gradient("L")], "text": ["one"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    assert read_lines(tmp_path / "saved").texts == read_lines(tmp_path / "saved", "train").texts == ["one"]
    with pytest.raises(
        ValueError, match="`split` must be train or None, as .*saved holds one data set .*got validation"
    ):
        read_lines(tmp_path / "saved", "validation")
    assert find_splits(tmp_path / "saved") == ["train"]
    assert audit_lines(tmp_path / "saved").num_lines == {"train": 1}


def test_saved_split_of_another_name_and_damaged_folder_are_refused(tmp_path):
    columns = {"image": [Image.new("L", (40, 10))], "text": ["one"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features, split="train").save_to_disk(str(tmp_path / "saved"))
    assert read_lines(tmp_path / "saved", split="train").texts == ["one"]
    with pytest.raises(ValueError, match="`split` must be train, all that .*saved holds, got test"):
        read_lines(tmp_path / "saved", split="test")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="saved must hold what `save_to_disk` writes"):
        read_lines(tmp_path / "saved")


def test_splits_of_a_metadata_file_are_known_whatever_their_case(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text,split\na.png,one,Train\nb.png,two, TEST\n")
    assert find_splits(tmp_path) == ["train", "test"]
    assert read_lines(tmp_path, "test").texts == ["two"]


IAM_LINES = """\
#--- lines.txt ---
# a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to
a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to|stop
a01-000u-01 err 156 19 395 932 1850 105 nominating|any more
b02-010-00 ok 154 19 408 746 1661 89 "|Quite|"
"""


def write_iam(folder, table):
    for form, number in (("a01-000u", 0), ("a01-000u", 1), ("b02-010", 0)):
        write_pictures(folder / "lines" / form[:3] / form, [f"{form}-{number:02}.png"])
    table.parent.mkdir(exist_ok=True)
    table.write_text(IAM_LINES)


@pytest.mark.parametrize("place", [".", "ascii"])
def test_iam_is_read_by_the_lists_of_its_splits(tmp_path, place):
    write_iam(tmp_path, tmp_path / place / "lines.txt")
    assert list(read_lines(tmp_path).texts) == ["A MOVE to stop", "nominating any more", '" Quite "']
    (tmp_path / "train.uttlist").write_text("a01-000u\n")  # forms
    (tmp_path / "test.lst").write_text("b02-010-00\n")  # or lines
    assert list(read_lines(tmp_path, split="train").texts) == ["A MOVE to stop", "nominating any more"]
    assert list(read_lines(tmp_path, split="test").texts) == ['" Quite "']
    assert read_lines(tmp_path, split="test")[0]["source"].endswith("lines.txt, line 5")
    with pytest.raises(ValueError, match="must say which forms are of the split `validation`"):
        read_lines(tmp_path, split="validation")
    assert find_splits(tmp_path) == ["train", "test"]


def test_short_row_of_iam_is_named(tmp_path):
    write_iam(tmp_path, tmp_path / "lines.txt")
    (tmp_path / "lines.txt").write_text(IAM_LINES + "a01-000u-02 ok 154\n")
    with pytest.raises(ValueError, match="lines.txt, line 6: wanted nine fields"):
        read_lines(tmp_path)


def test_mjsynth_is_read_with_the_word_in_the_file_name(tmp_path):
    write_pictures(tmp_path / "2425" / "1", ["115_Lube_45484.jpg", "114_LUBE's_45485.jpg"])
    write_pictures(tmp_path / "2069" / "4", ["192_whittier_86389.jpg"])
    (tmp_path / "2069" / "4" / "192_whittier_86389.jpg").write_bytes(b"")  # the distribution has some such
    (tmp_path / "lexicon.txt").write_text("a\nab\n")
    train = "./2425/1/115_Lube_45484.jpg 45484\n./2425/1/114_LUBE's_45485.jpg 45485\n"
    (tmp_path / "annotation.txt").write_text(train)
    (tmp_path / "annotation_train.txt").write_text(train)
    (tmp_path / "annotation_val.txt").write_text("./2069/4/192_whittier_86389.jpg 86389\n")
    rows = read_lines(tmp_path, "train")
    assert rows.texts == ["Lube", "LUBE's"]
    assert abs(rows[1]["image"].getpixel((0, 0)) - 2) <= 1  # JPEG
    assert rows.sources[1].endswith("annotation_train.txt, line 2")
    assert find_splits(tmp_path) == ["train", "val"]
    audit = audit_lines(tmp_path)
    assert audit.num_lines == {"train": 2, "val": 1}
    (told,) = audit.faults["unreadable pictures"]
    assert "annotation_val.txt, line 1" in told
    assert read_lines(tmp_path / "annotation.txt").texts == ["Lube", "LUBE's"]


@pytest.mark.parametrize("row", ["2425/1/115_Lube_45484.jpg", "2425/1/Lube.jpg 45484", "2425/1/115_Lube_45484.jpg 7"])
def test_row_unlike_mjsynth_is_named(tmp_path, row):
    (tmp_path / "annotation_train.txt").write_text(row + "\n")
    with pytest.raises(ValueError, match="annotation_train.txt, line 1: wanted `folder/number_word_number.jpg number`"):
        read_lines(tmp_path, "train")
