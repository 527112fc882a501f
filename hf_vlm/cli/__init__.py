"""The `hf-vlm` command: parse, call, print. The work is done in `hf_vlm.training`, `hf_vlm.pipelines` and `hf_vlm.sharing`.

commands/*.py       a command each: its options, and what it does with them
commands/__init__   the table of contents, by what people want
shared_options.py   options that several commands have
parser.py           command line -> command and options; the help
processes.py, stopping.py, output.py    several processes, signals, what goes where

Each command imports what it needs when it runs, so that `hf-vlm --help` answers at once.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from hf_vlm.cli.output import complain
from hf_vlm.cli.parser import parse
from hf_vlm.cli.processes import complain_beside_the_first, process_number, silence
from hf_vlm.cli.stopping import sigterm_raises


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Of several processes, as `torchrun` starts them, the first alone prints.

    Returns: 0 if all went well, 1 if something failed (told on stderr), 2 for a wrong command line, 130 if it was stopped by
        Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a file's name may be in another encoding than the terminal's
    given = sys.argv[1:] if arguments is None else arguments
    number, num_processes = process_number()
    with contextlib.ExitStack() as around:
        if number > 0:
            around.enter_context(silence())
        with contextlib.redirect_stderr(None) if number > 0 else contextlib.nullcontext():
            command, options = parse(given)
        options.stdout = sys.stdout
        if options.json:  # what libraries print goes elsewhere, so that a script reads JSON alone
            around.enter_context(contextlib.redirect_stdout(sys.stderr))
        if num_processes == 1:  # a launcher ends its processes by SIGTERM, also those that wait in a collective call
            around.enter_context(sigterm_raises())
        try:
            return command.run(options)
        except (ValueError, OSError, ImportError, MemoryError, FloatingPointError) as error:
            if options.traceback:
                raise
            if isinstance(error, BrokenPipeError) and _is_closed(options.stdout):
                return 1
            (complain if number == 0 else complain_beside_the_first)(error)
            return 1
        except KeyboardInterrupt as stopped:
            if options.traceback:
                raise
            if number == 0:
                complain(f"stopped. {str(stopped) or command.if_stopped}")
            return getattr(stopped, "exit_code", 130)


def _is_closed(stdout: TextIO) -> bool:
    """Whether whoever read the output has enough, as `head` has; what is left of it then goes nowhere."""
    looked = select.poll()
    looked.register(stdout, select.POLLERR)
    if not looked.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return True
