"""Where each tensor of a stock model comes from in ours, asked of the tables that read its folders.

The tables of `models/*/weights_*.py` lead from a stock folder to our names. The way back is not written down a second time:
a stock model whose tensors are all row numbers goes through them, and in each of our tensors it then stands which stock rows
lie there. Whatever the tables do with whole rows (rename, join, cut off, embed) is undone so; sums are not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def fill_stock(
    stock: PreTrainedModel,
    own: Mapping[str, torch.Tensor],
    read: Callable[[Tensors], Tensors],
    *,
    new: Mapping[str, float] | None = None,
    unread: Mapping[str, float] | None = None,
    left_out: tuple[str, ...] = (),
) -> None:
    """Give a stock model our weights; every tensor of both is accounted for.

    Args:
        stock: made of its config; its weights are overwritten.
        own: our names -> tensors.
        read: the tables: a stock folder's names -> tensors becomes ours, as `foreign_weights` does it.
        new: end of a name in the stock folder -> what fills such tensors, which ours has no counterpart of.
        unread: end of a name in the stock folder -> what fills those of its rows that no table reads.
        left_out: ends of our names that the stock model has no place for and needs not.

    Raises:
        ValueError: if a tensor on either side is in none of these.
    """
    state = stock.state_dict()
    tied: Mapping[str, str] = getattr(stock, "all_tied_weights_keys", None) or {}
    names = [name for name in state if name not in tied]
    starts: dict[str, int] = {}
    total = 1  # 0 is for rows that come from nowhere
    for name in names:
        starts[name] = total
        total += len(state[name])
    probes = {
        name: torch.arange(starts[name], starts[name] + len(state[name])).view(-1, *[1] * (state[name].ndim - 1))
        for name in names
    }
    file_names = _file_names(stock, probes, starts)  # name in the stock folder -> name in its memory
    in_file = {file_name: probes[name] for file_name, name in file_names.items()}
    added = {name for name in in_file if name.endswith(tuple(new or ()))}
    placed = read({name: probe for name, probe in in_file.items() if name not in added})

    missing = sorted(set(placed) - set(own))
    unused = sorted(name for name in set(own) - set(placed) if not name.endswith(left_out))
    if missing or unused:
        raise ValueError(
            f"Every tensor must have its place in `{type(stock).__name__}`, got {len(missing)} there that ours lacks and "
            f"{len(unused)} of ours without a place: {', '.join(f'`{name}`' for name in [*missing, *unused][:5])}. Report it; "
            "`hf-vlm export-code` carries the model as it is."
        )
    starts_of_names = torch.tensor([starts[name] for name in names])
    seen = torch.zeros(total, dtype=torch.bool)
    for our_name, probe in placed.items():
        rows = probe.flatten()  # which stock row each row of ours is
        owners = torch.bucketize(rows, starts_of_names, right=True) - 1
        for owner in owners[rows > 0].unique().tolist():
            here = (owners == owner) & (rows > 0)
            target, values = state[names[owner]], own[our_name]
            if len(rows) != len(values) or values.shape[1:] != target.shape[1:]:
                raise ValueError(
                    f"`{names[owner]}` of `{type(stock).__name__}` must be of the shape of our `{our_name}`, "
                    f"{tuple(target.shape)}, got {tuple(own[our_name].shape)}. Report it; `hf-vlm export-code` carries the "
                    "model as it is."
                )
            target[rows[here] - starts[names[owner]]] = values[here].to(target.dtype)
            seen[rows[here]] = True
    for file_name, name in file_names.items():
        rest = ~seen[starts[name] : starts[name] + len(state[name])]
        if not rest.any():
            continue
        fillings = [value for end, value in {**(new or {}), **(unread or {})}.items() if file_name.endswith(end)]
        if not fillings:
            raise ValueError(
                f"Every tensor of `{type(stock).__name__}` must come from ours, got none for `{file_name}`. Report it; "
                "`hf-vlm export-code` carries the model as it is."
            )
        state[name][rest] = fillings[0]
    stock.tie_weights()


def _file_names(stock: Any, probes: Tensors, starts: Mapping[str, int]) -> dict[str, str]:
    """Name in a stock folder -> name in its memory: transformers renames many on the way."""
    by_start = {start: name for name, start in starts.items()}
    in_file = revert_weight_conversion(stock, dict(probes))
    return {file_name: by_start[int(probe.flatten()[0])] for file_name, probe in in_file.items()}


def output_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of two outputs, as a share of the largest number where that is above 1; infinite for two shapes.

    Args:
        ours, theirs: float, of any shape.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1))
