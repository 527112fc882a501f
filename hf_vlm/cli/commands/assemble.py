"""`hf-vlm assemble`: pretrained parts become a model to train."""

import argparse
from pathlib import Path

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `assemble`."""
    parser.add_argument(
        "architecture",
        choices=("trocr", "llava", "cnn_lstm"),
        metavar="ARCHITECTURE",
        help="trocr (reads, captions, answers), llava (chats), cnn_lstm (captions)",
    )
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="of its config, such as num_beams=4"
    )
    parser.add_argument("--vision", required=True, metavar="MODEL", help="folder or Hub name of a vision encoder")
    parser.add_argument(
        "--text", required=True, metavar="MODEL", help="folder or Hub name of a text model; for cnn_lstm a tokenizer"
    )
    shared_options.add_out(parser, "new folder for model and processor")
    parser.add_argument(
        "--chat-template", metavar="NAME", help="of llava: vicuna_v1, llava_v1, plain, ..., or a file of Jinja"
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        type=shared_options.positive,
        metavar="PIXELS",
        help="height and width of pictures, or one number for both; default: the vision encoder's own",
    )
    shared_options.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Assembles."""
    from hf_vlm.sharing.assemble import assemble
    from hf_vlm.training.recipe_files import read_overrides

    if options.image_size is not None and len(options.image_size) > 2:
        raise ValueError(
            f"`--image-size` wants height and width in pixels, got {len(options.image_size)} numbers. Give one or two."
        )
    sizes, template = options.image_size, options.chat_template
    if template is not None and Path(template).is_file():
        template = Path(template).read_text(encoding="utf-8")
    assembled = assemble(
        options.architecture,
        options.vision,
        options.text,
        options.out,
        chat_template=template,
        image_size=None if sizes is None else sizes[0] if len(sizes) == 1 else tuple(sizes),
        settings=read_overrides(options.settings),
    )
    write_result(options, assembled.to_dict(), assembled)
    return 0


COMMAND = Command(
    "assemble",
    "make one model of a vision and a text model",
    add_options,
    run,
    description="Joins pretrained parts to one model, in a new folder with its processor and an account of every weight. What "
    "can't work is refused before weights load. It tells the command that trains "
    "the model then.",
    example="hf-vlm assemble trocr --vision facebook/dinov2-small --text FacebookAI/roberta-base --out my-start",
    rest="settings",
    if_stopped=NOTHING_WRITTEN,
)
