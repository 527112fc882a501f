"""A conversation by lines of a terminal or a file: questions, and commands that begin with `/`."""

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hf_vlm.pipelines.chat import ChatPicture, ChatSession, open_chat_picture

HELP = """\
A line is a question. Commands:
  /image PATH [PATH ...]   show pictures with the next question; files or URLs, names with blanks in quotes
  /undo                    take back the last question, its pictures and its answer
  /reset                   begin a new conversation
  /save FILE               write the conversation to a new file .json or .jsonl, from which a model can be trained
  /help                    this list
  /quit                    end, as Ctrl-D does. Ctrl-C stops an answer."""


@dataclass
class ChatReply:
    """What came of a line: an answer, or a command's notice, or an error.

    Attributes:
        question: the line; empty for a command or an error.
        images: sources of the pictures that were shown with it.
        pieces: the answer as it comes.
        notice: what a command has to say.
        error: what was wrong with the line.
    """

    question: str = ""
    images: list[str | None] = field(default_factory=list)
    pieces: Iterator[str] = field(default_factory=lambda: iter(()))
    notice: str | None = None
    error: str | None = None


def converse(session: ChatSession, lines: Iterable[str], pictures: Iterable[ChatPicture] = ()) -> Iterator[ChatReply]:
    """What comes of each line: questions are asked, commands (see `HELP`) obeyed, blank lines passed over.

    Args:
        lines: read one at a time, when the answer to the last has been taken.
        pictures: shown with the first question. Pictures wait until a question is answered.
    """
    waiting = list(pictures)
    for line in map(str.strip, lines):
        if line == "/quit":
            return
        if not line:
            continue
        num_before = session.num_exchanges
        try:
            if line.startswith("/"):
                reply = ChatReply(notice=_obey(session, line, waiting))
            else:
                reply = ChatReply(line, [picture.source for picture in waiting], session.ask(line, waiting))
        except (ValueError, OSError) as error:
            reply = ChatReply(error=str(error))
        yield reply
        if session.num_exchanges > num_before:
            waiting.clear()


def _obey(session: ChatSession, line: str, waiting: list[ChatPicture]) -> str:
    """Do what a command says; gives back what to tell."""
    name, *words = shlex.split(line, posix=os.name == "posix")  # elsewhere `\\` is a part of names
    arguments = [os.path.expanduser(word if os.name == "posix" else word.strip("\"'")) for word in words]
    if name == "/help":
        return HELP
    if name == "/image" and arguments:
        waiting += [open_chat_picture(argument) for argument in arguments]
        return f"{len(waiting)} picture{'' if len(waiting) == 1 else 's'} for the next question."
    if name == "/undo" and not arguments:
        session.undo()
        return f"Taken back. {session.num_exchanges} exchange{'' if session.num_exchanges == 1 else 's'} left."
    if name == "/reset" and not arguments:
        session.reset()
        waiting.clear()
        return "A new conversation."
    if name == "/save" and len(arguments) == 1:
        session.save(arguments[0])
        return f"Saved in {arguments[0]}."
    raise ValueError(
        f"A command such as `/image PATH`, `/undo`, `/reset` or `/save FILE` is wanted, got `{line}`. `/help` lists them."
    )
