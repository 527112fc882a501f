"""The text of a card: sections between marks, which are written anew, and what stands outside of them, which stays.

<!-- hf-vlm: begin parts -->
written by `write_card`, each time
<!-- hf-vlm: end parts -->
what its author wrote
"""

import re
from collections.abc import Mapping

from huggingface_hub import ModelCard, ModelCardData

_MARK = re.compile(r"^<!-- hf-vlm: (begin|end) (\S+) -->[ \t]*$", re.MULTILINE)
NOTE = "<!-- `hf-vlm card` writes what stands between its marks anew; what stands outside of them stays. -->"


def join_sections(sections: Mapping[str, str], old: str | None, source: str = "README.md") -> str:
    """The text of a card without its header.

    Args:
        sections: name -> text, in their order.
        old: the text of the card that is there; None for none. What its author wrote between its sections keeps its place.
        source: of the old text, for errors.

    Raises:
        ValueError: if marks of the old text are missing or crossed.
    """
    blocks = {
        name: f"<!-- hf-vlm: begin {name} -->\n{text.strip()}\n<!-- hf-vlm: end {name} -->"
        for name, text in sections.items()
    }
    if old is None or not old.strip():
        return "\n\n".join([NOTE, *blocks.values()]) + "\n"
    places = find_sections(old, source)
    pieces, at = [], 0
    names = list(blocks)
    left = [name for name in names if name not in places]
    for name, (begin, end) in sorted(places.items(), key=lambda place: place[1]):
        pieces.append(old[at:begin])
        if name in blocks:
            pieces.append(blocks[name])
            while left and names.index(left[0]) == names.index(name) + 1:  # new ones follow those that they follow anew
                name = left.pop(0)
                pieces.append(f"\n\n{blocks[name]}")
        at = end
    rest = old[at:].strip("\n")
    if left:
        pieces.append("\n\n" + "\n\n".join(blocks[name] for name in left))
    pieces.append(f"\n\n{rest}" if rest else "")
    return re.sub(r"\n{3,}", "\n\n", "".join(pieces)).strip("\n") + "\n"


def find_sections(text: str, source: str = "README.md") -> dict[str, tuple[int, int]]:
    """Name -> where its section begins and ends, marks included.

    Raises:
        ValueError: if marks are missing, crossed, or twice there.
    """
    found: dict[str, tuple[int, int]] = {}
    open_at: tuple[str, int] | None = None
    for mark in _MARK.finditer(text):
        kind, name = mark.groups()
        is_right = (
            (open_at is None and name not in found) if kind == "begin" else open_at is not None and open_at[0] == name
        )
        if not is_right:
            raise ValueError(
                f"The marks of `hf-vlm card` in {source} must come in pairs, got `{mark[0]}` out of place. "
                f"Correct them, or write "
                "elsewhere with `out` (`--out`)."
            )
        if open_at is None:
            open_at = (name, mark.start())
        else:
            found[name], open_at = (open_at[1], mark.end()), None
    if open_at is not None:
        raise ValueError(
            f"The marks of `hf-vlm card` in {source} must come in pairs, got no end of `{open_at[0]}`. Correct them, or write "
            "elsewhere with `out` (`--out`)."
        )
    return found


def author_text(text: str) -> str:
    """The text of a card outside of its sections, with an empty line where one stood."""
    pieces, at = [], 0
    for begin, end in sorted(find_sections(text).values()):
        pieces.append(text[at:begin].strip("\n"))
        at = end
    return "\n\n".join(piece for piece in [*pieces, text[at:].strip("\n")] if piece)


def inner_text(text: str, place: tuple[int, int]) -> str:
    """The text of a section between its marks.

    Args:
        place: where it begins and ends, marks included.
    """
    return "\n".join(text[place[0] : place[1]].splitlines()[1:-1])


def is_handwritten(text: str) -> bool:
    """Whether the text of a card is its author's: neither of `hf-vlm card` nor peft's unfilled form."""
    if not text.strip() or _MARK.search(text):
        return False
    form = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    return any(
        line not in form and not line.startswith(("### Framework versions", "- PEFT ")) for line in text.splitlines()
    )
