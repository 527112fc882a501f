"""`hf-vlm estimate`: what a run would take."""

import argparse

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.commands.train import recipe_of
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `estimate`."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, name of a shipped recipe, or folder of a run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as training.global_batch_size=128"
    )
    parser.add_argument(
        "--gpus", type=shared_options.positive, default=1, metavar="N", help="in each machine, default 1"
    )
    parser.add_argument("--gpu", default="h100", metavar="NAME", help="such as h100, a100-80; default h100")
    parser.add_argument("--nodes", type=shared_options.positive, default=1, metavar="N", help="machines, default 1")
    parser.add_argument("--engine", choices=("ddp", "zero2", "fsdp2", "zero3"), help="default: all are compared")
    parser.add_argument(
        "--preset", metavar="NAME", help="sizes of a published model in the place of the recipe's parts: llava-1.5-13b"
    )
    parser.add_argument(
        "--measured",
        metavar="PATH",
        help="folder of a run, or JSON of scripts/benchmarks/estimate.py, whose speed on one GPU is scaled",
    )
    parser.add_argument(
        "--rows",
        type=shared_options.positive,
        metavar="N",
        help="rows of the training set: what hours are of where the recipe counts epochs",
    )
    parser.add_argument(
        "--tokens",
        type=shared_options.positive,
        metavar="N",
        help="tokens of a row on the mean, its picture's included; default: the most",
    )
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Estimates."""
    from hf_vlm.training.estimates.estimate import estimate
    from hf_vlm.training.tasks import load_recipe

    result = estimate(
        load_recipe(*recipe_of(options)),
        gpus=options.gpus,
        gpu=options.gpu,
        measured=options.measured,
        rows=options.rows,
        tokens=options.tokens,
        nodes=options.nodes,
        engine=options.engine,
        preset=options.preset,
    )
    write_result(options, result.to_dict(), result)
    return 0


COMMAND = Command(
    "estimate",
    "tell memory, tokens/s and hours of a run beforehand",
    add_options,
    run,
    description="Tells what a recipe would take on GPUs that you need not have: parameters, memory a device by engine, "
    "whether it fits, and from a speed measured on one GPU tokens/s and hours.",
    example="hf-vlm estimate llava-chat --gpus 8 --gpu h100 --preset llava-1.5-13b",
    rest="overrides",
)
