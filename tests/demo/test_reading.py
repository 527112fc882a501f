"""Reading on the page: a line or a page by the picture's shape, and boxes where the lines are."""

import logging

import numpy as np
import pytest
from PIL import Image

from hf_vlm import PageReader, default_ocr_model
from hf_vlm.demo.reading import read_picture
from tests.demo.tiny_folders import drawn_line
from tests.tiny_pages import drawn_page, find_drawn_lines

BLUE = (29, 78, 216)


@pytest.fixture(scope="module")
def reader():
    """The package's own, with a finder of lines that needs no detector."""
    return PageReader(default_ocr_model(), find_lines=find_drawn_lines)


def is_blue(picture):
    return (np.abs(np.asarray(picture).astype(int) - BLUE) < 40).all(axis=-1)


def test_wide_picture_is_read_as_one_line_and_another_as_a_page(reader):
    line = read_picture(reader, drawn_line("a short line of text"))
    assert line.page.text == "a short line of text"
    assert line.page.lines[0].box == (0, 0, *line.shown.size) and not is_blue(line.shown).any()
    page = read_picture(reader, drawn_page(["a cat", "two dogs ran"]))
    assert len(page.page.lines) == 2 and page.page.lines[0].text == "a cat"
    assert ["one line" in line.notes[0], "a page" in page.notes[0]] == [True, True]


def test_choice_goes_over_the_shape(reader):
    line = drawn_line("a short line of text")
    assert read_picture(reader, line, "A page").notes == []
    squeezed = line.resize((line.width, line.width // 4))
    assert len(read_picture(reader, squeezed, "One line").page.lines) == 1


def test_boxes_are_drawn_around_the_lines(reader):
    page = drawn_page(["a cat", "two dogs ran"])
    found = read_picture(reader, page)
    left, top, right, bottom = found.page.lines[1].box
    blue = is_blue(found.shown)
    for x in (left, right):
        assert blue[(top + bottom) // 2, x - 2 : x + 3].any()
    for y in (top, bottom):
        assert blue[y - 2 : y + 3, (left + right) // 2].any()
    assert not blue[: found.page.lines[0].box[1] - 4].any()


def test_boxes_of_a_large_page_lie_where_the_lines_are_on_the_smaller_one_shown(reader):
    page = drawn_page(["a cat"], size=(260, 100)).resize((2600, 1000))
    found = read_picture(reader, page, "A page")
    assert found.shown.size == (1600, 615) and (found.page.width, found.page.height) == (2600, 1000)
    left, top, right, bottom = (round(side * 1600 / 2600) for side in found.page.lines[0].box)
    blue = is_blue(found.shown)
    assert blue[(top + bottom) // 2, right - 3 : right + 4].any() and not blue[:, right + 8 :].any()


def test_what_the_reader_warns_of_is_told(reader):
    def find(page):
        logging.getLogger("hf_vlm.pipelines.page_reading").warning("%s: it has columns.", "the page")
        return []

    found = read_picture(PageReaderOf(reader, find), Image.new("RGB", (60, 60), "white"), "A page")
    assert found.notes == ["the page: it has columns."] and found.page.text == ""
    assert not [
        handler for handler in logging.getLogger("hf_vlm.pipelines").handlers if handler.level == logging.WARNING
    ]


class PageReaderOf(PageReader):
    """Another's lines, found otherwise."""

    def __init__(self, reader, find_lines):
        self.find_lines, self.read_lines, self.batch_size = find_lines, reader.read_lines, 4
