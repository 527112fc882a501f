"""Which parts of a model train."""

from collections.abc import Iterable
from typing import Any


def freeze(model: Any, roles: Iterable[str]) -> None:
    """Let these parts of a model train, and no other.

    Args:
        model: whose class names its parts in `part_paths`.
        roles: of these names; those that train.
    """
    model.requires_grad_(False)
    for role in roles:
        model.get_submodule(model.part_paths[role]).requires_grad_(True)
