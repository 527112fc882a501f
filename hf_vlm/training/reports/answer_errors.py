"""Where answers go wrong: edits by an alignment, confusions of characters, scores by kind and by length."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LENGTHS = (8, 16, 32, 64)  # characters: upper ends of the classes
Edit = tuple[str, str]  # what stood there and what was read, "" for none


@dataclass
class KindScore:
    """How rows of one kind were answered.

    Attributes:
        kind: as the rows say.
        num_rows: that were answered.
        num_judged: of them, how many can be told right or wrong.
        num_right: of those.
        error_rate: edited characters per character of the nearest references, of all rows; None without references.
    """

    kind: str
    num_rows: int
    num_judged: int
    num_right: int
    error_rate: float | None


@dataclass
class Confusion:
    """How often a character was taken for another.

    Attributes:
        wanted: what stands there; "" where something was inserted.
        read: what was read; "" where it was left out.
        number: of times.
    """

    wanted: str
    read: str
    number: int


@dataclass
class LengthScore:
    """Lines of like length.

    Attributes:
        shortest, longest: characters; `longest` is None for no limit.
        num_lines: of that length.
        error_rate: edited characters per reference character.
    """

    shortest: int
    longest: int | None
    num_lines: int
    error_rate: float


def plain_text(text: str, ignore_case: bool = False) -> str:
    """A text as it is compared: NFC, outer space cut off, case folded if asked for."""
    text = unicodedata.normalize("NFC", text).strip()
    return text.casefold() if ignore_case else text


def character_edits(wanted: str, read: str) -> list[Edit]:
    """The fewest edits that make one text of the other, in the order of the text.

    Of several ways to do with as few edits, one that replaces characters comes before one that moves them.

    Source: the Levenshtein distance over code points, with its alignment (Wagner & Fischer 1974,
        https://doi.org/10.1145/321796.321811).
    """
    columns = len(read) + 1
    costs = [list(range(columns))]  # costs[i][j]: edits of the first i and j characters
    for i, character in enumerate(wanted, start=1):
        row, above = [i], costs[-1]
        for j in range(1, columns):
            replaced = above[j - 1] + (character != read[j - 1])
            row.append(min(replaced, above[j] + 1, row[j - 1] + 1))
        costs.append(row)
    edits: list[Edit] = []
    i, j = len(wanted), len(read)
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + (wanted[i - 1] != read[j - 1]):
            if wanted[i - 1] != read[j - 1]:
                edits.append((wanted[i - 1], read[j - 1]))
            i, j = i - 1, j - 1
        elif i and costs[i][j] == costs[i - 1][j] + 1:
            edits.append((wanted[i - 1], ""))
            i -= 1
        else:
            edits.append(("", read[j - 1]))
            j -= 1
    return edits[::-1]


def nearest(references: Sequence[str], answer: str, ignore_case: bool = False) -> tuple[str, list[Edit]]:
    """The reference that an answer is nearest to, and the edits between them.

    Raises:
        ValueError: if there are no references.
    """
    if not references:
        raise ValueError("A reference or more are wanted, got none. Leave such rows out.")
    plain = [plain_text(reference, ignore_case) for reference in references]
    edits = [character_edits(reference, plain_text(answer, ignore_case)) for reference in plain]
    best = min(range(len(plain)), key=lambda index: len(edits[index]))
    return plain[best], edits[best]


def confusions(edits: Iterable[Edit], number: int) -> list[Confusion]:
    """The commonest of many edits, the most frequent first."""
    counts = Counter(edits)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(wanted, read, times) for (wanted, read), times in ranked[:number]]


def scores_by_length(lengths: Sequence[int], num_edits: Sequence[int]) -> list[LengthScore]:
    """Error rates of lines of like length, the shortest first; classes without lines are left out.

    Args:
        lengths: characters of each line's reference.
        num_edits: of each line.
    """
    scores = []
    shortest = 0
    for longest in (*_LENGTHS, None):
        rows = [
            index
            for index, length in enumerate(lengths)
            if length >= shortest and (longest is None or length <= longest)
        ]
        if rows:
            characters, edits = sum(lengths[row] for row in rows), sum(num_edits[row] for row in rows)
            scores.append(LengthScore(shortest, longest, len(rows), edits / max(characters, 1)))
        if longest is not None:
            shortest = longest + 1
    return scores
