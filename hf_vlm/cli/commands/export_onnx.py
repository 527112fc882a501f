"""`hf-vlm export-onnx`: a model leaves as ONNX files."""

import argparse
from dataclasses import asdict

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `export-onnx`."""
    parser.add_argument("folder", metavar="MODEL", help="folder or Hub name of a model of hf-vlm")
    shared_options.add_out(parser, "new folder")
    shared_options.add_precision(
        parser, ("float32", "int8"), "of the weights, default float32; int8 is for CPUs: eight bits"
    )
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from hf_vlm.sharing.onnx.export import export_onnx

    export = export_onnx(options.folder, options.out, precision=options.precision)
    write_result(options, {"out": options.out, **asdict(export)}, export)
    return 0


COMMAND = Command(
    "export-onnx",
    "write a model as ONNX files",
    add_options,
    run,
    description="Writes a model as ONNX files, checked against it through onnxruntime.",
    example="hf-vlm export-onnx my-reader --precision int8 --out my-reader-onnx",
    if_stopped=NOTHING_WRITTEN,
)
