"""Whole pictures pass, and what is cut short, damaged or no picture is refused by its name."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_vlm.data import picture_checks
from hf_vlm.data.conversations.conversation_files import ConversationError
from hf_vlm.data.picture_checks import check_picture, open_head

KINDS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]


def picture(kind, **settings):
    """The bytes of a picture that doesn't compress."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_passes_and_one_cut_short_does_not(kind):
    data = picture(kind)
    check_picture(data)
    assert open_head(data).size == (30, 40)
    for length in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ConversationError, match=r"wanted a (whole )?picture, got a\.x, which begins") as told:
            check_picture(data[:length], "a.x")
        assert told.value.kind == "unreadable pictures"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_common_formats_are_not_decoded(kind, monkeypatch):
    data = picture(kind)
    head = picture_checks.open_head(data)
    monkeypatch.setattr(type(head), "load", lambda picture: pytest.fail("it was decoded"))
    assert picture_checks._is_surely_whole(head, data)


def test_the_end_of_a_picture_within_is_not_taken_for_the_end():
    notes = Image.Exif()
    notes[0x010E] = b"\xff\xd8\xff\xd9" * 4  # as a preview in EXIF has it
    data = picture("JPEG", exif=notes)
    assert data.index(b"\xff\xd9") < 300
    check_picture(data)
    check_picture(data + b"\0" * 5000)  # what cameras add
    with pytest.raises(ConversationError, match="wanted a whole picture"):
        check_picture(data[: len(data) // 2])


def test_a_picture_without_its_mark_passes_if_it_can_be_decoded():
    check_picture(picture("GIF") + b"\0\0")


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(ConversationError, match="wanted a whole picture"):
        check_picture(bytes(data))


def test_what_is_no_picture_is_told():
    with pytest.raises(ConversationError, match=r"got page\.png, which begins b'<html>'"):
        check_picture(b"<html>", "page.png")
    with pytest.raises(ConversationError, match=r"got an empty file a\.png"):
        check_picture(b"", "a.png")
