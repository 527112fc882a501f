"""Reading whole pages: where the lines are, by RapidOCR's detector, and what they say, by our reader.

page, upright, in RGB
  -> `TextDetector`: the four corners of every line
  -> `in_reading_order`: rows from top to bottom, in a row from left to right
  -> `cut_line`: each line turned level
  -> `LineReader`: lines of like width in a batch
  -> `PageText`

Not supported: pages turned by 90 or 180 degrees, and pages of several columns, which are read across. Pages that lie on their
side or seem to have columns are named by a warning; one that stands on its head shows in low scores only. A slant of
some degrees is fine.
"""

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_vlm.data.lines.page_files import LinesToCorrect, LineText, PageFormat, PageText, Polygon, page_file, write_page
from hf_vlm.data.pictures import open_picture
from hf_vlm.models.trocr.recognition import RecognizedText
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.pipelines.picture_files import LineReader, Precision, listed_pictures, open_picture_file

logger = logging.getLogger(__name__)

# The detector's time grows with the pixels, its finds do not: 90 lines on an A4 page of 300 dpi are all found at this size.
_DETECTION_PIXELS = 1.5e6
_DETECTION_SHORT_SIDE = 736  # smaller pictures are enlarged to it, as RapidOCR does by default, ...
_MAX_ENLARGED = 2  # ... but not further, as letters of a hundred px are lines of their own

# A page lies on its side if it has at least so many lines, most of them by length so much taller than wide, ...
_MIN_LINES = 3
_TALL = 1.5
# ... and has columns if a gap parts at least so many lines on each side, so wide in shares of the written width, with at
# most such a share of all lines crossing it. Prices on a receipt are narrower.
_MIN_COLUMN_LINES = 4
_MIN_COLUMN_WIDTH = 0.25
_MAX_CROSSING = 0.2
# Narrower columns are told from a table's or receipt's by being alike and full: the narrowest at least so wide by the widest,
# half of each one's lines at least so wide by it, and so wide by high, all together at least so wide by the written width.
_MIN_LIKENESS = 0.5
_MIN_FILLED = 0.75
_MIN_COLUMN_ASPECT = 3
_MIN_WRITTEN = 0.8


class TextDetector:
    """Finds the lines of a page with the detector that comes with the package rapidocr; nothing is downloaded.

    Raises:
        ImportError: if rapidocr or onnxruntime is missing; the message names the extra that brings them.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR

            self._engine = RapidOCR(
                params={
                    "Global.log_level": "error",
                    "Global.use_preprocess_img": False,  # `__call__` chooses the size
                    "Global.use_vertical_padding": False,  # black, so that the page itself looks like a line
                    "Det.limit_type": "max",
                    "Det.limit_side_len": 10**9,
                }
            )
        except ImportError as error:
            raise ImportError(
                f"Reading pages needs the packages rapidocr and onnxruntime, got: {error}. "
                "Run `pip install 'hf-vlm[ocr]'`."
            ) from error

    def __call__(self, page: Image.Image) -> list[Polygon]:
        """The corners of every line in px, clockwise from the top left, in no particular order.

        Args:
            page: upright, in mode RGB.
        """
        height = max(page.height, page.width // 8)  # strips, such as one line, are given paper above and below
        enlarged = min(max(_DETECTION_SHORT_SIDE / min(page.width, height), 1), _MAX_ENLARGED)
        scale = min(math.sqrt(_DETECTION_PIXELS / (page.width * height)), enlarged)
        width, height, padded = (max(round(side * scale), 1) for side in (*page.size, height))
        pixels = np.asarray(page.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3))
        above = (padded - height) // 2
        pixels = np.pad(pixels, ((above, padded - height - above), (0, 0), (0, 0)), mode="edge")
        found: Any = self._engine(pixels[..., ::-1], use_det=True, use_cls=False, use_rec=False)  # wants BGR
        if found.boxes is None:
            return []
        corners = (found.boxes - (0, above)) * np.divide(page.size, (width, height))  # (lines, 4, 2)
        corners = np.rint(corners).astype(int)
        return [[(x, y) for x, y in line] for line in corners.tolist()]


class PageReader:
    """Reads whole pages: `PageReader()(picture)` is a `PageText`. See the module for what it does not do.

    Args:
        model: folder or Hub name; None means the one that comes with the package.
        find_lines: gives the corners of the lines of an RGB page, four a line, clockwise from where the line begins at
            the top, in px; None means `TextDetector()`.
        batch_size: lines at a time.
        num_beams, abstain_below, precision: as for `LineReader`.

    Raises:
        ImportError: if the extra `ocr` is missing, which finds the lines.
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if the model's files are damaged or do not belong together.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        find_lines: Callable[[Image.Image], Sequence[Polygon]] | None = None,
        batch_size: int = 16,
        num_beams: int | None = None,
        abstain_below: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.find_lines = TextDetector() if find_lines is None else find_lines
        self.read_lines = LineReader(model, num_beams=num_beams, abstain_below=abstain_below, precision=precision)
        self.batch_size = batch_size

    def __call__(self, picture: str | Path | bytes | Image.Image, *, name: str | None = None) -> PageText:
        """Read one page; without any line its text is empty.

        Args:
            picture: path, http(s) or data URL, bytes of a file, or PIL picture.
            name: what to call it in warnings and errors; by default the path or URL.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it can't be read, or the detector fails on it.
        """
        name = name or (str(picture) if isinstance(picture, str | Path) else "the page")
        page = to_rgb(open_picture(picture, name=name))
        try:
            found = self.find_lines(page)
        except Exception as error:  # of another package: costs this page, not those after it
            raise ValueError(
                f"{name}: wanted a page of {page.width} x {page.height} px on which lines can be looked for, got an error "
                f"of the detector ({error}). Save it anew, or scale it."
            ) from error
        polygons = in_reading_order(_on_page(found, page))
        _warn_if_not_supported(polygons, name)
        texts = self._read([cut_line(page, polygon) for polygon in polygons])
        lines = [
            LineText(read.text, read.score, read.words, polygon, read.abstained)
            for read, polygon in zip(texts, polygons, strict=True)
        ]
        return PageText(page.width, page.height, lines)

    def _read(self, pictures: Sequence[Image.Image]) -> list[RecognizedText]:
        """The texts in order, read by batches of like width, as a batch is as wide as its widest line."""
        order = sorted(range(len(pictures)), key=lambda index: pictures[index].width / pictures[index].height)
        texts: dict[int, RecognizedText] = {}
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            texts.update(zip(batch, self.read_lines([pictures[index] for index in batch]), strict=True))
        return [texts[index] for index in range(len(pictures))]


def _on_page(found: Sequence[Polygon], page: Image.Image) -> list[Polygon]:
    """The lines cut to the page, those without area left out."""
    lines: list[Polygon] = []
    for polygon in found:
        corners = [(min(max(x, 0), page.width), min(max(y, 0), page.height)) for x, y in polygon]
        x, y = zip(*corners, strict=True)
        if max(x) > min(x) and max(y) > min(y):
            lines.append(corners)
    return lines


def in_reading_order(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Lines sorted into rows from top to bottom, and from left to right in a row.

    Rows have the page's slant, the median of the lines' own. A line is in a row if the middles differ in height by less
    than half a line.
    """
    if not polygons:
        return []
    corners = np.asarray(polygons, dtype=float)  # (lines, 4, 2)
    run, rise = (corners[:, 1] - corners[:, 0]).T
    slant = np.median(rise[run > 0] / run[run > 0]) if (run > 0).any() else 0.0
    across, down = corners.mean(axis=1).T
    level = down - slant * across  # height of each middle on the page turned level
    heights = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
    rows: list[list[int]] = []
    for index in np.argsort(level, kind="stable"):
        row = rows[-1] if rows else []
        if row and level[index] - level[row].mean() < min(heights[index], np.median(heights[row])) / 2:
            row.append(index)
        else:
            rows.append([index])
    return [polygons[index] for row in rows for index in sorted(row, key=lambda index: across[index])]


def cut_line(page: Image.Image, polygon: Polygon) -> Image.Image:
    """The line's picture, turned level, its corners those of the polygon, on a page in mode RGB."""
    top_left, top_right, bottom_right, bottom_left = polygon
    width = round(max(math.dist(top_left, top_right), math.dist(bottom_left, bottom_right)))
    height = round(max(math.dist(top_left, bottom_left), math.dist(top_right, bottom_right)))
    return page.transform(
        (max(width, 1), max(height, 1)),
        Image.Transform.QUAD,
        (*top_left, *bottom_left, *bottom_right, *top_right),
        resample=Image.Resampling.BICUBIC,
        fillcolor="white",
    )


def _warn_if_not_supported(polygons: Sequence[Polygon], name: str) -> None:
    if len(polygons) < _MIN_LINES:
        return
    corners = np.asarray(polygons, dtype=float)
    (left, top), (right, bottom) = corners.min(axis=1).T, corners.max(axis=1).T
    width, height = right - left, bottom - top
    if np.maximum(width, height)[height > _TALL * width].sum() > np.maximum(width, height).sum() / 2:
        logger.warning(
            "%s: an upright page is wanted, got one whose lines are taller than wide. Turn it by 90 degrees.", name
        )
    elif _has_columns(left, right, top, bottom):
        logger.warning(
            "%s: a page of one column is wanted, got what looks like several, and its lines are read across them. "
            "Cut it into its columns.",
            name,
        )


def _has_columns(left: np.ndarray, right: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> bool:
    """Whether gaps from top to bottom part lines of text, given the sides of all: each float (lines,)."""
    written = right.max() - left.min()
    for gap in np.unique(right):
        before, after = right <= gap, left > gap
        if min(before.sum(), after.sum()) < _MIN_COLUMN_LINES or (~before & ~after).mean() > _MAX_CROSSING:
            continue
        widths = [np.median(right[side] - left[side]) for side in (before, after)]
        if min(widths) > _MIN_COLUMN_WIDTH * written and _num_beside(before, after, top, bottom) >= _MIN_COLUMN_LINES:
            return True
    return _has_narrow_columns(left, right, top, bottom)


def _num_beside(one: np.ndarray, other: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> int:
    """How many of two sets of lines, the fewer, stand beside a line of the other; the sets bool (lines,)."""
    beside = (top[one, None] < bottom[other]) & (bottom[one, None] > top[other])  # (lines of one, lines of other)
    return min(beside.any(axis=0).sum(), beside.any(axis=1).sum())


def _has_narrow_columns(left: np.ndarray, right: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> bool:
    """Whether the lines stand in two or more columns that are alike and full: arguments as of `_has_columns`."""
    edges = np.unique(np.concatenate([left, right]))
    stretches = (edges[1:] + edges[:-1]) / 2
    num_lines = ((left < stretches[:, None]) & (right > stretches[:, None])).sum(axis=1)  # of each stretch
    is_written = num_lines > _MAX_CROSSING * num_lines.max()  # by more than headlines, which cross the gaps
    turns = np.diff(np.pad(is_written.astype(int), 1))  # of each edge
    begins, ends = edges[turns > 0], edges[turns < 0]
    middle, width = (left + right) / 2, right - left
    columns, widths = [], []
    for begin, end in zip(begins, ends, strict=True):
        column = (begin < middle) & (middle < end) & (width < 1.5 * (end - begin))
        if column.sum() < _MIN_COLUMN_LINES:
            continue
        if np.median(width[column]) < max(
            _MIN_FILLED * (end - begin), _MIN_COLUMN_ASPECT * np.median((bottom - top)[column])
        ):
            return False
        columns.append(column)
        widths.append(end - begin)
    return (
        len(columns) > 1
        and min(widths) > _MIN_LIKENESS * max(widths)
        and sum(widths) > _MIN_WRITTEN * (right.max() - left.min())
        and all(_num_beside(one, other, top, bottom) >= _MIN_COLUMN_LINES for one, other in itertools.pairwise(columns))
    )


@dataclass
class ReadPage:
    """What was read in one file of a page.

    Attributes:
        file: the path as it was given, or as it was found in a folder.
        page: what is on it; None if the file could not be read.
        written: the file that it was written to, if it was.
        error: why the file could not be read, or what was read not be written; None if all went well.
    """

    file: str
    page: PageText | None = None
    written: Path | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.written is not None:
            return f"{self.file}\t{self.written}"
        return f"==> {self.file} <==\n{self.page.text if self.page is not None else ''}\n"

    def to_dict(self) -> dict[str, Any]:
        """The file and what is on its page, by name."""
        return {"file": self.file, **(self.page.to_dict() if self.page is not None else {})}


def read_page_files(
    files: Iterable[str | os.PathLike],
    *,
    model: str | os.PathLike | None = None,
    batch_size: int = 16,
    num_beams: int | None = None,
    abstain_below: float | None = None,
    precision: Precision = "float32",
    out: str | os.PathLike | None = None,
    kind: PageFormat = "text",
    to_correct: LinesToCorrect | None = None,
) -> Iterator[ReadPage]:
    """What is on every page, in order, a bad file among them told in its `error`.

    Args:
        files: pictures of pages, and folders whose picture files are read in natural order of their names. Of a TIFF file
            of several pages the first is read, and a warning says so.
        model, batch_size, num_beams, abstain_below, precision: as for `PageReader`.
        out: folder for one file a page, written when the page is read. A page whose file is there already is passed over,
            so that nothing which a person corrected is lost, and a run that was stopped goes on.
        kind: of these files: `text`, `json`, `page` (PAGE XML) or `alto`.
        to_correct: takes the lines that the model is not sure of.

    Raises:
        ImportError: if the extra `ocr` is missing, which finds the lines.
        OSError: if there is no such model, its folder lacks a file, or `out` can't be written to.
        ValueError: if the model's files do not belong together, or two pages would be written to one file.
    """
    listed = list(listed_pictures(files))
    if out is not None:
        listed = _not_yet_written(listed, Path(out), kind)
    reader = PageReader(
        model, batch_size=batch_size, num_beams=num_beams, abstain_below=abstain_below, precision=precision
    )
    for file, error in listed:
        result = ReadPage(file, error=error)
        if error is None:
            try:
                picture = _open_page(file)
                result.page = reader(picture, name=file)
                if out is not None:
                    result.written = _write(result.page, file, page_file(Path(out), Path(file), kind), kind)
            except (ValueError, OSError) as fault:
                result.error = str(fault)
            else:
                if to_correct is not None:
                    for line in result.page.lines:
                        if line.score < to_correct.below:
                            words = " ".join(word["word"] for word in line.words)  # an abstaining model gives no text
                            to_correct.add(
                                cut_line(picture, line.polygon), line.text or words, line.score, file, line.box
                            )
        yield result


def _write(page: PageText, file: str, target: Path, kind: PageFormat) -> Path:
    try:
        write_page(page, Path(file), target, kind)
    except OSError as error:
        raise OSError(
            f"{file}: wanted to write its page into {target}, got an error ({error.strerror}). Give the picture "
            "another name, or make room there."
        ) from error
    return target


def _not_yet_written(listed: list[tuple[str, str | None]], out: Path, kind: PageFormat) -> list[tuple[str, str | None]]:
    """The pages whose files are not in the folder, which is made."""
    pages: dict[Path, str] = {}
    for file, error in listed:
        target = page_file(out, Path(file), kind)
        if error is None and pages.setdefault(target, file) != file:
            raise ValueError(
                f"Pages of different names are wanted, got {pages[target]} and {file}, which would both be written to "
                f"{target}. Read them into different folders."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"A folder to write to is wanted, got {out}, which can't be made ({error.strerror}). Name another."
        ) from error
    written = {file for target, file in pages.items() if os.path.isfile(target)}  # false for a name that is too long
    if written:
        logger.warning(
            "%d of %d pages are in %s already and are passed over. Move them away to have them read again.",
            len(written),
            len(pages),
            out,
        )
    return [(file, error) for file, error in listed if error is not None or file not in written]


def _open_page(file: str) -> Image.Image:
    picture = open_picture_file(file)
    num_pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    if num_pages > 1:
        logger.warning("%s: one page a file is wanted, got %d; the first is read. Split the file.", file, num_pages)
    return to_rgb(picture)
