"""Results as HTML: nothing that a model or a file says becomes markup."""

import base64
import io
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hf_vlm.demo.markup import data_url, figures, lines_table, notes, ranked, sections

BAD = '<img src=x onerror="alert(1)">&'


@dataclass
class Line:
    score: float
    words: list = field(default_factory=list)


def word(text, confidence):
    return {"word": text, "confidence": confidence}


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_no_text_becomes_markup():
    picture = Image.new("RGB", (4, 4))
    pieces = [
        figures([(BAD, picture)]),
        lines_table([Line(0.5, [word(BAD, 0.1), word(BAD, 0.9)])]),
        ranked(BAD, [(BAD, 0.5)]),
        notes([BAD]),
        sections([BAD], {BAD: [(BAD, picture)]}),
    ]
    for piece in pieces:
        assert "&lt;img src=x" in piece and "<img src=x" not in piece
        assert not re.search(r'="[^"]*"alert', piece)


def test_small_picture_is_kept_pixel_by_pixel_and_a_large_one_is_near():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(opened(data_url(small))), np.asarray(small))
    large = Image.new("RGB", (600, 300), (10, 200, 90))
    assert opened(data_url(large)).size == (600, 300)
    assert np.abs(np.asarray(opened(data_url(large))).astype(int) - (10, 200, 90)).max() < 6


def test_figure_says_its_caption_to_those_who_do_not_see_it():
    told = figures([("one", Image.new("L", (4, 4))), ("a line", Image.new("L", (90, 4)))])
    assert re.findall(r'alt="([^"]*)"', told) == re.findall("<figcaption>([^<]*)<", told) == ["one", "a line"]
    assert re.findall(r'figure class="([^"]*)"', told) == ["small", "wide"]


def test_unsure_words_alone_are_marked_with_their_confidence():
    told = lines_table([Line(0.75, [word("sure", 0.9), word("perhaps", 0.25)]), Line(1.0)])
    assert re.findall("<mark>(.*?)</mark>", told) == ["perhaps <small>25.0 %</small>"]
    assert re.findall(r"<td>([\d.]+ %)</td>", told) == ["75.0 %", "100 %"]
    assert re.findall(r"<tr><td>(\d)</td>", told) == ["1", "2"]
    assert "(nothing)" in told and "No line" in lines_table([])


def test_bar_of_a_probability_is_as_long():
    assert re.findall(r"width: ([\d.]+)%", ranked("Class", [("a", 0.625), ("b", 0.0)])) == ["62.5", "0.0"]
