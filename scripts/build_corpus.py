"""Collect sentences to draw text lines from: one a line, UTF-8, each once, for `hf_vlm.data.lines.ocr_lines.LineRenderer`.

    python scripts/build_corpus.py OUT.txt FOLDER_OR_FILE... [--transcripts TRAIN.parquet[:COLUMN=VALUE,...] ...]

Folders are searched for running text: plain text and fortune files, HTML, manual pages (`*.1.gz`). Unpacked Debian
packages of several languages do well (`dpkg -x manpages-fr.deb`, `fortunes-de`, `debian-faq-fr`, `bible-kjv-text`).
`--transcripts` adds the `text` column of parquet files, all rows or those with certain values in one column; `*` matches
anything, what follows `!` is left out. What is not prose (tables, code, markup, other alphabets) is left out by simple
measures, not perfectly.
"""

import argparse
import gzip
import html.parser
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet

from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET
from hf_vlm.data.lines.image_text import is_chosen

_MAN_PAGE = re.compile(r"\.[1-9][a-z]*\.gz$")
# troff writes é as \\('e: the accent, as a combining character here, before its letter.
_TROFF_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", ":": "\u0308", "~": "\u0303", ",": "\u0327"}
_TROFF_LETTERS = {
    "ss": "ß",
    "Fo": "«",
    "Fc": "»",
    "lq": "“",
    "rq": "”",
    "oe": "œ",
    "OE": "Œ",
    "en": "–",
    "em": "—",
    "co": "©",
}
_NOT_TEXT = {".png", ".jpg", ".gif", ".svg", ".pdf", ".css", ".js", ".so", ".deb", ".dat", ".u8", ".epub", ".ico"}


class _Paragraphs(html.parser.HTMLParser):
    """Collects the text of paragraphs and list items, one a line, leaving out what stands in `pre` or `code`."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipped += tag in ("pre", "script", "style", "head")
        if tag in ("p", "li", "td", "dd", "div", "br"):
            self.text.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("pre", "script", "style", "head")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text.append(data)


def _plain_man_page(text: str) -> str:
    """The prose of a troff manual page: requests dropped, fonts and escapes undone."""
    text = re.sub(r"^\.(?:TP|PP|P|IP|SH|SS|LP|TH|RS|RE|EX|EE|nf|fi)\b.*$", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^[.'](?:BR?|I|IR|BI|RB|RI|SM)\s+(.*)$", lambda m: m[1].replace('"', ""), text, flags=re.MULTILINE)
    text = re.sub(r"^[.'].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\(([\'`^:~,])([A-Za-z])", lambda m: m[2] + _TROFF_ACCENTS[m[1]], text)
    text = re.sub(r"\\\((..)", lambda m: _TROFF_LETTERS.get(m[1], m[0]), text)
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)", "", text)
    for escape, character in ((r"\-", "-"), (r"\(aq", "'"), (r"\(bu", ""), (r"\&", ""), (r"\ ", " "), (r"\~", " ")):
        text = text.replace(escape, character)
    return re.sub(r"\\(?:\(..|\[\w+\]|.)", "", text)


def _read(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if b"\0" in data[:4096]:
        return ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if _MAN_PAGE.search(path.name):
        return _plain_man_page(text)
    if path.suffix in (".html", ".xhtml"):
        parser = _Paragraphs()
        parser.feed(text)
        return "".join(parser.text)
    return text


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that are prose in a Latin alphabet, whitespace collapsed, 15 to 400 characters long."""
    allowed = set(LATIN_ALPHABET) - set("_=<>{}|\\^~`#@+*")  # signs of code and tables
    text = re.sub(r"\n%\n|\n\s*\n", "\0", unicodedata.normalize("NFC", text))
    for paragraph in text.split("\0"):
        # `re.split` after a stop: enough for text lines, which start and end anywhere in a sentence anyway.
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-ZÀ-Þ«“\"])", " ".join(paragraph.split())):
            letters = sum(character.isalpha() or character == " " for character in sentence)
            wordy = sentence.count(" ") >= 2 and max(map(len, sentence.split())) < 30
            if 15 <= len(sentence) <= 400 and wordy and letters > 0.9 * len(sentence) and set(sentence) <= allowed:
                yield sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--transcripts", nargs="*", default=[], metavar="FILE[:COLUMN=VALUE,...]")
    arguments = parser.parse_args()
    found: dict[str, None] = {}  # a set that keeps its order
    for source in arguments.sources:
        before = len(found)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and not path.is_symlink() and path.suffix not in _NOT_TEXT:
                found.update(dict.fromkeys(sentences(_read(path))))
        print(f"{source}: {len(found) - before} sentences")
    for transcript in arguments.transcripts:
        path, _, condition = transcript.partition(":")
        table = pyarrow.parquet.read_table(path, columns=["text", condition.partition("=")[0] or "text"]).to_pylist()
        column, _, value = condition.partition("=")
        rows = [
            " ".join(unicodedata.normalize("NFC", row["text"]).split())
            for row in table
            if not column or is_chosen(row[column], value.split(","))
        ]
        found.update(dict.fromkeys(rows))
        print(f"{transcript}: {len(rows)} lines")
    arguments.out.write_text("\n".join(found) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {len(found)} sentences, {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
