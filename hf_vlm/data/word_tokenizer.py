"""A tokenizer of one token a word, for captioners that learn their language from captions alone.

`text -> NFC -> lower case -> punctuation out -> one id a word`: "A man's dog, on a T-shirt." is `a man's dog on a t-shirt`,
and so is the same caption as published data sets hold it, tokenised, with ` ,` and ` .` set apart. Words seen too seldom to
be learnt are `<unk>`.
"""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")  # ids 0, 1, 2, 3


def build_word_tokenizer(captions: Iterable[str], min_count: int = 4) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words that captions have at least `min_count` times, after the four special ones.

    Ids: `<pad>` 0, `<start>` 1, `<end>` 2, `<unk>` 3, then the words, the most frequent first and equally frequent ones in
    code-point order, so equal captions give equal ids whatever order they came in. A word is letters and digits, with the
    apostrophes and hyphens inside it. Decoding gives words with a space between. No start or end token is added: a
    processor adds its own.

    Args:
        captions: of the training set.
        min_count: how often a word must be there; the tutorial of yunjey takes 4, Vinyals et al. 5.

    Raises:
        TypeError: if `captions` is one text.
        ValueError: if there is no caption with a word in it, all are the same, or `min_count` leaves no word.

    Source: Vinyals et al. 2015, section 4.3.1, https://arxiv.org/abs/1411.4555
    """
    if isinstance(captions, str):
        raise TypeError("`captions` must be a list of texts, got one text. Put it into a list.")
    if min_count < 1:
        raise ValueError(f"`min_count` must be 1 or more, got {min_count}. 4 is usual.")
    normalizer, splitter = _normalizer(), pre_tokenizers.WhitespaceSplit()
    counts: Counter[str] = Counter()
    first: str | None = None
    num_captions, all_same = 0, True
    for caption in captions:
        text = " ".join(normalizer.normalize_str(caption).split())
        num_captions += 1
        counts.update(text.split())
        first = text if first is None else first
        all_same &= text == first
    if not counts:
        raise ValueError(f"`captions` must hold words, got {num_captions} captions without one. Check the data.")
    if all_same:
        raise ValueError(
            f"`captions` must differ, got {num_captions} of the same words, {first!r}: a captioner can't learn from them what "
            "to tell apart. Check which column or field the captions are read from."
        )
    words = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    if not words:
        ((word, count),) = counts.most_common(1)
        raise ValueError(
            f"`min_count` must leave at least a word, got {min_count}, where the most frequent, {word!r}, is there {count} "
            f"times. Lower `min_count` to {count} at most, or give more captions."
        )
    tokens = [*_SPECIAL_TOKENS, *words]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="right",
        split_special_tokens=True,  # a caption that reads "<end>" does not end there
    )


def _normalizer() -> normalizers.Normalizer:
    """Lower case, and nothing but words and spaces."""
    inside = r"[\p{L}\p{M}\p{N}]"
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[’ʼ]"), "'"),
            normalizers.Replace(Regex("[‐‑]"), "-"),
            normalizers.Replace(Regex(r"[^\p{L}\p{M}\p{N}'\-]+"), " "),
            normalizers.Replace(Regex(rf"(?<!{inside})['\-]+|['\-]+(?!{inside})"), " "),
        ]
    )
