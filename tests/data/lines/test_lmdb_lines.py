"""Databases as the scene text benchmarks are passed around."""

import contextlib
import io
import multiprocessing
import pickle

import lmdb
import pytest
from PIL import Image

from hf_vlm.data.lines import lmdb_lines
from hf_vlm.data.lines.audit import audit_lines
from hf_vlm.data.lines.image_text import find_splits, read_lines


def picture_bytes(width):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, 20)).save(stream, "PNG")
    return stream.getvalue()


def write_lmdb(folder, labels, *, count=None, without=()):
    """Sample i is a picture of width 10 i."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for number, label in enumerate(labels, start=1):
            transaction.put(b"label-%09d" % number, label.encode("latin-1" if "\xff" in label else "utf-8"))
            transaction.put(b"image-%09d" % number, picture_bytes(10 * number))
        for key in without:
            transaction.delete(key)
        transaction.put(b"num-samples", str(len(labels) if count is None else count).encode())
    return folder


@pytest.fixture
def database(tmp_path):
    write_lmdb(tmp_path / "train", ["Hello", "caf\u00e9  au lait", "x"])
    write_lmdb(tmp_path / "test", ["y"])
    return tmp_path


def test_samples_of_a_split_are_read_in_order(database):
    lines = read_lines(database, split="train")
    assert list(lines.texts) == ["Hello", "caf\u00e9 au lait", "x"]
    assert [line["image"].size for line in lines] == [(10, 20), (20, 20), (30, 20)]
    assert lines.aspect(2) == 1.5
    assert lines[1]["source"].endswith("train, sample 2")
    assert find_splits(database) == ["train", "test"]
    assert list(read_lines(database / "test").texts) == ["y"]
    assert lines.select([2, 0])[0]["image"].size == (30, 20)


def widths(lines):
    return [line["image"].width for line in lines]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it_too(database, method):
    lines = read_lines(database, split="train")
    assert widths(lines) == [10, 20, 30]  # opened here first
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(widths, [lines, lines]) == [[10, 20, 30]] * 2
    assert widths(pickle.loads(pickle.dumps(lines))) == [10, 20, 30]


def test_samples_that_lack_something_are_named(tmp_path):
    folder = write_lmdb(
        tmp_path / "all", ["a", "b", "\xff", "d"], count=5, without=[b"label-000000002", b"image-000000004"]
    )
    with pytest.raises(ValueError, match="all, sample 2: wanted a `label-`"):
        read_lines(folder)
    audit = audit_lines(folder)
    assert [message.rpartition(", sample ")[2][:26] for message in audit.faults["bad rows"]] == [
        "2: wanted a `label-` of th",
        "3: wanted a UTF-8 `label-`",
        "5: wanted a `label-` of th",
    ]
    assert len(audit.faults["unreadable pictures"]) == 1
    assert "sample 4: wanted an `image-`" in audit.faults["unreadable pictures"][0]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda content: content[: len(content) // 2], "must have"),
        (lambda content: b"no database" * 1000, "must be an LMDB database"),
        (lambda content: b"", "must be an LMDB database"),
    ],
    ids=["cut short", "other data", "empty"],
)
def test_damaged_database_is_refused_by_name(database, harm, message):
    file = database / "train" / "data.mdb"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(ValueError, match=f"data.mdb.* {message}"):
        read_lines(database, split="train")


def test_damaged_page_inside_is_named_with_its_key(tmp_path):
    folder = write_lmdb(tmp_path / "all", [f"label {number}" for number in range(400)])
    file = folder / "data.mdb"
    pages = file.read_bytes()
    harmed = bytearray(pages)
    for start in range(2 * 4096, len(pages), 4096):
        if pages[start + 10] & 2:  # a leaf, by its flags
            harmed[start + 10] = 0
    file.write_bytes(bytes(harmed))
    with pytest.raises(ValueError, match=r"all/data\.mdb: wanted `num-samples`, got damaged pages"):
        read_lines(folder)


@pytest.mark.parametrize("what", ["label", "image"])
def test_database_that_fails_at_a_key_names_it(tmp_path, monkeypatch, what):
    folder = write_lmdb(tmp_path / "all", ["a", "b"])

    class Failing:
        def begin(self):
            return contextlib.nullcontext(self)

        def get(self, key):
            if key == b"%s-000000002" % what.encode():
                raise lmdb.CorruptedError("mdb_get")
            with environment.begin() as transaction:
                return transaction.get(key)

    environment = lmdb_lines._environment(folder)
    monkeypatch.setattr(lmdb_lines, "_environment", lambda folder: Failing())
    with pytest.raises(ValueError, match=rf"all/data\.mdb: wanted `{what}-000000002`, got damaged pages"):
        read_lines(folder)[1]
    if what == "image":
        assert len(audit_lines(folder).faults["unreadable pictures"]) == 1


def test_database_of_something_else_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "other")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with pytest.raises(ValueError, match="must be a database of lines, got none with a number under `num-samples`"):
        read_lines(tmp_path / "other")
