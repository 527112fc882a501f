"""The description of a picture: one paragraph, of what there is, where, and how it lies to the rest."""

import itertools
from collections.abc import Sequence

from hf_vlm.data.instructions.rule_boxes import area
from hf_vlm.data.instructions.rule_nouns import Noun, article, series
from hf_vlm.data.instructions.rule_picture import MOST_LISTED, Picture, Referent, Thing
from hf_vlm.data.instructions.rule_places import (
    MORE_AREA,
    draw_pairs,
    tell_extent,
    tell_more,
    tell_relation,
    tell_share,
    tell_spread,
    tell_where,
)

_LEAST_WORDS = 20  # of a description; a shorter one is not given


def write_description(picture: Picture) -> str:
    """What there is, then where it is, the largest first; how things lie to each other; what is not there."""
    draw = picture.draw
    listed = series([thing.listed for thing in picture.things[:MOST_LISTED]])
    told = [
        picture.say(
            "the {view} shows {listed}.",
            "in this {view}, you can see {listed}.",
            "this is {a_view} of {listed}.",
            listed=listed,
            a_view=f"{article(picture.view)} {picture.view}",
        )
    ]
    said: set[str] = set()
    extents: set[str] = set()  # the same twice would sound like a machine
    for one in picture.notable[:4]:
        is_placed = (where := tell_where(picture, one.box)) is not None
        shares = {tell_share(one.box[axis + 2] - one.box[axis]) for axis in (0, 1)}
        shares |= {"both"} if len(shares) == 1 else set()
        with_extent = not extents or (not is_placed and extents.isdisjoint(shares))
        told += _at_its_place(picture, one, where, with_extent)
        if with_extent:
            extents |= shares
        if is_placed or with_extent:
            said.add(one.category)
    several = [thing for thing in picture.things if thing.category not in said and thing.boxes]
    spreads = [text for thing in several if (text := tell_spread(picture, thing))]
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
        if area(one.box) >= MORE_AREA * area(other.box)
    ]
    if sizes and draw.random() < 0.6:
        told.append(tell_more(picture, *draw.choice(sizes)))
    if _num_words(told) < _LEAST_WORDS or draw.random() < 0.4:
        told += _nobody(picture)
    return " ".join(told) if _num_words(told) >= _LEAST_WORDS else ""


def _num_words(told: Sequence[str]) -> int:
    return sum(text.count(" ") + 1 for text in told)


def _at_its_place(picture: Picture, one: Referent, where: str | None, with_extent: bool) -> list[str]:
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
        told.append(tell_extent(picture, one, subject))
    return told


def _together(picture: Picture, thing: Thing, with_extent: bool) -> str | None:
    """How far several things reach taken together, or where one is that others may be beside."""
    box = (
        min(box[0] for box in thing.boxes),
        min(box[1] for box in thing.boxes),
        max(box[2] for box in thing.boxes),
        max(box[3] for box in thing.boxes),
    )
    if len(thing.boxes) > 1 and thing.is_counted and with_extent:
        group = Referent("", box, Noun("", "", is_plural=True), thing.category)
        return tell_extent(picture, group, f"taken together, the {thing.number} {thing.noun.several}")
    if len(thing.boxes) == 1 and len(picture.things) > 1 and (where := tell_where(picture, box)) is not None:
        return f"There {thing.noun.are} {thing.noun.some} {where}."
    return None


def _relations(picture: Picture) -> list[str]:
    """How up to three single things lie to each other."""
    told: list[str] = []
    seen: set[str] = set()
    for one, other in draw_pairs(picture):
        if len(told) < 2 and not {one.category, other.category} <= seen:
            if (relation := tell_relation(picture, one, other)) is not None:
                told.append(f"{one.capital} {one.noun.are} {relation}.")
                seen |= {one.category, other.category}
    return told


def _nobody(picture: Picture) -> list[str]:
    """That there are no people, where that is sure; nobody would remark on the lack of anything else."""
    if not picture.is_absent("person"):
        return []
    return [picture.say("there are no people in the {view}.", "no people can be seen.", "the {view} shows no people.")]
