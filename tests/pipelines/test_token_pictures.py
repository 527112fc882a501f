"""A token cache to picture files: the reconstructions, under names that stay in the folder."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_vlm.data.token_cache import SCHEMA
from hf_vlm.data.token_cache_writer import TokenCacheWriter
from hf_vlm.pipelines.token_files import load_tokenizer, tokenize_files
from hf_vlm.pipelines.token_pictures import decode_files
from tests.tiny_tokenizers import random_pictures, saved, tiny_dvae, tiny_vqvae


@pytest.fixture(params=["vqvae", "dvae", "gray"])
def folder(request, tmp_path):
    models = {"vqvae": tiny_vqvae, "dvae": tiny_dvae, "gray": lambda: tiny_vqvae(num_channels=1)}
    return saved(models[request.param](), tmp_path / "model")


@pytest.fixture
def vqvae_folder(tmp_path):
    return saved(tiny_vqvae(), tmp_path / "model")


def write_cache(cache, model, images):
    pipe, model_hash = load_tokenizer(model)
    with TokenCacheWriter(cache, model_hash=model_hash, num_codes=pipe.num_codes) as writer:
        for number, image in enumerate(images):
            writer.add(image, np.full((2, 2), number))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_round_trip_of_files_is_the_models_reconstruction(folder, tmp_path, batch_size):
    for number, picture in enumerate(random_pictures(3)):
        picture.save(tmp_path / f"{number}.jpg")
    list(tokenize_files([tmp_path], model=folder, out=tmp_path / "cache"))
    results = list(decode_files(tmp_path / "cache", model=folder, out=tmp_path / "out", batch_size=batch_size))
    assert [result.image for result in results] == [str(tmp_path / f"{number}.jpg") for number in range(3)]
    assert [result.file for result in results] == [str(tmp_path / "out" / f"{number}.png") for number in range(3)]
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    for result in results:
        pixel_values = processor([Image.open(result.image)], return_tensors="pt").pixel_values
        with torch.no_grad():
            (wanted,) = (255 * model.reconstruct(pixel_values).clamp(0, 1)).round().movedim(1, -1).numpy()
        found = np.asarray(Image.open(result.file))
        np.testing.assert_array_equal(found, wanted[..., 0] if model.config.num_channels == 1 else wanted)


def test_names_stay_unique_and_in_the_folder(vqvae_folder, tmp_path):
    images = ["a/x.png", "b/x.jpg", "X.png", "x-2.png", "../../up.png", "/etc/passwd", "..\\..\\win.png", "..", "."]
    images += ["", "a:b?.png", "é" * 300 + ".png", "é" * 300 + ".jpg", ".hidden.png", "nul\x00.png", "a/../x.png"]
    write_cache(tmp_path / "cache", vqvae_folder, images)
    out = tmp_path / "deep" / "out"
    results = list(decode_files(tmp_path / "cache", model=vqvae_folder, out=out))
    assert [result.image for result in results] == images
    names = [result.file for result in results]
    assert sorted(names) == sorted(str(file) for file in out.iterdir())
    assert len({name.lower() for name in names}) == len(images) == 16
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    expected = ["x", "x-2", "X-3", "x-2-2", "up", "passwd", "win"]
    assert [name.removeprefix(f"{out}/") for name in names[:7]] == [f"{name}.png" for name in expected]


def test_folder_with_files_is_left_alone(vqvae_folder, tmp_path):
    write_cache(tmp_path / "cache", vqvae_folder, ["x.png"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.png").write_text("the picture itself")
    with pytest.raises(FileExistsError, match="new or empty folder is wanted"):
        list(decode_files(tmp_path / "cache", model=vqvae_folder, out=tmp_path / "out"))
    assert (tmp_path / "out" / "x.png").read_text() == "the picture itself"


def test_code_out_of_range_is_named_by_file_and_row(vqvae_folder, tmp_path):
    (tmp_path / "cache").mkdir()
    _, model_hash = load_tokenizer(vqvae_folder)
    row = {"image": "a.png", "rows": 1, "columns": 1, "num_codes": 64, "code_ids": [63], "model": model_hash}
    file = tmp_path / "cache" / "part-00000.parquet"
    for bad, told in (
        ({"code_ids": [64]}, r"part-00000.parquet, row 1: wanted codes in \[0, 64\), got 64"),
        ({"code_ids": [64], "num_codes": 65}, r"cache: wanted codes of 64, got 65 for b.png"),
    ):
        rows = [row, {**row, "image": "b.png", **bad}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), file)
        with pytest.raises(ValueError, match=told):
            list(decode_files(tmp_path / "cache", model=vqvae_folder, out=tmp_path / "out"))
        assert not list((tmp_path / "out").glob("b*"))


def test_cache_of_another_model_is_refused_before_anything_is_made(vqvae_folder, tmp_path):
    write_cache(tmp_path / "cache", vqvae_folder, ["x.png"])
    other = saved(tiny_vqvae(), tmp_path / "other")
    with pytest.raises(ValueError, match="wanted codes of the tokenizer"):
        list(decode_files(tmp_path / "cache", model=other, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
