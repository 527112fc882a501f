"""A token cache: the codes of pictures in parquet files, made once by a visual tokenizer, read by what is trained on them.

    FOLDER/part-00000.parquet, part-00001.parquet, ...    one row a picture

    image      string        the picture's file, as it was given
    rows       int32         of the grid of codes
    columns    int32
    num_codes  int32         how many different ones the tokenizer has
    code_ids   list<uint16>  rows * columns of them, row by row, in [0, num_codes)
    model      string        SHA-256 of the tokenizer's weights: codes of another tokenizer mean other things

The file's metadata has the tokenizer's name, `hf_vlm.model`. A part is there whole or not at all, so that a run which was
killed loses one part at most; the next passes over the pictures that are there. One run at a time writes to a folder.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

_PART = re.compile(r"part-(\d{5,})\.parquet")
SCHEMA = pyarrow.schema(
    {
        "image": pyarrow.string(),
        "rows": pyarrow.int32(),
        "columns": pyarrow.int32(),
        "num_codes": pyarrow.int32(),
        "code_ids": pyarrow.list_(pyarrow.uint16()),
        "model": pyarrow.string(),
    }
)
_REPAIR = "Delete the file, and run `hf-vlm tokenize` again: it makes what is missing."


@dataclass(frozen=True)
class ImageCodes:
    """The codes of one picture.

    Attributes:
        image: the picture's file, as it was given.
        code_ids: uint16 (rows, columns), in [0, num_codes).
        num_codes: how many different ones the tokenizer has.
    """

    image: str
    code_ids: np.ndarray
    num_codes: int


def read_token_cache(folder: str | os.PathLike, model_hash: str | None = None) -> Iterator[ImageCodes]:
    """The codes of every picture of a token cache, part by part; what is wrong with a part as a whole is told at once.

    `datasets.load_dataset("parquet", data_files=f"{folder}/part-*.parquet")` reads the same rows, unchecked.

    Args:
        folder: of the cache.
        model_hash: SHA-256 of the tokenizer that made it; None for whichever, as long as it is one.

    Raises:
        FileNotFoundError: if there is no such folder, or no part in it.
        ValueError: if a part is damaged or of another tokenizer, or a row is bad; names the file and the row.
    """
    parts = list(list_parts(Path(folder)).values()) if Path(folder).is_dir() else []
    if not parts:
        raise FileNotFoundError(
            f"A folder of a token cache is wanted, got {folder} without `part-00000.parquet`. Make one with "
            "`hf-vlm tokenize`."
        )
    for part in parts:
        found = read_part(part, model_hash, ["model"])["model"]
        if len(found):
            model_hash = found[0].as_py()  # the first tells which tokenizer all must be of
    return (row for part in parts for row in _checked_rows(part, read_part(part, model_hash)))


def list_parts(folder: Path) -> dict[int, Path]:
    """The parts of a cache by their numbers, in their order."""
    named = ((_PART.fullmatch(file.name), file) for file in folder.iterdir())
    return dict(sorted((int(match[1]), file) for match, file in named if match))


def read_part(file: Path, model_hash: str | None, columns: list[str] | None = None) -> pyarrow.Table:
    """Some columns of a part, or all, with the right types, and of one tokenizer if its hash is among them."""
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as part:
            schema = part.schema_arrow
            is_cache = set(SCHEMA.names) <= set(schema.names) and all(
                schema.field(name).type == SCHEMA.field(name).type for name in SCHEMA.names
            )
            table = part.read(columns or SCHEMA.names) if is_cache else None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{file}: wanted a whole part of a token cache, got an error ({error}). {_REPAIR}") from error
    if table is None:
        raise ValueError(
            f"{file}: wanted the columns {_named(SCHEMA)}, got {_named(schema)}. Name the folder of a token cache."
        )
    for other in table["model"].unique().to_pylist():
        if other != (other if model_hash is None else model_hash) or other is None:
            raise ValueError(
                f"{file}: wanted codes of the tokenizer with the SHA-256 {model_hash}, got those of {other}. "
                "Use that tokenizer, or another folder."
            )
        model_hash = other
    return table.combine_chunks()


def _checked_rows(file: Path, table: pyarrow.Table) -> Iterator[ImageCodes]:
    names = ("image", "rows", "columns", "num_codes")
    for index in range(table.num_rows):
        image, rows, columns, num_codes = (table[name][index].as_py() for name in names)
        code_ids = table["code_ids"][index].values
        where = f"{file}, row {index}"
        if code_ids is None or code_ids.null_count or None in (image, rows, columns, num_codes):
            raise ValueError(f"{where}: wanted a value in every column, got none in one. {_REPAIR}")
        if min(rows, columns) < 1 or rows * columns != len(code_ids):
            raise ValueError(f"{where}: wanted {rows} x {columns} codes, got {len(code_ids)}. {_REPAIR}")
        grid = np.array(code_ids).reshape(rows, columns)
        if grid.max() >= num_codes:
            raise ValueError(f"{where}: wanted codes in [0, {num_codes}), got {grid.max()}. {_REPAIR}")
        yield ImageCodes(image, grid, num_codes)


def _named(schema: pyarrow.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
