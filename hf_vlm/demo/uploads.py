"""An uploaded file -> an upright picture in mode RGB, or what is wrong with it in words for the page."""

from pathlib import Path

from PIL import Image

from hf_vlm.parts.pictures import to_rgb
from hf_vlm.pipelines.picture_files import open_picture_file


def uploaded_picture(path: str | None) -> Image.Image:
    """The picture in a file: upright, opaque, in mode RGB, whatever format and mode it has.

    Args:
        path: where the page put it; None if nothing was uploaded.

    Raises:
        ValueError: if there is none, or it can't be read; the message has the file's own name, not where the page put it.
    """
    if not path:
        raise ValueError("A picture is wanted, got none. Upload one first.")
    file = Path(path)
    try:
        return to_rgb(open_picture_file(file))
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error
