"""Pictures of a card, which lie beside it: what its author shows, and the course of the loss."""

import importlib.util
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

from PIL import Image

from hf_vlm.sharing.cards import run as course
from hf_vlm.sharing.cards.facts import Facts
from hf_vlm.sharing.cards.sections import find_sections

MAX_PICTURE_BYTES = 200_000
_SHOWN = re.compile(r"!\[(?:\\.|[^]\\])*\]\(([^)/]+)\)")  # a bracket in the title has a backslash before it
CURVES_FILE = "training_curves.png"


def take_picture(picture: Path, folder: Path, written: Path) -> str:
    """Take a picture to be put beside the card, made smaller where it is large, and give back its name.

    Args:
        picture: file.
        folder: of the card.
        written: folder that takes the picture, unless it lies beside the card as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture.
    """
    if not picture.is_file():
        raise FileNotFoundError(f"A picture is wanted, got `{picture}`, which is no file. Correct it.")
    try:
        with Image.open(picture) as opened:
            opened.load()
            image = opened.convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"A picture is wanted, got {picture.name}, which does not open ({error}). Give a PNG or JPEG."
        ) from error
    if picture.stat().st_size <= MAX_PICTURE_BYTES:
        if picture.resolve() != (folder / picture.name).resolve():
            shutil.copyfile(picture, written / picture.name)
        return picture.name
    target = written / f"{picture.stem}-small.jpg"
    side = 1600
    while True:
        image.thumbnail((side, side))
        image.save(target, quality=85)
        if target.stat().st_size <= MAX_PICTURE_BYTES:
            return target.name
        side = side * 3 // 4


def old_picture(old: str | None, file: Path) -> str | None:
    """The picture of the summary of the card that is there, if it still lies beside it."""
    if old is None or (place := find_sections(old).get("summary")) is None:
        return None
    shown = _SHOWN.search(old[place[0] : place[1]])
    if shown is None:
        return None
    name = unquote(shown[1])
    return name if "/" not in name and (file.parent / name).is_file() else None


def show_picture(title: str, name: str) -> str:
    """Markdown that shows a picture beside the card, whatever it and its file are called.

    Args:
        title: plain text.
        name: of the file.
    """
    escaped = re.sub(r"([]\\[])", r"\\\1", title)
    return f"![{escaped}]({quote(name)})"


def plot_curves(facts: Facts, folder: Path) -> str | None:
    """Draw the loss by step beside the card, if matplotlib is there and there is a curve; the file's name."""
    loss = next((chart for chart in course.charts(facts.sections, facts.state) if chart.title == "loss"), None)
    lines = [line for line in loss.lines if line.steps] if loss is not None else []
    if not any(len(line.steps) > 1 for line in lines) or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    for line in lines:
        axes.plot(line.steps, line.values, label=line.name, marker="." if len(line.steps) < 20 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    figure.savefig(folder / CURVES_FILE)
    return CURVES_FILE
