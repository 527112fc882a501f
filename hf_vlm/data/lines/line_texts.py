"""What synthetic lines say: fragments of running text, headings, numbers, receipt entries, random characters."""

import logging
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

# English, German and French sentences, written for this package: enough to try it, few for a training of weight.
SHIPPED_SENTENCES = Path(__file__).with_name("sentences.txt")
_LEAST_SHARE = 0.05  # of a corpus's letters that the alphabet must have
_SAMPLED = 200_000  # characters of a corpus that are looked at to judge it


class LineTexts:
    """Makes up the texts of lines from sentences and an alphabet.

    Args:
        texts: a UTF-8 file of sentences, one a line, or the sentences themselves.
        alphabet: the characters that may be used; others are left out of the sentences.

    Attributes:
        frequencies: how often each character but the space comes in a sample of the text that is left.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not UTF-8 text, if it is in another script than the alphabet, or if the alphabet or
            the text that is left is empty.
    """

    def __init__(self, texts: str | Path | Iterable[str], alphabet: str) -> None:
        origin = "`texts`"
        if isinstance(texts, str | Path):
            origin = str(texts)
            if not Path(texts).is_file():
                raise FileNotFoundError(
                    f"`texts` must be a file of sentences, got {texts}, which does not exist. Check the path."
                )
            try:
                texts = Path(texts).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{origin} must be UTF-8 text, got byte {error.start} that is not. Convert it, as by "
                    "`iconv -f latin1 -t utf-8`."
                ) from error
        self.alphabet = unicodedata.normalize("NFC", alphabet)
        self._characters = "".join(character for character in self.alphabet if not character.isspace())
        if not self._characters:
            raise ValueError("`alphabet` must hold characters to draw, got none. Pass `LATIN_ALPHABET`.")
        self._allowed = frozenset(self.alphabet) | {" "}
        # One long text: lines of real text start and end anywhere in a sentence.
        prose = unicodedata.normalize("NFC", " ".join(texts))
        unwanted = {ord(character): None for character in set(prose) - self._allowed if not character.isspace()}
        share, examples = _foreign_letters(prose, self._allowed)
        if share > 1 - _LEAST_SHARE:
            raise ValueError(
                f"`texts` must be in the letters of `alphabet`, got {share:.0%} others ({examples}, ...) in {origin}. Name a "
                "file in that script, or give an `alphabet` with these letters and fonts that have them."
            )
        if share > 0:
            logger.warning(
                "%s: %.2f %% of the letters are not in the alphabet and are left out: %s.",
                origin,
                100 * share,
                examples,
            )
        self._prose = " ".join(prose.translate(unwanted).split())
        if not self._prose:
            raise ValueError(f"`texts` must hold words of the alphabet, got none in {origin}. Name another file.")
        self.frequencies = Counter(_sample(self._prose).replace(" ", ""))

    def draw(self, kind: str, length: int, rng: np.random.Generator) -> str:
        """A text of about `length` characters, not more, as lines of that kind (`print`, `receipt`, ...) have."""
        draw = rng.random()
        if kind == "receipt" and draw < 0.6:
            text = self._receipt_entry(length, rng)
        elif kind == "receipt" and draw < 0.75:
            text = self.fragment(length, rng).upper()
        elif draw < 0.05:
            text = _numbers(length, rng)
        elif draw < 0.1:
            text = self._random_characters(length, rng)
        elif draw < 0.16:
            text = self.fragment(length, rng).upper()
        elif draw < 0.19:
            text = self.fragment(length, rng).title()
        elif draw < 0.6 and kind in ("print", "pen"):
            text = _typeset(self.fragment(length, rng))
        else:
            text = self.fragment(length, rng)
        if not set(text) <= self._allowed:  # capitals, typographic marks and signs of numbers may be new
            text = "".join(character for character in text if character in self._allowed)
        return " ".join(text[:length].split()) or self._characters[int(rng.random() * len(self._characters))]

    def fragment(self, length: int, rng: np.random.Generator) -> str:
        """At most `length` characters of running text from a word's start, broken at the end with a hyphen at times."""
        start = self._prose.find(" ", int(rng.random() * len(self._prose))) + 1  # the beginning if no space follows
        piece = self._prose[start : start + length + 1]
        if len(piece) > length:
            if length > 4 and rng.random() < 0.1 and piece[length - 3 :].isalpha() and "-" in self._allowed:
                return piece[: length - 1] + "-"
            end = piece.rfind(" ", 1)
            piece = piece[: end if end > 0 else length]
        return piece.strip()

    def _random_characters(self, length: int, rng: np.random.Generator) -> str:
        """Words of any characters at all: rare ones are met, and no language helps to guess them."""
        picks = [self._characters[int(pick * len(self._characters))] for pick in rng.random(length)]
        gaps = rng.random(length) < 0.15
        return "".join(" " if gap else character for character, gap in zip(picks, gaps, strict=True))

    def _receipt_entry(self, length: int, rng: np.random.Generator) -> str:
        """What tills print: words of the trade, goods, prices, codes, until `length` characters are full."""
        parts: list[str] = []
        while not parts or sum(map(len, parts)) + len(parts) < length:
            draw = rng.random()
            if draw < 0.3:
                parts.append(_pick(_RECEIPT_WORDS, rng) + _pick(("", "", ":", " :"), rng))
            elif draw < 0.5:
                goods = self.fragment(4 + int(rng.random() * 12), rng)
                parts.append(goods.upper() if rng.random() < 0.7 else goods.title())
            elif draw < 0.7:
                parts.append(_filled(_pick(_AMOUNTS, rng), rng))
            elif draw < 0.85:
                parts.append(_filled(_pick(_CODES, rng), rng))
            else:
                parts.append(_filled(_pick(_NUMBERS, rng), rng))
        return " ".join(parts)


# Patterns: 0 is any digit, 1 a digit from 1 on, Y a year, A a capital; everything else stands for itself.
_NUMBERS = (
    "10/10/Y", "10.1.Y", "1.1.Y", "Y-10-10", "Y", "10:00", "1:00", "10.00", "100,00", "1,000.00", "10%", "1 %", "§ 10",
    "S. 100", "p. 100", "pp. 10-10", "(1)", "- 10 -", "10°", "Nr. 100", "n° 10", "No. 1000", "£10", "$ 100.00",
    "€ 10,00", "10 €", "000-0000 000", "+10 000 0000", "100000", "000000000000", "1½", "10 fr. 00",
    "10, 10; 10 f.", "1) Y",
)  # fmt: skip
_AMOUNTS = (
    "1.00", "10.00", "100.00", "1,000.00", "RM10.00", "RM 1.00", "$10.00", "10.00 S", "1.00 SR", "-1.00", "€1.00",
    "1 X 10.00", "1 x 1.00", "@1.00", "10.00*", "(1.00)", "1 PCS", "1 @ 1.00",
)  # fmt: skip
_CODES = (
    "A000", "000000-A", "(000000-A)", "AA000000", "000000000000", "#0000", "A00-0000", "00000/00", "AA-00000",
    "00-0000 0000", "10000 AA", "1%", "****0000", "AA:00", "00:00:00",
)  # fmt: skip
_RECEIPT_WORDS = (
    "TOTAL", "SUBTOTAL", "SUB TOTAL", "GRAND TOTAL", "CASH", "CHANGE", "TAX", "TAX INVOICE", "GST", "VAT", "MWST",
    "TVA", "SUMME", "BAR", "RÜCKGELD", "TOTAL TTC", "MONTANT", "ESPÈCES", "RENDU", "CARTE BANCAIRE", "QTY", "ITEM",
    "DESC", "PRICE", "AMOUNT", "DISC", "DISCOUNT", "ROUNDING", "BALANCE", "DATE", "TIME", "CASHIER", "TABLE",
    "INVOICE NO", "RECEIPT", "TEL", "FAX", "GST ID", "REG NO", "DOC NO", "BILL NO", "MEMBER", "POINTS", "VISA", "CARD",
    "THANK YOU", "PLEASE COME AGAIN", "MERCI DE VOTRE VISITE", "VIELEN DANK", "OPEN DAILY", "GOODS SOLD", "LTD",
    "SDN BHD", "GMBH", "S.A.R.L.", "ROAD", "STREET", "JALAN", "RUE", "STR.", "Total Amount", "Net Total", "Tax Summary",
    "Incl. GST", "Excl. tax", "Qty", "Unit Price", "Cashier", "Counter", "Date", "Time", "Server", "Amount Due",
    "Change", "Cash Tendered", "Invoice", "Order", "Table", "Guests", "Tel", "No.", "Item(s)", "Total Qty",
    "Rounding Adj", "Thank you", "Welcome", "Salesperson", "Ref",
)  # fmt: skip


def _sample(prose: str) -> str:
    """Characters from all over a text, all of them where it is short."""
    return prose[:: max(len(prose) // _SAMPLED, 1)]


def _foreign_letters(prose: str, allowed: frozenset[str]) -> tuple[float, str]:
    """What share of a text's letters is not allowed, in [0, 1], and the commonest of them in words."""
    if not any(map(str.isalpha, allowed)):  # digits and signs only: the text may have all the letters it likes
        return 0.0, ""
    letters = Counter(filter(str.isalpha, _sample(prose)))
    foreign = Counter({letter: count for letter, count in letters.items() if letter not in allowed})
    return foreign.total() / max(letters.total(), 1), ", ".join(letter for letter, _ in foreign.most_common(5))


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.random() * len(choices))]


def _filled(pattern: str, rng: np.random.Generator) -> str:
    draws = rng.random(len(pattern))
    filled = []
    for sign, draw in zip(pattern, draws, strict=True):
        if sign == "0":
            filled.append(string.digits[int(draw * 10)])
        elif sign == "1":
            filled.append(string.digits[1 + int(draw * 9)])
        elif sign == "A":
            filled.append(string.ascii_uppercase[int(draw * 26)])
        elif sign == "Y":
            filled.append(str(1700 + int(draw * 330)))
        else:
            filled.append(sign)
    return "".join(filled)


def _numbers(length: int, rng: np.random.Generator) -> str:
    """Dates, amounts, telephone and page numbers, until `length` characters are full."""
    parts: list[str] = []
    while not parts or sum(map(len, parts)) + len(parts) < length:
        parts.append(_filled(_pick(_NUMBERS, rng), rng))
    return " ".join(parts)


def _typeset(text: str) -> str:
    """Straight quotation marks, apostrophes and dashes as a compositor sets them."""
    text = text.replace(" - ", " – ").replace("--", "—").replace("...", "…").replace("'", "’")
    for index in range(text.count('"')):
        text = text.replace('"', "“”"[index % 2], 1)
    return text
