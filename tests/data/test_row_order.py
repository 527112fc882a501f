from collections import Counter

import pytest

from hf_vlm.data.row_order import RowOrder


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    order = list(RowOrder(7, seed=3, length=3 * 7 + 2))
    epochs = [order[first : first + 7] for first in range(0, 21, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    assert len(order) == len(RowOrder(7, seed=3, length=23)) == 23 and len(set(order[21:])) == 2
    assert order != list(RowOrder(7, seed=4, length=23))


def test_order_begins_alike_however_long_it_is():
    assert list(RowOrder(5, seed=0, length=4)) == list(RowOrder(5, seed=0, length=12))[:4]


def test_every_row_is_first_as_often():
    firsts = Counter(list(RowOrder(4, seed=0, length=4 * 400))[::4])
    assert min(firsts.values()) > 60  # of 100 each


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="Rows to learn from are wanted, got 0"):
        RowOrder(0, seed=0, length=4)
