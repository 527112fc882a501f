"""Training items as the model reads them: token by token, and which of them it learns to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_MAX_PIECES = 4  # bytes, and so tokens, of a character


@dataclass
class MaskedToken:
    """A token in words.

    Attributes:
        text: what it stands for; of a picture's tokens in a row, `<image> x 64`.
        is_learnt: whether it carries loss.
    """

    text: str
    is_learnt: bool


@dataclass
class LabelMask:
    """An item of a training set.

    Attributes:
        source: where its row stands.
        tokens: in order; characters of several tokens stand as one.
        num_tokens, num_learnt: of the item, every token of a picture counted.
    """

    source: str
    tokens: list[MaskedToken]
    num_tokens: int
    num_learnt: int


def label_mask(
    tokenizer: Any,
    token_ids: Sequence[int],
    is_learnt: Sequence[bool],
    source: str,
    image_token_id: int | None = None,
) -> LabelMask:
    """The mask of an item.

    Args:
        tokenizer: transformers'.
        token_ids: in [0, vocabulary).
        is_learnt: as many: which of them carry loss.
        source: where the item's row stands.
        image_token_id: whose runs are shown as one.

    Raises:
        ValueError: if the two differ in number.
    """
    texts = token_texts(tokenizer, token_ids)
    tokens: list[MaskedToken] = []
    num_images = 0
    for place, (token, text, learnt) in enumerate(zip(token_ids, texts, is_learnt, strict=True)):
        if token == image_token_id:
            num_images += 1
            if place + 1 < len(token_ids) and token_ids[place + 1] == token and is_learnt[place + 1] == learnt:
                continue
            text, num_images = f"{text} x {num_images}", 0
        if text:
            tokens.append(MaskedToken(text, bool(learnt)))
    return LabelMask(source, tokens, len(token_ids), sum(map(bool, is_learnt)))


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to a text: together they are the text.

    A token that is only a part of a character adds nothing; the last of its parts adds the character.

    Args:
        tokenizer: transformers'.
        token_ids: in [0, vocabulary).
    """

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    start = 0  # of the tokens that wait for the rest of their character
    for place in range(len(token_ids)):
        before = token_ids[max(start - 1, 0) : start]  # some tokenizers write a word's first space only behind another
        known = text_of(before) if before else ""
        whole = text_of(token_ids[max(start - 1, 0) : place + 1])
        text = whole[len(known) :] if whole.startswith(known) else text_of(token_ids[start : place + 1])
        is_last = place + 1 == len(token_ids)
        if text.endswith(_INCOMPLETE) and place - start + 1 < _MAX_PIECES and not is_last:
            texts.append("")
            continue
        texts.append(text)
        start = place + 1
    return texts
