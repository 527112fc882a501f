"""Whether a text says the same over and over, as language models do that are stuck."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence

from hf_vlm.data.instructions.instruction_text import sentences_of, words_of

_STUCK = re.compile(r"(\S)\1{14}|\b(\w+)(?:\W+\2\b){4}")  # a sign fifteen times, a word five times on end
_LONG = 400  # bytes; a shorter text says little by how far it can be compressed
_DENSE = 0.2  # of its bytes are left of a text that repeats itself; of English 0.4 to 0.6


def looping_in(text: str) -> str | None:
    """What a text is stuck in, or None.

    A sentence of three words or more that comes three times; a word five times on end; runs of six words that come three times
    and are half of the text; or a long text of which little is left when it is compressed.
    """
    for sentence, number in Counter(" ".join(words_of(one)) for one in sentences_of(text)).items():
        if number >= 3 and sentence.count(" ") >= 2:
            return sentence
    if stuck := _STUCK.search(text):
        return stuck.group()
    if (run := _most_repeated(words_of(text), times=3, share=0.5)) is not None:
        return run
    raw = text.encode()
    return text[-60:] if len(raw) >= _LONG and len(zlib.compress(raw)) < _DENSE * len(raw) else None


def repeated_in(answer: str) -> str | None:
    """What one answer says twice, or None: a sentence of five words or more, or runs of six words that are half of it."""
    words = words_of(answer)
    if len(words) < 16:
        return None
    for sentence, number in Counter(" ".join(words_of(one)) for one in sentences_of(answer)).items():
        if number >= 2 and sentence.count(" ") >= 4:
            return sentence
    return _most_repeated(words, times=2, share=0.5)


def ngrams_of(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of so many words, in order."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def _most_repeated(words: Sequence[str], times: int, share: float, length: int = 6) -> str | None:
    """The first run of words that comes so often, if all that do make up more than a share of the words."""
    grams = ngrams_of(words, length)
    counts = Counter(grams)
    starts = [start for start, gram in enumerate(grams) if counts[gram] >= times]
    places = {place for start in starts for place in range(start, start + length)}
    return " ".join(grams[starts[0]]) if len(places) > share * len(words) else None
