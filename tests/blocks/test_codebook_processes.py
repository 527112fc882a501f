from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
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


def learn(codebook: Codebook, batches: Iterable[torch.Tensor], wrapped: nn.Module | None = None) -> None:
    """Gradient steps of the codebook loss, where codewords learn by it; else they learn as batches come."""
    wrapped = codebook if wrapped is None else wrapped
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5) if codebook.update_by == "loss" else None
    for batch in batches:
        discrete = wrapped(batch)
        if optimizer is not None:
            optimizer.zero_grad()
            discrete.codebook_loss.backward()
            optimizer.step()


def learning_codebook(update: CodebookUpdate) -> Codebook:
    """Starts by k-means, and puts dead codewords on vectors of the batch."""
    return Codebook(8, 3, update=update, decay=0.5, revive_below=0.5, kmeans_iterations=3)


def learn_on_a_rank(rank: int, folder: str, update: CodebookUpdate, engine: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    steady = steady_codebook(update)
    for batch in rank_batches(rank):
        steady(batch)
    codebook = learning_codebook(update)
    wrapped: nn.Module = codebook
    if engine.startswith("split"):
        fully_shard(codebook, reshard_after_forward=engine == "split")
    elif update == "loss":
        wrapped = DistributedDataParallel(codebook)
    torch.manual_seed(3 if rank == 0 else 10)  # ranks draw different vectors
    learn(codebook, rank_batches(rank), wrapped)
    state = {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in codebook.state_dict().items()}
    looked_up = codebook.lookup(torch.arange(8))
    assert torch.equal(looked_up, state["codewords"])
    torch.save((state, steady.state_dict()), Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("update", "engine"), [("loss", "ddp"), ("ema", "ddp"), ("loss", "split"), ("loss", "split, kept together")]
)
def test_codebooks_of_two_processes_are_that_of_one_with_both_batches(
    update: CodebookUpdate, engine: str, tmp_path: Path
) -> None:
    on_two_ranks(learn_on_a_rank, str(tmp_path), update, engine)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name

    batches = [torch.cat(halves) for halves in zip(rank_batches(0), rank_batches(1), strict=True)]
    alone = steady_codebook(update)  # one process that sees both halves of each batch
    for batch in batches:
        alone(batch)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[1][name], value)
    learning = learning_codebook(update)
    torch.manual_seed(3)
    learn(learning, batches)
    for name, value in learning.state_dict().items():
        torch.testing.assert_close(first[0][name], value, msg=lambda told, name=name: f"{name}: {told}")
