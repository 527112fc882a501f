"""Pages of a few drawn lines, and a finder of their lines that needs no detector."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = ImageFont.load_default(size=18)
LEFT, TOP, PITCH = 20, 16, 40


def drawn_page(texts, size=(260, 200)):
    """Dark lines of text on white paper, one below the other."""
    page = Image.new("RGB", size, "white")
    for number, text in enumerate(texts):
        ImageDraw.Draw(page).text((LEFT, TOP + PITCH * number), text, fill="black", font=FONT)
    return page


def find_drawn_lines(page):
    """The corners around every run of rows with ink, from the lowest up, as a detector gives no order."""
    ink = np.asarray(page.convert("L")) < 128
    edges = np.flatnonzero(np.diff(np.pad(ink.any(axis=1), 1)))
    lines = []
    for top, bottom in edges.reshape(-1, 2).tolist():
        columns = np.flatnonzero(ink[top:bottom].any(axis=0))
        left, right = int(columns[0]), int(columns[-1]) + 1
        lines.append([(left, top), (right, top), (right, bottom), (left, bottom)])
    return lines[::-1]
