"""`hf-vlm export-code`: a model leaves with its code."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `export-code`."""
    parser.add_argument("folder", metavar="MODEL", help="folder or Hub name of a model of hf-vlm")
    shared_options.add_out(parser, "new folder")
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from hf_vlm.sharing.code_folder import card_asks_for_package, export_code, programs_of

    folder = export_code(options.folder, options.out)
    programs = " and ".join(f"`{program}`" for program in programs_of(folder))
    if card_asks_for_package(folder):
        complain(
            f"{folder / 'README.md'} came along as it was, and still speaks of hf-vlm. Tell its readers of {programs}."
        )
    write_result(options, {"out": str(folder)}, f"{folder} loads without hf-vlm: {programs}.")
    return 0


COMMAND = Command(
    "export-code",
    "write a model that loads where hf-vlm isn't installed",
    add_options,
    run,
    description="Writes a model with its code: it loads by `trust_remote_code=True` where hf-vlm is not installed.",
    example="hf-vlm export-code my-reader --out my-reader-with-code",
    if_stopped=NOTHING_WRITTEN,
)
