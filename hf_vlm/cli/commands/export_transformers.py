"""`hf-vlm export-transformers`: a model leaves as transformers' own class."""

import argparse
from dataclasses import asdict

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `export-transformers`."""
    parser.add_argument("folder", metavar="MODEL", help="folder or Hub name of a model of hf-vlm")
    shared_options.add_out(parser, "new folder")
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from hf_vlm.sharing.stock.export import export_transformers

    export = export_transformers(options.folder, options.out)
    write_result(options, {"out": options.out, **asdict(export)}, export)
    return 0


COMMAND = Command(
    "export-transformers",
    "write a model as transformers' own class",
    add_options,
    run,
    description="Writes a model as transformers' own class of the same mathematics, if there is one, compared with it before "
    "it counts as written.",
    example="hf-vlm export-transformers my-llava --out my-llava-hf",
    if_stopped=NOTHING_WRITTEN,
)
