"""Turn DALL-E's released tokenizer into a folder that `DVAEModel` and `hf-vlm` read like any other.

    python scripts/convert_dalle_tokenizer.py encoder.pkl decoder.pkl OUT

The two files, 215 and 175 MB under a modified MIT licence, are published at https://cdn.openai.com/dall-e/. They are pickles of
whole modules: to load them the usual way is to run whatever code they name. Here they are read as data: whatever name a pickle
asks for, it is handed an inert stand-in from a short table, and a name that isn't there ends the reading. A pickle calls no
function of PyTorch's or of the package `dall_e`, which isn't needed.

Source: Ramesh et al. 2021, https://arxiv.org/abs/2102.12092; the formats of torch.save,
    https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import argparse
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hf_vlm import DVAEImageProcessor, DVAEModel
from hf_vlm.models.dvae.image_processing_dvae import PRESETS
from hf_vlm.models.dvae.weights_dvae import config_from_released, weights_from_released

ENCODER, DECODER = "dall_e.encoder.Encoder", "dall_e.decoder.Decoder"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of torch.save's before PyTorch 1.6 begins with


class RefusedPickleError(ValueError):
    """A pickle that asks for more than modules and tensors."""


@dataclass
class StoredNumbers:
    """What a file holds in one piece; `content` is read after the pickle."""

    dtype: torch.dtype
    content: bytes = b""


@dataclass
class StoredTensor:
    """A view of stored numbers: the arguments that PyTorch would rebuild it from."""

    numbers: StoredNumbers
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: object

    def tensor(self) -> torch.Tensor:
        values = torch.frombuffer(bytearray(self.numbers.content), dtype=self.numbers.dtype)
        return torch.as_strided(values, self.size, self.stride, self.offset)  # checks the bounds


class StoredModule:
    """A module's attributes, as they were pickled."""

    released_name: str
    state: Mapping[str, Any]

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """All tensors of the module and those in it, by the names that `state_dict` would give."""
        own = {**self.state["_parameters"], **self.state["_buffers"]}
        found = {f"{prefix}{name}": stored.tensor() for name, stored in own.items() if stored is not None}
        for name, module in self.state["_modules"].items():
            found |= module.tensors(f"{prefix}{name}.")
        return found


MODULES = (
    ENCODER,
    DECODER,
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
# All that a pickle can name, and what it is handed.
STAND_INS: dict[str, Any] = {
    **{name: type(name, (StoredModule,), {"released_name": name}) for name in MODULES},
    "torch._utils._rebuild_parameter": lambda stored, requires_grad, hooks: stored,
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.device": lambda *names: None,
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
}


class DataUnpickler(pickle.Unpickler):
    """Reads one pickle of the file at `path` as data; `storages` are what its tensors are views of, by their names there."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream)
        self.path = path
        self.storages: dict[str, StoredNumbers] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in STAND_INS:
            raise RefusedPickleError(
                f"`{self.path}` must hold modules and tensors alone, got a pickle that asks for `{module}.{name}`. Nothing "
                "was executed and nothing written. Don't load the file elsewhere; take it from its publisher."
            )
        return STAND_INS[f"{module}.{name}"]

    def persistent_load(self, saved_id: Any) -> Any:
        match saved_id:
            case ("storage", torch.dtype() as dtype, str() as key, _, _, *views) if not any(views):
                return self.storages.setdefault(key, StoredNumbers(dtype))
            case ("module", type() as stand_in, _, _):  # legacy files put a class's source code beside it
                return stand_in
        raise ValueError("a reference to something that is neither a storage nor a module")


def read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("numbers in big-endian order")
        unpickler = DataUnpickler(io.BytesIO(archive.read(pickled)), path)
        content = unpickler.load()
        for key, numbers in unpickler.storages.items():
            numbers.content = archive.read(f"{folder}data/{key}")
    return content


def read_legacy(path: Path) -> Any:
    with path.open("rb") as stream:
        magic, _, system = (DataUnpickler(stream, path).load() for _ in range(3))  # second, the format's version
        if magic != LEGACY_MAGIC or not system["little_endian"]:
            raise ValueError("another format, or numbers in big-endian order")
        unpickler = DataUnpickler(stream, path)
        content = unpickler.load()
        for key in DataUnpickler(stream, path).load():
            numbers = unpickler.storages[key]
            numel = int.from_bytes(stream.read(8), "little")
            numbers.content = stream.read(numel * numbers.dtype.itemsize)
    return content


def read_released(path: Path, wanted: str) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save's, zip or legacy, that holds a `wanted`: those of its `state_dict`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"A `{wanted}` is wanted in `{path}`, got no such file. Download it from https://cdn.openai.com/dall-e/."
        )
    try:
        content = read_zip(path) if zipfile.is_zipfile(path) else read_legacy(path)
        found = getattr(content, "released_name", type(content).__name__)
        tensors = content.tensors() if found == wanted else {}
    except RefusedPickleError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"`{path}` must be a file of torch.save's with a `{wanted}`, got one that doesn't read as such "
            f"({type(error).__name__}: {error}). Download it again."
        ) from error
    if found != wanted:
        raise ValueError(
            f"`{path}` must hold a `{wanted}`, got `{found}`. Name the encoder's file first, then the decoder's."
        )
    return tensors


def convert(encoder_file: Path, decoder_file: Path, out: Path) -> DVAEModel:
    """Write the folder and give back the model.

    Raises:
        FileExistsError: if the folder holds files.
        FileNotFoundError, ValueError: as `read_released`; also if the tensors are not those of the two.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"A new or empty folder is wanted, got `{out}`, which holds files. Name another.")
    encoder, decoder = read_released(encoder_file, ENCODER), read_released(decoder_file, DECODER)
    config = config_from_released(encoder, decoder)
    model = DVAEModel.from_pretrained(None, config=config, state_dict=weights_from_released(config, encoder, decoder))
    model.save_pretrained(out)
    DVAEImageProcessor(**PRESETS["dall-e"]).save_pretrained(out)
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("encoder", type=Path, help="encoder.pkl")
    parser.add_argument("decoder", type=Path, help="decoder.pkl")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        model = convert(options.encoder, options.decoder, options.out)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(
        f"{options.out}: {sum(weights.numel() for weights in model.parameters()) / 1e6:.1f}M, {model.config.num_codes} words"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
