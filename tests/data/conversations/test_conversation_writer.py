"""What is written as a folder of conversations is read back as it was, and nothing half is left behind."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from hf_vlm.data.conversations.conversation_audit import audit_conversations
from hf_vlm.data.conversations.conversation_files import ConversationError
from hf_vlm.data.conversations.conversation_writer import ConversationWriter
from hf_vlm.data.conversations.conversations import read_conversations

NOTES = {"kind": "string", "seed": "int64", "references": "list<string>"}


def png(seed, size=8):
    """The bytes of a picture that doesn't compress."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def asked(question="What is it?", answer="A cat.", num_images=1):
    return [
        {"role": "user", "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def names_in(folder):
    return sorted(file.name for file in (folder / "data").iterdir()) if (folder / "data").exists() else []


def test_rows_are_read_back_as_they_were_added(tmp_path):
    (tmp_path / "a.jpg").write_bytes(png(1))
    rows = [
        ([{"role": "system", "content": "Be brief."}, *asked("Both?", num_images=2)], [tmp_path / "a.jpg", png(2)]),
        ([{"role": "user", "content": "No picture?"}, {"role": "assistant", "content": "None: é 猫 🐈"}], []),
        (asked(), [png(2)]),
    ]
    with ConversationWriter(tmp_path / "out", notes=NOTES) as writer:
        for number, (messages, images) in enumerate(rows):
            writer.add(messages, images, id=f"row-{number}", kind="color", seed=7, references=["a cat", "cat"])
    assert [file.name for file in writer.files] == ["train-00000-of-00001.parquet"] == names_in(tmp_path / "out")
    assert (writer.num_rows, writer.num_images, writer.num_bytes) == (3, 3, writer.files[0].stat().st_size)
    read = read_conversations(tmp_path / "out", "train")
    assert read.messages(0)[1:] == asked("Both?", num_images=2)
    assert read.messages(0)[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert read.messages(1)[1]["content"] == [{"type": "text", "text": "None: é 猫 🐈"}]
    assert [read.stored_images(index) for index in range(3)] == [[png(1), png(2)], [], [png(2)]]
    assert [read.name(index) for index in range(3)] == ["row-0", "row-1", "row-2"]
    assert read.kind(2) == "color" and read.references(2) == ["a cat", "cat"]
    assert audit_conversations(tmp_path / "out").is_usable


def test_datasets_decodes_the_pictures_and_knows_the_notes(tmp_path):
    with ConversationWriter(tmp_path / "out", notes=NOTES) as writer:
        writer.add(asked(), [png(3)], id=5, seed=11)
    for place, settings in ((str(tmp_path / "out"), {}), ("parquet", {"data_files": str(writer.files[0])})):
        table = datasets.load_dataset(place, split="train", cache_dir=str(tmp_path / "cache"), **settings)
        assert table.features["images"] == datasets.List(datasets.Image())
        assert table[0]["images"][0].tobytes() == Image.open(io.BytesIO(png(3))).tobytes()
        assert (table[0]["id"], table[0]["seed"], table[0]["kind"], table[0]["references"]) == ("5", 11, None, None)


def test_a_picture_by_name_is_found_in_the_folder_of_pictures(tmp_path):
    (tmp_path / "photos" / "coco").mkdir(parents=True)
    (tmp_path / "photos" / "coco" / "a.png").write_bytes(png(4))
    with ConversationWriter(tmp_path / "out") as writer:
        writer.add(asked(), ["coco/a.png"])
    read = read_conversations(tmp_path / "out", "train", image_folder=tmp_path / "photos")
    assert read.stored_images(0) == [png(4)]
    with pytest.raises(FileNotFoundError, match=r"row 0: wanted the picture coco/a\.png"):
        read_conversations(tmp_path / "out", "train")


def test_files_and_row_groups_are_bounded_and_rows_keep_their_order(tmp_path):
    with ConversationWriter(tmp_path / "out", max_shard_mb=0.05) as writer:
        for number in range(12):
            writer.add(asked(answer=str(number)), [png(number, 64)])  # some 12 kB each
    total = len(writer.files)
    assert total > 2
    assert names_in(tmp_path / "out") == [f"train-{number:05}-of-{total:05}.parquet" for number in range(total)]
    for file in writer.files:
        told = pyarrow.parquet.read_metadata(file)
        assert max(told.row_group(index).num_rows for index in range(told.num_row_groups)) <= 4
    read = read_conversations(tmp_path / "out", "train")
    assert [read.messages(index)[1]["content"][0]["text"] for index in range(12)] == [str(n) for n in range(12)]


def test_a_picture_of_many_rows_is_stored_once_in_a_group(tmp_path):
    with ConversationWriter(tmp_path / "out") as writer:
        for number in range(20):
            writer.add(asked(answer=str(number)), [png(1, 128)])
    assert len(png(1, 128)) < writer.num_bytes < 2 * len(png(1, 128))
    read = read_conversations(tmp_path / "out", "train")
    assert all(read.stored_images(index) == [png(1, 128)] for index in range(20))


def test_splits_stand_side_by_side(tmp_path):
    for split in ("train", "validation", "test_2016"):
        with ConversationWriter(tmp_path / "out", split) as writer:
            writer.add(asked(answer=split), [png(1)])
    table = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows[0]["messages"][1]["content"][0]["text"] for split, rows in table.items()} == {
        "train": "train",
        "validation": "validation",
        "test_2016": "test_2016",
    }


def test_replacing_a_split_leaves_one_that_is_called_like_it(tmp_path):
    for split in ("test_2016", "test"):
        with ConversationWriter(tmp_path / "out", split, replace=True) as writer:
            writer.add(asked(), [png(1)])
    assert names_in(tmp_path / "out") == ["test-00000-of-00001.parquet", "test_2016-00000-of-00001.parquet"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ConversationWriter(tmp_path / "out", max_shard_mb=0.01) as writer:
        for number in range(4):
            writer.add(asked(), [png(number, 64)])
        assert all(name.startswith(".") and name.endswith(".unfinished") for name in names_in(tmp_path / "out"))
        assert len(names_in(tmp_path / "out")) > 1
        raise RuntimeError
    assert not (tmp_path / "out").exists()


def test_data_that_is_there_is_kept_until_the_new_is_whole(tmp_path):
    def write(answer, rows, **settings):
        with ConversationWriter(tmp_path / "out", max_shard_mb=0.01, **settings) as writer:
            for number in range(rows):
                writer.add(asked(answer=answer), [png(number, 64)])
            if answer == "bad":
                raise RuntimeError
        return writer.files

    old = write("old", 4)
    assert len(old) > 2
    with pytest.raises(FileExistsError, match=r"without the split `train` is wanted, got .*train-00000-of-"):
        write("new", 1)
    with pytest.raises(RuntimeError):
        write("bad", 2, replace=True)
    assert names_in(tmp_path / "out") == [file.name for file in old]
    new = write("new", 1, replace=True)
    assert names_in(tmp_path / "out") == [file.name for file in new] == ["train-00000-of-00001.parquet"]
    assert read_conversations(tmp_path / "out", "train").messages(0)[1]["content"][0]["text"] == "new"


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "dataset_dict.json", "train.parquet"])
def test_data_that_a_reader_would_take_instead_is_refused(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(FileExistsError, match=f"got .*{name}, which readers would take instead"):
        ConversationWriter(tmp_path, replace=True)


def test_a_killed_run_leaves_no_data_and_does_not_hinder_the_next(tmp_path):
    program = f"""
        import os, signal
        from hf_vlm.data.conversations.conversation_writer import ConversationWriter
        with ConversationWriter({str(tmp_path)!r}, max_shard_mb=0.01) as writer:
            for number in range(6):
                messages = [{{"role": "user", "content": str(number) * 9000}}, {{"role": "assistant", "content": "x"}}]
                writer.add(messages)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL and names_in(tmp_path)
    with pytest.raises(ValueError, match="must hold"):
        read_conversations(tmp_path, "train")
    with ConversationWriter(tmp_path) as writer:
        writer.add(asked(), [png(1)])
    assert names_in(tmp_path) == ["train-00000-of-00001.parquet"]
    assert len(read_conversations(tmp_path, "train")) == 1


def test_a_full_disk_is_told_by_its_file_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=r"unfinished must be written, got: .*\. Make room there"),
            ConversationWriter(tmp_path / "out") as writer,
        ):
            for number in range(6):
                writer.add(asked(), [png(number, 64)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_a_bad_row_is_refused_and_the_others_are_kept(tmp_path):
    bad = [
        (asked(num_images=2), [png(1)], {}, "1 pictures and 2 places"),
        ([{"role": "user", "content": "?"}], [], {}, "last word from `assistant`"),
        ("text", [], {}, "wanted a list of messages"),
        (asked(), [b""], {}, "got an empty file"),
        (asked(), [b"<html>"], {}, "wanted a picture, got data that begins b'<html>'"),
        (asked(), [""], {}, "got an empty text"),
        (asked(), [png(1)], {"seed": "7"}, "a note `seed` of the type `int64`, got '7'"),
        (asked(), [png(1)], {"seed": True}, "a note `seed`"),
        (asked(), [png(1)], {"references": "cat"}, "a note `references` of the type `list<string>`"),
        (asked(), [png(1)], {"references": [" "]}, "a note `references`"),
        (asked(), [png(1)], {"kind": "\ud83d"}, "half of one in `kind`"),
        (asked(answer="\ud83d"), [png(1)], {}, "half of one"),
        (asked(), [png(1)], {"id": "\ud83d"}, "half of one in the `id`"),
    ]
    with ConversationWriter(tmp_path / "out", notes=NOTES) as writer:
        for messages, images, notes, told in bad:
            with pytest.raises(ConversationError, match=told):
                writer.add(messages, images, **notes)
        with pytest.raises(FileNotFoundError, match=r"wanted the picture .*none\.png, got no such file"):
            writer.add(asked(), [tmp_path / "none.png"])
        with pytest.raises(TypeError, match="Notes of this writer are `kind`, `seed`, `references`, got `teacher`"):
            writer.add(asked(), [png(1)], teacher="rules")
        with pytest.raises(TypeError, match="`images` must be paths, bytes or names, got Image"):
            writer.add(asked(), [Image.new("RGB", (2, 2))])
        writer.add(asked(), [png(1)], references=[])
    assert writer.num_rows == len(read_conversations(tmp_path / "out", "train")) == 1


def test_a_file_that_is_no_whole_picture_is_refused_by_name(tmp_path):
    for name, data in (("page", b"<!DOCTYPE html>"), ("cut", png(1, 64)[:-30]), ("empty", b"")):
        (tmp_path / f"{name}.png").write_bytes(data)
    with ConversationWriter(tmp_path / "out") as writer:
        writer.add(asked(), [png(1)])
        for name in ("page", "cut", "empty"):
            with pytest.raises(ConversationError, match=rf"wanted a .*picture, got .*{name}\.png") as told:
                writer.add(asked(), [tmp_path / f"{name}.png"], names=["called.png"])
            assert told.value.kind == "unreadable pictures"
    assert writer.num_rows == 1


def test_a_split_without_rows_is_a_file_without_rows(tmp_path):
    with ConversationWriter(tmp_path / "out") as writer:
        pass
    assert pyarrow.parquet.read_metadata(writer.files[0]).num_rows == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "a/b"}, "`split` must be of letters"),
        ({"max_shard_mb": 0}, "`max_shard_mb` must be above 0, got 0"),
        ({"notes": {"kind": "str"}}, "got 'str' for `kind`"),
        ({"notes": {"images": "string"}}, "names of their own, got `images`"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        ConversationWriter(tmp_path / "out", **settings)
    assert not os.listdir(tmp_path)


def test_a_picture_keeps_the_name_it_is_given(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with ConversationWriter(tmp_path / "out") as writer:
        writer.add(
            asked(num_images=3), [tmp_path / "a.png", tmp_path / "a.png", png(2)], names=[None, "coco/b.png", None]
        )
    (row,) = pyarrow.parquet.read_table(writer.files[0])["images"].to_pylist()
    assert [picture["path"] for picture in row] == ["a.png", "coco/b.png", None]
    features = json.loads(pyarrow.parquet.read_schema(writer.files[0]).metadata[b"huggingface"])
    assert features["info"]["features"]["images"]["feature"] == {"_type": "Image"}
