"""Running statistics of batch norms in several processes."""

from pathlib import Path

import torch
from torch import distributed, nn

from hf_vlm.training.trainers.running_statistics import running_statistics, share_statistics
from tests.two_processes import on_two_ranks


def norms() -> nn.Module:
    """Two norms with statistics, and two without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, momentum=0.5),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.LayerNorm(3),
    )


def pass_of(rank: int) -> nn.Module:
    model = norms()
    model(2.0 + rank + torch.randn(16, 3, generator=torch.Generator().manual_seed(rank)))
    return model


def share_on_a_rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = pass_of(rank)
    share_statistics(model)
    share_statistics(nn.Linear(2, 2))  # nothing to share
    torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_statistics_of_two_processes_become_their_mean(tmp_path: Path) -> None:
    on_two_ranks(share_on_a_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    own, other = (pass_of(rank).state_dict() for rank in range(2))
    assert not torch.equal(own["0.running_mean"], other["0.running_mean"])
    for name in own:
        assert torch.equal(first[name], second[name]), name
        if "running" in name:
            torch.testing.assert_close(first[name], (own[name] + other[name]) / 2)


def test_only_norms_that_keep_statistics_are_asked() -> None:
    assert [tuple(buffer.shape) for buffer in running_statistics(norms())] == [(3,)] * 4
