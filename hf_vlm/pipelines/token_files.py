"""Picture files -> a token cache: `hf-vlm tokenize`.

picture files
  -> `ImageTokenizationPipeline`, a batch at a time      code_ids, int64 (rows, columns) a picture
  -> `TokenCacheWriter`                                  FOLDER/part-*.parquet
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from hf_vlm.data.token_cache_writer import TokenCacheWriter
from hf_vlm.parts.adapter_loading import base_of_adapter, load_with_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import naming_faults, read_config
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.pipelines.image_tokenization import ImageTokenizationPipeline
from hf_vlm.pipelines.picture_files import listed_pictures, open_picture_file

# Of a config: where and by what it was saved.
_PASSING_SETTINGS = ("_name_or_path", "architectures", "dtype", "transformers_version")


@dataclass
class TokenizedFile:
    """What became of one picture file.

    Attributes:
        file: the path as it was given, or as it was found in a folder.
        rows, columns: of its grid of codes.
        num_codes: how many different codes the tokenizer has.
        is_new: False if it was in the cache already.
        error: why the file could not be tokenized; None if it could.
    """

    file: str
    rows: int = 0
    columns: int = 0
    num_codes: int = 0
    is_new: bool = True
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.file}\t{self.rows} x {self.columns} codes{'' if self.is_new else ', there already'}"

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, without `error`."""
        return {name: value for name, value in asdict(self).items() if name != "error"}


def load_tokenizer(model: str | os.PathLike) -> tuple[ImageTokenizationPipeline, str]:
    """A visual tokenizer in fp32, and the SHA-256 of its weights and of the settings of model and image processor.

    Args:
        model: folder or Hub name.

    Raises:
        OSError: if there is no such model, or its folder lacks a file.
        ValueError: if its files are damaged, it has no codes, or there is no image processor for it.
    """
    source = str(model)
    base = base_of_adapter(source) or source
    read_config(base)  # says what is wrong where there is none
    with naming_faults(base):
        loaded = load_with_adapter(AutoModel, source, dtype=torch.float32)
    try:
        image_processor = AutoImageProcessor.from_pretrained(processor_folder(source))
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{source} must hold an image processor, `preprocessor_config.json`, got none that loads "
            f"({str(error).splitlines()[0]}). Copy the file there."
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = ImageTokenizationPipeline(
        loaded.eval(), image_processor=image_processor, device=device, task="image-tokenization"
    )
    return pipe, _hash(pipe)


def _hash(pipe: ImageTokenizationPipeline) -> str:
    """SHA-256, in hex, of all that decides which codes a picture gets; where the folder lies doesn't count."""
    settings = {name: value for name, value in pipe.model.config.to_dict().items() if name not in _PASSING_SETTINGS}
    written = json.dumps([settings, pipe.image_processor.to_dict()], sort_keys=True, default=str)
    return hashlib.sha256((hash_weights(pipe.model.state_dict()) + written).encode()).hexdigest()


def tokenize_files(
    files: Iterable[str | os.PathLike],
    *,
    model: str | os.PathLike,
    out: str | os.PathLike,
    batch_size: int = 16,
    pictures_per_part: int = 1000,
) -> Iterator[TokenizedFile]:
    """Write the codes of every picture file into a token cache, a bad file among them told in its `error`.

    Pictures that are in the cache already are passed over. What was made is in the cache when the iterator is at its end, is
    closed or raises, and after every part.

    Args:
        files: picture files, and folders whose picture files are taken in natural order of their names. The cache knows a
            picture by the path given here.
        model: folder or Hub name of a visual tokenizer.
        out: folder of the cache, made if it is not there.
        batch_size: pictures at a time.
        pictures_per_part: rows a file of the cache.

    Raises:
        OSError: if there is no such model, its folder lacks a file, or the cache can't be written.
        ValueError: if the model's files are damaged, it has no codes or more than 65,536, or the cache is damaged or of
            another tokenizer.
    """
    pipe, model_hash = load_tokenizer(model)
    name = Path(model).resolve().name if Path(model).is_dir() else str(model)
    writer = TokenCacheWriter(
        out, model_hash=model_hash, num_codes=pipe.num_codes, model_name=name, pictures_per_part=pictures_per_part
    )
    with writer as cache:
        batch: list[tuple[TokenizedFile, np.ndarray | None]] = []
        for file, error in dict(listed_pictures(files)).items():  # each once
            result, pixels = TokenizedFile(file, num_codes=pipe.num_codes, error=error), None
            if file in cache.sizes:
                (result.rows, result.columns), result.is_new = cache.sizes[file], False
            elif error is None:
                try:
                    pixels = _prepared(pipe, file)
                except (ValueError, OSError) as fault:
                    result.error = str(fault)
            batch.append((result, pixels))
            if sum(pixels is not None for _, pixels in batch) == batch_size:
                yield from _tokenize_batch(pipe, cache, batch)
                batch = []
        yield from _tokenize_batch(pipe, cache, batch)


def _prepared(pipe: ImageTokenizationPipeline, file: str) -> np.ndarray:
    picture = open_picture_file(file)
    try:
        return pipe.prepare(picture)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _tokenize_batch(
    pipe: ImageTokenizationPipeline, cache: TokenCacheWriter, batch: list[tuple[TokenizedFile, np.ndarray | None]]
) -> list[TokenizedFile]:
    """Fill in the results, and add the codes to the cache."""
    waiting = [(result, pixels) for result, pixels in batch if pixels is not None]
    try:
        grids: Iterable[np.ndarray | ValueError] = pipe.encode([pixels for _, pixels in waiting])
    except ValueError:  # one has a size that the model doesn't take: alone they tell which
        grids = (_encoded_alone(pipe, pixels) for _, pixels in waiting)
    for (result, _), grid in zip(waiting, grids, strict=True):
        try:
            if isinstance(grid, ValueError):
                raise ValueError(f"{result.file}: {grid}") from grid
            cache.add(result.file, grid)
        except ValueError as error:
            result.error = str(error)
        else:
            result.rows, result.columns = grid.shape
    return [result for result, _ in batch]


def _encoded_alone(pipe: ImageTokenizationPipeline, pixels: np.ndarray) -> np.ndarray | ValueError:
    try:
        return pipe.encode([pixels])[0]
    except ValueError as error:
        return error
