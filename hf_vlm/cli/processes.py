"""Several processes that run the same command, as `torchrun` starts them: the first one speaks for all."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator

SECONDS_FOR_THE_FIRST = 20.0  # in which it fails of the same error, and the launcher ends the others


def process_number() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    total = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")) if total > 1 else 0), total


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within it this process writes nothing to stdout and logs errors only; tracebacks of bugs still come."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("hf_vlm").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def complain_beside_the_first(error: BaseException) -> None:
    """Tells the error of a process other than the first: one of its own batch at once, another if the first goes on without."""
    if not isinstance(error, FloatingPointError | MemoryError):
        time.sleep(SECONDS_FOR_THE_FIRST)
    number, total = process_number()
    print(f"hf-vlm, process {number} of {total} (the first is 0): {error}", file=sys.stderr, flush=True)
