"""A tokenizer of one token a character, for line readers that learn to spell rather than to guess words.

`text -> NFC -> one id a character`: a line of 40 characters is 40 tokens whatever the language, spaces and capitals are
kept as written, and 200 rows of embedding suffice for all of Western Europe. The price is more decoding steps a line.
"""

import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Printable ASCII, the letters of Western European languages, and what their printers and tills set beside them.
LATIN_ALPHABET = (
    " " + string.digits + string.ascii_letters + string.punctuation
    + "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿŒœŠšŽžŸſ"
    + "¡¿«»‹›‘’‚“”„–—…†‡•·°ºª§¶©®™€£¥¢½¼¾²³¹±×÷µ"
)  # fmt: skip

_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3


def build_character_tokenizer(texts: Iterable[str] = (), *, alphabet: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the characters of `texts` and of `alphabet`, after the four special ones.

    Ids: `<pad>` 0, `<s>` 1, `</s>` 2, `<unk>` 3, then the characters in code-point order, so equal characters give
    equal ids whatever order they came in. Text is brought to NFC first (`e` + combining accent -> `é`); decoding gives
    that text back exactly, spaces included. No start or end token is added: a processor adds its own.

    Args:
        texts: texts to take characters from, such as the transcripts of a training set.
        alphabet: further characters, each its own token; `LATIN_ALPHABET` for Western European languages.

    Raises:
        ValueError: if no character is left to make tokens of.
    """
    characters = set(unicodedata.normalize("NFC", alphabet))
    for text in texts:
        characters.update(unicodedata.normalize("NFC", text))
    if not characters:
        raise ValueError("`texts` or `alphabet` must hold at least one character, got none. Pass `LATIN_ALPHABET`.")
    tokens = [*_SPECIAL_TOKENS, *sorted(characters)]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    # Oniguruma's `(?m:.)` takes a line break too; a plain `.` would leave it stuck to its neighbour.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="right",
        split_special_tokens=True,  # a text that reads "<s>" is three characters, not a start token
    )


def read_texts(file: str | Path) -> list[str]:
    """The lines of a text file, to take characters from.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"`texts` must be a file of text, got {file}, which is none. Check the path.")
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text, got byte {error.start} that is not. Convert it.") from error
