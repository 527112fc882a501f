"""How drawn lines look: the settings of one line, and ink on paper, copied, faxed and scanned.

    draw_look(kind, setting, rng) -> Look                       how it is set, printed, copied and scanned
    print_ink(ink, look, noise, rng)                            uint8 (rows, columns) -> PIL "L"
        pen or press: weight, swelling strokes, blur, wear
        copier: generations of blur, hard contrast and toner    fax: a coarse raster of black and white, rows lost
        grey levels, streaks, edge, specks, stain, grain, JPEG

After samples of printed books, typescripts, receipts and wills; faxes and photocopies after their resolutions (ITU-T
T.4: 204 columns an inch, 98 or 196 rows) and what every office has seen of them.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter


@dataclass
class Look:
    """How one line is set, printed and scanned. Lengths are in letter heights (top of "b" to foot of "p")."""

    letter_height: float = 0.8  # share of the picture's height; above 1 the crop clips letters
    resolution: float = 1.0  # the picture's height, share of the greatest
    stretch: float = 1.0  # of widths
    spacing: float = 0.0  # added after each character
    word_spacing: float = 1.0  # times the width of a space
    jitter: float = 0.0  # up and down, per character
    drift: float = 0.0  # up and down, slowly, of the baseline
    is_joined: bool = False  # small letters of a word are joined by strokes
    slant: float = 0.0  # columns per row
    turn: float = 0.0  # rows per column
    waver: float = 0.0  # how far the paper's surface, or the hand, is pulled out of shape
    waver_step: float = 1.2  # picture heights from one pull to the next
    strays: bool = False  # feet and heads of the neighbouring lines
    rule: float = 0.0  # darkness of a ruled line, 0 for none
    is_dot_matrix: bool = False
    swell: float = 0.0  # unevenness of the strokes' width, 0 to 1
    wear: float = 0.0  # unevenness of the ink, 0 to 1
    weight: int = 0  # -1 thinner, 1 bolder
    blur: float = 0.0  # px
    dither: float = 0.0  # how much paler every other row of a thermal printer is, 0 to 1
    generations: int = 0  # times photocopied
    toner: float = 0.5  # coverage that a copier prints as half black: below 0.5 strokes thicken, above they break
    streaks: int = 0  # lines that dirt on a copier's or fax's glass draws
    edge: float = 0.0  # width of the copier's black edge
    specks: float = 0.0  # black dots in a square of the picture's height, on average
    fax_rows: float = 0.0  # rows of a fax's raster in a letter, 0: not faxed
    fax_columns: float = 1.0  # columns of the raster in a letter height
    dropouts: float = 0.0  # share of the fax's rows that are lost
    is_bitonal: bool = False
    halo: float = 0.0  # how far a scanner sharpened, 0 to 1
    paper: float = 250.0  # grey levels
    ink: float = 20.0
    grain: float = 0.0  # standard deviation of the scan's noise, grey levels
    stain: float = 0.0  # slow unevenness of the paper, grey levels
    jpeg_quality: int = 0  # 0: not compressed


def draw_look(kind: str, setting: str, rng: np.random.Generator) -> Look:
    """Draws the look of one line.

    Args:
        kind: `fax`, `photocopy`, or the setting itself.
        setting: `print`, `typewriter`, `receipt` or `pen`: how the line was written in the first place.
    """

    def chance(probability: float) -> bool:
        return rng.random() < probability

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    look = Look(
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
    if setting == "print":
        if chance(0.55):  # bitonal scans of old print
            look.is_bitonal, look.paper, look.ink = True, 255.0, 0.0
            look.grain, look.stain = between(0, 4), 0.0
        if chance(0.1):  # spaced-out type, the German way of stressing a word
            look.spacing = between(0.05, 0.18)
    elif setting == "typewriter":
        look.jitter, look.spacing = between(0.0, 0.04), between(-0.02, 0.04)
        look.wear = max(look.wear, between(0.0, 0.4))
        if chance(0.5):  # carbon copies on dark paper
            look.paper, look.ink, look.blur = between(110, 225), between(20, 110), between(0.4, 1.2)
        if chance(0.3):
            look.letter_height = between(0.45, 0.75)
    elif setting == "receipt":
        look.letter_height = between(0.75, 1.2)
        look.stretch, look.spacing, look.turn = between(0.55, 1.15), between(-0.02, 0.08), rng.normal(0, 0.003)
        look.is_dot_matrix = chance(0.25)
        look.paper, look.grain = between(150, 255) if chance(0.3) else between(225, 255), look.grain * 0.5
        if chance(0.4):
            look.resolution = between(0.3, 0.6)
        if chance(0.3):  # thermal paper gone pale
            look.paper, look.ink, look.wear = 255.0, between(110, 190), max(look.wear, 0.3)
            look.dither = between(0.2, 0.7) if chance(0.5) else 0.0
        if chance(0.3):
            look.halo = between(0.3, 1.0)
        if chance(0.15):
            look.is_bitonal = True
    elif setting == "pen":
        look.letter_height = between(0.6, 0.95)
        look.resolution = max(look.resolution, 0.6)
        look.slant, look.turn = between(-0.15, 0.7), rng.normal(0, 0.012)
        look.stretch, look.word_spacing = between(0.8, 1.6), between(0.8, 2.4)
        look.waver_step = between(0.7, 1.4)
        look.waver = between(0.03, 0.11) * look.waver_step
        look.jitter, look.drift = between(0.0, 0.04), between(0.0, 0.06)
        look.is_joined, look.swell = chance(0.4), between(0.0, 1.0) if chance(0.6) else 0.0
        look.paper, look.ink, look.grain = between(185, 245), between(20, 120), look.grain * 0.5
        look.wear, look.stain = between(0.1, 0.5), between(2, 9)
        look.rule = between(0.1, 0.5) if chance(0.35) else 0.0
    if kind != setting:  # thin strokes do not outlive a copy
        look.weight, look.wear = max(look.weight, 0), look.wear / 2
    if kind == "photocopy":
        look.generations, look.toner = int(rng.integers(1, 4)), between(0.28, 0.46)
        look.is_bitonal, look.resolution, look.blur = False, 1.0, look.blur / 2
        look.paper, look.ink, look.stain = between(205, 255), between(0, 60), between(0, 8)
        look.streaks = int(rng.integers(1, 4)) if chance(0.35) else 0
        look.edge = between(0.05, 0.5) if chance(0.15) else 0.0
        look.specks = between(0.1, 1.2) if chance(0.6) else 0.0
    elif kind == "fax":
        is_fine = chance(0.5)
        look.fax_rows = between(20, 32) if is_fine else between(12, 18)
        look.fax_columns = look.fax_rows * 204 / (196 if is_fine else 98)
        look.toner = between(0.25, 0.45)
        look.dropouts = between(0.01, 0.06) if chance(0.4) else 0.0
        look.streaks = int(rng.integers(1, 3)) if chance(0.25) else 0
        look.specks = between(0.2, 1.5) if chance(0.6) else 0.0
        look.is_bitonal, look.resolution, look.blur, look.stain = False, 1.0, look.blur / 2, 0.0
        look.paper, look.ink, look.grain = 255.0, between(0, 40), look.grain if chance(0.2) else 0.0
    look.ink = min(look.ink, look.paper - 45)  # legible still
    return look


class Noise:
    """Two banks of noise to cut pieces from, made once for a seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.grain = rng.standard_normal((128, 4096), dtype=np.float32)  # standard normal
        coarse = Image.fromarray(rng.uniform(-1, 1, (24, 400)).astype(np.float32))
        self.clouds = np.asarray(coarse.resize((4096, 128), Image.Resampling.BICUBIC)).clip(-1, 1)  # smooth, [-1, 1]


noise_of = lru_cache(maxsize=4)(Noise)


def print_ink(ink: np.ndarray, look: Look, noise: Noise, rng: np.random.Generator) -> Image.Image:
    """Ink on paper, scanned: uint8 coverage (rows, columns) -> PIL "L" of the same height."""
    rows, columns = ink.shape
    if look.weight > 0:
        ink = np.maximum(ink, np.roll(ink, 1, axis=1))
    elif look.weight < 0:
        ink = np.minimum(ink, np.maximum(np.roll(ink, 1, axis=1), ink // 2))
    if look.swell:
        ink = _swollen(ink, look.swell, noise, rng)
    if look.blur:
        ink = _blurred(ink, look.blur * rows / 48)
    if look.dither:
        ink = ink.copy()
        ink[::2] = ink[::2] * (1 - look.dither)
    coverage = ink.astype(np.float32)
    coverage *= 1 / 255
    if look.wear:
        coverage *= 1 - look.wear * (0.5 + 0.5 * _crop(noise.clouds, rows, columns, rng))
    if look.generations:
        coverage = _photocopied(coverage, look, noise, rng)
    if look.fax_rows:
        coverage = _faxed(coverage, look, noise, rng)
    elif look.is_bitonal:
        coverage = np.clip((coverage - 0.45) * 5 + 0.5, 0, 1)
    if look.edge:
        coverage = _with_black_edge(coverage, look.edge, noise, rng)
        columns = coverage.shape[1]
    grey = coverage
    grey *= look.ink - look.paper
    grey += look.paper
    if look.rule:
        row = int(rows * (0.6 + 0.35 * rng.random()))
        grey[row : row + 1 + rows // 40] -= look.rule * 80
    if look.streaks and not look.fax_rows:
        for column in (rng.random(look.streaks) * columns).astype(int):
            width = 1 + int(rng.random() * rows / 16)
            grey[:, column : column + width] -= 15 + 60 * rng.random()
    if look.stain:
        grey += look.stain * _crop(noise.clouds, rows, columns, rng)
    if look.grain:
        grey += look.grain * _crop(noise.grain, rows, columns, rng)
    image = Image.fromarray(np.clip(grey, 0, 255, out=grey).astype(np.uint8))
    if look.halo:
        image = image.filter(ImageFilter.UnsharpMask(1.5, round(150 * look.halo), 0))
    if look.jpeg_quality:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=look.jpeg_quality)
        image = Image.open(buffer)
        image.load()
    return image


def _blurred(ink: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(ink).filter(ImageFilter.BoxBlur(radius)))


def _swollen(ink: np.ndarray, swell: float, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Strokes thicker here and thinner there, as the pen is pressed: a threshold that follows the clouds."""
    rows, columns = ink.shape
    spread = _blurred(ink, rows / 40).astype(np.float32)
    level = 55 - 35 * swell * _crop(noise.clouds, rows, columns, rng)
    return np.clip((spread - level) * 4 + 128, 0, 255).astype(np.uint8)


def _photocopied(coverage: np.ndarray, look: Look, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Each copy is a little softer and then harder than the last, its toner uneven; dots where there was dirt."""
    rows, columns = coverage.shape
    for _ in range(look.generations):
        soft = _blurred((coverage * 255).astype(np.uint8), 0.7 * rows / 48).astype(np.float32) / 255
        soft += 0.1 * _crop(noise.clouds, rows, columns, rng)
        soft += 0.07 * _crop(noise.grain, rows, columns, rng)
        coverage = np.clip((soft - look.toner) * 3 + 0.5, 0, 1)
    _speckle(coverage, look.specks * columns / rows, 1 + rows // 28, rng)
    return coverage


def _faxed(coverage: np.ndarray, look: Look, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Sent through a raster of black and white whose rows and columns are of unlike length, some rows lost on the way."""
    rows, columns = coverage.shape
    letter = look.letter_height * rows  # px
    size = max(round(columns * look.fax_columns / letter), 8), max(round(rows * look.fax_rows / letter), 8)
    raster = Image.fromarray((coverage * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    sent = np.asarray(raster, dtype=np.float32) / 255
    sent += 0.08 * _crop(noise.grain, size[1], size[0], rng)
    bits = (sent > look.toner).astype(np.uint8)
    for column in (rng.random(look.streaks) * size[0]).astype(int):
        bits[:, column] |= rng.random(size[1]) < 0.2 + 0.3 * rng.random()
    _speckle(bits, look.specks * columns / rows, 1 + size[1] // 24, rng)
    resampling = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BILINEAR
    if look.dropouts:
        lost = np.flatnonzero(rng.random(size[1] - 1) < look.dropouts) + 1
        lost = lost[np.diff(lost, prepend=-1) > 1]  # two in a row would take a stroke of an "e" with them
        start = int(rng.random() * size[0] * 0.5)
        # What the receiver does about it: the row before once more, or white.
        bits[lost, start:] = bits[lost - 1, start:] if rng.random() < 0.6 else 0
    shown = Image.fromarray(bits * np.uint8(255)).resize((columns, rows), resampling)
    return np.asarray(shown, dtype=np.float32) / 255


def _speckle(coverage: np.ndarray, count: float, largest: int, rng: np.random.Generator) -> None:
    """Black dots of up to `largest` px, `count` of them on average, put into the coverage."""
    rows, columns = coverage.shape
    for row, column, height, width in rng.random((int(rng.poisson(count)), 4)) * (rows, columns, largest, largest):
        coverage[int(row) : int(row + height) + 1, int(column) : int(column + width) + 1] = 1


def _with_black_edge(coverage: np.ndarray, edge: float, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """The copier's lid was open: black, with a ragged border, before or after the line; the picture grows by it."""
    rows, columns = coverage.shape
    width = max(round(edge * rows), 2)
    border = width * (0.7 + 0.3 * _crop(noise.clouds, rows, 1, rng)) + 0.5 * _crop(noise.grain, rows, 1, rng)
    band = (np.arange(width + 2) < border).astype(np.float32)  # (rows, width + 2)
    return np.hstack([band, coverage] if rng.random() < 0.5 else [coverage, band[:, ::-1]])


def _crop(bank: np.ndarray, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A piece of a noise bank, float32 (rows, columns), wrapped round where it is larger than the bank."""
    top, left = int(rng.random() * max(bank.shape[0] - rows, 1)), int(rng.random() * max(bank.shape[1] - columns, 1))
    piece = bank[top : top + rows, left : left + columns]
    if piece.shape == (rows, columns):
        return piece
    return np.take(bank[np.arange(top, top + rows) % len(bank)], range(left, left + columns), axis=1, mode="wrap")
