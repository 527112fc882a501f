"""The tensors of DALL-E's released tokenizer -> ours.

The release is two modules, an encoder and a decoder, whose tensors have the same names. `scripts/convert_dalle_tokenizer.py`
reads their files.
"""

import re
from collections.abc import Mapping

import torch

from .configuration_dvae import DVAEConfig
from .modeling_dvae import DVAEModel

# Names in either module -> ours in `encoder` or `decoder`. `#` stands for the number of a group, then of a block, then of a
# convolution: from 1 there, from 0 here.
RELEASED_NAMES = {
    "blocks.input.w": "input_layer.weight",
    "blocks.input.b": "input_layer.bias",
    "blocks.group_#.block_#.id_path.w": "groups.#.#.shortcut.weight",
    "blocks.group_#.block_#.id_path.b": "groups.#.#.shortcut.bias",
    "blocks.group_#.block_#.res_path.conv_#.w": "groups.#.#.convolutions.#.weight",
    "blocks.group_#.block_#.res_path.conv_#.b": "groups.#.#.convolutions.#.bias",
    "blocks.output.conv.w": "output_layer.weight",
    "blocks.output.conv.b": "output_layer.bias",
}
_BY_OUR_NAME = {ours: released for released, ours in RELEASED_NAMES.items()}


def config_from_released(encoder: Mapping[str, torch.Tensor], decoder: Mapping[str, torch.Tensor]) -> DVAEConfig:
    """Our settings: the preset `dall-e`, with the widths and counts that the tensors have.

    Args:
        encoder, decoder: the tensors of either under their released names.

    Raises:
        ValueError: if a tensor that tells a width is missing, or is no convolution's.
    """
    width, num_channels = _kernel_shape("encoder", encoder, "blocks.input.w")[:2]
    num_groups = _count(encoder, "blocks.group_{}.block_1.res_path.conv_1.w")
    num_blocks = _count(encoder, "blocks.group_1.block_{}.res_path.conv_1.w")
    return DVAEConfig.preset(
        "dall-e",
        num_channels=num_channels,
        group_channels=width,
        num_groups=num_groups,
        num_blocks_per_group=num_blocks,
        num_codes=_kernel_shape("encoder", encoder, "blocks.output.conv.w")[0],
        code_dim=_kernel_shape("decoder", decoder, "blocks.input.w")[0],
    )


def weights_from_released(
    config: DVAEConfig, encoder: Mapping[str, torch.Tensor], decoder: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Every tensor of a `DVAEModel`, under our names, fp32.

    Args:
        config: what `config_from_released` gave.
        encoder, decoder: the tensors of either under their released names.

    Raises:
        ValueError: if one is missing, has another shape than the config asks for, or has no place in our model.
    """
    with torch.device("meta"):  # names and shapes alone
        wanted = {name: tensor.shape for name, tensor in DVAEModel(config).state_dict().items()}
    weights, faults = {}, []
    left_over = {f"{part}'s `{name}`" for part, given in (("encoder", encoder), ("decoder", decoder)) for name in given}
    for ours, shape in wanted.items():
        part, _, own_name = ours.partition(".")
        released = _released_name(own_name)
        tensor = (encoder if part == "encoder" else decoder).get(released)
        left_over.discard(f"{part}'s `{released}`")
        if tensor is None:
            faults.append(f"no {part}'s `{released}`")
        elif tensor.shape != shape:
            faults.append(f"{part}'s `{released}` as {tuple(tensor.shape)} instead of {tuple(shape)}")
        else:
            weights[ours] = tensor.float().contiguous()
    faults += [f"{name}, which has no place" for name in sorted(left_over)]
    if faults:
        raise ValueError(
            f"The tensors of DALL-E's tokenizer must be the {len(wanted)} of its encoder and decoder, got "
            f"{', '.join(faults[:5])}{f' and {len(faults) - 5} faults more' if len(faults) > 5 else ''}. Take both files of one "
            "release."
        )
    return weights


def _released_name(ours: str) -> str:
    """The released name for one of ours in the encoder or decoder."""
    released = _BY_OUR_NAME[re.sub(r"\.\d+(?=\.)", ".#", ours)]
    for number in re.findall(r"\.(\d+)(?=\.)", ours):
        released = released.replace("#", str(int(number) + 1), 1)
    return released


def _count(encoder: Mapping[str, torch.Tensor], name: str) -> int:
    """How many tensors there are of that name with 1, 2, ... in it; 1 where there is none, which is then found missing."""
    number = 1
    while name.format(number + 1) in encoder:
        number += 1
    return number


def _kernel_shape(part: str, tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """The four sides of a convolution's kernel: out, in, height, width."""
    if name not in tensors or tensors[name].ndim != 4:
        got = f"one of shape {tuple(tensors[name].shape)}" if name in tensors else f"none among {len(tensors)} tensors"
        raise ValueError(
            f"The {part} of DALL-E's tokenizer must have a kernel `{name}` of 4 sides, got {got}. Give the released file."
        )
    return tuple(tensors[name].shape)
