"""Checks that configurations of every architecture share."""

from collections.abc import Iterable

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


def check_ranges(config: PreTrainedConfig, *, positive: Iterable[str], shares: Iterable[str], activation: str) -> None:
    """Checks settings that mean nothing outside their range.

    Args:
        positive: names of widths and counts, above 0.
        shares: names of probabilities, in [0, 1).
        activation: name of the setting that names an activation of transformers.

    Raises:
        ValueError: for the first that is out of range.
    """
    for name in positive:
        if getattr(config, name) <= 0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(config, name)}. Correct it.")
    for name in shares:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be in [0, 1), got {getattr(config, name)}. Correct it.")
    if getattr(config, activation) not in ACT2FN:
        raise ValueError(
            f"`{activation}` must be one of transformers' activations, got {getattr(config, activation)!r}. Usual is `gelu`."
        )
