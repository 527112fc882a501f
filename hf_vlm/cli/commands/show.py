"""`hf-vlm show`: a page about a training run."""

import argparse
from pathlib import Path

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `show`."""
    parser.add_argument("run", metavar="RUN", help="folder of the run, its recipe's `training.output_dir`")
    shared_options.add_out(parser, "HTML file to write, default RUN/report.html", metavar="FILE", required=False)
    parser.add_argument(
        "--samples", type=shared_options.positive, default=12, metavar="N", help="answers to show, default 12"
    )
    shared_options.add_json(parser, "one JSON object: the file, and what is in it in numbers")


def run(options: argparse.Namespace) -> int:
    """Writes the page; what is left out of it is told."""
    from hf_vlm.training.reports.report_page import write_report
    from hf_vlm.training.reports.run_report import make_report

    report = make_report(options.run, options.samples)
    file = Path(options.out) if options.out is not None else Path(options.run) / "report.html"
    write_report(report, file)
    told = report.to_dict()
    text = f"{file}: {len(told['curves'])} charts, {told['num_shown']} answers of {told['num_answered']}"
    write_result(options, {"file": str(file), **told}, text)
    for problem in told["problems"]:
        complain(f"left out of the report: {problem}")
    return 0


COMMAND = Command(
    "show",
    "make a page of a run: curves, answers, errors",
    add_options,
    run,
    description="Writes an HTML page about a training run: curves, answers, errors by kind, attention, and what is learnt.",
    example="hf-vlm show runs/caption-cnn-lstm",
)
