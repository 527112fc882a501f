"""What may be said of a picture: the things in it, which of them may be counted, and what is surely not there."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_vlm.data.instructions.category_words import NUMBER_WORDS, categories_in, mentions
from hf_vlm.data.instructions.contexts import Box, Context
from hf_vlm.data.instructions.rule_boxes import area, by_size, is_same_box
from hf_vlm.data.instructions.rule_nouns import Noun, capitalized, clean_category, noun_of
from hf_vlm.data.instructions.rule_numbers import told_number

MOST_LISTED = 6  # categories in a sentence
NEVER_DENIED = frozenset({"dining table", "sports ball"})  # by those names: other tables and balls are not boxed
NUMERALS = {number: word for word, number in NUMBER_WORDS.items()}

# How sure the boxes must be; areas are fractions of the picture's.
_MOST_COUNTED = 6
_LEAST_AREA = 0.0005  # of a thing that is spoken of
_LEAST_AREA_COUNTED = 0.002  # of each of several things; where they are smaller, some were missed
_LARGEST = 1.5  # ratio of areas, to the next

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


@dataclass(frozen=True)
class Thing:
    """A category of a picture: its boxes, largest first, without crowds.

    `is_counted`: its number may be told; `is_single`: there is one, and it may be called `the`.
    """

    category: str
    noun: Noun
    boxes: tuple[Box, ...]
    has_crowd: bool
    is_counted: bool
    is_single: bool

    @property
    def number(self) -> str:
        """How many boxes there are, in a word."""
        return NUMERALS[len(self.boxes)]

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
        """`is` or `are`, for what is listed."""
        is_many = len(self.boxes) > 1 or self.has_crowd
        return "are" if self.noun.is_plural or (is_many and self.noun.is_count) else "is"


@dataclass(frozen=True)
class Referent:
    """One thing that a phrase such as `the dog` stands for."""

    phrase: str
    box: Box
    noun: Noun
    category: str

    @property
    def capital(self) -> str:
        """The phrase at the start of a sentence."""
        return capitalized(self.phrase)

    @property
    def pronoun(self) -> str:
        """What stands for it in a next sentence."""
        if self.noun.is_plural:
            return "they"
        return "this person" if self.category == "person" else "it"

    def verb(self, singular: str, several: str) -> str:
        """The form that agrees with it."""
        return several if self.noun.is_plural else singular


class Picture:
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
        self._vocabulary, self._words = vocabulary, words
        self._text = "\n".join([*context.captions, *(region.phrase for region in context.regions)]).lower()
        boxes: dict[str, list[Box]] = {}
        crowds: set[str] = set()
        for one in context.instances:
            name = clean_category(one.category)
            if one.is_crowd:
                crowds.add(name)
            boxes.setdefault(name, [])
            if not one.is_crowd and area(one.box) > 0:
                boxes[name].append(one.box)
        self._present = frozenset(boxes)
        self._is_searched = bool(boxes) and self._present <= words
        things = [
            thing
            for name, found in boxes.items()
            if name and (thing := self._thing(name, tuple(sorted(found, key=by_size)), name in crowds)) is not None
        ]
        self.things = sorted(things, key=lambda thing: (-area(thing.boxes[0]) if thing.boxes else 0.0, thing.category))
        self.singles = [
            Referent(f"the {thing.noun.one}", thing.boxes[0], thing.noun, thing.category)
            for thing in self.things
            if thing.is_single
        ]
        self.notable = [
            Referent(_largest(thing), thing.boxes[0], thing.noun, thing.category)
            for thing in self.things
            if len(thing.boxes) > 1
            and not thing.has_crowd
            and thing.noun.is_count
            and area(thing.boxes[0]) >= _LARGEST * area(thing.boxes[1])
        ]
        self.notable = sorted(self.singles + self.notable, key=lambda one: (-area(one.box), one.category))

    def _thing(self, name: str, boxes: tuple[Box, ...], has_crowd: bool) -> Thing | None:
        if not has_crowd and (not boxes or area(boxes[0]) < _LEAST_AREA):
            return None
        doubt = _DOUBTS.get(name)
        if doubt is not None and doubt.search(self._text) and name not in categories_in(self._text):
            return None
        noun = noun_of(name)
        is_sure = not has_crowd and self._is_sure(name, boxes, noun)
        return Thing(name, noun, boxes, has_crowd, is_sure and noun.is_count, is_sure and len(boxes) == 1)

    def _is_sure(self, name: str, boxes: tuple[Box, ...], noun: Noun) -> bool:
        number = len(boxes)
        if number > _MOST_COUNTED or any(is_same_box(one, other) for one, other in itertools.combinations(boxes, 2)):
            return False
        told = told_number(self._text, name, number, is_plural_one=not noun.is_count or name == "scissors")
        if told != "unsaid":
            return told == "agrees"
        return number == 1 or (area(boxes[-1]) >= _LEAST_AREA_COUNTED and name not in _HEAPED)

    def is_absent(self, category: str) -> bool:
        """Whether it may be said that there is none of a category of the vocabulary."""
        if not self._is_searched or category not in self._words or category in self._present | NEVER_DENIED:
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
        return capitalized(self.draw.choice(templates).format(view=self.view, **words))


def _largest(thing: Thing) -> str:
    return f"the {thing.noun.one} {'who' if thing.category == 'person' else 'that'} appears largest"


def shuffled(items: Sequence[Any], draw: random.Random) -> list[Any]:
    """The items in an order by chance."""
    return draw.sample(items, len(items))
