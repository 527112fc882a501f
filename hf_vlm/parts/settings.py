"""Checks that configurations of every architecture share."""

import difflib
from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ..blocks.conv import grid_size
from ..blocks.patch_embed import as_pair


def refuse_unknown(given: Iterable[str], known: Sequence[str], *, also: Iterable[str] = (), of: str) -> None:
    """Checks that settings given by name are known ones; `PreTrainedConfig` would keep any other in silence.

    Args:
        given: names of settings.
        known: those that are right.
        also: further names that may have been meant.
        of: whose settings they are, for the message.

    Raises:
        ValueError: for the first that is unknown, with the nearest that is known.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *also], n=1)
            raise ValueError(
                f"`{name}` must be a setting of {of}, got an unknown one. "
                + (f"Did you mean `{near[0]}`?" if near else "Leave it out.")
            )


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


def check_conv_stages(
    hidden_channels: Sequence[int],
    num_residual_blocks: Sequence[int],
    residual_channels: int | None,
    image_size: int | Sequence[int],
) -> None:
    """Checks the settings of a convolutional encoder and decoder.

    Raises:
        ValueError: if there are not as many numbers of blocks as stages, a width is not above 0, or pictures of
            `image_size` have no whole number of latents on a side.
    """
    if len(hidden_channels) != len(num_residual_blocks):
        raise ValueError(
            "`hidden_channels` and `num_residual_blocks` must have one entry a stage, got "
            f"{list(hidden_channels)} and {list(num_residual_blocks)}. Give as many of one as of the other."
        )
    widths = [*hidden_channels, *([] if residual_channels is None else [residual_channels])]
    if any(width < 1 for width in widths) or any(blocks < 0 for blocks in num_residual_blocks):
        raise ValueError(
            f"Widths must be above 0 and numbers of blocks 0 or more, got {widths} and {list(num_residual_blocks)}. "
            "Correct them."
        )
    check_grid(image_size, 2 ** len(hidden_channels))


def check_grid(image_size: int | Sequence[int], downsampling: int) -> None:
    """Checks that the configured picture size is one number or two, and has a whole number of latents on a side."""
    if not isinstance(image_size, int) and len(image_size) != 2:
        raise ValueError(f"`image_size` must be one number or a pair, got {image_size!r}. Correct it.")
    grid_size(*as_pair(image_size), downsampling)


def check_likelihood(likelihood: str, likelihood_scale: float, likelihood_scale_kind: str) -> None:
    """Checks the settings of a likelihood of pixels.

    Raises:
        ValueError: if the scale is not above 0, or a Bernoulli has a learnt one.
    """
    if not 1e-3 <= likelihood_scale <= 1e3:
        raise ValueError(
            f"`likelihood_scale` must be in [0.001, 1000], got {likelihood_scale}. Pixels are in [0, 1]: the usual ones are "
            "0.05 to 1."
        )
    if likelihood == "bernoulli" and likelihood_scale_kind != "fixed":
        raise ValueError(
            f"A Bernoulli likelihood has no scale, got `likelihood_scale_kind={likelihood_scale_kind!r}`. Leave it out."
        )


def check_num_images(num_images: int) -> None:
    """Raises ValueError unless a picture or more is asked for."""
    if num_images < 1:
        raise ValueError(f"`num_images` must be 1 or more, got {num_images}. Ask for one at least.")
