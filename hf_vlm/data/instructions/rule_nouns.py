"""How a category is called: its singular and plural, its article, and whether it can be counted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hf_vlm.data.instructions.category_words import COCO_WORDS, plural

_SPOKEN = {
    "dining table": "table",  # of COCO's, many are desks and coffee tables
    "sports ball": "ball",
    "mouse": "computer mouse",
    "hair drier": "hair dryer",
    "scissors": "pair of scissors",
    "tv": "TV",
}
_MASS = frozenset(
    "broccoli grass water sand snow dirt gravel sky grass bread food rice hair fur smoke fire ice mud wood "
    "metal luggage furniture clothing traffic meat cheese lettuce corn soup coffee tea beer wine milk juice "
    "sauce equipment silverware jewelry graffiti pavement foliage brush ivy moss steam fog concrete land "
    "ground".split()
)
_NOT_PLURAL = frozenset("gas lens canvas atlas chess tennis iris".split())
_PLURAL = frozenset("people men women children feet teeth cattle mice geese".split())


@dataclass(frozen=True)
class Noun:
    """How a category is called: `one` and `several`, and whether `one` is spoken of as many, or can't be counted."""

    one: str
    several: str
    is_plural: bool = False
    is_mass: bool = False

    @property
    def is_count(self) -> bool:
        """Whether it can be counted."""
        return not self.is_plural and not self.is_mass

    @property
    def some(self) -> str:
        """With a or an, where it takes one."""
        return f"{article(self.one)} {self.one}" if self.is_count else self.one

    @property
    def are(self) -> str:
        """`is` or `are`, for `one`."""
        return "are" if self.is_plural else "is"


def clean_category(category: str) -> str:
    """In lower case, single spaces; empty where it can't be spoken."""
    name = re.sub(r"[\s_]+", " ", category).strip().lower()
    return name if re.fullmatch(r"[a-z][a-z0-9' -]{0,39}", name) else ""


@lru_cache(maxsize=4096)
def noun_of(category: str) -> Noun:
    """How a category is called."""
    one = _SPOKEN.get(category, category)
    last = one.rpartition(" ")[2]
    if last in _MASS:
        return Noun(one, one, is_mass=True)
    is_many = last in _PLURAL or (re.search(r"(?<![sui])s$", last) is not None and last not in _NOT_PLURAL)
    if category == "skis" or (is_many and category not in COCO_WORDS):
        return Noun(one, one, is_plural=True)  # COCO boxes a ski here and a pair there
    return Noun(one, "TVs" if one == "TV" else plural(one))


def article(words: str) -> str:
    """`a` or `an`, by the sound of what follows."""
    first = words.lower()
    if re.match(r"(?:uni(?!n)|us[aeiu]|ut[ei]|ur[aeiou]|uk|eu|ew|one\b|once|ufo)", first):
        return "a"
    if re.match(r"(?:hour|honest|heir|x-)", first):
        return "an"
    return "an" if first[0] in "aeiou" else "a"


def capitalized(text: str) -> str:
    """With a capital at its start, the rest as it is."""
    return text[:1].upper() + text[1:]


def series(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
