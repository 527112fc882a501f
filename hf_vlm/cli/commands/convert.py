"""`hf-vlm convert`: data sets into conversations, and these into other tools' files."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convert`."""
    parser.add_argument("data", metavar="DATA", help="folder or file")
    shared_options.add_out(parser, "new folder")
    parser.add_argument("--task", default="chat", choices=shared_options.TASKS, help="what a row is; default chat")
    parser.add_argument(
        "--to", default="conversations", metavar="FORMAT", help="default conversations; others: see the README"
    )
    shared_options.add_split(parser)
    shared_options.add_prompt(parser, "put behind the questions, or taken off them")
    shared_options.add_columns(parser)
    shared_options.add_image_folder(parser)
    parser.add_argument("--every-answer", action="store_true", help="of captions: a row for each of a picture")
    parser.add_argument(
        "--max-exchanges",
        type=shared_options.positive,
        default=1,
        metavar="N",
        help="questions about one picture in one conversation, default 1",
    )
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Converts; 1 if rows were left out."""
    from hf_vlm.data.tasks.convert import convert

    report = convert(
        options.data,
        options.out,
        task=options.task,
        to=options.to,
        split=options.split,
        prompt=options.prompt,
        columns=shared_options.columns_of(options),
        image_folder=options.image_folder,
        every_answer=options.every_answer,
        max_exchanges=options.max_exchanges,
    )
    write_result(options, report.to_dict(), report)
    return int(bool(report.num_bad_rows))


COMMAND = Command(
    "convert",
    "bring data into conversations, or into others' formats",
    add_options,
    run,
    description="Brings a published or own data set into conversations to train on, or conversations into another tool's "
    "files.",
    example="hf-vlm convert vqav2 --task vqa --split train --out conversations",
)
