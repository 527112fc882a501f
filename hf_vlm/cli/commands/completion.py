"""`hf-vlm completion`: a script by which a shell completes commands, options, recipes and files."""

import argparse

from hf_vlm.cli.command import Command

# What stands at the place of an argument, by its name in the help.
_FILES = {"FILE", "IMAGE", "PATH", "DATA", "CONTEXTS"}
_FOLDERS = {"FOLDER", "MODEL", "RUN", "ADAPTER"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")


def run(options: argparse.Namespace) -> int:
    """Prints the script; it needs no Python when the shell runs it."""
    import shtab

    from hf_vlm.cli.parser import command_line
    from hf_vlm.training.recipe_files import RECIPE_FOLDER

    parser = command_line()
    recipes = _completes_recipes(sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml")))
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            place = action.metavar
            if place == "RECIPE":
                action.complete = recipes  # what shtab looks for
            elif place in _FILES:
                action.complete = shtab.FILE
            elif place in _FOLDERS:
                action.complete = shtab.DIRECTORY
    print(shtab.complete(parser, options.shell))
    return 0


def _completes_recipes(names: list[str]) -> dict:
    """What completes the names of shipped recipes, and files; in tcsh, which takes one of the two, the names."""
    words = " ".join(names)
    return {
        "bash": "_hf_vlm_recipe_files",
        "zsh": "_hf_vlm_recipe_files",
        "tcsh": f"({words})",
        "preamble": {
            "bash": f'_hf_vlm_recipe_files() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}',
            "zsh": f"_hf_vlm_recipe_files() {{\n  compadd -- {words}\n  _files\n}}",
        },
    }


COMMAND = Command(
    "completion",
    "print a script by which your shell completes these",
    add_options,
    run,
    description="Prints a script by which your shell completes commands, options, recipes and files. For zsh put it into a "
    "folder of `$fpath` as `_hf-vlm`; for tcsh `source` it.",
    example="hf-vlm completion bash > ~/.local/share/bash-completion/completions/hf-vlm",
)
