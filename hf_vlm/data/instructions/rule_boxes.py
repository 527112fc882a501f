"""What boxes say: where one lies in the picture, and how two lie to each other; only what is clear.

Lengths are fractions of the picture's width or height, areas of its area; axis 0 is across, 1 is down.
"""

from hf_vlm.data.instructions.contexts import Box

_SAME_BOX = 0.7  # intersection over union: one thing boxed twice, perhaps
_OUTER, _CENTRAL = 0.3, 0.08  # a side's centre is within; the middle's centre is off by at most
_APART, _OVERLAP = 0.15, 0.25  # centres; of the smaller extent


def area(box: Box) -> float:
    """Of a box, as a fraction of the picture's."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def by_size(box: Box) -> tuple[float, Box]:
    """A key that sorts boxes, the largest first."""
    return -area(box), box


def overlap_along(one: Box, other: Box, axis: int) -> float:
    """Length that two boxes share along an axis, 0 across and 1 down; below 0 it is the gap between them."""
    return min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])


def is_same_box(one: Box, other: Box) -> bool:
    """Whether two boxes may be of one thing, boxed twice."""
    width, height = overlap_along(one, other, 0), overlap_along(one, other, 1)
    if width <= 0 or height <= 0:
        return False
    shared = width * height
    return shared > _SAME_BOX * (area(one) + area(other) - shared)


def place_along(box: Box, axis: int) -> int | None:
    """-1 for left or top, 1 for right or bottom, 0 for the middle, None for none of them."""
    low, high = box[axis], box[axis + 2]
    centre = (low + high) / 2
    if centre <= _OUTER and high <= 0.5:
        return -1
    if centre >= 1 - _OUTER and low >= 0.5:
        return 1
    return 0 if abs(centre - 0.5) <= _CENTRAL and high - low <= 0.6 else None


def order_along(one: Box, other: Box, axis: int) -> int:
    """-1 if the first is left of, or higher than, the other; 1 for the reverse; 0 where it is not clear."""
    shared = overlap_along(one, other, axis)
    apart = (other[axis] + other[axis + 2] - one[axis] - one[axis + 2]) / 2
    if shared > 0:
        lengths = one[axis + 2] - one[axis], other[axis + 2] - other[axis]
        if abs(apart) < _APART or shared > _OVERLAP * min(lengths):
            return 0
    return 0 if abs(apart) < 0.02 else (-1 if apart > 0 else 1)


def is_across(one: Box, other: Box) -> bool:
    """Whether two boxes lie apart rather across than down, so that left and right are what one would say."""
    across, down = (abs(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) for axis in (0, 1))
    return across >= down
