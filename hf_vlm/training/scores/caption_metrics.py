"""Scores of captions by the words they share with several reference captions: ROUGE-L and CIDEr-D.

Words are those of `caption_tokens`, so case and punctuation do not count.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from hf_vlm.training.scores.metrics import reference_lists

ROUGE_BETA = 1.2  # how much recall weighs against precision
CIDER_MAX_N = 4  # longest n-gram, in words
CIDER_SIGMA = 6.0  # width of the length penalty, in words

_CLITIC = re.compile("(.+?)(n't|'(?:s|re|ve|ll|d|m))")
_DROPPED = ".,:;?!'\"`()[]{}\u2026\u2013\u2014\u201c\u201d-"
# A word, with single marks inside it (black-and-white, km/h) and commas between digits; or a sign such as $ or a pictogram.
_TOKEN = re.compile(rf"\w+(?:(?:[-.:/&']|(?<=\d),(?=\d))\w+)*|[^\w\s{re.escape(_DROPPED)}]")


def caption_tokens(text: str) -> list[str]:
    """The lower-case words of a caption, without punctuation.

    Endings such as "'s" and "n't" are words of their own; hyphenated words and numbers stay whole.

    Source: follows the Penn Treebank tokens that the COCO caption evaluation scores, which come from Stanford's Java
        tokenizer (Chen et al. 2015, section 3, https://arxiv.org/abs/1504.00325). The same for plain captions; different are
        brackets (dropped here, tokens such as -lrb- there), abbreviations (they lose their final full stop here),
        "cannot" and its like (one word here), signs such as ?! (dropped here), and pictograms (kept here).
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'").replace("\u2018", "'")
    tokens: list[str] = []
    for word in _TOKEN.findall(text):
        parts = _CLITIC.fullmatch(word)
        tokens += parts.groups() if parts else [word]
    return tokens


def rouge_l(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """How much of the answers' words are in the references in the same order, and the other way round; in [0, 1].

    The mean over answers of an F-score. Precision is the longest common subsequence of words by the answer's length, recall by
    the reference's; each is the best over the references, which may be two different ones. 0 for an answer without words.

    Args:
        references: for each answer a text, or a list of them.
        answers: the captions to score, in the same order.

    Raises:
        ValueError: if the two differ in number, if an answer has no reference, or if no reference holds a character.

    Source: ROUGE-L (Lin 2004, section 3, https://aclanthology.org/W04-1013) as the COCO caption evaluation computes it, with
        beta = 1.2 (Chen et al. 2015, https://arxiv.org/abs/1504.00325).
    """
    scores = []
    for texts, answer in zip(reference_lists(references, answers), answers, strict=True):
        said = caption_tokens(answer)
        precision = recall = 0.0
        for wanted in map(caption_tokens, texts):
            if said and wanted:
                shared = _common_subsequence_length(wanted, said)
                precision, recall = max(precision, shared / len(said)), max(recall, shared / len(wanted))
        weight = ROUGE_BETA**2
        scores.append((1 + weight) * precision * recall / (recall + weight * precision) if precision else 0.0)
    return sum(scores) / len(scores)


def cider(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """How alike the answers and their references are in the n-grams that tell one picture from the others; from 0 to 10.

    N-grams weigh more the fewer pictures' references they are in. These frequencies come from this very set, so scores of
    different sets, or of parts of one, do not compare. Papers often give 100 times this number. It is 0.0 for a set of one
    picture, or where all pictures have the same references: every n-gram is then in all of them and weighs nothing.

    Args:
        references: for each answer the captions of its picture; each answer counts as a picture of its own.
        answers: the captions to score, in the same order.

    Raises:
        ValueError: if the two differ in number, if an answer has no reference, or if no reference holds a character.

    Source: CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726): n-grams of 1 to 4 words, counts cut to
        the reference's, a Gaussian penalty (sigma 6 words) on the difference in length, times 10. Words are not stemmed, as
        in the COCO caption evaluation.
    """
    rows = [[_n_grams(text) for text in texts] for texts in reference_lists(references, answers)]
    pictures_with: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        pictures_with.update(set().union(*row))
    # ln(pictures / pictures whose references have the n-gram); one in no reference weighs as one in a single picture's
    log_pictures = math.log(len(rows))
    idf = {n_gram: log_pictures - math.log(count) for n_gram, count in pictures_with.items()}

    def weighted(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(CIDER_MAX_N)]
        for n_gram, count in counts.items():
            vectors[len(n_gram) - 1][n_gram] = count * idf.get(n_gram, log_pictures)
        return vectors

    scores = []
    for row, answer in zip(rows, answers, strict=True):
        said = _n_grams(answer)
        of_answer = weighted(said)
        total = 0.0
        for counts in row:
            likeness = sum(map(_clipped_cosine, of_answer, weighted(counts))) / CIDER_MAX_N
            total += likeness * math.exp(-((_num_words(said) - _num_words(counts)) ** 2) / (2 * CIDER_SIGMA**2))
        scores.append(10 * total / len(row))
    return sum(scores) / len(scores)


def _common_subsequence_length(one: Sequence[str], other: Sequence[str]) -> int:
    lengths = [0] * (len(other) + 1)  # of the words of `one` so far, and each beginning of `other`
    for word in one:
        before = lengths
        lengths = [0]
        for place, candidate in enumerate(other):
            lengths.append(before[place] + 1 if word == candidate else max(before[place + 1], lengths[place]))
    return lengths[-1]


def _n_grams(text: str) -> Counter[tuple[str, ...]]:
    words = caption_tokens(text)
    lengths = range(1, CIDER_MAX_N + 1)
    return Counter(
        tuple(words[start : start + length]) for length in lengths for start in range(len(words) - length + 1)
    )


def _num_words(counts: Counter[tuple[str, ...]]) -> int:
    return sum(count for n_gram, count in counts.items() if len(n_gram) == 1)


def _clipped_cosine(answer: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    """Cosine of two weighted counts, where an n-gram said more often than in the reference counts as often as there."""
    norms = math.hypot(*answer.values()) * math.hypot(*reference.values())
    shared = sum(
        min(answer[n_gram], reference[n_gram]) * reference[n_gram] for n_gram in answer.keys() & reference.keys()
    )
    return shared / norms if norms else 0.0
