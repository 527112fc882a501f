"""A folder that is there whole or not at all."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


def check_is_new(out: str | os.PathLike) -> None:
    """Raises ValueError if a folder, or file, of that name holds something."""
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"`out` must be a new or an empty folder, got {out}. Name another one.")


@contextlib.contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to write in, which takes the name `out` at the end; if something is raised, it is gone and `out` is as it was.

    Raises:
        ValueError: as `check_is_new`.
        OSError: if the disk has no room for what is written.
    """
    check_is_new(out)
    target = Path(out).resolve()  # where a link leads
    is_there = target.exists()  # it may be a mounted volume, which can't be replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that renaming is one step; inside it, if it is there.
    name = f".{target.name}-{uuid.uuid4().hex[:8]}"
    written = target / name if is_there else target.parent / name
    written.mkdir()
    moved: list[Path] = []
    try:
        yield written
        if is_there:
            _move_up(written, moved)
        else:
            written.rename(target)
    except BaseException as error:
        for path in (*moved, written):
            _remove(path)
        if _is_full(error):
            raise OSError(
                f"Writing {out} wants a disk with room for it, got {error}. Nothing was left there. Free some room, or name a "
                "folder elsewhere."
            ) from error
        raise


def _move_up(written: Path, moved: list[Path]) -> None:
    """Move what was written into the folder around it.

    Args:
        moved: takes the paths that are new there.

    Raises:
        ValueError: if that folder got something else meanwhile.
    """
    target = written.parent
    if [path.name for path in target.iterdir()] != [written.name]:
        raise ValueError(
            f"`out` must stay empty until all is written, got files of another in {target}. Name another one."
        )
    # The config last: without it nobody takes the folder for a model.
    for path in sorted(written.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        moved.append(target / path.name)
        path.rename(moved[-1])
    written.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of room; safetensors has an error of its own for it."""
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
