"""Text of teachers: made clean, and taken apart into questions and answers, whichever way a model writes them down.

What is asked for is blocks, `Question:` / `===` / `Answer:` / `===`. Weak models write much else that is as good: `Q:` and `A:`,
`**Question 1:**` with the text behind it, `User:` and `Assistant:`, JSON, a line without its `===`, a greeting before and a note
after. All of these are read; text that can't be told to be a question or an answer is left out.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS, with_format_prompt

Exchange = tuple[str, str]  # a question and its answer

# UTF-8 read as Windows-1252, and what it was; then signs that mean the same as plainer ones.
_MENDED = {
    "â€™": "'", "â€˜": "'", "â€œ": '"', "â€\x9d": '"', "â€”": "—", "â€“": "–", "â€¦": "…", "Â\xa0": " ", "Ã©": "é", "Ã¨": "è",
    "Ã¼": "ü", "Ã¶": "ö", "Ã¤": "ä", "ÃŸ": "ß", "Ã±": "ñ", "Ã§": "ç", "Â°": "°",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2028": "\n", "\u2029": "\n\n", "\x85": "\n", "\r\n": "\n",
    "\r": "\n", "\x0b": "\n", "\x0c": "\n",
}  # fmt: skip
_MEND = re.compile("|".join(re.escape(wrong) for wrong in sorted(_MENDED, key=len, reverse=True)))
_PLAIN = re.compile(r"[\n\t -~]*")  # nothing in it is ever dropped
_JOINERS = "\u200c\u200d"  # inside words of Persian and Hindi, and in emoji
_DROPPED = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, format, surrogate, private, unassigned

_QUESTION_LABELS = "question|q|user|human|frage|pregunta"
_ANSWER_LABELS = "answer|a|assistant|gpt|antwort|respuesta|réponse|reponse"
_LABEL = re.compile(
    rf"^[\s>#*_\-•]*(?:\d{{1,3}}\s*[.)]\s*)?[*_]*(?:(?P<question>{_QUESTION_LABELS})|(?P<answer>{_ANSWER_LABELS}))"
    r"\s*[#(]?\s*\d{0,3}\)?\s*[*_]*\s*[:：]\s*[*_]*\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
_INLINE_LABEL = re.compile(
    r"(?<=[.?!*\"'=])(?<!\d\.)[ \t]+(?=[*_]{0,3}(?:Question|Answer|Q|A|User|Assistant|Human)\s?\d{0,3}[*_]{0,3}:)"
)
_SEPARATOR = re.compile(r"\s*(?:={3,}|-{3,}|_{3,}|\*{3,})\s*")
_INLINE_SEPARATOR = re.compile(r"[ \t]*={3,}[ \t]*")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$", re.MULTILINE)
_ENUMERATION = re.compile(r"^(?:\d{1,3}\s*[.)]|[-*•])\s+")
_HEADING = re.compile(r"^(?:#{1,6}\s.*|\*\*[^*]+\*\*:?|[\w ]{0,40}description[\w ]{0,20}:)$", re.IGNORECASE)
_DETAIL_LABEL = re.compile(
    r"^[*_#\s]*(?:detailed )?(?:description|paragraph|answer|output|response)[*_]*\s*:[*_]*\s*", re.IGNORECASE
)
_GREETING = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely|great|alright)(?: thing)?[!.,:]\s*)?"
    r"(?:(?:i'd be happy to help[^.!\n]{0,60}[.!]\s*)?(?:here (?:is|are)|here's|below is|the following is)[^.!?:\n]{0,150}:\s*)?",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:^|\n\s*\n)[(\[*_]*(?:i hope|hope this|hope that|let me know|please let me|feel free|is there anything|note:|note that|"
    r"these questions|this conversation|these exchanges|end of|if you (?:have|need|want|would like)|"
    r"do you have|would you like)\b.*\Z",
    re.IGNORECASE | re.DOTALL,
)
_ASKING = re.compile(
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|has|have|will|would|should)\b",
    re.IGNORECASE,
)


def normalise(text: str) -> str:
    """The text with one form for what looks alike: NFC, single spaces, plain quotes and new lines, no control characters.

    Also mends UTF-8 that was read as another encoding, in its commonest forms. Twice is the same as once.
    """
    before = None
    while before != text:
        before = text
        text = _MEND.sub(lambda match: _MENDED[match.group()], text)
        text = unicodedata.normalize("NFC", text)
        if not _PLAIN.fullmatch(text):
            text = "".join(
                letter
                for letter in text
                if letter in "\n\t" or letter in _JOINERS or unicodedata.category(letter) not in _DROPPED
            )
        lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n"))
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text


@functools.lru_cache(maxsize=256)
def words_of(text: str) -> tuple[str, ...]:
    """In lower case, without punctuation; of a script without spaces, what is between punctuation."""
    letters = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.casefold())
    return tuple(word for word in (part.strip("'") for part in letters.split()) if word)


def sentences_of(text: str) -> list[str]:
    """Cut behind full stops, question and exclamation marks, and at the ends of lines."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def format_exchanges(exchanges: Iterable[Exchange]) -> str:
    """The blocks that a teacher is asked for; `parse_exchanges` gives the exchanges back."""
    return "".join(f"Question:\n{question}\n===\nAnswer:\n{answer}\n===\n" for question, answer in exchanges)


def parse_exchanges(text: str, *, is_cut: bool = False) -> list[Exchange]:
    """The questions of a text with their answers, in order; questions without an answer are left out.

    Args:
        text: of any form that is told at the module's top.
        is_cut: whether the text stops where it should not have; what was being written is left out then.
    """
    text = _FENCE.sub("", normalise(text)).strip()
    exchanges = _from_json(text)
    if exchanges is None:
        exchanges = _from_blocks(_blocks(text, is_cut))
    cleaned = [(_question(question), _answer(answer)) for question, answer in exchanges]
    return [(question, answer) for question, answer in cleaned if question and answer]


def parse_paragraph(text: str) -> str:
    """A description without headings, greeting, label and closing note."""
    text = _FENCE.sub("", normalise(text)).strip()
    if any(label == "question" for label, _ in _blocks(text, is_cut=False)):
        exchanges = parse_exchanges(text)
        return exchanges[0][1] if exchanges else ""
    text = _GREETING.sub("", text, count=1).strip()
    lines = [line for line in text.split("\n") if not _HEADING.match(line) and not _SEPARATOR.fullmatch(line)]
    text = _DETAIL_LABEL.sub("", "\n".join(lines).strip(), count=1)
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", _CLOSING.sub("", text))]
    return "\n\n".join(part for part in paragraphs if part)


def _blocks(text: str, is_cut: bool) -> list[tuple[str, str]]:
    """Pieces of a text: `question`, `answer` or, without a label, nothing; and the words."""
    text = _INLINE_SEPARATOR.sub("\n===\n", _INLINE_LABEL.sub("\n", text))
    blocks: list[tuple[str, list[str]]] = []
    is_open = False
    for line in text.split("\n"):
        if _SEPARATOR.fullmatch(line):
            is_open = False
        elif label := _LABEL.match(line):
            blocks.append(("question" if label["question"] else "answer", [label["rest"]]))
            is_open = True
        elif is_open:
            blocks[-1][1].append(line)
        elif line.strip():
            blocks.append(("", [line]))
            is_open = True
    if is_cut and is_open and blocks:
        blocks.pop()
    return [(label, "\n".join(lines).strip()) for label, lines in blocks]


def _from_blocks(blocks: Sequence[tuple[str, str]]) -> list[Exchange]:
    is_labelled = any(label for label, _ in blocks)
    exchanges: list[Exchange] = []
    question: str | None = None
    for label, words in [*blocks, ("question", "")]:
        if label == "question":
            if question is not None:  # no answer came; it may stand in the lines below the question
                first, _, rest = question.partition("\n")
                exchanges.append((first, rest if first.endswith("?") else ""))
            question = words or None
        elif question is not None and (label == "answer" or is_labelled or not words.endswith("?")):
            exchanges.append((question, words))
            question = None
        elif label == "":
            if words.endswith("?") and "\n" not in words:
                question = words
            elif not is_labelled:
                exchanges += _from_lines(words)
    return exchanges


def _from_lines(words: str) -> list[Exchange]:
    """Lines that end in a question mark, each with the lines behind it: no labels at all."""
    exchanges: list[Exchange] = []
    question, answer = None, [""]
    for line in [*words.split("\n"), "?"]:
        if line.endswith("?"):
            if question is not None and "".join(answer).strip():
                exchanges.append((question, "\n".join(answer).strip()))
            question, answer = line, []
        else:
            answer.append(line)
    return exchanges


def _from_json(text: str) -> list[Exchange] | None:
    """Exchanges of JSON objects, as many as are whole; None if the text is no JSON."""
    start = re.search(r"[\[{]\s*[{\[\"]", text)
    if start is None or (
        start.start() > 0 and re.search(r"(?:question|answer)\W*:", text[: start.start()], re.IGNORECASE)
    ):
        return None
    found: list[dict[str, Any]] = []
    decoder, place = json.JSONDecoder(), start.start()
    try:
        told, _ = decoder.raw_decode(text, place)
        found = _objects(told)
    except (ValueError, RecursionError):
        while (place := text.find("{", place)) >= 0:  # a list that is cut, or has a fault in it
            try:
                told, place = decoder.raw_decode(text, place)
                found += _objects(told)
            except (ValueError, RecursionError):
                place += 1
                if len(text) - place > 20_000:
                    break
    exchanges: list[Exchange] = []
    question = None
    for one in found:
        low = {str(name).strip().lower(): value for name, value in one.items()}
        asked, said = (
            _first(low, "question", "q", "user", "human"),
            _first(low, "answer", "a", "assistant", "gpt", "response"),
        )
        if asked and said:
            exchanges.append((asked, said))
            continue
        words = _first(low, "content", "value", "text")
        speaker = str(low.get("role", low.get("from", ""))).lower()
        if words and speaker in ("user", "human"):
            question = words
        elif words and speaker in ("assistant", "gpt") and question is not None:
            exchanges.append((question, words))
            question = None
    return exchanges or None


def _objects(told: Any, depth: int = 0) -> list[dict[str, Any]]:
    """Objects of JSON that hold no other objects, outermost first."""
    if depth > 4:
        return []
    if isinstance(told, list):
        return [one for part in told for one in _objects(part, depth + 1)]
    if isinstance(told, dict):
        inner = [one for part in told.values() if isinstance(part, (list, dict)) for one in _objects(part, depth + 1)]
        return inner or [told]
    return []


def _first(low: dict[str, Any], *names: str) -> str:
    return next((value.strip() for name in names if isinstance(value := low.get(name), str) and value.strip()), "")


def _question(words: str) -> str:
    """One line, with a question mark where it is a question, and a line of its own for a format prompt."""
    words = _ENUMERATION.sub("", _unmarked(re.sub(r"\s+", " ", words).strip()))
    for form in FORMAT_PROMPTS.values():
        if form and words.endswith(f" {form}"):
            return with_format_prompt(words.removesuffix(form), form)
    if words and words[-1] not in "?.!:;\"')" and _ASKING.match(words):
        words += "?"
    return words


def _answer(words: str) -> str:
    words = _CLOSING.sub("", _unmarked(words.strip())).strip()
    paragraphs = re.split(r"\n\s*\n", words)
    return "\n\n".join(part for part in (re.sub(r"[^\S\n]+", " ", one).strip() for one in paragraphs) if part)


def _unmarked(words: str) -> str:
    """Without bold marks in pairs, and without marks that a label left at either end."""
    words = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", words)
    words = re.sub(r"^(?:\*\*|__)\s*|\s*(?:\*\*|__)$", "", words)
    quoted = re.fullmatch(r'"([^"]+)"', words)
    return (quoted.group(1) if quoted else words).strip()
