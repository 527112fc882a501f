"""`hf-vlm chat`: questions about pictures, answered as the words come."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `chat`."""
    parser.add_argument(
        "model", metavar="MODEL", help="folder or Hub name of a model of pictures and text, or of an adapter to one"
    )
    parser.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGE",
        help="files or URLs of pictures to show with the first question",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="ask only this; without it lines are read, from a terminal (`/help` lists commands) or a pipe, one question each",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="system text, where the model's chat template has a place for it"
    )
    shared_options.add_max_new_tokens(parser)
    shared_options.add_temperature(parser)
    shared_options.add_json(parser, "one JSON object an answer, when it is whole")


def run(options: argparse.Namespace) -> int:
    """Answers; 1 if a question from a pipe, or the only one, got no answer."""
    from hf_vlm.pipelines.chat import ChatSession, open_chat_picture
    from hf_vlm.pipelines.chat_lines import ChatReply, converse

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
            complain(reply.error)
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
        except KeyboardInterrupt as stopped:
            if hasattr(stopped, "exit_code"):  # a SIGTERM, which is not typed
                raise
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
    is_typed_stop = type(error) is KeyboardInterrupt and can_stop
    if error is not None and not is_typed_stop:
        if answer and not options.json:
            print(flush=True)  # ends the line
        if options.traceback or isinstance(error, KeyboardInterrupt):
            raise error
        complain(error)
        return False
    if not options.json:
        print(flush=True)
    else:
        write_result(options, {"question": reply.question, "images": reply.images, "answer": answer}, "")
    if not answer:
        complain("no word came; the question is not part of the conversation.")
    return True


COMMAND = Command(
    "chat",
    "ask about pictures, in a conversation",
    add_options,
    run,
    description="Asks a model about pictures, in a conversation; the answers stream. Ctrl-C stops an answer, Ctrl-D ends.",
    example='hf-vlm chat runs/llava-chat --image photo.jpg --question "What is this?"',
    rest="image",
)
