"""The exchanges of a conversation: short questions and answers, each of one fact."""

import random
import re
from collections.abc import Callable

from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.instruction_text import Exchange
from hf_vlm.data.instructions.rule_boxes import area, place_along
from hf_vlm.data.instructions.rule_nouns import Noun, capitalized, noun_of, series
from hf_vlm.data.instructions.rule_picture import MOST_LISTED, NEVER_DENIED, Picture, Referent, shuffled
from hf_vlm.data.instructions.rule_places import (
    MORE_AREA,
    PLACES,
    draw_pairs,
    tell_extent,
    tell_more,
    tell_relation,
    tell_spread,
    tell_where,
)
from hf_vlm.data.tasks.format_prompts import with_format_prompt

_Made = tuple[str, Exchange]  # what keeps others from saying it again, and the exchange


def write_conversation(picture: Picture) -> list[Exchange]:
    """Two to five questions and answers, no two of which say the same; none where there is too little to say."""
    draw = picture.draw
    wanted = draw.choice((3, 3, 4, 4, 5))
    made: list[_Made] = []
    if draw.random() < 0.7:
        made += _presence(picture, draw.choice((1, 1, 2)))
    elif draw.random() < 0.4:
        made.append(("list", _listing(picture)))
    pending = shuffled(_TALK, draw)
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


def _presence(picture: Picture, number: int) -> list[_Made]:
    """Whether there is something; a yes is asked for only where a no could be, so that they come out even."""
    made: list[_Made] = []
    for thing in shuffled([one for one in picture.things if one.category not in NEVER_DENIED], picture.draw)[:number]:
        absent = picture.absent()
        if absent is None or any(key == f"is {absent}" for key, _ in made):
            break
        is_there = picture.draw.random() < 0.5
        noun = thing.noun if is_there else noun_of(absent)
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


def _listing(picture: Picture) -> Exchange:
    listed = series([thing.listed for thing in picture.things[:MOST_LISTED]])
    question = picture.say(
        "what can be seen in the {view}?", "what does the {view} show?", "what do you see in this {view}?"
    )
    return question, picture.say(
        "the {view} shows {listed}.", "I can see {listed}.", "in the {view}, you can see {listed}.", listed=listed
    )


def _ask_count(picture: Picture, taken: set[str]) -> _Made | None:
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


def _ask_where(picture: Picture, taken: set[str]) -> _Made | None:
    for one in shuffled(picture.notable[:8], picture.draw):
        if f"where {one.category}" in taken or (where := tell_where(picture, one.box)) is None:
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


def _ask_what_is_there(picture: Picture, taken: set[str]) -> _Made | None:
    """What is in a part of the picture."""
    if "there" in taken or picture.draw.random() < 0.4:
        return None
    found: dict[tuple[int | None, int | None], dict[str, tuple[Noun, int]]] = {}
    for thing in picture.things:
        for box in thing.boxes:
            here = found.setdefault((place_along(box, 0), place_along(box, 1)), {})
            here[thing.category] = (thing.noun, here.get(thing.category, (thing.noun, 0))[1] + 1)
    for place in shuffled([one for one in found if one in PLACES], picture.draw):
        here = found[place]
        if len(here) > 3 or any(f"where {category}" in taken for category in here):
            continue
        first = next(iter(here.values()))
        are = "are" if first[0].is_plural or (first[1] > 1 and first[0].is_count) else "is"
        named = series([noun.several if number > 1 else noun.some for noun, number in here.values()])
        where = picture.draw.choice(PLACES[place]).format(view=picture.view)
        question = picture.say("what can you see {where}?", "what is there {where}?", where=where)
        key = " | ".join(["there", *(f"where {category}" for category in here)])
        return key, (question, capitalized(f"there {are} {named} {where}."))
    return None


def _ask_spread(picture: Picture, taken: set[str]) -> _Made | None:
    for thing in shuffled(picture.things, picture.draw):
        if f"where {thing.category}" not in taken and (answer := tell_spread(picture, thing)) is not None:
            question = picture.say(
                "where are the {several}?", "where in the {view} are the {several}?", several=thing.noun.several
            )
            return f"where {thing.category}", (question, answer)
    return None


def _ask_relation(picture: Picture, taken: set[str]) -> _Made | None:
    for one, other in draw_pairs(picture):
        key = _pair_key(one, other)
        if key in taken or (relation := tell_relation(picture, one, other)) is None:
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
                one, relation = other, tell_relation(picture, other, one) or relation
        return key, (question, f"{one.capital} {one.noun.are} {relation}.")
    return None


def _ask_whether(picture: Picture, taken: set[str]) -> _Made | None:
    """A relation as a question of yes or no, half of them each."""
    for one, other in draw_pairs(picture):
        key = _pair_key(one, other)
        is_so = picture.draw.random() < 0.5
        if key in taken or (asked := tell_relation(picture, one, other, is_reversed=not is_so)) is None:
            continue
        truth = asked if is_so else tell_relation(picture, one, other)
        question = f"{capitalized(one.noun.are)} {one.phrase} {asked}?"
        return key, (question, f"{'Yes' if is_so else 'No'}, {one.phrase} {one.noun.are} {truth}.")
    return None


def _pair_key(one: Referent, other: Referent) -> str:
    return "pair " + " ".join(sorted((one.category, other.category)))


def _ask_size(picture: Picture, taken: set[str]) -> _Made | None:
    for one, other in draw_pairs(picture):
        if area(one.box) < MORE_AREA * area(other.box):
            continue
        names = shuffled([one.phrase, other.phrase], picture.draw)
        question = picture.say(
            "which takes up more of the {view}, {a} or {b}?",
            "what fills more of the {view}, {a} or {b}?",
            a=names[0],
            b=names[1],
        )
        return "size", (question, tell_more(picture, one, other))
    return None


def _ask_extent(picture: Picture, taken: set[str]) -> _Made | None:
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
    return "extent", (question, tell_extent(picture, one))


_TALK: tuple[Callable[[Picture, set[str]], _Made | None], ...] = (
    _ask_count, _ask_where, _ask_spread, _ask_relation, _ask_whether, _ask_size, _ask_extent, _ask_what_is_there
)  # fmt: skip


def write_region_exchanges(context: Context, draw: random.Random) -> list[Exchange]:
    """LLaVA-1.5's two questions for regions, by turns: the phrase of a box, and the box of a phrase that no other has."""
    phrases = [re.sub(r"\s+", " ", region.phrase).strip().lower() for region in context.regions]
    good = [
        (region.box, phrase)
        for region, phrase in zip(context.regions, phrases, strict=True)
        if re.search(r"[^\W\d_]", phrase) and phrases.count(phrase) == 1 and area(region.box) > 0
    ]
    exchanges = []
    is_box = draw.random() < 0.5
    for box, phrase in draw.sample(good, min(len(good), draw.choice((3, 4, 5)))):
        told = f"[{', '.join(f'{side:.2f}' for side in box)}]"
        if is_box:
            exchanges.append((with_format_prompt(capitalized(phrase), "region-box"), told))
        else:
            exchanges.append((with_format_prompt(told, "region-description"), capitalized(phrase)))
        is_box = not is_box
    return exchanges if len(exchanges) > 1 else []
