"""`hf-vlm read`: the text in pictures of lines, or of whole pages."""

import argparse
import contextlib
from collections.abc import Iterable

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `read`."""
    shared_options.add_images(parser)
    parser.add_argument(
        "--page", action="store_true", help="the pictures are whole pages, upright and of one column: find their lines"
    )
    shared_options.add_model(parser, "folder or Hub name; by default the model that comes with hf-vlm")
    parser.add_argument(
        "--format",
        choices=("text", "json", "page", "alto"),
        default="text",
        help="default text; page (PAGE XML) and alto are files of whole pages, for --page and --out",
    )
    shared_options.add_json(
        parser, "--format json: one object a picture, with scores, word confidences and, of pages, places"
    )
    shared_options.add_out(
        parser,
        "folder for one file a page, those that are there being left alone; with --below a new CSV file",
        required=False,
    )
    parser.add_argument(
        "--below",
        type=float,
        metavar="SCORE",
        help="list lines whose score in [0, 1] is below this in --out, beside their pictures, to correct and train on",
    )
    shared_options.add_num_beams(parser)
    shared_options.add_batch_size(parser, "lines")
    shared_options.add_precision(
        parser,
        ("float32", "bfloat16", "int8"),
        "of the computation, default float32; int8 is for CPUs: quicker, and reads nearly the same",
    )
    parser.add_argument(
        "--abstain-below", type=float, metavar="SCORE", help="give no text where the score in [0, 1] is below this"
    )


def run(options: argparse.Namespace) -> int:
    """Reads; 1 if a picture could not be read."""
    from hf_vlm.data.lines.page_files import LinesToCorrect
    from hf_vlm.pipelines.page_reading import ReadPage, read_page_files
    from hf_vlm.pipelines.picture_files import ReadFile, read_files

    if options.json:
        options.format = "json"
    _check(options)
    options.json = options.format == "json" and (options.out is None or options.below is not None)
    settings = {
        "model": options.model,
        "batch_size": options.batch_size,
        "num_beams": options.num_beams,
        "abstain_below": options.abstain_below,
        "precision": options.precision,
        "to_correct": LinesToCorrect(options.out, options.below) if options.below is not None else None,
    }
    out = options.out if options.below is None else None
    failed = False
    with settings["to_correct"] or contextlib.nullcontext() as to_correct:
        results: Iterable[ReadFile | ReadPage] = (
            read_page_files(options.images, out=out, kind=options.format, **settings)
            if options.page
            else read_files(options.images, **settings)
        )
        for result in results:
            if result.error is not None:
                failed = True
                complain(result.error)
            else:
                write_result(options, result.to_dict() if options.json else {}, result)
    if to_correct:
        complain(f"{to_correct.num_lines} lines to correct in {to_correct.file}")
    return int(failed)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError if options do not go together."""
    writes_folder = options.out is not None and options.below is None
    if options.below is not None and options.out is None:
        raise ValueError("`--below` wants `--out FILE.csv` for the lines, got none. Add it.")
    if writes_folder and options.out.endswith(".csv"):
        raise ValueError(f"`--out {options.out}` wants `--below SCORE`, got none. Add it, or name a folder.")
    if writes_folder and not options.page:
        raise ValueError("`--out` wants `--page` or `--below SCORE`, got neither. Add one.")
    if options.format in ("page", "alto") and not (options.page and writes_folder):
        raise ValueError(
            f"`--format {options.format}` wants `--page` and `--out FOLDER`, without `--below`, got another command. "
            "Correct it."
        )


COMMAND = Command(
    "read",
    "print the text in pictures of lines, or of whole pages",
    add_options,
    run,
    description="Prints the text in pictures of lines, or of whole pages. A broken picture costs only itself: it is told, and "
    "the exit code is 1.",
    example="hf-vlm read --page scans --format page --out scans_xml",
    rest="images",
    if_stopped="What was written stays; pages read into a folder go on from there.",
)
