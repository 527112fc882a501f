import base64

import pytest
from PIL import Image

from hf_vlm.data.pictures import open_picture
from tests.data.line_files import grey_picture, picture_bytes


def test_file_bytes_data_url_and_picture_give_the_same_pixels(tmp_path):
    data = picture_bytes(grey_picture(7, 5, 123))
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, url, grey_picture(7, 5, 123)):
        picture = open_picture(source)
        assert picture.size == (7, 5) and picture.mode == "L" and picture.getpixel((3, 3)) == 123


def test_mode_and_exif_stay_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: for the image processor to undo
    Image.new("L", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    picture = open_picture(tmp_path / "turned.jpg")
    assert picture.size == (8, 4) and picture.getexif()[0x0112] == 6


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: wanted a picture, got no such file"):
        open_picture(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got an empty file"),
        (b"This is a letter, not a picture.", "in a format that Pillow reads, got data that begins b'This is a lette"),
        (picture_bytes(Image.effect_noise((64, 64), 50))[:1500], "cut short or damaged"),
        (picture_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:1200], "cut short or damaged"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, data, message):
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(ValueError, match=rf"bad\.png: .*{message}"):
        open_picture(tmp_path / "bad.png")


@pytest.mark.parametrize("limit", [700, 400])  # 1,000 pixels: Pillow warns at 700, raises at 400
def test_pictures_above_pillows_limit_are_refused(monkeypatch, tmp_path, limit):
    grey_picture(50, 20).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"bomb\.png: wanted at most {limit} pixels"):
        open_picture(tmp_path / "bomb.png")


def test_folder_and_unreadable_urls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got a folder"):
        open_picture(tmp_path)
    with pytest.raises(ValueError, match="data URL that can't be read"):
        open_picture("data:image/png;base64,@@@")
    with pytest.raises(ValueError, match="http://127.0.0.1:9/a.png: wanted a picture, got no answer"):
        open_picture("http://127.0.0.1:9/a.png")


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="got int"):
        open_picture(7)


def test_the_given_name_stands_in_the_error():
    with pytest.raises(ValueError, match="lines.parquet, row 4: "):
        open_picture(b"no", name="lines.parquet, row 4")
