"""Scores of answers by task: questions on pictures, yes or no, options, statements, captions, translations.

One definition for training, evaluation and reports. Scores are of a whole set and take plain lists: the references of each
answer, a text or a list of texts that are all right, and the answers in the same order. `score_task` gives all scores of a
task, the main one first.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from hf_vlm.training.scores.caption_metrics import cider, rouge_l
from hf_vlm.training.scores.metrics import (
    character_error_rate,
    chrf,
    exact_match,
    reference_lists,
    require_sacrebleu_metrics,
    sacrebleu_streams,
    word_error_rate,
)
from hf_vlm.training.scores.vqa_normalization import normalize_vqa_answer

# The scores of each task by name, the main one first.
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "caption": ("cider", "bleu", "rouge_l", "chrf"),
    "vqa": ("vqa_accuracy", "exact_match"),
    "yes-no": ("accuracy", "precision", "recall", "f1", "yes_share", "unanswered_share"),
    "option": ("option_letter_accuracy",),
    "nlvr": ("accuracy", "consistency", "true_share"),
    "translate": ("bleu", "chrf", "exact_match"),
    "chat": ("exact_match", "chrf"),
    "ocr": ("cer", "wer"),
}


def score_task(
    task: str,
    references: Sequence[str | Sequence[str]],
    answers: Sequence[str],
    groups: Sequence[str | None] | None = None,
) -> dict[str, float]:
    """The scores of a task by name, the main one first; the names are those of `TASK_METRICS`.

    `cer` and `wer` are `character_error_rate` and `word_error_rate`, lower is better; of all others higher is better, but for
    the shares, which describe the answers. `bleu` and `chrf` go to 100, `cider` to 10, all else to 1.

    Args:
        task: one of `TASK_METRICS`.
        references: for each answer a text, or a list of them; the task `ocr` takes one an answer.
        answers: what was answered, in the same order.
        groups: for the task `nlvr` the statement of each answer, see `nlvr_scores`; other tasks ignore it.

    Raises:
        ValueError: if there is no such task, if the lists differ in number, if an answer has no reference or none that can
            be read, or if groups are missing for `nlvr`.
        ImportError: if a package that a score needs is missing; the message names the extra that brings it.
    """
    if task not in TASK_METRICS:
        raise ValueError(f"A task of {', '.join(TASK_METRICS)} is wanted, got `{task}`. Choose the nearest of them.")
    if task == "yes-no":
        return yes_no_scores(references, answers)
    if task == "nlvr":
        return nlvr_scores(references, answers, groups)
    return {name: _METRICS[name](references, answers) for name in TASK_METRICS[task]}


def vqa_accuracy(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """Mean share to which answers agree with people's, each spelled by `normalize_vqa_answer`; in [0, 1].

    An answer that three or more of the others gave is right; two make 2/3, one 1/3. Every annotator is left out in turn and
    the mean taken, so of ten, three that agree make 0.9. With fewer than four references this would leave right answers
    below 1, so there an answer is right if it equals any of them.

    Args:
        references: for each question the answers of its annotators; most sets have ten, or one.
        answers: what was answered, in the same order.

    Raises:
        ValueError: if the two differ in number, if a question has no reference, or if no reference holds a character.

    Source: Antol et al. 2015, https://arxiv.org/abs/1505.00468, averaged over the sets of all annotators but one
        as https://visualqa.org/evaluation.html says.
    """
    scores = []
    for texts, answer in zip(reference_lists(references, answers), answers, strict=True):
        said = normalize_vqa_answer(answer)
        matches, count = sum(normalize_vqa_answer(text) == said for text in texts), len(texts)
        if count < 4:
            scores.append(float(matches > 0))
        else:
            one_that_agrees_left_out, another_left_out = min(1, (matches - 1) / 3), min(1, matches / 3)
            scores.append((matches * one_that_agrees_left_out + (count - matches) * another_left_out) / count)
    return sum(scores) / len(scores)


def yes_no_scores(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """How well questions are answered by yes or no, and how often yes is said; all in [0, 1].

    Answers are read by `read_yes_no`. One that is neither yes nor no is wrong, and is not counted as yes.

    Args:
        references: for each question yes or no, in words that `read_yes_no` reads; of several, what most of them say, and
            the first of two that are said equally often.
        answers: what was answered, in the same order.

    Returns: by name `accuracy`; `precision`, `recall` and `f1` of yes, 0.0 where there is nothing to divide by; `yes_share`, the
        share of answers that are yes: far from the references' share, the model leans to one side; and
        `unanswered_share`, of answers that are neither.

    Raises:
        ValueError: if the two differ in number, if a question has no reference, or one that is neither yes nor no.

    Source: POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355).
    """
    wanted, said = _read_truths(references, answers), [read_yes_no(answer) for answer in answers]
    pairs = list(zip(wanted, said, strict=True))
    true_yes, num_yes = pairs.count((True, True)), said.count(True)
    precision = true_yes / num_yes if num_yes else 0.0
    recall = true_yes / wanted.count(True) if any(wanted) else 0.0
    return {
        "accuracy": sum(one == other for one, other in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if true_yes else 0.0,
        "yes_share": num_yes / len(pairs),
        "unanswered_share": said.count(None) / len(pairs),
    }


def read_yes_no(text: str) -> bool | None:
    """What an answer says: True for yes, False for no, None for neither.

    The first of these words in the first sentence, or line, decides, whatever its case: yes and true; no, not, false, and
    words that end in n't ("There isn't"). "Yes, there is no doubt" is yes.

    Source: POPE's script (https://github.com/RUCAIBox/POPE) also reads the first sentence, up to a full stop. It takes no and
        not anywhere in it for no, and everything else for yes, empty answers included.
    """
    for sentence in re.split(r"[.!?\n]", text.lower().replace("\u2019", "'")):
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", sentence)
        for word in words:
            if word in ("yes", "true"):
                return True
            if word in ("no", "not", "false") or word.endswith("n't"):
                return False
        if words:
            break
    return None


def option_letter_accuracy(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """Share of answers that name the letter of a right option, as `read_option_letter` reads them; in [0, 1].

    An answer that names no letter is wrong, even if it repeats the option's text.

    Args:
        references: for each question the right letter, such as "B", or a list of them: right is what equals any.
        answers: what was answered, in the same order.

    Raises:
        ValueError: if the two differ in number, or if a question has no reference that names a letter.
    """
    right = []
    for index, texts in enumerate(reference_lists(references, answers)):
        letters = {read_option_letter(text) for text in texts} - {None}
        if not letters:
            raise ValueError(
                f"The letter of an option is wanted as reference, got {texts!r} for answer {index} (the first is 0). "
                "Give the letter alone, such as `B`."
            )
        right.append(read_option_letter(answers[index]) in letters)
    return sum(right) / len(right)


def read_option_letter(text: str) -> str | None:
    """The letter of the option that an answer names, upper case; None if it names none, or more than one.

    Read are a letter alone ("B", "b.", "(b)"); one at the start that a full stop, colon or bracket parts from what follows
    ("B. the text", "(b) the text"); and, where neither is there, one in brackets, or after "answer", "option" or "choice",
    anywhere ("The answer is B."). After these words a small letter without brackets counts at the end only: "the answer is a
    dog" names none.

    Source: follows ScienceQA (Lu et al. 2022, https://arxiv.org/abs/2209.09513), whose script reads "The answer is B." only.
    """
    text = text.strip().replace("*", "")
    start = re.match(r"\(?([A-Za-z])(?:[.,:)]*$|[.:)]+\s)", text)
    if start:
        return start[1].upper()
    named = {"".join(found).upper() for found in _NAMED_OPTION.findall(text)}
    return named.pop() if len(named) == 1 else None


def nlvr_scores(
    references: Sequence[str | Sequence[str]], answers: Sequence[str], groups: Sequence[str | None] | None
) -> dict[str, float]:
    """How well statements on pictures are told to be true or false; all in [0, 1].

    Answers and references are read by `read_yes_no`, and several references as in `yes_no_scores`. An answer that is
    neither true nor false is wrong.

    Args:
        references: for each statement on its pictures whether it is true: true or false, yes or no.
        answers: what was answered, in the same order.
        groups: of each answer, a name that all answers to the same statement share, on whatever pictures.

    Returns: by name `accuracy`; `consistency`, the share of groups whose every answer is right; and `true_share`, the share
        of answers that are true.

    Raises:
        ValueError: if the lists differ in number, if a statement has no reference or one that is neither true nor false, or
            if an answer has no group.

    Source: NLVR2 (Suhr et al. 2019, https://arxiv.org/abs/1811.00491).
    """
    wanted, said = _read_truths(references, answers), [read_yes_no(answer) for answer in answers]
    if groups is None or len(groups) != len(answers):
        raise ValueError(
            f"A group for each of {len(answers)} answers is wanted, got {'none' if groups is None else len(groups)}. "
            "Pass one name for all answers to the same statement."
        )
    right_by_group: dict[str, list[bool]] = defaultdict(list)
    for index, group in enumerate(groups):
        if not group:
            raise ValueError(
                f"A group for each answer is wanted, got {group!r} for answer {index} (the first is 0). "
                "Pass one name for all answers to the same statement."
            )
        right_by_group[group].append(said[index] == wanted[index])
    return {
        "accuracy": sum(map(sum, right_by_group.values())) / len(wanted),
        "consistency": sum(map(all, right_by_group.values())) / len(right_by_group),
        "true_share": said.count(True) / len(said),
    }


def bleu(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> float:
    """Overlap of word n-grams of all answers with those of the references, from 0 to 100 for the same text.

    N-grams of 1 to 4 words (BLEU-4), counted over all answers; an answer's length is measured against its reference nearest
    in length. Case and punctuation count, also for captions: the COCO caption evaluation drops both, so its BLEU differs.

    Args:
        references: for each answer a text, or a list of them; lists may differ in length.
        answers: what was answered, in the same order.

    Raises:
        ValueError: if the two differ in number, if an answer has no reference, or if no reference holds a character.
        ImportError: if sacrebleu is missing.

    Source: Papineni et al. 2002, https://aclanthology.org/P02-1040, as sacrebleu defines it (Post 2018,
        https://arxiv.org/abs/1804.08771): its tokenizer 13a, its exponential smoothing.
    """
    sacrebleu_metrics = require_sacrebleu_metrics()
    streams, answers = sacrebleu_streams(references, answers)
    return sacrebleu_metrics.BLEU().corpus_score(answers, streams).score


def _read_truths(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> list[bool]:
    truths = []
    for index, texts in enumerate(reference_lists(references, answers)):
        read = Counter(truth for truth in map(read_yes_no, texts) if truth is not None)
        if not read:
            raise ValueError(
                f"A reference of yes or no, or true or false, is wanted, got {texts!r} for answer {index} "
                "(the first is 0). Choose another task for such questions."
            )
        truths.append(read.most_common(1)[0][0])
    return truths


def _one_each(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> list[str]:
    rows = reference_lists(references, answers)
    for index, texts in enumerate(rows):
        if len(texts) != 1:
            raise ValueError(
                f"One reference for each answer is wanted, got {len(texts)} for answer {index} (the first is 0). "
                "An error rate is against one text: choose which."
            )
    return [texts[0] for texts in rows]


# In turn: a letter in brackets; a capital after the word; a small letter after the word, at the end.
_NAMED_OPTION = re.compile(
    r"(?<!\w)\(([A-Za-z])\)"
    r"|\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*[\"']?(?:([A-Z])(?![\w'])|([a-z])[\"']?[.,:;)!]*\s*$)"
)
_METRICS: dict[str, Callable[[Sequence[str | Sequence[str]], Sequence[str]], float]] = {
    "bleu": bleu,
    "cer": lambda references, answers: character_error_rate(_one_each(references, answers), answers),
    "chrf": chrf,
    "cider": cider,
    "exact_match": exact_match,
    "option_letter_accuracy": option_letter_accuracy,
    "rouge_l": rouge_l,
    "vqa_accuracy": vqa_accuracy,
    "wer": lambda references, answers: word_error_rate(_one_each(references, answers), answers),
}
