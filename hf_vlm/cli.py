"""The `hf-vlm` command: parse, call, print. The work is done in `hf_vlm.training` and `hf_vlm.pipelines`.

Each command imports what it needs when it runs, so that `hf-vlm --help` answers at once.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns: 0 if all went well, 1 if something failed (told on stderr), 2 for a wrong command line, 130 if it was stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a file's name may be in another encoding than the terminal's
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
    except KeyboardInterrupt:
        if options.traceback:
            raise
        print(
            "hf-vlm: stopped. What was written stays; training, pages read into a folder, and token caches go on from there.",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-vlm", description="Read, train and evaluate models of pictures and text.")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it came up")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    read = commands.add_parser("read", help="print the text in pictures of lines, or of whole pages")
    read.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures")
    read.add_argument(
        "--page", action="store_true", help="the pictures are whole pages, upright and of one column: find their lines"
    )
    read.add_argument("--model", help="folder or Hub name; by default the model that comes with hf-vlm")
    read.add_argument(
        "--format",
        choices=("text", "json", "page", "alto"),
        default="text",
        help="default text; page (PAGE XML) and alto are files of whole pages, for --page and --out",
    )
    read.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        help="--format json: one object a picture, with scores, word confidences and, of pages, places",
    )
    read.add_argument(
        "--out",
        help="folder for one file a page, those that are there being left alone; with --below a new CSV file",
    )
    read.add_argument(
        "--below",
        type=float,
        help="list lines whose score in [0, 1] is below this in --out, beside their pictures, to correct and train on",
    )
    read.add_argument("--num-beams", type=_positive, help="beams in the search; 1 is greedy, default: the model's own")
    read.add_argument("--batch-size", type=_positive, default=16, help="lines at a time, default 16")
    read.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of the computation, default float32; int8 is for CPUs: quicker, and reads nearly the same",
    )
    read.add_argument("--abstain-below", type=float, help="give no text where the score in [0, 1] is below this")
    read.set_defaults(command=_read, list_name="images")

    explain = commands.add_parser("explain", help="draw what a vision transformer looks at in pictures")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures")
    explain.add_argument(
        "--model",
        help="folder or Hub name: vision model, image classifier, or a model that has one; default as for read",
    )
    explain.add_argument("--out", default=".", metavar="FOLDER", help="where to write the sheets, default here")
    explain.add_argument("--json", action="store_true", help="one JSON object a picture, with its attention rollout")
    explain.set_defaults(command=_explain, list_name="images")

    tokenize = commands.add_parser(
        "tokenize", help="make codes of pictures with a visual tokenizer, in a token cache; and pictures of codes"
    )
    tokenize.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures; with --decode one token cache"
    )
    tokenize.add_argument("--model", required=True, help="folder or Hub name of a VQ-VAE or discrete VAE")
    tokenize.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="the token cache, pictures in it being passed over; with --decode a new folder for one PNG a picture",
    )
    tokenize.add_argument("--decode", action="store_true", help="make pictures of the codes in a token cache")
    tokenize.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    tokenize.add_argument("--json", action="store_true", help="one JSON object a picture")
    tokenize.set_defaults(command=_tokenize, list_name="images")

    train = commands.add_parser("train", help="train by a recipe; an interrupted run goes on where it stopped")
    train.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.learning_rate=1e-4")
    train.add_argument("--dry-run", action="store_true", help="check all, show the first batch, memory, and stop")
    train.add_argument("--no-resume", action="store_true", help="start anew even if the output folder has checkpoints")
    train.set_defaults(command=_train, list_name="overrides")

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on data with known answers: a task, lines, pictures with labels, a tokenizer on pictures",
    )
    evaluate.add_argument("model", help="folder or Hub name, of any model of hf-vlm, or of an adapter")
    evaluate.add_argument(
        "data",
        nargs="+",
        help="what the task's recipe reads; else lines with `image` and `text`, pictures with `label`, or conversations",
    )
    evaluate.add_argument("--split", help="split of the data, such as validation")
    evaluate.add_argument(
        "--task",
        choices=("caption", "ocr", "vqa", "nlvr", "translate", "chat"),
        help="what is measured; default: chat for a LLaVA, caption for a CNN + LSTM",
    )
    evaluate.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="of a task: columns called otherwise, as the recipe's",
    )
    evaluate.add_argument("--image-folder", metavar="FOLDER", help="of a task: where pictures with names lie")
    evaluate.add_argument("--prompt", help="preset of hf_vlm.data.format_prompts, or a text, as the recipe's `prompt`")
    evaluate.add_argument(
        "--pictures",
        choices=("own", "none", "other"),
        default="own",
        help="of a task: show each row's own, none (what the words alone give away), or those of another row",
    )
    evaluate.add_argument("--metrics", choices=("yes-no", "option"), help="of a task: for answers of that form")
    evaluate.add_argument("--max-rows", type=_positive, help="of a task: ask so many, spread evenly; default all")
    evaluate.add_argument("--max-new-tokens", type=_positive, help="longest answer; default: the model's own")
    evaluate.add_argument("--record", metavar="FILE", help="of a task: JSON file for settings, hashes and every answer")
    evaluate.add_argument("--ignore-case", action="store_true", help="of lines: fold case before scoring")
    evaluate.add_argument("--num-beams", type=_positive, help="beams in the search; default: the model's own")
    evaluate.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    evaluate.add_argument("--json", action="store_true", help="one JSON object a data set, with every prediction")
    evaluate.set_defaults(command=_evaluate, list_name="data")

    audit = commands.add_parser(
        "audit", help="tell whether lines or conversations can be learnt from: every fault with its file and row"
    )
    audit.add_argument(
        "data",
        nargs="+",
        help="folder or file of lines with `image` and `text`, or of conversations: `messages` and `images`, LLaVA's JSON",
    )
    audit.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")
    audit.add_argument(
        "--model",
        help="whose tokenizer must write the texts; by default for lines the model that comes with hf-vlm, and none for "
        "conversations, whose tokens are then not counted",
    )
    audit.add_argument(
        "--image-folder", metavar="FOLDER", help="of conversations: where their pictures are, default: beside the file"
    )
    audit.add_argument("--max-length", type=_positive, help="of conversations: the most tokens, for --model")
    audit.add_argument("--json", action="store_true", help="one JSON object a data set, with every fault")
    audit.set_defaults(command=_audit, list_name="data")

    extend = commands.add_parser(
        "extend-alphabet", help="give a model the characters of your texts that it cannot write yet, to be learnt"
    )
    extend.add_argument("data", nargs="*", metavar="DATA", help="folder or file of lines with `image` and `text`")
    extend.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")
    extend.add_argument("--texts", metavar="FILE", help="UTF-8 file of texts, besides or instead of DATA")
    extend.add_argument("--characters", default="", help="characters by themselves, such as ąćęł")
    extend.add_argument("--model", help="folder or Hub name; by default the model that comes with hf-vlm")
    extend.add_argument("--out", required=True, metavar="FOLDER", help="where to save the extended model")
    extend.add_argument("--json", action="store_true", help="one JSON object, with every character")
    extend.set_defaults(command=_extend_alphabet, list_name="data")

    chat = commands.add_parser("chat", help="ask a model about pictures, in a conversation; answers stream")
    chat.add_argument("model", help="folder or Hub name of a model of pictures and text, or of an adapter to one")
    chat.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="files or URLs of pictures to show with the first question",
    )
    chat.add_argument(
        "--question",
        metavar="TEXT",
        help="ask only this; without it lines are read, from a terminal (`/help` lists commands) or a pipe, one question each",
    )
    chat.add_argument(
        "--system", metavar="TEXT", help="system text, where the model's chat template has a place for it"
    )
    chat.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest answer in tokens")
    chat.add_argument(
        "--temperature",
        type=_not_negative,
        metavar="T",
        help="draw words at random, more evenly above 1; 0: the likeliest",
    )
    chat.add_argument("--json", action="store_true", help="one JSON object an answer, when it is whole")
    chat.set_defaults(command=_chat, list_name="image")

    merge = commands.add_parser(
        "merge", help="add a LoRA adapter to its base's weights: one whole model, with processor"
    )
    merge.add_argument("adapter", nargs=1, metavar="ADAPTER", help="folder or Hub name of the adapter")
    merge.add_argument("--out", required=True, metavar="FOLDER", help="where to save the merged model")
    merge.add_argument("--base", help="folder or Hub name of the base; by default the one that the adapter names")
    merge.set_defaults(command=_merge, list_name="adapter")

    show = commands.add_parser(
        "show", help="write a page about a training run: curves, answers, errors, attention, what is learnt"
    )
    show.add_argument("run", nargs=1, metavar="RUN", help="folder of the run, its recipe's `training.output_dir`")
    show.add_argument("--out", metavar="FILE", help="HTML file to write, default RUN/report.html")
    show.add_argument("--samples", type=_positive, default=12, metavar="N", help="answers to show, default 12")
    show.add_argument("--json", action="store_true", help="one JSON object: the file, and what is in it in numbers")
    show.set_defaults(command=_show, list_name="run")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is wanted, got {number}")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of at least 0 is wanted, got {text}")
    return number


def _train(options: argparse.Namespace) -> int:
    from hf_vlm.training.tasks import load_recipe, train

    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        from hf_vlm.training.dry_run import dry_run

        print(dry_run(recipe))
        return 0
    trainer = train(recipe, resume=not options.no_resume)
    print(f"Model saved in {trainer.args.output_dir}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from hf_vlm.training.evaluation import evaluate_folders
    from hf_vlm.training.image_evaluation import evaluate_image_folders, is_image_classifier
    from hf_vlm.training.task_evaluation import architecture_of, evaluate_task_folders
    from hf_vlm.training.tokenizer_evaluation import evaluate_tokenizer_folders, is_tokenizer

    architecture = architecture_of(options.model)  # first: an adapter's folder has no config of its own
    task = options.task or {"llava": "chat", "cnn_lstm": "caption"}.get(architecture or "")
    settings = {"split": options.split, "batch_size": options.batch_size}
    of_lines = {"ignore_case": options.ignore_case, "num_beams": options.num_beams}
    failures: list[str] = []
    results: Iterable[tuple[str, Any]]
    if task is not None:
        if options.ignore_case:
            raise ValueError("`--ignore-case` is for lines; answers are compared without case. Leave it out.")
        generation = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}

        def tell(message: str) -> None:
            failures.append(message)
            print(f"hf-vlm: {message}", file=sys.stderr)

        results = evaluate_task_folders(
            options.model,
            options.data,
            task=task,
            prompt=options.prompt,
            columns=_as_columns(options.columns),
            image_folder=options.image_folder,
            max_rows=options.max_rows,
            pictures=options.pictures,
            metrics=options.metrics,
            record=options.record,
            on_failure=tell,
            **settings,
            **{name: value for name, value in generation.items() if value is not None},
        )
    elif given := [
        f"--{name.replace('_', '-')}"
        for name in ("prompt", "columns", "image_folder", "metrics", "max_rows", "max_new_tokens", "record")
        if getattr(options, name) not in (None, [])
    ] + ["--pictures"] * (options.pictures != "own"):
        raise ValueError(f"`{given[0]}` is for tasks, got it without one. Add `--task`, or leave it out.")
    elif is_tokenizer(options.model) or is_image_classifier(options.model):
        if any(of_lines.values()):
            raise ValueError(
                "`--ignore-case` and `--num-beams` are for lines, got a model of pictures. Leave them out."
            )
        evaluate = evaluate_tokenizer_folders if is_tokenizer(options.model) else evaluate_image_folders
        results = evaluate(options.model, options.data, **settings)
    else:
        results = evaluate_folders(options.model, options.data, **settings, **of_lines)
    for name, result in results:
        if options.json:
            print(json.dumps({"data": name, **result.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{name}: {result}", flush=True)
    return int(bool(failures))


def _as_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=COLUMN` as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"`--columns` wants NAME=COLUMN, such as question=sentence, got {pair!r}. Correct it.")
    return dict(pair.split("=", 1) for pair in pairs)


def _audit(options: argparse.Namespace) -> int:
    from hf_vlm.data.conversations import holds_conversations

    holds = {path: holds_conversations(path) for path in options.data}
    if options.image_folder is not None or options.max_length is not None:
        if not any(holds.values()) and all(Path(path).exists() for path in options.data):
            raise ValueError(
                f"`--image-folder` and `--max-length` are for conversations, got {', '.join(options.data)} without `messages` "
                "or `conversations`. Leave them out."
            )
    audit_of = {kind: (_conversation_audit if kind else _line_audit)(options) for kind in set(holds.values())}
    usable = True
    for path in options.data:
        audit = audit_of[holds[path]](path)
        usable &= audit.is_usable
        if options.json:
            print(json.dumps({"data": path, **audit.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{path}\n{audit}", flush=True)
    return int(not usable)


def _line_audit(options: argparse.Namespace) -> Callable[[str], Any]:
    """What audits lines as the options say."""
    from hf_vlm.data.audit import audit_lines
    from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
    from hf_vlm.parts.pictures import to_grayscale
    from hf_vlm.parts.shipped_models import default_ocr_model

    processor = TrOCREncoderDecoderProcessor.from_pretrained(options.model or default_ocr_model())
    return lambda path: audit_lines(
        path,
        options.split,
        tokenizer=processor.tokenizer,
        max_label_length=processor.max_label_length,
        prepare=to_grayscale,
    )


def _conversation_audit(options: argparse.Namespace) -> Callable[[str], Any]:
    """What audits conversations as the options say."""
    from hf_vlm.data.conversation_audit import audit_conversations

    if options.max_length is not None and options.model is None:
        raise ValueError("`--max-length` wants `--model FOLDER` to count tokens with, got none. Add it.")
    processor = None
    if options.model is not None:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(options.model)
        if not hasattr(processor, "encode_conversation"):
            raise ValueError(
                f"`--model` must be of a LLaVA for conversations, got {options.model}, whose processor is a "
                f"{type(processor).__name__}. Name another, or leave it out."
            )
    settings = {"image_folder": options.image_folder, "processor": processor, "max_length": options.max_length}
    return lambda path: audit_conversations(path, options.split, **settings)


def _extend_alphabet(options: argparse.Namespace) -> int:
    from hf_vlm.data.character_tokenizer import read_texts
    from hf_vlm.data.image_text import find_splits, read_lines
    from hf_vlm.models.trocr.alphabet import extend_folder
    from hf_vlm.parts.shipped_models import default_ocr_model

    texts = read_texts(options.texts) if options.texts else []
    for path in options.data:
        for split in options.split or find_splits(path):
            texts += read_lines(path, split, on_bad_row=lambda error: print(f"hf-vlm: {error}", file=sys.stderr)).texts
    report = extend_folder(options.model or default_ocr_model(), options.out, options.characters, texts)
    is_saved = bool(report.of("added"))
    if options.json:
        print(json.dumps({"out": options.out if is_saved else None, **report.to_dict()}, ensure_ascii=False))
    else:
        print(report)
        print(
            f"Saved in {options.out}. The new characters have to be learnt, from lines that have them:\n"
            f"  hf-vlm train trocr-finetune-lines model.pretrained={options.out} {_as_training_data(options.data)}"
            if is_saved
            else "No character is new: nothing saved."
        )
    if not report.is_complete:
        print("hf-vlm: some characters can't be written: the table tells which, and why.", file=sys.stderr)
    return int(not (is_saved or report.is_complete))


def _chat(options: argparse.Namespace) -> int:
    from hf_vlm.pipelines.chat import ChatReply, ChatSession, converse, open_chat_picture

    settings: dict[str, Any] = {}
    if options.max_new_tokens is not None:
        settings["max_new_tokens"] = options.max_new_tokens
    if options.temperature is not None:
        settings["do_sample"] = options.temperature > 0
        if options.temperature > 0:
            settings["temperature"] = options.temperature
    pictures = [open_chat_picture(path) for path in options.image]  # what is wrong with them is told at once
    session = ChatSession.from_pretrained(options.model, system=options.system, **settings)
    if options.question is not None:
        sources = [picture.source for picture in pictures]
        return int(
            not _print_answer(ChatReply(options.question, sources, session.ask(options.question, pictures)), options)
        )
    is_typed = sys.stdin.isatty()
    if is_typed:
        print("Ask. /help lists commands, Ctrl-C stops an answer, /quit or Ctrl-D ends.", file=sys.stderr)
    all_went_well = True
    for reply in converse(session, _typed_lines() if is_typed else sys.stdin, pictures):
        if reply.error is not None:
            all_went_well = False
            print(f"hf-vlm: {reply.error}", file=sys.stderr)
        elif reply.notice is not None:
            print(reply.notice, file=sys.stderr)
        else:
            all_went_well &= _print_answer(reply, options, can_stop=is_typed)
    return int(not (all_went_well or is_typed))


def _typed_lines() -> Iterator[str]:
    """Lines of a terminal, as they are typed, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` editing and history, where the system has it)
    while True:
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends the chat.", file=sys.stderr)


def _print_answer(reply: Any, options: argparse.Namespace, can_stop: bool = False) -> bool:
    """Prints an answer as it comes, or as JSON; tells whether it came.

    Args:
        reply: a `ChatReply` with a question.
        can_stop: whether Ctrl-C ends the answer, and not the command.
    """
    answer = ""
    error: BaseException | None = None
    try:
        with contextlib.closing(reply.pieces) as pieces:
            for piece in pieces:
                answer += piece
                if not options.json:
                    print(piece, end="", flush=True)
    except (KeyboardInterrupt, ValueError, OSError, RuntimeError) as raised:
        error = raised
    if error is not None and not (can_stop and isinstance(error, KeyboardInterrupt)):
        if answer and not options.json:
            print(flush=True)  # ends the line
        if options.traceback or isinstance(error, KeyboardInterrupt):
            raise error
        print(f"hf-vlm: {error}", file=sys.stderr)
        return False
    if options.json:
        print(
            json.dumps({"question": reply.question, "images": reply.images, "answer": answer}, ensure_ascii=False),
            flush=True,
        )
    else:
        print(flush=True)
    if not answer:
        print("hf-vlm: no word came; the question is not part of the conversation.", file=sys.stderr)
    return True


def _merge(options: argparse.Namespace) -> int:
    from hf_vlm.training.lora import merge_adapter

    if len(options.adapter) > 1:
        raise ValueError(f"`merge` wants one adapter, got {len(options.adapter)}. Merge them one by one.")
    merge_adapter(options.adapter[0], options.out, options.base)
    print(f"Merged model saved in {options.out}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from hf_vlm.training.reports.report_page import write_report
    from hf_vlm.training.reports.run_report import make_report

    if len(options.run) > 1:
        raise ValueError(f"`show` wants one run, got {len(options.run)}. Show them one by one.")
    report = make_report(options.run[0], options.samples)
    file = Path(options.out) if options.out is not None else Path(options.run[0]) / "report.html"
    write_report(report, file)
    told = report.to_dict()
    if options.json:
        print(json.dumps({"file": str(file), **told}, ensure_ascii=False))
    else:
        print(f"{file}: {len(told['curves'])} charts, {told['num_shown']} answers of {told['num_answered']}")
    for problem in told["problems"]:
        print(f"hf-vlm: left out of the report: {problem}", file=sys.stderr)
    return 0


def _as_training_data(paths: Sequence[str]) -> str:
    """The overrides of `hf-vlm train` that name the first of these folders or files."""
    path = Path(paths[0] if paths else "FOLDER")
    if not path.is_file():
        return f"data.folder={path}"
    return f"data.folder={path.parent} data.train='[{{path: {path.name}}}]' data.validation={{}}"


def _read(options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from hf_vlm.data.page_files import LinesToCorrect
    from hf_vlm.pipelines.page_reading import ReadPage, read_page_files
    from hf_vlm.pipelines.picture_files import ReadFile, read_files

    _check_read(options)
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
    with settings["to_correct"] or nullcontext() as to_correct:
        results: Iterable[ReadFile | ReadPage] = (
            read_page_files(options.images, out=out, kind=options.format, **settings)
            if options.page
            else read_files(options.images, **settings)
        )
        for result in results:
            if result.error is not None:
                failed = True
                print(f"hf-vlm: {result.error}", file=sys.stderr)
            elif options.format == "json" and out is None:
                print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
            else:
                print(result, flush=True)
    if to_correct:
        print(f"{to_correct.num_lines} lines to correct in {to_correct.file}", file=sys.stderr)
    return int(failed)


def _check_read(options: argparse.Namespace) -> None:
    """Raises ValueError if options of `read` do not go together."""
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


def _explain(options: argparse.Namespace) -> int:
    from hf_vlm.pipelines.attention_sheets import explain_files

    failed = False
    for result in explain_files(options.images, model=options.model, out=options.out):
        if result.error is not None:
            failed = True
            print(f"hf-vlm: {result.error}", file=sys.stderr)
        elif options.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
        elif str(result):
            print(result, flush=True)
    return int(failed)


def _tokenize(options: argparse.Namespace) -> int:
    from hf_vlm.pipelines.token_files import TokenizedFile, tokenize_files
    from hf_vlm.pipelines.token_pictures import DecodedFile, decode_files

    settings = {"model": options.model, "out": options.out, "batch_size": options.batch_size}
    if options.decode and len(options.images) > 1:
        raise ValueError(f"`--decode` wants one token cache, got {len(options.images)}. Give them one by one.")
    results: Iterable[DecodedFile | TokenizedFile] = (
        decode_files(options.images[0], **settings) if options.decode else tokenize_files(options.images, **settings)
    )
    failed = False
    for result in results:
        if isinstance(result, TokenizedFile) and result.error is not None:
            failed = True
            print(f"hf-vlm: {result.error}", file=sys.stderr)
        elif options.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
        else:
            print(result, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
