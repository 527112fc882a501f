"""Sentences and phrases of where things are: in the picture, to each other, and how much of it they take up."""

import itertools

from hf_vlm.data.instructions.contexts import Box
from hf_vlm.data.instructions.rule_boxes import is_across, order_along, place_along
from hf_vlm.data.instructions.rule_nouns import capitalized
from hf_vlm.data.instructions.rule_picture import Picture, Referent, Thing, shuffled

MORE_AREA = 2.0  # ratio of areas from which one thing takes up more of the picture than another
SIDES = {-1: "left", 1: "right"}
HEIGHTS = {-1: "higher up", 1: "lower down"}
PLACES: dict[tuple[int | None, int | None], tuple[str, ...]] = {
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


def tell_where(picture: Picture, box: Box) -> str | None:
    """`on the left side of the picture`."""
    phrases = PLACES.get((place_along(box, 0), place_along(box, 1)))
    return picture.draw.choice(phrases).format(view=picture.view) if phrases else None


def tell_spread(picture: Picture, thing: Thing) -> str | None:
    """Where several things are, such as `Both dogs are in the left half of the picture`."""
    if len(thing.boxes) < 2 or not thing.noun.is_count:
        return None
    several = thing.noun.several
    if thing.is_counted:
        for axis, low, high in ((0, "left", "right"), (1, "upper", "lower")):
            is_low = all(box[axis + 2] <= 0.5 for box in thing.boxes)
            if is_low or all(box[axis] >= 0.5 for box in thing.boxes):
                half = low if is_low else high
                return capitalized(f"{all_of(thing)} are in the {half} half of the {picture.view}.")
    places = {place_along(box, 0) for box in thing.boxes}
    if {-1, 1} <= places:
        if thing.is_counted and len(thing.boxes) == 2:
            return f"One of the two {several} is on the left side of the {picture.view}, the other on the right side."
        return f"There are {several} on the left side of the {picture.view} as well as on the right side."
    return None


def all_of(thing: Thing) -> str:
    """`both dogs`, `all three dogs`."""
    return f"{'both' if len(thing.boxes) == 2 else f'all {thing.number}'} {thing.noun.several}"


def tell_share(length: float) -> str:
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


def tell_extent(picture: Picture, one: Referent, subject: str | None = None) -> str:
    """How much of the picture's width and height a thing takes up."""
    across, down = tell_share(one.box[2] - one.box[0]), tell_share(one.box[3] - one.box[1])
    if across == down:
        told = f"{across.replace('the whole', 'all')} both the width and the height"
        told = told.replace("nearly all both", "nearly all of both").replace(" of the both", " of both")
    else:
        told = f"{across} width and {down} height"
    verb = one.verb("extends", "extend") if subject != "they" else "extend"
    return capitalized(f"{subject or one.phrase} {verb} over {told} of the {picture.view}.")


def tell_more(picture: Picture, one: Referent, other: Referent) -> str:
    """That the first takes up more of the picture than the other."""
    take, does = one.verb("takes", "take"), other.verb("does", "do")
    return f"{one.capital} {take} up more of the {picture.view} than {other.phrase} {does}."


def draw_pairs(picture: Picture) -> list[tuple[Referent, Referent]]:
    """Two single things, in all orders, shuffled; of the eight largest."""
    return shuffled(list(itertools.permutations(picture.singles[:8], 2)), picture.draw)


def tell_relation(picture: Picture, one: Referent, other: Referent, is_reversed: bool = False) -> str | None:
    """`to the left of the boat`, or `lower down in the picture than the boat`."""
    turn = -1 if is_reversed else 1
    if is_across(one.box, other.box):
        order = turn * order_along(one.box, other.box, 0)
        return f"to the {SIDES[order]} of {other.phrase}" if order else None
    order = turn * order_along(one.box, other.box, 1)
    return f"{HEIGHTS[order]} in the {picture.view} than {other.phrase}" if order else None
