"""`hf-vlm card`: the model card."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `card`."""
    parser.add_argument("folder", metavar="FOLDER", help="of the model or adapter; the card is its README.md")
    parser.add_argument(
        "--license", metavar="ID", help="as the Hub names it; by default what the parts' licences ask for"
    )
    parser.add_argument("--license-name", metavar="NAME", help="with `--license other`: its name")
    parser.add_argument("--license-link", metavar="URL", help="with `--license other`: where it stands")
    parser.add_argument(
        "--records",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="JSON of `hf-vlm evaluate --record` or `--json`: its figures; default: those in the folder",
    )
    parser.add_argument("--image", metavar="IMAGE", help="picture to show, copied beside the card")
    parser.add_argument("--limits", metavar="TEXT", help="what the model can't do, or must not be used for")
    parser.add_argument("--name", metavar="NAME", help="of the model, default: the folder's")
    shared_options.add_out(parser, "where to write the card, default FOLDER/README.md", metavar="FILE", required=False)
    shared_options.add_json(parser, "one JSON object: the file")


def run(options: argparse.Namespace) -> int:
    """Writes the card."""
    from hf_vlm.sharing.cards.model_card import write_card

    file = write_card(
        options.folder,
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        records=options.records,
        picture=options.image,
        limits=options.limits,
        name=options.name,
        out=options.out,
    )
    write_result(options, {"file": str(file)}, f"Card written: {file}")
    return 0


COMMAND = Command(
    "card",
    "write a model card from what was recorded",
    add_options,
    run,
    description="Writes the model card of a trained model or adapter, from what its run and its evaluations recorded. What "
    "you wrote between its sections stays.",
    example="hf-vlm card my-reader --license apache-2.0",
)
