"""What the processes of a run tell each other within a forward pass, so that all learn the same; alone, a process keeps its own.

Every process is to call these, in the same order.
"""

import torch
from torch import distributed


def is_distributed() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def of_first_process(values: torch.Tensor) -> torch.Tensor:
    """The first process's values, on all of them; a tensor of any shape, the same on each."""
    if is_distributed():
        values = values.contiguous()
        distributed.broadcast(values, src=0)
    return values


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's values; a tensor of any shape, the same on each, which is written over."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def draw_rows(rows: torch.Tensor, number: int) -> tuple[torch.Tensor, bool]:
    """Rows of all processes at random, the same on each: what one process draws that has them all, one's after another's.

    Args:
        rows: (number of rows, width), one row at least; other processes may have more or fewer.
        number: how many are drawn.

    Returns: (number, width); and whether each is drawn at most once, as where there are enough.
    """
    before, total = 0, len(rows)
    if is_distributed():
        lengths = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=rows.device)
        lengths[distributed.get_rank()] = len(rows)
        of_processes = sum_over_processes(lengths).tolist()
        before, total = sum(of_processes[: distributed.get_rank()]), sum(of_processes)
    is_enough = total >= number
    if is_enough:
        places = torch.randperm(total, device=rows.device)[:number]
    else:
        places = torch.randint(total, (number,), device=rows.device)
    places = of_first_process(places) - before
    is_here = (places >= 0) & (places < len(rows))
    drawn = torch.where(is_here[:, None], rows[places.clamp(0, len(rows) - 1)], 0.0)
    return sum_over_processes(drawn), is_enough


def mean_over_processes(rows: torch.Tensor) -> torch.Tensor:
    """The mean over the rows of all processes: float (width,); `rows` float (number, width)."""
    return sum_over_processes(rows.sum(0)) / sum_over_processes(rows.new_full((), len(rows)))


def spread_over_processes(rows: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each column over the rows of all processes: float (width,); `rows` float (number, width)."""
    return mean_over_processes((rows - mean_over_processes(rows)).square()).sqrt()
