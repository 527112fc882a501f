"""Whether bytes are a whole picture, told as cheaply as their format allows.

A page of HTML that is called .jpg and a download that was cut short are found before they are stored. PNG is read chunk by chunk
with its checksums; JPEG, GIF and WebP say where they end; what has no such sign, or lacks it, is decoded once.
"""

import io
import warnings

from PIL import Image

from hf_vlm.data.conversations.conversation_files import ConversationError, cut

_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # what Pillow raises


def check_picture(data: bytes, name: str | None = None) -> None:
    """That data is a whole picture.

    Args:
        data: of a picture file.
        name: what to call it in the error.

    Raises:
        ConversationError: of the kind `unreadable pictures`, if it is empty, no picture, cut short or damaged.
    """
    picture = open_head(data, name)
    if _is_surely_whole(picture, data):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data)).load()
    except _DAMAGE as error:
        raise ConversationError(
            f"wanted a whole picture, got {_called(data, name)} and is cut short or damaged ({error}). Copy or download it "
            "again, or remove the row.",
            "unreadable pictures",
        ) from error


def open_head(data: bytes, name: str | None = None) -> Image.Image:
    """The picture with its format and size, its pixels unread, so damage further on is not met; raises as `check_picture`."""
    if not data:
        raise ConversationError(
            f"wanted a picture, got an empty file {cut(name or '', 255)}. Copy or download it again.",
            "unreadable pictures",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data))
    except _DAMAGE as error:
        raise ConversationError(
            f"wanted a picture, got {_called(data, name)}. Copy or download it again, or remove the row.",
            "unreadable pictures",
        ) from error


def _is_surely_whole(picture: Image.Image, data: bytes) -> bool:
    """Whether the end of the file is there, by the marks of its format; False where they can't tell."""
    kind = picture.format
    if kind == "PNG":
        try:
            picture.verify()
        except _DAMAGE:
            return False
        return True
    if kind in ("JPEG", "MPO"):
        return data.find(b"\xff\xd9", _start_of_scan(data)) > 0  # the end of a picture within, as in EXIF, comes before
    if kind == "GIF":
        return data.endswith(b"\0;")
    if kind == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _start_of_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin, behind all of its tables and notes; its end where they don't begin."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # a byte to fill
            place += 1
        elif data[place + 1] == 0xDA:
            return place
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _called(data: bytes, name: str | None) -> str:
    return f"{cut(name, 255)}, which begins {data[:16]!r}" if name else f"data that begins {data[:16]!r}"
