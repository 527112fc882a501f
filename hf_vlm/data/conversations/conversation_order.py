"""Which conversations come when, and which share a batch or a row: pure functions of seed and epoch."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

Grouping = Literal["none", "length", "modality"]

_NUM_SORTED_BATCHES = 50  # that are sorted by length together, as in transformers; fewer where rows are few
_NUM_OPEN_PACKS = 64  # that a row is tried in: more fill packs no better
_NUM_PACKED_TOGETHER = 256  # rows that are packed longest first: in no order, packs are 1 to 3 % less full
_NUM_CACHED_EPOCHS = 2  # workers that read ahead are in two epochs at once


def epoch_order(
    lengths: np.ndarray,
    has_image: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    num_processes: int = 1,
    accumulation_steps: int = 1,
    grouping: Grouping = "none",
    num_before: int = 0,
) -> np.ndarray:
    """A permutation of the rows, int64 (rows,), whose every `batch_size * num_processes * accumulation_steps` in a row are those
    of an update: the same ones, however it is divided.

    Process p takes the p-th `batch_size` of every `batch_size * num_processes`. Updates come in random order; in epoch 0 one
    with the longest row comes first, so that what does not fit into memory fails at once.

    Args:
        lengths: int (rows,), tokens.
        has_image: bool (rows,).
        seed, epoch: decide, with the other arguments, everything.
        batch_size: rows, of one process.
        accumulation_steps: batches of each process in an update.
        grouping: "none" is random. "length": rows of an update are of like length, its batches have the longer ones first, and
            processes get equal shares of those. "modality": besides, all rows of an update have pictures or none has, but for
            one update an epoch of what is left over.
        num_before: rows that came before this epoch's, where epochs lie one behind the other. If they leave an update begun,
            this epoch's first rows fill it up, and the updates after it are grouped.

    Raises:
        ValueError: if there is no such grouping, or batches would hold no rows.

    Source: Liu et al. 2023b (LLaVA-1.5), https://arxiv.org/abs/2310.03744, whose batches are of one modality.
        Different: rows left over lie in one update, and none is lost or repeated.
    """
    if grouping not in ("none", "length", "modality"):
        raise ValueError(f'`grouping` must be "none", "length" or "modality", got {grouping!r}. Choose one of them.')
    size = batch_size * num_processes * accumulation_steps
    if size < 1:
        raise ValueError(
            "`batch_size`, `num_processes` and `accumulation_steps` must be 1 or more, got "
            f"{batch_size}, {num_processes} and {accumulation_steps}. Raise what is less."
        )
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if grouping == "none":
        return order
    with_image = has_image[order]
    kinds = [order] if grouping == "length" else sorted([order[with_image], order[~with_image]], key=len)
    # The larger kind fills up the update that was begun, and is what this epoch leaves begun: one more mixed one less.
    first, kinds[-1] = np.split(kinds[-1], [-num_before % size])
    grouped, left = [], []
    for rows in kinds:
        whole, rest = np.split(rows, [len(rows) // size * size])
        grouped.append(_sorted_batches(whole, lengths, size))
        left.append(rest)
    mixed, last = np.split(np.concatenate(left), [sum(map(len, left)) // size * size])
    batches = np.concatenate([*grouped, _sorted_batches(mixed, lengths, size)])  # (batches, size)
    batches = batches[generator.permutation(len(batches))]
    if epoch == 0 and len(batches):
        longest = int(lengths[batches].max(axis=1).argmax())
        batches[[0, longest]] = batches[[longest, 0]]
    by_process = batches.reshape(-1, batch_size, num_processes)
    by_process[:, 1::2] = by_process[:, 1::2, ::-1].copy()  # dealt forth and back: no process always gets the longer
    return np.concatenate([first, by_process.swapaxes(1, 2).reshape(-1), last])


def _sorted_batches(rows: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Shuffled rows as batches (batches, size) of like length, the longest first within a batch."""
    num_batches = len(rows) // size
    num_sorted = max(1, min(num_batches // 4, _NUM_SORTED_BATCHES))
    sorted_together = np.arange(len(rows)) // (num_sorted * size)
    return rows[np.lexsort((-lengths[rows], sorted_together))].reshape(num_batches, size)


def weighted_rows(num_rows: int, weight: float, *, seed: int, source: int) -> np.ndarray:
    """Which rows of a set come in a pass over a mixture, int64: all of them as often as the weight's whole part says, and of the
    rest a share that the seed chooses.

    Args:
        weight: above 0; 2.5 is twice, and every second row once more.
        source: the set's number in the mixture.
    """
    whole = int(weight)
    shuffled = np.random.default_rng([seed, source]).permutation(num_rows)
    once_more = np.sort(shuffled[: round((weight - whole) * num_rows)])
    return np.concatenate([np.tile(np.arange(num_rows), whole), once_more]).astype(np.int64)


def pack(
    lengths: np.ndarray,
    order: np.ndarray,
    *,
    max_tokens: int,
    num_images: np.ndarray | None = None,
    max_images: int | None = None,
) -> list[np.ndarray]:
    """Packs of rows, each int64 (rows of the pack,), of at most `max_tokens` tokens together; every row is in one.

    Rows are taken in order, some hundred at a time, of these the longest first, and put where they leave the least room:
    best fit among a bounded number of open packs, of which the fullest is closed for a new one.

    Args:
        lengths: int (rows,), tokens.
        order: int (rows,), a permutation.
        max_tokens: of a pack.
        num_images: int (rows,), pictures; needed for `max_images`.
        max_images: of a pack; None for any number.

    Raises:
        ValueError: if a row alone is too much for a pack.
    """
    _check_fits(lengths, max_tokens, "tokens", "`max_tokens`, or lower the conversations' `max_length`")
    if max_images is None:
        num_images = np.zeros_like(lengths)
    elif num_images is None:
        raise ValueError(
            f"`max_images` of {max_images} needs `num_images`, got None. Give every row's number of pictures."
        )
    else:
        _check_fits(num_images, max_images, "pictures", "`max_images`, or leave such rows out")
    if not len(order):
        return []
    shortest = int(lengths.min())
    num_together = max(1, min(len(order) // 4, _NUM_PACKED_TOGETHER))  # of few rows too, each epoch's packs are others
    order = order[np.lexsort((-lengths[order], np.arange(len(order)) // num_together))]
    rows_of: list[list[int]] = []  # of every pack, in the order they were opened
    images_of: list[int] = []
    open_packs: list[tuple[int, int]] = []  # (room, pack), the fullest first
    closed: list[int] = []
    for row, length, images in zip(order.tolist(), lengths[order].tolist(), num_images[order].tolist(), strict=True):
        at = bisect_left(open_packs, (length, 0))
        if max_images is not None:
            while at < len(open_packs) and images_of[open_packs[at][1]] + images > max_images:
                at += 1
        if at < len(open_packs):
            room, of_pack = open_packs.pop(at)
        else:
            if len(open_packs) == _NUM_OPEN_PACKS:
                closed.append(open_packs.pop(0)[1])
            room, of_pack = max_tokens, len(rows_of)
            rows_of.append([])
            images_of.append(0)
        rows_of[of_pack].append(row)
        images_of[of_pack] += images
        if room - length < shortest:
            closed.append(of_pack)
        else:
            insort(open_packs, (room - length, of_pack))
    closed += [of_pack for _, of_pack in open_packs]
    return [np.array(rows_of[of_pack], dtype=np.int64) for of_pack in closed]


def _check_fits(amounts: np.ndarray, limit: int, unit: str, remedy: str) -> None:
    too_many = np.flatnonzero(amounts > limit)
    if len(too_many):
        others = f" and {len(too_many) - 1} more rows" if len(too_many) > 1 else ""
        raise ValueError(
            f"A row must fit into a pack of {limit} {unit}, got {int(amounts[too_many[0]])} in row {too_many[0]}{others}. "
            f"Raise {remedy}."
        )


class _Epoch(NamedTuple):
    rows: np.ndarray  # int64 (rows,)
    ends: np.ndarray  # int64 (items,), where each item ends in `rows`


class ConversationSchedule(Dataset[list[dict[str, Any]]]):
    """A training set for a *sequential* sampler, all epochs in one: item i, a list of encoded conversations.

    Without `max_tokens` every item is a list of one; with it, of those that share a packed row. Which rows an item holds is
    a function of the seed and i, whoever asks and in whatever order, so that a resumed run goes on with the same items.

    Args:
        dataset: encoded conversations, by index.
        lengths: int (rows,), tokens of each of them.
        num_images: int (rows,), pictures of each of them.
        seed: of the order.
        batch_size, num_processes, accumulation_steps: of an update; rows are grouped for it.
        grouping: as in `epoch_order`; of padded batches only.
        max_tokens: of a packed row; None packs none.
        max_images: of a packed row; None for any number.
        num_epochs: how often each conversation comes; of a fraction, that share of the last epoch's items.
        length: number of items, in place of `num_epochs`: as many epochs as they take.

    Raises:
        ValueError: if there are no rows, not one length a row, both or neither of `num_epochs` and `length`, a grouping of
            packs, or a row that is too long for a pack.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        lengths: Sequence[int] | np.ndarray,
        num_images: Sequence[int] | np.ndarray,
        seed: int,
        batch_size: int,
        num_processes: int = 1,
        accumulation_steps: int = 1,
        grouping: Grouping = "none",
        max_tokens: int | None = None,
        max_images: int | None = None,
        num_epochs: float | None = None,
        length: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.lengths, self.num_images = np.asarray(lengths, dtype=np.int64), np.asarray(num_images, dtype=np.int64)
        self.seed, self.batch_size, self.num_processes, self.grouping = seed, batch_size, num_processes, grouping
        self.accumulation_steps, self.max_tokens, self.max_images = accumulation_steps, max_tokens, max_images
        if not len(dataset):
            raise ValueError("`dataset` must hold conversations, got none. Check its file and split.")
        if not self.lengths.shape == self.num_images.shape == (len(dataset),):
            raise ValueError(
                f"`lengths` and `num_images` must have a number for each of {len(dataset)} conversations, got shapes "
                f"{self.lengths.shape} and {self.num_images.shape}. Take those of the same rows."
            )
        if (num_epochs is None) == (length is None):
            raise ValueError(f"Either `num_epochs` or `length` is wanted, got {num_epochs} and {length}. Give one.")
        if max_tokens is not None and grouping != "none":
            raise ValueError(
                f"`grouping` is for padded batches, got {grouping!r} with `max_tokens`. Leave one of them out."
            )
        self._epochs: dict[int, _Epoch] = {}
        self._starts = [0]  # the first item of each epoch so far, and of the next
        if num_epochs is not None:
            whole = int(num_epochs)
            length = self._start(whole)
            if num_epochs > whole:
                length += round((num_epochs - whole) * (self._start(whole + 1) - length))
        assert length is not None
        if length < 1:
            raise ValueError(
                f"A schedule must have 1 item or more, got {length} of `num_epochs={num_epochs}`. Make it longer."
            )
        self._length = length
        self.rows_of(0)  # whatever is wrong with the rows, is told now

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Item `index`: the encoded conversations of its rows.

        Raises:
            IndexError: past the end, which also ends a `for` loop.
        """
        return [self.dataset[row] for row in self.rows_of(index).tolist()]

    def rows_of(self, index: int) -> np.ndarray:
        """The rows of item `index`, int64 (rows of the item,).

        Raises:
            IndexError: past the end.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"`index` must be in [0, {self._length}), got {index}. Make the schedule longer.")
        while self._starts[-1] <= index:
            self._start(len(self._starts))
        epoch = bisect_right(self._starts, index) - 1
        rows, ends = self._epoch(epoch)
        item = index - self._starts[epoch]
        return rows[ends[item - 1] if item else 0 : ends[item]]

    @property
    def fill(self) -> float:
        """The share of the first epoch's tokens, in [0, 1], that is no padding.

        Of packs it is the share of `max_tokens` that they hold; of padded batches, that of the longest row's length.
        """
        rows, ends = self._epoch(0)
        if self.max_tokens is not None:
            return float(self.lengths.sum() / (len(ends) * self.max_tokens))
        firsts = np.arange(0, len(rows), self.batch_size)
        longest = np.maximum.reduceat(self.lengths[rows], firsts)
        return float(self.lengths.sum() / (longest * np.diff(firsts, append=len(rows))).sum())

    def _start(self, epoch: int) -> int:
        """The first item of an epoch."""
        while len(self._starts) <= epoch:
            last = len(self._starts) - 1
            size = len(self.lengths) if self.max_tokens is None else len(self._epoch(last).ends)
            self._starts.append(self._starts[-1] + size)
        return self._starts[epoch]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            order = epoch_order(
                self.lengths,
                self.num_images > 0,
                seed=self.seed,
                epoch=epoch,
                batch_size=self.batch_size,
                num_processes=self.num_processes,
                accumulation_steps=self.accumulation_steps,
                grouping=self.grouping,
                num_before=epoch * len(self.lengths),
            )
            found = _Epoch(order, np.arange(1, len(order) + 1))
            if self.max_tokens is not None:
                packs = pack(
                    self.lengths,
                    order,
                    max_tokens=self.max_tokens,
                    num_images=self.num_images,
                    max_images=self.max_images,
                )
                # Packs that could not be filled come last: mixed among the others, no step is short of tokens.
                shuffled = np.random.default_rng([self.seed, epoch, 1]).permutation(len(packs))
                packs = [packs[index] for index in shuffled]
                found = _Epoch(np.concatenate(packs), np.cumsum([len(rows) for rows in packs]))
            while len(self._epochs) >= _NUM_CACHED_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = found
        return self._epochs[epoch]
