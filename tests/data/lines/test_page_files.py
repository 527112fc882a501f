"""What was read on a page, written and read back, and the list of lines for a person to correct."""

import csv
import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.data.lines.page_files import LinesToCorrect, LineText, PageText, page_file, write_page
from hf_vlm.data.lines.page_lines import read_pages

LINES = [
    LineText(
        'Caf\u00e9 & "co" <b>',
        0.91234,
        [{"word": word, "confidence": 0.5} for word in ("Caf\u00e9", "&", '"co"', "<b>")],
        [(5, 4), (30, 6), (30, 14), (5, 12)],
    ),
    LineText("", 0.2, [{"word": "unsure", "confidence": 0.2}], [(1, 15), (9, 15), (9, 19), (1, 19)], abstained=True),
    LineText("two", 1.0, [{"word": "two", "confidence": 1.0}], [(10, 20), (50, 20), (50, 30), (10, 30)]),
]
PAGE = PageText(60, 40, LINES)
PAGE_NAMESPACE = "{http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15}"
ALTO_NAMESPACE = "{http://www.loc.gov/standards/alto/ns-v4#}"


def scan(folder, name="scan.png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), "white").save(folder / name)
    return folder / name


@pytest.mark.parametrize("kind", ["page", "alto"])
@pytest.mark.parametrize("place", ["scans", "out/deep"])
def test_xml_is_read_back_with_the_same_texts_places_and_picture(kind, place, tmp_path):
    picture, folder = scan(tmp_path / "scans"), tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    file = page_file(folder, picture, kind)
    write_page(PAGE, picture, file, kind)
    assert file == folder / "scan.xml"
    read = read_pages(file)
    assert [(line.text, line.box) for line in read] == [(line.text, line.box) for line in LINES if line.text]
    assert [line.picture.resolve() for line in read] == [picture] * 2
    assert os.listdir(folder).count("scan.xml") == 1 and not list(folder.glob(".*"))
    assert list(read_lines(file).texts) == [LINES[0].text, "two"]


def test_page_has_what_its_schema_requires(tmp_path):
    picture = scan(tmp_path)
    write_page(PAGE, picture, tmp_path / "scan.xml", "page")
    root = ET.parse(tmp_path / "scan.xml").getroot()
    assert [child.tag.removeprefix(PAGE_NAMESPACE) for child in root] == ["Metadata", "Page"]
    assert [child.tag.removeprefix(PAGE_NAMESPACE) for child in root[0]] == ["Creator", "Created", "LastChange"]
    assert root[1].attrib == {"imageFilename": "scan.png", "imageWidth": "60", "imageHeight": "40"}
    (region,) = root[1]
    assert region[0].attrib == {"points": "1,4 50,4 50,30 1,30"}
    identities = [region.get("id"), *(line.get("id") for line in region.findall(f"{PAGE_NAMESPACE}TextLine"))]
    assert len(set(identities)) == 4 and None not in identities
    line = region[1]
    assert [child.tag.removeprefix(PAGE_NAMESPACE) for child in line] == ["Coords", "TextEquiv"]
    assert (line[0].get("points"), line[1].get("conf")) == ("5,4 30,6 30,14 5,12", "0.9123")
    assert line[1][0].text == LINES[0].text


def test_alto_has_what_its_schema_requires(tmp_path):
    picture = scan(tmp_path)
    write_page(PAGE, picture, tmp_path / "scan.xml", "alto")
    root = ET.parse(tmp_path / "scan.xml").getroot()
    assert [child.tag.removeprefix(ALTO_NAMESPACE) for child in root] == ["Description", "Layout"]
    assert root.findtext(f".//{ALTO_NAMESPACE}fileName") == "scan.png"
    page = root[1][0]
    assert page.attrib == {"ID": "page", "PHYSICAL_IMG_NR": "1", "WIDTH": "60", "HEIGHT": "40"}
    first, abstained, _ = root.iter(f"{ALTO_NAMESPACE}TextLine")
    assert {name: first.get(name) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")} == {
        "HPOS": "5", "VPOS": "4", "WIDTH": "25", "HEIGHT": "10",
    }  # fmt: skip
    strings = first.findall(f"{ALTO_NAMESPACE}String")
    assert [(string.get("CONTENT"), string.get("WC")) for string in strings] == [
        (word["word"], "0.5000") for word in LINES[0].words
    ]
    assert [string.get("CONTENT") for string in abstained.findall(f"{ALTO_NAMESPACE}String")] == [""]


@pytest.mark.parametrize("kind", ["page", "alto"])
def test_page_without_lines_and_characters_that_xml_lacks_are_written(kind, tmp_path):
    picture = scan(tmp_path)
    write_page(PageText(60, 40, []), picture, tmp_path / "empty.xml", kind)
    assert read_pages(tmp_path / "empty.xml") == []
    odd = LineText("a\x00b\ud800", 1.0, [{"word": "a\x00b\ud800", "confidence": 1.0}], LINES[0].polygon)
    write_page(PageText(60, 40, [odd]), picture, tmp_path / "odd.xml", kind)
    assert [line.text for line in read_pages(tmp_path / "odd.xml")] == ["a\ufffdb\ufffd"]


def test_text_and_json_files_hold_what_was_read(tmp_path):
    picture = scan(tmp_path)
    for kind in ("text", "json"):
        write_page(PAGE, picture, page_file(tmp_path, picture, kind), kind)
    assert (tmp_path / "scan.txt").read_text(encoding="utf-8") == 'Caf\u00e9 & "co" <b>\ntwo\n'
    told = json.loads((tmp_path / "scan.json").read_text(encoding="utf-8"))
    assert (told["file"], told["width"], told["height"]) == (str(picture), 60, 40)
    assert told["lines"][0]["box"] == [5, 4, 30, 14] and told["lines"][1]["abstained"]


def test_file_that_can_not_be_finished_leaves_the_one_before_whole(tmp_path, monkeypatch):
    picture = scan(tmp_path)
    write_page(PAGE, picture, tmp_path / "scan.txt", "text")

    def break_off(path, content, **settings):
        path.write_bytes(content.encode()[:3])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", break_off)
    with pytest.raises(OSError, match="disk full"):
        write_page(PageText(60, 40, LINES[2:]), picture, tmp_path / "scan.txt", "text")
    assert (tmp_path / "scan.txt").read_bytes().endswith(b"two\n")


def test_lines_to_correct_are_trained_on_as_a_person_left_them(tmp_path):
    file = tmp_path / "new" / "todo.csv"
    texts = ['a "quote", comma; semicolon', "caf\u00e9\u0153", " =1+1"]
    with LinesToCorrect(file, below=0.9) as todo:
        for level, text in enumerate(texts):
            todo.add(Image.new("RGB", (30, 10), (level, 0, 0)), text, 0.5, "scans/p.png", (1, 2, 31, 12))
            with file.open(encoding="utf-8-sig", newline="") as stream:  # there before the list is closed
                rows = list(csv.DictReader(stream))
            assert [row["text"] for row in rows] == texts[: level + 1]
    assert rows[0] == {
        "file_name": "todo_lines/00001.png", "text": texts[0], "score": "0.5000", "page": "scans/p.png",
        "left": "1", "top": "2", "right": "31", "bottom": "12",
    }  # fmt: skip
    for path in (file, file.parent):
        lines = read_lines(path)
        assert list(lines.texts) == [text.strip() for text in texts]
        assert [line["image"].getpixel((0, 0)) for line in lines] == [(level, 0, 0) for level in range(3)]


def test_list_of_lines_to_correct_is_never_written_over(tmp_path):
    with LinesToCorrect(tmp_path / "todo.csv", below=0.9):
        pass
    assert (tmp_path / "todo.csv").read_bytes().startswith(b"\xef\xbb\xbffile_name,text,")
    with pytest.raises(FileExistsError, match=r"must be new, got .*todo\.csv"):
        LinesToCorrect(tmp_path / "todo.csv", below=0.9)
    (tmp_path / "todo.csv").rename(tmp_path / "corrected.csv")
    with pytest.raises(FileExistsError, match="must be new, got .*todo_lines"):
        LinesToCorrect(tmp_path / "todo.csv", below=0.9)


def test_list_of_lines_to_correct_leaves_nothing_behind_if_reading_did_not_begin(tmp_path):
    with pytest.raises(OSError, match="no such model"):
        with LinesToCorrect(tmp_path / "todo.csv", below=0.9):
            raise OSError("no such model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "below", "message"), [("todo.txt", 0.9, "must be a .csv"), ("a.csv", 90, "got 90")])
def test_list_of_lines_to_correct_refuses_what_can_not_be_meant(name, below, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LinesToCorrect(tmp_path / name, below=below)
