"""`pipeline("image-tokenization")`: the model's codes and pictures, whatever comes in and however it is batched."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline
from transformers import ViTImageProcessor as StockImageProcessor

from hf_vlm import (
    ImageTokenizationPipeline,
    VAEConfig,
    VAEImageProcessor,
    VAEModel,
    VisionTransformerConfig,
    VisionTransformerImageProcessor,
    VisionTransformerModel,
)
from tests.tiny_tokenizers import random_pictures, saved, tiny_dvae, tiny_vqvae

MODELS = {
    "vqvae": tiny_vqvae,
    "dvae": tiny_dvae,
    "gray vqvae": lambda: tiny_vqvae(num_channels=1),
    "gray dvae": lambda: tiny_dvae(num_channels=1),
    "levels": lambda: tiny_vqvae(discretisation="levels", levels=[4, 4, 2, 2], num_codes=64),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return saved(MODELS[request.param](), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-tokenization", model=folder)


@pytest.fixture
def vqvae_folder(tmp_path):
    return saved(tiny_vqvae(), tmp_path / "vqvae")


def grids_of(results):
    return [result["code_ids"] for result in results]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_are_the_models_own_and_decode_to_its_reconstruction(folder, pipe):
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    pictures = random_pictures(3)
    pixel_values = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted, again = model.encode(pixel_values).numpy(), model.reconstruct(pixel_values)
    results = pipe(pictures)
    assert len({grid.tobytes() for grid in wanted}) == 3  # the model tells pictures apart
    assert_same(grids_of(results), wanted)
    assert {result["code_ids"].dtype for result in results} == {np.dtype("int64")}
    assert [set(result) for result in results] == [{"code_ids", "num_codes"}] * 3
    assert {result["num_codes"] for result in results} == {64}

    levels = (255 * again.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = pipe.decode(wanted)
    assert {picture.mode for picture in decoded} == {"L" if model.config.num_channels == 1 else "RGB"}
    assert_same([np.asarray(picture) for picture in decoded], levels.squeeze(-1) if levels.shape[-1] == 1 else levels)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batch_is_tokenized_as_its_pictures_alone(pipe, batch_size):
    pictures = random_pictures(5)
    assert_same(grids_of(pipe(pictures, batch_size=batch_size)), [pipe(picture)["code_ids"] for picture in pictures])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pictures_of_several_sizes_have_grids_of_several_sizes(tmp_path, batch_size):
    pipe = pipeline("image-tokenization", model=saved(tiny_vqvae(), tmp_path, do_resize=False))
    sizes = [(8, 8), (16, 12), (8, 8), (4, 8)]  # width, height
    pictures = [random_pictures(1, size)[0] for size in sizes]
    found = grids_of(pipe(pictures, batch_size=batch_size))
    assert [grid.shape for grid in found] == [(height // 4, width // 4) for width, height in sizes]
    assert_same(found, [pipe(picture)["code_ids"] for picture in pictures])
    assert [picture.size for picture in pipe.decode(found, batch_size=batch_size)] == sizes
    with pytest.raises(ValueError, match="multiple"):
        pipe(random_pictures(1, (9, 8))[0])


def test_paths_urls_bytes_pictures_and_iterators_are_tokenized_alike(vqvae_folder, tmp_path):
    pipe = pipeline("image-tokenization", model=vqvae_folder)
    (picture,) = random_pictures(1)
    file = tmp_path / "a.png"
    picture.save(file)
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    wanted = pipe(picture)["code_ids"]
    sources = [str(file), file, file.read_bytes(), url, picture.convert("RGBA"), Image.open(file)]
    assert_same(grids_of(pipe(sources, batch_size=4)), [wanted] * 6)
    assert_same(grids_of(pipe(tuple(sources))), [wanted] * 6)
    for stream in (iter(sources), (source for source in sources)):
        results = pipe(stream)
        assert not isinstance(results, list)
        assert_same(grids_of(results), [wanted] * 6)
    assert pipe([]) == []


def test_bad_picture_is_named(vqvae_folder, tmp_path):
    pipe = pipeline("image-tokenization", model=vqvae_folder)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad.png: wanted a picture"):
        pipe(tmp_path / "bad.png")
    random_pictures(1)[0].save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.png: wanted a whole picture"):
        pipe(Image.open(tmp_path / "cut.png"))  # Pillow has read its head only
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        pipe("none.png")
    with pytest.raises(TypeError, match="`batch_size` and `num_workers`, got 'top_k'"):
        pipe(random_pictures(1), top_k=3)


@pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["array", "tensor", "list"])
def test_decode_takes_one_grid_or_many(vqvae_folder, make):
    pipe = pipeline("image-tokenization", model=vqvae_folder)
    code_ids = [[[0, 1], [2, 63]], [[5, 5], [5, 6]]]
    one, two = (np.asarray(picture) for picture in pipe.decode(make(code_ids)))
    assert (one != two).any()
    for number, wanted in enumerate((one, two)):
        assert_same([np.asarray(picture) for picture in pipe.decode(make(code_ids[number]))], [wanted])
    (narrow, whole) = pipe.decode([make([[0, 1]]), make(code_ids[0])])
    assert narrow.size == (8, 4)
    np.testing.assert_array_equal(whole, one)


@pytest.mark.parametrize(
    ("code_ids", "error", "told"),
    [
        ([[0, 64]], ValueError, r"in \[0, 64\), got 0 to 64"),
        ([[-1, 1]], ValueError, r"in \[0, 64\), got -1 to 1"),
        ([[0.0, 1.0]], TypeError, "whole numbers, got float64"),
        ([0, 1], ValueError, r"\(rows, columns\)"),
        ([[]], ValueError, r"\(rows, columns\)"),
    ],
)
def test_codes_of_no_picture_are_refused_before_the_model_sees_them(vqvae_folder, code_ids, error, told):
    pipe = pipeline("image-tokenization", model=vqvae_folder)
    pipe.model.decode = None  # on a GPU it would stop the process
    with pytest.raises(error, match=told):
        pipe.decode(code_ids)


def test_saved_folder_works_and_asks_for_no_trust(folder, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))
    again = pipeline("image-tokenization", model=str(tmp_path))
    assert isinstance(again, ImageTokenizationPipeline)
    pictures = random_pictures(2)
    assert_same(grids_of(again(pictures)), grids_of(pipe(pictures)))


def test_half_precision_file_is_computed_in_float32_unless_asked(tmp_path):
    model = tiny_vqvae()
    folder = saved(model.half(), tmp_path)
    pipe = pipeline("image-tokenization", model=folder)
    assert {tensor.dtype for tensor in pipe.model.parameters()} == {torch.float32}
    pictures = random_pictures(4)
    wanted = pipeline("image-tokenization", model=folder, dtype=torch.float32)(pictures)
    assert_same(grids_of(pipe(pictures)), grids_of(wanted))
    assert pipeline("image-tokenization", model=folder, dtype=torch.float16).dtype == torch.float16


def test_model_without_codes_is_refused(tmp_path):
    VAEModel(VAEConfig()).save_pretrained(tmp_path / "vae")
    VAEImageProcessor().save_pretrained(tmp_path / "vae")
    told = r"got `VAEModel` without .*`config.num_codes`.*the latents of a VAE are continuous, it has no codes"
    with pytest.raises(ValueError, match=told):
        pipeline("image-tokenization", model=str(tmp_path / "vae"))
    config = VisionTransformerConfig(image_size=8, patch_size=4, hidden_size=8, num_attention_heads=2)
    VisionTransformerModel(config).save_pretrained(tmp_path / "vit")
    VisionTransformerImageProcessor().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="`VisionTransformerModel` without `encode`, `decode`"):
        pipeline("image-tokenization", model=str(tmp_path / "vit"))


def test_missing_or_foreign_image_processor_is_refused(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"wanted for .*{tmp_path.name}, got none"):
        pipeline("image-tokenization", model=str(tmp_path))
    with pytest.raises(ValueError, match=f"wanted for .*{tmp_path.name}, got `ViTImageProcessor`"):
        pipeline("image-tokenization", model=str(tmp_path), image_processor=StockImageProcessor())
