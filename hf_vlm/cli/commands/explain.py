"""`hf-vlm explain`: what a vision transformer looks at."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `explain`."""
    shared_options.add_images(parser)
    shared_options.add_model(
        parser,
        "folder or Hub name: vision model, image classifier, or a model that has one; default as for read",
    )
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where to write the sheets, default here")
    shared_options.add_json(parser, "one JSON object a picture, with its attention rollout")


def run(options: argparse.Namespace) -> int:
    """Draws a sheet a picture; 1 if one could not be drawn."""
    from hf_vlm.pipelines.attention_sheets import explain_files

    failed = False
    for result in explain_files(options.images, model=options.model, out=options.out):
        if result.error is not None:
            failed = True
            complain(result.error)
        else:
            write_result(options, result.to_dict(), result)
    return int(failed)


COMMAND = Command(
    "explain",
    "draw what a vision transformer looks at",
    add_options,
    run,
    description="Draws where the attention of a vision transformer lies, a sheet a picture.",
    example="hf-vlm explain photo.jpg --model runs/vit-image-classification --out sheets",
    rest="images",
)
