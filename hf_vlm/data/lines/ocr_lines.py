"""Synthetic text lines: `renderer[i]` draws line i of an endless set, the same one every time.

    texts (a file of sentences) -> a fragment, a heading, numbers, a receipt entry   (str)
    faces (the fonts found)     -> glyph by glyph into an ink canvas                 (uint8, drawing size)
    one warp                    -> margins, slant, turn, stretch, waver              (uint8, final size)
    ink and paper               -> wear, blur, copy or fax, grey levels, grain, JPEG (PIL "L")

The looks (`line_looks.py`) imitate what readers meet: print, typescripts, receipts, pens, and faxes and photocopies of
the first two. A line is a pure function of the seed and its index, so training can resume anywhere and any number of
worker processes see the same set. Source of the recipe: Li et al. 2023, TrOCR, "Pre-training data" (text lines printed
with many faces), https://arxiv.org/abs/2109.10282; the looks themselves are ours.
"""

import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET
from hf_vlm.data.lines.font_faces import FONT_FOLDERS, Face, Glyph, GlyphCase, find_faces, glyphs_of
from hf_vlm.data.lines.line_looks import Look, draw_look, noise_of, print_ink
from hf_vlm.data.lines.line_texts import SHIPPED_SENTENCES, LineTexts

_DRAWING_HEIGHTS = (30, 44)  # px from the top of "b" to the foot of "p"; two, so that glyphs can be kept
_LEGIBLE_HEIGHT = 12  # px of the smallest letters in a picture
_ROOM = 0.4  # canvas above and below the letters, in their height: accents, clipped neighbours, strays

_LEAST_COVERAGE = 0.25  # of a corpus's characters, as often as they come, that a face must have

# The kinds of lines and how often each is drawn; faxes and photocopies are made of lines in other settings.
KIND_WEIGHTS = {"print": 0.3, "typewriter": 0.17, "fax": 0.06, "photocopy": 0.07, "receipt": 0.18, "pen": 0.22}
_SETTINGS = {"fax": ("print", "typewriter"), "photocopy": ("print", "typewriter")}
# The kinds of faces that each setting may use.
_FACE_KINDS = {
    "print": ("print",),
    "typewriter": ("typewriter", "typewriter", "receipt"),
    "receipt": ("receipt", "receipt", "typewriter", "print", "print"),
    "pen": ("pen",),
}


class LineRenderer(Sequence[dict[str, Any]]):
    """An endless set of drawn text lines, `renderer[i]` the same every time.

    `renderer[i]` is `{"image": PIL "L", "text": "Dear Sir,", "kind": "fax", "face": "Latin Modern Mono"}`. Safe in forked
    and spawned DataLoader workers: nothing but a cache of glyphs changes after construction.

    Args:
        texts: a UTF-8 file of sentences, one a line, or the sentences themselves; the package brings a few.
        faces: font files or folders, one or several, or what `find_faces` gave; those without the letters of the texts are
            left out.
        seed: with the index, decides everything about a line.
        height: px of the pictures' greatest height; some are smaller, as small print in real scans is.
        alphabet: the characters that may be drawn, such as those of the tokenizer; others are left out of `texts`.
        max_characters: longest text drawn.
        kinds: how often each of `KIND_WEIGHTS` is drawn, relative; a kind without faces is left out.

    Raises:
        FileNotFoundError: if there is no such file of texts.
        ValueError: if it has no sentence, no face can write, a kind is unknown, its weight is below 0, none is above, or
            `max_characters` is below 1.
    """

    def __init__(
        self,
        texts: str | Path | Iterable[str] = SHIPPED_SENTENCES,
        faces: str | Path | Iterable[str | Path] | Sequence[Face] = FONT_FOLDERS,
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
            near = difflib.get_close_matches(unknown[0], KIND_WEIGHTS, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else "Correct the name."
            raise ValueError(f"`kinds` must be of {', '.join(KIND_WEIGHTS)}, got {', '.join(unknown)}. {hint}")
        for kind, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"`kinds` must have weights of 0 or more, got {weight} for `{kind}`. Correct it.")
        if not any(weights.values()):
            raise ValueError(f"`kinds` must have a weight above 0, got {weights}. Name a kind, or leave `kinds` out.")
        if max_characters < 1:
            raise ValueError(f"`max_characters` must be 1 or more, got {max_characters}. Texts of 90 do well.")
        self.texts = LineTexts(texts, alphabet)
        given = [faces] if isinstance(faces, str | Path) else list(faces)
        found = [face for face in given if isinstance(face, Face)]
        self.faces = found or find_faces(
            [face for face in given if not isinstance(face, Face)], characters=self.texts.alphabet
        )
        frequencies = self.texts.frequencies
        self.faces = [
            face
            for face in self.faces
            if sum(frequencies[character] for character in face.characters)
            >= _LEAST_COVERAGE * sum(frequencies.values())
        ]
        if not self.faces:
            lacking, _ = frequencies.most_common(1)[0]
            raise ValueError(
                f"`faces` must have the characters of the texts, such as {lacking!r}, got none that has them. "
                "Add fonts of that script, or draw texts in another."
            )
        # setting -> kind of face -> family -> faces: a family counts once, however many weights and widths it has.
        families: dict[str, dict[str, list[Face]]] = {}
        for face in self.faces:
            families.setdefault(face.kind, {}).setdefault(face.family, []).append(face)
        self._choices = {
            setting: [list(families[kind].values()) for kind in face_kinds if kind in families]
            for setting, face_kinds in _FACE_KINDS.items()
            if any(kind in families for kind in face_kinds)
        }
        self._settings = {
            kind: settings
            for kind, weight in weights.items()
            if weight > 0 and (settings := [name for name in _SETTINGS.get(kind, (kind,)) if name in self._choices])
        }
        if not self._settings:
            raise ValueError(
                f"`faces` must suit one of the `kinds` {', '.join(weights)}, got {', '.join(families)} faces only. "
                "Add fonts, or name the kinds that these faces can draw."
            )
        self._kinds = list(self._settings)
        shares = np.array([weights[kind] for kind in self._kinds], dtype=np.float64)
        self._limits = np.cumsum(shares / shares.sum())
        self._noise = noise_of(seed)

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
        settings = self._settings[kind]
        setting = settings[int(rng.random() * len(settings))]
        look = draw_look(kind, setting, rng)
        look.resolution = min(max(look.resolution, _LEGIBLE_HEIGHT / (look.letter_height * self.height)), 1.0)
        drawing_height = _DRAWING_HEIGHTS[look.letter_height * look.resolution * self.height > _DRAWING_HEIGHTS[0] + 4]
        face = self._face(setting, rng)
        glyphs = glyphs_of(face, drawing_height)
        if aspect is not None:
            room = (aspect - 0.25 - 0.7 * abs(look.slant)) / look.letter_height / look.stretch  # in letter heights
            advance = glyphs.mean_advance / glyphs.height + look.spacing
            num_characters = round(1.3 * room / advance)  # more than fit, as they are cut to fit below
        elif num_characters is None:
            num_characters = int(rng.triangular(1, 10, 30) if rng.random() < 0.25 else rng.normal(42, 14))
        text = self.texts.draw(setting, min(max(num_characters, 1), self.max_characters), rng)
        for _ in range(8):
            if set(text) <= face.characters:
                break
            face = self._face(setting, rng)
        else:  # no face found for it: draw what this one has
            text = " ".join("".join(character for character in text if character in face.characters).split())
            text = text or min(face.characters & self.texts.frequencies.keys())
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
        image = print_ink(ink, look, self._noise, rng)
        return {"image": image, "text": text, "kind": kind, "face": face.family}

    def _face(self, setting: str, rng: np.random.Generator) -> Face:
        choices: Any = self._choices[setting]  # kind of face -> family -> face
        for _ in range(3):
            choices = choices[int(rng.random() * len(choices))]
        return choices

    @staticmethod
    def _advances(text: str, glyphs: GlyphCase, look: Look) -> list[float]:
        """How far the pen moves after each character, drawn px."""
        extra, wide = look.spacing * glyphs.height, look.word_spacing
        return [glyphs[character].advance * (wide if character == " " else 1.0) + extra for character in text]

    def _write(self, text: str, glyphs: GlyphCase, look: Look, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """The text's ink, uint8 (rows, columns), and the row of its baseline; letters start at the first column."""
        height = glyphs.height
        pens = np.concatenate([[0.0], np.cumsum(self._advances(text, glyphs, look))])
        reach = max(glyphs[text[-1]].left + glyphs[text[-1]].ink.shape[1], 1)
        baseline = round(height * _ROOM) + glyphs.ascent
        ink = np.zeros((height + 2 * round(height * _ROOM), int(max(pens[-2] + reach, pens[-1])) + 2), dtype=np.uint8)
        drops = rng.normal(0, look.jitter * height, len(text)) if look.jitter else np.zeros(len(text))
        if look.drift:  # one to three letters up or down a wave of some ten
            waves = np.sin(pens[:-1] / height / (2 + 4 * rng.random()) + 6.3 * rng.random())
            drops += look.drift * height * waves
        baselines = drops.round().astype(int) + baseline
        columns = pens.round().astype(int)
        _set_type(ink, [glyphs[character] for character in text], columns, baselines)
        if look.is_joined:
            ink = _joined(ink, text, glyphs, columns, baselines)
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


def _joined(ink: np.ndarray, text: str, glyphs: GlyphCase, pens: np.ndarray, baselines: np.ndarray) -> np.ndarray:
    """Strokes from the foot of a small letter to the next one's shoulder, as a pen that is not lifted draws them."""
    canvas = Image.fromarray(ink)
    brush = ImageDraw.Draw(canvas)
    width = max(round(glyphs.height / 18), 1)
    for index in range(len(text) - 1):
        if not (text[index].islower() and text[index + 1].islower()):
            continue
        leaving, entering = glyphs.joints(text[index])[1], glyphs.joints(text[index + 1])[0]
        if leaving is None or entering is None:
            continue
        x0, y0 = pens[index] + leaving[0], baselines[index] + leaving[1]
        x1, y1 = pens[index + 1] + entering[0], baselines[index + 1] + entering[1]
        if 0 < x1 - x0 < 0.5 * glyphs.height:
            brush.line([(x0, y0), (x0 + (x1 - x0) * 0.45, max(y0, y1) - 1), (x1, y1)], fill=225, width=width)
    return np.array(canvas)


def _dots(ink: np.ndarray) -> np.ndarray:
    """The same letters as needles print them: one dot for three by three pixels."""
    rows, columns = (edge // 3 for edge in ink.shape)
    coarse = ink[: rows * 3, : columns * 3].reshape(rows, 3, columns, 3).mean(axis=(1, 3)) > 95
    needle = np.array([[90, 230, 90], [230, 255, 230], [90, 230, 90]], dtype=np.uint8)
    dots = (coarse[:, None, :, None] * needle[:, None]).reshape(rows * 3, columns * 3)  # `np.kron`, but quick
    return np.pad(dots, ((0, ink.shape[0] - rows * 3), (0, ink.shape[1] - columns * 3)))


def _warp(
    ink: np.ndarray,
    baseline: int,
    drawing_height: int,
    look: Look,
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
    cells = max(round(width / (height * look.waver_step)), 1) if look.waver else 1
    x = np.linspace(0, width, cells + 1)[:, None].round()  # (cells + 1, 1)
    y = np.array([[0.0, height]])  # (1, 2)
    turn = max(min(look.turn, 0.25 * height / width), -0.25 * height / width)  # a long line's ends stay in the picture
    v = letters_top + (y - top) * scale + turn * (x - width / 2) * scale  # (cells + 1, 2)
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
