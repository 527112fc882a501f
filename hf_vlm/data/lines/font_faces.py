"""The fonts of this machine that can write Latin text, and their glyphs, drawn once and kept.

`font files -> find_faces -> Face -> glyphs_of(face, height)[character] -> Glyph`. Pillow and FreeType do the drawing;
what a face can write is found by drawing it, as character tables promise glyphs that are empty or a box.
"""

import io
import logging
import string
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET

logger = logging.getLogger(__name__)

FONT_FOLDERS = (
    ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")
    if sys.platform.startswith("linux")
    else ("/Library/Fonts", "/System/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts")
)

# How a face is used. What a face looks like can be measured only in part (fixed pitch), so pens and typewriters are
# listed by parts of their family names; a face in neither list is of kind `print`, or `receipt` if of fixed pitch.
PEN_FAMILIES = (
    "hand", "script", "breip", "bwht", "comic", "dancing", "dkg", "ecolier", "havana", "isabella",
    "joscelyn", "kaushan", "kristi", "rufscript", "summersby", "tomson", "radis", "lobster", "chancery", "chorus",
    "pecita", "cursive", "callig", "z003", "steve", "bajaderka", "chilanka", "domestic manners",
    "abogado", "junkyard", "kiloji", "klee", "leckerli", "penguin attack", "setofont", "yoze", "yusei", "jana", "auriocus",
    "lukas", "miama", "frc",
)  # fmt: skip
TYPEWRITER_FAMILIES = (
    "courier", "typewriter", "cursor", "latin modern mono", "nimbus mono", "freemono", "liberation mono", "cmu type",
    "cousine", "lm mono",
)  # fmt: skip
# Faces whose "letters" are pictures, outlines or numbers of a formula.
_NOT_FOR_TEXT = (
    "math", "symbol", "dingbat", "emoji", "icon", "initial", "caps", "outline", "shadow", "3d", "braille",
    "keyboard", "d050000l", "nushu", "lignes", "mirror", "femke",
)  # fmt: skip
# Beginnings of family names under which one design comes by the dozen: one family each.
_ONE_DESIGN = ("Px ", "YOz", "kiloji", "frc")
# Weights and widths between the usual ones, of which some families have dozens.
_IN_BETWEEN = ("thin", "hairline", "extra", "semi", "medium", "black", "ultra", "heavy")

_FONT_FILES = (".ttf", ".otf", ".ttc", ".pfb")
_BASIC = frozenset(string.ascii_letters + string.digits)  # what every face must have
_REFERENCE_SIZE = 64  # px per em at which faces are measured


class Glyph(NamedTuple):
    """One character of a face, drawn."""

    ink: np.ndarray  # uint8 (height, width)
    left: int  # px from the pen to the first column
    top: int  # px from the baseline to the first row, negative above it
    advance: float  # px the pen moves


@dataclass(frozen=True)
class Face:
    """One font file that can write text.

    Attributes:
        path: font file; of a collection its first face is meant.
        family: family name, for choosing evenly among families.
        kind: `print`, `typewriter`, `receipt` or `pen`.
        characters: the characters it has an inked glyph for.
        ascent, descent: px above and below the baseline of "b" and "p" at 64 px per em.
    """

    path: str
    family: str
    kind: str
    characters: frozenset[str]
    ascent: float
    descent: float


def find_faces(
    folders: Iterable[str | Path] = FONT_FOLDERS, *, characters: str = LATIN_ALPHABET, exclude: Iterable[str] = ()
) -> list[Face]:
    """The faces in font files and folders that can write Latin text, in a fixed order.

    A face is taken if it has every ASCII letter and digit, with small letters unlike its capitals. Which of
    `characters` it has is found by drawing each: a glyph that is empty or equal to the face's "missing" box does not
    count, whatever the file's character table says. Damaged files are left out, with a warning that names them.

    Args:
        folders: font files (.ttf, .otf, .ttc, .pfb) or folders searched in depth; those that don't exist are passed
            over.
        characters: what to test for, besides letters and digits.
        exclude: parts of file names to leave out, case ignored.

    Raises:
        ValueError: if no face is left.
    """
    places = [Path(folder).expanduser() for folder in folders]
    paths = [
        path
        for folder in places
        for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
        if path.suffix.lower() in _FONT_FILES and not any(part.lower() in path.name.lower() for part in exclude)
    ]
    faces: list[Face] = []
    seen: set[bytes] = set()  # pictures of a word: Noto draws one Latin in a hundred files
    damaged: list[Path] = []
    for path in paths:
        try:
            face = _measure(path, {*characters, *_BASIC}, seen)
        except (OSError, ValueError):  # FreeType's complaints, when it reads or when it draws
            damaged.append(path)
            continue
        if face is not None:
            faces.append(face)
    if damaged:
        logger.warning(
            "%d of %d font files can't be read and are left out: %s%s.",
            len(damaged), len(paths), ", ".join(map(str, damaged[:5])), " and more" if len(damaged) > 5 else "",
        )  # fmt: skip
    if not faces:
        found = f"{len(paths)} font files, {len(damaged)} of them damaged," if paths else "no font file"
        raise ValueError(
            f"`folders` must hold a font with Latin letters, got {found} in {', '.join(map(str, places))}. "
            "Install fonts (`scripts/install_fonts.sh` on Debian) or name a folder that has some."
        )
    return faces


def _measure(path: Path, characters: set[str], seen: set[bytes]) -> Face | None:
    """The face in a font file, None if it is not for Latin text or drawn like one in `seen`, where it is put.

    Raises:
        OSError, ValueError: if FreeType can't read, scale or draw it.
    """
    font = _open_font(path, _REFERENCE_SIZE)
    family, style = (part or "" for part in font.getname())
    name = f"{family} {style}".lower()
    if any(part in name for part in _NOT_FOR_TEXT) or any(part in style.lower() for part in _IN_BETWEEN):
        return None
    probe = _draw("Hamburgefonstiv", font).ink.tobytes()
    if probe in seen:
        return None
    seen.add(probe)
    known = _known_characters(font, characters)
    if not _BASIC <= known or _is_all_capitals(font):
        return None
    kind = "receipt" if font.getlength("i") == font.getlength("M") else "print"
    if any(part in name for part in TYPEWRITER_FAMILIES):
        kind = "typewriter"
    elif any(part in name for part in PEN_FAMILIES):
        kind = "pen"
    ascent, descent = -font.getbbox("bdhkl", anchor="ls")[1], font.getbbox("gpqy", anchor="ls")[3]
    family = next((design.strip() for design in _ONE_DESIGN if family.startswith(design)), family or path.stem)
    return Face(str(path), family, kind, known, ascent, max(descent, 1))


def _open_font(path: str | Path, size: float) -> ImageFont.FreeTypeFont:
    """The font at `size` px per em.

    From bytes, not from the path: forked workers that share one open file would move each other's place in it.

    Raises:
        OSError, ValueError: if FreeType can't read or scale it.
    """
    return ImageFont.truetype(io.BytesIO(Path(path).read_bytes()), size, layout_engine=ImageFont.Layout.BASIC)


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Glyph:
    mask, (left, top) = font.getmask2(text, anchor="ls")
    ink = np.frombuffer(bytes(mask), dtype=np.uint8).reshape(mask.size[::-1])  # twice as quick as by a picture
    return Glyph(ink, left, top, font.getlength(text))


def _known_characters(font: ImageFont.FreeTypeFont, characters: Iterable[str]) -> frozenset[str]:
    small = font.font_variant(size=20)
    nothing = "\U0010fffe"  # a code point that no font may have
    missing, missing_place = small.getmask2(nothing)
    known = {" "}
    for character in characters:
        mask, place = small.getmask2(character)
        if mask.size == missing.size and place == missing_place:  # a box of its size: is it that box?
            if np.array_equal(_draw(character, small).ink, _draw(nothing, small).ink):
                continue
        if mask.size[0] and mask.size[1] and mask.getbbox():
            known.add(character)
    return frozenset(known)


def _is_all_capitals(font: ImageFont.FreeTypeFont) -> bool:
    """Whether small letters are capitals, full-sized or small: such a face would teach that A reads a."""
    heights = [(_draw(small, font).ink.shape[0], _draw(small.upper(), font).ink.shape[0]) for small in "acemnorsuvwxz"]
    if (
        np.median([small / max(capital, 1) for small, capital in heights]) > 0.87
    ):  # as written by hand: none quite alike
        return True
    alike = 0
    for small, capital in ("aA", "eE", "gG", "rR", "qQ"):
        pictures = [
            np.asarray(Image.fromarray(_draw(character, font).ink).resize((16, 16)), dtype=np.float32)
            for character in (small, capital)
        ]
        alike += float(np.corrcoef(pictures[0].ravel(), pictures[1].ravel())[0, 1]) > 0.9
    return alike >= 3


@lru_cache(maxsize=4096)
def glyphs_of(face: Face, height: int) -> "GlyphCase":
    """The glyphs of a face, `height` px from the top of "b" to the foot of "p"; the same case when asked again."""
    return GlyphCase(face, height)


class GlyphCase(dict[str, Glyph]):
    """The glyphs of one face at one drawing height, drawn when first asked for."""

    def __init__(self, face: Face, height: int) -> None:
        super().__init__()
        try:
            font = _open_font(face.path, _REFERENCE_SIZE * height / (face.ascent + face.descent))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"The font file {face.path} can't be read any more. Search for faces again."
            ) from error
        self._font = font
        self._joints: dict[str, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {}
        self.height = height  # px from the top of "b" to the foot of "p"
        self.ascent = round(height * face.ascent / (face.ascent + face.descent))
        self.mean_advance = font.getlength("the quick lazy dog, une ligne und so weiter") / 43

    def __missing__(self, character: str) -> Glyph:
        self[character] = glyph = _draw(character, self._font)
        return glyph

    def joints(self, character: str) -> "tuple[tuple[int, int] | None, tuple[int, int] | None]":
        """Where a stroke from the letter before would meet this one, and where one to the next would leave it.

        (column, row) from the pen and the baseline, between baseline and half the height; None if there is no ink.
        """
        if character not in self._joints:
            glyph = self[character]
            first, last = max(-self.ascent // 2 - glyph.top, 0), max(-glyph.top, 0)
            middle = (first + last) // 2
            ends: list[tuple[int, int] | None] = []
            for rows, side in ((glyph.ink[first:last], 0), (glyph.ink[middle:last], -1)):
                columns = np.flatnonzero((rows > 128).any(axis=0))
                if not len(columns):
                    ends.append(None)
                    continue
                column = int(columns[side])
                inked = np.flatnonzero(rows[:, column] > 128)
                row = int(inked[len(inked) // 2]) + (first if side == 0 else middle)
                ends.append((glyph.left + column, glyph.top + row))
            self._joints[character] = (ends[0], ends[1])
        return self._joints[character]
