"""The command line: its table of contents, examples, option names, and what it says of a wrong one."""

import argparse
import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

import hf_vlm
from hf_vlm.cli import main
from hf_vlm.cli.commands import COMMANDS, GROUPS
from hf_vlm.cli.parser import command_line, parse

CHECKOUT = Path(__file__).parents[2]
WANTED = (
    "assemble push audit train evaluate read extend-alphabet chat tokenize make-data convert explain show card merge "
    "export-transformers export-code export-onnx estimate demo completion"
).split()
# Documents whose commands are typed as they stand.
DOCUMENTS = [
    *sorted((CHECKOUT / "hf_vlm/training/recipes").glob("*.yaml")),
    *sorted((CHECKOUT / "model_cards").glob("*/README.md")),
]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in command_line()._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def printed_by(arguments, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line that ends while it is parsed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_help_is_a_table_of_contents_in_80_columns(capsys):
    code, told, _ = printed_by(["--help"], capsys)
    assert code == 0
    lines = told.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z]\S* +[a-z]", line)]
    assert sorted(listed) == sorted(WANTED) and len(set(listed)) == len(listed)
    headings = [line.removesuffix(":") for line in lines if line.endswith(":")]
    assert headings == [*GROUPS, "Options", "Exit codes"]
    assert {line.split()[0] for line in lines[lines.index("Exit codes:") + 1 :] if line} == {
        "0",
        "1",
        "2",
        "130",
        "143",
        "138",
    }


@pytest.mark.parametrize("name", WANTED)
def test_example_in_a_commands_help_is_understood(name, capsys):
    code, told, _ = printed_by([name, "--help"], capsys)
    assert code == 0
    (example,) = re.findall(r"^example:\n  (.*)$", told, re.MULTILINE)
    program, *arguments = shlex.split(example.partition(" > ")[0])
    assert program == "hf-vlm"
    command, _ = parse(arguments)
    assert command.name == name
    assert len(command.summary) < 58 and command.description.endswith(".")


def commands_in(text: str) -> list[list[str]]:
    """The arguments of every whole `hf-vlm` command in a text: those with `...` are cut short, and left out."""
    text = re.sub(r" *\\\n(# *)?", " ", text)
    program = r"(?:hf-vlm|\S+ .*-m hf_vlm(?:\.cli)?) ([a-z]"
    found = re.findall(rf"`{program}[^`]*)`", text)  # in a sentence, which may go on in the next line
    found += re.findall(rf"^(?:# command: +)?{program}[^`\n]*)$", text, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found if "..." not in command]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_commands_in_a_document_are_understood(document):
    commands = commands_in(document.read_text(encoding="utf-8"))
    assert commands
    for arguments in commands:
        if not (arguments[1:] or ["-"])[0].startswith("-"):  # else a sentence about a command or its option
            parse(arguments)


def test_commands_in_a_document_are_found():
    text = "See `hf-vlm merge a --out\nb` and `hf-vlm read ...`\nhf-vlm chat m   # why\ntorchrun -m hf_vlm train x \\\n  b=2\n"
    assert commands_in(text) == [["merge", "a", "--out", "b"], ["chat", "m"], ["train", "x", "b=2"]]


def test_an_option_is_of_one_kind_in_all_commands():
    kinds: dict[str, set] = {}
    for parser in subparsers().values():
        for action in parser._actions:
            for option in action.option_strings:
                kind = (action.nargs, action.type, type(action).__name__, action.metavar)
                kinds.setdefault(option, set()).add(kind)
    several = {option for option, found in kinds.items() if len(found) > 1}
    # one picture or several; one file or a folder; one split or several
    assert several == {"--image", "--out", "--split"}


def test_results_are_json_for_a_script_in_every_command_that_has_one():
    without = {name for name, parser in subparsers().items() if "--json" not in parser._option_string_actions}
    assert without == {"demo", "completion"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "A command is wanted, got none."),
        (["--traceback"], "A command is wanted, got none."),
        (["--hlep"], "got `--hlep`. Did you mean `--help`?"),
        (["trian", "x"], "A command is wanted, got `trian`. Did you mean `train`?"),
        (["export", "x"], "A command is wanted, got `export`. Did you mean `export-"),
        (["qqq"], "A command is wanted, got `qqq`. `hf-vlm --help` lists them."),
        (["train", "x", "--dryrun"], "An option of `hf-vlm train` is wanted, got `--dryrun`. Did you mean `--dry-run`?"),
        (["read", "a.png", "--batchsize=3"], "got `--batchsize`. Did you mean `--batch-size`?"),
        (["--tracebak", "read", "a.png"], "An option of `hf-vlm` is wanted, got `--tracebak`. Did you mean `--traceback`?"),
        (["train", "x", "--training.max_steps=3"], "Values of a recipe are written `training.max_steps=3`, without dashes."),
        (["read", "a.png", "--batch", "3"], "got `--batch`."),  # no abbreviations: they break when options come
        (["read", "a.png", "-x"], "An option of `hf-vlm read` is wanted, got `-x`."),
        (["merge", "a", "--out", "b", "c"], "`merge` has no place for `c`."),
        (["merge", "a"], "the following arguments are required: --out"),
        (["read", "a.png", "--num-beams", "0"], "a whole number of at least 1 is wanted, got 0"),
        (["read", "a.png", "--num-beams", "two"], "a whole number of at least 1 is wanted, got two"),
        (["chat", "m", "--temperature", "warm"], "a number of at least 0 is wanted, got warm"),
        (["completion", "cmd"], "invalid choice: 'cmd'"),
    ],
)  # fmt: skip
def test_wrong_command_line_names_what_was_meant_with_exit_code_2(arguments, told, capsys):
    code, out, error = printed_by(arguments, capsys)
    assert code == 2 and out == ""
    assert error.startswith("usage: hf-vlm")
    last = error.splitlines()[-1]
    assert last.startswith("hf-vlm: ") and told in last


def test_texts_and_numbers_that_begin_with_a_dash_are_no_options():
    _, options = parse(["chat", "m", "--question", "- is this a list?", "--image", "a.png"])
    assert options.question == "- is this a list?"
    _, options = parse(["make-data", "c", "--out", "o", "--seed", "-3"])
    assert options.seed == -3


def test_traceback_may_follow_the_command():
    for arguments in (["--traceback", "train", "x"], ["train", "x", "--traceback"], ["train", "--traceback", "x"]):
        assert parse(arguments)[1].traceback
    assert not parse(["train", "x"])[1].traceback


def test_version_is_printed(capsys):
    assert printed_by(["--version"], capsys) == (0, f"hf-vlm {hf_vlm.__version__}\n", "")


def test_commands_import_only_the_standard_library_until_they_run():
    files = [*(CHECKOUT / "hf_vlm/cli").rglob("*.py"), CHECKOUT / "hf_vlm/__main__.py"]
    assert len(files) > len(COMMANDS)
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (
                    module.split(".")[0] in sys.stdlib_module_names
                    or module.startswith("hf_vlm.cli")
                    or module == "hf_vlm.parts.package_version"
                ), f"{file} imports {module}"
