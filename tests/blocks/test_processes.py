"""What processes tell each other in a forward pass is what one process finds that has all of it."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from hf_vlm import DVAEConfig, DVAEModel
from hf_vlm.blocks.processes import draw_rows, mean_over_processes, spread_over_processes
from tests.two_processes import on_two_ranks

ROWS = torch.arange(15.0).view(5, 3).square()
SHARES = (ROWS[:2], ROWS[2:])  # not as many for each
NUMBERS = (4, 5, 9)


def drawn(rows: torch.Tensor) -> list[tuple[torch.Tensor, bool]]:
    return [draw_rows(rows, number) for number in NUMBERS]


def ask_on_a_rank(rank: int, folder: str) -> None:
    torch.manual_seed(7 * rank)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = drawn(SHARES[rank])
    torch.save((found, mean_over_processes(SHARES[rank]), spread_over_processes(SHARES[rank])), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_draw_and_measure_what_one_does_with_all_rows(tmp_path: Path) -> None:
    on_two_ranks(ask_on_a_rank, str(tmp_path))
    torch.manual_seed(0)  # the first process's
    wanted = drawn(ROWS)
    assert [is_enough for _, is_enough in wanted] == [True, True, False]
    assert sorted(wanted[1][0].tolist()) == ROWS.tolist()
    for rank in range(2):
        found, mean, spread = torch.load(tmp_path / f"{rank}.pt")
        for (rows, is_enough), (of_one, of_one_is_enough) in zip(found, wanted, strict=True):
            assert torch.equal(rows, of_one) and is_enough == of_one_is_enough
        torch.testing.assert_close(mean, ROWS.mean(0))
        torch.testing.assert_close(spread, ROWS.std(0, correction=0))


def start_model() -> DVAEModel:
    torch.manual_seed(0)
    settings = {"image_size": 16, "group_channels": 8, "num_codes": 16, "code_dim": 8, "start_logit_deviation": 2.0}
    return DVAEModel(DVAEConfig(**settings)).train()


def halves() -> torch.Tensor:
    return torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def start_on_a_rank(rank: int, folder: str, engine: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = start_model()
    layer = model.encoder.output_layer
    if engine != "plain":
        for part in (layer, model):
            fully_shard(part, reshard_after_forward=engine == "resharding")
    model(halves()[rank])
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    if engine != "plain":  # what is kept, not what was brought together for the pass
        layer.reshard()
        weights = {name: weight.detach().full_tensor() for name, weight in layer.named_parameters()}
    torch.save(weights, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("engine", ["plain", "resharding", "keeping"])
def test_start_of_a_discrete_vae_on_two_processes_is_that_of_one(engine: str, tmp_path: Path) -> None:
    on_two_ranks(start_on_a_rank, str(tmp_path), engine)
    alone = start_model()
    alone(halves().flatten(0, 1))
    wanted = dict(alone.encoder.output_layer.named_parameters())
    before = start_model().encoder.output_layer.weight
    assert (wanted["weight"] - before).abs().max() > 0.1
    for rank in range(2):
        for name, weight in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(weight, wanted[name], msg=lambda told, name=name: f"{name}: {told}")
