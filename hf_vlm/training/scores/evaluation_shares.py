"""An evaluation whose batches are shared among processes: each row counts once, and scores are those of one process.

The Trainer's own loader gives rows twice where they don't divide evenly, and its loss counts them. Here a process takes whole
batches of those that one process would make, so that masks or noise drawn for a batch are the same however many share them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_vlm.training.supervision.stop_signals import outliving_signals


def own_batches(
    rows: Sequence[Any], collate: Callable[[list[Any]], dict[str, Any]], settings: TrainingArguments
) -> Iterator[tuple[dict[str, Any], int]]:
    """The batches of this process, each with how many of its rows count: all of them, or 0.

    Every process gets as many batches: weights that are split come together for a forward pass of all. Where there is none
    left for one, it gets one that another counts.

    Args:
        rows: what is evaluated, one at least.
        collate: makes a batch of a list of them.
        settings: `eval_batch_size`, `process_index`, `world_size`, `dataloader_num_workers`, and `seed`: with the number of a
            batch it seeds torch's generators before the batch is given out.
    """
    size, num_processes = settings.eval_batch_size, settings.world_size
    batches = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    num_rounds = -(-len(batches) // num_processes)
    numbers = range(settings.process_index, num_rounds * num_processes, num_processes)
    loader: Any = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=[list(batches[number % len(batches)]) for number in numbers],
        collate_fn=collate,
        num_workers=settings.dataloader_num_workers if num_rounds > 1 else 0,
        worker_init_fn=outliving_signals(None),
    )
    for number, batch in zip(numbers, loader, strict=True):
        torch.manual_seed(settings.seed + number)
        yield batch, len(batches[number]) if number < len(batches) else 0
