"""Picture files to a token cache: a bad file costs itself, and a run that was stopped goes on."""

import os
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from hf_vlm import VAEConfig, VAEImageProcessor, VAEModel
from hf_vlm.data.token_cache import read_token_cache
from hf_vlm.pipelines.image_tokenization import ImageTokenizationPipeline
from hf_vlm.pipelines.token_files import load_tokenizer, tokenize_files
from tests.tiny_tokenizers import random_pictures, saved, tiny_dvae, tiny_vqvae


@pytest.fixture(scope="module", params=["vqvae", "dvae"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    model = tiny_vqvae() if request.param == "vqvae" else tiny_dvae()
    return saved(model, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven files in a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(random_pictures(7)):
        picture.save(folder / f"{number}.png")
    return folder


def tokenize(files, folder, cache, **settings):
    return list(tokenize_files(files, model=folder, out=cache, **settings))


def held(cache):
    return {row.image: row.code_ids for row in read_token_cache(cache)}


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_cache_holds_the_models_codes(folder, pictures, tmp_path, batch_size):
    results = tokenize([pictures], folder, tmp_path / "cache", batch_size=batch_size)
    files = [str(pictures / f"{number}.png") for number in range(7)]
    pipe, _ = load_tokenizer(folder)
    found = held(tmp_path / "cache")
    assert [result.file for result in results] == list(found) == files
    for result, file in zip(results, files, strict=True):
        wanted = pipe(file)["code_ids"]
        np.testing.assert_array_equal(found[file], wanted)
        told = {"rows": len(wanted), "columns": len(wanted[0]), "num_codes": 64, "is_new": True}
        assert result.to_dict() == {"file": file, **told}


def test_cache_is_marked_with_the_hash_of_weights_and_settings(tmp_path, pictures):
    folder = saved(tiny_vqvae().half(), tmp_path / "half")
    pipe, model_hash = load_tokenizer(folder)
    assert {tensor.dtype for tensor in pipe.model.parameters()} == {torch.float32}
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load_tokenizer(moved)[1] == model_hash
    larger = AutoImageProcessor.from_pretrained(folder, size={"height": 64, "width": 64})
    larger.save_pretrained(moved)
    assert load_tokenizer(moved)[1] != model_hash
    with torch.no_grad():
        pipe.model.decoder.input_layer.bias += 1
    assert load_tokenizer(saved(pipe.model, tmp_path / "other"))[1] != model_hash
    tokenize([pictures], folder, tmp_path / "cache")
    assert len(list(read_token_cache(tmp_path / "cache", model_hash))) == 7


def test_bad_file_costs_nothing_but_itself(folder, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    random_pictures(1)[0].save(odd)
    bad = [str(tmp_path / name) for name in ("text.png", "none.png", "empty")] + [odd]
    given = [bad[0], str(pictures / "0.png"), bad[1], bad[2], str(pictures / "1.png"), bad[3]]
    for batch_size in (1, 2, 8):
        cache = tmp_path / f"cache{batch_size}"
        results = tokenize(given, folder, cache, batch_size=batch_size)
        assert [result.file for result in results] == given
        assert {result.file for result in results if result.error is not None} == set(bad)
        assert all(result.file in result.error for result in results if result.error is not None)
        assert list(held(cache)) == [given[1], given[4]]


def test_picture_of_a_size_that_the_model_does_not_take_costs_nothing_but_itself(tmp_path):
    folder = saved(tiny_vqvae(), tmp_path / "model", do_resize=False)
    for number, size in enumerate([(8, 8), (9, 8), (16, 8), (8, 8)]):
        random_pictures(1, size)[0].save(tmp_path / f"{number}.png")
    results = tokenize([tmp_path], folder, tmp_path / "cache")
    assert [result.error is None for result in results] == [True, False, True, True]
    assert results[1].error.startswith(f"{tmp_path / '1.png'}: ") and "multiple" in results[1].error
    assert [(result.rows, result.columns) for result in results] == [(2, 2), (0, 0), (2, 4), (2, 2)]
    assert [grid.shape for grid in held(tmp_path / "cache").values()] == [(2, 2), (2, 4), (2, 2)]


def test_run_that_broke_off_goes_on_where_it_stopped(folder, pictures, tmp_path, monkeypatch):
    encode, encoded = ImageTokenizationPipeline.encode, []

    def counted(self, pixels):
        if len(encoded) >= 4:
            raise RuntimeError("out of memory")
        encoded.extend(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(ImageTokenizationPipeline, "encode", counted)
    with pytest.raises(RuntimeError, match="out of memory"):
        tokenize([pictures], folder, tmp_path / "cache", batch_size=2, pictures_per_part=3)
    assert len(held(tmp_path / "cache")) == 4
    monkeypatch.setattr(ImageTokenizationPipeline, "encode", encode)
    results = tokenize([pictures], folder, tmp_path / "cache", batch_size=2, pictures_per_part=3)
    assert [result.is_new for result in results] == [False] * 4 + [True] * 3
    assert len({(result.rows, result.columns) for result in results}) == 1
    tokenize([pictures], folder, tmp_path / "at once")
    again, at_once = held(tmp_path / "cache"), held(tmp_path / "at once")
    assert list(again) == list(at_once)
    assert all((again[file] == at_once[file]).all() for file in again)


def test_reader_that_stops_early_keeps_what_was_made(folder, pictures, tmp_path):
    results = tokenize_files([pictures], model=folder, out=tmp_path / "cache", batch_size=2)
    next(results)
    results.close()
    assert len(held(tmp_path / "cache")) == 2


def test_picture_given_twice_is_made_once(folder, pictures, tmp_path):
    results = tokenize([pictures / "0.png", pictures, pictures / "0.png"], folder, tmp_path / "cache")
    assert len(results) == len(held(tmp_path / "cache")) == 7


def test_cache_of_another_model_is_refused(folder, pictures, tmp_path):
    tokenize([pictures], folder, tmp_path / "cache")
    torch.manual_seed(1)
    other = saved(tiny_vqvae(), tmp_path / "other")
    hashes = [load_tokenizer(model)[1] for model in (other, folder)]
    with pytest.raises(ValueError, match=f"SHA-256 {hashes[0]}, got those of {hashes[1]}"):
        tokenize([pictures], other, tmp_path / "cache")
    assert len(list(read_token_cache(tmp_path / "cache", hashes[1]))) == 7


def test_models_that_a_cache_cannot_be_made_with_are_refused(pictures, tmp_path):
    VAEModel(VAEConfig()).save_pretrained(tmp_path / "vae")
    VAEImageProcessor().save_pretrained(tmp_path / "vae")
    many = saved(tiny_vqvae(discretisation="levels", levels=[257, 257], code_dim=None), tmp_path / "many")
    tiny_vqvae().save_pretrained(tmp_path / "bare")
    for model, error, told in (
        (tmp_path / "vae", ValueError, "a VAE are continuous"),
        (many, ValueError, "at most 65536 of them, got 66049"),
        (tmp_path / "bare", ValueError, "must hold an image processor"),
        (tmp_path / "none", OSError, "none"),
    ):
        with pytest.raises(error, match=told):
            tokenize([pictures], model, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
