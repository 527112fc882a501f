"""Which conversations come when, and which share a batch or a row: pure functions of (seed, epoch)."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

Grouping = Literal["none", "length", "modality"]

_MEGABATCH = 50  # batches that are sorted by length together, as in transformers' length-grouped sampling
_OPEN_PACKS = 64  # that a conversation is tried in


def epoch_order(
    lengths: np.ndarray,
    has_image: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    num_processes: int = 1,
    grouping: Grouping = "none",
) -> np.ndarray:
    """A permutation of the rows, int64 (rows,): every `batch_size * num_processes` in a row are one step's batch.

    Args:
        lengths: int (rows,), tokens.
        has_image: bool (rows,).
        grouping: "none" at random; "length" batches of like length in random order; "modality" batches all with pictures or
            all without, but for one of what is left over, of like length within.

    Source: Liu et al. 2023b (LLaVA-1.5), section 3.3, https://arxiv.org/abs/2310.03744
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if grouping == "none":
        return order
    size = batch_size * num_processes
    if grouping == "length":
        batches, rest = _like_lengths(order, lengths, size)
    else:
        with_images, without = order[has_image[order]], order[~has_image[order]]
        batches, rest = [], []
        for of_kind in (with_images, without):
            kind_batches, kind_rest = _like_lengths(of_kind, lengths, size)
            batches += kind_batches
            rest += kind_rest
        left = np.concatenate(rest) if rest else np.zeros(0, np.int64)
        whole = len(left) // size * size
        batches += np.split(left[:whole], whole // size) if whole else []
        rest = [left[whole:]]
    shuffled = [batches[index] for index in generator.permutation(len(batches))]
    return np.concatenate([*shuffled, *rest]).astype(np.int64) if shuffled or rest else order


def _like_lengths(order: np.ndarray, lengths: np.ndarray, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Whole batches of like length out of shuffled rows, and what is left over."""
    whole = len(order) // size * size
    batches: list[np.ndarray] = []
    for first in range(0, whole, size * _MEGABATCH):
        chunk = order[first : min(first + size * _MEGABATCH, whole)]
        chunk = chunk[np.argsort(-lengths[chunk], kind="stable")]
        batches += np.split(chunk, len(chunk) // size)
    return batches, [order[whole:]]


def pack(
    lengths: np.ndarray,
    order: np.ndarray,
    *,
    max_tokens: int,
    num_images: np.ndarray | None = None,
    max_images: int | None = None,
) -> list[np.ndarray]:
    """Rows in packs of at most `max_tokens` tokens, each row once: best fit among the last open packs.

    Raises:
        ValueError: if a row is longer than `max_tokens`.
    """
    too_long = np.flatnonzero(lengths > max_tokens)
    if len(too_long):
        raise ValueError(
            f"A conversation must fit into a row of {max_tokens} tokens, got {int(lengths[too_long[0]])} in row {too_long[0]}. "
            "Raise `max_tokens`, or lower `max_length`."
        )
    closed: list[list[int]] = []
    members: list[list[int]] = []
    room: list[int] = []
    pictures: list[int] = []
    for row in order.tolist():
        length = int(lengths[row])
        number = int(num_images[row]) if num_images is not None and max_images is not None else 0
        best = -1
        for index, free in enumerate(room):
            if length <= free and (best < 0 or free < room[best]):
                if max_images is None or not members[index] or pictures[index] + number <= max_images:
                    best = index
        if best < 0:
            if len(room) == _OPEN_PACKS:
                fullest = min(range(len(room)), key=room.__getitem__)
                closed.append(members.pop(fullest))
                room.pop(fullest)
                pictures.pop(fullest)
            members.append([])
            room.append(max_tokens)
            pictures.append(0)
            best = len(room) - 1
        members[best].append(row)
        room[best] -= length
        pictures[best] += number
    return [np.array(of_pack, dtype=np.int64) for of_pack in closed + members]


class ConversationSchedule(Dataset):
    """Map-style, for a sequential sampler: item i, a list of encoded conversations, is a pure function of (seed, i).

    Without `max_tokens` an item is a list of one; with it, of all that share a row.

    Args:
        dataset: map-style, of encoded conversations.
        lengths, num_images: int (rows,), tokens and pictures of its rows.
        num_epochs, length: how long: passes over the rows, or items; one of the two.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        lengths: np.ndarray,
        num_images: np.ndarray,
        seed: int,
        batch_size: int,
        num_processes: int = 1,
        grouping: Grouping = "none",
        max_tokens: int | None = None,
        max_images: int | None = None,
        num_epochs: float | None = None,
        length: int | None = None,
    ) -> None:
        if (num_epochs is None) == (length is None):
            raise ValueError("Either `num_epochs` or `length` is wanted, got both or neither. Give one.")
        if not len(lengths):
            raise ValueError("Conversations are wanted, got none. Check the split and the folder.")
        self.dataset, self.lengths, self.num_images = dataset, np.asarray(lengths), np.asarray(num_images)
        self.seed, self.batch_size, self.num_processes, self.grouping = seed, batch_size, num_processes, grouping
        self.max_tokens, self.max_images = max_tokens, max_images
        self._epochs: dict[int, list[np.ndarray]] = {}
        self._ends: list[int] = []  # items up to the end of each epoch
        if length is None:
            assert num_epochs is not None
            whole = int(num_epochs)
            length = sum(self._size(epoch) for epoch in range(whole))
            length += round((num_epochs - whole) * self._size(whole)) if num_epochs > whole else 0
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return [self.dataset[int(row)] for row in self.rows_of(index)]

    def rows_of(self, index: int) -> np.ndarray:
        """Rows that item `index` holds."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        epoch = 0
        while index >= self._end(epoch):
            epoch += 1
        return self._items(epoch)[index - (self._end(epoch - 1) if epoch else 0)]

    @property
    def fill(self) -> float:
        """Share of the first epoch's packed rows that are tokens; 1 without packing."""
        if self.max_tokens is None:
            return 1.0
        return float(self.lengths.sum()) / (len(self._items(0)) * self.max_tokens)

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._size(len(self._ends)))
        return self._ends[epoch]

    def _size(self, epoch: int) -> int:
        return len(self._items(epoch)) if self.max_tokens is not None else len(self.lengths)

    def _items(self, epoch: int) -> Sequence[np.ndarray]:
        if epoch not in self._epochs:
            order = epoch_order(
                self.lengths,
                self.num_images > 0,
                seed=self.seed,
                epoch=epoch,
                batch_size=self.batch_size,
                num_processes=self.num_processes,
                grouping=self.grouping,
            )
            items = (
                list(order[:, None])
                if self.max_tokens is None
                else pack(
                    self.lengths,
                    order,
                    max_tokens=self.max_tokens,
                    num_images=self.num_images,
                    max_images=self.max_images,
                )
            )
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = items
        return self._epochs[epoch]
