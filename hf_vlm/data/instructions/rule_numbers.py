"""What captions say of how many there are of a category."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from hf_vlm.data.instructions.category_words import COCO_WORDS, NUMBER_WORDS, CategoryWords, plural

_ONE = frozenset("a an another his her their its my one each every this that single lone".split())
_VAGUE = frozenset(
    "group groups many several bunch bunches crowd crowds crowded herd herds flock flocks lots lot plenty few "
    "some various multiple numerous number numbers assortment assorted variety different full filled covered "
    "loaded topped lined rows row stack stacks stacked pile piles piled fleet more other others another all "
    "both dozen dozens hundreds assembled collection array line lines team crew class gathering gathered "
    "packed busy much couple pair pairs set sets any selection surrounded types kinds".split()
)
_TWO = frozenset({"couple", "pair", "both"})
_BEHIND = frozenset("row rows group groups herd flock crowd pile piles stack stacks everywhere bunch bunches".split())
_STOPS = frozenset("and or with in on by near at to from is are for as while next who that which holding".split())
_GROUPS = frozenset("crowd group team family audience crew class staff folk".split())  # of people, without a noun
_BODY = frozenset(
    "hand arm leg foot face finger head hair shoulder lap beard body he she him her his figure torso".split()
)
_WORD = re.compile(r"[a-z0-9'-]+")


@lru_cache(maxsize=4096)
def _forms(category: str) -> tuple[re.Pattern[str], dict[str, tuple[str, bool]]]:
    """A pattern for all words that may mean a category; form -> sort of word, and whether it is a plural."""
    words = COCO_WORDS.get(category, CategoryWords())
    forms: dict[str, tuple[str, bool]] = {}
    last = category.rpartition(" ")[2]
    wide = words.maybe if category in COCO_WORDS else tuple({last} - {category})
    for sort, names in (("own", (category, *words.same)), ("kind", words.kinds), ("maybe", wide)):
        for name in names:
            forms.setdefault(name, (sort, name in ("they", "them", "everyone", "everybody")))
            if plural(name) != name:
                forms.setdefault(plural(name), (sort, True))
    longest = sorted(forms, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b"), forms


def told_number(text: str, category: str, number: int, is_plural_one: bool) -> Literal["agrees", "disagrees", "unsaid"]:
    """How captions, in lower case, stand to there being so many of a category.

    They disagree by another number, by a word for an unknown one, or by a plural where there is one; they agree by that
    very number and no other. Of kinds, such as men, there may be fewer, and of one caption's kinds no more in sum.
    """
    pattern, forms = _forms(category)
    agrees = is_vague = False
    for line in text.split("\n"):
        total = 0
        for match in pattern.finditer(line):
            sort, is_plural = forms[match.group()]
            if sort == "maybe" and match.group() in _BODY:
                continue
            before = _WORD.findall(line[: match.start()])[-5:]
            said, is_rough = _quantity(before)
            if category == "scissors" and "pair" in before:
                is_rough = False
            if sort == "maybe" and not is_plural and plural(match.group()) != match.group():
                is_rough = match.group() in _GROUPS  # `a room full of light`
            is_rough = is_rough or not _BEHIND.isdisjoint(_WORD.findall(line[match.end() :])[:4])
            if is_rough and said is None:
                is_vague = True
            if number == 1 and is_plural and not is_plural_one:
                return "disagrees"
            if sort == "maybe":
                continue
            if said is not None and said > 1:
                if said > number or (sort == "own" and said != number):
                    return "disagrees"
                agrees = agrees or said == number
            total += said or 0
        if total > number:
            return "disagrees"
    if agrees:
        return "agrees"
    return "disagrees" if is_vague else "unsaid"


def _quantity(before: Sequence[str]) -> tuple[int | None, bool]:
    """The number that words before a noun give it, None for none, and whether one of them stands for an unknown number."""
    number = None
    for word in reversed(before):
        if word in _STOPS:
            break
        if word.isdecimal() or word in NUMBER_WORDS:
            number = int(word) if word.isdecimal() else NUMBER_WORDS[word]
            break
        if word in _TWO:
            number = 2
            break
        if word in _VAGUE:
            break
        if word in _ONE:
            number = 1
            break
    return number, any(word in _VAGUE for word in before)
