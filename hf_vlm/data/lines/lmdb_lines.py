"""Words and lines in an LMDB database, as MJSynth, SynthText and the scene text benchmarks are passed around.

Keys `num-samples`, and for samples 1, 2, ...: `image-000000001`, the bytes of a picture file, and `label-000000001`, its
text in UTF-8. The package `lmdb` (extra `lmdb`) reads them.
"""

import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


def is_lmdb(folder: Path) -> bool:
    """Whether a folder is a database."""
    return (folder / "data.mdb").is_file()


class LmdbPictures(Sequence[bytes]):
    """The picture files of a database, read when asked for, also in other processes.

    Args:
        folder: of the database.

    Attributes:
        labels: sample number -> text or, where it has none that is UTF-8, the error that says so.

    Raises:
        ImportError: if the package lmdb is missing.
        ValueError: if the database is damaged, or is none of such samples.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        count = self._get(b"num-samples")
        if count is None or not count.isdigit():
            raise ValueError(
                f"{folder} must be a database of lines, got none with a number under `num-samples`. Make it again."
            )
        self.labels: list[str | ValueError] = []
        with _environment(folder).begin() as transaction:
            for number in range(1, int(count) + 1):
                label = self._get(b"label-%09d" % number, transaction)
                try:
                    self.labels.append(
                        label.decode("utf-8") if label is not None else self._lacks(number, "a `label-`")
                    )
                except UnicodeDecodeError:
                    self.labels.append(self._lacks(number, "a UTF-8 `label-`"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        picture = self._get(b"image-%09d" % (index + 1))
        if picture is None:
            raise self._lacks(index + 1, "an `image-`")
        return picture

    def _lacks(self, number: int, what: str) -> ValueError:
        return ValueError(f"{self.folder}, sample {number}: wanted {what} of this number, got none. Make it again.")

    def _get(self, key: bytes, transaction: Any = None) -> bytes | None:
        environment = _environment(self.folder)
        import lmdb  # there, as the environment is

        try:
            with contextlib.nullcontext(transaction) if transaction else environment.begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise ValueError(
                f"{self.folder / 'data.mdb'}: wanted `{key.decode()}`, got damaged pages ({error}). Copy it again."
            ) from error


@cache
def _environment(folder: Path) -> Any:
    """The opened database: one a process, as LMDB demands; without locks, forked processes may go on with it."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f"{folder} is an LMDB database and needs the package lmdb, got none. Run `pip install 'hf-vlm[lmdb]'`."
        ) from error
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ValueError(
            f"{folder / 'data.mdb'} must be an LMDB database, got a file that isn't ({error}). Copy it again."
        ) from error
    # Reading past the end of a file that was cut off would kill the process.
    size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    stored = (folder / "data.mdb").stat().st_size
    if stored < size:
        environment.close()
        raise ValueError(f"{folder / 'data.mdb'} must have {size} bytes, got {stored}. Copy it again.")
    return environment
