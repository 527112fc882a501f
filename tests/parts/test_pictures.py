import io

import numpy as np
import pytest
from PIL import Image

from hf_vlm.parts.pictures import to_grayscale, to_rgb


def reopened(image: Image.Image, file_format: str, **kwargs: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kwargs)
    return Image.open(io.BytesIO(buffer.getvalue()))


def gradient(dtype: type, top: float) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


EXPECTED = np.linspace(0, 255, 64).reshape(8, 8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(gradient(np.uint16, 65535)),
        reopened(Image.fromarray(gradient(np.uint16, 65535)), "PNG"),
        reopened(Image.fromarray(gradient(np.uint16, 65535)), "TIFF"),
        Image.fromarray(gradient(np.int32, 65535)),
        Image.fromarray(gradient(np.int32, 2**31 - 1)),
        Image.fromarray(gradient(np.int32, 255)),
        Image.fromarray(gradient(np.float32, 1)),
        Image.fromarray(gradient(np.float32, 255)),
        Image.fromarray(gradient(np.float32, 65535)),
    ],
    ids=["16", "16 png", "16 tiff", "32 of 16", "32", "32 of 8", "float of 1", "float of 8", "float of 16"],
)
def test_wide_values_are_scaled_not_clipped(image: Image.Image) -> None:
    np.testing.assert_allclose(np.asarray(to_grayscale(image)), EXPECTED, atol=1)
    np.testing.assert_allclose(np.asarray(to_rgb(image))[:, :, 1], EXPECTED, atol=1)


def test_dark_16_bit_picture_stays_dark() -> None:
    dark = Image.fromarray(np.full((4, 4), 257 * 10, np.uint16))
    assert np.all(np.asarray(to_grayscale(dark)) == 10)


def test_float_picture_with_holes_is_black_there() -> None:
    values = np.array([[0.5, np.nan], [-3.0, 1.0]], np.float32)
    assert np.asarray(to_grayscale(Image.fromarray(values))).tolist() == [[128, 0], [0, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_lets_white_through(mode: str) -> None:
    """Black with alpha 0, 51 and 255: white, 80 % white, black."""
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 51, 255]
    image = Image.fromarray(rgba)
    if mode == "PA":
        alpha, image = image.getchannel("A"), image.convert("RGB").convert("P")
        image.putalpha(alpha)
    else:
        image = image.convert("LA").convert(mode) if mode in ("LA", "La") else image.convert(mode)
    assert image.mode == mode
    np.testing.assert_allclose(np.asarray(to_rgb(image))[0, :, 0], [255, 204, 0], atol=1)
    np.testing.assert_allclose(np.asarray(to_grayscale(image))[0], [255, 204, 0], atol=1)


def test_palette_with_a_transparent_colour_lets_white_through() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 250, 10, 20, 9, 9, 9])
    image = reopened(image, "PNG", transparency=0)
    assert image.mode == "P"
    assert np.asarray(to_rgb(image))[0].tolist() == [[255, 255, 255], [250, 10, 20], [9, 9, 9]]


def test_gray_picture_with_a_transparent_value_lets_white_through() -> None:
    image = reopened(Image.fromarray(np.array([[0, 7, 90]], np.uint8)), "PNG", transparency=0)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 7, 90]


def test_cmyk_becomes_the_colours_that_it_prints() -> None:
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert np.asarray(to_rgb(cmyk))[0, 0].tolist() == [255, 0, 0]
    white = reopened(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert np.asarray(to_rgb(white)).min() > 250
    assert np.asarray(to_grayscale(white)).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.kron(np.array([[10, 90, 160], [220, 60, 250]], np.uint8), np.ones((16, 16), np.uint8))
    # What a camera held so stores: the inverse of what viewers do (EXIF 2.3, table 4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file_format in ("JPEG", "PNG"):
        image = reopened(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=exif)
        np.testing.assert_allclose(np.asarray(to_grayscale(image)).astype(int), upright, atol=4)


def test_first_frame_of_a_freshly_opened_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        image = reopened(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert np.asarray(to_rgb(image))[0, 0].tolist() == [255, 0, 0], file_format


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_one_pixel_of_any_mode_is_fine(mode: str) -> None:
    image = Image.new(mode, (1, 1))
    assert (to_rgb(image).mode, to_rgb(image).size) == ("RGB", (1, 1))
    assert (to_grayscale(image).mode, to_grayscale(image).size) == ("L", (1, 1))


def test_right_mode_is_not_copied() -> None:
    gray, colour = Image.new("L", (2, 2)), Image.new("RGB", (2, 2))
    assert to_grayscale(gray) is gray
    assert to_rgb(colour) is colour


def test_grayscale_is_luma() -> None:
    assert to_grayscale(Image.new("RGB", (1, 1), (0, 255, 0))).getpixel((0, 0)) == 150


def test_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel, got 0 x 5"):
        to_rgb(Image.new("L", (0, 5)))


def test_damaged_exif_block_costs_nothing_but_the_orientation(tmp_path):
    picture = Image.new("RGB", (6, 4), "red")
    picture.save(tmp_path / "broken.png", exif=b"no exif at all")
    with Image.open(tmp_path / "broken.png") as broken:
        assert to_rgb(broken).size == (6, 4)
