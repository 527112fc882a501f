"""Open a picture from wherever it is, fully read, or say what is wrong with it."""

import base64
import binascii
import io
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_TIMEOUT_SECONDS = 30.0


def open_picture(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
    """The picture at `source`, its pixels read, its mode and EXIF orientation as stored (image processors see to both).

    Args:
        source: a file, an http(s) or data URL, the bytes of a picture file, or a picture (given back as it is).
        name: what to call the picture in errors; by default the path or URL itself.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if `source` is none of these.
        ValueError: if it is empty, cut short, not a picture, not fetched, or larger than Pillow's limit against
            decompression bombs. Every message begins with the picture's name.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = name or "<bytes>", bytes(source)
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        name = name or source
        data = _fetch(source, name)
    elif isinstance(source, str) and source.startswith("data:"):
        name = name or source[:40] + "..."
        data = _data_url_bytes(source, name)
    elif isinstance(source, str | Path):
        name, path = name or str(source), Path(source)
        if path.is_dir():
            raise ValueError(f"{name}: wanted a picture, got a folder. Give a file in it.")
        if not path.is_file():
            raise FileNotFoundError(f"{name}: wanted a picture, got no such file. Check the path.")
        data = path.read_bytes()
    else:
        raise TypeError(
            f"`source` must be a path, URL, bytes or PIL picture, got {type(source).__name__}. "
            "Turn an array into a picture with `PIL.Image.fromarray`."
        )
    if not data:
        raise ValueError(f"{name}: wanted a picture, got an empty file. Copy or download it again.")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; a picture that large is as unwanted here as a larger one.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
            picture.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: wanted at most {Image.MAX_IMAGE_PIXELS} pixels, got a larger picture ({error}). "
            "Scale it down, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
        ) from error
    except UnidentifiedImageError as error:
        start = data[:16]
        raise ValueError(
            f"{name}: wanted a picture in a format that Pillow reads, got data that begins {start!r}. "
            "Save it as PNG, JPEG, TIFF or WebP; if it is one, copy or download it again."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise all of these
        raise ValueError(
            f"{name}: wanted a whole picture, got one that is cut short or damaged ({error}). "
            "Copy or download it again."
        ) from error
    return picture


def _fetch(url: str, name: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "hf-vlm"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            return response.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ValueError(f"{name}: wanted a picture, got no answer ({error}). Check the address.") from error


def _data_url_bytes(url: str, name: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        if head.endswith(";base64"):
            return base64.b64decode(urllib.parse.unquote(body), validate=True)
        return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{name}: wanted `data:image/...;base64,...`, got a data URL that can't be read ({error}). Encode it again."
        ) from error
