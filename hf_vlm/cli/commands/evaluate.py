"""`hf-vlm evaluate`: a model on data with known answers."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import complain, write_result

_OF_TASKS = ("prompt", "columns", "image_folder", "metrics", "max_rows", "max_new_tokens", "record")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `evaluate`."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name, of any model of hf-vlm, or of an adapter")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="what the task's recipe reads; else lines with `image` and `text`, pictures with `label`, or conversations",
    )
    shared_options.add_split(parser, "such as validation")
    parser.add_argument(
        "--task",
        choices=shared_options.TASKS,
        help="what is measured; default: chat for a LLaVA, caption for a CNN + LSTM",
    )
    shared_options.add_columns(parser)
    shared_options.add_image_folder(parser, "of a task: where pictures with names lie")
    shared_options.add_prompt(parser, "as the recipe's `prompt`")
    parser.add_argument(
        "--pictures",
        choices=("own", "none", "other"),
        default="own",
        help="of a task: show each row's own, none (what the words alone give away), or those of another row",
    )
    parser.add_argument("--metrics", choices=("yes-no", "option"), help="of a task: for answers of that form")
    shared_options.add_max_rows(parser, "of a task: ask so many, spread evenly; default all")
    shared_options.add_max_new_tokens(parser)
    parser.add_argument("--record", metavar="FILE", help="of a task: JSON file for settings, hashes and every answer")
    parser.add_argument("--ignore-case", action="store_true", help="of lines: fold case before scoring")
    shared_options.add_num_beams(parser)
    shared_options.add_batch_size(parser, "pictures")
    shared_options.add_json(parser, "one JSON object a data set: predictions, versions, weights' hash")


def run(options: argparse.Namespace) -> int:
    """Measures; 1 if a row could not be."""
    from hf_vlm.training.scores.task_evaluation import architecture_of

    architecture = architecture_of(options.model)  # first: an adapter's folder has no config of its own
    task = options.task or {"llava": "chat", "cnn_lstm": "caption"}.get(architecture or "")
    failures: list[str] = []

    def tell(message: str) -> None:
        failures.append(message)
        complain(message)

    for name, result in _of_a_task(options, task, tell) if task is not None else _of_lines_or_pictures(options):
        write_result(options, result.to_dict() if options.json else {}, f"{name}: {result}")
    return int(bool(failures))


def _of_a_task(options: argparse.Namespace, task: str, on_failure: Callable[[str], None]) -> Iterable[tuple[str, Any]]:
    """The scores of each data set, one by one."""
    from hf_vlm.training.scores.task_evaluation import evaluate_task_folders

    if options.ignore_case:
        raise ValueError("`--ignore-case` is for lines; answers are compared without case. Leave it out.")
    generation = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    return evaluate_task_folders(
        options.model,
        options.data,
        task=task,
        split=options.split,
        batch_size=options.batch_size,
        prompt=options.prompt,
        columns=shared_options.columns_of(options),
        image_folder=options.image_folder,
        max_rows=options.max_rows,
        pictures=options.pictures,
        metrics=options.metrics,
        record=options.record,
        on_failure=on_failure,
        **{name: value for name, value in generation.items() if value is not None},
    )


def _of_lines_or_pictures(options: argparse.Namespace) -> Iterable[tuple[str, Any]]:
    """The scores of each data set, one by one."""
    from hf_vlm.training.scores.evaluation import evaluate_folders
    from hf_vlm.training.scores.image_evaluation import evaluate_image_folders, is_image_classifier
    from hf_vlm.training.scores.tokenizer_evaluation import evaluate_tokenizer_folders, is_tokenizer

    given = [f"--{name.replace('_', '-')}" for name in _OF_TASKS if getattr(options, name) not in (None, [])]
    given += ["--pictures"] * (options.pictures != "own")
    if given:
        raise ValueError(f"`{given[0]}` is for tasks, got it without one. Add `--task`, or leave it out.")
    settings = {"split": options.split, "batch_size": options.batch_size}
    of_lines = {"ignore_case": options.ignore_case, "num_beams": options.num_beams}
    if not (is_tokenizer(options.model) or is_image_classifier(options.model)):
        return evaluate_folders(options.model, options.data, **settings, **of_lines)
    if any(of_lines.values()):
        raise ValueError("`--ignore-case` and `--num-beams` are for lines, got a model of pictures. Leave them out.")
    evaluate = evaluate_tokenizer_folders if is_tokenizer(options.model) else evaluate_image_folders
    return evaluate(options.model, options.data, **settings)


COMMAND = Command(
    "evaluate",
    "measure a model on data with known answers",
    add_options,
    run,
    description="Measures a model on data with known answers: lines, a task, pictures with labels, or a visual tokenizer on "
    "pictures.",
    example="hf-vlm evaluate my-reader my_lines --split validation",
    rest="data",
)
