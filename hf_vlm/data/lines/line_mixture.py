"""Real and drawn lines mixed by weight, in an order that wastes little padding: item i is a function of (seed, i)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hf_vlm.data.lines.augmentation import AUGMENTATIONS, augmentation_name
from hf_vlm.data.lines.ocr_lines import LineRenderer


class LineSource(NamedTuple):
    """Rows `{"image", "text"}`, how often they are taken relative to other sources, and how they are augmented.

    `augment` is a name of `hf_vlm.data.lines.augmentation.AUGMENTATIONS`, true for `mild` or false for none.
    """

    rows: Sequence[dict[str, Any]]
    weight: float
    augment: bool | str = True


class LineMixture(Sequence[dict[str, Any]]):
    """A training set of `length` items for a *sequential* sampler: `mixture[i]` is `{"image", "text", "source"}`.

    Every `group_size` items in a row have lines of like shape (width by height): the group's shape is drawn from the
    sources in their proportions, then each item's source by weight, then one of its rows near that shape, or a line
    drawn to it. With `group_size` a multiple of the batch size, batches need little padding.

    Args:
        sources: sets of real lines; (rows, weight, augment) tuples will do.
        renderer: draws synthetic lines; `renderer_weight` says how often, `renderer_augment` how they are augmented.
        seed: with the index, decides everything about an item.
        length: number of items, such as steps times batch size.
        group_size: items in a group.
        short_first: the first so many items are drawn from ever longer lines, short ones first: a reader learns its
            letters faster from words than from whole lines. 0 for none.
        prepare: makes a real picture of any mode an 8-bit one before it is augmented.

    Raises:
        ValueError: if there is nothing to take from, a weight is negative, a set is empty, or there is no augmentation
            of a name.
    """

    def __init__(
        self,
        sources: Sequence[LineSource | tuple[Sequence[dict[str, Any]], float, bool | str]] = (),
        renderer: LineRenderer | None = None,
        *,
        renderer_weight: float = 1.0,
        renderer_augment: bool | str = False,
        seed: int = 0,
        length: int,
        group_size: int = 64,
        short_first: int = 0,
        prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
    ) -> None:
        self.prepare = prepare
        self.sources = [LineSource(*source) for source in sources if source[1] != 0]
        self.renderer = renderer if renderer_weight != 0 else None
        self._augmentations = [  # of each source, and last of the renderer
            AUGMENTATIONS[name] if (name := augmentation_name(choice)) else None
            for choice in [*(source.augment for source in self.sources), renderer_augment]
        ]
        self.seed, self.group_size, self.short_first = seed, group_size, short_first
        self._length = length
        weights = [source.weight for source in self.sources] + ([renderer_weight] if self.renderer else [])
        if not weights:
            raise ValueError("`sources` or `renderer` must have a weight above 0, got none. Name data to train on.")
        if min(weights) < 0:
            raise ValueError(f"Weights must be 0 or more, got {min(weights)}. Correct it.")
        if group_size < 1:
            raise ValueError(
                f"`group_size` must be 1 or more, got {group_size}. A multiple of the batch size does well."
            )
        self._limits = np.cumsum(weights) / sum(weights)
        self._order, self._aspects = [], []
        for number, source in enumerate(self.sources):
            if not len(source.rows):
                raise ValueError(f"`sources` must hold lines, got none in source {number}. Leave it out or fill it.")
            aspects = np.array([_aspect(source.rows, index) for index in range(len(source.rows))])
            self._order.append(np.argsort(aspects, kind="stable"))
            self._aspects.append(np.sort(aspects))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Item `index`.

        Raises:
            IndexError: past the end, which also ends a `for` loop.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"`index` must be in [0, {self._length}), got {index}. Make the mixture longer.")
        aspect = self._group_aspect(index // self.group_size)
        rng = np.random.default_rng([self.seed, 1, index])
        number = self._pick_source(rng)
        augment = self._augmentations[number]
        if number == len(self.sources):
            assert self.renderer is not None
            line = self.renderer.render(index, aspect=aspect * (0.9 + 0.15 * rng.random()))
            line["source"] = f"drawn line {index}"
            return {**line, "image": augment(line["image"], rng)} if augment else line
        source, aspects = self.sources[number], self._aspects[number]
        # The nearest rows: those within a tenth of the shape, and a few in any case, so that none repeats too often.
        first, last = np.searchsorted(aspects, [aspect * 0.9, aspect * 1.1])
        few = min(16, len(aspects))
        if last - first < few:
            first = min(max((first + last - few) // 2, 0), len(aspects) - few)
            last = first + few
        row = source.rows[int(self._order[number][first + int(rng.random() * (last - first))])]
        image = augment(self.prepare(row["image"]), rng) if augment else row["image"]
        return {"image": image, "text": row["text"], "source": row.get("source", f"row of source {number}")}

    def _pick_source(self, rng: np.random.Generator) -> int:
        return min(int(np.searchsorted(self._limits, rng.random(), side="right")), len(self._limits) - 1)

    def _group_aspect(self, group: int) -> float:
        """The shape, width by height, that the lines of one group are near to."""
        rng = np.random.default_rng([self.seed, 0, group])
        number = self._pick_source(rng)
        quantile = rng.random()
        if group * self.group_size < self.short_first:
            quantile *= ((group * self.group_size + 1) / self.short_first) ** 2
        if number == len(self.sources):
            # A quarter of the drawn lines are words, the others lines of print.
            characters = 1 + 52 * quantile if quantile < 0.25 else 14 + 75 * (quantile - 0.25)
            return 0.3 + 0.42 * characters
        return float(self._aspects[number][int(quantile * len(self._aspects[number]))])


def _aspect(rows: Any, index: int) -> float:
    if hasattr(rows, "aspect"):
        return rows.aspect(index)
    image = rows[index]["image"]
    return image.width / image.height
