"""Lines cut out of pages: pictures of whole pages with a file beside each that says where the lines are and what they say.

    X.jpg + X.txt   SROIE's task 2: `x1,y1,x2,y2,x3,y3,x4,y4,text` a line, the corners clockwise from the top left
    X.xml           PAGE (`PcGts`) or ALTO (`alto`), which names its picture or lies beside one of its own name; what
                    `data/lines/page_files.py` writes is read back

A folder may hold both; a text file of the name of an XML page is passed over, and so is, beside XML pages, one that does not
begin with a box. An XML file holds one page, and the size that it gives in px must be its picture's.

A line is the upright rectangle around its corners or polygon, cut to the page, which is turned upright first where EXIF says
how. Lines without text and boxes without area are left out; how many, the log says.
"""

import logging
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from PIL import Image, ImageOps

from hf_vlm.data.pictures import open_picture

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # in EXIF; 5 to 8 for pictures that lie on their side
_BAD_XML = (ET.ParseError, LookupError, ValueError)  # the last two for encodings that the parser does not know
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


@dataclass(frozen=True)
class PageLine:
    """One line on a page.

    Attributes:
        picture: file of the page.
        box: left, top, right, bottom in px, the last two not included; may reach beyond the page.
        text: as the file has it.
        source: file and place in it, for messages.
    """

    picture: Path
    box: tuple[int, int, int, int]
    text: str
    source: str

    @property
    def aspect(self) -> float:
        """Width by height of the box."""
        left, top, right, bottom = self.box
        return (right - left) / (bottom - top)

    def crop(self) -> Image.Image:
        """The line's picture.

        Raises:
            OSError: if the page's picture is missing.
            ValueError: if it is damaged, or the line lies beside it.
        """
        page = _page(str(self.picture))
        left, top, right, bottom = self.box
        inside = (max(left, 0), max(top, 0), min(right, page.width), min(bottom, page.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ValueError(
                f"{self.source}: the line must lie on the page of {page.width}x{page.height} px, got the box {self.box}. "
                f"Correct it, or check that {self.picture.name} is its picture."
            )
        return page.crop(inside)


@lru_cache(maxsize=4)
def _page(path: str) -> Image.Image:
    """The picture of a page, upright, kept, as its lines are mostly asked for one after another."""
    picture = open_picture(path)
    try:
        return ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, OSError):  # a damaged block says nothing about the picture beside it
        return picture


def is_page_folder(folder: Path) -> bool:
    """Whether a folder holds pages in one of the layouts above."""
    return folder.is_dir() and bool(_page_files(folder))


def read_pages(path: Path, on_bad_file: Callable[[Exception], None] | None = None) -> list[PageLine]:
    """The lines of one XML file, or of every page in a folder: pages in natural order of their names, lines as in the files.

    Args:
        on_bad_file: called with the error of each bad file, which is left out; None raises the first.

    Raises:
        FileNotFoundError: if a page's picture is missing.
        ValueError: if a file is damaged or a row malformed; names the file and the line.
    """
    files = [path] if path.is_file() else _page_files(path)
    lines: list[PageLine] = []
    left_out = 0
    for file in sorted(files, key=natural_order):
        try:
            of_page = list(_read_xml(file) if file.suffix.lower() == ".xml" else _read_sroie(file))
        except (ValueError, OSError) as error:
            if on_bad_file is None:
                raise
            on_bad_file(error)
            continue
        for line in of_page:
            left, top, right, bottom = line.box
            if right <= left or bottom <= top or not line.text.strip():
                left_out += 1
            else:
                lines.append(line)
    if left_out:
        logger.warning("%s: %d lines without text or area left out, %d read.", path, left_out, len(lines))
    return lines


def natural_order(file: Path) -> list[tuple[int, str]]:
    """A key that sorts page 2 before page 10."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.stem)]
    return [*parts, (-1, file.name)]


def _page_files(folder: Path) -> list[Path]:
    """The XML pages and the box files of a folder, in no particular order."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in (".xml", ".txt") and file.is_file()]
    pages = [file for file in files if file.suffix.lower() == ".xml" and _kind_of_xml(file)]
    named = {file.stem for file in pages}
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.stem not in named]
    with_picture = [file for file in texts if _picture_named(file.with_suffix(""))]
    if not pages and not with_picture:
        return []
    # One that lost its picture is told where it is read; notes and lists are passed over.
    return pages + [file for file in texts if _begins_with_box(file) or (not pages and file in with_picture)]


def _picture_named(stem: Path) -> Path | None:
    for suffix in _PICTURE_SUFFIXES:
        for picture in (stem.with_name(stem.name + suffix), stem.with_name(stem.name + suffix.upper())):
            if picture.is_file():
                return picture
    return None


def _read_sroie(file: Path) -> Iterator[PageLine]:
    picture = _picture_named(file.with_suffix(""))
    if picture is None:
        raise FileNotFoundError(
            f"{file}: wanted its picture {file.stem}.jpg in {file.parent}, got no such file. Add it, or remove the boxes."
        )
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text, got byte {error.start} that is not. Convert it.") from error
    for number, row in enumerate(content.split("\n"), start=1):
        source = f"{file}, line {number}"
        if not row.strip():
            continue
        box_and_text = _sroie_row(row)
        if box_and_text is None:
            raise ValueError(
                f"{source}: wanted `x1,y1,x2,y2,x3,y3,x4,y4,text` with whole px, got {row[:60]!r}. Correct the row."
            )
        yield PageLine(picture, *box_and_text, source)


def _sroie_row(row: str) -> tuple[tuple[int, int, int, int], str] | None:
    """The upright rectangle around the corners and the text; None for another row."""
    *corners, text = row.removesuffix("\r").split(",", 8)  # texts may hold commas too
    try:
        x, y = [int(edge) for edge in corners[::2]], [int(edge) for edge in corners[1::2]]
    except ValueError:
        return None
    return ((min(x), min(y), max(x), max(y)), text) if len(corners) == 8 else None


def _begins_with_box(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        first = next((row for row in stream if row.strip()), "")
    return _sroie_row(first) is not None


def _kind_of_xml(file: Path) -> str | None:
    """`pcgts` or `alto` by the first element; None for other files and damaged heads."""
    try:
        with file.open("rb") as stream:
            for _, element in ET.iterparse(stream, events=("start",)):
                name = _local(element.tag).lower()
                return name if name in ("pcgts", "alto") else None
    except _BAD_XML:
        found = re.search(rb"<(?:[\w.-]+:)?(pcgts|alto)\b", file.read_bytes()[:2000].lower())
        return found[1].decode() if found else None
    return None


def _read_xml(file: Path) -> list[PageLine]:
    """The lines of one PAGE or ALTO file, in its order.

    PAGE: https://github.com/PRImA-Research-Lab/PAGE-XML, `TextLine` with `Coords` and the first `TextEquiv` of the line,
    or of its words where the line has none. ALTO: https://www.loc.gov/standards/alto/, `TextLine` with `Shape` or
    HPOS, VPOS, WIDTH, HEIGHT in px, the text of its `String`s.

    Raises:
        FileNotFoundError: if the picture that the file names is missing, and none of the file's own name lies beside it.
        ValueError: if the file is damaged, of another kind, not of one page or one of another size than the picture, or a
            line has no place.
    """
    try:
        root = ET.parse(file).getroot()  # expat resolves no external entities
    except _BAD_XML as error:
        raise ValueError(f"{file} must be PAGE or ALTO XML, got text that isn't ({error}). Copy it again.") from error
    kind = _local(root.tag).lower()
    if kind not in ("pcgts", "alto"):
        raise ValueError(f"{file} must be PAGE (`PcGts`) or ALTO (`alto`) XML, got `{_local(root.tag)}`. Convert it.")
    pages = list(_descendants(root, "Page"))
    if len(pages) > 1:  # whose lines would all be cut out of one picture
        raise ValueError(f"{file}: one page a file is wanted, got {len(pages)}. Split it.")
    page = pages[0] if pages else ET.Element("Page")
    if kind == "pcgts":
        named = page.get("imageFilename", "")
        declared = page.get("imageWidth"), page.get("imageHeight")
    else:
        unit = next((element.text or "" for element in _descendants(root, "MeasurementUnit")), "pixel")
        if unit.strip().lower() != "pixel":
            raise ValueError(f"{file} must measure in `pixel`, got `{unit.strip()}`. Convert it.")
        named = next((element.text or "" for element in _descendants(root, "fileName")), "").strip()
        declared = page.get("WIDTH"), page.get("HEIGHT")
    # by its path from here, as `page_files.write_page` names it; by its name alone, as of a file that was moved
    places = [file.parent / named, file.parent / PureWindowsPath(named).name] if named else []
    picture = next((place for place in places if place.is_file()), None) or _picture_named(file.with_suffix(""))
    if picture is None:
        raise FileNotFoundError(
            f"{file}: wanted its picture {named or f'{file.stem}.jpg'} in {file.parent}, got no such file. Add it."
        )
    _check_size(file, picture, declared)
    lines = []
    for number, element in enumerate(_descendants(root, "TextLine"), start=1):
        source = f"{file}, line {element.get('id') or element.get('ID') or number}"
        box = _box(element)
        if box is None:
            raise ValueError(f"{source}: wanted the line's corners in px, got none that can be read. Correct it.")
        lines.append(PageLine(picture, box, _page_text(element) if kind == "pcgts" else _alto_text(element), source))
    return lines


def _check_size(file: Path, picture: Path, declared: tuple[str | None, str | None]) -> None:
    """Refuse a page whose size in px is not its picture's: its lines lie elsewhere, as on a scaled or another scan."""
    try:
        wanted = [float(side or "nan") for side in declared]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(picture) as head:
                size = head.size
                # asked for it, Pillow decodes a PNG file to look behind the pixels too
                if head.format != "PNG" or "exif" in head.info:
                    size = size[::-1] if head.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else size
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return  # `crop` tells what is wrong with the picture
    if not all(side > 0 for side in wanted):  # nan, or 0 as some tools write
        return
    if any(abs(side - actual) > 1 for side, actual in zip(wanted, size, strict=True)):
        raise ValueError(
            f"{file}: wanted a picture of {declared[0]}x{declared[1]} px as the file says, got {picture} of "
            f"{size[0]}x{size[1]} px. Scale it, or correct the file."
        )


def _local(tag: str) -> str:
    """An element's name without its namespace, which differs between versions."""
    return tag.rpartition("}")[2]


def _descendants(element: ET.Element, name: str) -> Iterator[ET.Element]:
    return (inner for inner in element.iter() if _local(inner.tag) == name)


def _children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    return (inner for inner in element if _local(inner.tag) == name)


def _box(line: ET.Element) -> tuple[int, int, int, int] | None:
    """The upright rectangle around a line's polygon, or its four numbers; None if neither can be read."""
    points = ""
    for coordinates in _children(line, "Coords"):
        points = coordinates.get("points", "")
        if not points:  # PAGE before 2013
            points = " ".join(f"{point.get('x')},{point.get('y')}" for point in _children(coordinates, "Point"))
    for shape in _children(line, "Shape"):
        points = next((polygon.get("POINTS", "") for polygon in _children(shape, "Polygon")), points)
    try:
        numbers = [float(number) for number in re.split(r"[\s,]+", points.strip()) if number]
        if not numbers and line.get("HPOS") is not None:
            left, top = float(line.get("HPOS", "")), float(line.get("VPOS", ""))
            numbers = [left, top, left + float(line.get("WIDTH", "")), top + float(line.get("HEIGHT", ""))]
    except ValueError:
        return None
    if len(numbers) < 4 or len(numbers) % 2 or not all(map(math.isfinite, numbers)):
        return None
    x, y = numbers[::2], numbers[1::2]
    return math.floor(min(x)), math.floor(min(y)), math.ceil(max(x)), math.ceil(max(y))


def _page_text(line: ET.Element) -> str:
    """The text of a PAGE line: its own, or its words'."""

    def rank(equivalent: ET.Element) -> float:
        try:
            return int(equivalent.get("index") or 0)
        except ValueError:
            return math.inf

    def own(element: ET.Element) -> str:
        equivalents = sorted(_children(element, "TextEquiv"), key=rank)
        for equivalent in equivalents:
            for unicode in _children(equivalent, "Unicode"):
                return unicode.text or ""
        return ""

    return own(line) or " ".join(filter(None, map(own, _children(line, "Word"))))


def _alto_text(line: ET.Element) -> str:
    """The text of an ALTO line: its strings, spaces and hyphen."""
    parts = []
    for element in line:
        name = _local(element.tag)
        if name in ("String", "HYP"):
            parts.append(element.get("CONTENT") or "")
        elif name == "SP":
            parts.append(" ")
    has_spaces = any(_local(element.tag) == "SP" for element in line)
    return ("" if has_spaces else " ").join(parts)
