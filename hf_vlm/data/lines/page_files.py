"""What was read on pages, and the files that hold it: plain text, JSON, PAGE XML, ALTO, and the list of lines to correct.

PAGE: https://github.com/PRImA-Research-Lab/PAGE-XML, schema 2019-07-15. ALTO: https://www.loc.gov/standards/alto/, version 4.
`data/lines/page_lines.py` reads both back. Places are in px of the upright page: EXIF orientation is applied first.
"""

import contextlib
import csv
import json
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from PIL import Image

PageFormat = Literal["text", "json", "page", "alto"]
_SUFFIXES: dict[PageFormat, str] = {"text": ".txt", "json": ".json", "page": ".xml", "alto": ".xml"}
_PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
_ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
_NO_XML_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2

Polygon = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class LineText:
    """What was read in one line of a page.

    Attributes:
        text: the text; empty if the model abstained.
        score: confidence of the whole text in [0, 1].
        words: `{"word", "confidence"}` a word.
        polygon: corners (x, y) in px of the upright page, clockwise from where the line begins at the top.
        abstained: whether the model gave no text because its score lay below the asked threshold.
    """

    text: str
    score: float
    words: Sequence[Mapping[str, Any]]
    polygon: Polygon
    abstained: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The upright rectangle around the polygon: left, top, right, bottom in px, the last two not included."""
        return _box(self.polygon)

    def to_dict(self) -> dict[str, Any]:
        """The attributes and the box by name."""
        return {
            "text": self.text,
            "score": self.score,
            "words": [dict(word) for word in self.words],
            "polygon": [list(corner) for corner in self.polygon],
            "box": list(self.box),
            "abstained": self.abstained,
        }


@dataclass(frozen=True)
class PageText:
    """What was read on one page.

    Attributes:
        width, height: of the upright page in px.
        lines: in reading order.
    """

    width: int
    height: int
    lines: Sequence[LineText]

    @property
    def text(self) -> str:
        """The lines' texts, one below the other."""
        return "\n".join(line.text for line in self.lines if line.text)

    def to_dict(self) -> dict[str, Any]:
        """Size, text and lines by name."""
        lines = [line.to_dict() for line in self.lines]
        return {"width": self.width, "height": self.height, "text": self.text, "lines": lines}


def _box(corners: Polygon) -> tuple[int, int, int, int]:
    x, y = [corner[0] for corner in corners], [corner[1] for corner in corners]
    return math.floor(min(x)), math.floor(min(y)), math.ceil(max(x)), math.ceil(max(y))


def page_file(folder: Path, picture: Path, kind: PageFormat) -> Path:
    """Where `write_page` puts the page of a picture: its name with another suffix."""
    return folder / f"{picture.stem}{_SUFFIXES[kind]}"


def write_page(page: PageText, picture: Path, file: Path, kind: PageFormat) -> None:
    """Write what was read into a file, which is there whole or not at all.

    PAGE and ALTO name the picture by its path from the file's folder. Lines without text keep their place there.

    Args:
        picture: the page's picture file.
        kind: `text`, `json`, `page` (PAGE XML) or `alto`.

    Raises:
        OSError: if the file can't be written.
    """
    if kind == "text":
        content = f"{page.text}\n" if page.text else ""
    elif kind == "json":
        content = json.dumps({"file": str(picture), **page.to_dict()}, ensure_ascii=False, indent=1) + "\n"
    else:
        named = Path(os.path.relpath(picture.resolve(), file.parent.resolve())).as_posix()
        root = _page_xml(page, named) if kind == "page" else _alto_xml(page, named)
        ET.indent(root, " ")
        content = f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(content, encoding="utf-8", newline="\n")
        os.replace(unfinished, file)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _points(corners: Polygon) -> str:
    return " ".join(f"{x},{y}" for x, y in corners)


def _block(page: PageText) -> tuple[int, int, int, int]:
    """The upright rectangle around all lines."""
    return _box([corner for line in page.lines for corner in line.polygon])


def _xml_text(text: str) -> str:
    return _NO_XML_CHARACTER.sub("\ufffd", text)


def _page_xml(page: PageText, picture: str) -> ET.Element:
    root = ET.Element("PcGts", xmlns=_PAGE)
    metadata = ET.SubElement(root, "Metadata")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, value in (("Creator", "hf-vlm"), ("Created", now), ("LastChange", now)):
        ET.SubElement(metadata, name).text = value
    sheet = ET.SubElement(
        root, "Page", imageFilename=_xml_text(picture), imageWidth=str(page.width), imageHeight=str(page.height)
    )
    if not page.lines:
        return root
    region = ET.SubElement(sheet, "TextRegion", id="region")
    left, top, right, bottom = _block(page)
    ET.SubElement(region, "Coords", points=_points([(left, top), (right, top), (right, bottom), (left, bottom)]))
    for number, line in enumerate(page.lines, start=1):
        element = ET.SubElement(region, "TextLine", id=f"line_{number}")
        ET.SubElement(element, "Coords", points=_points(line.polygon))
        equivalent = ET.SubElement(element, "TextEquiv", conf=f"{line.score:.4f}")
        ET.SubElement(equivalent, "Unicode").text = _xml_text(line.text)
    return root


def _alto_xml(page: PageText, picture: str) -> ET.Element:
    root = ET.Element("alto", xmlns=_ALTO)
    description = ET.SubElement(root, "Description")
    ET.SubElement(description, "MeasurementUnit").text = "pixel"
    source = ET.SubElement(description, "sourceImageInformation")
    ET.SubElement(source, "fileName").text = _xml_text(picture)
    processing = ET.SubElement(description, "Processing", ID="processing")
    software = ET.SubElement(processing, "processingSoftware")
    ET.SubElement(software, "softwareName").text = "hf-vlm"
    layout = ET.SubElement(root, "Layout")
    size = {"WIDTH": str(page.width), "HEIGHT": str(page.height)}
    sheet = ET.SubElement(layout, "Page", {"ID": "page", "PHYSICAL_IMG_NR": "1", **size})
    space = ET.SubElement(sheet, "PrintSpace", {"HPOS": "0", "VPOS": "0", **size})
    if not page.lines:
        return root
    block = ET.SubElement(space, "TextBlock", {"ID": "block", **_alto_place(_block(page))})
    for number, line in enumerate(page.lines, start=1):
        element = ET.SubElement(block, "TextLine", {"ID": f"line_{number}", **_alto_place(line.box)})
        ET.SubElement(ET.SubElement(element, "Shape"), "Polygon", POINTS=_points(line.polygon))
        # Where a word stands is not known, only how sure the model is of it; a line has one `String` at least.
        words = line.words if line.text else [{"word": "", "confidence": line.score}]
        for place, word in enumerate(words):
            if place:
                ET.SubElement(element, "SP")
            ET.SubElement(element, "String", CONTENT=_xml_text(word["word"]), WC=f"{word['confidence']:.4f}")
    return root


def _alto_place(box: tuple[int, int, int, int]) -> dict[str, str]:
    left, top, right, bottom = box
    return {"HPOS": str(left), "VPOS": str(top), "WIDTH": str(right - left), "HEIGHT": str(bottom - top)}


class LinesToCorrect:
    """A CSV of the lines that the model is not sure of, for a person to correct and then to train on.

    One row a line: `file_name,text,score,page,left,top,right,bottom`, its picture in the folder `NAME_lines` beside
    NAME.csv, its place on the page in px, empty where the picture was the line. Each row is in the file as soon as it
    is added. `hf_vlm.data.lines.image_text.read_lines` reads the file, also as spreadsheets save it.
    UTF-8 with the mark that spreadsheets know it by. They take `3/4` for a date and `=a` for a formula: import the
    columns as text.

    Args:
        file: a new file, ending in .csv.
        below: a line belongs in the list if its score is lower; in [0, 1].

    Raises:
        FileExistsError: if the file or the folder is there: a person's corrections may be in it.
        ValueError: if the file is named otherwise or `below` is no probability.
    """

    columns = ("file_name", "text", "score", "page", "left", "top", "right", "bottom")

    def __init__(self, file: str | os.PathLike, below: float) -> None:
        self.file, self.below = Path(file), below
        self.folder = self.file.with_name(f"{self.file.stem}_lines")
        self.num_lines = 0
        self._stream: IO[str] | None = None
        if not 0 <= below <= 1:
            raise ValueError(f"`below` must be a probability in [0, 1], got {below}. Give 0.9, not 90.")
        if self.file.suffix != ".csv":
            raise ValueError(f"The list of lines to correct must be a .csv file, got {self.file}. Name one.")
        for there in (self.file, self.folder):
            if there.exists():
                raise FileExistsError(
                    f"The list of lines to correct must be new, got {there}, which exists. Choose another name, as it "
                    "may hold corrections."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._open()  # a list of none, if the model was sure of all
        if self._stream is not None:
            self._stream.close()

    def add(
        self,
        picture: Image.Image,
        text: str,
        score: float,
        page: str,
        box: tuple[int, int, int, int] | None = None,
    ) -> None:
        """List a line.

        Args:
            picture: of the line.
            text, score: what the model read, and how sure it is.
            page: file that it comes from.
            box: its place there in px.
        """
        stream = self._open()
        self.num_lines += 1
        file = self.folder / f"{self.num_lines:05}.png"
        picture.save(file)
        place = ("",) * 4 if box is None else box
        row = (f"{self.folder.name}/{file.name}", text, f"{score:.4f}", page, *place)
        csv.writer(stream).writerow(row)
        stream.flush()

    def _open(self) -> IO[str]:
        """The stream, its file made when first asked for: what fails before that leaves nothing behind."""
        if self._stream is None:
            self.folder.mkdir(parents=True)
            self._stream = self.file.open("x", encoding="utf-8-sig", newline="")
            csv.writer(self._stream).writerow(self.columns)
            self._stream.flush()
        return self._stream
