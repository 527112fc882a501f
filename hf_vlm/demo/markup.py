"""Results as HTML: figures, a table of lines, words marked by confidence. Every text that goes in is escaped here."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from hf_vlm.pipelines.attention_sheets import Panel

_SMALL_SIDE = 128  # px; a smaller picture is enlarged in whole pixels, as those of a tokenizer that sees 32 x 32
_UNSURE = 0.5  # a word below this confidence is marked


def figures(panels: Iterable[Panel]) -> str:
    """Pictures under their captions, side by side as far as the page is wide; a caption is also its picture's alt text."""
    return f'<div class="figures">{"".join(_figure(caption, picture) for caption, picture in panels)}</div>'


def _figure(caption: str, picture: Image.Image) -> str:
    told = escape(caption)
    kind = "wide" if picture.width > 2.5 * picture.height else "small" if max(picture.size) < _SMALL_SIDE else ""
    return (
        f'<figure class="{kind}"><img alt="{told}" src="{data_url(picture)}"><figcaption>{told}</figcaption></figure>'
    )


def data_url(picture: Image.Image) -> str:
    """A picture as part of the page itself: PNG where every pixel counts, JPEG for large ones."""
    written = io.BytesIO()
    kind = "png" if max(picture.size) <= 2 * _SMALL_SIDE else "jpeg"
    picture.convert("RGB").save(written, kind, **({} if kind == "png" else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"


def sections(lines: Sequence[str], panels_by_title: Mapping[str, Sequence[Panel]]) -> str:
    """Sentences, then the panels of every section under its title."""
    told = notes(lines)
    for title, panels in panels_by_title.items():
        told += f"<h3>{escape(title)}</h3>" if title else ""
        told += figures(panels)
    return told


def notes(lines: Iterable[str]) -> str:
    """A paragraph a sentence."""
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def lines_table(lines: Sequence[Any]) -> str:
    """A row a line that was read: its number, as in the picture, its words, the unsure ones marked, and its score."""
    if not lines:
        return notes(["No line was found."])
    rows = "".join(
        f'<tr><td>{number}</td><td class="said">{_words(line.words) or "(nothing)"}</td><td>{_percent(line.score)}</td></tr>'
        for number, line in enumerate(lines, start=1)
    )
    head = '<tr><th scope="col">Line</th><th scope="col">Text</th><th scope="col">Score</th></tr>'
    legend = f"Underlined: words that the model is less than {100 * _UNSURE:.0f} % sure of. The score is that of a whole line."
    return f'<table class="results"><thead>{head}</thead><tbody>{rows}</tbody></table>{notes([legend])}'


def _words(words: Iterable[Mapping[str, Any]]) -> str:
    told = []
    for word in words:
        text, sure = escape(str(word["word"])), float(word["confidence"])
        told.append(f"<mark>{text} <small>{_percent(sure)}</small></mark>" if sure < _UNSURE else text)
    return " ".join(told)


def ranked(column: str, rows: Iterable[tuple[str, float]]) -> str:
    """A row an answer, the best first, with its probability as a number and a bar."""
    body = "".join(
        f'<tr><td class="said">{escape(text) or "(nothing)"}</td><td>{_percent(share)}</td>'
        f'<td><span class="bar" style="width: {100 * share:.1f}%"></span></td></tr>'
        for text, share in rows
    )
    head = f'<tr><th scope="col">{escape(column)}</th><th scope="col" colspan="2">Probability</th></tr>'
    return f'<table class="results"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.9995 else "100 %"
