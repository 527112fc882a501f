"""Whether what a teacher answered may become training data: read into questions and answers, or a reason why not.

A reply is parsed (`instruction_text.py`), then every exchange goes through the checks below; the first that objects names the
reason. Of a conversation, exchanges that fail are left out, and with them those behind that lean on them by a pronoun; the rest
is kept. Reasons, for counting:

    empty, cut, no blocks               nothing was said, it stops in the middle, or no question with an answer is found
    broken text, image token, role marker
    looping                             the same said over and over
    not a question, answers with a question, repeats the question, repeated question, repeated answer
    too short, too long                 in words, by `InstructionLimits`
    mentions captions, mentions boxes   instead of seeing the picture
    speaks as a model                   `As an AI`, `I cannot see the picture`
    unsure                              in a conversation only what is certain is asked; reasoning may weigh what could be
    no answer                           yes to `what`, a no that says again what was asked, a thing that is itself
    copied example                      words of the prompt's own examples
    copied captions                     a description that is captions one after another
    a list                              a description that is none
    not the language
    contradicts the boxes               a number, or a no, that the boxes speak against
    not in the context                  a thing of COCO's 80, or a name, that neither captions nor boxes have

What no check finds: a wrong color or action, a thing outside of COCO's 80, and whatever else is false but fits the words that are
known.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 3 and appendix, for what a teacher is told to keep to; that
    checks hold it to that is ours.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.instruction_grounds import contradiction, is_region, unknown_name, unknown_thing
from hf_vlm.data.instructions.instruction_phrases import (
    AS_A_MODEL,
    BOXES,
    CAPTIONS,
    HEDGES,
    IMAGE_TOKENS,
    NOT_KNOWN,
    ROLE_MARKERS,
    compiled,
    found_in,
)
from hf_vlm.data.instructions.instruction_text import (
    Exchange,
    normalise,
    parse_exchanges,
    parse_paragraph,
    sentences_of,
    words_of,
)
from hf_vlm.data.instructions.teacher_prompts import TeacherPrompts
from hf_vlm.data.instructions.teachers import KINDS
from hf_vlm.data.instructions.text_language import LANGUAGES, is_language
from hf_vlm.data.instructions.text_repetition import looping_in, ngrams_of, repeated_in
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS

_EXCERPT = 120  # characters of a text that a rejection quotes


class Rejection(Exception):
    """A reply, or an exchange, is not used.

    Attributes:
        reason: one of the module's top.
        detail: an excerpt of what is objected to.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail if len(detail) <= _EXCERPT else detail[: _EXCERPT - 1] + "…"
        super().__init__(f"{self.reason}: {self.detail!r}" if self.detail else self.reason)


@dataclass(frozen=True)
class InstructionLimits:
    """What exchanges must keep to. The numbers are ours: wide enough for every answer that a careful person would write.

    Attributes:
        min_exchanges: of a conversation; fewer that are good, and the conversation is rejected.
        max_exchanges: of a conversation; those beyond are left out, as weak teachers drift the longer they go on.
        min_question_words, max_question_words: a question of two words can't name what it is about, such as `And then?`.
        max_answer_words: of an answer in a conversation; it may be as short as a word.
        min_detail_words, max_detail_words: two short sentences are no detailed description; beyond the most, the context is
            used up and a teacher invents.
        min_reasoning_words, max_reasoning_words: an answer with its grounds takes a sentence at least.
        language: `en`, `de`, `fr` or `es`; None takes any. Checks of wording and of things know English only.
        is_grounded: whether things and numbers are held against captions and boxes.

    Raises:
        ValueError: if the language is unknown, or a least number is above its most.
    """

    min_exchanges: int = 1
    max_exchanges: int = 10
    min_question_words: int = 3
    max_question_words: int = 60
    max_answer_words: int = 120
    min_detail_words: int = 20
    max_detail_words: int = 400
    min_reasoning_words: int = 12
    max_reasoning_words: int = 300
    language: str | None = "en"
    is_grounded: bool = True

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"`language` must be one of {', '.join(LANGUAGES)}, or None for any, got {self.language!r}. Choose one of these."
            )
        for name in ("exchanges", "question_words", "detail_words", "reasoning_words"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not 1 <= least <= most:
                raise ValueError(
                    f"`min_{name}` must be 1 or more, and at most `max_{name}`, got {least} and {most}. Correct one."
                )


@dataclass(frozen=True)
class _Given:
    """What an exchange is held against."""

    kind: str
    context: Context
    limits: InstructionLimits
    examples: tuple[str, ...]

    @property
    def is_english(self) -> bool:
        return self.limits.language == "en"

    @property
    def holds_to_context(self) -> bool:
        return self.limits.is_grounded and self.is_english


def read_reply(
    kind: str,
    text: str,
    *,
    finish_reason: str = "stop",
    context: Context,
    prompts: TeacherPrompts,
    limits: InstructionLimits | None = None,
    seed: int = 0,
) -> list[Exchange]:
    """The questions and answers of a teacher's reply.

    Args:
        kind: of `teachers.KINDS`.
        text: as the teacher gave it.
        finish_reason: `length` where the teacher was stopped in the middle; what it was writing then is left out.
        context: what the teacher was told.
        prompts: that it was told it with; the question for a description is theirs, chosen by `seed` and the context's id.
        limits: None for the defaults.

    Raises:
        Rejection: if nothing in it can be used; of several reasons, that of the first exchange.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}. Correct it.")
    limits = limits or InstructionLimits()
    if not normalise(text):
        raise Rejection("empty")
    given = _Given(kind, context, limits, prompts.examples(kind))
    is_cut = finish_reason == "length"
    if kind == "detail_description":
        exchanges = [_description(text, is_cut, prompts.question(seed, context.id))]
    else:
        exchanges = parse_exchanges(text, is_cut=is_cut)
        if not exchanges:
            _refuse_loops(normalise(text))
            raise Rejection("cut" if is_cut else "no blocks", normalise(text))
    if kind == "complex_reasoning":
        exchanges = exchanges[:1]
    good, first = _good_ones(exchanges, given)
    least = limits.min_exchanges if kind == "conversation" else 1
    if len(good) < least:
        raise first or Rejection("too short", f"{len(good)} exchanges")
    return good[: limits.max_exchanges]


def dedupe_key(exchanges: Sequence[Exchange]) -> bytes:
    """16 bytes that are the same for the same words, whatever their case, punctuation and spaces."""
    told = "\x1f".join("\x1e".join(words_of(part)) for exchange in exchanges for part in exchange)
    return hashlib.sha256(told.encode()).digest()[:16]


def _description(text: str, is_cut: bool, question: str) -> Exchange:
    if is_cut:
        _refuse_loops(normalise(text))
        raise Rejection("cut", normalise(text)[-_EXCERPT:])
    lines = [line for line in normalise(text).split("\n") if line]
    if len(lines) >= 3 and sum(bool(_BULLET.match(line)) for line in lines) > len(lines) / 2:
        raise Rejection("a list", lines[-1])
    paragraph = parse_paragraph(text)
    if not paragraph:
        raise Rejection("empty", normalise(text))
    return question, paragraph


def _good_ones(exchanges: Sequence[Exchange], given: _Given) -> tuple[list[Exchange], Rejection | None]:
    """The exchanges that pass all checks, and the first objection."""
    good: list[Exchange] = []
    first = None
    asked: set[bytes] = set()
    said: set[bytes] = set()
    leans = False  # whether what a pronoun would stand for was left out
    for exchange in exchanges:
        question, answer = exchange
        try:
            if leans and _PRONOUN.search(question):
                continue
            for reason, check in _CHECKS:
                if (excerpt := check(exchange, given)) is not None:
                    raise Rejection(reason, excerpt)
            if (key := dedupe_key([(question, "")])) in asked:
                raise Rejection("repeated question", question)
            asked.add(key)
            if len(words_of(answer)) > 6:  # a short one may well be right twice
                if (key := dedupe_key([("", answer)])) in said:
                    raise Rejection("repeated answer", answer)
                said.add(key)
        except Rejection as rejection:
            first = first or rejection
            leans = True
            continue
        leans = False
        good.append(exchange)
    return good, first


_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s")
_PRONOUN = re.compile(
    r"\b(?:it|its|they|them|their|he|him|his|she|her|those|these|er|ihn|ihm|sie|ihr|elle|ils|elles|ella|ellos|ellas)\b",
    re.IGNORECASE,
)
_COORDINATE_PROMPTS = (FORMAT_PROMPTS["region-description"], FORMAT_PROMPTS["region-box"])


def _is_about_region(question: str) -> bool:
    """Whether it is LLaVA-1.5's question for a region's phrase or box, in which numbers have their place."""
    return question.endswith(_COORDINATE_PROMPTS)


_IMAGE_TOKEN = compiled(IMAGE_TOKENS)
_ROLE_MARKER = compiled(ROLE_MARKERS, ignore_case=False)
_CAPTIONS, _BOXES, _AS_A_MODEL = compiled(CAPTIONS), compiled(BOXES), compiled(AS_A_MODEL)
_NOT_KNOWN, _HEDGED = compiled(NOT_KNOWN), compiled(HEDGES)


# ---- checks: each gives an excerpt of what it objects to, or None


def _broken_text(exchange: Exchange, given: _Given) -> str | None:
    return next((part for part in exchange if "\ufffd" in part), None)


def _image_token(exchange: Exchange, given: _Given) -> str | None:
    return found_in(_IMAGE_TOKEN, exchange)


def _role_marker(exchange: Exchange, given: _Given) -> str | None:
    return found_in(_ROLE_MARKER, exchange)


def _refuse_loops(text: str) -> None:
    if (looped := looping_in(text)) is not None:
        raise Rejection("looping", looped)


def _looping(exchange: Exchange, given: _Given) -> str | None:
    looped = next((found for part in exchange if (found := looping_in(part)) is not None), None)
    return repeated_in(exchange[1]) if looped is None else looped


_ORDER = re.compile(
    r"^(?:please )?(?:describe|tell|name|explain|count|list|give|point|find|identify|compare|say|imagine|suggest|look|discuss|"
    r"estimate|"
    r"(?:could|can|would|will) you|beschreib\w*|nenne|erklär\w*|décri\w*|expliqu\w*|describ\w*|explic\w*)\b",
    re.IGNORECASE,
)


def _not_a_question(exchange: Exchange, given: _Given) -> str | None:
    question = exchange[0]
    if given.kind == "detail_description" or _is_about_region(question):
        return None
    is_asked = re.search(r"[?？؟;]$", question.rstrip("\"') ")) or _ORDER.match(question)
    return None if is_asked and re.search(r"[^\W\d_]", question) else question


def _answers_with_question(exchange: Exchange, given: _Given) -> str | None:
    answer = exchange[1]
    return answer if re.search(r"[?？؟]$", answer.rstrip("\"') ")) else None


_FILLERS = frozenset(
    "the a an is are was were it its this that these those there here of in on at to and with by be been being "
    "one ones i you he she they what where how why who whose which do does did has have had can could will "
    "would picture image photo scene some any shown seen visible s t yes".split()
)
_ASKS_FOR_NEWS = re.compile(r"^(?:what|where|how|why|who|whose)\b", re.IGNORECASE)


def _repeats_question(exchange: Exchange, given: _Given) -> str | None:
    question, answer = exchange
    asked, said = words_of(question), words_of(answer)
    if given.kind == "detail_description" or _is_about_region(question) or not said:
        return None
    if said == asked or (len(asked) >= 5 and said[: len(asked)] == asked):
        return answer
    if _ASKS_FOR_NEWS.match(question) and " or " not in question and given.is_english:
        news = set(said) - set(asked) - _FILLERS
        return answer if not news and set(said) - _FILLERS else None
    return None


_ASKS_FOR_MORE = re.compile(r"^(?:what|which|who|whose|where|why|how)\b(?!.* or )", re.IGNORECASE)
_YES_OR_NO = re.compile(r"^(?:(?P<no>no)|yes|it is not|it isn't)\b[,.;:]?\s*", re.IGNORECASE)
_SAME_THING = re.compile(
    r"\b(?:the|an?) ((?:\w+ )?\w+) (?:is|are) (?:not |(?:next|close) to |in front of |on |in |behind |near )?(?:the|an?) \1\b",
    re.IGNORECASE,
)


def _no_answer(exchange: Exchange, given: _Given) -> str | None:
    """Yes or no to what can't be answered so, a no that says again what was asked, or a thing that is itself."""
    question, answer = exchange
    if not given.is_english:
        return None
    if found := _SAME_THING.search(answer):
        return found.group()
    if (found := _YES_OR_NO.match(answer)) is None or given.kind == "detail_description":
        return None
    if _ASKS_FOR_MORE.match(question):
        return f"{question} {answer}"
    rest = [word for word in words_of(answer[found.end() :]) if word not in _FILLERS]
    asked = [word for word in words_of(question) if word not in _FILLERS]
    return f"{question} {answer}" if found["no"] and len(rest) > 1 and rest == asked else None


def _copied_captions(exchange: Exchange, given: _Given) -> str | None:
    """Three sentences of a description, and half of it, are captions as they are: the same picture told three times."""
    if given.kind != "detail_description":
        return None
    known = {gram for caption in given.context.captions for gram in ngrams_of(words_of(caption), 4)}
    sentences = sentences_of(exchange[1])
    copied = [
        sentence
        for sentence in sentences
        if (grams := ngrams_of(words_of(sentence), 4)) and sum(gram in known for gram in grams) >= 0.7 * len(grams)
    ]
    return copied[0] if len(copied) >= 3 and 2 * len(copied) >= len(sentences) else None


def _too_short(exchange: Exchange, given: _Given) -> str | None:
    question, answer = exchange
    limits = given.limits
    if _is_about_region(question):
        return None if answer.strip() else question
    if not words_of(answer):
        return answer
    least = {"detail_description": limits.min_detail_words, "complex_reasoning": limits.min_reasoning_words}.get(
        given.kind, 1
    )
    if _num_words(answer) < least:
        return answer
    is_asked = given.kind != "detail_description" and _num_words(question) < limits.min_question_words
    return question if is_asked else None


def _too_long(exchange: Exchange, given: _Given) -> str | None:
    question, answer = exchange
    limits = given.limits
    most = {"detail_description": limits.max_detail_words, "complex_reasoning": limits.max_reasoning_words}.get(
        given.kind, limits.max_answer_words
    )
    if _num_words(answer) > most:
        return answer
    return question if _num_words(question) > limits.max_question_words else None


def _num_words(text: str) -> int:
    """Words; two letters count as one where a script has no spaces."""
    return sum(1 if word.isascii() or len(word) < 8 else max(1, _num_wide(word) // 2) for word in words_of(text))


def _num_wide(word: str) -> int:
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in word)


def _cut(exchange: Exchange, given: _Given) -> str | None:
    """A longer text that has no end, whatever the teacher said about it."""
    answer = exchange[1]
    if _is_about_region(exchange[0]) or len(words_of(answer)) <= 12:
        return None
    return None if re.search(r"[.!?…。！？][\"'”’)\]*]*$", answer) else answer[-60:]


def _mentions_captions(exchange: Exchange, given: _Given) -> str | None:
    is_ours = given.kind == "detail_description" or _is_about_region(exchange[0])  # the question
    return found_in(_CAPTIONS, exchange[1:] if is_ours else exchange)


def _mentions_boxes(exchange: Exchange, given: _Given) -> str | None:
    return None if _is_about_region(exchange[0]) else found_in(_BOXES, exchange)


def _speaks_as_model(exchange: Exchange, given: _Given) -> str | None:
    return found_in(_AS_A_MODEL, exchange[1:])


def _unsure(exchange: Exchange, given: _Given) -> str | None:
    told = exchange[1:] if given.kind == "detail_description" else exchange
    if (doubt := found_in(_NOT_KNOWN, told)) is not None:
        return doubt
    return found_in(_HEDGED, told) if given.kind == "conversation" else None


def _copied_example(exchange: Exchange, given: _Given) -> str | None:
    """Half of an answer's runs of four words are an example's, or nearly all of a longer question's."""
    grams = _example_grams(given.examples)
    question, answer = exchange
    for part, least, share in ((answer, 6, 0.5), (question, 8, 0.8)):
        words = words_of(part)
        own = ngrams_of(words, 4)
        if part and len(words) >= least and sum(gram in grams for gram in own) >= share * len(own):
            if part is question and given.kind == "detail_description":
                continue
            return part
    return None


@lru_cache(maxsize=16)
def _example_grams(examples: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(gram for example in examples for gram in ngrams_of(words_of(example), 4))


def _not_the_language(exchange: Exchange, given: _Given) -> str | None:
    language = given.limits.language
    if language is None or _is_about_region(exchange[0]):
        return None
    told = exchange[1] if given.kind == "detail_description" else " ".join(exchange)
    return None if is_language(told, language) else told


# ---- what is said of things, against what is known of them


def _contradicts_boxes(exchange: Exchange, given: _Given) -> str | None:
    if _is_about_region(exchange[0]):
        return None if is_region(exchange, given.context) else " ".join(exchange)
    return contradiction(exchange, given.context) if given.holds_to_context else None


def _not_in_context(exchange: Exchange, given: _Given) -> str | None:
    if not given.holds_to_context or _is_about_region(exchange[0]):
        return None
    if (name := unknown_name(exchange, given.context)) is not None:
        return name
    return unknown_thing(exchange, given.kind, given.context)


_CHECKS: tuple[tuple[str, Callable[[Exchange, _Given], str | None]], ...] = (
    ("broken text", _broken_text),
    ("image token", _image_token),
    ("role marker", _role_marker),
    ("looping", _looping),
    ("not a question", _not_a_question),
    ("answers with a question", _answers_with_question),
    ("speaks as a model", _speaks_as_model),
    ("mentions captions", _mentions_captions),
    ("mentions boxes", _mentions_boxes),
    ("unsure", _unsure),
    ("too short", _too_short),
    ("too long", _too_long),
    ("cut", _cut),
    ("repeats the question", _repeats_question),
    ("no answer", _no_answer),
    ("copied example", _copied_example),
    ("copied captions", _copied_captions),
    ("not the language", _not_the_language),
    ("contradicts the boxes", _contradicts_boxes),
    ("not in the context", _not_in_context),
)
