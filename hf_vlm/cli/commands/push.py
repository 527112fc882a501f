"""`hf-vlm push`: a model goes to the Hub."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `push`."""
    parser.add_argument("folder", metavar="FOLDER", help="of a model, an adapter, a tokenizer or a run")
    parser.add_argument("name", metavar="NAME", help="on the Hub, as you/my-reader")
    visible = parser.add_mutually_exclusive_group()
    visible.add_argument(
        "--private", action="store_true", default=None, help="make the repository private; refused if it is public"
    )
    visible.add_argument(
        "--public", action="store_false", dest="private", default=None, help="make it public; refused if it is private"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to, default main")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    shared_options.add_json(parser, "one JSON object at the end: URL, commit and files")


def run(options: argparse.Namespace) -> int:
    """Pushes; the token is that of `hf auth login` or `HF_TOKEN`."""
    from hf_vlm.sharing.push import push

    pushed = push(
        options.folder, options.name, private=options.private, revision=options.revision, message=options.message
    )
    write_result(options, pushed.to_dict(), pushed)
    return 0


COMMAND = Command(
    "push",
    "put a model on the Hub, checked, as one commit",
    add_options,
    run,
    description="Puts a model, an adapter or a visual tokenizer on the Hub, checked first, as one commit. The token is that "
    "of `hf auth login`, or `HF_TOKEN`.",
    example="hf-vlm push my-reader you/my-reader --private",
    if_stopped="A push is one commit, done whole or not at all: look at the repository, and run it again.",
)
