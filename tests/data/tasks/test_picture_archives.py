"""Tar files of pictures with texts, and pictures in folders and zip files of their classes, are read as tasks."""

import io
import json
import pickle
import tarfile
import zipfile

import pytest
from PIL import Image

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.task_rows import read_task, stream_task


def picture_bytes(level=0):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(data, "PNG")
    return data.getvalue()


def write_tar(file, **members):
    """`members`: name with `__` for dots -> content."""
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def said(rows):
    return [[text_of(message) for message in rows.messages(index)] for index in range(len(rows))]


# Tar files


@pytest.fixture
def shards(tmp_path):
    notes = json.dumps({"caption": "A dog .", "url": "http://x/a.jpg", "key": "000000000", "status": "success"})
    write_tar(tmp_path / "00000.tar", k0__jpg=picture_bytes(10), k0__json=notes, k0__txt="A dog .", k1__txt="A cat .",
              k1__png=picture_bytes(20))  # fmt: skip
    write_tar(tmp_path / "00001.tar", k2__jpg=picture_bytes(30), k2__txt="A cow .")
    return tmp_path


def test_tars_of_captions_are_read_in_order_with_their_pictures(shards):
    rows = read_task(shards, "train", task="caption")
    assert [rows.references(index) for index in range(3)] == [["A dog ."], ["A cat ."], ["A cow ."]]
    assert [rows.name(index) for index in range(3)] == ["k0", "k1", "k2"] and rows.sources[2].endswith("00001.tar, k2")
    rows = pickle.loads(pickle.dumps(rows))
    assert [rows.images(index)[0].getpixel((0, 0))[0] for index in range(3)] == [10, 20, 30]
    streamed = list(stream_task(shards, task="caption"))
    assert [row.images for row in streamed] == [[picture_bytes(level)] for level in (10, 20, 30)]
    assert len(read_task(shards / "00001.tar", task="caption")) == 1
    with pytest.raises(ValueError, match="must hold test.json"):
        read_task(shards, "test", task="caption")


def test_tars_of_a_split_are_found_by_its_name(tmp_path):
    write_tar(tmp_path / "cc3m-train-0000.tar", k0__jpg=picture_bytes(), k0__txt="A dog .")
    write_tar(tmp_path / "cc3m-validation-0000.tar", k1__jpg=picture_bytes(), k1__txt="A cat .")
    rows = read_task(tmp_path, "validation", task="caption")
    assert rows.references(0) == ["A cat ."] and len(rows) == 1


def test_tars_hold_questions_conversations_and_several_pictures(tmp_path):
    write_tar(tmp_path / "train-0.tar", k0__1__jpg=picture_bytes(20), k0__0__jpg=picture_bytes(10),
              k0__json=json.dumps({"question": ["q1?", "q2?"], "answer": ["a1", "a2"]}))  # fmt: skip
    rows = read_task(tmp_path, "train", task="vqa", max_exchanges=4)
    assert said(rows) == [["q1?", "a1", "q2?", "a2"]]
    assert [picture.getpixel((0, 0))[0] for picture in rows.images(0)] == [10, 20]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    write_tar(tmp_path / "train-0.tar", k0__jpg=picture_bytes(20), k0__json=json.dumps({"conversations": turns}))
    for task in ("chat", "vqa"):
        rows = read_task(tmp_path, "train", task=task, prompt="Be brief please.")
        assert said(rows) == [["What?\nBe brief please.", "This."]] and rows.images(0)[0].getpixel((0, 0))[0] == 20


def test_bad_tars_are_named(shards):
    write_tar(shards / "00001.tar", k2__jpg=picture_bytes(), k3__jpg=picture_bytes(), k3__json="[1]", k4__jpg=picture_bytes(),
              k4__txt=b"caf\xe9")  # fmt: skip
    told = []
    assert len(read_task(shards, task="caption", on_bad_row=lambda error: told.append(str(error)))) == 2
    assert "00001.tar, k2: wanted `captions` or `caption`" in told[0]
    assert "00001.tar, k3: wanted UTF-8 text, as JSON an object, in its .json, got another (no object)" in told[1]
    assert "00001.tar, k4: wanted UTF-8 text" in told[2]
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(whole[:1600])
    with pytest.raises(ValueError, match="00000.tar: wanted a whole tar file that is not compressed, got an error"):
        read_task(shards, task="caption")


# Classes


def test_folders_of_classes_are_asked_for(tmp_path):
    for name, level in (("golden_retriever", 10), ("tabby", 20)):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.JPEG").write_bytes(picture_bytes(level))
    rows = read_task(tmp_path, "val", task="vqa")
    assert said(rows) == [["What is shown here?", "golden retriever"], ["What is shown here?", "tabby"]]
    assert rows.images(1)[0].getpixel((0, 0))[0] == 20
    assert len(read_task(tmp_path / "val", task="vqa")) == 2
    with pytest.raises(ValueError, match="must hold test.json"):
        read_task(tmp_path, "test", task="vqa")


def test_folders_of_splits_and_images_are_no_classes(tmp_path):
    for name in ("val", "images"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(picture_bytes())
        for split in (None, "train"):
            with pytest.raises(ValueError, match="must hold"):
                read_task(tmp_path, split, task="vqa")
        (tmp_path / name / "1.jpg").unlink()
        (tmp_path / name).rmdir()


def test_wordnets_ids_are_named_by_imagenets_list(tmp_path):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "train" / "n01440764" / "n01440764_10026.JPEG").write_bytes(picture_bytes())
    with pytest.raises(
        ValueError, match="LOC_synset_mapping.txt beside it, which names its classes, got none for `n01440764`"
    ):
        read_task(tmp_path, "train", task="vqa")
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    )
    rows = read_task(tmp_path, "train", task="vqa")
    assert said(rows)[0][1] == "tench" and rows.references(0) == ["tench", "Tinca tinca"]


def test_zip_files_of_classes_are_read_by_their_map(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as file:
        file.writestr("n01440764/a.JPEG", picture_bytes(10))
        file.writestr("n01443537/b.JPEG", picture_bytes(20))
    (tmp_path / "train_map.txt").write_text("n01443537/b.JPEG\t1\nn01440764/a.JPEG\t0\nn9/c.JPEG\t0\nn9/d.JPEG\t2\n")
    with pytest.raises(ValueError, match="must name the classes that train_map.txt has numbers of"):
        read_task(tmp_path, "train", task="vqa")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    told = []
    rows = read_task(tmp_path, "train", task="vqa", on_bad_row=lambda error: told.append(str(error)))
    rows = pickle.loads(pickle.dumps(rows))
    assert [answer for _, answer in said(rows)] == ["goldfish", "tench"] and rows.name(0) == "n01443537/b.JPEG"
    assert [rows.images(index)[0].getpixel((0, 0))[0] for index in range(2)] == [20, 10]
    assert "line 3: wanted n9/c.JPEG in train.zip, got no such file" in told[0]
    assert "line 4: wanted `path<TAB>number` of one of 2 classes" in told[1]
