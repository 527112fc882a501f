"""Reading whole pages: the lines found, their order, what is cut out, and that no page costs another."""

import itertools
import logging
import random
import re
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from hf_vlm.data.lines.page_files import LinesToCorrect, page_file
from hf_vlm.data.lines.page_lines import read_pages
from hf_vlm.pipelines import page_reading
from hf_vlm.pipelines.page_reading import PageReader, TextDetector, cut_line, in_reading_order, read_page_files
from hf_vlm.pipelines.picture_files import LineReader
from tests.tiny_pages import drawn_page, find_drawn_lines

TEXTS = ["a short line", "no", "a line that is longer", "1914-1918"]


@pytest.fixture(scope="module")
def reader(reader_folder):
    return PageReader(reader_folder, find_lines=find_drawn_lines, batch_size=3)


@pytest.fixture
def without_detector(monkeypatch):
    """`read_page_files` with a finder of drawn lines in place of the detector."""
    monkeypatch.setattr(page_reading, "TextDetector", lambda: find_drawn_lines)


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def turned(polygon, degrees, middle=(500, 500)):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (np.array(polygon) - middle) @ turn.T + middle
    return [(round(x), round(y)) for x, y in corners]


def test_lines_are_read_in_order_as_if_they_came_alone(reader, reader_folder):
    page = drawn_page(TEXTS)
    read = reader(page)
    boxes = [(*line[0], *line[2]) for line in find_drawn_lines(page)[::-1]]
    assert [line.box for line in read.lines] == boxes and len(boxes) == 4
    alone = [LineReader(reader_folder)([page.crop(box)])[0] for box in boxes]
    assert [line.text for line in read.lines] == [line.text for line in alone]
    assert [line.score for line in read.lines] == pytest.approx([line.score for line in alone], rel=1e-4)
    assert [line.words for line in read.lines] == [
        [{"word": word["word"], "confidence": pytest.approx(word["confidence"], rel=1e-3)} for word in line.words]
        for line in alone
    ]
    assert read.text == "\n".join(line.text for line in alone if line.text) and (read.width, read.height) == page.size


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "CMYK", "RGBA", "P"])
def test_page_is_read_whatever_its_mode(reader, tmp_path, mode):
    page = drawn_page(TEXTS[:2]).convert("1")
    if mode == "I;16":
        page = Image.fromarray(np.asarray(page).astype(np.uint16) * 60_000)
    elif mode == "RGBA":  # black ink on nothing
        page = Image.merge(
            "RGBA", [Image.new("L", page.size)] * 3 + [page.convert("L").point(lambda level: 255 - level)]
        )
    else:
        page = page.convert(mode)
    assert page.mode == mode
    page.save(tmp_path / "page.tif")
    read = reader(tmp_path / "page.tif")
    assert [line.box for line in read.lines] == [line.box for line in reader(drawn_page(TEXTS[:2]).convert("1")).lines]


def test_page_that_exif_turns_is_read_as_it_is_seen(reader, tmp_path):
    page = drawn_page(TEXTS)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    page.rotate(90, expand=True).save(tmp_path / "page.png", exif=exif)
    read = reader(str(tmp_path / "page.png"))
    assert read == reader(page) and (read.width, read.height) == page.size


def test_page_without_lines_has_no_text(reader):
    assert reader(Image.new("RGB", (50, 40), "white")).text == ""
    assert reader(Image.new("RGB", (1, 1), "white")).lines == []


def test_lines_are_cut_to_the_page_and_those_without_area_left_out(reader_folder):
    found = [
        box(-20, 10, 300, 40),
        box(50, 50, 50, 90),
        box(10, 300, 90, 320),
        box(10, 60, 90, 60),
        box(5, 90, 60, 110),
    ]
    read = PageReader(reader_folder, find_lines=lambda page: found)(Image.new("RGB", (200, 120), "white"))
    assert [line.box for line in read.lines] == [(0, 10, 200, 40), (5, 90, 60, 110)]


def test_abstaining_reader_gives_no_text_but_the_place(reader_folder):
    read = PageReader(reader_folder, find_lines=find_drawn_lines, abstain_below=1.0)(drawn_page(TEXTS))
    assert read.text == "" and [line.abstained for line in read.lines] == [True] * 4
    assert any(line.words for line in read.lines)


@pytest.mark.parametrize("degrees", [-8, -2, 0, 3, 8])
def test_reading_order_follows_rows_on_a_slanted_page(degrees):
    rows = [
        [box(100, 100, 900, 140)],
        [box(100, 160, 300, 195), box(420, 168, 600, 200), box(700, 155, 900, 200)],
        [box(100, 215, 880, 250)],
        [box(100, 270, 250, 310), box(600, 275, 900, 300)],
    ]
    wanted = [turned(line, degrees) for row in rows for line in row]
    for seed in range(5):
        shuffled = random.Random(seed).sample(wanted, len(wanted))
        assert in_reading_order(shuffled) == wanted
    assert in_reading_order([]) == []


def test_level_line_is_cut_out_exactly_and_slanted_one_turned_level():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cut = cut_line(Image.fromarray(pixels), box(5, 7, 65, 27))
    assert np.array_equal(np.asarray(cut), pixels[7:27, 5:65])

    flag = Image.new("RGB", (1000, 1000), "white")
    stripes = ["red", "green", "blue", "black"]
    for number, colour in enumerate(stripes):
        ImageDraw.Draw(flag).polygon(turned(box(300 + 100 * number, 480, 400 + 100 * number, 520), 7), fill=colour)
    cut = cut_line(flag, turned(box(300, 480, 700, 520), 7))
    assert abs(cut.width - 400) <= 1 and abs(cut.height - 40) <= 1
    for number, colour in enumerate(stripes):
        for y in (4, 20, 35):
            assert cut.getpixel((100 * number + 50, y)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


TWO_COLUMNS = [box(left, 50 + 40 * row, left + 380, 80 + 40 * row) for row in range(8) for left in (50, 500)]


def columns_of_prose(number, *, ragged=0.0):
    """Equal columns with gaps of a tenth, their lines up to a share `ragged` shorter, every seventh ending a paragraph."""
    draw, pitch, lines = random.Random(number), 900 / number, []
    for row in range(20):
        for column in range(number):
            share = 0.5 if row % 7 == column % 7 else 1 - ragged * draw.random()
            lines.append(
                box(
                    round(50 + pitch * column), 50 + 30 * row, round(50 + pitch * (column + 0.9 * share)), 72 + 30 * row
                )
            )
    return lines


def table(lefts, widths):
    """Cells of these widths, in turn, in twelve rows."""
    turns = itertools.cycle(widths)
    return [box(left, 50 + 40 * row, left + next(turns), 80 + 40 * row) for row in range(12) for left in lefts]


PAGES = {
    "two columns": (TWO_COLUMNS, "of one column is wanted"),
    "two columns below a headline": ([box(50, 0, 880, 40), *TWO_COLUMNS], "of one column is wanted"),
    "on its side": ([box(50 + 40 * row, 50, 80 + 40 * row, 500) for row in range(8)], "an upright page is wanted"),
    "one column": ([box(50, 50 + 40 * row, 400 + 30 * row, 80 + 40 * row) for row in range(8)], None),
    "receipt": ([box(left, 50 + 40 * row, right, 80 + 40 * row)
                 for row in range(8) for left, right in ((50, 420), (760, 880))], None),
    "page number and letters": ([box(50, 50, 60, 70), box(50, 90, 400, 120), box(200, 200, 212, 230)], None),
    **{f"{number} columns of prose": (columns_of_prose(number), "of one column is wanted") for number in range(2, 9)},
    **{f"{number} ragged columns": (columns_of_prose(number, ragged=0.3), "of one column is wanted")
       for number in range(2, 9)},
    "four columns below two headlines": ([box(50, 0, 900, 20), box(200, 22, 700, 42), *columns_of_prose(4)],
                                         "of one column is wanted"),
    "table of short cells": (table((50, 220, 390, 560, 730), (90, 60, 110, 75, 100, 40, 85)), None),
    "table of numbers": (table(range(50, 900, 110), (70,)), None),
    "table that begins with names": (table((50, 420, 560, 700), (340, 80, 80, 80)), None),
    "receipt of long names": ([box(left, 50 + 40 * row, right, 80 + 40 * row) for row in range(12)
                               for left, right in ((50, 300 + 61 * (row * 7 % 5)), (600, 700))], None),
    "one I": ([box(50, 50, 60, 90)], None),
    "lines broken in two": ([*TWO_COLUMNS[:6], *(box(50, 400 + 40 * row, 880, 430 + 40 * row) for row in range(8))], None),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAGES)
def test_page_that_is_not_supported_is_named_and_no_other(kind, reader_folder, caplog):
    found, warning = PAGES[kind]
    reader = PageReader(reader_folder, find_lines=lambda page: found, num_beams=1)
    with caplog.at_level(logging.WARNING):
        read = reader(Image.new("RGB", (1000, 800), "white"), name="scan 7")
    assert len(read.lines) == len(found)
    assert [record.getMessage().startswith("scan 7: ") for record in caplog.records] == [True] * bool(warning)
    assert warning is None or warning in caplog.text


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-vlm\[ocr\]'"):
        PageReader("no-model-is-asked-for")


@pytest.fixture
def mixed_folder(tmp_path):
    """Nine good pages and three broken ones."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(1, 13):
        drawn_page(TEXTS[: number % 5]).save(folder / f"page {number}.jpg", quality=95)
    (folder / "page 2.jpg").write_bytes((folder / "page 1.jpg").read_bytes()[:900])
    (folder / "page 5.jpg").write_bytes(b"")
    (folder / "page 11.jpg").write_text("no picture")
    (folder / "._page 1.jpg").write_text("what macOS leaves on foreign disks")
    (folder / "notes.txt").write_text("no picture, nor named like one")
    return folder


@pytest.mark.parametrize("kind", ["text", "page", "alto", "json"])
def test_broken_pages_cost_nothing_but_themselves(mixed_folder, reader_folder, without_detector, tmp_path, kind):
    out, bad = tmp_path / "out", {2, 5, 11}
    written = set()
    for number, result in enumerate(read_page_files([mixed_folder], model=reader_folder, out=out, kind=kind), start=1):
        assert result.file == str(mixed_folder / f"page {number}.jpg")
        if number in bad:
            assert result.error.startswith(result.file) and "\n" not in result.error and result.page is None
        else:
            assert len(result.page.lines) == number % 5
            written.add(result.written)
        assert set(out.iterdir()) == written  # each is there before the next page is begun
    assert number == 12 and len(written) == 9
    if kind in ("page", "alto"):
        texts = {line.source.partition(",")[0]: line.text for line in read_pages(out)}
        assert set(texts) <= set(map(str, written)) and texts


def test_stopped_run_goes_on_and_leaves_corrected_files_alone(
    mixed_folder, reader_folder, without_detector, tmp_path, caplog
):
    run = read_page_files([mixed_folder], model=reader_folder, out=tmp_path / "out")
    first = next(run)
    run.close()
    first.written.write_text("corrected by hand")
    with caplog.at_level(logging.WARNING):
        again = [result.file for result in read_page_files([mixed_folder], model=reader_folder, out=tmp_path / "out")]
    assert first.written.read_text() == "corrected by hand"
    assert len(again) == 11 and first.file not in again
    assert "1 of 12 pages are in" in caplog.text


def test_pages_that_would_share_a_file_are_refused_before_any_is_read(reader_folder, without_detector, tmp_path):
    drawn_page(TEXTS).save(tmp_path / "a.png")
    drawn_page(TEXTS).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png, which would both be written to .*a\.xml"):
        next(read_page_files([tmp_path], model=reader_folder, out=tmp_path / "out", kind="page"))
    assert not (tmp_path / "out").exists()
    assert len(list(read_page_files([tmp_path], model=reader_folder))) == 2  # nothing is written


def test_detector_that_fails_costs_its_page_only(reader_folder, monkeypatch, tmp_path):
    def fail_on_wide(page):
        if page.width > 300:
            raise RuntimeError("out of memory")
        return find_drawn_lines(page)

    monkeypatch.setattr(page_reading, "TextDetector", lambda: fail_on_wide)
    drawn_page(TEXTS, (400, 200)).save(tmp_path / "1.png")
    drawn_page(TEXTS).save(tmp_path / "2.png")
    wide, other = read_page_files([tmp_path], model=reader_folder)
    assert wide.error.startswith(str(tmp_path / "1.png")) and "out of memory" in wide.error
    assert len(other.page.lines) == 4


@pytest.mark.parametrize("kind", ["text", "alto"])
def test_page_that_can_not_be_written_costs_itself_only(reader_folder, without_detector, tmp_path, kind):
    out = tmp_path / "out"
    names = [f"{'a' * 250}.png", "b.png", "c.png"]
    for name in names:
        drawn_page(TEXTS[:1]).save(tmp_path / name)
    target = page_file(out, tmp_path / "b.png", kind)
    target.mkdir(parents=True)
    too_long, taken, good = read_page_files(
        [tmp_path / name for name in names], model=reader_folder, out=out, kind=kind
    )
    for result in (too_long, taken):
        assert result.error.startswith(f"{result.file}: wanted to write its page into {out}") and result.written is None
    assert good.error is None and good.written.is_file()
    assert set(out.iterdir()) == {target, good.written}


def test_pdf_and_further_pages_of_a_tiff_are_named(reader_folder, without_detector, tmp_path, caplog):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n...")
    drawn_page(TEXTS[:1]).save(tmp_path / "b.tif", save_all=True, append_images=[drawn_page(TEXTS)])
    with caplog.at_level(logging.WARNING):
        pdf, tiff = read_page_files([tmp_path], model=reader_folder)
    assert re.search(r"a\.pdf: wanted a picture, got a PDF\. .*`pdftoppm -r 300 -png a\.pdf a`", pdf.error)
    assert len(tiff.page.lines) == 1
    assert "b.tif: one page a file is wanted, got 2; the first is read" in caplog.text


def test_unsure_lines_of_pages_are_listed_with_their_pictures(mixed_folder, reader_folder, without_detector, tmp_path):
    scores = [line.score for result in read_page_files([mixed_folder], model=reader_folder) if result.page
              for line in result.page.lines]  # fmt: skip
    below = sorted(scores)[len(scores) // 2]
    with LinesToCorrect(tmp_path / "todo.csv", below) as to_correct:
        list(read_page_files([mixed_folder], model=reader_folder, to_correct=to_correct))
    assert to_correct.num_lines == sum(score < below for score in scores) > 0
    rows = (tmp_path / "todo.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(rows) == 1 + to_correct.num_lines
    left, top, right, bottom = map(int, rows[1].split(",")[-4:])
    assert Image.open(tmp_path / "todo_lines" / "00001.png").size == (right - left, bottom - top)


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("rapidocr", reason="the extra `ocr` finds lines")
    return TextDetector()


def overlap(one, other):
    """Intersection over union of two upright boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("size", [(500, 300), (1000, 600)], ids=["enlarged", "as it is"])
def test_detector_finds_drawn_lines_where_they_are(detector, size):
    page, font = Image.new("RGB", size, "white"), ImageFont.load_default(size=24)
    drawn = []
    for number, text in enumerate(["The crisis of the drama", "is approaching, he said", "at half past nine."]):
        ImageDraw.Draw(page).text((40, 40 + 70 * number), text, fill="black", font=font)
        drawn.append(ImageDraw.Draw(page).textbbox((40, 40 + 70 * number), text, font=font))
    found = in_reading_order(detector(page))
    assert len(found) == 3
    for polygon, wanted in zip(found, drawn, strict=True):
        assert overlap((*polygon[0], *polygon[2]), wanted) > 0.6


def test_detector_finds_nothing_on_blank_pages_of_any_shape(detector):
    for size in ((300, 200), (1, 1), (400, 12), (12, 400)):
        assert detector(Image.new("RGB", size, "white")) == []


def test_detector_asks_for_no_network(detector, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    TextDetector()(Image.new("RGB", (64, 64), "white"))


def test_out_that_can_be_no_folder_is_told(line_files, reader_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="A folder to write to is wanted, got .*file, which can't be made"):
        next(read_page_files(line_files, model=reader_folder, out=tmp_path / "file"))
