"""Writing a token cache, part by part; `data/token_cache.py` tells what is in it, and reads it."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow
import pyarrow.parquet

from hf_vlm.data.token_cache import SCHEMA, list_parts, read_part

_MOST_CODES = 2**16  # what uint16 counts


class TokenCacheWriter:
    """Adds pictures to a token cache, in a `with` block, whose end writes the last part.

    Args:
        folder: of the cache, made if it is not there.
        model_hash: SHA-256 of the tokenizer, its weights and settings, in hex.
        num_codes: how many different codes the tokenizer has, at most 65,536.
        model_name: of the tokenizer, for people.
        pictures_per_part: rows a file.

    Attributes:
        sizes: (rows, columns) of every picture that is there or was added, by its file.

    Raises:
        OSError: if the folder can't be made.
        ValueError: if the tokenizer has more codes, or a part that is there is damaged or of another tokenizer.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        model_hash: str,
        num_codes: int,
        model_name: str = "",
        pictures_per_part: int = 1000,
    ) -> None:
        if num_codes > _MOST_CODES:
            raise ValueError(
                f"A token cache holds codes of tokenizers of at most {_MOST_CODES} of them, got {num_codes}. Use a smaller "
                "codebook."
            )
        self.folder, self.model_hash, self.num_codes = Path(folder), model_hash, num_codes
        self.pictures_per_part = pictures_per_part
        self._schema = SCHEMA.with_metadata({"hf_vlm.model": model_name})
        self._rows: list[dict[str, Any]] = []
        self.sizes: dict[str, tuple[int, int]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"A folder for the token cache is wanted, got {folder}, which can't be made ({error.strerror}). Name another."
            ) from error
        parts = list_parts(self.folder)
        self._next_part = max(parts, default=-1) + 1
        for part in parts.values():
            table = read_part(part, model_hash, ["image", "rows", "columns", "model"])
            sizes = zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True)
            self.sizes |= zip(table["image"].to_pylist(), sizes, strict=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.write_part()  # after an error too: what was made stays

    def add(self, image: str, code_ids: np.ndarray) -> None:
        """Add a picture; every `pictures_per_part` of them are written.

        Args:
            image: its file, new to the cache.
            code_ids: int (rows, columns), in [0, num_codes).

        Raises:
            OSError: if a part can't be written.
            ValueError: if the picture is there, its name is not UTF-8, or the codes have another shape or range.
        """
        if image in self.sizes:
            raise ValueError(
                f"{image}: wanted a picture that is new to the cache, got one that is there. Leave it out."
            )
        try:
            image.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{image}: wanted a file's name in UTF-8, got another encoding. Rename the file."
            ) from error
        if code_ids.ndim != 2 or code_ids.size == 0:
            raise ValueError(f"{image}: wanted codes (rows, columns), got shape {code_ids.shape}. Reshape them.")
        if code_ids.min() < 0 or code_ids.max() >= self.num_codes:
            raise ValueError(
                f"{image}: wanted codes in [0, {self.num_codes}), got {code_ids.min()} to {code_ids.max()}. Take them from "
                "the tokenizer."
            )
        rows, columns = code_ids.shape
        self.sizes[image] = (rows, columns)
        self._rows.append(
            {
                "image": image,
                "rows": rows,
                "columns": columns,
                "num_codes": self.num_codes,
                "code_ids": code_ids.astype(np.uint16).reshape(-1),
                "model": self.model_hash,
            }
        )
        if len(self._rows) >= self.pictures_per_part:
            self.write_part()

    def write_part(self) -> None:
        """Write what was added since the last part, if anything.

        Raises:
            OSError: if it can't be written.
        """
        if not self._rows:
            return
        file = self.folder / f"part-{self._next_part:05}.parquet"
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            table = pyarrow.Table.from_pylist(self._rows, self._schema)
            pyarrow.parquet.write_table(table, unfinished, write_page_checksum=True)
            os.replace(unfinished, file)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise OSError(f"{file} is wanted, got an error from writing it ({error}). Make room there.") from error
        self._next_part += 1
        self._rows = []
