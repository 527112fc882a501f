"""The files of a split are found by their names, and all that the names tell of must be there."""

import pyarrow
import pyarrow.parquet
import pytest

from hf_vlm.data.conversations.conversation_files import find_layout
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.data.tasks.convert import convert


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "a"}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), folder / name)


@pytest.mark.parametrize(
    ("place", "split"), [("", "train"), ("data", "train"), ("train", "train"), ("", None), ("data", None)]
)
def test_a_missing_part_is_refused_by_name(tmp_path, place, split):
    (tmp_path / place).mkdir(exist_ok=True)
    write(tmp_path / place, "train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    with pytest.raises(
        ValueError, match=r"must hold 3 files train-\*-of-00003\.parquet, .* got 2, not train-00001-of-00003"
    ):
        read_conversations(tmp_path, split)
    with pytest.raises(ValueError, match="must hold 3 files"):
        convert(tmp_path, tmp_path.parent / "out", task="chat", split=split)
    assert len(read_conversations(tmp_path / place / "train-00002-of-00003.parquet")) == 1  # asked for by name
    write(tmp_path / place, "train-00001-of-00003.parquet")
    assert len(read_conversations(tmp_path, split)) == 3


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("test", ["test-00000-of-00001.parquet"]),
        ("test_2016", ["test_2016-00000-of-00001.parquet"]),
        ("val", ["val.parquet"]),
        ("val2017", ["val2017-00000-of-00001.parquet"]),
        ("train", ["train_0.parquet", "train_1.parquet"]),
        ("extra", ["extra0000.parquet", "extra0001.parquet"]),
        ("flickr", []),
    ],
)
def test_a_split_is_not_another_whose_name_goes_on(tmp_path, split, names):
    write(
        tmp_path, "test-00000-of-00001.parquet", "test_2016-00000-of-00001.parquet", "test_2016_coco.parquet",
        "val.parquet", "val2017-00000-of-00001.parquet", "validation.parquet", "train_0.parquet", "train_1.parquet",
        "extra0000.parquet", "extra0001.parquet", "flickr_test.parquet",
    )  # fmt: skip
    assert [file.name for file in find_layout(tmp_path, split)] == names
