"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def check_is_new(out: str | os.PathLike) -> None:
    """Raises ValueError if a folder, or file, of that name holds something."""
    target = Path(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`out` must be a new or an empty folder, got {out}. Name another one.")


@contextlib.contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to write in, which takes the name `out` at the end; if something is raised, it is gone and `out` is as it was.

    Raises:
        ValueError: as `check_is_new`.
    """
    check_is_new(out)
    target = Path(out).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"  # beside it, so that renaming is one step
    written.mkdir()
    try:
        yield written
        if target.exists():
            target.rmdir()
        written.rename(target)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise
