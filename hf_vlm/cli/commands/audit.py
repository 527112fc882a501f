"""`hf-vlm audit`: can this be learnt from?"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `audit`."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="folder or file of lines with `image` and `text`, or of conversations: `messages` and `images`, LLaVA's JSON",
    )
    shared_options.add_splits(parser)
    shared_options.add_model(
        parser,
        "whose tokenizer must write the texts; by default for lines the model that comes with hf-vlm, and none for "
        "conversations, whose tokens are then not counted",
    )
    shared_options.add_image_folder(parser, "of conversations: where their pictures are, default: beside the file")
    parser.add_argument(
        "--max-length", type=shared_options.positive, metavar="N", help="of conversations: the most tokens, for --model"
    )
    parser.add_argument(
        "--num-proc",
        type=shared_options.positive,
        default=1,
        metavar="N",
        help="processes that open pictures and count tokens, default 1",
    )
    shared_options.add_json(parser, "one JSON object a data set, with every fault")


def run(options: argparse.Namespace) -> int:
    """Tells every fault; 1 if a data set can't be used as it is."""
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
        write_result(options, {"data": path, **audit.to_dict()}, f"{path}\n{audit}")
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
        num_proc=options.num_proc,
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
    return lambda path: audit_conversations(
        path,
        options.split,
        image_folder=options.image_folder,
        processor=processor,
        max_length=options.max_length,
        num_proc=options.num_proc,
    )


COMMAND = Command(
    "audit",
    "find faults in lines or conversations: file and row",
    add_options,
    run,
    description="Tells whether lines or conversations can be learnt from: broken pictures, empty labels, unknown characters, "
    "doubles, lengths; every fault with its file and row. The exit code is 1 if a data set can't be used as it "
    "is.",
    example="hf-vlm audit my_lines --split train",
    rest="data",
)
