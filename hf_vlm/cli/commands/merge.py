"""`hf-vlm merge`: an adapter and its base become one model."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `merge`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or Hub name of the adapter")
    shared_options.add_out(parser, "where to save the merged model")
    parser.add_argument(
        "--base", metavar="MODEL", help="folder or Hub name of the base; by default the one that the adapter names"
    )
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Merges."""
    from hf_vlm.training.lora import merge_adapter

    merge_adapter(options.adapter, options.out, options.base)
    write_result(options, {"out": options.out}, f"Merged model saved in {options.out}")
    return 0


COMMAND = Command(
    "merge",
    "make one model of an adapter and its base",
    add_options,
    run,
    description="Adds a LoRA adapter to its base's weights: one whole model, with processor.",
    example="hf-vlm merge my-adapter --out my-reader",
    if_stopped=NOTHING_WRITTEN,
)
