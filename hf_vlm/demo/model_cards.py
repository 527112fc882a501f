"""A model's README.md as HTML that is safe on a page: no HTML of the card's own, no script, nothing fetched from elsewhere."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from hf_vlm.demo.folders import DemoFolder
from hf_vlm.demo.markup import data_url

_MOST_SIDE = 640  # px, of a card's pictures


def card_html(folder: DemoFolder) -> str:
    """The card of a model, its name and where it lies above; pictures that lie beside the card are part of the page.

    HTML in the card is shown as text, and a picture from elsewhere as a link to it.
    """
    return f'<div class="card" role="region" tabindex="0" aria-label="Card of {html.escape(folder.name)}">{_inside(folder)}</div>'


def _inside(folder: DemoFolder) -> str:
    about = f"adapter of {folder.adapter_of}" if folder.adapter_of else "model"
    head = f'<p class="note">{html.escape(folder.source)} ({html.escape(about)})</p>'
    if folder.card is None:
        return head + '<p class="note">There is no card (README.md) beside it; <code>hf-vlm card</code> writes one.</p>'
    try:
        text = ModelCard(folder.card.read_text(encoding="utf-8"), ignore_metadata_errors=True).text
    except (OSError, ValueError) as error:
        return head + f'<p class="note">The card can\'t be read ({html.escape(str(error))}).</p>'
    return head + _render(text, folder.card.parent)


def _render(text: str, beside: Path) -> str:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _shown_image)
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):  # the page has a title of its own
            token.tag = f"h{min(int(token.tag[1:]) + 2, 6)}"
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrSet("target", "_blank")
                inner.attrSet("rel", "noopener noreferrer")
    return parser.renderer.render(tokens, parser.options, {"beside": beside})


def _shown_image(renderer: Any, tokens: Sequence[Token], index: int, options: Any, environment: Any) -> str:
    token = tokens[index]
    source, told = str(token.attrGet("src") or ""), html.escape(token.content)
    folder: Path = environment["beside"]
    file = folder / unquote(source)
    if "://" not in source and file.is_file() and _lies_in(file, folder):
        try:
            picture = Image.open(file).convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            return told
        picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
        return f'<img alt="{told}" src="{data_url(picture)}">'
    return f'<a href="{html.escape(source)}" target="_blank" rel="noopener noreferrer">{told or "picture"}</a>'


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether a card's picture is in its folder: as the card names it, and, as the Hub's cache is full of links, before these."""
    return os.path.normpath(file).startswith(os.path.normpath(folder) + os.sep)
