"""A token cache: what is written is read back, in parts that survive a kill; what is wrong is named."""

import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_vlm.data.token_cache import SCHEMA, read_token_cache
from hf_vlm.data.token_cache_writer import TokenCacheWriter

ONE, OTHER = "1a" * 32, "2b" * 32


def grids(number=5, num_codes=64):
    generator = np.random.default_rng(0)
    sizes = [(2, 3), (4, 4), (1, 1), (3, 2), (5, 1)]
    return {f"folder/é{index}.png": generator.integers(0, num_codes, sizes[index % 5]) for index in range(number)}


def write(folder, images, model_hash=ONE, num_codes=64, **settings):
    with TokenCacheWriter(folder, model_hash=model_hash, num_codes=num_codes, **settings) as cache:
        for image, code_ids in images.items():
            cache.add(image, code_ids)


def assert_holds(folder, images, num_codes=64):
    found = list(read_token_cache(folder, ONE))
    assert [row.image for row in found] == list(images)
    for row in found:
        assert row.code_ids.dtype == np.uint16 and row.num_codes == num_codes
        np.testing.assert_array_equal(row.code_ids, images[row.image])


def write_by_hand(file, **changed):
    """A part of three rows, values of the last changed."""
    row = {"image": "a.png", "rows": 1, "columns": 2, "num_codes": 8, "code_ids": [0, 7], "model": ONE}
    rows = [row, {**row, "image": "b.png"}, {**row, "image": "c.png", **changed}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), file)


@pytest.mark.parametrize("num_codes", [64, 65_536])
@pytest.mark.parametrize("pictures_per_part", [2, 5, 1000])
def test_cache_holds_what_was_added_in_parts(tmp_path, num_codes, pictures_per_part):
    images = grids(num_codes=num_codes)
    images["last.png"] = np.full((2, 2), num_codes - 1)
    write(tmp_path / "cache", images, num_codes=num_codes, pictures_per_part=pictures_per_part)
    num_parts = -(-6 // pictures_per_part)
    assert sorted(os.listdir(tmp_path / "cache")) == [f"part-{part:05}.parquet" for part in range(num_parts)]
    assert_holds(tmp_path / "cache", images, num_codes)


def test_part_is_a_parquet_file_as_documented(tmp_path):
    write(tmp_path, grids(), model_name="a tokenizer")
    table = pyarrow.parquet.ParquetFile(tmp_path / "part-00000.parquet").read()
    types = ["string", "int32", "int32", "int32", "list<element: uint16>", "string"]
    assert table.schema.names == ["image", "rows", "columns", "num_codes", "code_ids", "model"]
    assert [str(field.type) for field in table.schema] == types
    assert table.schema.metadata[b"hf_vlm.model"] == b"a tokenizer"
    assert set(table["model"].to_pylist()) == {ONE}
    first = table.slice(0, 1).to_pylist()[0]
    assert first["code_ids"] == grids()["folder/é0.png"].tolist()[0] + grids()["folder/é0.png"].tolist()[1]


def test_kill_loses_at_most_one_part_and_the_next_run_goes_on(tmp_path):
    images = grids()
    killed = TokenCacheWriter(tmp_path, model_hash=ONE, num_codes=64, pictures_per_part=2)
    for image, code_ids in images.items():
        killed.add(image, code_ids)
    del killed  # without the end of a `with` block
    (tmp_path / ".part-00002.parquet.unfinished").write_bytes(b"PAR1 and no more")
    names = list(images)
    assert_holds(tmp_path, {name: images[name] for name in names[:4]})

    with TokenCacheWriter(tmp_path, model_hash=ONE, num_codes=64, pictures_per_part=2) as cache:
        assert cache.sizes == {name: images[name].shape for name in names[:4]}
        cache.add(names[4], images[names[4]])
    assert_holds(tmp_path, images)


def test_error_in_the_block_keeps_what_was_added(tmp_path):
    images = grids()
    with (
        pytest.raises(KeyboardInterrupt),
        TokenCacheWriter(tmp_path, model_hash=ONE, num_codes=64, pictures_per_part=2) as cache,
    ):
        for image, code_ids in images.items():
            cache.add(image, code_ids)
        raise KeyboardInterrupt
    assert_holds(tmp_path, images)


def test_next_part_overwrites_none_when_one_was_deleted(tmp_path):
    images = grids()
    write(tmp_path, images, pictures_per_part=2)
    (tmp_path / "part-00000.parquet").unlink()
    names = list(images)
    write(tmp_path, {name: images[name] for name in names[:2]})
    assert_holds(tmp_path, {name: images[name] for name in [*names[2:], *names[:2]]})


def test_part_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_vlm.data.token_cache_writer.os.replace", full)
    with pytest.raises(OSError, match=r"part-00000.parquet is wanted, got .*No space left.*Make room"):
        write(tmp_path, grids())
    assert os.listdir(tmp_path) == []


def test_cache_of_another_tokenizer_is_refused_naming_both(tmp_path):
    write(tmp_path, grids())
    told = f"part-00000.parquet: wanted codes of .* {OTHER}, got those of {ONE}"
    with pytest.raises(ValueError, match=told):
        write(tmp_path, {"new.png": np.zeros((1, 1), int)}, model_hash=OTHER)
    with pytest.raises(ValueError, match=told):
        read_token_cache(tmp_path, OTHER)  # at once, before a row is asked for


def test_parts_of_two_tokenizers_are_refused_when_none_is_asked_for(tmp_path):
    write(tmp_path, grids())
    assert len(list(read_token_cache(tmp_path))) == 5
    write(tmp_path / "other", grids(), model_hash=OTHER)
    (tmp_path / "other" / "part-00000.parquet").rename(tmp_path / "part-00001.parquet")
    with pytest.raises(ValueError, match=f"part-00001.parquet: wanted codes of .* {ONE}, got those of {OTHER}"):
        read_token_cache(tmp_path)
    for part in tmp_path.glob("*.parquet"):
        part.unlink()
    write_by_hand(tmp_path / "part-00001.parquet", model=OTHER)
    with pytest.raises(ValueError, match=f"part-00001.parquet: wanted codes of .* {ONE}, got those of {OTHER}"):
        read_token_cache(tmp_path)


@pytest.mark.parametrize("kind", ["empty", "cut"])
def test_damaged_part_is_named_with_the_fix(tmp_path, kind):
    write(tmp_path, grids(), pictures_per_part=2)
    file = tmp_path / "part-00001.parquet"
    file.write_bytes(b"" if kind == "empty" else file.read_bytes()[:-20])
    for act in (lambda: read_token_cache(tmp_path), lambda: write(tmp_path, {})):
        with pytest.raises(ValueError, match=r"part-00001.parquet: wanted a whole part .* Delete the file, and run"):
            act()


def test_flipped_bit_never_gives_other_codes(tmp_path):
    code_ids = np.random.default_rng(0).integers(0, 65_536, (20, 20))
    write(tmp_path, {"a.png": code_ids}, num_codes=65_536)
    file = tmp_path / "part-00000.parquet"
    whole = file.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 128]) + whole[place + 1 :])
        try:
            (found,) = read_token_cache(tmp_path, ONE)
        except ValueError as error:
            assert "part-00000.parquet" in str(error)
            noticed += 1
        else:  # in a statistic, say
            np.testing.assert_array_equal(found.code_ids, code_ids)
    assert noticed > 200


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"code_ids": [0, 8]}, r"wanted codes in \[0, 8\), got 8"),
        ({"code_ids": [0, 7, 1]}, r"wanted 1 x 2 codes, got 3"),
        ({"rows": -1, "columns": -2}, r"wanted -1 x -2 codes, got 2"),
        ({"rows": 0, "code_ids": []}, r"wanted 0 x 2 codes, got 0"),
        ({"code_ids": None}, r"wanted a value in every column"),
        ({"code_ids": [None, 1]}, r"wanted a value in every column"),
        ({"image": None}, r"wanted a value in every column"),
        ({"num_codes": None}, r"wanted a value in every column"),
    ],
)
def test_bad_row_is_named(tmp_path, changed, told):
    write_by_hand(tmp_path / "part-00000.parquet")
    write_by_hand(tmp_path / "part-00003.parquet", **changed)
    rows = read_token_cache(tmp_path, ONE)
    assert [row.image for row in (next(rows) for _ in range(5))] == ["a.png", "b.png", "c.png", "a.png", "b.png"]
    with pytest.raises(ValueError, match=rf"part-00003.parquet, row 2: {told}.*Delete the file"):
        next(rows)


def test_other_columns_are_refused(tmp_path):
    table = pyarrow.table({"image": ["a.png"], "code_ids": [[1, 2]]})
    pyarrow.parquet.write_table(table, tmp_path / "part-00000.parquet")
    for act in (lambda: read_token_cache(tmp_path), lambda: write(tmp_path, {})):
        with pytest.raises(ValueError, match=r"part-00000.parquet: wanted the columns image \(string\).*int64"):
            act()


def test_folder_without_a_cache_is_refused(tmp_path):
    (tmp_path / "other.parquet").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"token cache is wanted.*hf-vlm tokenize"):
            read_token_cache(folder)
    with pytest.raises(OSError, match="which can't be made"):
        write(tmp_path / "other.parquet", {})


def test_more_codes_than_a_cache_can_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 65536 of them, got 65537"):
        write(tmp_path / "cache", {}, num_codes=65_537)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("image", "code_ids", "told"),
    [
        ("there.png", [[1]], "one that is there"),
        ("caf\udce9.png", [[1]], "name in UTF-8"),
        ("new.png", [1], r"got shape \(1,\)"),
        ("new.png", [[64]], r"in \[0, 64\), got 64 to 64"),
        ("new.png", [[-1]], r"in \[0, 64\), got -1 to -1"),
    ],
)
def test_picture_that_does_not_fit_is_refused_and_costs_itself(tmp_path, image, code_ids, told):
    good = {"there.png": np.array([[1]]), "more.png": np.array([[2, 3]])}
    with TokenCacheWriter(tmp_path, model_hash=ONE, num_codes=64) as cache:
        cache.add("there.png", good["there.png"])
        with pytest.raises(ValueError, match=told) as error:
            cache.add(image, np.array(code_ids))
        assert str(error.value).startswith(f"{image}: ")
        cache.add("more.png", good["more.png"])
    assert_holds(tmp_path, good)
