"""DALL-E's tokenizer, converted, against an independent statement of its architecture, and against the authors' own code."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from hf_vlm import DVAEModel
from tests.models.dvae.released_dalle import conversion, decode, encode, picture, random_tensors, write_release


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def is_zip(request) -> bool:
    return request.param


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """Squares of random colours with noise, which unlike noise alone give many different words."""
    squares = torch.rand(batch, 3, height // 8, width // 8).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return 0.8 * squares + 0.2 * torch.rand(batch, 3, height, width)


def check_parity(model: DVAEModel, pixel_values: torch.Tensor, logits: torch.Tensor, maps: torch.Tensor) -> None:
    """Logits, words and distribution of the pixels are those given."""
    words = logits.argmax(dim=1)
    assert len(words.unique()) > 2  # otherwise they say little
    torch.testing.assert_close(model.code_logits(pixel_values), logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.encode(pixel_values), words)
    pixels = model.pixels(model.decoder.lookup(words))
    torch.testing.assert_close(pixels.location, maps[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pixels.log_scale, maps[:, 3:].clamp(-7, 7), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(words), picture(maps), rtol=0, atol=1e-4)


@torch.no_grad()
def test_converted_tokenizer_is_the_released_architecture(tmp_path, monkeypatch, is_zip):
    encoder, decoder = random_tensors()
    files = write_release(tmp_path, encoder, decoder, is_zip)
    monkeypatch.setitem(sys.modules, "dall_e", None)  # any import of it would fail
    conversion().convert(*files, tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model, DVAEModel)
    pixel_values = pictures(2, 32, 48)
    logits = encode(encoder, pixel_values)
    check_parity(model, pixel_values, logits, decode(decoder, logits.argmax(dim=1)))


@torch.no_grad()
def test_converted_folder_prepares_pictures_for_its_model(tmp_path):
    conversion().convert(*write_release(tmp_path, *random_tensors()), tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(torch.randint(256, (3, 300, 280), dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 256, 256)
    assert AutoModel.from_pretrained(tmp_path / "out").encode(pixel_values).shape == (1, 32, 32)


def check_original_code(folder: Path, is_zip: bool, size: int, **settings: int) -> None:
    reason = "the extra `peers` brings the authors' code: pip install dall-e attrs"
    encoder_class = pytest.importorskip("dall_e.encoder", reason=reason).Encoder
    decoder_class = pytest.importorskip("dall_e.decoder", reason=reason).Decoder
    pixel_maps = pytest.importorskip("dall_e.utils", reason=reason)
    encoder = encoder_class(**settings)
    decoder = decoder_class(**settings)
    for name, tensor in [*encoder.named_parameters(), *decoder.named_parameters()]:
        tensor.data = tensor.data * 2 if name.endswith(".w") else 0.3 * torch.randn_like(tensor)
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        torch.save(module, folder / f"{name}.pkl", _use_new_zipfile_serialization=is_zip)
    model = conversion().convert(folder / "encoder.pkl", folder / "decoder.pkl", folder / "out").eval()
    pixel_values = pictures(1, size, size)
    logits = encoder(pixel_maps.map_pixels(pixel_values))
    maps = decoder(torch.eye(model.config.num_codes)[logits.argmax(dim=1)].movedim(-1, 1))
    check_parity(model, pixel_values, logits, maps)
    theirs = pixel_maps.unmap_pixels(maps[:, :3].sigmoid())
    torch.testing.assert_close(model.reconstruct(pixel_values), theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_converted_tokenizer_is_that_of_the_original_code(tmp_path, is_zip):
    check_original_code(tmp_path, is_zip, size=64, n_hid=8, vocab_size=32)


@pytest.mark.slow  # the published size: 98M parameters
@torch.no_grad()
def test_converted_tokenizer_is_that_of_the_original_code_when_of_the_published_size(tmp_path):
    check_original_code(tmp_path, is_zip=True, size=256)


def test_shared_and_strided_storages_are_read_as_their_tensors_see_them(tmp_path, is_zip):
    encoder, decoder = random_tensors()
    both = torch.randn(2, *encoder["blocks.input.w"].shape)
    encoder["blocks.input.w"] = both[1].transpose(2, 3)
    encoder["blocks.input.b"] = both[0, :, 0, 0, 0]
    model = conversion().convert(*write_release(tmp_path, encoder, decoder, is_zip), tmp_path / "out")
    assert torch.equal(model.encoder.input_layer.weight, both[1].transpose(2, 3))
    assert torch.equal(model.encoder.input_layer.bias, both[0, :, 0, 0, 0])


def test_half_precision_file_becomes_a_model_of_full_precision(tmp_path, is_zip):
    encoder, decoder = ({name: tensor.half() for name, tensor in part.items()} for part in random_tensors())
    model = conversion().convert(*write_release(tmp_path, encoder, decoder, is_zip), tmp_path / "out")
    assert model.dtype == torch.float32
    assert torch.equal(model.encoder.output_layer.weight, encoder["blocks.output.conv.w"].float())
