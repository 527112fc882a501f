"""What is known of pictures is read from every layout that people have, and what is wrong with it is told."""

import json
from dataclasses import replace

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vlm.data.instructions.context_files import read_contexts
from hf_vlm.data.instructions.contexts import Context, Instance, Region

ROW = {
    "id": "7",
    "image": "7.jpg",
    "captions": ["A dog."],
    "instances": [{"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}],
}
DOG = Context("7", "7.jpg", ("A dog.",), (Instance("dog", (0.1, 0.2, 0.3, 0.4)),))


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_lines(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(path, *settings, **named):
    """The contexts, without their sources."""
    return [replace(context, source="") for context in read_contexts(path, *settings, **named)]


def box(sides, bbox_format=None, **row):
    """The corners that a box is read as."""

    def read_one(folder):
        file = write_lines(folder / "box.jsonl", {"id": 1, **row, "instances": [{"category": "dog", "bbox": sides}]})
        return next(read_contexts(file, bbox_format=bbox_format)).instances[0].box

    return read_one


def fault(folder, **row):
    """The error of a row."""
    file = write_lines(folder / "bad.jsonl", {"id": "7", "captions": ["A dog."], **row})
    errors = []
    with pytest.raises(ValueError, match=r"must hold contexts, got none that can be used"):
        list(read_contexts(file, on_bad_row=errors.append))
    (error,) = errors
    assert str(error).startswith(f"{file}, line 1: wanted ")
    return error


# Rows


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {**{key: ROW[key] for key in ("id", "image", "instances")}, "caption": "  A\n dog. "},
        {**{key: ROW[key] for key in ("id", "captions", "instances")}, "file_name": "7.jpg", "image": None},
        {**{key: ROW[key] for key in ("image", "captions", "instances")}, "image_id": 7},
        {**{key: ROW[key] for key in ("id", "image", "captions")}, "objects": ROW["instances"]},
        {**ROW, "instances": {"bbox": [[0.1, 0.2, 0.3, 0.4]], "category": ["dog"]}},
        {**ROW, "captions": ["A dog.", "", " A  dog.", "A dog."], "regions": None, "width": 640},
        {**ROW, "captions": "A dog."},
    ],
)
def test_row_is_read_in_all_its_forms(tmp_path, row):
    assert read(write_lines(tmp_path / "a.jsonl", row)) == [DOG]
    assert read(write(tmp_path / "a.json", [row])) == [DOG]


def test_row_without_id_is_called_by_its_picture(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"image": "a/b.png", "caption": "A cat."})
    assert read(file) == [Context("a/b.png", "a/b.png", ("A cat.",))]


def test_row_without_picture_is_read(tmp_path):
    assert read(write_lines(tmp_path / "a.jsonl", {"id": 0, "caption": "A cat."})) == [Context("0", None, ("A cat.",))]


def test_sources_name_file_and_line_or_row(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n")
    assert [context.source for context in read_contexts(lines)] == [f"{lines}, line 1", f"{lines}, line 3"]
    rows = write(tmp_path / "a.json", [ROW, ROW])
    assert [context.source for context in read_contexts(rows)] == [f"{rows}, row 0", f"{rows}, row 1"]


def test_folder_is_read_by_its_split_or_its_only_file_of_contexts(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROW)
    write(tmp_path / "settings.json", [{"seed": 3}])
    assert read(tmp_path) == read(tmp_path, "train") == [DOG]
    write_lines(tmp_path / "val.jsonl", {**ROW, "id": "8"})
    assert [context.id for context in read(tmp_path, "val")] == ["8"]
    with pytest.raises(ValueError, match=r"`split` must say which part"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"must hold test\.json, test\.jsonl"):
        read(tmp_path, "test")


@pytest.mark.parametrize("saver", ["parquet", "disk"])
@pytest.mark.parametrize("are_columns", [True, False])
def test_table_of_a_detection_set_is_read_with_the_names_of_its_classes(tmp_path, saver, are_columns):
    label = datasets.ClassLabel(names=["Coverall", "Mask"])
    boxes, labels = [[64, 48, 320, 240], [0, 0, 640, 480]], [1, 0]
    if are_columns:
        objects = {"bbox": boxes, "category": labels}
        kind = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(label)}
    else:
        objects = [{"bbox": box, "category": name} for box, name in zip(boxes, labels, strict=True)]
        kind = datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": label})
    number, text = datasets.Value("int64"), datasets.Value("string")
    table = datasets.Dataset.from_list(
        [{"image_id": 15, "file_name": "15.png", "width": 640, "height": 480, "objects": objects}],
        datasets.Features({"image_id": number, "file_name": text, "width": number, "height": number, "objects": kind}),
    )
    if saver == "parquet":
        table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    else:
        table.save_to_disk(tmp_path)
    things = (Instance("Mask", (0.1, 0.1, 0.6, 0.6)), Instance("Coverall", (0.0, 0.0, 1.0, 1.0)))
    assert read(tmp_path, "train", bbox_format="xywh-pixels") == [Context("15", "15.png", instances=things)]


def test_picture_held_in_a_table_is_refused_unless_it_is_named(tmp_path):
    features = datasets.Features({name: datasets.Value("string") for name in ("id", "caption", "file_name")})
    features["image"] = datasets.Image(decode=False)
    rows = [
        {"id": "1", "caption": "A cat.", "file_name": name, "image": {"bytes": b"png", "path": None}}
        for name in ("a.png", None)
    ]
    datasets.Dataset.from_list(rows, features).to_parquet(tmp_path / "a.parquet")
    errors = []
    assert read(tmp_path / "a.parquet", on_bad_row=errors.append) == [Context("1", "a.png", ("A cat.",))]
    assert "row 1: wanted a picture's name as `image`, got the picture itself. Save" in str(errors[0])


words = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=8), min_size=1, max_size=4
).map(" ".join)
spans = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
corners = st.tuples(spans, spans).map(
    lambda two: (two[0][0] / 1000, two[1][0] / 1000, two[0][1] / 1000, two[1][1] / 1000)
)
contexts = st.builds(
    Context,
    words,
    st.from_regex(r"[a-z0-9 ]{1,8}\.(jpg|png)", fullmatch=True) | st.none(),
    st.lists(words, min_size=1, max_size=3, unique=True).map(tuple),
    st.lists(st.builds(Instance, words, corners, st.booleans()), max_size=3).map(tuple),
    st.lists(st.builds(Region, words, corners), max_size=3).map(tuple),
)


@given(st.lists(contexts, min_size=1, max_size=4), st.sampled_from([".jsonl", ".json"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_contexts_written_are_the_same_when_read(tmp_path_factory, wanted, suffix, ascii_only):
    rows = [context.to_dict() for context in wanted]
    file = tmp_path_factory.mktemp("written") / f"a{suffix}"
    text = json.dumps(rows, ensure_ascii=ascii_only)
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    assert read(file) == wanted
    assert [Context.from_dict(row) for row in rows] == wanted


# Boxes


@pytest.mark.parametrize(
    ("sides", "bbox_format", "wanted"),
    [
        ([0.25, 0.5, 0.75, 1], None, (0.25, 0.5, 0.75, 1.0)),
        ([0.25, 0.5, 0.75, 1], "xyxy", (0.25, 0.5, 0.75, 1.0)),
        ([0.25, 0.5, 0.25, 0.5], "xywh", (0.25, 0.5, 0.5, 1.0)),
        ([20, 20, 100, 50], "xyxy-pixels", (0.1, 0.4, 0.5, 1.0)),
        ([20, 20, 100, 30], "xywh-pixels", (0.1, 0.4, 0.6, 1.0)),
        ([-0.001, 0, 1.0015, 1.002], None, (0.0, 0.0, 1.0, 1.0)),  # rounded elsewhere
        ([-1.5, 0, 201, 52], "xyxy-pixels", (0.0, 0.0, 1.0, 1.0)),  # by a pixel or two
        ([0.12349, 0.5, 0.12351, 0.9], None, (0.123, 0.5, 0.124, 0.9)),
        ([0.9999, 0.5, 1.0, 0.9], None, (0.999, 0.5, 1.0, 0.9)),  # a box has a width
        ([0.0, 0.50001, 0.5, 0.50002], None, (0.0, 0.5, 0.5, 0.501)),
    ],
)
def test_box_becomes_corners_in_three_decimals(tmp_path, sides, bbox_format, wanted):
    assert box(sides, bbox_format, width=200, height=50)(tmp_path) == wanted


@pytest.mark.parametrize(
    ("sides", "kind", "message"),
    [
        ([0.1, 0.2, 0.3], "bad boxes", "wanted four numbers as `bbox`, got [0.1, 0.2, 0.3]"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], "bad boxes", "wanted four numbers"),
        (None, "bad boxes", "wanted four numbers as `bbox`, got None"),
        ({"x": 1}, "bad boxes", "wanted four numbers"),
        ([0.1, 0.2, "0.3", 0.4], "bad boxes", "wanted four numbers"),
        ([0.1, 0.2, True, 0.4], "bad boxes", "wanted four numbers"),
        ([0.1, 0.2, float("nan"), 0.4], "bad boxes", "wanted four numbers"),
        ([0.1, 0.2, float("inf"), 0.4], "bad boxes", "wanted four numbers"),
        ([0.1, 0.2, 10**400, 0.4], "bad boxes", "wanted four numbers"),
        ([0.5, 0.2, 0.3, 0.4], "xywh given as corners", "say `bbox_format` `xywh`"),
        ([0.1, 0.7, 0.3, 0.2], "xywh given as corners", "say `bbox_format` `xywh`"),
        ([0.9, 0.2, 0.3, 0.4], "empty boxes", "whose right and bottom are beyond left and top"),  # would stick out
        ([0.5, 0.2, 0.5, 0.4], "xywh given as corners", "say `bbox_format` `xywh`"),
        ([0.7, 0.2, 0.7, 0.4], "empty boxes", "Correct it"),
        ([0.5, 0.2, -0.1, 0.4], "empty boxes", "Correct it"),
        (
            [0.1, 0.2, 0.3, 1.003],
            "boxes in pixels",
            "`xyxy-pixels` or `xywh-pixels`, and give the row's `width` and `height`",
        ),
        ([10, 20, 300, 400], "boxes in pixels", "wanted a `bbox` of fractions of the picture, got [10, 20, 300, 400]"),
        ([-0.003, 0.2, 0.3, 0.4], "boxes outside the picture", "wanted a `bbox` inside the picture"),
    ],
)
@pytest.mark.parametrize("place", ["instances", "regions", "objects"])
def test_bad_box_is_told(tmp_path, sides, kind, message, place):
    told = {"phrase": "a dog", "bbox": sides} if place == "regions" else {"category": "dog", "bbox": sides}
    error = fault(tmp_path, **{place: [told]})
    assert error.kind == kind
    assert message in str(error)


@pytest.mark.parametrize(
    ("sides", "bbox_format", "row", "kind"),
    [
        ([1, 1, 2, 2], "xyxy-pixels", {}, "missing sizes"),
        ([1, 1, 2, 2], "xyxy-pixels", {"width": 0, "height": 4}, "missing sizes"),
        ([1, 1, 2, 2], "xywh-pixels", {"width": "9", "height": 4}, "missing sizes"),
        ([1, 1, 2, 2], "xywh-pixels", {"width": 10**400, "height": 4}, "missing sizes"),
        ([1, 1, 2, 0], "xywh-pixels", {"width": 9, "height": 9}, "empty boxes"),
        ([60, 1, 43, 2], "xywh-pixels", {"width": 100, "height": 9}, "boxes outside the picture"),
        ([-3, 1, 43, 2], "xywh-pixels", {"width": 100, "height": 9}, "boxes outside the picture"),
        ([1, 8, 43, 4], "xywh-pixels", {"width": 100, "height": 9}, "boxes outside the picture"),
        ([0.8, 0.1, 0.3, 0.2], "xywh", {}, "boxes outside the picture"),
        ([0.8, 0.1, 0.3, 0.2], "xyxy", {}, "empty boxes"),
        ([1, 2, 30, 40], "xyxy", {}, "boxes outside the picture"),
    ],
)
def test_bad_box_of_a_format_is_told(tmp_path, sides, bbox_format, row, kind):
    with pytest.raises(ValueError, match=r"box\.jsonl, line 1: wanted ") as error:
        box(sides, bbox_format, **row)(tmp_path)
    assert error.value.kind == kind


# What else is wrong with rows


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"captions": []}, "missing captions", "wanted captions, instances or regions, got none"),
        ({"captions": ["", "  "], "instances": []}, "missing captions", "got none"),
        ({"captions": 7}, "bad captions", "wanted texts as `captions`, got 7"),
        ({"captions": ["A dog.", 7]}, "bad texts", "wanted a text as `captions`, got 7"),
        ({"captions": ["A dog.", None]}, "bad texts", "got None"),
        ({"captions": ["dog " * 501]}, "bad texts", "wanted at most 2000 characters as `captions`, got 2003"),
        ({"captions": ["A\x00dog."]}, "bad texts", r"without control characters, got 'A\x00dog.'"),
        ({"captions": ["A\ud83ddog."]}, "bad texts", r"without control characters, got 'A\ud83ddog.'"),
        ({"instances": [{"category": " ", "bbox": [0, 0, 1, 1]}]}, "bad texts", "wanted words as `category`, got none"),
        (
            {"instances": [{"category": 3, "bbox": [0, 0, 1, 1]}]},
            "bad texts",
            "wanted a text as `category`, got 3. Give its",
        ),
        ({"regions": [{"bbox": [0, 0, 1, 1]}]}, "bad texts", "wanted a text as `phrase`, got None"),
        ({"instances": "dog"}, "bad boxes", "wanted a list of objects as `instances`, got 'dog'"),
        ({"instances": [[0, 0, 1, 1]]}, "bad boxes", "wanted a list of objects as `instances`"),
        ({"objects": {"bbox": [[0, 0, 1, 1]], "category": []}}, "bad boxes", "got 0 and 1"),
        ({"objects": {"bbox": 3, "category": ["dog"]}}, "bad boxes", "got 1 and 3"),
        ({"id": ""}, "missing ids", "wanted an `id` or an `image`, got neither"),
        ({"id": None}, "missing ids", "got neither"),
        ({"id": [7]}, "bad ids", "wanted a text as `id`, got [7]"),
        ({"id": "7\n8"}, "bad texts", "wanted a `id` without control characters"),
        ({"image": 7}, "unwanted names of pictures", "wanted a picture's name as `image`, got int"),
        ({"image": "https://host/7.jpg"}, "unwanted names of pictures", "Download it and name the file, or allow URLs"),
        ({"image": "/tmp/7.jpg"}, "unwanted names of pictures", "inside the folder"),
        ({"image": "../7.jpg"}, "unwanted names of pictures", "inside the folder"),
        ({"image": "a/../../7.jpg"}, "unwanted names of pictures", "inside the folder"),
        ({"image": r"C:\7.jpg"}, "unwanted names of pictures", "inside the folder"),
        ({"image": "7\x00.jpg"}, "bad texts", "wanted a `image` without control characters"),
    ],
)
def test_bad_row_is_told(tmp_path, row, kind, message):
    error = fault(tmp_path, **row)
    assert error.kind == kind
    assert message in str(error)


def test_bad_rows_are_left_out_or_the_first_is_raised(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{json.dumps(ROW)}\n{{"id": \n[1]\n{json.dumps({**ROW, "captions": 3})}\n{json.dumps(ROW)}\n')
    errors = []
    assert read(file, on_bad_row=errors.append) == [DOG, DOG]
    places = [str(error).split(": ", 1)[0] for error in errors]
    assert places == [f"{file}, line {number}" for number in (2, 3, 4)]
    contexts = read_contexts(file)
    assert next(contexts).id == "7"
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: wanted a JSON object"):
        next(contexts)


def test_urls_are_taken_where_allowed(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {**ROW, "image": "https://host/7.jpg"})
    (context,) = read_contexts(file, allow_urls=True, image_folder=tmp_path)
    assert context.image == "https://host/7.jpg"
    file = write_lines(tmp_path / "a.jsonl", {**ROW, "image": "file:///etc/7.jpg"})
    with pytest.raises(ValueError, match="got the URL file:"):
        next(read_contexts(file, allow_urls=True))


def test_pictures_must_lie_in_their_folder_with_any_suffix(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "7.png").touch()
    file = write_lines(tmp_path / "a.jsonl", ROW, {**ROW, "id": "8", "image": "8.jpg"})
    errors = []
    assert read(file, image_folder=tmp_path / "photos", on_bad_row=errors.append) == [replace(DOG, image="7.png")]
    assert isinstance(errors[0], FileNotFoundError)
    assert str(errors[0]).startswith(f"{file}, line 2: wanted the picture 8.jpg, got no such file")
    with pytest.raises(FileNotFoundError, match="`image_folder` must be a folder"):
        read_contexts(file, image_folder=tmp_path / "nowhere")


def test_wrong_arguments_are_told_at_once(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", ROW)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_contexts(tmp_path / "b.jsonl")
    with pytest.raises(
        ValueError, match="`bbox_format` must be one of xyxy, xywh, xyxy-pixels, xywh-pixels, got 'yolo'"
    ):
        read_contexts(file, bbox_format="yolo")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "captions_val2014.json"])
@pytest.mark.parametrize("number", [5, 5_000_000])
def test_file_that_is_not_utf8_is_told_with_the_byte(tmp_path, name, number):
    start = b"{" if name.startswith("captions") else b"["
    (tmp_path / name).write_bytes((start + b" " * (number - 1) + b'"caf\xe9"')[: number + 6])
    with pytest.raises(ValueError, match=rf"{name} must be UTF-8 text, got byte {number + 4} that is not"):
        list(read_contexts(tmp_path / name))


def test_file_that_ends_within_a_character_is_told_with_the_byte(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xe2\x82')
    with pytest.raises(ValueError, match="got byte 7 that is not"):
        list(read_contexts(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("content", ["", "[]", "\n\n"])
def test_nothing_is_told(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content.replace("[]", ""))
    (tmp_path / "a.json").write_text(content)
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(ValueError, match="must hold"):
            list(read_contexts(tmp_path / name))


# COCO

IMAGES = [
    {"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480},
    {"id": 25, "file_name": "000000000025.jpg", "width": 200, "height": 100},
    {"id": 30, "file_name": "000000000030.jpg", "width": 200, "height": 100},  # of which nothing is known
]
CAPTIONS = {
    "info": {"year": 2014},
    "images": IMAGES,
    "licenses": [],
    "annotations": [
        {"image_id": 25, "id": 2, "caption": "A giraffe."},
        {"image_id": 9, "id": 1, "caption": "A  bowl of\nfood. "},
        {"image_id": 25, "id": 3, "caption": "A giraffe."},
        {"image_id": 25, "id": 4, "caption": ""},
    ],
}
INSTANCES = {
    "info": {"year": 2014, "numbers": [1, 2, [3]]},
    "images": [*IMAGES[::-1]],
    "annotations": [
        {
            "segmentation": [[1.0, 2.0]],
            "iscrowd": 0,
            "image_id": 9,
            "bbox": [64, 48, 128, 96],
            "category_id": 90,
            "id": 5,
        },
        {
            "segmentation": {"counts": [1], "size": [9, 9]},
            "iscrowd": 1,
            "image_id": 25,
            "bbox": [20.5, 10, 60.25, 50],
            "category_id": 1,
            "id": 900100000025,
        },
        {"image_id": 25, "bbox": [150, 50, 51, 50], "category_id": 90, "id": 7},
    ],
    "categories": [{"supercategory": "person", "id": 1, "name": "person"}, {"id": 90, "name": "hair drier"}],
}
BOWL = Instance("hair drier", (0.1, 0.1, 0.3, 0.3))
GIRAFFE = (Instance("person", (0.102, 0.1, 0.404, 0.6), True), Instance("hair drier", (0.75, 0.5, 1.0, 1.0)))
NAMES = ("000000000009.jpg", "000000000025.jpg")
COCO = [
    Context("9", NAMES[0], ("A bowl of food.",), (BOWL,)),
    Context("25", NAMES[1], ("A giraffe.",), GIRAFFE),
]


@pytest.fixture(params=[".", "annotations"])
def coco(tmp_path, request):
    for split in ("train2014", "val2014", "minival2014"):
        write(tmp_path / request.param / f"captions_{split}.json", CAPTIONS)
        write(tmp_path / request.param / f"instances_{split}.json", INSTANCES)
        write(tmp_path / request.param / f"person_keypoints_{split}.json", {"images": [], "annotations": []})
    return tmp_path / request.param


@pytest.mark.parametrize("split", ["val", "val2014"])
def test_coco_folder_is_read_by_split_in_the_order_of_its_pictures(coco, split):
    for path in {coco, coco.parent if coco.name == "annotations" else coco}:
        assert read(path, split) == COCO
        with pytest.raises(ValueError, match=r"must hold one captions_\*\.json of the split, got .*Name the split"):
            read(path)


@pytest.mark.parametrize("kind", ["captions", "instances"])
def test_coco_file_is_read_with_the_other_beside_it(coco, kind):
    file = coco / f"{kind}_val2014.json"
    assert read(file) == COCO
    assert next(read_contexts(file)).source == f"{coco / 'captions_val2014.json'}, image 9"


def test_coco_file_alone_is_read(tmp_path):
    captions = write(tmp_path / "captions_val2014.json", CAPTIONS)
    assert read(captions) == read(tmp_path, "val") == [replace(context, instances=()) for context in COCO]
    boxes = write(tmp_path / "b" / "_annotations.coco.json", INSTANCES)  # it is what it holds that counts
    wanted = [replace(context, captions=()) for context in COCO[::-1]]
    assert read(boxes) == read(tmp_path / "b") == wanted


def test_list_of_rows_called_captions_is_one_of_rows(tmp_path):
    write(tmp_path / "captions_val.json", [ROW])
    assert read(tmp_path, "captions_val") == read(tmp_path) == [DOG]


def test_coco_pictures_are_found_without_their_folder(tmp_path):
    (tmp_path / "25.png").touch()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "9.jpg").touch()
    images = [{**image, "file_name": f"val/{image['id']}.jpg"} for image in IMAGES]
    file = write(tmp_path / "captions_val.json", {**CAPTIONS, "images": images})
    assert [context.image for context in read(file, image_folder=tmp_path)] == ["val/9.jpg", "25.png"]
    (tmp_path / "25.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 25: wanted the picture val/25\.jpg"):
        read(file, image_folder=tmp_path)


def test_bad_annotation_of_coco_leaves_out_itself(tmp_path):
    good = INSTANCES["annotations"][0]
    bad = [
        {**good, "id": 900100000011, "bbox": [600, 0, 50, 10]},
        {**good, "id": 12, "bbox": [0, 0, 10]},
        {**good, "id": 13, "category_id": 2},
        {**good, "id": 14, "image_id": 404},
        {**good, "id": 15, "bbox": [1, 1, 0, 5]},
        {"id": 16, "image_id": 9},
        {"id": 17, "caption": "Whose?"},
        "annotation",
    ]
    file = write(tmp_path / "instances_val.json", {**INSTANCES, "annotations": [*bad[:5], good, *bad[5:]]})
    errors = []
    assert read(file, on_bad_row=errors.append) == [Context("9", NAMES[0], (), (BOWL,))]
    told = {str(error).removeprefix(f"{file}, ").split(":")[0]: error.kind for error in errors}
    assert told == {
        "`annotations[1]`": "bad boxes",
        "`annotations[6]`": "bad rows",
        "`annotations[7]`": "missing ids",
        "`annotations[8]`": "missing ids",
        "annotation 900100000011": "boxes outside the picture",
        "annotation 13": "missing categories",
        "annotation 15": "empty boxes",
        "image 404": "missing pictures",
    }
    with pytest.raises(ValueError, match="wanted four numbers as `bbox`"):
        list(read_contexts(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": []}', "must hold COCO's `images` and `annotations`, or a list of rows, got `images`"),
        ("{}", "got nothing"),
        (json.dumps(CAPTIONS)[:-40], "in `annotations`: wanted JSON, got "),
        (json.dumps(CAPTIONS)[:-1], "wanted JSON, got the end of the file"),
        (json.dumps(CAPTIONS).replace("}, {", "} {", 1), "in `images`: wanted JSON, got '{"),
        ('{"images": [], "annotations": [nonsense]}', "in `annotations`: wanted JSON, got 'nonsense]}"),
        ('{"images": [], "annotations": []}', "must hold contexts, got none"),
        ("{1: 2}", "wanted JSON, got the key 1"),
        (
            f"{json.dumps(ROW)}\n{json.dumps(ROW)}",
            "got more behind the object. Name a file with one object a line `.jsonl`",
        ),
    ],
)
def test_damaged_coco_file_is_told(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        list(read_contexts(file))
    assert str(error.value).startswith(str(file)) and message in str(error.value)


@pytest.mark.parametrize("characters", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("indent", [None, 1])
def test_coco_file_is_the_same_however_it_is_parted(tmp_path, monkeypatch, characters, indent):
    monkeypatch.setattr("hf_vlm.data.instructions.published_contexts._CHARACTERS", characters)
    for name, content in (("captions", CAPTIONS), ("instances", {"year": 2014, **INSTANCES, "version": 12345})):
        (tmp_path / f"{name}_val.json").write_text(json.dumps(content, indent=indent))
    assert read(tmp_path, "val") == COCO


# Visual Genome

GENOME_IMAGES = [
    {"image_id": 1, "width": 800, "height": 600, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"},
    {"image_id": 2, "width": 200, "height": 100, "url": None},
]
GENOME_REGIONS = [
    {
        "regions": [
            {
                "region_id": 1382,
                "width": 80,
                "height": 120,
                "image_id": 1,
                "phrase": "the clock is  green",
                "x": 400,
                "y": 60,
            },
            {"region_id": 1383, "width": 403, "height": 602, "image_id": 1, "phrase": "a street", "x": -1, "y": -1},
        ],
        "id": 1,
    },
    {"regions": [], "id": 2},
]
GENOME_OBJECTS = [
    {"image_id": 1, "objects": [{"object_id": 58, "names": ["tree", "oak"], "x": 0, "y": 0, "w": 200, "h": 300}]},
    {"image_id": 2, "objects": [{"h": 10, "object_id": 60, "names": ["cup"], "w": 20, "x": 20, "y": 20}]},
]
CLOCK = Region("the clock is green", (0.5, 0.1, 0.6, 0.3))
STREET = Region("a street", (0.0, 0.0, 0.502, 1.0))
TREE = Instance("tree", (0.0, 0.0, 0.25, 0.5))
CUP = Instance("cup", (0.1, 0.2, 0.2, 0.3))
GENOME = [
    Context("1", "VG_100K_2/1.jpg", (), (TREE,), (CLOCK, STREET)),
    Context("2", "2.jpg", (), (CUP,), ()),
]


def write_genome(folder, regions=GENOME_REGIONS, objects=GENOME_OBJECTS, images=GENOME_IMAGES):
    for name, content in (("region_descriptions", regions), ("objects", objects), ("image_data", images)):
        if content is not None:
            write(folder / f"{name}.json", content)
    return folder


@pytest.mark.parametrize("is_turned", [False, True])
def test_visual_genome_is_read_whatever_the_order_of_its_objects(tmp_path, is_turned):
    write_genome(tmp_path, objects=GENOME_OBJECTS[::-1] if is_turned else GENOME_OBJECTS)
    assert read(tmp_path) == read(tmp_path / "region_descriptions.json") == GENOME


def test_visual_genome_is_read_without_objects(tmp_path):
    write_genome(tmp_path, objects=None)
    assert read(tmp_path, on_bad_row=lambda error: None) == [replace(GENOME[0], instances=())]
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_data\.json is wanted for the pictures' sizes"):
        list(read_contexts(tmp_path))


def test_visual_genome_pictures_may_lie_in_one_folder(tmp_path):
    write_genome(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    assert [context.image for context in read(tmp_path, image_folder=tmp_path)] == ["1.jpg", "2.jpg"]
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "1.jpg").touch()
    assert [context.image for context in read(tmp_path, image_folder=tmp_path)] == ["VG_100K_2/1.jpg", "2.jpg"]


def test_bad_region_or_thing_of_visual_genome_leaves_out_itself(tmp_path):
    clock = GENOME_REGIONS[0]["regions"][0]
    bad = [
        {**clock, "region_id": 1, "phrase": ""},
        {**clock, "region_id": 2, "x": -3},
        {**clock, "region_id": 3, "y": None},
    ]
    tree = GENOME_OBJECTS[0]["objects"][0]
    things = [{**tree, "object_id": 4, "names": []}, tree, {**tree, "object_id": 5, "w": 803}]
    write_genome(
        tmp_path,
        [{"id": 1, "regions": [*bad, clock]}, {"id": 3, "regions": [clock]}, {"id": 2, "regions": 7}, {"id": 1}, 7],
        [7, {"image_id": 1}, {"image_id": 1, "objects": things}],
        [*GENOME_IMAGES, {"width": 9}, 7],
    )
    errors = []
    wanted = [replace(GENOME[0], regions=(CLOCK,))]
    assert read(tmp_path, on_bad_row=errors.append) == wanted
    regions, objects, images = (
        str(tmp_path / f"{name}.json") for name in ("region_descriptions", "objects", "image_data")
    )
    assert {str(error).split(": ")[0]: error.kind for error in errors} == {
        f"{images}, row 2": "missing ids",
        f"{images}, row 3": "missing ids",
        f"{objects}, row 0": "bad rows",
        f"{objects}, row 1": "bad rows",
        f"{objects}, row 2, object 4": "bad texts",
        f"{objects}, row 2, object 5": "boxes outside the picture",
        f"{regions}, row 0, region 1": "bad texts",
        f"{regions}, row 0, region 2": "boxes outside the picture",
        f"{regions}, row 0, region 3": "bad boxes",
        f"{regions}, row 1": "missing pictures",
        f"{regions}, row 2": "bad boxes",
        f"{regions}, row 3": "bad boxes",
        f"{regions}, row 4": "missing pictures",
    }


def test_rows_with_regions_and_sizes_are_not_taken_for_visual_genome(tmp_path):
    row = {"id": "1", "width": 200, "height": 100, "regions": [{"phrase": "a cup", "bbox": [20, 20, 40, 30]}]}
    file = write(tmp_path / "a.json", [row])
    (context,) = read(file, bbox_format="xyxy-pixels")
    assert context.regions == (Region("a cup", (0.1, 0.2, 0.2, 0.3)),)


# Anything at all

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(content, here=()):
    """The way to every value in a JSON text."""
    yield here
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*here, key))


def changed(content, way, value):
    if not way:
        return value
    content = content.copy()
    content[way[0]] = changed(content[way[0]], way[1:], value)
    return content


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_any_value_anywhere_is_read_or_told(tmp_path_factory, data):
    contents = {
        "rows.json": [ROW, {**ROW, "objects": {"bbox": [[0, 0, 1, 1]], "category": ["cat"]}, "instances": None}],
        "captions_val.json": CAPTIONS,
        "instances_val.json": INSTANCES,
        "region_descriptions.json": GENOME_REGIONS,
        "objects.json": GENOME_OBJECTS,
        "image_data.json": GENOME_IMAGES,
    }
    folder = tmp_path_factory.mktemp("any")
    hit = data.draw(st.sampled_from(sorted(contents)))
    way = data.draw(st.sampled_from(list(places(contents[hit]))))
    contents[hit] = changed(contents[hit], way, data.draw(anything))
    for name, content in contents.items():
        write(folder / name, content)
    opened = {"rows.json": "rows.json", "captions_val.json": hit, "instances_val.json": hit}.get(
        hit, "region_descriptions.json"
    )
    try:
        for context in read_contexts(folder / opened, on_bad_row=lambda error: str(error)):
            boxes = [one.box for one in (*context.instances, *context.regions)]
            assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
            assert Context.from_dict(json.loads(json.dumps(context.to_dict()))) == replace(context, source="")
    except ValueError as error:
        assert str(folder) in str(error)
