"""`hf-vlm extend-alphabet`: characters that a model can't write yet."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import NOTHING_WRITTEN, Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `extend-alphabet`."""
    parser.add_argument("data", nargs="*", metavar="DATA", help="folder or file of lines with `image` and `text`")
    shared_options.add_splits(parser)
    parser.add_argument("--texts", metavar="FILE", help="UTF-8 file of texts, besides or instead of DATA")
    parser.add_argument("--characters", default="", help="characters by themselves, such as ąćęł")
    shared_options.add_model(parser, "folder or Hub name; by default the model that comes with hf-vlm")
    shared_options.add_out(parser, "where to save the extended model")
    shared_options.add_json(parser, "one JSON object, with every character")


def run(options: argparse.Namespace) -> int:
    """Extends; 1 if nothing could be added and something is missing."""
    from hf_vlm.data.lines.character_tokenizer import read_texts
    from hf_vlm.data.lines.image_text import find_splits, read_lines
    from hf_vlm.models.trocr.alphabet import extend_folder
    from hf_vlm.parts.shipped_models import default_ocr_model

    texts = read_texts(options.texts) if options.texts else []
    for path in options.data:
        for split in options.split or find_splits(path):
            texts += read_lines(path, split, on_bad_row=complain).texts
    report = extend_folder(options.model or default_ocr_model(), options.out, options.characters, texts)
    is_saved = bool(report.of("added"))
    told = (
        f"Saved in {options.out}. The new characters have to be learnt, from lines that have them:\n"
        f"  hf-vlm train trocr-finetune-lines model.pretrained={options.out} {_as_training_data(options.data)}"
        if is_saved
        else "No character is new: nothing saved."
    )
    write_result(options, {"out": options.out if is_saved else None, **report.to_dict()}, f"{report}\n{told}")
    if not report.is_complete:
        complain("some characters can't be written: the table tells which, and why.")
    return int(not (is_saved or report.is_complete))


def _as_training_data(paths: Sequence[str]) -> str:
    """The overrides of `hf-vlm train` that name the first of these folders or files."""
    path = Path(paths[0] if paths else "FOLDER")
    if not path.is_file():
        return f"data.folder={path}"
    return f"data.folder={path.parent} data.train='[{{path: {path.name}}}]' data.validation={{}}"


COMMAND = Command(
    "extend-alphabet",
    "add the characters of your texts that a model lacks",
    add_options,
    run,
    description="Gives a model the characters of your texts that it can't write yet; they begin as their likest known ones, "
    "and are learnt by training on lines that have them.",
    example="hf-vlm extend-alphabet my_lines --out my-start",
    rest="data",
    if_stopped=NOTHING_WRITTEN,
)
