"""The command line of `hf-vlm`: a table of contents, and one parser a command."""

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from hf_vlm.cli.command import Command
from hf_vlm.cli.commands import COMMANDS, GROUPS
from hf_vlm.parts.package_version import __version__

_OPTIONS = {
    "-h, --help": "show this; `hf-vlm COMMAND --help` shows a command's",
    "--version": "print the version",
    "--traceback": "on an error show where in the code it came up",
}
_EXIT_CODES = {
    "0": "all went well",
    "1": "something failed: stderr tells what; the rest was done",
    "2": "the command line is wrong",
    "130": "stopped by Ctrl-C, but for `demo`, which ends so, with 0",
    "143": "stopped by SIGTERM",
    "138": "stopped by SIGUSR1, of a batch system whose time is up",
}
_NUMBER = re.compile(r"^-\d+$|^-\d*\.\d+$")  # what argparse takes for a negative number


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all others are."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"hf-vlm: {message}\n")


class _TableOfContents(_Parser):
    """The parser of `hf-vlm` itself: its help is the commands by what people want, which argparse can't group."""

    def format_help(self) -> str:
        parts = [self.format_usage(), f"{self.description}\n"]
        for group, commands in GROUPS.items():
            parts.append(_table(group, {command.name: command.summary for command in commands}))
        return "\n".join([*parts, _table("Options", _OPTIONS), _table("Exit codes", _EXIT_CODES)])


def _table(title: str, rows: dict[str, str]) -> str:
    return "\n".join([f"{title}:", *(f"  {name:<19}  {told}" for name, told in rows.items()), ""])


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has `command`, a name, and `traceback`."""
    parser = _TableOfContents(
        prog="hf-vlm",
        usage="hf-vlm [--version] [--traceback] COMMAND ...",
        description="Models of pictures and text: make, train, measure, use and share them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-vlm {__version__}")
    parser.add_argument("--traceback", action="store_true", help=_OPTIONS["--traceback"])
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", prog="hf-vlm", parser_class=_Parser, dest="command"
    )
    for command in COMMANDS.values():
        own = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=textwrap.fill(command.description, shutil.get_terminal_size().columns - 2),
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(own)
        own.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=_OPTIONS["--traceback"])
    return parser


def parse(arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command of a command line, and its options.

    Raises:
        SystemExit: of code 2, if it is wrong, and of code 0 for `--help` and `--version`, after what they print.
    """
    parser = command_line()
    _check_command(parser, arguments)
    options, rest = parser.parse_known_args(arguments)
    command = COMMANDS[options.command]
    options.json = getattr(options, "json", False) or getattr(options, "format", None) == "json"
    if rest and command.rest is None:
        parser.error(f"`{command.name}` has no place for `{rest[0]}`. See `hf-vlm {command.name} --help`.")
    if command.rest is not None:
        getattr(options, command.rest).extend(rest)
    return command, options


def _check_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Ends a command line whose command or option is not known, with the nearest one that is."""
    before = [argument for argument in arguments if argument.startswith("-")]
    names = [argument for argument in arguments if not argument.startswith("-")]
    if not names:
        unknown = [option for option in before if option not in parser._option_string_actions]
        if unknown:
            told = _nearest(unknown[0], parser._option_string_actions)
            parser.error(f"An option of `hf-vlm` is wanted, got `{unknown[0]}`.{told} See `hf-vlm --help`.")
        if not {"-h", "--help", "--version"} & set(before):
            parser.error("A command is wanted, got none. `hf-vlm --help` lists them.")
        return
    name = names[0]
    if name not in COMMANDS:
        parser.error(f"A command is wanted, got `{name}`.{_nearest(name, COMMANDS)} `hf-vlm --help` lists them.")
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    place = list(arguments).index(name)
    for where, known, given in (
        ("", parser._option_string_actions, arguments[:place]),
        (f" {name}", subparsers.choices[name]._option_string_actions, arguments[place + 1 :]),
    ):
        for argument in given:
            if argument == "--":
                break
            option = argument.partition("=")[0]
            if option in known or not _looks_like_option(argument):
                continue
            told = _nearest(option, known)
            if not told and "." in option:  # a recipe's value, written as other programs want it
                told = f" Values of a recipe are written `{argument.lstrip('-')}`, without dashes."
            parser.error(f"An option of `hf-vlm{where}` is wanted, got `{option}`.{told} See `hf-vlm{where} --help`.")


def _looks_like_option(argument: str) -> bool:
    """As argparse decides it: a text with a space, or a negative number, is none."""
    return len(argument) > 1 and argument[0] == "-" and " " not in argument and not _NUMBER.match(argument)


def _nearest(name: str, known: Sequence[str] | dict) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{found[0]}`?" if found else ""
