"""Whether a text is English, German, French or Spanish, without a model: by its script and its commonest words.

Good enough to leave out answers in another language; short ones get the benefit of the doubt. For other languages, or to tell
many apart, a model is needed, and there is none that comes without weights.
"""

import unicodedata
from functools import lru_cache

from hf_vlm.data.instructions.instruction_text import words_of

# The commonest words that mean nothing else in the other three languages.
_STOP_WORDS = {
    "en": "the of and is are to it its there this that with on at be by from which what who how has have their they "
    "two you not or behind next where near for as yes",
    "de": "der das und ist sind ein eine einen einem einer den dem des mit auf zu von nicht es sie im wie wo welche "
    "steht sich auch am zwei wird hat bild ja nein",
    "fr": "le la les et est un une des du dans sur avec il elle qui que quoi au aux pour pas ce cette deux sont "
    "combien quel quelle où son sa ses d l oui non",
    "es": "el la los las y es un una unos del en con por para que qué se su sus al dos hay está están cuántos dónde "
    "no como más lo sí",
}
LANGUAGES = tuple(_STOP_WORDS)
_FEW = 12  # words; fewer tell little: `No` is said in Spanish too


def is_language(text: str, language: str) -> bool:
    """Whether a text may be of a language: nine of ten letters are Latin, and no other language's stop words are more.

    A text of 12 words or more must also have at least one stop word in 12.

    Args:
        text: any.
        language: one of `LANGUAGES`.
    """
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or sum(_is_latin(letter) for letter in letters) < 0.9 * len(letters):
        return False
    words = words_of(text)
    counts = {name: sum(word in stops for word in words) for name, stops in _stop_words().items()}
    others = max(number for name, number in counts.items() if name != language)
    if len(words) < _FEW:
        return others <= counts[language] + 1
    return others <= counts[language] and counts[language] * _FEW >= len(words)


@lru_cache(maxsize=1)
def _stop_words() -> dict[str, frozenset[str]]:
    return {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN")
