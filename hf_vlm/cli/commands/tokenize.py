"""`hf-vlm tokenize`: pictures to codes, and back."""

import argparse
from collections.abc import Iterable

from hf_vlm.cli import shared_options
from hf_vlm.cli.command import GOES_ON, Command
from hf_vlm.cli.output import complain, write_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `tokenize`."""
    shared_options.add_images(parser, "picture file, or folder of pictures; with --decode one token cache")
    shared_options.add_model(parser, "folder or Hub name of a VQ-VAE or discrete VAE", required=True)
    shared_options.add_out(
        parser,
        "the token cache, pictures in it being passed over; with --decode a new folder for one PNG a picture",
    )
    parser.add_argument("--decode", action="store_true", help="make pictures of the codes in a token cache")
    shared_options.add_batch_size(parser, "pictures")
    shared_options.add_json(parser, "one JSON object a picture")


def run(options: argparse.Namespace) -> int:
    """Makes codes, or pictures of them; 1 if a picture could not be read."""
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
            complain(result.error)
        else:
            write_result(options, result.to_dict(), result)
    return int(failed)


COMMAND = Command(
    "tokenize",
    "turn pictures into codes, and codes into pictures",
    add_options,
    run,
    description="Makes codes of pictures with a visual tokenizer, in a token cache; and pictures of codes.",
    example="hf-vlm tokenize pictures --model runs/vqvae-tokenizer --out codes",
    rest="images",
    if_stopped=GOES_ON,
)
