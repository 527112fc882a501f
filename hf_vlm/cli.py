"""The `hf-vlm` command: parse, call, print. The work is done in `hf_vlm.training` and `hf_vlm.pipelines`.

Each command imports what it needs when it runs, so that `hf-vlm --help` answers at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if all went well, 1 if something failed (told on stderr), 2 for a wrong command line."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # argparse leaves over what follows an option, as in `read a.png --json b.png`
    getattr(options, options.list_name).extend(rest)
    try:
        return options.command(options)
    except (ValueError, OSError, ImportError) as error:
        if options.traceback:
            raise
        print(f"hf-vlm: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-vlm", description="Read, train and evaluate models of pictures and text.")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it came up")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    read = commands.add_parser("read", help="print the text in pictures of lines")
    read.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures")
    read.add_argument("--model", help="folder or Hub name; by default the model that comes with hf-vlm")
    read.add_argument("--json", action="store_true", help="one JSON object a picture, with score and word confidences")
    read.add_argument("--num-beams", type=_positive, help="beams in the search; 1 is greedy, default: the model's own")
    read.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    read.add_argument("--abstain-below", type=float, help="give no text where the score in [0, 1] is below this")
    read.set_defaults(command=_read, list_name="images")

    train = commands.add_parser("train", help="train by a recipe; an interrupted run goes on where it stopped")
    train.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.learning_rate=1e-4")
    train.add_argument("--dry-run", action="store_true", help="check all, show the first batch, memory, and stop")
    train.add_argument("--no-resume", action="store_true", help="start anew even if the output folder has checkpoints")
    train.set_defaults(command=_train, list_name="overrides")

    evaluate = commands.add_parser("evaluate", help="measure CER and WER on lines with known text")
    evaluate.add_argument("model", help="folder or Hub name")
    evaluate.add_argument("data", nargs="+", help="folder or file of lines with `image` and `text`")
    evaluate.add_argument("--split", help="split of the data, such as validation")
    evaluate.add_argument("--ignore-case", action="store_true", help="fold case before scoring")
    evaluate.add_argument("--num-beams", type=_positive, help="beams in the search; default: the model's own")
    evaluate.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    evaluate.add_argument("--json", action="store_true", help="one JSON object a data set, with every line read")
    evaluate.set_defaults(command=_evaluate, list_name="data")

    audit = commands.add_parser(
        "audit", help="tell whether lines can be learnt from: every fault with its file and row"
    )
    audit.add_argument("data", nargs="+", help="folder or file of lines with `image` and `text`")
    audit.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")
    audit.add_argument(
        "--model", help="whose tokenizer must write the texts; by default the model that comes with hf-vlm"
    )
    audit.add_argument("--json", action="store_true", help="one JSON object a data set, with every fault")
    audit.set_defaults(command=_audit, list_name="data")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is wanted, got {number}")
    return number


def _train(options: argparse.Namespace) -> int:
    from hf_vlm.training.recipe import TrOCRRecipe

    recipe = TrOCRRecipe.load(options.recipe, options.overrides)
    if options.dry_run:
        from hf_vlm.training.dry_run import dry_run

        print(dry_run(recipe))
        return 0
    from hf_vlm.training.trocr import train

    trainer = train(recipe, resume=not options.no_resume)
    print(f"Model saved in {trainer.args.output_dir}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from hf_vlm.training.evaluation import evaluate_folders

    for name, result in evaluate_folders(
        options.model,
        options.data,
        split=options.split,
        ignore_case=options.ignore_case,
        batch_size=options.batch_size,
        num_beams=options.num_beams,
    ):
        if options.json:
            print(json.dumps({"data": name, **result.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{name}: {result}", flush=True)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from hf_vlm.data.audit import audit_lines
    from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
    from hf_vlm.parts.shipped_models import default_ocr_model

    processor = TrOCREncoderDecoderProcessor.from_pretrained(options.model or default_ocr_model())
    usable = True
    for path in options.data:
        audit = audit_lines(
            path, options.split, tokenizer=processor.tokenizer, max_label_length=processor.max_label_length
        )
        usable &= audit.is_usable
        if options.json:
            print(json.dumps({"data": path, **audit.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{path}\n{audit}", flush=True)
    return int(not usable)


def _read(options: argparse.Namespace) -> int:
    from hf_vlm.pipelines.picture_files import read_files

    failed = False
    for result in read_files(
        options.images,
        model=options.model,
        batch_size=options.batch_size,
        num_beams=options.num_beams,
        abstain_below=options.abstain_below,
    ):
        if result.error is not None:
            failed = True
            print(f"hf-vlm: {result.error}", file=sys.stderr)
        elif options.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
        else:
            print(f"{result.file}\t{result.text}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
