import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor, VisionTransformerImageProcessorPil

PROCESSORS = [VisionTransformerImageProcessor, VisionTransformerImageProcessorPil]
LINES = {"size": {"height": 16, "width": 256}, "do_convert_grayscale": True, "keep_aspect_ratio": True}


def noise(height: int, width: int, channels: int = 0) -> Image.Image:
    shape = (height, width, channels) if channels else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(params=PROCESSORS)
def processor_class(request):
    return request.param


def test_pictures_come_out_at_one_size_normalised(processor_class) -> None:
    white, black = Image.new("L", (40, 30), 255), Image.new("RGB", (7, 80), 0)
    features = processor_class()([white, black], return_tensors="pt")
    assert set(features) == {"pixel_values"}
    assert features["pixel_values"].shape == (2, 3, 32, 32)
    assert features["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(features["pixel_values"][0], torch.ones(3, 32, 32))
    torch.testing.assert_close(features["pixel_values"][1], -torch.ones(3, 32, 32))


def test_lines_keep_their_aspect_ratio_and_are_padded_with_white(processor_class) -> None:
    pictures = [Image.new("L", (100, 32), 0), Image.new("L", (20, 8), 0), Image.new("L", (30, 16), 0)]
    features = processor_class(**LINES)(pictures, return_tensors="pt")
    assert features["pixel_values"].shape == (3, 1, 16, 64)  # the widest is 50, the next multiple of 32 is 64
    assert features["pixel_mask"].dtype == torch.int64
    assert features["pixel_mask"].shape == (3, 16, 64)
    for pixels, mask, width in zip(features["pixel_values"], features["pixel_mask"], (50, 40, 30), strict=True):
        assert torch.all(mask[:, :width] == 1) and torch.all(mask[:, width:] == 0)
        assert torch.all(pixels[..., :width] == -1) and torch.all(pixels[..., width:] == 1)


def test_line_alone_equals_line_in_a_batch(processor_class) -> None:
    processor = processor_class(**LINES)
    together = processor([noise(20, 90), noise(9, 140)], return_tensors="pt")
    alone = processor(noise(20, 90), return_tensors="pt")
    width = alone["pixel_mask"].sum(dim=-1).max()
    assert width == 72
    assert torch.equal(alone["pixel_values"][0, ..., :width], together["pixel_values"][0, ..., :width])


def test_line_of_the_wanted_height_is_left_as_it_is(processor_class) -> None:
    picture = noise(16, 50)
    pixels = processor_class(**LINES)(picture, return_tensors="pt")["pixel_values"][0, 0, :, :50]
    np.testing.assert_allclose(pixels * 127.5 + 127.5, np.asarray(picture), atol=1e-3)


@pytest.mark.parametrize(("size", "width"), [((1, 1), 16), ((20_000, 10), 256), ((20_000, 1), 256), ((1, 20_000), 1)])
def test_extreme_shapes_are_squeezed_into_the_canvas(processor_class, size: tuple[int, int], width: int) -> None:
    features = processor_class(**LINES)(Image.new("L", size, 200), return_tensors="pt")
    assert features["pixel_mask"].sum() == 16 * width
    assert features["pixel_values"].shape[-1] <= 256
    assert processor_class()(Image.new("L", size, 200), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("settings", [{}, LINES], ids=["fixed", "lines"])
def test_unusual_pictures_are_processed_rightly(processor_class, settings: dict) -> None:
    """Each is white on the left half and black on the right, in its own way."""
    half = np.zeros((16, 64), np.uint8)
    half[:, :32] = 255
    gray = Image.fromarray(half)
    rgba = np.zeros((16, 64, 4), np.uint8)
    rgba[:, 32:, 3] = 255  # the left half is black but transparent
    palette = Image.fromarray((half == 0).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.info["transparency"] = 0
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    turned = io.BytesIO()
    gray.rotate(180).save(turned, "PNG", exif=exif)
    pictures = {
        "16 bits": Image.fromarray(half.astype(np.uint16) * 257),
        "cmyk": gray.convert("RGB").convert("CMYK"),
        "rgba": Image.fromarray(rgba),
        "palette": palette,
        "exif": Image.open(turned),
        "one bit": gray.convert("1"),
        "numpy": half[None],
        "numpy rgb": np.stack([half] * 3, axis=-1),
        "tensor": torch.from_numpy(half)[None].repeat(3, 1, 1),
    }
    processor = processor_class(**settings)
    channels = 1 if settings else 3
    for name, picture in pictures.items():
        pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
        width = pixels.shape[-1]
        assert pixels.shape[0] == channels, name
        assert pixels[..., : width // 2 - 2].min() > 0.95, name
        assert pixels[..., width // 2 + 2 :].max() < -0.95, name


def test_colour_arrays_become_luma(processor_class) -> None:
    green = np.zeros((16, 16, 3), np.uint8)
    green[..., 1] = 255
    for picture in (green, torch.from_numpy(green), Image.fromarray(green)):
        pixels = processor_class(**LINES)(picture, return_tensors="pt")["pixel_values"][..., :16]
        torch.testing.assert_close(pixels, torch.full_like(pixels, 150 / 127.5 - 1))


def test_settings_survive_their_file(processor_class, tmp_path) -> None:
    processor_class(**LINES, pad_multiple=64).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["pad_multiple"] == 64
    for reloaded_class in PROCESSORS:
        reloaded = reloaded_class.from_pretrained(tmp_path)
        assert reloaded(noise(16, 10), return_tensors="pt")["pixel_values"].shape == (1, 1, 16, 64)
        assert reloaded.model_input_names == ["pixel_values", "pixel_mask"]


def test_backends_agree_within_rounding() -> None:
    pictures = [noise(40, 200), noise(23, 90)]
    torchvision_features, pil_features = (
        processor(**LINES)([picture.resize(picture.size) for picture in pictures], return_tensors="pt")
        for processor in PROCESSORS
    )
    assert torch.equal(torchvision_features["pixel_mask"], pil_features["pixel_mask"])
    torch.testing.assert_close(torchvision_features["pixel_values"], pil_features["pixel_values"], atol=0.03, rtol=0)


def test_float_arrays_in_zero_to_one_are_padded_with_white(processor_class) -> None:
    pictures = [np.zeros((1, 16, 20), np.float32), np.zeros((1, 16, 40), np.float32)]
    features = processor_class(**LINES, do_rescale=False)(
        pictures, return_tensors="pt", input_data_format="channels_first"
    )
    assert torch.all(features["pixel_values"][0, ..., 20:] == 1)
    assert torch.all(features["pixel_values"][0, ..., :20] == -1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 16, "width": 250}}, "a multiple of `pad_multiple`, 32, got .*250"),
        ({"size": {"shortest_edge": 16}}, "must have a height and a width"),
        ({"do_center_crop": True, "crop_size": 8}, "got `do_center_crop` as well"),
    ],
)
def test_settings_that_cannot_work_are_refused(processor_class, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor_class(**{**LINES, **settings})(noise(16, 20), return_tensors="pt")


def test_array_with_strange_channels_is_refused(processor_class) -> None:
    with pytest.raises(ValueError, match="must have 1 or 3 channels, got 4"):
        processor_class(**LINES)(np.zeros((16, 20, 4), np.uint8), return_tensors="pt")
