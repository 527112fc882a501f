"""A picture through a tokenizer, as the page shows it."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm import VAEImageProcessor, VAEModel
from hf_vlm.demo.coding import code_picture, draw_codes, reconstruct
from hf_vlm.pipelines.token_files import load_tokenizer
from tests.demo.tiny_folders import model_folders  # noqa: F401 (a fixture)
from tests.tiny_tokenizers import random_pictures

# ruff: noqa: F811 (a fixture's name is an argument's name)


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_codes_and_picture_are_those_of_the_model(model_folders):
    pipe, _ = load_tokenizer(model_folders["tokens"])
    (picture,) = random_pictures(1)
    coded = code_picture(pipe, picture)
    prepared = pipe.image_processor([picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        code_ids = pipe.model.encode(prepared)
        again = pipe.model.decode(code_ids)[0]
    assert np.array_equal(coded.code_ids, code_ids[0])
    seen, _, made = (picture for _, picture in coded.panels)
    assert np.abs(pixels(seen) - 255 * prepared[0].movedim(0, -1).numpy()).max() <= 1
    assert np.abs(pixels(made) - 255 * again.clamp(0, 1).movedim(0, -1).numpy()).max() <= 1
    error = np.abs(pixels(seen) - pixels(made)).mean()
    assert f"differs by {error:.1f} of 255" in coded.summary
    assert f"2 x 2 codes, {len(set(code_ids.flatten().tolist()))} different ones, of 64" in coded.summary


def test_same_codes_have_one_colour_and_others_another():
    code_ids = np.arange(512).reshape(16, 32)
    drawn = pixels(draw_codes(code_ids))
    assert drawn.shape == (16 * 16, 32 * 16, 3)
    squares = drawn.reshape(16, 16, 32, 16, 3)
    assert (squares == squares[:, :1, :, :1]).all()
    colours = squares[:, 0, :, 0].reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 500
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 30  # neighbours in number can be told apart
    alone = pixels(draw_codes(np.array([[7, 300], [300, 7]])))
    assert (
        (alone[0, 0] == colours[7]).all()
        and (alone[0, -1] == colours[300]).all()
        and (alone[-1, -1] == colours[7]).all()
    )


@pytest.fixture(scope="module")
def autoencoder(model_folders):
    folder = model_folders["latents"]
    return VAEModel.from_pretrained(folder).eval(), VAEImageProcessor.from_pretrained(folder)


def test_picture_is_made_again_of_its_likeliest_latents(autoencoder):
    model, processor = autoencoder
    (picture,) = random_pictures(1)
    (_, seen), (_, again) = reconstruct(model, processor, picture)
    prepared = processor([picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.decode(model.encode(prepared))[0].clamp(0, 1).movedim(0, -1).numpy()
    assert np.abs(pixels(again) - 255 * expected).max() <= 1
    assert np.abs(pixels(seen) - 255 * prepared[0].movedim(0, -1).numpy()).max() <= 1


def test_way_between_two_pictures_begins_and_ends_at_them(autoencoder):
    first, second = random_pictures(2)
    panels = reconstruct(*autoencoder, first, second, 5)
    assert [name for name, _ in panels][1:-1] == [f"{share} % of the way" for share in (0, 25, 50, 75, 100)]
    ends = [reconstruct(*autoencoder, picture)[1][1] for picture in (first, second)]
    assert np.abs(pixels(panels[1][1]) - pixels(ends[0])).max() <= 1
    assert np.abs(pixels(panels[-2][1]) - pixels(ends[1])).max() <= 1


def test_pictures_of_other_sizes_and_modes_are_taken(autoencoder, model_folders):
    wide = Image.new("RGB", (300, 20), "red")
    assert len(reconstruct(*autoencoder, wide, Image.new("RGB", (5, 90)), 3)) == 5
    assert code_picture(load_tokenizer(model_folders["tokens"])[0], wide).code_ids.shape == (2, 2)
