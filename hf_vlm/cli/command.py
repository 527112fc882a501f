"""What a command of `hf-vlm` is made of."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

GOES_ON = "What was written stays, and the same command goes on from there."
STAYS = "What was written stays."
NOTHING_WRITTEN = "Nothing was written: run it again from the start."


@dataclass(frozen=True)
class Command:
    """One command: what the help says of it, its options, and what it does.

    Args:
        name: as it is typed.
        summary: its line in `hf-vlm --help`, short enough for a terminal of 80 columns.
        add_options: puts its arguments into its parser.
        run: does the work and returns the exit code; its options have `json` and, for `output`, `stdout`.
        description: what its own `--help` begins with.
        example: a command line, shown by its `--help`.
        rest: the argument, a list, that takes what follows an option, as in `read a.png --json b.png`; without one, more
            arguments than there are places for are an error.
        if_stopped: what is said of work already done when the command is stopped.
    """

    name: str
    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str
    example: str
    rest: str | None = None
    if_stopped: str = STAYS
