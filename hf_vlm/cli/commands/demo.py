"""`hf-vlm demo`: a page to try models."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `demo`."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of models or adapters, of whatever task")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on, default 127.0.0.1: this machine only")
    parser.add_argument(
        "--port", type=shared_options.positive, metavar="N", help="default: the first free one from 7860 on"
    )
    parser.add_argument(
        "--share", action="store_true", help="also by a public link of gradio, which everybody who has it can open"
    )


def run(options: argparse.Namespace) -> int:
    """Serves, until it is stopped."""
    from hf_vlm.demo.page import launch

    launch(options.folders, host=options.host, port=options.port, share=options.share)
    return 0


COMMAND = Command(
    "demo",
    "try models in a browser",
    add_options,
    run,
    description="Serves a page on which models are tried: read, caption, ask and chat, tokenise, classify, look at attention, "
    "each with its card. It needs the extra `demo`, sends nothing elsewhere, and ends by Ctrl-C.",
    example="hf-vlm demo my-reader runs/llava-chat --port 7860",
    rest="folders",
    if_stopped="The page is closed.",
)
