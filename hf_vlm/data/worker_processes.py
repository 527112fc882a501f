"""Work on the rows of a data set that takes a processor's time, spread over processes by `datasets`.

    rows -> parts, one a process -> each process works through its part -> what it made, in the order of the rows

What comes out is the same for any number of processes, one among them.
"""

import contextlib
import os
import pickle
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

Work = Callable[[Any, int], Iterator[dict[str, Any]]]


def check_num_proc(num_proc: int, option: str = "num_proc") -> None:
    """Raises ValueError unless it is a number of processes."""
    if num_proc < 1:
        raise ValueError(
            f"`{option}` must be 1 or more, got {num_proc}. Give a number of processes; 1 starts no other."
        )


def work_on(
    rows: Any,
    work: Work,
    features: datasets.Features,
    *,
    num_proc: int,
    fingerprint: str | None = None,
    option: str = "num_proc",
) -> Iterator[dict[str, Any]]:
    """What `work` makes of rows, in their order.

    Args:
        rows: with a length, `select(indices)`, and `alone()`, which gives them without the set that they were chosen from.
        work: gives what it makes of some rows, given them and the number of the first. It is sent to the processes: a function
            of a module, or a partial of one. What is wrong with a row is to be given, not raised.
        features: the columns of what it gives.
        num_proc: how many processes; 1 works in this one.
        fingerprint: of rows, work and settings: what other processes made is kept under it in the cache of `datasets`
            (`HF_DATASETS_CACHE`), and found there the next time. None keeps nothing.
        option: what the user calls `num_proc`.

    Raises:
        ChildProcessError: if a process is killed.
        OSError: if there is no room for what they make.
    """
    check_num_proc(num_proc, option)
    num_parts = min(num_proc, len(rows))
    if num_parts <= 1:
        yield from work(rows, 0)
        return
    with tempfile.TemporaryDirectory(prefix="hf-vlm-", ignore_cleanup_errors=True) as folder:
        kept = None if fingerprint is None else Path(datasets.config.HF_DATASETS_CACHE) / "hf_vlm" / fingerprint
        is_made = kept is not None and any(
            "incomplete" not in file.parent.name for file in kept.rglob("dataset_info.json")
        )
        parts = [] if is_made else _write_parts(rows, num_parts, Path(folder))
        with _quiet(), _telling_faults(num_parts, option):
            made = datasets.Dataset.from_generator(
                _PartsWork(work),
                features=features,
                gen_kwargs={"parts": parts},
                num_proc=num_parts,
                cache_dir=str(kept or folder),
                fingerprint=fingerprint or uuid.uuid4().hex,
            )
        for batch in made.with_format("arrow").iter(batch_size=1000):
            yield from batch.to_pylist()


def _write_parts(rows: Any, number: int, folder: Path) -> list[str]:
    """Files of rows that follow each other, one a process.

    As arguments `datasets` would send all of them to each process.
    """
    ends = [len(rows) * end // number for end in range(number + 1)]
    files = []
    for first, past in zip(ends, ends[1:], strict=False):
        file = folder / f"{first}.part"
        with file.open("wb") as stream:
            pickle.dump((rows.select(range(first, past)).alone(), first), stream)
        files.append(str(file))
    return files


@dataclass
class _PartsWork:
    """What each process calls with the files of its parts."""

    work: Work

    def __call__(self, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
        assert parts, "what was made is gone from the cache"
        for file in parts:
            with open(file, "rb") as stream:
                rows, first = pickle.load(stream)
            yield from self.work(rows, first)


@contextlib.contextmanager
def _telling_faults(number: int, option: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        raise ChildProcessError(
            f"{number} processes were to work to their end, got one that was killed, most often by the system for want of "
            f"memory. Lower `{option}`, or free some memory."
        ) from error
    except DatasetGenerationError as error:
        if "No space left" not in str(error.__cause__):
            raise
        raise OSError(
            f"{number} processes want room for what they make in {datasets.config.HF_DATASETS_CACHE} and "
            f"{tempfile.gettempdir()}, got a full disk. Free some, or set `HF_DATASETS_CACHE` and `TMPDIR` to folders elsewhere."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar where there is no terminal, whose lines would fill a log; and no alarm about tokenizers.

    Those of processes to come use one thread each; they would say so where this one's used several.
    """
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = before or "false"
    hides_bars = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hides_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hides_bars:
            datasets.enable_progress_bars()
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
