"""Whatever is uploaded is opened by our own reader, or told in words without the place where the page put it."""

import numpy as np
import pytest
from PIL import Image

from hf_vlm.demo.uploads import uploaded_picture


def halves(mode="RGB"):
    """Left half red, right half blue, 20 x 10."""
    picture = Image.new("RGB", (20, 10), "red")
    picture.paste("blue", (10, 0, 20, 10))
    return picture.convert(mode)


def near(pixel, colour):
    return np.abs(np.subtract(pixel, colour)).max() < 40


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "P"), ("jpg", "CMYK"), ("tiff", "CMYK"), ("webp", "RGBA")]
)
def test_picture_of_any_mode_comes_as_rgb(suffix, mode, tmp_path):
    file = tmp_path / f"x.{suffix}"
    halves(mode).save(file)
    picture = uploaded_picture(str(file))
    assert picture.mode == "RGB" and picture.size == (20, 10)
    assert near(picture.getpixel((2, 5)), (255, 0, 0)) and near(picture.getpixel((17, 5)), (0, 0, 255))


def test_picture_that_lies_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right by 90 degrees
    halves().save(tmp_path / "x.jpg", exif=exif)
    picture = uploaded_picture(str(tmp_path / "x.jpg"))
    assert picture.size == (10, 20)
    assert near(picture.getpixel((5, 2)), (255, 0, 0)) and near(picture.getpixel((5, 17)), (0, 0, 255))


def test_missing_upload_is_told():
    with pytest.raises(ValueError, match="got none. Upload one"):
        uploaded_picture(None)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.png", b"a text", "format that Pillow reads"),
        ("empty.png", b"", "empty file"),
        ("paper.pdf", b"%PDF-1.7 ...", "got a PDF"),
    ],
)
def test_file_that_is_no_picture_is_told_by_its_own_name(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        uploaded_picture(str(tmp_path / name))
    assert str(error.value).startswith(f"{name}: ") and str(tmp_path) not in str(error.value)


def test_huge_and_cut_off_pictures_are_told(tmp_path):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="^huge.png: wanted at most"):
        uploaded_picture(str(tmp_path / "huge.png"))
    halves().save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="^cut.png: .*cut short"):
        uploaded_picture(str(tmp_path / "cut.png"))
