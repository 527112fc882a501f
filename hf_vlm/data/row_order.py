"""Which row comes when, of a set that is read again and again: a function of the seed and the place alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class RowOrder(Sampler[int]):
    """Every row once an epoch, in an order of its own each time, all epochs one behind the other.

    Processes that share the rows get the same ones an update however they divide it, as no epoch is filled up by itself.

    Args:
        num_rows: of the set.
        seed: decides, with the epoch, its order.
        length: number of places, such as steps times batch size.

    Raises:
        ValueError: if there are no rows.
    """

    def __init__(self, num_rows: int, *, seed: int, length: int) -> None:
        if num_rows < 1:
            raise ValueError(f"Rows to learn from are wanted, got {num_rows}. Check the sets' files and splits.")
        self.num_rows, self.seed, self.length = num_rows, seed, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for first in range(0, self.length, self.num_rows):
            order = np.random.default_rng([self.seed, first // self.num_rows]).permutation(self.num_rows)
            yield from order[: self.length - first].tolist()
