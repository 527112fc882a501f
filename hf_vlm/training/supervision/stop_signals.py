"""A signal that stops a run: the step is finished and a checkpoint saved, so that nothing learnt is lost.

Batch systems send SIGTERM (or SIGUSR1, where they are asked to) some time before they kill; Ctrl-C is SIGINT. Transformers' own
`enable_jit_checkpoint` saves in the midst of an update, and on each process by its own clock, which several can't go on from.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_SECONDS_OF_ONE = 5.0  # a batch system signals all processes, and the launcher passes the same on once more


class TrainingStopped(KeyboardInterrupt):
    """A run that a signal ended after a whole step, its checkpoint saved.

    Attributes:
        exit_code: 128 and the signal's number, as a shell has it: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Around a run: notes the first signal that asks it to stop. Another one ends the process at once.

    Of SIGTERM, those within five seconds are one. Does nothing in other threads than the main one, where Python lets nobody
    handle signals.

    Args:
        is_told: whether this process says on stderr that it is stopping; one of several is enough.

    Attributes:
        received: the signal's number; 0 if there was none.
        is_listening: whether signals are noted now.
    """

    def __init__(self, is_told: bool = True) -> None:
        self.is_told, self.received, self.is_listening = is_told, 0, False
        self._begun = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}
            self.is_listening = True
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None stands for one that was not set from Python, which can't be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before, self.is_listening = {}, False

    def _note(self, number: int, _: Any) -> None:
        if not self.received:
            self.received, self._begun = number, time.monotonic()
            # At once means at once: also where a process waits for others in code that is not Python's.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self.is_told:
                name = signal.Signals(number).name
                told = f"{name}: the step is finished and a checkpoint saved; another signal ends the run at once.\n"
                os.write(2, told.encode())  # `print` may have been interrupted in its own midst
        elif number == signal.SIGINT or time.monotonic() - self._begun > _SECONDS_OF_ONE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def outliving_signals(initialise: Callable[[int], None] | None) -> Callable[[int], None]:
    """A data loader's `worker_init_fn` for workers that bring the step to its end when a signal goes to all processes.

    Args:
        initialise: what a worker runs besides, if anything.
    """
    return functools.partial(_initialise_worker, initialise)


def _initialise_worker(initialise: Callable[[int], None] | None, number: int) -> None:
    first: list[float] = []

    def outlive(received: int, _: Any) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > _SECONDS_OF_ONE:  # the loader's own, for a worker that is stuck
            os._exit(0)

    signal.signal(signal.SIGTERM, outlive)
    for ignored in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    if initialise is not None:
        initialise(number)
