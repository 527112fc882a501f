"""The `hf-vlm` command: parse, call, print. The work is done in `hf_vlm.training`, `hf_vlm.pipelines` and `hf_vlm.sharing`.

Each command imports what it needs when it runs, so that `hf-vlm --help` answers at once.
"""

import argparse
import contextlib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_vlm.cli_options import command_line

_SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal

# What a stopped command leaves: one that writes a folder whole or not at all, and any other.
_LEFT = dict.fromkeys(
    ("merge", "export-transformers", "export-code", "export-onnx"), "Nothing was written: run it again from the start."
)
_STAYS = (
    "What was written stays; training, pages read into a folder, token caches, and data of a teacher go on from there."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns: 0 if all went well, 1 if something failed (told on stderr), 2 for a wrong command line, 130 if it was stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a file's name may be in another encoding than the terminal's
    parser = command_line()
    options, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # argparse leaves over what follows an option, as in `read a.png --json b.png`
    getattr(options, options.list_name).extend(rest)
    try:
        with _clearing_up() if options.command in _LEFT else contextlib.nullcontext():
            return _COMMANDS[options.command](options)
    except (ValueError, OSError, ImportError) as error:
        if options.traceback:
            raise
        print(f"hf-vlm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.traceback:
            raise
        print(f"hf-vlm: stopped. {_LEFT.get(options.command, _STAYS)}", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _clearing_up() -> Iterator[None]:
    """A SIGTERM, of `docker stop` or a batch system, stops as Ctrl-C does, so that what is half written goes."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the clearing up short
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
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
    from hf_vlm.data.conversations.conversations import holds_conversations

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
    from hf_vlm.data.lines.audit import audit_lines
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
    from hf_vlm.data.conversations.conversation_audit import audit_conversations

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


def _make_data(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from hf_vlm.data.instructions.instruction_checks import InstructionLimits
    from hf_vlm.data.instructions.teacher_prompts import TeacherPrompts
    from hf_vlm.data.instructions.teachers import KINDS
    from hf_vlm.data.instructions.visual_instructions import make_instructions

    if len(options.contexts) > 1:
        raise ValueError(f"`make-data` wants one file or folder, got {len(options.contexts)}. Give them one by one.")
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
            options.contexts[0],
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
            max_contexts=options.max_contexts,
            seed=options.seed,
            progress=tell,
        )
    if options.json:
        print(json.dumps({"out": options.out, **report.to_dict()}, ensure_ascii=False))
    else:
        print(f"{report}\nin {options.out}")
    if report.num_failed:
        print(f"hf-vlm: {report.num_failed} requests have no reply; the same command asks them again.", file=sys.stderr)
    return int(bool(report.num_failed) or not report.num_accepted)


def _teacher(options: argparse.Namespace) -> Any:
    """Whom `--teacher` names, with those of its options that were given."""
    name = options.teacher
    who = "rules" if name == "rules" else "endpoint" if name is not None and "://" in name else "model"
    sampling = {"max_new_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p"}
    served = {"model": "model", "concurrency": "concurrency", "timeout": "timeout_s", "price": "price_per_million"}
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


def _convert(options: argparse.Namespace) -> int:
    from hf_vlm.data.tasks.convert import convert

    if len(options.data) > 1:
        raise ValueError(f"`convert` wants one file or folder, got {len(options.data)}. Give them one by one.")
    report = convert(
        options.data[0],
        options.out,
        task=options.task,
        to=options.to,
        split=options.split,
        prompt=options.prompt,
        columns=_as_columns(options.columns),
        image_folder=options.image_folder,
        every_answer=options.every_answer,
        max_exchanges=options.max_exchanges,
    )
    print(json.dumps(report.to_dict(), ensure_ascii=False) if options.json else str(report))
    return int(bool(report.num_bad_rows))


def _extend_alphabet(options: argparse.Namespace) -> int:
    from hf_vlm.data.lines.character_tokenizer import read_texts
    from hf_vlm.data.lines.image_text import find_splits, read_lines
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

    merge_adapter(_only(options.adapter, "merge"), options.out, options.base)
    print(f"Merged model saved in {options.out}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from hf_vlm.training.reports.report_page import write_report
    from hf_vlm.training.reports.run_report import make_report

    run = _only(options.run, "show")
    report = make_report(run, options.samples)
    file = Path(options.out) if options.out is not None else Path(run) / "report.html"
    write_report(report, file)
    told = report.to_dict()
    if options.json:
        print(json.dumps({"file": str(file), **told}, ensure_ascii=False))
    else:
        print(f"{file}: {len(told['curves'])} charts, {told['num_shown']} answers of {told['num_answered']}")
    for problem in told["problems"]:
        print(f"hf-vlm: left out of the report: {problem}", file=sys.stderr)
    return 0


def _card(options: argparse.Namespace) -> int:
    from hf_vlm.sharing.cards.model_card import write_card

    file = write_card(
        _only(options.folder, "card"),
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        records=options.record,
        picture=options.picture,
        limits=options.limits,
        name=options.name,
        out=options.out,
    )
    print(json.dumps({"file": str(file)}) if options.json else f"Card written: {file}")
    return 0


def _export_transformers(options: argparse.Namespace) -> int:
    from hf_vlm.sharing.stock.export import export_transformers

    return _print_export(export_transformers(_only(options.folder, options.command), options.out), options)


def _export_code(options: argparse.Namespace) -> int:
    from hf_vlm.sharing.code_folder import card_asks_for_package, export_code, programs_of

    folder = export_code(_only(options.folder, options.command), options.out)
    programs = " and ".join(f"`{program}`" for program in programs_of(folder))
    if card_asks_for_package(folder):
        print(
            f"hf-vlm: {folder / 'README.md'} came along as it was, and still speaks of hf-vlm. Tell its readers of {programs}.",
            file=sys.stderr,
        )
    print(json.dumps({"out": str(folder)}) if options.json else f"{folder} loads without hf-vlm: {programs}.")
    return 0


def _export_onnx(options: argparse.Namespace) -> int:
    from hf_vlm.sharing.onnx.export import export_onnx

    folder = _only(options.folder, options.command)
    return _print_export(export_onnx(folder, options.out, precision="int8" if options.int8 else "float32"), options)


def _print_export(export: Any, options: argparse.Namespace) -> int:
    print(
        json.dumps({"out": options.out, **asdict(export)}, ensure_ascii=False, default=str) if options.json else export
    )
    return 0


def _only(values: Sequence[str], command: str) -> str:
    if len(values) > 1:
        raise ValueError(f"`{command}` wants one folder, got {len(values)}. Give them one by one.")
    return values[0]


def _as_training_data(paths: Sequence[str]) -> str:
    """The overrides of `hf-vlm train` that name the first of these folders or files."""
    path = Path(paths[0] if paths else "FOLDER")
    if not path.is_file():
        return f"data.folder={path}"
    return f"data.folder={path.parent} data.train='[{{path: {path.name}}}]' data.validation={{}}"


def _read(options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from hf_vlm.data.lines.page_files import LinesToCorrect
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


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "read": _read,
    "explain": _explain,
    "tokenize": _tokenize,
    "train": _train,
    "evaluate": _evaluate,
    "audit": _audit,
    "make-data": _make_data,
    "convert": _convert,
    "extend-alphabet": _extend_alphabet,
    "chat": _chat,
    "merge": _merge,
    "show": _show,
    "card": _card,
    "export-transformers": _export_transformers,
    "export-code": _export_code,
    "export-onnx": _export_onnx,
}


if __name__ == "__main__":
    sys.exit(main())
