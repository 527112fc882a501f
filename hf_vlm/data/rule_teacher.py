"""A teacher without a model: visual instructions by rules, from boxes and categories alone.

Every sentence is true of the boxes by construction; captions only take away what they speak against. What is claimed, and when:

    number      at most 6 of a category, none in a crowd, none too small to be surely complete, and no caption with another
                number, with a word for an unknown one (`group`, `several`, `filled with`), or with a plural where one is boxed;
                of things that lie in heaps, such as books, only if a caption has the same number
    the dog     there is one of it, by the rules for numbers; or else `the dog that appears largest`: 1.5 times the next
    yes, no     as often as each other. A no is said only of the vocabulary's categories that are neither boxed nor mentioned, nor
                easily taken for one that is, and only if all boxed categories are of the vocabulary: it rests on a data set whose
                pictures were searched for all of it, as COCO's were
    side        the box lies in one half of the picture, and its centre within the outer 30 % of it; the middle is the central
                16 %. A thing as wide as the picture has no left or right
    left of     the boxes are apart, or centres by 0.15 of the picture with little overlap and neither inside the other.
    higher up   The same, vertically; in the picture, never `above` or `behind`, which boxes can't tell
    more of it  twice the area of the other's box; a box holds more than the thing, and what is thin lies in a large one
    touching    never claimed; only that things do not touch in the picture, where there is a gap between their boxes

A category is left unsaid where captions have a word that it is easily mistaken for and none of its own: no `cup` if they speak of
glasses. What no rule finds: boxes that are wrong, things that nobody boxed or mentioned, and drawings, toys and mirror images,
which are boxed as what they show.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3, for the three kinds; yes and no in equal parts are POPE's,
    Li et al. 2023, https://arxiv.org/abs/2305.10355. The rules and their words are ours.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from hf_vlm.data.category_words import (
    COCO_CATEGORIES,
    COCO_WORDS,
    NUMBER_WORDS,
    CategoryWords,
    categories_in,
    mentions,
    plural,
)
from hf_vlm.data.contexts import Box, Context
from hf_vlm.data.format_prompts import with_format_prompt
from hf_vlm.data.instruction_text import Exchange, format_exchanges
from hf_vlm.data.teachers import KINDS, TeacherReply, TeacherRequest

_RULES = 1  # of the rules and their words; a run goes on with the same only

# ---- how sure the boxes must be; lengths are fractions of the picture's width or height, areas of its area
_MOST_COUNTED = 6
_LEAST_AREA = 0.0005  # of a thing that is spoken of
_LEAST_AREA_COUNTED = 0.002  # of each of several things; where they are smaller, some were missed
_SAME_BOX = 0.7  # intersection over union: one thing boxed twice, perhaps
_OUTER, _CENTRAL = 0.3, 0.08  # a side's centre is within; the middle's centre is off by at most
_LARGEST, _MORE = 1.5, 2.0  # ratios of areas
_APART, _OVERLAP = 0.15, 0.25  # centres; of the smaller extent
_GAP = 0.03
_MOST_LISTED = 6  # categories in a sentence
_LEAST_WORDS = 20  # of a description; a shorter one is not given

_NUMBERS = {number: word for word, number in NUMBER_WORDS.items()}
_SPOKEN = {
    "dining table": "table",  # of COCO's, many are desks and coffee tables
    "sports ball": "ball",
    "mouse": "computer mouse",
    "hair drier": "hair dryer",
    "scissors": "pair of scissors",
    "tv": "TV",
}
_NEVER_DENIED = frozenset({"dining table", "sports ball"})  # by those names: other tables and balls are not boxed
_HEAPED = frozenset("book banana apple orange carrot broccoli".split())
_ALIKE = tuple(
    frozenset(group.split(", "))
    for group in (
        "car, truck, bus, train",
        "bicycle, motorcycle",
        "bench, chair, couch, bed",
        "cup, bowl, wine glass, vase, bottle, potted plant",
        "backpack, handbag, suitcase",
        "tv, laptop, keyboard, mouse, remote, cell phone",
        "oven, microwave, toaster, refrigerator, sink",
        "fork, knife, spoon",
        "sandwich, hot dog, pizza, donut, cake",
        "banana, apple, orange",
        "carrot, broccoli",
        "skis, snowboard",
        "skateboard, surfboard, snowboard",
        "cow, horse, sheep",
        "dog, cat, bear, teddy bear",
        "bird, kite, airplane",
        "baseball bat, baseball glove, sports ball, tennis racket, frisbee",
        "toilet, sink",
        "traffic light, stop sign, parking meter",
    )
)
# Category -> words of a caption that make it doubtful, if the caption has no word for it.
_DOUBTS = {
    category: re.compile(rf"\b(?:{'|'.join(words.split(', '))})(?:s|es)?\b", re.IGNORECASE)
    for category, words in {
        "cup": "glass, jar, pitcher",
        "tv": "monitor, computer, screen, desktop",
        "cow": "moose, ox, oxen, wildebeest, buffalo, bison, yak, goat, deer, antelope",
        "sheep": "goat",
        "horse": "donkey, mule, camel",
        "dog": "wolf, fox",
        "cat": "lion, tiger, leopard, cheetah",
        "boat": "ship, carrier",
        "kite": "parachute, paraglider, parasail, balloon",
        "donut": "bagel",
        "cake": "bread, muffin, pie",
        "bowl": "plate, dish, pot",
        "chair": "stool, throne",
        "bed": "couch, sofa, futon",
        "car": "van, truck",
        "truck": "van, bus",
        "sandwich": "wrap, taco, burrito",
        "tie": "scarf, ribbon",
        "remote": "joystick",
        "clock": "compass, gauge",
        "potted plant": "wreath, tree",
        "dining table": "counter, shelf",
    }.items()
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
class _Noun:
    """How a category is called: `one` and `several`, and whether `one` is spoken of as many, or can't be counted."""

    one: str
    several: str
    is_plural: bool = False
    is_mass: bool = False

    @property
    def is_count(self) -> bool:
        return not self.is_plural and not self.is_mass

    @property
    def some(self) -> str:
        """With a or an, where it takes one."""
        return f"{_article(self.one)} {self.one}" if self.is_count else self.one

    @property
    def are(self) -> str:
        return "are" if self.is_plural else "is"


@dataclass(frozen=True)
class _Thing:
    """A category of a picture: its boxes, largest first, without crowds.

    `is_counted`: its number may be told; `is_single`: there is one, and it may be called `the`.
    """

    category: str
    noun: _Noun
    boxes: tuple[Box, ...]
    has_crowd: bool
    is_counted: bool
    is_single: bool

    @property
    def number(self) -> str:
        return _NUMBERS[len(self.boxes)]

    @property
    def listed(self) -> str:
        """`a dog`, `two dogs`, `dogs` where the number is not sure."""
        if not self.noun.is_count:
            return self.noun.one
        if not self.boxes:
            return f"several {self.noun.several}"
        if len(self.boxes) == 1 and not self.has_crowd:
            return self.noun.some
        return f"{self.number} {self.noun.several}" if self.is_counted else self.noun.several

    @property
    def are(self) -> str:
        is_many = len(self.boxes) > 1 or self.has_crowd
        return "are" if self.noun.is_plural or (is_many and self.noun.is_count) else "is"


@dataclass(frozen=True)
class _Referent:
    """One thing that a phrase such as `the dog` stands for."""

    phrase: str
    box: Box
    noun: _Noun
    category: str

    @property
    def capital(self) -> str:
        return _capital(self.phrase)

    @property
    def pronoun(self) -> str:
        if self.noun.is_plural:
            return "they"
        return "this person" if self.category == "person" else "it"

    def verb(self, singular: str, several: str) -> str:
        return several if self.noun.is_plural else singular


class RuleTeacher:
    """Writes visual instructions by the rules at the module's top.

    Args:
        vocabulary: the categories that the pictures' makers looked for in every picture, of which it may be said that there are
            none; None for COCO's 80, empty for no such questions.

    Raises:
        TypeError: if `vocabulary` is a single string.
    """

    name = "rules"
    commit_every = 1000
    reads_prompts = False

    def __init__(self, vocabulary: Sequence[str] | None = None) -> None:
        if isinstance(vocabulary, str):
            raise TypeError(
                f"`vocabulary` must be a list of categories, got the string {vocabulary!r}. Put it into a list."
            )
        names = COCO_CATEGORIES if vocabulary is None else tuple(dict.fromkeys(_clean(name) for name in vocabulary))
        self._vocabulary = tuple(name for name in names if name)
        self.settings: dict[str, Any] = {"rules": _RULES}
        if vocabulary is not None:
            self.settings["vocabulary"] = hashlib.sha256("\n".join(self._vocabulary).encode()).hexdigest()[:16]
        self._words = frozenset(self._vocabulary)

    def replies(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherReply]:
        """A reply to each request, in order; its text is empty where the boxes give nothing to say.

        Raises:
            ValueError: if a request's kind is unknown.
        """
        for request in requests:
            yield TeacherReply(request, self._text(request))

    def _text(self, request: TeacherRequest) -> str:
        kind, context = request.kind, request.context
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}. Correct it.")
        draw = random.Random(f"{request.seed}\n{kind}\n{context.id}")
        picture = _Picture(context, self._vocabulary, self._words, draw)
        if not picture.things:
            return format_exchanges(_region_exchanges(context, draw)) if kind == "conversation" else ""
        if kind == "detail_description":
            return _description(picture)
        if kind == "complex_reasoning":
            found = next(filter(None, (make(picture) for make in _shuffled(_REASONING, draw))), None)
            return format_exchanges([found]) if found else ""
        return format_exchanges(_conversation(picture))


class _Picture:
    """What may be said of a picture, and the chance by which it is chosen.

    Attributes:
        things: its categories that can be spoken of, the one with the largest box first.
        singles: the things that there is one of.
        notable: `singles`, and the largest of several.
        draw: the only source of chance.
        view: what a picture is called here.
    """

    def __init__(
        self, context: Context, vocabulary: tuple[str, ...], words: frozenset[str], draw: random.Random
    ) -> None:
        self.draw = draw
        self.view = draw.choice(("picture", "image", "photo", "picture"))
        self._vocabulary = vocabulary
        self._text = "\n".join([*context.captions, *(region.phrase for region in context.regions)]).lower()
        boxes: dict[str, list[Box]] = {}
        crowds: set[str] = set()
        for one in context.instances:
            name = _clean(one.category)
            if one.is_crowd:
                crowds.add(name)
            boxes.setdefault(name, [])
            if not one.is_crowd and _area(one.box) > 0:
                boxes[name].append(one.box)
        self._present = frozenset(boxes)
        self._is_searched = bool(boxes) and self._present <= words
        things = [
            thing
            for name, found in boxes.items()
            if name and (thing := self._thing(name, tuple(sorted(found, key=_by_size)), name in crowds)) is not None
        ]
        self.things = sorted(things, key=lambda thing: (-_area(thing.boxes[0]) if thing.boxes else 0.0, thing.category))
        self.singles = [
            _Referent(f"the {thing.noun.one}", thing.boxes[0], thing.noun, thing.category)
            for thing in self.things
            if thing.is_single
        ]
        self.notable = [
            _Referent(_largest(thing), thing.boxes[0], thing.noun, thing.category)
            for thing in self.things
            if len(thing.boxes) > 1
            and not thing.has_crowd
            and thing.noun.is_count
            and _area(thing.boxes[0]) >= _LARGEST * _area(thing.boxes[1])
        ]
        self.notable = sorted(self.singles + self.notable, key=lambda one: (-_area(one.box), one.category))

    def _thing(self, name: str, boxes: tuple[Box, ...], has_crowd: bool) -> _Thing | None:
        if not has_crowd and (not boxes or _area(boxes[0]) < _LEAST_AREA):
            return None
        doubt = _DOUBTS.get(name)
        if doubt is not None and doubt.search(self._text) and name not in categories_in(self._text):
            return None
        noun = _noun(name)
        is_sure = not has_crowd and self._is_sure(name, boxes, noun)
        return _Thing(name, noun, boxes, has_crowd, is_sure and noun.is_count, is_sure and len(boxes) == 1)

    def _is_sure(self, name: str, boxes: tuple[Box, ...], noun: _Noun) -> bool:
        number = len(boxes)
        if number > _MOST_COUNTED or any(_is_same(one, other) for one, other in itertools.combinations(boxes, 2)):
            return False
        told = _told_number(self._text, name, number, is_plural_one=not noun.is_count or name == "scissors")
        if told != "unsaid":
            return told == "agrees"
        return number == 1 or (_area(boxes[-1]) >= _LEAST_AREA_COUNTED and name not in _HEAPED)

    def is_absent(self, category: str) -> bool:
        """Whether it may be said that there is none of a category of the vocabulary."""
        if not self._is_searched or category in self._present or category in _NEVER_DENIED:
            return False
        if any(category in group and not group.isdisjoint(self._present) for group in _ALIKE):
            return False
        return not mentions("\n".join([self._text, *self._present]), category)

    def absent(self) -> str | None:
        """A category of the vocabulary that is surely not there, by chance."""
        if not self._is_searched:
            return None
        tries = (self.draw.choice(self._vocabulary) for _ in range(12))
        return next((name for name in tries if self.is_absent(name)), None)

    def say(self, *templates: str, **words: str) -> str:
        """One of the templates, filled in, with a capital at its start."""
        return _capital(self.draw.choice(templates).format(view=self.view, **words))


# ---- words


def _clean(category: str) -> str:
    """In lower case, single spaces; empty where it can't be spoken."""
    name = re.sub(r"[\s_]+", " ", category).strip().lower()
    return name if re.fullmatch(r"[a-z][a-z0-9' -]{0,39}", name) else ""


@lru_cache(maxsize=4096)
def _noun(category: str) -> _Noun:
    one = _SPOKEN.get(category, category)
    last = one.rpartition(" ")[2]
    if last in _MASS:
        return _Noun(one, one, is_mass=True)
    is_many = last in _PLURAL or (re.search(r"(?<![sui])s$", last) is not None and last not in _NOT_PLURAL)
    if category == "skis" or (is_many and category not in COCO_WORDS):
        return _Noun(one, one, is_plural=True)  # COCO boxes a ski here and a pair there
    return _Noun(one, "TVs" if one == "TV" else plural(one))


def _article(words: str) -> str:
    first = words.lower()
    if re.match(r"(?:uni(?!n)|us[aeiu]|ut[ei]|ur[aeiou]|uk|eu|ew|one\b|once|ufo)", first):
        return "a"
    if re.match(r"(?:hour|honest|heir|x-)", first):
        return "an"
    return "an" if first[0] in "aeiou" else "a"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _series(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _largest(thing: _Thing) -> str:
    return f"the {thing.noun.one} {'who' if thing.category == 'person' else 'that'} appears largest"


def _shuffled(items: Sequence[Any], draw: random.Random) -> list[Any]:
    return draw.sample(items, len(items))


# ---- what captions say of numbers

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


def _told_number(
    text: str, category: str, number: int, is_plural_one: bool
) -> Literal["agrees", "disagrees", "unsaid"]:
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


# ---- what boxes say


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _by_size(box: Box) -> tuple[float, Box]:
    return -_area(box), box


def _overlap(one: Box, other: Box, axis: int) -> float:
    """Length that two boxes share along an axis, 0 across and 1 down; below 0 it is the gap between them."""
    return min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])


def _is_same(one: Box, other: Box) -> bool:
    width, height = _overlap(one, other, 0), _overlap(one, other, 1)
    if width <= 0 or height <= 0:
        return False
    shared = width * height
    return shared > _SAME_BOX * (_area(one) + _area(other) - shared)


def _place(box: Box, axis: int) -> int | None:
    """-1 for left or top, 1 for right or bottom, 0 for the middle, None for none of them."""
    low, high = box[axis], box[axis + 2]
    centre = (low + high) / 2
    if centre <= _OUTER and high <= 0.5:
        return -1
    if centre >= 1 - _OUTER and low >= 0.5:
        return 1
    return 0 if abs(centre - 0.5) <= _CENTRAL and high - low <= 0.6 else None


_PLACES: dict[tuple[int | None, int | None], tuple[str, ...]] = {
    (-1, -1): ("in the upper left part of the {view}", "at the top left of the {view}"),
    (1, -1): ("in the upper right part of the {view}", "at the top right of the {view}"),
    (-1, 1): ("in the lower left part of the {view}", "at the bottom left of the {view}"),
    (1, 1): ("in the lower right part of the {view}", "at the bottom right of the {view}"),
    (-1, 0): ("on the left side of the {view}", "on the left, about halfway up the {view}"),
    (1, 0): ("on the right side of the {view}", "on the right, about halfway up the {view}"),
    (-1, None): ("on the left side of the {view}", "on the left of the {view}"),
    (1, None): ("on the right side of the {view}", "on the right of the {view}"),
    (0, -1): ("at the top of the {view}, near the middle", "in the upper part of the {view}, about halfway across"),
    (0, 1): ("at the bottom of the {view}, near the middle", "in the lower part of the {view}, about halfway across"),
    (None, -1): ("in the upper part of the {view}", "at the top of the {view}"),
    (None, 1): ("in the lower part of the {view}", "at the bottom of the {view}"),
    (0, 0): ("in the middle of the {view}", "near the center of the {view}"),
    (0, None): ("about halfway across the {view}", "about halfway between the left and right edges of the {view}"),
}


def _where(picture: _Picture, box: Box) -> str | None:
    """`on the left side of the picture`."""
    phrases = _PLACES.get((_place(box, 0), _place(box, 1)))
    return picture.draw.choice(phrases).format(view=picture.view) if phrases else None


def _order(one: Box, other: Box, axis: int) -> int:
    """-1 if the first is left of, or higher than, the other; 1 for the reverse; 0 where it is not clear."""
    shared = _overlap(one, other, axis)
    apart = (other[axis] + other[axis + 2] - one[axis] - one[axis + 2]) / 2
    if shared > 0:
        lengths = one[axis + 2] - one[axis], other[axis + 2] - other[axis]
        is_inside = min(lengths) <= shared + 1e-9
        if abs(apart) < _APART or shared > _OVERLAP * min(lengths) or is_inside:
            return 0
    return 0 if abs(apart) < 0.02 else (-1 if apart > 0 else 1)


def _is_across(one: Box, other: Box) -> bool:
    """Whether two boxes lie apart rather across than down, so that left and right are what one would say."""
    across, down = (abs(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) for axis in (0, 1))
    return across >= down


def _share(length: float) -> str:
    """`less than a quarter of the`, before `width` or `height`."""
    for most, words in (
        (0.2, "less than a quarter of the"),
        (0.3, "about a quarter of the"),
        (0.45, "less than half of the"),
        (0.55, "about half of the"),
        (0.7, "more than half of the"),
        (0.8, "about three quarters of the"),
        (0.93, "more than three quarters of the"),
    ):
        if length <= most:
            return words
    return "nearly the whole"


def _extent(picture: _Picture, one: _Referent, subject: str | None = None) -> str:
    """How much of the picture's width and height a thing takes up."""
    across, down = _share(one.box[2] - one.box[0]), _share(one.box[3] - one.box[1])
    if across == down:
        told = f"{across.replace('the whole', 'all')} both the width and the height"
        told = told.replace("nearly all both", "nearly all of both").replace(" of the both", " of both")
    else:
        told = f"{across} width and {down} height"
    verb = one.verb("extends", "extend") if subject != "they" else "extend"
    return _capital(f"{subject or one.phrase} {verb} over {told} of the {picture.view}.")


def _pairs(picture: _Picture) -> list[tuple[_Referent, _Referent]]:
    """Two single things, in all orders, shuffled; of the eight largest."""
    return _shuffled(list(itertools.permutations(picture.singles[:8], 2)), picture.draw)


_SIDES = {-1: "left", 1: "right"}
_HEIGHTS = {-1: "higher up", 1: "lower down"}


def _relation(picture: _Picture, one: _Referent, other: _Referent, is_reversed: bool = False) -> str | None:
    """`to the left of the boat`, or `lower down in the picture than the boat`."""
    turn = -1 if is_reversed else 1
    if _is_across(one.box, other.box):
        order = turn * _order(one.box, other.box, 0)
        return f"to the {_SIDES[order]} of {other.phrase}" if order else None
    order = turn * _order(one.box, other.box, 1)
    return f"{_HEIGHTS[order]} in the {picture.view} than {other.phrase}" if order else None


# ---- conversation

_Made = tuple[str, Exchange]  # what keeps others from saying it again, and the exchange


def _conversation(picture: _Picture) -> list[Exchange]:
    draw = picture.draw
    wanted = draw.choice((3, 3, 4, 4, 5))
    made: list[_Made] = []
    if draw.random() < 0.7:
        made += _presence(picture, draw.choice((1, 1, 2)))
    elif draw.random() < 0.4:
        made.append(("list", _listing(picture)))
    pending = _shuffled(_TALK, draw)
    # Each kind of question once, in any order, then those that have more to say a second time.
    for make in pending + pending:
        if len(made) >= wanted:
            break
        taken = {part for key, _ in made for part in key.split(" | ")}
        asked = {question for _, (question, _) in made}
        found = make(picture, taken)
        if found is not None and found[0] not in taken and found[1][0] not in asked:
            made.append(found)
    if len(made) < 2 and not any(key == "list" for key, _ in made):
        made.insert(0, ("list", _listing(picture)))
    if len(made) < 2:
        made = _presence(picture, 1) + made
    return [exchange for _, exchange in made] if len(made) > 1 else []


def _presence(picture: _Picture, number: int) -> list[_Made]:
    """Whether there is something; a yes is asked for only where a no could be, so that they come out even."""
    made: list[_Made] = []
    for thing in _shuffled([one for one in picture.things if one.category not in _NEVER_DENIED], picture.draw)[:number]:
        absent = picture.absent()
        if absent is None or any(key == f"is {absent}" for key, _ in made):
            break
        is_there = picture.draw.random() < 0.5
        noun = thing.noun if is_there else _noun(absent)
        is_plural = noun.is_plural or (noun.is_count and picture.draw.random() < 0.4)
        if is_plural:
            question = picture.say(
                "are there any {several} in the {view}?", "do you see any {several}?", several=noun.several
            )
        else:
            some = f"any {noun.one}" if noun.is_mass else noun.some
            question = picture.say(
                "is there {some} in the {view}?", "do you see {some} here?", "does the {view} show {some}?", some=some
            )
        if is_there:
            answer = picture.say(
                "yes, there {are} {listed} in the {view}.", "yes, the {view} shows {listed}.", are=thing.are, listed=thing.listed
            )  # fmt: skip
        elif is_plural:
            answer = picture.say(
                "no, there are no {several} in the {view}.", "no, the {view} shows no {several}.", several=noun.several
            )
        else:
            answer = picture.say("no, there is no {one} in the {view}.", "no, the {view} shows no {one}.", one=noun.one)
        made.append((f"is {thing.category if is_there else absent}", (question, answer)))
    return made


def _listing(picture: _Picture) -> Exchange:
    listed = _series([thing.listed for thing in picture.things[:_MOST_LISTED]])
    question = picture.say(
        "what can be seen in the {view}?", "what does the {view} show?", "what do you see in this {view}?"
    )
    return question, picture.say(
        "the {view} shows {listed}.", "I can see {listed}.", "in the {view}, you can see {listed}.", listed=listed
    )


def _ask_count(picture: _Picture, taken: set[str]) -> _Made | None:
    if "list" in taken:
        return None
    counted = [one for one in picture.things if one.is_counted and f"count {one.category}" not in taken]
    # One of a kind is seldom asked for by number, and never behind `Yes, there are two dogs`.
    counted = [
        one
        for one in counted
        if f"is {one.category}" not in taken and (len(one.boxes) > 1 or picture.draw.random() < 0.3)
    ]
    if not counted:
        return None
    thing = picture.draw.choice(counted)
    question = picture.say(
        "how many {several} are there?",
        "how many {several} are in the {view}?",
        "how many {several} can you see?",
        several=thing.noun.several,
    )
    if len(thing.boxes) == 1:
        answer = picture.say(
            "there is just one {one}.",
            "there is only one {one} in the {view}.",
            "the {view} shows just one {one}.",
            one=thing.noun.one,
        )  # fmt: skip
    else:
        answer = picture.say(
            "there are {number} {several}.",
            "there are {number} {several} in the {view}.",
            "{number} {several} can be seen.",
            number=thing.number,
            several=thing.noun.several,
        )
    return f"count {thing.category}", (question, answer)


def _ask_where(picture: _Picture, taken: set[str]) -> _Made | None:
    for one in _shuffled(picture.notable[:8], picture.draw):
        if f"where {one.category}" in taken or (where := _where(picture, one.box)) is None:
            continue
        question = picture.say(
            "where {are} {phrase}?",
            "where in the {view} {are} {phrase}?",
            "in which part of the {view} {are} {phrase}?",
            are=one.noun.are,
            phrase=one.phrase,
        )
        answer = picture.say(
            "{phrase} {are} {where}.",
            "you can find {phrase} {where}.",
            phrase=one.phrase,
            are=one.noun.are,
            where=where,
        )
        return f"where {one.category}", (question, answer)
    return None


def _spread(picture: _Picture, thing: _Thing) -> str | None:
    """Where several things are, such as `Both dogs are in the left half of the picture`."""
    if len(thing.boxes) < 2 or not thing.noun.is_count:
        return None
    several = thing.noun.several
    if thing.is_counted:
        for axis, low, high in ((0, "left", "right"), (1, "upper", "lower")):
            is_low = all(box[axis + 2] <= 0.5 for box in thing.boxes)
            if is_low or all(box[axis] >= 0.5 for box in thing.boxes):
                half = low if is_low else high
                return _capital(f"{_all_of(thing)} are in the {half} half of the {picture.view}.")
    places = {_place(box, 0) for box in thing.boxes}
    if {-1, 1} <= places:
        if thing.is_counted and len(thing.boxes) == 2:
            return f"One of the two {several} is on the left side of the {picture.view}, the other on the right side."
        return f"There are {several} on the left side of the {picture.view} as well as on the right side."
    return None


def _ask_what_is_there(picture: _Picture, taken: set[str]) -> _Made | None:
    """What is in a part of the picture."""
    if "there" in taken or picture.draw.random() < 0.4:
        return None
    found: dict[tuple[int | None, int | None], dict[str, tuple[_Noun, int]]] = {}
    for thing in picture.things:
        for box in thing.boxes:
            here = found.setdefault((_place(box, 0), _place(box, 1)), {})
            here[thing.category] = (thing.noun, here.get(thing.category, (thing.noun, 0))[1] + 1)
    for place in _shuffled([one for one in found if one in _PLACES], picture.draw):
        here = found[place]
        if len(here) > 3 or any(f"where {category}" in taken for category in here):
            continue
        first = next(iter(here.values()))
        are = "are" if first[0].is_plural or (first[1] > 1 and first[0].is_count) else "is"
        named = _series([noun.several if number > 1 else noun.some for noun, number in here.values()])
        where = picture.draw.choice(_PLACES[place]).format(view=picture.view)
        question = picture.say("what can you see {where}?", "what is there {where}?", where=where)
        key = " | ".join(["there", *(f"where {category}" for category in here)])
        return key, (question, _capital(f"there {are} {named} {where}."))
    return None


def _all_of(thing: _Thing) -> str:
    """`both dogs`, `all three dogs`."""
    return f"{'both' if len(thing.boxes) == 2 else f'all {thing.number}'} {thing.noun.several}"


def _ask_spread(picture: _Picture, taken: set[str]) -> _Made | None:
    for thing in _shuffled(picture.things, picture.draw):
        if f"where {thing.category}" not in taken and (answer := _spread(picture, thing)) is not None:
            question = picture.say(
                "where are the {several}?", "where in the {view} are the {several}?", several=thing.noun.several
            )
            return f"where {thing.category}", (question, answer)
    return None


def _ask_relation(picture: _Picture, taken: set[str]) -> _Made | None:
    for one, other in _pairs(picture):
        key = _pair_key(one, other)
        if key in taken or (relation := _relation(picture, one, other)) is None:
            continue
        words = {"phrase": one.phrase, "other": other.phrase, "are": one.noun.are}
        if "to the" in relation:
            question = picture.say(
                "where {are} {phrase} in relation to {other}?",
                "{are} {phrase} to the left or to the right of {other}?",
                "on which side of {other} {are} {phrase}?",
                **words,
            )
        else:
            question = picture.say("which is higher up in the {view}, {phrase} or {other}?", **words)
            if "lower" in relation:
                one, relation = other, _relation(picture, other, one) or relation
        return key, (question, f"{one.capital} {one.noun.are} {relation}.")
    return None


def _ask_whether(picture: _Picture, taken: set[str]) -> _Made | None:
    """A relation as a question of yes or no, half of them each."""
    for one, other in _pairs(picture):
        key = _pair_key(one, other)
        is_so = picture.draw.random() < 0.5
        if key in taken or (asked := _relation(picture, one, other, is_reversed=not is_so)) is None:
            continue
        truth = asked if is_so else _relation(picture, one, other)
        question = f"{_capital(one.noun.are)} {one.phrase} {asked}?"
        return key, (question, f"{'Yes' if is_so else 'No'}, {one.phrase} {one.noun.are} {truth}.")
    return None


def _pair_key(one: _Referent, other: _Referent) -> str:
    return "pair " + " ".join(sorted((one.category, other.category)))


def _ask_size(picture: _Picture, taken: set[str]) -> _Made | None:
    for one, other in _pairs(picture):
        if _area(one.box) < _MORE * _area(other.box):
            continue
        names = _shuffled([one.phrase, other.phrase], picture.draw)
        question = picture.say(
            "which takes up more of the {view}, {a} or {b}?",
            "what fills more of the {view}, {a} or {b}?",
            a=names[0],
            b=names[1],
        )
        return "size", (question, _takes_more(picture, one, other))
    return None


def _takes_more(picture: _Picture, one: _Referent, other: _Referent) -> str:
    take, does = one.verb("takes", "take"), other.verb("does", "do")
    return f"{one.capital} {take} up more of the {picture.view} than {other.phrase} {does}."


def _ask_extent(picture: _Picture, taken: set[str]) -> _Made | None:
    if "extent" in taken or not picture.notable or picture.draw.random() < 0.6:
        return None
    one = picture.notable[0]
    question = picture.say(
        "how much of the {view} does {phrase} cover from side to side and from top to bottom?",
        "how much of the width and the height of the {view} does {phrase} take up?",
        phrase=one.phrase,
    )
    if one.noun.is_plural:
        question = question.replace(" does ", " do ")
    return "extent", (question, _extent(picture, one))


_TALK: tuple[Callable[[_Picture, set[str]], _Made | None], ...] = (
    _ask_count, _ask_where, _ask_spread, _ask_relation, _ask_whether, _ask_size, _ask_extent, _ask_what_is_there
)  # fmt: skip


def _region_exchanges(context: Context, draw: random.Random) -> list[Exchange]:
    """LLaVA-1.5's two questions for regions, by turns: the phrase of a box, and the box of a phrase that no other has."""
    phrases = [re.sub(r"\s+", " ", region.phrase).strip().lower() for region in context.regions]
    good = [
        (region.box, phrase)
        for region, phrase in zip(context.regions, phrases, strict=True)
        if re.search(r"[^\W\d_]", phrase) and phrases.count(phrase) == 1 and _area(region.box) > 0
    ]
    exchanges = []
    is_box = draw.random() < 0.5
    for box, phrase in draw.sample(good, min(len(good), draw.choice((3, 4, 5)))):
        told = f"[{', '.join(f'{side:.2f}' for side in box)}]"
        if is_box:
            exchanges.append((with_format_prompt(_capital(phrase), "region-box"), told))
        else:
            exchanges.append((with_format_prompt(told, "region-description"), _capital(phrase)))
        is_box = not is_box
    return exchanges if len(exchanges) > 1 else []


# ---- description


def _description(picture: _Picture) -> str:
    """What there is, then where it is, the largest first; how things lie to each other; what is not there."""
    draw = picture.draw
    listed = _series([thing.listed for thing in picture.things[:_MOST_LISTED]])
    told = [
        picture.say(
            "the {view} shows {listed}.",
            "in this {view}, you can see {listed}.",
            "this is {a_view} of {listed}.",
            listed=listed,
            a_view=f"{_article(picture.view)} {picture.view}",
        )
    ]
    said: set[str] = set()
    extents: set[str] = set()  # the same twice would sound like a machine
    for one in picture.notable[:4]:
        is_placed = (where := _where(picture, one.box)) is not None
        shares = {_share(one.box[axis + 2] - one.box[axis]) for axis in (0, 1)}
        shares |= {"both"} if len(shares) == 1 else set()
        with_extent = not extents or (not is_placed and extents.isdisjoint(shares))
        told += _at_its_place(picture, one, where, with_extent)
        if with_extent:
            extents |= shares
        if is_placed or with_extent:
            said.add(one.category)
    several = [thing for thing in picture.things if thing.category not in said and thing.boxes]
    spreads = [text for thing in several if (text := _spread(picture, thing))]
    told += [text for text in spreads if "as well" not in text][:2] + [text for text in spreads if "as well" in text][
        :1
    ]
    if len(said) < 2:
        together = [text for thing in several[:3] if (text := _together(picture, thing, with_extent=not extents))]
        told += [text for text in together if text.startswith("There")] + [
            text for text in together if not text.startswith("There")
        ][:1]
    told += _relations(picture)
    sizes = [
        (one, other)
        for one, other in itertools.combinations(picture.singles, 2)
        if _area(one.box) >= _MORE * _area(other.box)
    ]
    if sizes and draw.random() < 0.6:
        told.append(_takes_more(picture, *draw.choice(sizes)))
    if _num_words(told) < _LEAST_WORDS or draw.random() < 0.4:
        told += _nobody(picture)
    return " ".join(told) if _num_words(told) >= _LEAST_WORDS else ""


def _num_words(told: Sequence[str]) -> int:
    return sum(text.count(" ") + 1 for text in told)


def _at_its_place(picture: _Picture, one: _Referent, where: str | None, with_extent: bool) -> list[str]:
    told = []
    subject = one.phrase
    if where is not None:
        told.append(
            picture.say(
                "{phrase} {are} {where}.",
                "{phrase} can be found {where}.",
                phrase=subject,
                are=one.noun.are,
                where=where,
            )
        )
        subject = one.pronoun
    if with_extent:
        told.append(_extent(picture, one, subject))
    return told


def _together(picture: _Picture, thing: _Thing, with_extent: bool) -> str | None:
    """How far several things reach taken together, or where one is that others may be beside."""
    box = (
        min(box[0] for box in thing.boxes),
        min(box[1] for box in thing.boxes),
        max(box[2] for box in thing.boxes),
        max(box[3] for box in thing.boxes),
    )
    if len(thing.boxes) > 1 and thing.is_counted and with_extent:
        group = _Referent("", box, _Noun("", "", is_plural=True), thing.category)
        return _extent(picture, group, f"taken together, the {thing.number} {thing.noun.several}")
    if len(thing.boxes) == 1 and len(picture.things) > 1 and (where := _where(picture, box)) is not None:
        return f"There {thing.noun.are} {thing.noun.some} {where}."
    return None


def _relations(picture: _Picture) -> list[str]:
    """How up to three single things lie to each other."""
    told: list[str] = []
    seen: set[str] = set()
    for one, other in _pairs(picture):
        if len(told) < 2 and not {one.category, other.category} <= seen:
            if (relation := _relation(picture, one, other)) is not None:
                told.append(f"{one.capital} {one.noun.are} {relation}.")
                seen |= {one.category, other.category}
    return told


def _nobody(picture: _Picture) -> list[str]:
    """That there are no people, where that is sure; nobody would remark on the lack of anything else."""
    if not picture.is_absent("person"):
        return []
    return [picture.say("there are no people in the {view}.", "no people can be seen.", "the {view} shows no people.")]


# ---- reasoning: a question whose answer needs two facts, or a fact and what follows from it


_GROUPED = tuple(
    frozenset(group.split(", "))
    for group in (
        "person, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
        "person, bicycle, car, motorcycle, bus, truck",
        "airplane, boat, train, bus, car, truck, bicycle, motorcycle",
        "backpack, handbag, suitcase, umbrella",
        "bottle, wine glass, cup, bowl, vase",
        "fork, knife, spoon, cup, bowl",
        "banana, apple, orange, sandwich, carrot, hot dog, pizza, donut, cake",
        "chair, couch, bed, dining table, bench",
        "tv, laptop, keyboard, cell phone, remote, mouse",
        "oven, microwave, toaster, refrigerator, sink",
        "surfboard, snowboard, skateboard, tennis racket, frisbee, kite",
        "traffic light, stop sign, parking meter, fire hydrant",
    )
)


def _go_together(one: _Thing, other: _Thing) -> bool:
    """Whether somebody would count these two together; of categories that are not COCO's, any two."""
    names = {one.category, other.category}
    return any(names <= group for group in _GROUPED) or names.isdisjoint(COCO_WORDS)


def _counted_pair(picture: _Picture) -> tuple[_Thing, _Thing] | None:
    """Two categories of known numbers, the one with more first; None where no two can be told."""
    counted = [thing for thing in picture.things if thing.is_counted]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(counted, 2)
        if len(one.boxes) + len(other.boxes) > 2 and _go_together(one, other)
    ]
    if not pairs:
        return None
    one, other = picture.draw.choice(pairs)
    return (one, other) if len(one.boxes) >= len(other.boxes) else (other, one)


def _amount(thing: _Thing) -> str:
    """`one dog`, `two dogs`."""
    return f"{thing.number} {thing.noun.one if len(thing.boxes) == 1 else thing.noun.several}"


def _there_are(number: int) -> str:
    return "is" if number == 1 else "are"


def _reason_more(picture: _Picture) -> Exchange | None:
    pair = _counted_pair(picture)
    if pair is None or len(pair[0].boxes) == len(pair[1].boxes):
        return None
    more, fewer = pair
    names = _shuffled([more.noun.several, fewer.noun.several], picture.draw)
    question = picture.say(
        "are there more {a} or more {b} in the {view}?",
        "which are there more of in the {view}, {a} or {b}, and how do you know?",
        a=names[0],
        b=names[1],
    )
    answer = picture.say(
        "there are {more} but only {fewer}, so there are more {many} than {few}.",
        "the {view} shows {more} and {fewer}. That means there are more {many} than {few}.",
        more=_amount(more),
        fewer=_amount(fewer),
        many=more.noun.several,
        few=fewer.noun.several,
    )
    return question, answer


def _reason_sum(picture: _Picture) -> Exchange | None:
    pair = _counted_pair(picture)
    if pair is None:
        return None
    one, other = pair
    total = len(one.boxes) + len(other.boxes)
    question = picture.say(
        "how many {a} and {b} are there altogether?",
        "if you count the {a} and the {b} together, what number do you get?",
        a=one.noun.several,
        b=other.noun.several,
    )
    answer = picture.say(
        "there {are} {a} and {b}. Added together, that makes {total}.",
        "the {view} shows {a} and {b}, which makes {total} in all.",
        are=_there_are(len(one.boxes)),
        a=_amount(one),
        b=_amount(other),
        total=_NUMBERS[total],
    )
    return question, answer


def _reason_without(picture: _Picture) -> Exchange | None:
    """What would be left if one went away."""
    pair = _counted_pair(picture)
    if pair is None or len(pair[0].boxes) < 2:
        return None
    more, fewer = pair
    left = len(more.boxes) - 1
    change = left - len(fewer.boxes)
    gone = "went away" if more.category == "person" else "were taken away"
    question = _capital(
        f"if one of the {more.number} {more.noun.several} {gone}, would there still be more {more.noun.several} than "
        f"{fewer.noun.several}?"
    )
    remain = f"{_NUMBERS[left]} {more.noun.one if left == 1 else more.noun.several} would be left"
    if change > 0:
        verdict = f"so there would still be more {more.noun.several} than {fewer.noun.several}"
    elif change == 0:
        verdict = f"so there would be as many {more.noun.several} as {fewer.noun.several}"
    else:
        verdict = f"so there would be fewer {more.noun.several} than {fewer.noun.several}"
    there = f"there {_there_are(len(more.boxes))} {_amount(more)} and {_amount(fewer)}"
    return question, f"{'Yes' if change > 0 else 'No'}, {there} now. With one gone, {remain}, {verdict}."


_ONE_EACH = frozenset(
    "chair,umbrella,cup,wine glass,bicycle,surfboard,skateboard,horse,sandwich,backpack,suitcase,cell phone,tennis racket,kite,"
    "bowl,donut,motorcycle,bottle,fork,spoon,laptop,apple,banana".split(",")
)


def _reason_each(picture: _Picture) -> Exchange | None:
    """Whether there is one of something for each of the people."""
    people = next((one for one in picture.things if one.category == "person" and one.is_counted), None)
    if people is None or len(people.boxes) < 2:
        return None
    for thing in _shuffled([one for one in picture.things if one.is_counted], picture.draw):
        if thing.category not in _ONE_EACH:
            continue
        question = picture.say(
            "is there {some} for each of the {people} in the {view}?",
            "if each of the {people} wanted {some}, would there be enough of them in the {view}?",
            people=_amount(people),
            some=thing.noun.some,
        )
        spare = len(thing.boxes) - len(people.boxes)
        there = f"there {_there_are(len(people.boxes))} {_amount(people)} and {_amount(thing)}"
        if spare < 0:
            lacking = f"{_NUMBERS[-spare]} {'person' if spare == -1 else 'people'}"
            return question, f"No, {there} in the {picture.view}, so {lacking} would go without."
        rest = (
            "each could have exactly one"
            if spare == 0
            else f"each could have one and {_NUMBERS[spare]} would be left over"
        )
        return question, f"Yes, {there} in the {picture.view}, so {rest}."
    return None


def _in_a_row(picture: _Picture) -> tuple[_Referent, _Referent, _Referent] | None:
    """Three single things from left to right, each apart from the next."""
    for three in _shuffled(list(itertools.combinations(picture.singles[:6], 3)), picture.draw):
        a, b, c = sorted(three, key=lambda one: one.box[0] + one.box[2])
        if all(_overlap(x.box, y.box, 0) <= 0 and _order(x.box, y.box, 0) == -1 for x, y in ((a, b), (b, c))):
            return a, b, c
    return None


def _reason_outermost(picture: _Picture) -> Exchange | None:
    if (three := _in_a_row(picture)) is None:
        return None
    side = picture.draw.choice(("left", "right"))
    first, second, third = three if side == "left" else three[::-1]
    names = _shuffled([one.phrase for one in three], picture.draw)
    question = picture.say(
        "which is farthest to the {side}: {a}, {b} or {c}, and how can you tell?",
        "of {a}, {b} and {c}, which is farthest to the {side}, and why?",
        side=side,
        a=names[0],
        b=names[1],
        c=names[2],
    )
    return question, (
        f"{first.capital} {first.noun.are} to the {side} of {second.phrase}, and {second.phrase} {second.noun.are} to the "
        f"{side} of {third.phrase}. So {first.phrase} {first.noun.are} farthest to the {side}."
    )


def _reason_between(picture: _Picture) -> Exchange | None:
    if (three := _in_a_row(picture)) is None:
        return None
    a, b, c = three if picture.draw.random() < 0.5 else three[::-1]
    side = "right" if a.box[0] < c.box[0] else "left"
    is_so = picture.draw.random() < 0.5
    asked, ends = (b, (a, c)) if is_so else (a, (b, c))
    question = picture.say(
        "looking across the {view} from side to side, {are} {asked} between {end} and {other}?",
        are=asked.noun.are,
        asked=asked.phrase,
        end=ends[0].phrase,
        other=ends[1].phrase,
    )
    return question, (
        f"{'Yes' if is_so else 'No'}, {b.phrase} {b.noun.are} to the {side} of {a.phrase}, and {c.phrase} {c.noun.are} to the "
        f"{side} of {b.phrase}. So it is {b.phrase} that {b.noun.are} in between."
    )


def _reason_apart(picture: _Picture) -> Exchange | None:
    for one, other in _pairs(picture):
        for axis, names in ((0, ("to the left of", "to the right of")), (1, ("higher up than", "lower down than"))):
            if _overlap(one.box, other.box, axis) <= -_GAP:
                name = names[int(one.box[axis] > other.box[axis])]
                question = picture.say(
                    "how can you tell that {a} and {b} do not touch in the {view}?",
                    "what shows that {a} and {b} do not touch each other in the {view}?",
                    a=one.phrase,
                    b=other.phrase,
                )
                return question, (
                    f"All that is seen of {one.phrase} is {name} all that is seen of {other.phrase}, and there is a gap between "
                    f"them. So they do not touch in the {picture.view}."
                )
    return None


def _reason_mirror(picture: _Picture) -> Exchange | None:
    for one in _shuffled(picture.notable[:6], picture.draw):
        place = _place(one.box, 0)
        if place not in (-1, 1):
            continue
        now, then = _SIDES[place], _SIDES[-place]
        question = picture.say(
            "if the {view} were flipped so that left and right changed places, on which side would {a} be?",
            "on which side would you see {a} in a mirror image of this {view}?",
            a=one.phrase,
        )
        return question, (
            f"{one.capital} {one.noun.are} on the {now} side now. Mirroring swaps left and right, so {one.pronoun} would be on "
            f"the {then} side."
        )
    return None


def _reason_cut(picture: _Picture) -> Exchange | None:
    """What is left of a picture of which half is cut away."""
    for one in _shuffled(picture.notable[:6], picture.draw):
        axis = picture.draw.choice((0, 1))
        names = ("left", "right") if axis == 0 else ("upper", "lower")
        if one.box[axis + 2] <= 0.49:
            half, is_low = names[0], True
        elif one.box[axis] >= 0.51:
            half, is_low = names[1], False
        else:
            continue
        is_kept = picture.draw.random() < 0.5
        kept = half if is_kept else names[int(is_low)]
        question = picture.say(
            "if only the {kept} half of the {view} were kept, would {a} still be in it?",
            "suppose that the {view} is cut in two and only its {kept} half is kept. Would {a} still be seen?",
            kept=kept,
            a=one.phrase,
        )
        end = "would still be seen" if is_kept else "would be gone"
        told = f"{one.phrase} {one.noun.are} entirely in the {half} half of the {picture.view}"
        return question, (f"{'Yes' if is_kept else 'No'}, {told}. With only the {kept} half kept, {one.pronoun} {end}.")
    return None


_CUTS = {0: ("down the middle", "left", "right"), 1: ("across the middle", "upper", "lower")}


def _reason_both_halves(picture: _Picture) -> Exchange | None:
    """Of which things a cut leaves a part on either side; a box is as wide as what is seen, so there is some at both ends."""
    for one in _shuffled(picture.notable[:6], picture.draw):
        axis = picture.draw.choice((0, 1))
        if not (one.box[axis] <= 0.45 and one.box[axis + 2] >= 0.55):
            continue
        cut, low, high = _CUTS[axis]
        question = picture.say(
            "if the {view} were cut in two {cut}, which of the two pieces would show {a}?",
            "suppose that the {view} is cut {cut}. On which of the two halves would {a} be seen?",
            cut=cut,
            a=one.phrase,
        )
        reach = one.verb("reaches", "reach")
        return question, (
            f"{one.capital} {reach} from the {low} half into the {high} half of the {picture.view}. So after the cut, both "
            f"pieces would show a part of {'them' if one.noun.is_plural else one.pronoun}."
        )
    return None


def _reason_how_many_kept(picture: _Picture) -> Exchange | None:
    """How many of several things are whole in one half."""
    for thing in _shuffled([one for one in picture.things if one.is_counted and len(one.boxes) > 1], picture.draw):
        axis = picture.draw.choice((0, 1))
        if any(0.49 < box[axis] < 0.51 or 0.49 < box[axis + 2] < 0.51 for box in thing.boxes):
            continue
        _, low, high = _CUTS[axis]
        num_low = sum(box[axis + 2] <= 0.49 for box in thing.boxes)
        num_high = sum(box[axis] >= 0.51 for box in thing.boxes)
        is_low = picture.draw.random() < 0.5
        kept, num_kept = (low, num_low) if is_low else (high, num_high)
        num_cut = len(thing.boxes) - num_low - num_high
        if num_low + num_high == 0:
            continue
        parts = [
            f"{_NUMBERS[number]} {_there_are(number)} entirely in the {half} half"
            for number, half in ((num_low, low), (num_high, high))
            if number
        ]
        if num_cut:
            parts.append(f"{_NUMBERS[num_cut]} {'reaches' if num_cut == 1 else 'reach'} from one half into the other")
        question = picture.say(
            "if only the {kept} half of the {view} were kept, how many of the {things} would still be whole?",
            "how many of the {things} could you see whole if the {view} ended where its {kept} half does?",
            kept=kept,
            things=_amount(thing),
        )
        whole = "none of them" if num_kept == 0 else _NUMBERS[num_kept]
        told = f"of the {_amount(thing)}, {_series(parts)}"
        if len(parts) == 1:
            half = low if num_low else high
            told = f"{_all_of(thing)} are entirely in the {half} half"
            whole = whole if num_kept == 0 else ("both" if num_kept == 2 else f"all {whole}")
        return question, (f"{_capital(told)}. So with only the {kept} half kept, {whole} would still be whole.")
    return None


def _reason_direction(picture: _Picture) -> Exchange | None:
    for one, other in _pairs(picture):
        across, down = _order(other.box, one.box, 0), _order(other.box, one.box, 1)
        if not across or not down:
            continue
        question = picture.say(
            "in which direction do your eyes move from {a} to {b} in the {view}?",
            "if you drew an arrow from {a} to {b}, which way would it point?",
            a=one.phrase,
            b=other.phrase,
        )
        sideways, vertical = _SIDES[across], ("up" if down < 0 else "down")
        return question, (
            f"{other.capital} {other.noun.are} to the {sideways} of {one.phrase} and also {_HEIGHTS[down]} in the "
            f"{picture.view}. So the way from {one.phrase} to {other.phrase} goes {vertical} and to the {sideways}."
        )
    return None


_REASONING: tuple[Callable[[_Picture], Exchange | None], ...] = (
    _reason_more, _reason_sum, _reason_without, _reason_each, _reason_outermost, _reason_between, _reason_apart, _reason_mirror,
    _reason_cut, _reason_direction, _reason_both_halves, _reason_how_many_kept,
)  # fmt: skip
