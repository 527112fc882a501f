"""Synthetic text lines: `renderer[i]` draws line i of an endless set, the same one every time.

    texts (a file of sentences) -> a fragment, a heading, numbers, a till entry   (str)
    faces (the fonts found)     -> glyph by glyph into an ink canvas              (uint8, drawing size)
    one warp                    -> margins, slant, turn, stretch, waver           (uint8, final size)
    ink and paper               -> wear, blur, grey levels, grain, JPEG           (PIL "L")

The looks imitate what readers meet: printed books, typescripts, tills, pens. A line is a pure function of the seed and
its index, so training can resume anywhere and any number of worker processes see the same set. Source of the recipe:
Li et al. 2023, TrOCR, "Pre-training data" (text lines printed with many faces), https://arxiv.org/abs/2109.10282;
the looks themselves are ours.
"""

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from hf_vlm.data.character_tokenizer import LATIN_ALPHABET
from hf_vlm.data.font_faces import FONT_FOLDERS, Face, Glyph, GlyphCase, find_faces, glyphs_of
from hf_vlm.data.line_texts import LineTexts

_DRAWING_HEIGHTS = (30, 44)  # px from the top of "b" to the foot of "p"; two, so that glyphs can be kept
_LEGIBLE_HEIGHT = 12  # px of the smallest letters in a picture
_ROOM = 0.4  # canvas above and below the letters, in their height: accents, clipped neighbours, strays

# The kinds of lines, how often each is drawn, and the kinds of faces each may use.
KIND_WEIGHTS = {"book": 0.34, "typewriter": 0.2, "till": 0.2, "hand": 0.26}
_FACE_KINDS = {
    "book": ("book",),
    "typewriter": ("typewriter", "typewriter", "till"),
    "till": ("till", "till", "typewriter", "book"),
    "hand": ("hand",),
}


@dataclass
class _Look:
    """How one line is set, printed and scanned. Lengths are in letter heights (top of "b" to foot of "p")."""

    letter_height: float = 0.8  # share of the picture's height; above 1 the crop clips letters
    resolution: float = 1.0  # the picture's height, share of the greatest
    stretch: float = 1.0  # of widths
    spacing: float = 0.0  # added after each character
    word_spacing: float = 1.0  # times the width of a space
    jitter: float = 0.0  # up and down, per character
    slant: float = 0.0  # columns per row
    turn: float = 0.0  # rows per column
    waver: float = 0.0  # how far the paper's surface is pulled out of shape
    strays: bool = False  # feet and heads of the neighbouring lines
    rule: float = 0.0  # darkness of a ruled line, 0 for none
    is_dot_matrix: bool = False
    wear: float = 0.0  # unevenness of the ink, 0 to 1
    weight: int = 0  # -1 thinner, 1 bolder
    blur: float = 0.0  # px
    is_bitonal: bool = False
    paper: float = 250.0  # grey levels
    ink: float = 20.0
    grain: float = 0.0  # standard deviation of the scan's noise, grey levels
    stain: float = 0.0  # slow unevenness of the paper, grey levels
    jpeg_quality: int = 0  # 0: not compressed


def _look(kind: str, rng: np.random.Generator) -> _Look:
    """Draws a look of one kind, after samples of printed books, typescripts, tills and wills."""

    def chance(probability: float) -> bool:
        return rng.random() < probability

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    look = _Look(
        letter_height=between(0.62, 1.06),
        resolution=between(0.35, 0.8) if chance(0.2) else 1.0,
        stretch=between(0.85, 1.15),
        word_spacing=between(0.8, 1.5),
        turn=rng.normal(0, 0.006),
        slant=between(-0.03, 0.06) if chance(0.3) else 0.0,
        waver=between(0.0, 0.05) if chance(0.3) else 0.0,
        strays=chance(0.2),
        wear=between(0.1, 0.6) if chance(0.35) else 0.0,
        weight=int(rng.integers(-1, 2)) if chance(0.25) else 0,
        blur=between(0.3, 1.1) if chance(0.45) else 0.0,
        paper=between(190, 255),
        ink=between(0, 90),
        grain=between(1, 12) if chance(0.6) else 0.0,
        stain=between(3, 20) if chance(0.3) else 0.0,
        jpeg_quality=int(rng.integers(35, 92)) if chance(0.3) else 0,
    )
    if kind == "book":
        if chance(0.55):  # bitonal scans of old print
            look.is_bitonal, look.paper, look.ink = True, 255.0, 0.0
            look.grain, look.stain = between(0, 4), 0.0
        if chance(0.1):  # spaced-out type, the German way of stressing a word
            look.spacing = between(0.05, 0.18)
    elif kind == "typewriter":
        look.jitter, look.spacing = between(0.0, 0.04), between(-0.02, 0.04)
        look.wear = max(look.wear, between(0.0, 0.4))
        if chance(0.5):  # carbon copies on dark paper
            look.paper, look.ink, look.blur = between(110, 225), between(20, 110), between(0.4, 1.2)
        if chance(0.3):
            look.letter_height = between(0.45, 0.75)
    elif kind == "till":
        look.letter_height = between(0.75, 1.2)
        look.stretch, look.spacing, look.turn = between(0.55, 1.15), between(-0.02, 0.08), rng.normal(0, 0.003)
        look.is_dot_matrix = chance(0.25)
        if chance(0.4):
            look.resolution = between(0.3, 0.6)
        if chance(0.3):  # thermal paper gone pale
            look.paper, look.ink, look.wear = 255.0, between(120, 205), max(look.wear, 0.3)
    elif kind == "hand":
        look.letter_height = between(0.65, 1.0)
        look.slant, look.turn = between(-0.15, 0.7), rng.normal(0, 0.012)
        look.stretch, look.word_spacing = between(0.8, 1.6), between(0.8, 2.4)
        look.waver, look.jitter = between(0.04, 0.16), between(0.0, 0.05)
        look.paper, look.ink = between(165, 245), between(20, 120)
        look.wear, look.stain = between(0.1, 0.6), between(2, 14)
        look.rule = between(0.1, 0.5) if chance(0.35) else 0.0
    look.ink = min(look.ink, look.paper - 45)  # legible still
    return look


class LineRenderer(Sequence[dict[str, Any]]):
    """An endless set of drawn text lines: `renderer[i]` is `{"image": PIL "L", "text": str}`, the same every time.

    Safe in forked and spawned DataLoader workers: nothing but a cache of glyphs changes after construction.

    Args:
        texts: a UTF-8 file of sentences, one a line, or the sentences themselves.
        faces: font files or folders, or what `find_faces` gave.
        seed: with the index, decides everything about a line.
        height: px of the pictures' greatest height; some are smaller, as small print in real scans is.
        alphabet: the characters that may be drawn, such as those of the tokenizer; others are left out of `texts`.
        max_characters: longest text drawn.
        kinds: how often each kind of line is drawn, relative; a kind without faces is left out.

    Raises:
        FileNotFoundError: if there is no such file of texts.
        ValueError: if it has no sentence, no face can write, or a kind is unknown.
    """

    def __init__(
        self,
        texts: str | Path | Iterable[str],
        faces: Iterable[str | Path] | Sequence[Face] = FONT_FOLDERS,
        *,
        seed: int = 0,
        height: int = 40,
        alphabet: str = LATIN_ALPHABET,
        max_characters: int = 90,
        kinds: dict[str, float] | None = None,
    ) -> None:
        self.seed, self.height, self.max_characters = seed, height, max_characters
        weights = KIND_WEIGHTS if kinds is None else kinds
        if unknown := sorted(set(weights) - set(KIND_WEIGHTS)):
            raise ValueError(
                f"`kinds` must be of {', '.join(KIND_WEIGHTS)}, got {', '.join(unknown)}. Correct the name."
            )
        self.texts = LineTexts(texts, alphabet)
        given = list(faces)
        found = [face for face in given if isinstance(face, Face)]
        self.faces = found or find_faces(
            [face for face in given if not isinstance(face, Face)], characters=self.texts.alphabet
        )
        # kind -> kind of face -> family -> faces: a family counts once, however many weights and widths it has.
        families: dict[str, dict[str, list[Face]]] = {}
        for face in self.faces:
            families.setdefault(face.kind, {}).setdefault(face.family, []).append(face)
        self._choices = {
            kind: [list(families[face_kind].values()) for face_kind in _FACE_KINDS[kind] if face_kind in families]
            for kind, weight in weights.items()
            if weight > 0 and any(face_kind in families for face_kind in _FACE_KINDS[kind])
        }
        if not self._choices:
            raise ValueError(
                f"`faces` must suit one of the `kinds` {', '.join(weights)}, got {', '.join(families)} faces only. "
                "Add fonts, or name the kinds that these faces can draw."
            )
        self._kinds = list(self._choices)
        shares = np.array([weights[kind] for kind in self._kinds], dtype=np.float64)
        self._limits = np.cumsum(shares / shares.sum())
        self._grain, self._clouds = _noise_banks(seed)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices of an endless set
        return self.render(index)

    def render(self, index: int, *, num_characters: int | None = None, aspect: float | None = None) -> dict[str, Any]:
        """Line `index`, of about `num_characters` or about `aspect` times as wide as high, where one is given.

        Either is met roughly, as words are seldom torn: it serves to draw lines of like width for a batch.
        """
        rng = np.random.default_rng([self.seed, index])
        kind = self._kinds[min(int(np.searchsorted(self._limits, rng.random())), len(self._kinds) - 1)]
        look = _look(kind, rng)
        look.resolution = min(max(look.resolution, _LEGIBLE_HEIGHT / (look.letter_height * self.height)), 1.0)
        drawing_height = _DRAWING_HEIGHTS[look.letter_height * look.resolution * self.height > _DRAWING_HEIGHTS[0] + 4]
        face = self._face(kind, rng)
        glyphs = glyphs_of(face, drawing_height)
        if aspect is not None:
            room = (aspect - 0.25 - 0.7 * abs(look.slant)) / look.letter_height / look.stretch  # in letter heights
            advance = glyphs.mean_advance / glyphs.height + look.spacing
            num_characters = round(1.3 * room / advance)  # more than fit, as they are cut to fit below
        elif num_characters is None:
            num_characters = int(rng.triangular(1, 10, 30) if rng.random() < 0.25 else rng.normal(42, 14))
        text = self.texts.draw(kind, min(max(num_characters, 1), self.max_characters), rng)
        for _ in range(8):
            if set(text) <= face.characters:
                break
            face = self._face(kind, rng)
        else:  # no face found for it: draw what this one has
            text = " ".join("".join(character for character in text if character in face.characters).split()) or "A"
        glyphs = glyphs_of(face, drawing_height)
        if aspect is not None:
            advances = np.cumsum(self._advances(text, glyphs, look)) / glyphs.height
            fitting = int(np.searchsorted(advances, room * 1.05))
            if fitting < len(text):
                text = text[: max(text.rfind(" ", 0, fitting + 1), fitting * 2 // 3, 1)].strip() or text[0]
            look.stretch *= min(max(room / advances[len(text) - 1], 0.85), 1.2)
        # Accents of capitals stand above "b": a crop that cut them off would make Ö read O.
        overhang = max(max(-glyphs[character].top for character in text) - glyphs.ascent, 0) / glyphs.height
        if overhang > 0.05:
            look.letter_height = min(look.letter_height, 0.95 / (1 + overhang))
        ink, baseline = self._write(text, glyphs, look, rng)
        ink = _warp(ink, baseline, drawing_height, look, overhang, max(round(self.height * look.resolution), 8), rng)
        return {"image": self._print(ink, look, rng), "text": text}

    def _face(self, kind: str, rng: np.random.Generator) -> Face:
        choices: Any = self._choices[kind]  # kind of face -> family -> face
        for _ in range(3):
            choices = choices[int(rng.random() * len(choices))]
        return choices

    @staticmethod
    def _advances(text: str, glyphs: GlyphCase, look: _Look) -> list[float]:
        """How far the pen moves after each character, drawn px."""
        extra, wide = look.spacing * glyphs.height, look.word_spacing
        return [glyphs[character].advance * (wide if character == " " else 1.0) + extra for character in text]

    def _write(self, text: str, glyphs: GlyphCase, look: _Look, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """The text's ink, uint8 (rows, columns), and the row of its baseline; letters start at the first column."""
        height = glyphs.height
        pens = np.concatenate([[0.0], np.cumsum(self._advances(text, glyphs, look))])
        reach = max(glyphs[text[-1]].left + glyphs[text[-1]].ink.shape[1], 1)
        baseline = round(height * _ROOM) + glyphs.ascent
        ink = np.zeros((height + 2 * round(height * _ROOM), int(max(pens[-2] + reach, pens[-1])) + 2), dtype=np.uint8)
        drops = rng.normal(0, look.jitter * height, len(text)).round() if look.jitter else np.zeros(len(text))
        _set_type(
            ink, [glyphs[character] for character in text], pens.round().astype(int), drops.astype(int) + baseline
        )
        if look.strays:
            stray = self.texts.fragment(len(text), rng)
            stray_glyphs = [glyphs[character] for character in stray]
            pens = np.concatenate([[0.0], np.cumsum(self._advances(stray, glyphs, look))]).round().astype(int)
            row = baseline + round(height * (1.12 + 0.2 * rng.random())) * (-1 if rng.random() < 0.7 else 1)
            _set_type(ink, stray_glyphs, pens, np.full(len(stray), row))
        if look.rule and rng.random() < 0.3:  # an underline in ink
            row = baseline + round(height * (0.08 + 0.1 * rng.random()))
            ink[row : row + 1 + height // 24] = 255
        return (_dots(ink) if look.is_dot_matrix else ink), baseline

    def _print(self, ink: np.ndarray, look: _Look, rng: np.random.Generator) -> Image.Image:
        """Ink on paper, scanned: uint8 coverage (rows, columns) -> PIL "L" of the same size."""
        rows, columns = ink.shape
        if look.weight > 0:
            ink = np.maximum(ink, np.roll(ink, 1, axis=1))
        elif look.weight < 0:
            ink = np.minimum(ink, np.maximum(np.roll(ink, 1, axis=1), ink // 2))
        if look.blur:
            ink = np.asarray(Image.fromarray(ink).filter(ImageFilter.BoxBlur(look.blur * rows / 48)))
        coverage = ink.astype(np.float32)
        coverage *= 1 / 255
        if look.wear:
            coverage *= 1 - look.wear * (0.5 + 0.5 * _crop(self._clouds, rows, columns, rng))
        if look.is_bitonal:
            coverage = np.clip((coverage - 0.45) * 5 + 0.5, 0, 1)
        grey = coverage
        grey *= look.ink - look.paper
        grey += look.paper
        if look.rule:
            row = int(rows * (0.6 + 0.35 * rng.random()))
            grey[row : row + 1 + rows // 40] -= look.rule * 80
        if look.stain:
            grey += look.stain * _crop(self._clouds, rows, columns, rng)
        if look.grain:
            grey += look.grain * _crop(self._grain, rows, columns, rng)
        image = Image.fromarray(np.clip(grey, 0, 255, out=grey).astype(np.uint8))
        if look.jpeg_quality:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=look.jpeg_quality)
            image = Image.open(buffer)
            image.load()
        return image


def _set_type(ink: np.ndarray, glyphs: Sequence[Glyph], pens: np.ndarray, baselines: np.ndarray) -> None:
    """Put glyphs into the canvas, keeping the darker ink where they meet and cutting what leaves it."""
    rows, columns = ink.shape
    for glyph, pen, baseline in zip(glyphs, pens.tolist(), baselines.tolist(), strict=False):
        top, left = baseline + glyph.top, pen + glyph.left
        first_row, first_column = max(-top, 0), max(-left, 0)
        piece = glyph.ink[first_row : rows - top if top < rows else 0, first_column : max(columns - left, 0)]
        if piece.size:
            top, left = top + first_row, left + first_column
            target = ink[top : top + piece.shape[0], left : left + piece.shape[1]]
            np.maximum(target, piece, out=target)


def _dots(ink: np.ndarray) -> np.ndarray:
    """The same letters as needles print them: one dot for three by three pixels."""
    rows, columns = (edge // 3 for edge in ink.shape)
    coarse = ink[: rows * 3, : columns * 3].reshape(rows, 3, columns, 3).mean(axis=(1, 3)) > 95
    dots = np.kron(coarse, np.array([[90, 230, 90], [230, 255, 230], [90, 230, 90]])).astype(np.uint8)
    return np.pad(dots, ((0, ink.shape[0] - rows * 3), (0, ink.shape[1] - columns * 3)))


def _warp(
    ink: np.ndarray,
    baseline: int,
    drawing_height: int,
    look: _Look,
    overhang: float,
    height: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One resampling from the drawn canvas to the picture: size, margins, slant, turn and waver together.

    Args:
        ink: uint8 (rows, columns) at drawing size.
        baseline: row that the letters stand on; drawing_height: px from the top of "b" to the foot of "p".
        overhang: how far accents reach above "b", in letter heights.
        height: px of the picture.

    Returns: uint8 (height, width), the width following the text.
    """
    scale = drawing_height / (look.letter_height * height)  # drawn px a picture px, downwards
    scale_x = scale / look.stretch
    letters_top = round(drawing_height * _ROOM)
    spare = height * (1 - look.letter_height)  # negative where the crop is tight
    top = max(spare * (0.2 + 0.6 * rng.random()), overhang * look.letter_height * height)
    before, after = height * np.abs(rng.normal(0, 0.15, 2))
    width = max(round(ink.shape[1] / scale_x + before + after + abs(look.slant) * look.letter_height * height * 0.7), 8)
    lean_start = look.slant * 0.2 * look.letter_height * height if look.slant > 0 else 0.0

    # Grid of corners: picture (x, y) -> drawn (u, v). Letters stand on the baseline, so they lean about it.
    cells = max(round(width / (height * 1.2)), 1) if look.waver else 1
    x = np.linspace(0, width, cells + 1)[:, None].round()  # (cells + 1, 1)
    y = np.array([[0.0, height]])  # (1, 2)
    v = letters_top + (y - top) * scale + look.turn * (x - width / 2) * scale  # (cells + 1, 2)
    u = (x - before - lean_start) * scale_x + look.slant * (v - baseline) / look.stretch
    if look.waver:
        pull = rng.normal(0, look.waver * drawing_height, (2, cells + 1))
        v = v + pull[0][:, None] * 0.6
        u = u + pull[1][:, None] + rng.normal(0, look.waver * drawing_height * 0.6, (cells + 1, 2))
    corners = np.stack([u, v], axis=-1)  # (cells + 1, 2, 2)
    mesh = [
        (
            (int(x[cell, 0]), 0, int(x[cell + 1, 0]), height),
            tuple(corners[[cell, cell, cell + 1, cell + 1], [0, 1, 1, 0]].ravel().tolist()),
        )
        for cell in range(cells)
    ]
    picture = Image.fromarray(ink).transform((width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return np.asarray(picture)


@lru_cache(maxsize=4)
def _noise_banks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise to cut pieces from: grain, standard normal, and clouds, smooth in [-1, 1]; float32 (rows, columns) each."""
    rng = np.random.default_rng([seed, 0])
    grain = rng.standard_normal((128, 4096), dtype=np.float32)
    coarse = Image.fromarray(rng.uniform(-1, 1, (24, 400)).astype(np.float32))
    clouds = np.asarray(coarse.resize((4096, 128), Image.Resampling.BICUBIC)).clip(-1, 1)
    return grain, clouds


def _crop(bank: np.ndarray, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A piece of a noise bank, float32 (rows, columns), wrapped round where it is larger than the bank."""
    top, left = int(rng.random() * max(bank.shape[0] - rows, 1)), int(rng.random() * max(bank.shape[1] - columns, 1))
    piece = bank[top : top + rows, left : left + columns]
    return piece if piece.shape == (rows, columns) else np.resize(piece, (rows, columns))
