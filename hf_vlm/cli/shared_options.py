"""Options that several commands have: one name, one meaning, one place.

A command takes first what it is about: pictures (`read`), data (`audit`), or a model (`evaluate`). A model that only helps
is `--model`, and what is written goes to `--out`.
"""

import argparse
from collections.abc import Sequence

TASKS = ("caption", "ocr", "vqa", "nlvr", "translate", "chat")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, got {text}")
    return int(text)


def not_negative(text: str) -> float:
    """A number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of at least 0 is wanted, got {text}")
    return number


def add_json(parser: argparse.ArgumentParser, told: str = "one JSON object at the end") -> None:
    """`--json`: what a script reads; nothing else then goes to stdout."""
    parser.add_argument("--json", action="store_true", help=told)


def add_out(parser: argparse.ArgumentParser, told: str, *, metavar: str = "FOLDER", required: bool = True) -> None:
    """`--out`: what the command writes."""
    parser.add_argument("--out", required=required, metavar=metavar, help=told)


def add_model(parser: argparse.ArgumentParser, told: str, *, required: bool = False) -> None:
    """`--model`: the model that does what the command does."""
    parser.add_argument("--model", required=required, metavar="MODEL", help=told)


def add_images(parser: argparse.ArgumentParser, told: str = "picture file, or folder of pictures") -> None:
    """The pictures that a command is about."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=told)


def add_split(parser: argparse.ArgumentParser, told: str = "such as train; default: all there are") -> None:
    """`--split`: a part of the data."""
    parser.add_argument("--split", help=f"split of the data, {told}")


def add_splits(parser: argparse.ArgumentParser) -> None:
    """`--split`, which may be given several times."""
    parser.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")


def add_batch_size(parser: argparse.ArgumentParser, of: str, default: int | None = 16) -> None:
    """`--batch-size`: how many at a time. Without a default it is None unless given."""
    told = f"{of} at a time, default 16" if default is not None else f"{of}, default 8"
    parser.add_argument("--batch-size", type=positive, default=default, metavar="N", help=told)


def add_num_beams(parser: argparse.ArgumentParser) -> None:
    """`--num-beams`: of the search."""
    parser.add_argument(
        "--num-beams", type=positive, metavar="N", help="beams in the search; 1 is greedy, default: the model's own"
    )


def add_max_new_tokens(parser: argparse.ArgumentParser, default: str = "the model's own") -> None:
    """`--max-new-tokens`: where an answer is cut."""
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help=f"longest answer in tokens, default: {default}"
    )


def add_temperature(parser: argparse.ArgumentParser, default: str = "the model's own way") -> None:
    """`--temperature`: of drawing words."""
    parser.add_argument(
        "--temperature",
        type=not_negative,
        metavar="T",
        help=f"draw words at random, more evenly above 1; 0: the likeliest; default: {default}",
    )


def add_max_rows(parser: argparse.ArgumentParser, told: str) -> None:
    """`--max-rows`: how many rows of the data."""
    parser.add_argument("--max-rows", type=positive, metavar="N", help=told)


def add_image_folder(parser: argparse.ArgumentParser, told: str = "where pictures with names lie") -> None:
    """`--image-folder`: where the pictures are that data only name."""
    parser.add_argument("--image-folder", metavar="FOLDER", help=told)


def add_prompt(parser: argparse.ArgumentParser, told: str) -> None:
    """`--prompt`: the format prompt of a task."""
    parser.add_argument(
        "--prompt", metavar="TEXT", help=f"preset of hf_vlm.data.tasks.format_prompts, or a text, {told}"
    )


def add_columns(parser: argparse.ArgumentParser) -> None:
    """`--columns`: what the columns of a task are called."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="of a task: columns called otherwise, as the recipe's",
    )


def columns_of(options: argparse.Namespace) -> dict[str, str]:
    """What `--columns` says, as a mapping.

    Raises:
        ValueError: if it is no pair.
    """
    for pair in options.columns:
        if "=" not in pair:
            raise ValueError(f"`--columns` wants NAME=COLUMN, such as question=sentence, got {pair!r}. Correct it.")
    return dict(pair.split("=", 1) for pair in options.columns)


def add_precision(parser: argparse.ArgumentParser, choices: Sequence[str], told: str) -> None:
    """`--precision`: of weights and computation."""
    parser.add_argument("--precision", choices=choices, default="float32", help=told)
