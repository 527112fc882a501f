"""A token cache -> picture files: `hf-vlm tokenize --decode`."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from hf_vlm.data.token_cache import read_token_cache
from hf_vlm.pipelines.token_files import load_tokenizer

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # by one system or another
_MOST_BYTES = 200  # of a name, of the 255 that file systems take: a number and a suffix come behind it


@dataclass
class DecodedFile:
    """A picture made of codes.

    Attributes:
        image: the file that the codes are of, as the cache names it.
        file: the new picture.
    """

    image: str
    file: str

    def __str__(self) -> str:
        return f"{self.image}\t{self.file}"

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


def decode_files(
    cache: str | os.PathLike, *, model: str | os.PathLike, out: str | os.PathLike, batch_size: int = 16
) -> Iterator[DecodedFile]:
    """Write the pictures of a token cache, `NAME.png` each, the second of a name `NAME-2.png`.

    Args:
        cache: folder of the cache.
        model: folder or Hub name of the tokenizer that made it.
        out: folder to write to; new or empty, as it might hold the pictures themselves.
        batch_size: pictures at a time.

    Raises:
        OSError: if there is no such cache or model, or `out` holds something or can't be written.
        ValueError: if the model's files are damaged, or the cache is damaged or of another tokenizer.
    """
    pipe, model_hash = load_tokenizer(model)
    rows = read_token_cache(cache, model_hash)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"A folder to write to is wanted, got {folder}, which can't be made ({error.strerror}). Name another."
        ) from error
    if any(folder.iterdir()):
        raise FileExistsError(f"A new or empty folder is wanted, got {folder}, which holds files. Name another.")
    taken: dict[str, int] = {}
    while batch := list(itertools.islice(rows, batch_size)):
        for row in batch:
            if row.num_codes != pipe.num_codes:
                raise ValueError(
                    f"{cache}: wanted codes of {pipe.num_codes}, got {row.num_codes} for {row.image}. Check that model and "
                    "cache belong together."
                )
        pictures = pipe.decode([row.code_ids for row in batch], batch_size=batch_size)
        for row, picture in zip(batch, pictures, strict=True):
            target = folder / f"{_free_name(row.image, taken)}.png"
            picture.save(target)
            yield DecodedFile(row.image, str(target))


def _free_name(image: str, taken: dict[str, int]) -> str:
    """A name for a new file, without suffix: that of `image`, and a number if it is taken.

    Args:
        image: a path of any system, or whatever else a cache holds.
        taken: names in lower case -> how often they were asked for.
    """
    stem = _NOT_IN_NAMES.sub("_", PureWindowsPath(image).stem).strip(". ")
    stem = stem.encode()[:_MOST_BYTES].decode(errors="ignore") or "picture"
    name = stem
    while name.casefold() in taken:
        taken[stem.casefold()] += 1
        name = f"{stem}-{taken[stem.casefold()]}"
    taken[name.casefold()] = 1
    return name
