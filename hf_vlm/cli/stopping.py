"""Stops a command in order: Ctrl-C, and the SIGTERM of `docker stop` or of a batch system."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """A SIGTERM came. As Ctrl-C it passes by `except Exception`, so that what is half written is cleared away."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it a SIGTERM raises `Terminated`; a second one is ignored, as it would cut the clearing up short."""
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    process = os.getpid()

    def stop(*_: object) -> None:
        if os.getpid() != process:  # a forked worker, which inherits this and is ended by whoever made it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        # None stands for one that was not set from Python, which can't be put back
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
