"""The reasoned questions: their answer needs two facts, or a fact and what follows from it."""

import itertools
from collections.abc import Callable

from hf_vlm.data.instructions.category_words import COCO_WORDS
from hf_vlm.data.instructions.instruction_text import Exchange
from hf_vlm.data.instructions.rule_boxes import order_along, overlap_along, place_along
from hf_vlm.data.instructions.rule_nouns import capitalized, series
from hf_vlm.data.instructions.rule_picture import NUMERALS, Picture, Referent, Thing, shuffled
from hf_vlm.data.instructions.rule_places import HEIGHTS, SIDES, all_of, draw_pairs

_GAP = 0.03  # between boxes, of the picture's width or height
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


def _go_together(one: Thing, other: Thing) -> bool:
    """Whether somebody would count these two together; of categories that are not COCO's, any two."""
    names = {one.category, other.category}
    return any(names <= group for group in _GROUPED) or names.isdisjoint(COCO_WORDS)


def _counted_pair(picture: Picture) -> tuple[Thing, Thing] | None:
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


def _amount(thing: Thing) -> str:
    """`one dog`, `two dogs`."""
    return f"{thing.number} {thing.noun.one if len(thing.boxes) == 1 else thing.noun.several}"


def _there_are(number: int) -> str:
    return "is" if number == 1 else "are"


def _reason_more(picture: Picture) -> Exchange | None:
    pair = _counted_pair(picture)
    if pair is None or len(pair[0].boxes) == len(pair[1].boxes):
        return None
    more, fewer = pair
    names = shuffled([more.noun.several, fewer.noun.several], picture.draw)
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


def _reason_sum(picture: Picture) -> Exchange | None:
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
        total=NUMERALS[total],
    )
    return question, answer


def _reason_without(picture: Picture) -> Exchange | None:
    """What would be left if one went away."""
    pair = _counted_pair(picture)
    if pair is None or len(pair[0].boxes) < 2:
        return None
    more, fewer = pair
    left = len(more.boxes) - 1
    change = left - len(fewer.boxes)
    gone = "went away" if more.category == "person" else "were taken away"
    question = capitalized(
        f"if one of the {more.number} {more.noun.several} {gone}, would there still be more {more.noun.several} than "
        f"{fewer.noun.several}?"
    )
    remain = f"{NUMERALS[left]} {more.noun.one if left == 1 else more.noun.several} would be left"
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


def _reason_each(picture: Picture) -> Exchange | None:
    """Whether there is one of something for each of the people."""
    people = next((one for one in picture.things if one.category == "person" and one.is_counted), None)
    if people is None or len(people.boxes) < 2:
        return None
    for thing in shuffled([one for one in picture.things if one.is_counted], picture.draw):
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
            lacking = f"{NUMERALS[-spare]} {'person' if spare == -1 else 'people'}"
            return question, f"No, {there} in the {picture.view}, so {lacking} would go without."
        rest = (
            "each could have exactly one"
            if spare == 0
            else f"each could have one and {NUMERALS[spare]} would be left over"
        )
        return question, f"Yes, {there} in the {picture.view}, so {rest}."
    return None


def _in_a_row(picture: Picture) -> tuple[Referent, Referent, Referent] | None:
    """Three single things from left to right, each apart from the next."""
    for three in shuffled(list(itertools.combinations(picture.singles[:6], 3)), picture.draw):
        a, b, c = sorted(three, key=lambda one: one.box[0] + one.box[2])
        if all(overlap_along(x.box, y.box, 0) <= 0 and order_along(x.box, y.box, 0) == -1 for x, y in ((a, b), (b, c))):
            return a, b, c
    return None


def _reason_outermost(picture: Picture) -> Exchange | None:
    if (three := _in_a_row(picture)) is None:
        return None
    side = picture.draw.choice(("left", "right"))
    first, second, third = three if side == "left" else three[::-1]
    names = shuffled([one.phrase for one in three], picture.draw)
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


def _reason_between(picture: Picture) -> Exchange | None:
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


def _reason_apart(picture: Picture) -> Exchange | None:
    for one, other in draw_pairs(picture):
        for axis, names in ((0, ("to the left of", "to the right of")), (1, ("higher up than", "lower down than"))):
            if overlap_along(one.box, other.box, axis) <= -_GAP:
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


def _reason_mirror(picture: Picture) -> Exchange | None:
    for one in shuffled(picture.notable[:6], picture.draw):
        place = place_along(one.box, 0)
        if place not in (-1, 1):
            continue
        now, then = SIDES[place], SIDES[-place]
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


def _reason_cut(picture: Picture) -> Exchange | None:
    """What is left of a picture of which half is cut away."""
    for one in shuffled(picture.notable[:6], picture.draw):
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


def _reason_both_halves(picture: Picture) -> Exchange | None:
    """Of which things a cut leaves a part on either side; a box is as wide as what is seen, so there is some at both ends."""
    for one in shuffled(picture.notable[:6], picture.draw):
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


def _reason_how_many_kept(picture: Picture) -> Exchange | None:
    """How many of several things are whole in one half."""
    for thing in shuffled([one for one in picture.things if one.is_counted and len(one.boxes) > 1], picture.draw):
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
            f"{NUMERALS[number]} {_there_are(number)} entirely in the {half} half"
            for number, half in ((num_low, low), (num_high, high))
            if number
        ]
        if num_cut:
            parts.append(f"{NUMERALS[num_cut]} {'reaches' if num_cut == 1 else 'reach'} from one half into the other")
        question = picture.say(
            "if only the {kept} half of the {view} were kept, how many of the {things} would still be whole?",
            "how many of the {things} could you see whole if the {view} ended where its {kept} half does?",
            kept=kept,
            things=_amount(thing),
        )
        whole = "none of them" if num_kept == 0 else NUMERALS[num_kept]
        told = f"of the {_amount(thing)}, {series(parts)}"
        if len(parts) == 1:
            half = low if num_low else high
            told = f"{all_of(thing)} are entirely in the {half} half"
            whole = whole if num_kept == 0 else ("both" if num_kept == 2 else f"all {whole}")
        return question, (f"{capitalized(told)}. So with only the {kept} half kept, {whole} would still be whole.")
    return None


def _reason_direction(picture: Picture) -> Exchange | None:
    for one, other in draw_pairs(picture):
        across, down = order_along(other.box, one.box, 0), order_along(other.box, one.box, 1)
        if not across or not down:
            continue
        question = picture.say(
            "in which direction do your eyes move from {a} to {b} in the {view}?",
            "if you drew an arrow from {a} to {b}, which way would it point?",
            a=one.phrase,
            b=other.phrase,
        )
        sideways, vertical = SIDES[across], ("up" if down < 0 else "down")
        return question, (
            f"{other.capital} {other.noun.are} to the {sideways} of {one.phrase} and also {HEIGHTS[down]} in the "
            f"{picture.view}. So the way from {one.phrase} to {other.phrase} goes {vertical} and to the {sideways}."
        )
    return None


_REASONING: tuple[Callable[[Picture], Exchange | None], ...] = (
    _reason_more, _reason_sum, _reason_without, _reason_each, _reason_outermost, _reason_between, _reason_apart, _reason_mirror,
    _reason_cut, _reason_direction, _reason_both_halves, _reason_how_many_kept,
)  # fmt: skip


def write_reasoning(picture: Picture) -> Exchange | None:
    """One question and its answer, of a sort by chance among those that the boxes allow; None where they allow none."""
    return next(filter(None, (make(picture) for make in shuffled(_REASONING, picture.draw))), None)
