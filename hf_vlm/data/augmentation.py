"""Mild, cheap changes to real line pictures, so that a few thousand of them last for many epochs."""

import numpy as np
from PIL import Image, ImageFilter


def augment_line(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey copy of a line, slightly turned, leaned, stretched and shifted, at times blurred, paler or noisier.

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
