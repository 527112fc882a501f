"""DALL-E's tokenizer stated once more, as functions of tensors under their released names, and files like the released ones.

From Ramesh et al. 2021, appendix A: four groups of two blocks; the encoder's kernels 3, 3, 3, 1, the decoder's 1, 3, 3, 3.
"""

import importlib.util
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_dalle_tokenizer.py"
Tensors = dict[str, torch.Tensor]


@cache
def conversion() -> ModuleType:
    """The script under test."""
    spec = importlib.util.spec_from_file_location("convert_dalle_tokenizer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def kernel_shapes(width: int, num_words: int, word_width: int) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Encoder's and decoder's convolutions: name -> (out, in, side)."""
    encoder = {"input": (width, 3, 7)} | group_shapes([width, width, 2 * width, 4 * width, 8 * width], (3, 3, 3, 1))
    decoder = {"input": (word_width, num_words, 1)}
    decoder |= group_shapes([word_width, 8 * width, 4 * width, 2 * width, width], (1, 3, 3, 3))
    return encoder | {"output.conv": (num_words, 8 * width, 1)}, decoder | {"output.conv": (6, width, 1)}


def group_shapes(widths: list[int], sides: tuple[int, ...]) -> dict[str, tuple]:
    shapes = {}
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            before, after = widths[group - 1] if block == 1 else widths[group], widths[group]
            if before != after:
                shapes[f"group_{group}.block_{block}.id_path"] = (after, before, 1)
            inner = after // 4
            for conv, (out, given) in enumerate([(inner, before), (inner, inner), (inner, inner), (after, inner)], 1):
                shapes[f"group_{group}.block_{block}.res_path.conv_{conv}"] = (out, given, sides[conv - 1])
    return shapes


def random_tensors(width: int = 8, num_words: int = 32, word_width: int = 12) -> tuple[Tensors, Tensors]:
    """Encoder's and decoder's; residual paths weigh enough to be missed, and words differ from place to place."""
    parts: list[Tensors] = []
    for shapes in kernel_shapes(width, num_words, word_width):
        parts.append({})
        for name, (out, given, side) in shapes.items():
            scale = (3.5 if "res_path" in name else 1.5) / (given * side**2) ** 0.5
            parts[-1][f"blocks.{name}.w"] = scale * torch.randn(out, given, side, side)
            parts[-1][f"blocks.{name}.b"] = 0.1 * torch.randn(out)
    return parts[0], parts[1]


def convolve(tensors: Tensors, name: str, maps: torch.Tensor) -> torch.Tensor:
    kernel = tensors[f"blocks.{name}.w"]
    return F.conv2d(maps, kernel, tensors[f"blocks.{name}.b"], padding=kernel.shape[-1] // 2)


def run_group(tensors: Tensors, group: int, maps: torch.Tensor) -> torch.Tensor:
    for block in (1, 2):
        name = f"group_{group}.block_{block}"
        residual = maps
        for conv in (1, 2, 3, 4):
            residual = convolve(tensors, f"{name}.res_path.conv_{conv}", residual.relu())
        shortcut = convolve(tensors, f"{name}.id_path", maps) if f"blocks.{name}.id_path.w" in tensors else maps
        maps = shortcut + residual / 64  # the number of blocks, 8, squared
    return maps


def encode(encoder: Tensors, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1], float (batch, 3, height, width) -> logits (batch, num_words, height / 8, width / 8)."""
    maps = convolve(encoder, "input", 0.8 * pixel_values + 0.1)
    for group in (1, 2, 3, 4):
        maps = run_group(encoder, group, maps)
        if group < 4:
            batch, width, rows, columns = maps.shape
            maps = maps.reshape(batch, width, rows // 2, 2, columns // 2, 2).amax(dim=(3, 5))
    return convolve(encoder, "output.conv", maps.relu())


def decode(decoder: Tensors, words: torch.Tensor) -> torch.Tensor:
    """Words, int64 (batch, rows, columns) -> mu, then ln b, of logit-Laplace: (batch, 6, 8 rows, 8 columns)."""
    num_words = decoder["blocks.input.w"].shape[1]
    maps = convolve(decoder, "input", F.one_hot(words, num_words).movedim(-1, 1).float())
    for group in (1, 2, 3, 4):
        maps = run_group(decoder, group, maps)
        if group < 4:
            maps = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return convolve(decoder, "output.conv", maps.relu())


def picture(maps: torch.Tensor) -> torch.Tensor:
    """What is shown of the decoder's maps, in [0, 1]."""
    return ((maps[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)


# Modules as the released files hold them, pickled whole: classes of a package that isn't there when they are read.


class Conv2d(nn.Module):
    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.n_out, self.n_in, self.kw = kernel.shape[:3]
        self.use_float16, self.device, self.requires_grad = True, torch.device("cpu"), False
        self.w, self.b = nn.Parameter(kernel), nn.Parameter(bias)


class EncoderBlock(nn.Module):
    pass


class DecoderBlock(nn.Module):
    pass


class Encoder(nn.Module):
    pass


class Decoder(nn.Module):
    pass


MODULES = {"encoder": (Encoder, EncoderBlock), "decoder": (Decoder, DecoderBlock), "utils": (Conv2d,)}


def module_of(tensors: Tensors, part: str) -> nn.Module:
    """The module, `encoder` or `decoder`, that has these tensors."""
    whole_class, block_class = MODULES[part]

    def conv(name: str) -> nn.Module:
        kernel = tensors.get(f"blocks.{name}.w")
        return nn.Identity() if kernel is None else Conv2d(kernel, tensors[f"blocks.{name}.b"])

    layers: dict[str, nn.Module] = {"input": conv("input")}
    for group in (1, 2, 3, 4):
        in_group: dict[str, nn.Module] = {}
        for number in (1, 2):
            name = f"group_{group}.block_{number}"
            block = in_group[f"block_{number}"] = block_class()
            block.post_gain = 1 / 64
            block.id_path = conv(f"{name}.id_path")
            path: dict[str, nn.Module] = {}
            for index in (1, 2, 3, 4):
                path |= {f"relu_{index}": nn.ReLU(), f"conv_{index}": conv(f"{name}.res_path.conv_{index}")}
            block.res_path = nn.Sequential(OrderedDict(path))
        if group < 4:
            in_group |= {"pool": nn.MaxPool2d(2)} if part == "encoder" else {"upsample": nn.Upsample(scale_factor=2)}
        layers[f"group_{group}"] = nn.Sequential(OrderedDict(in_group))
    layers["output"] = nn.Sequential(OrderedDict({"relu": nn.ReLU(), "conv": conv("output.conv")}))
    whole = whole_class()
    whole.device, whole.use_mixed_precision = torch.device("cpu"), True
    whole.blocks = nn.Sequential(OrderedDict(layers))
    return whole


def save(content: object, path: Path, is_zip: bool = True) -> None:
    """As the authors did: in either of torch.save's formats, while there is a package `dall_e`."""
    package = {"dall_e": ModuleType("dall_e")}
    for name, classes in MODULES.items():
        module = package[f"dall_e.{name}"] = ModuleType(f"dall_e.{name}")
        module.__file__ = __file__  # legacy files hold the classes' source code
        for module_class in classes:
            setattr(module, module_class.__name__, module_class)
            module_class.__module__ = f"dall_e.{name}"
    try:
        with patch.dict(sys.modules, package):
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    finally:
        for module_class in (one for classes in MODULES.values() for one in classes):
            module_class.__module__ = __name__


def write_release(folder: Path, encoder: Tensors, decoder: Tensors, is_zip: bool = True) -> tuple[Path, Path]:
    """The files `encoder.pkl` and `decoder.pkl`."""
    save(module_of(encoder, "encoder"), folder / "encoder.pkl", is_zip)
    save(module_of(decoder, "decoder"), folder / "decoder.pkl", is_zip)
    return folder / "encoder.pkl", folder / "decoder.pkl"
