"""Batches of an evaluation, shared among processes."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from hf_vlm.training.scores.evaluation_shares import own_batches


def shares(num_rows: int, num_processes: int) -> list[list[tuple[list[int], int, float]]]:
    """Of each process: the rows of each batch, how many count, and a number drawn for it."""
    settings = [
        SimpleNamespace(
            eval_batch_size=3, process_index=index, world_size=num_processes, dataloader_num_workers=0, seed=5
        )
        for index in range(num_processes)
    ]
    rows = list(range(num_rows))
    with torch.random.fork_rng():
        return [
            [(batch, number, float(torch.rand(()))) for batch, number in own_batches(rows, lambda items: items, of)]
            for of in settings
        ]


@pytest.mark.parametrize("num_rows", [1, 3, 4, 9, 10, 17])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_each_row_counts_once_with_the_draws_of_one_process(num_rows: int, num_processes: int) -> None:
    [alone] = shares(num_rows, 1)
    assert [row for batch, number, _ in alone for row in batch] == list(range(num_rows))
    assert all(number == len(batch) for batch, number, _ in alone)
    assert len({drawn for _, _, drawn in alone}) == len(alone)
    several = shares(num_rows, num_processes)
    assert len({len(share) for share in several}) == 1  # as many forward passes on each
    counted = [batch for of_round in zip(*several, strict=True) for batch in of_round if batch[1]]
    assert counted == alone


def test_workers_outlive_a_signal_that_goes_to_all() -> None:
    settings = SimpleNamespace(eval_batch_size=1, process_index=0, world_size=1, dataloader_num_workers=1, seed=5)
    with torch.random.fork_rng():
        batches = own_batches(list(range(6)), lambda items: items, settings)
        assert next(batches) == ([0], 1)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        assert [batch for batch, _ in batches] == [[row] for row in range(1, 6)]
