"""Lines cut out of pages: SROIE's boxes, PAGE and ALTO, in the shapes that their tools write."""

import logging

import numpy as np
import pytest
from PIL import Image

from hf_vlm.data.lines.image_text import find_splits, read_lines

SIZE = (60, 40)


def page_picture(path):
    """A page whose every pixel has its own colour, so that a crop tells where it was cut."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1).astype(np.uint8)).save(path)


def place_of(crop):
    """(left, top, right, bottom) of a crop of `page_picture`."""
    pixels = np.asarray(crop)
    (left, top), (right, bottom) = pixels[0, 0, :2].tolist(), pixels[-1, -1, :2].tolist()
    return left, top, right + 1, bottom + 1


PAGE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">
  <Page imageFilename="scan.png" imageWidth="60" imageHeight="40">
    <TextRegion id="r1"><Coords points="0,0 60,0 60,40 0,40"/>
      <TextLine id="l1"><Coords points="5,4 30,6 30,14 5,12"/><Baseline points="5,11 30,13"/>
        <Word id="w1"><Coords points="5,4 9,4 9,9 5,9"/><TextEquiv><Unicode>wrong</Unicode></TextEquiv></Word>
        <TextEquiv index="1"><Unicode>second reading</Unicode></TextEquiv>
        <TextEquiv index="0"><Unicode>Caf&#x65;&#x301; &amp; co</Unicode></TextEquiv></TextLine>
      <TextLine id="l2"><Coords points="10,20 50,20 50,30 10,30"/>
        <Word id="w2"><TextEquiv><Unicode>two</Unicode></TextEquiv></Word>
        <Word id="w3"><TextEquiv><Unicode>words</Unicode></TextEquiv></Word></TextLine>
      <TextLine id="l3"><Coords points="10,31 50,31 50,39"/><TextEquiv><Unicode> </Unicode></TextEquiv></TextLine>
    </TextRegion></Page></PcGts>"""
ALTO_XML = """<?xml version="1.0" encoding="UTF-8"?>
<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><MeasurementUnit>pixel</MeasurementUnit>
  <sourceImageInformation><fileName>C:/scans/scan.png</fileName></sourceImageInformation></Description>
  <Layout><Page WIDTH="60" HEIGHT="40"><PrintSpace><TextBlock ID="b">
    <TextLine ID="l1" HPOS="1" VPOS="2" WIDTH="3" HEIGHT="4"><Shape><Polygon POINTS="5,4 30,6 30,14 5,12"/></Shape>
      <String CONTENT="Caf\u00e9"/><SP/><String CONTENT="&amp;"/><SP/><String CONTENT="co"/></TextLine>
    <TextLine ID="l2" HPOS="10" VPOS="20" WIDTH="40" HEIGHT="10">
      <String CONTENT="two"/><String CONTENT="words"/></TextLine>
  </TextBlock></PrintSpace></Page></Layout></alto>"""
SROIE = "5,4,30,4,30,14,5,14,Caf\u00e9 & co\r\n10,20,50,20,50,30,10,30,two, words\r\n7,7,7,7,7,7,7,7,none\r\n"


@pytest.mark.parametrize("content", [PAGE_XML, ALTO_XML], ids=["PAGE", "ALTO"])
@pytest.mark.parametrize("given", ["folder", "file", "split"])
def test_lines_of_an_xml_page_are_cut_out_by_their_polygons(content, given, tmp_path):
    folder = tmp_path / "train" if given == "split" else tmp_path
    page_picture(folder / "scan.png")
    (folder / "page.xml").write_text(content, encoding="utf-8")
    path = folder / "page.xml" if given == "file" else tmp_path
    lines = read_lines(path, split="train" if given == "split" else None)
    assert list(lines.texts) == ["Caf\u00e9 & co", "two words"]
    assert [place_of(line["image"]) for line in lines] == [(5, 4, 30, 14), (10, 20, 50, 30)]
    assert lines[1]["source"].endswith("page.xml, line l2")
    assert lines.aspect(1) == 4


def test_sroie_rows_split_at_eight_commas_and_pages_come_in_natural_order(tmp_path, caplog):
    for name in ("X10", "X2"):
        page_picture(tmp_path / "test" / f"{name}.jpg")
        (tmp_path / "test" / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + SROIE.encode())
    with caplog.at_level(logging.WARNING):
        lines = read_lines(tmp_path, split="test")
    assert list(lines.texts) == ["Caf\u00e9 & co", "two, words"] * 2
    assert [line["source"].rpartition("/")[2] for line in lines][::2] == ["X2.txt, line 1", "X10.txt, line 1"]
    assert lines[1]["image"].size == (40, 10)
    assert "2 lines without text or area left out, 4 read" in caplog.text


def test_line_that_reaches_over_the_page_is_cut_to_it_and_one_beside_it_is_named(tmp_path):
    page_picture(tmp_path / "a.png")
    rows = ["-5,-5,20,-5,20,10,-5,10,over", "70,0,90,0,90,9,70,9,beside"]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    lines = read_lines(tmp_path)
    assert place_of(lines[0]["image"]) == (0, 0, 20, 10)
    with pytest.raises(
        ValueError, match=r"a\.txt, line 2: the line must lie on the page of 60x40 px, got the box \(70"
    ):
        lines[1]


BAD_FILES = {
    "short row": ("a.txt", "1,2,3,4,text", "a.txt, line 1: wanted `x1,y1"),
    "no numbers": ("a.txt", "1,2,3,4,5,6,x,8,text", "a.txt, line 1: wanted `x1,y1"),
    "cut XML": ("a.xml", PAGE_XML[:600], "a.xml must be PAGE or ALTO XML"),
    "no corners": (
        "a.xml",
        PAGE_XML.replace('points="10,20 50,20 50,30 10,30"', 'points="a,b"'),
        "line l2: wanted the",
    ),
    "ALTO in mm": ("a.xml", ALTO_XML.replace("pixel", "mm10"), "must measure in `pixel`, got `mm10`"),
    "two pages in PAGE": (
        "a.xml",
        PAGE_XML.replace("</Page>", "</Page><Page/>"),
        "a.xml: one page a file is wanted, got 2",
    ),
    "two pages in ALTO": (
        "a.xml",
        ALTO_XML.replace("</Page>", "</Page><Page/>"),
        "a.xml: one page a file is wanted, got 2",
    ),
    "PAGE of a larger scan": (
        "a.xml",
        PAGE_XML.replace("scan", "a").replace('"60"', '"120"').replace('"40"', '"80"'),
        r"a.xml: wanted a picture of 120x80 px as the file says, got .*a.png of 60x40 px",
    ),
    "ALTO two px higher": ("a.xml", ALTO_XML.replace('"40"><Print', '"42"><Print'), "wanted a picture of 60x42 px"),
    "unknown encoding": ("a.xml", PAGE_XML.replace("UTF-8", "UTF-9"), "a.xml must be PAGE or ALTO XML"),
    "multi-byte encoding": ("a.xml", ALTO_XML.replace("UTF-8", "Shift_JIS"), "a.xml must be PAGE or ALTO XML"),
    "only empty lines": ("a.txt", "5,4,30,4,30,14,5,14, ", "must hold lines with text, got none"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_page_file_is_named(kind, tmp_path):
    name, content, message = BAD_FILES[kind]
    page_picture(tmp_path / "a.png")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('imageWidth="60" imageHeight="40"', 'imageWidth="61" imageHeight="39"'),  # rounded otherwise
        ('imageWidth="60" imageHeight="40"', ""),
        ('imageWidth="60" imageHeight="40"', 'imageWidth="0" imageHeight="0"'),
        ('index="1"', 'index="a"'),
        ('index="1"', 'index="2.5"'),
    ],
)
def test_page_is_read_in_spite_of_what_does_not_matter(old, new, tmp_path):
    page_picture(tmp_path / "scan.png")
    (tmp_path / "a.xml").write_text(PAGE_XML.replace(old, new), encoding="utf-8")
    assert read_lines(tmp_path).texts == ["Caf\u00e9 & co", "two words"]


def test_what_only_has_the_name_of_a_page_is_passed_over(tmp_path):
    page_picture(tmp_path / "scan.png")
    (tmp_path / "a.XML").write_text(PAGE_XML, encoding="utf-8")
    (tmp_path / "b.xml").mkdir()
    (tmp_path / "c.xml").symlink_to(tmp_path / "gone.xml")
    (tmp_path / "d.xml").write_text('<?xml version="1.0" encoding="Shift_JIS"?><html/>')
    (tmp_path / "e.txt").mkdir()
    assert len(read_lines(tmp_path)) == len(read_lines(tmp_path / "a.XML")) == 2
    with pytest.raises(ValueError, match="b.xml must hold gt_"):
        read_lines(tmp_path / "b.xml")


@pytest.mark.parametrize("stray", ["page", "boxes", "notes"])
def test_metadata_is_not_hidden_by_a_page_file_or_notes(stray, tmp_path):
    page_picture(tmp_path / "scan.png")
    name, content = {"page": ("a.xml", PAGE_XML), "boxes": ("scan.txt", SROIE), "notes": ("scan.txt", "blurred")}[stray]
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("file_name,text\nscan.png,one\n")
    assert read_lines(tmp_path).texts == ["one"]
    (tmp_path / "train").mkdir()
    for file in [*tmp_path.glob("*.*")]:
        file.rename(tmp_path / "train" / file.name)
    assert read_lines(tmp_path, "train").texts == ["one"]
    assert find_splits(tmp_path) == ["train"]


def test_folder_of_xml_pages_and_boxes_gives_both(tmp_path):
    for name in ("scan", "receipt", "notes"):
        page_picture(tmp_path / f"{name}.png")
    (tmp_path / "scan.xml").write_text(PAGE_XML, encoding="utf-8")
    (tmp_path / "scan.txt").write_text(SROIE, encoding="utf-8")  # of a page that is read already
    (tmp_path / "receipt.txt").write_text(SROIE.replace("two", "three"), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no boxes")
    assert read_lines(tmp_path).texts == ["Caf\u00e9 & co", "three, words", "Caf\u00e9 & co", "two words"]


def test_boxes_that_lost_their_picture_are_told_and_other_texts_passed_over(tmp_path):
    page_picture(tmp_path / "X1.jpg")
    for name, content in (("X1.TXT", SROIE), ("zz.txt", SROIE), ("README.txt", "About these receipts, all 2 of them")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    faults = []
    assert len(read_lines(tmp_path, on_bad_row=faults.append)) == 2
    assert len(faults) == 1 and "zz.txt: wanted its picture zz.jpg" in str(faults[0])
    with pytest.raises(FileNotFoundError, match="zz.txt: wanted its picture"):
        read_lines(tmp_path)


def test_page_without_its_picture_is_named(tmp_path):
    (tmp_path / "a.xml").write_text(PAGE_XML, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="a.xml: wanted its picture scan.png"):
        read_lines(tmp_path)


def test_xml_of_another_kind_is_refused_and_passed_over_in_a_folder(tmp_path):
    (tmp_path / "a.xml").write_text("<html/>")
    with pytest.raises(ValueError, match="must be PAGE .* or ALTO .* got `html`"):
        read_lines(tmp_path / "a.xml")
    with pytest.raises(ValueError, match="must hold gt_"):
        read_lines(tmp_path)


def test_page_that_exif_turns_is_cut_as_it_is_seen(tmp_path):
    page_picture(tmp_path / "seen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.open(tmp_path / "seen.png").rotate(90, expand=True).save(tmp_path / "scan.png", exif=exif)
    (tmp_path / "a.xml").write_text(PAGE_XML, encoding="utf-8")
    assert place_of(read_lines(tmp_path / "a.xml")[0]["image"]) == (5, 4, 30, 14)
    (tmp_path / "a.xml").write_text(
        PAGE_XML.replace('"60" imageHeight="40"', '"40" imageHeight="60"'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="wanted a picture of 40x60 px as the file says, got .*scan.png of 60x40 px"):
        read_lines(tmp_path / "a.xml")
