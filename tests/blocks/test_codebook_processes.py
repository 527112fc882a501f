from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hf_vlm.blocks.codebook import Codebook, CodebookUpdate
from tests.two_processes import on_two_ranks


def rank_batches(rank: int) -> torch.Tensor:
    """Four steps of vectors, for each rank others, that wander, so that codewords are left behind."""
    noise = torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(rank))
    return noise + 3 * torch.arange(4)[:, None, None] + rank


def steady_codebook(update: CodebookUpdate) -> Codebook:
    """The same everywhere, without draws."""
    torch.manual_seed(0)
    return Codebook(8, 3, update=update, decay=0.5, revive_below=0, kmeans_iterations=0)


def learn_on_a_rank(rank: int, folder: str, update: CodebookUpdate) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    steady = steady_codebook(update)
    torch.manual_seed(rank + 10)  # ranks draw different vectors
    codebook = Codebook(8, 3, update=update, decay=0.5, revive_below=0.5, kmeans_iterations=3)
    wrapped = DistributedDataParallel(codebook) if update == "loss" else codebook
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5) if update == "loss" else None
    for batch in rank_batches(rank):
        discrete = wrapped(batch)
        if optimizer is not None:
            optimizer.zero_grad()
            discrete.codebook_loss.backward()
            optimizer.step()
        steady(batch)
    torch.save((codebook.state_dict(), steady.state_dict()), Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.parametrize("update", ["loss", "ema"])
def test_codebooks_of_two_processes_stay_equal(update: CodebookUpdate, tmp_path: Path) -> None:
    on_two_ranks(learn_on_a_rank, str(tmp_path), update)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name

    alone = steady_codebook(update)  # one process that sees both halves of each batch
    for halves in zip(rank_batches(0), rank_batches(1), strict=True):
        alone(torch.cat(halves))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[1][name], value)
