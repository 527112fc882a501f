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

The rules for boxes are in `rule_boxes.py`, those for numbers in `rule_numbers.py` and `rule_picture.py`; what is said is in
`rule_nouns.py`, `rule_places.py` and a file for each of the three kinds.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3, for the three kinds; yes and no in equal parts are POPE's,
    Li et al. 2023, https://arxiv.org/abs/2305.10355. The rules and their words are ours.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hf_vlm.data.instructions.category_words import COCO_CATEGORIES
from hf_vlm.data.instructions.instruction_text import format_exchanges
from hf_vlm.data.instructions.rule_conversation import write_conversation, write_region_exchanges
from hf_vlm.data.instructions.rule_description import write_description
from hf_vlm.data.instructions.rule_nouns import clean_category
from hf_vlm.data.instructions.rule_picture import Picture
from hf_vlm.data.instructions.rule_reasoning import write_reasoning
from hf_vlm.data.instructions.teachers import KINDS, TeacherReply, TeacherRequest

_RULES = 1  # of the rules and their words; a run goes on with the same only


class RuleTeacher:
    """Writes visual instructions by the rules at the module's top.

    Args:
        vocabulary: the categories that the pictures' makers looked for in every picture, of which it may be said that there are
            none; None for COCO's 80 or what `use_vocabulary` tells, empty for no such questions.

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
        self.settings: dict[str, Any] = {"rules": _RULES}
        self._is_given = vocabulary is not None
        self._take(COCO_CATEGORIES if vocabulary is None else vocabulary)
        if self._is_given:
            self.settings["vocabulary"] = hashlib.sha256("\n".join(self._vocabulary).encode()).hexdigest()[:16]

    def use_vocabulary(self, vocabulary: Sequence[str]) -> None:
        """Take these for the categories that were looked for, such as all of a set, unless others were given at the start."""
        if not self._is_given:
            self._take(vocabulary)

    def _take(self, vocabulary: Sequence[str]) -> None:
        names = dict.fromkeys(clean_category(name) for name in vocabulary)
        self._vocabulary = tuple(name for name in names if name)
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
        picture = Picture(context, self._vocabulary, self._words, draw)
        if not picture.things:
            return format_exchanges(write_region_exchanges(context, draw)) if kind == "conversation" else ""
        if kind == "detail_description":
            return write_description(picture)
        if kind == "complex_reasoning":
            found = write_reasoning(picture)
            return format_exchanges([found]) if found else ""
        return format_exchanges(write_conversation(picture))
