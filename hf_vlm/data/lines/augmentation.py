"""Changes to line pictures by name: `mild`, and TrOCR's `da2` and `randaugment`.

    picture, rng -> AUGMENTATIONS[name](picture, rng) -> picture

Each is a pure function of the picture and the state of the generator. `mild` is for models that keep a line's aspect
ratio and for the small sets that they are trained on; the other two are the paper's, whose model squeezes every line
into a square: a long line that DA2 turns by ten degrees is three times as high.
"""

import difflib
import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

_DARK = 50  # grey level below which DA2 takes a pixel for ink
_LEAST_HEIGHT = 16  # px of a line that DA2 scales down
_LEAST_SIDE = 8  # px of a picture that RandAugment changes
_LEAST_CONTRAST = 0.25  # share of a picture's contrast that an operation must leave


def augment_line(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey copy of a line, slightly turned, leaned, stretched and shifted, at times blurred, paler or noisier: `mild`.

    Everything stays legible: at most about 1 degree of turn and 12 % of stretch; of the height up to a tenth is cut
    off or added, of the width nothing is lost.

    Args:
        image: a line of any size and mode.
        rng: decides every change; the same state gives the same picture.

    Returns: PIL "L", of the same height, its width changed by the stretch and the lean.

    Source: after Li et al. 2023, TrOCR, "Data augmentation" (rotation, blur, dilation, downscaling),
        https://arxiv.org/abs/2109.10282; milder, since the lines are real already.
    """
    image = image.convert("L")
    width, height = image.size
    paper = int(np.percentile(np.asarray(image), 90))
    stretch = 1 + 0.12 * (2 * rng.random() - 1)
    zoom = 1 + 0.1 * (2 * rng.random() - 1)  # of the height only: above 1, lower letters and more paper
    # A long line turned by a degree would leave its picture: what counts is how far its ends move.
    turn = min(0.015, 0.15 * height / max(width, 1)) * (2 * rng.random() - 1)
    lean = 0.15 * (2 * rng.random() - 1)
    # Text often reaches from edge to edge: the whole width is kept, and what leans out of it gets room.
    room = abs(lean) * height / 2
    new_width = max(round(width * stretch + 2 * room), 1)
    left = -room / stretch - lean * height / 2
    top = height * (1 - zoom) / 2 + height * 0.06 * (2 * rng.random() - 1) - turn * width / 2
    image = image.transform(
        (new_width, height),
        Image.Transform.AFFINE,
        (1 / stretch, lean, left, turn / stretch, zoom, top),
        Image.Resampling.BILINEAR,
        fillcolor=paper,
    )
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.BoxBlur(0.8 * rng.random() * height / 48))
    if rng.random() < 0.15 and height >= 24:  # a poorer scan
        share = 0.5 + 0.4 * rng.random()
        small = image.resize((max(round(new_width * share), 1), round(height * share)), Image.Resampling.BILINEAR)
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        grey = np.asarray(image, dtype=np.float32)
        contrast = 0.6 + 0.6 * rng.random()
        grey = paper + (grey - paper) * contrast + 30 * (2 * rng.random() - 1)
        if rng.random() < 0.4:
            grey = grey + rng.standard_normal(grey.shape, dtype=np.float32) * (8 * rng.random())
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    return image


def augment_da2(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of `DA2_CHANGES`, each as often, as TrOCR's fine-tuning on IAM and SROIE: `da2`.

    Args:
        image: a line of any size; "L" stays, every other mode becomes "RGB".
        rng: decides which change, and the angle or the blur.

    Returns: PIL "L" or "RGB"; larger where it was turned, smaller where it was scaled down.

    Source: Li et al. 2023, TrOCR, "Data augmentation", https://arxiv.org/abs/2109.10282, with the sizes of its released
        code. That scales down the model's input, 384 px, to a third; this the line itself, but to no less than 16 px.
    """
    change = list(DA2_CHANGES.values())[int(rng.random() * len(DA2_CHANGES))]
    return change(_grey_or_rgb(image), rng)


def augment_randomly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As it is half of the time, else changed by one operation of each of three groups of `RAND_AUGMENT`: `randaugment`.

    The groups are drawn without replacement, from each an operation, for each a magnitude of 0, 1 or 2. An operation
    that would leave less than a quarter of the contrast (solarising black on pure white leaves none) is passed over, and a
    picture of less than 8 px either way, or eight times as high as wide, is left as it is.

    Args:
        image: a line of any size; "L" stays, every other mode becomes "RGB".
        rng: decides everything.

    Returns: PIL "L" or "RGB"; of the same size unless it was turned or bent, which adds paper around it.

    Source: Li et al. 2023, TrOCR, RandAugment for scene text, https://arxiv.org/abs/2109.10282; groups and operations
        are its, their strengths are ours, in shares of a line's height.
    """
    image = _grey_or_rgb(image)
    is_sliver = min(image.size) < max(_LEAST_SIDE, image.height / 8)  # no room for a blur's kernel
    if rng.random() < 0.5 or is_sliver:
        return image
    pixels = F.pil_to_tensor(image)  # uint8 (1 or 3, rows, columns)
    for group in rng.choice(len(RAND_AUGMENT), 3, replace=False):
        operations = list(list(RAND_AUGMENT.values())[group].values())
        operation = operations[int(rng.random() * len(operations))]
        changed = operation(pixels, int(rng.integers(3)), rng)
        if _contrast(changed) >= _LEAST_CONTRAST * _contrast(pixels):
            pixels = changed
    return F.to_pil_image(pixels)


AUGMENTATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "mild": augment_line,
    "da2": augment_da2,
    "randaugment": augment_randomly,
}


def augmentation_name(choice: bool | str | None) -> str | None:
    """The name that a recipe's `augment` means: `mild` for true, None for false.

    Raises:
        ValueError: if there is no augmentation of that name.
    """
    if choice is None or isinstance(choice, bool):
        return "mild" if choice else None
    if choice not in AUGMENTATIONS:
        near = difflib.get_close_matches(str(choice).lower(), AUGMENTATIONS, n=1, cutoff=0.5)
        hint = f"Did you mean `{near[0]}`?" if near else "Correct the name."
        raise ValueError(f"`augment` must be true, false or one of {', '.join(AUGMENTATIONS)}, got {choice!r}. {hint}")
    return choice


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


# DA2: (picture, rng) -> picture. On dark ink the maximum of neighbours thins strokes and the minimum thickens them.


def _turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = 20 * rng.random() - 10
    return image.rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor="white")


def _to_a_third(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = min(max(1 / 3, _LEAST_HEIGHT / image.height), 1)
    size = max(int(image.width * scale), 1), max(int(image.height * scale), 1)
    return image.resize(size, Image.Resampling.NEAREST)


def _underlined(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three rows of black, the last that of the lowest dark pixel, from the first dark column to the last."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < _DARK)
    if not rows.size:
        return image
    lowest = int(rows.max())
    image = image.copy()
    ImageDraw.Draw(image).rectangle((int(columns.min()), max(lowest - 2, 0), int(columns.max()), lowest), fill="black")
    return image


def _blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return F.gaussian_blur(image, [3, 3], [0.1 + 1.9 * rng.random()] * 2) if min(image.size) > 1 else image


DA2_CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "rotate": _turned,
    "blur": _blurred,
    "max_filter": lambda image, rng: image.filter(ImageFilter.MaxFilter(3)),
    "min_filter": lambda image, rng: image.filter(ImageFilter.MinFilter(3)),
    "downscale": _to_a_third,
    "underline": _underlined,
    "keep": lambda image, rng: image,
}


# RandAugment: (uint8 (channels, rows, columns), magnitude 0 to 2, rng) -> the like. Torch's own generator is not asked.

_Operation = Callable[[torch.Tensor, int, np.random.Generator], torch.Tensor]


def _contrast(pixels: torch.Tensor) -> float:
    return float(pixels.float().std(correction=0))


def _on_paper(pixels: torch.Tensor, move: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `move` does, its empty corners at the level of each channel that most of the picture has."""
    paper = pixels.flatten(1).median(dim=1).values.float()[:, None, None]
    return _to_levels(move(pixels - paper) + paper)


def _to_levels(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _uniform(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _clouds(pixels: torch.Tensor, cell: float, rng: np.random.Generator) -> torch.Tensor:
    """Smooth noise in [0, 1], float (rows, columns) like the picture's, its bumps about `cell` px wide."""
    _, rows, columns = pixels.shape
    coarse = _uniform(rng, 1, max(round(rows / cell), 1) + 1, max(round(columns / cell), 1) + 1)
    return F.resize(coarse, [rows, columns], InterpolationMode.BICUBIC, antialias=False)[0].clamp(0, 1)


def _either(rng: np.random.Generator, less: float, more: float) -> float:
    return less if rng.random() < 0.5 else more


def _gaussian_noise(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    return _to_levels(pixels + (10, 18, 26)[magnitude] * _normal(rng, *pixels.shape))


def _shot_noise(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    photons = (120, 60, 30)[magnitude] / 255  # of a white pixel, a grey level
    return _to_levels(torch.from_numpy(rng.poisson(pixels.numpy() * photons).astype(np.float32)) / photons)


def _impulse_noise(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    share = (0.02, 0.04, 0.07)[magnitude]
    draw = _uniform(rng, *pixels.shape[1:])
    return torch.where(draw < share / 2, 0, torch.where(draw > 1 - share / 2, 255, pixels)).to(torch.uint8)


def _speckle_noise(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    return _to_levels(pixels * (1 + (0.08, 0.14, 0.2)[magnitude] * _normal(rng, *pixels.shape)))


def _gaussian_blur(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    sigma = (0.015, 0.022, 0.03)[magnitude] * pixels.shape[1]
    size = 2 * math.ceil(2 * sigma) + 1
    return F.gaussian_blur(pixels, [size, size], [max(sigma, 0.1)] * 2)


def _convolved(pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Each channel averaged by a kernel, float (odd, odd) whatever its sum."""
    rows, columns = (edge // 2 for edge in kernel.shape)
    padded = torch.nn.functional.pad(pixels.float()[:, None], (columns, columns, rows, rows), mode="replicate")
    return _to_levels(torch.nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0])


def _defocus_blur(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    radius = (0.025, 0.035, 0.045)[magnitude] * pixels.shape[1]
    reach = torch.arange(-math.ceil(radius), math.ceil(radius) + 1).float()
    return _convolved(pixels, (radius + 0.5 - torch.hypot(reach[:, None], reach)).clamp(0, 1))


def _motion_blur(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    length = (0.06, 0.09, 0.12)[magnitude] * pixels.shape[1]
    angle = math.pi * rng.random()
    reach = torch.arange(-math.ceil(length / 2), math.ceil(length / 2) + 1).float()
    along = reach * math.cos(angle) + reach[:, None] * math.sin(angle)
    across = reach[:, None] * math.cos(angle) - reach * math.sin(angle)
    return _convolved(pixels, (1 - across.abs()).clamp(0, 1) * (along.abs() <= length / 2) + 1e-6)


def _glass_blur(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """Every pixel from somewhere near, as seen through rippled glass."""
    _, rows, columns = pixels.shape
    reach = (0.02, 0.03, 0.037)[magnitude] * rows
    shift = (reach * (2 * _uniform(rng, 2, rows, columns) - 1)).round().long()
    row = (torch.arange(rows)[:, None] + shift[0]).clamp(0, rows - 1)
    column = (torch.arange(columns) + shift[1]).clamp(0, columns - 1)
    return pixels[:, row, column]


def _zoom_blur(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """The mean of pictures nearer and nearer, whose ends move by a small share of the height."""
    _, rows, columns = pixels.shape
    furthest = (0.05, 0.075, 0.1)[magnitude] * rows / max(columns / 2, rows)
    nearer = [
        F.affine(pixels.float(), 0, [0, 0], 1 + furthest * step / 3, [0, 0], InterpolationMode.BILINEAR)
        for step in (1, 2, 3)
    ]
    return _to_levels((pixels + sum(nearer)) / 4)


def _blended(pixels: torch.Tensor, other: float, share: torch.Tensor | float) -> torch.Tensor:
    """The picture with a share, float (rows, columns) or one number, of another level."""
    return _to_levels(pixels + (other - pixels.float()) * share)


def _fog(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    thickness = _clouds(pixels, pixels.shape[1], rng)
    return _blended(pixels, 235, (0.35, 0.45, 0.55)[magnitude] * (0.6 + 0.4 * thickness))


def _snow(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """Flakes, drawn out as they fall, and a little of their white over everything."""
    flakes = (_uniform(rng, 1, *pixels.shape[1:]) < (0.004, 0.007, 0.01)[magnitude]).float() * 255
    size = 2 * max(round(pixels.shape[1] / 40), 1) + 1
    fallen = _motion_blur(_to_levels(F.gaussian_blur(flakes, [size, size]) * size**1.5), 0, rng)[0] / 255
    return _blended(pixels, 255, (0.15 + fallen).clamp(0, 0.85))


def _frost(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """Needles of ice along the folds of smooth noise."""
    noises = torch.stack([_clouds(pixels, pixels.shape[1] / size, rng) for size in (2, 4, 8)])
    folds = (1 - (2 * noises - 1).abs()).mean(0)
    return _blended(pixels, 225, ((folds - 0.5) * 3).clamp(0, 1) * (0.4, 0.5, 0.6)[magnitude])


def _rain(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """Thin grey streaks, all falling one way."""
    _, rows, columns = pixels.shape
    rain = Image.new("L", (columns, rows))
    brush = ImageDraw.Draw(rain)
    lean, length = 0.6 * rng.random() - 0.3, rows * (0.2 + 0.2 * rng.random())
    for x, y in rng.random((round((4, 8, 12)[magnitude] * columns / rows), 2)) * (columns, rows):
        brush.line((x, y, x + lean * length, y + length), fill=255)
    return _blended(pixels, 150, F.pil_to_tensor(rain)[0] / 255 * 0.6)


def _shadow(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """One side of a slanting border is darker."""
    _, rows, columns = pixels.shape
    border = columns * (0.2 + 0.6 * rng.random()) + (rng.random() - 0.5) * 2 * torch.arange(rows)[:, None]
    side = ((torch.arange(columns) - border) * _sign(rng) / (0.1 * rows + 1)).sigmoid()
    return _to_levels(pixels * (1 - (0.25, 0.35, 0.45)[magnitude] * side))


def _pattern(distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> _Operation:
    """Lines wherever a distance, given rows and columns in line heights from the middle, is a multiple of the step."""

    def draw(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
        _, rows, columns = pixels.shape
        step = (0.45, 0.35, 0.25)[magnitude] * rows
        y, x = torch.arange(rows)[:, None] - rows / 2, torch.arange(columns) - columns / 2
        lines = (distance(y, x) + rng.random() * step) % step < max(rows / 48, 1)
        return _blended(pixels, 255 * rng.random(), lines.float() * 0.5)

    return draw


def _square_grid(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    return _h_grid(_v_grid(pixels, magnitude, rng), magnitude, rng)


_v_grid = _pattern(lambda y, x: x + 0 * y)
_h_grid = _pattern(lambda y, x: y + 0 * x)
_rect_grid = _pattern(lambda y, x: torch.maximum(y.abs(), x.abs() - (len(x) - len(y)) / 2))
_ellipse_grid = _pattern(lambda y, x: torch.hypot(y, x * len(y) / len(x)))


def _displaced(pixels: torch.Tensor, right: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Every pixel from so many px further right and down, float (rows, columns) each."""
    _, rows, columns = pixels.shape
    field = torch.stack([right * 2 / columns, down * 2 / rows], dim=-1)[None]  # (1, rows, columns, 2), shares of halves
    return _on_paper(pixels, lambda marks: F.elastic(marks, field, InterpolationMode.BILINEAR))


def _curve(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """The line bent into an arch, with room for it above and below."""
    rise = round((0.15, 0.3, 0.45)[magnitude] * pixels.shape[1])
    pixels = _on_paper(pixels, lambda marks: F.pad(marks, [0, rise]))
    along = torch.linspace(-1, 1, pixels.shape[2])
    down = _sign(rng) * rise * (2 * along**2 - 1) + torch.zeros(pixels.shape[1], 1)
    return _displaced(pixels, torch.zeros_like(down), down)


def _distort(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    rows = pixels.shape[1]
    reach = (0.08, 0.12, 0.16)[magnitude] * rows
    right, down = (reach * (2 * _clouds(pixels, rows, rng) - 1) for _ in range(2))
    return _displaced(pixels, right, down)


def _stretch(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """Letters wider here and narrower there; both ends stay where they are."""
    _, rows, columns = pixels.shape
    waves = max(round(columns / rows / 4), 1)
    phase = torch.linspace(0, math.pi * waves, columns)
    right = _sign(rng) * (0.1, 0.2, 0.3)[magnitude] * columns / (math.pi * waves) * phase.sin()
    return _displaced(pixels, right + torch.zeros(rows, 1), torch.zeros(rows, columns))


def _rotate(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """By up to 15 degrees, and so that the picture of a long line does not get twice as high."""
    _, rows, columns = pixels.shape
    rise = (0.25, 0.5, 0.75)[magnitude] * rows / columns
    angle = min((5, 10, 15)[magnitude], math.degrees(math.atan(rise))) * rng.random() * _sign(rng)
    return _on_paper(pixels, lambda marks: F.rotate(marks, angle, InterpolationMode.BILINEAR, expand=True))


def _perspective(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """One side is further away: its corners come nearer to each other."""
    _, rows, columns = pixels.shape
    near = (0.08, 0.14, 0.2)[magnitude] * rows
    corners = [[0, 0], [columns - 1, 0], [columns - 1, rows - 1], [0, rows - 1]]
    moves = [[near * float(x), near * float(y)] for x, y in rng.random((4, 2))]
    signs = [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    ends = [
        [round(x + dx * sx), round(y + dy * sy)]
        for (x, y), (dx, dy), (sx, sy) in zip(corners, moves, signs, strict=True)
    ]
    return _on_paper(pixels, lambda marks: F.perspective(marks, corners, ends, InterpolationMode.BILINEAR))


def _shrink(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    """The line smaller, in a picture of the same size."""
    scale = (0.9, 0.8, 0.7)[magnitude] + 0.1 * rng.random()
    return _on_paper(pixels, lambda marks: F.affine(marks, 0, [0, 0], scale, [0, 0], InterpolationMode.BILINEAR))


def _jpeg(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    stored = io.BytesIO()  # by Pillow: torchvision gives its own up
    F.to_pil_image(pixels).save(stored, "JPEG", quality=(30, 20, 12)[magnitude])
    return F.pil_to_tensor(Image.open(stored))


def _pixelate(pixels: torch.Tensor, magnitude: int, rng: np.random.Generator) -> torch.Tensor:
    size = list(pixels.shape[1:])
    small = [max(round(edge * (0.65, 0.55, 0.45)[magnitude]), 1) for edge in size]
    return F.resize(F.resize(pixels, small), size, InterpolationMode.NEAREST)


RAND_AUGMENT: dict[str, dict[str, _Operation]] = {
    "process": {
        "posterize": lambda pixels, magnitude, rng: F.posterize(pixels, (4, 3, 2)[magnitude]),
        "solarize": lambda pixels, magnitude, rng: F.solarize(pixels, (192, 128, 64)[magnitude]),
        "invert": lambda pixels, magnitude, rng: F.invert(pixels),
        "equalize": lambda pixels, magnitude, rng: F.equalize(pixels),
        "autocontrast": lambda pixels, magnitude, rng: F.autocontrast(pixels),
        "sharpness": lambda pixels, magnitude, rng: F.adjust_sharpness(
            pixels, _either(rng, (0.6, 0.4, 0.2)[magnitude], (1.5, 2.0, 3.0)[magnitude])
        ),
        "color": lambda pixels, magnitude, rng: F.adjust_saturation(
            pixels, _either(rng, (0.7, 0.4, 0.1)[magnitude], (1.3, 1.6, 1.9)[magnitude])
        ),
    },
    "camera": {
        "contrast": lambda pixels, magnitude, rng: F.adjust_contrast(pixels, (0.7, 0.55, 0.4)[magnitude]),
        "brightness": lambda pixels, magnitude, rng: F.adjust_brightness(
            pixels, _either(rng, (0.8, 0.7, 0.6)[magnitude], (1.1, 1.2, 1.3)[magnitude])
        ),
        "jpeg": _jpeg,
        "pixelate": _pixelate,
    },
    "noise": {
        "gaussian": _gaussian_noise,
        "shot": _shot_noise,
        "impulse": _impulse_noise,
        "speckle": _speckle_noise,
    },
    "blur": {
        "gaussian": _gaussian_blur,
        "defocus": _defocus_blur,
        "motion": _motion_blur,
        "glass": _glass_blur,
        "zoom": _zoom_blur,
    },
    "weather": {"fog": _fog, "snow": _snow, "frost": _frost, "rain": _rain, "shadow": _shadow},
    "pattern": {
        "vertical_grid": _v_grid,
        "horizontal_grid": _h_grid,
        "square_grid": _square_grid,
        "rectangle_grid": _rect_grid,
        "ellipse_grid": _ellipse_grid,
    },
    "warp": {"curve": _curve, "distort": _distort, "stretch": _stretch},
    "geometry": {"rotate": _rotate, "perspective": _perspective, "shrink": _shrink},
}
