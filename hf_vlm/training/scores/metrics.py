"""Error rates and accuracies of read text, of answers and of classes; one definition for training, evaluation and reports.

The error rates are corpus rates: the edits of all lines, divided by the length of all references. A mean of rates per line would
let a one-word line weigh as much as a long one. A rate above 1 is possible: inserted text counts as well.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from types import ModuleType

import numpy as np


def character_error_rate(
    references: Sequence[str], predictions: Sequence[str], *, case_sensitive: bool = True
) -> float:
    """Edited characters per reference character, 0 for perfect text.

    Args:
        references: the true texts, one a line; an empty one is fine, what was read there counts as inserted.
        predictions: the texts read, in the same order.
        case_sensitive: False folds the case of both sides first.

    Raises:
        ValueError: if the two differ in number, or if no reference holds a character: there is nothing to divide by.
        ImportError: if jiwer is missing.

    Source: the Levenshtein distance over characters, spaces included, as TrOCR reports for IAM (Li et al. 2023,
        section 3.1, https://arxiv.org/abs/2109.10282). Both sides are NFC with outer space cut off: how an accent is
        encoded cannot be seen in a picture.
    """
    jiwer = require_jiwer()
    return jiwer.process_characters(*_normalise(references, predictions, case_sensitive)).cer


def word_error_rate(references: Sequence[str], predictions: Sequence[str], *, case_sensitive: bool = True) -> float:
    """Edited words per reference word, 0 for perfect text; words are what spaces part, punctuation included.

    Arguments and errors are those of `character_error_rate`.
    """
    jiwer = require_jiwer()
    return jiwer.process_words(*_normalise(references, predictions, case_sensitive)).wer


def word_accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of texts read without a mistake in their ASCII letters and digits, case aside; in [0, 1].

    For pictures of one word, as in scene text: accents, punctuation and spaces do not count, so texts in other scripts
    can't be scored by it.

    Raises:
        ValueError: if the two differ in number, or if there is no reference.

    Source: the word accuracy of the scene text benchmarks, as TrOCR reports (Li et al. 2023, section 3.1,
        https://arxiv.org/abs/2109.10282).
    """
    pairs = zip(*_normalise(references, predictions, case_sensitive=False), strict=True)
    alike = [re.sub("[^0-9a-z]", "", one) == re.sub("[^0-9a-z]", "", other) for one, other in pairs]
    return sum(alike) / len(alike)


def word_f1(references: Sequence[str], predictions: Sequence[str], *, case_sensitive: bool = True) -> float:
    """Harmonic mean of the shares of read words that are there and of words there that were read; in [0, 1].

    Words are compared within their line, whatever their order; each is matched once at most.

    Arguments and errors are those of `character_error_rate`.

    Source: SROIE's task 2, https://rrc.cvc.uab.es/?ch=13&com=tasks, as TrOCR reports (Li et al. 2023, section 3.1).
    """
    matched = read = wanted = 0
    for reference, prediction in zip(*_normalise(references, predictions, case_sensitive), strict=True):
        of_reference, of_prediction = Counter(reference.split()), Counter(prediction.split())
        matched += (of_reference & of_prediction).total()
        wanted, read = wanted + of_reference.total(), read + of_prediction.total()
    return 2 * matched / (wanted + read)


def exact_match(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """Share of answers that are the reference, but for case, outer space and one full stop at the end; in [0, 1].

    For short answers: a name, a number, yes or no. Nothing else is forgiven: articles and synonyms count as wrong.

    Args:
        references: the true answer to each question, or a list of them: right is what equals any.
        answers: what was answered, in the same order.

    Raises:
        ValueError: if the two differ in number, if a question has no reference, or if no reference holds a character.
    """
    rows = reference_lists(references, answers)
    right = [
        _short_answer(answer) in {_short_answer(text) for text in texts}
        for texts, answer in zip(rows, answers, strict=True)
    ]
    return sum(right) / len(right)


def chrf(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """Overlap of character n-grams of all answers with those of the references, from 0 to 100 for the same text.

    For answers of some words, such as captions, where `exact_match` says too little. A corpus score: n-grams are counted
    over all answers, each against the reference of its own that is nearest. Case counts, spaces don't.

    Arguments are those of `exact_match`.

    Raises:
        ValueError: if the two differ in number, if an answer has no reference, or if no reference holds a character.
        ImportError: if sacrebleu is missing.

    Source: chrF2 (Popovic 2015, https://aclanthology.org/W15-3049), n-grams of 1 to 6, recall counted twice as much as
        precision, as sacrebleu defines it (Post 2018, https://arxiv.org/abs/1804.08771).
    """
    sacrebleu_metrics = require_sacrebleu_metrics()
    streams, answers = sacrebleu_streams(references, answers)
    return sacrebleu_metrics.CHRF().corpus_score(answers, streams).score


def top_k_accuracy(labels: np.ndarray, ranked: np.ndarray, k: int) -> float:
    """Share of pictures whose class is among the k likeliest; in [0, 1].

    Args:
        labels: int (pictures,), the true classes.
        ranked: int (pictures, at least k), the likeliest classes of each, best first.

    Raises:
        ValueError: if the two differ in number, there are none, or fewer than k are ranked.

    Source: Russakovsky et al. 2015 (ImageNet), section 4.1, https://arxiv.org/abs/1409.0575
    """
    if not len(labels) or len(labels) != len(ranked) or ranked.shape[1] < k:
        raise ValueError(
            f"At least {k} ranked classes for each of one picture or more are wanted, got shape {ranked.shape} for "
            f"{len(labels)} labels. Pass both in the order of the pictures."
        )
    return float((ranked[:, :k] == labels[:, None]).any(axis=1).mean())


def reference_lists(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> list[list[str]]:
    """The references as one list an answer, checked.

    Args:
        references: for each answer a text, or a list of texts that are all right; lists may differ in length.
        answers: what was answered, in the same order.

    Raises:
        ValueError: if the two differ in number, if there are none, if an answer has no reference (an empty list, or
            None), or if no reference holds a character: there is nothing to compare with.
    """
    _check_counts(references, answers)
    rows = []
    for index, given in enumerate(references):
        texts = [given] if isinstance(given, str) else list(given or ())
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"A reference or more for each answer is wanted, got {given!r} for answer {index} (the first is 0). "
                "Leave out rows whose answer is not known."
            )
        rows.append(texts)
    if not any(text.strip() for texts in rows for text in texts):
        raise _no_text(len(rows))
    return rows


def sacrebleu_streams(
    references: Sequence[str | Sequence[str]], answers: Sequence[str]
) -> tuple[list[list[str | None]], list[str]]:
    """References and answers as sacrebleu takes them, in NFC and without outer space.

    Returns: `streams`, the first reference of every answer, then the second, and so on, with None where an answer has fewer;
        and the answers.

    Raises:
        ValueError: as `reference_lists` does.
    """
    rows = [[_tidy(text) for text in texts] for texts in reference_lists(references, answers)]
    streams = [list(stream) for stream in itertools.zip_longest(*rows)]
    return streams, [_tidy(text) for text in answers]


def require_jiwer() -> ModuleType:
    """The jiwer module, which counts the edits.

    Raises:
        ImportError: if it is missing; the message names the extra that brings it.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError("CER and WER need the package jiwer, got none. Run `pip install 'hf-vlm[ocr]'`.") from error
    return jiwer


def require_sacrebleu_metrics() -> ModuleType:
    """The module sacrebleu.metrics, which counts the n-grams.

    Raises:
        ImportError: if sacrebleu is missing; the message names the extra that brings it.
    """
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ImportError(
            "BLEU and chrF need the package sacrebleu, got none. Run `pip install 'hf-vlm[metrics]'`."
        ) from error
    return metrics


def _normalise(
    references: Sequence[str], predictions: Sequence[str], case_sensitive: bool
) -> tuple[list[str], list[str]]:
    _check_counts(references, predictions)
    sides = []
    for texts in (references, predictions):
        texts = [_tidy(text) for text in texts]
        sides.append(texts if case_sensitive else [text.casefold() for text in texts])
    if not any(sides[0]):
        raise _no_text(len(references))
    return sides[0], sides[1]


def _check_counts(references: Sequence[object], predictions: Sequence[str]) -> None:
    if len(references) != len(predictions):
        raise ValueError(
            f"One prediction a reference is wanted, got {len(references)} references and {len(predictions)} "
            "predictions. Pass both in the order of the lines."
        )


def _no_text(count: int) -> ValueError:
    return ValueError(
        f"References with text are wanted, got {count} without a character. Check the column of the references."
    )


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _short_answer(text: str) -> str:
    return _tidy(text).casefold().removesuffix(".").rstrip()
