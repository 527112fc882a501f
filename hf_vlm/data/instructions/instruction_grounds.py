"""Whether what is said of a picture fits what is known of it: things that are there, and how many.

English only, COCO's 80 things (`category_words.py`) and, for numbers, whatever categories are boxed. Careful in what it objects
to: a caption may know what boxes miss, a sentence with a no in it claims no thing, and reasoning may speak of what could be.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache

from hf_vlm.data.instructions.category_words import NUMBER_WORDS, category_words_in, mentions, own_words, plural
from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.instruction_text import Exchange, sentences_of, words_of

_NEGATION = re.compile(
    r"\b(?:no|not|without|never|none|nothing|neither|nor|cannot|nobody|absent|\w+n't)\b", re.IGNORECASE
)
_SUPPOSED = re.compile(
    r"\b(?:may|might|could|can|would|should|if|such as|potential\w*|possib\w*|imagin\w*|for "
    r"example|must|need\w*|want\w*|"
    r"usual\w*|often|typical\w*|common\w*|general\w*|ensur\w*|avoid\w*|prevent\w*|risk\w*|danger\w*|careful|help\w*|allow\w*|any)\b",
    re.IGNORECASE,
)
_LIKENED = re.compile(
    r"\b(?:like|as if|as though|shaped?|resembl\w+|similar to|reminds?|named|called|toy|painting of|logo)\b",
    re.IGNORECASE,
)
_ASKS_WHETHER = re.compile(
    r"^(?:is|are) there\b|\b(?:do|can) (?:you|we) see\b|^(?:is|are|does|do|has|have) "
    r"(?:an?|any|some|anyone|someone)\b",
    re.IGNORECASE,
)
_SAYS_NO = re.compile(r"^no\b", re.IGNORECASE)
_SAYS_YES = re.compile(r"^(?:yes|yeah)\b", re.IGNORECASE)

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[a-z][a-z'-]*|[^\w\s]")
_NO_ADJECTIVE = frozenset(
    "of and or in on with by to at from is are was were the a an his her their its for than as more other next "
    "this s".split()
)
_ROUGHLY = frozenset("least about around over than nearly almost to or only other of approximately roughly".split())
_IS_TOTAL = re.compile(r"^(?:yes, |in the (?:picture|image|photo|scene),? )?there (?:are|is) ", re.IGNORECASE)
_HOW_MANY = re.compile(
    r"^how many (?P<what>[\w ]+?) (?:are|is|can|do)\b(?: there| you see| we see| be seen| visible| shown| present)*"
    r"(?: (?:in|on|of) (?:the|this) (?:picture|image|photo|photograph|scene))?\s*\?$",
    re.IGNORECASE,
)
_IS_THERE = re.compile(
    r"^(?:is|are) there (?:an? |any |some )?(?P<what>[\w ]+?)"
    r"(?: (?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene)| here| visible)?\s*\?$",
    re.IGNORECASE,
)
_VAGUE = re.compile(r"\b(?:at least|about|around|over|more than|several|many|and|or)\b", re.IGNORECASE)
_MOST_COUNTED = 9  # boxes of a category; annotators leave off where there are many


_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b")
_COMMON_NAMES = frozenset(
    "Africa America Asia Australia Europe Internet Christmas Halloween Easter English American European Asian "
    "African Frisbee Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday "
    "January February March April June July August September October November December".split()
)


def unknown_thing(exchange: Exchange, kind: str, context: Context) -> str | None:
    """The first thing of COCO's that is taken to be there though neither captions nor boxes have it, with its sentence, or None.

    Sentences with a no in them, likenesses and, in reasoning, what is supposed or said of people in general are left alone. What
    a question takes for given counts too, unless the answer is no.
    """
    question, answer = exchange
    known = _known(context)
    told = [sentence for sentence in sentences_of(answer) if not _NEGATION.search(sentence)]
    is_presumed = not _ASKS_WHETHER.search(question) and not _SAYS_NO.match(answer)
    if kind != "detail_description" and (is_presumed or _SAYS_YES.match(answer)):
        told = [question, *told]
    is_reasoning = kind == "complex_reasoning"
    for sentence in told:
        if _LIKENED.search(sentence) or (is_reasoning and _SUPPOSED.search(sentence)):
            continue
        for mention in category_words_in(sentence):
            is_general = is_reasoning and "person" in mention.categories
            if not is_general and not any(_is_known(name, known) for name in mention.categories):
                return f"{mention.word}: {sentence}"
    return None


def unknown_name(exchange: Exchange, context: Context) -> str | None:
    """The first word of an answer that is written as a name inside a sentence though it is in no caption or region, or None.

    Who knows a picture from words alone can know no other names.
    """
    known = _known(context).lower()
    for sentence in sentences_of(exchange[1]):
        for found in _NAME.finditer(sentence):
            if found.group().lower() not in known and found.group() not in _COMMON_NAMES:
                return sentence
    return None


def is_region(exchange: Exchange, context: Context) -> bool:
    """Whether question and answer are the phrase and the box of a region, or of a thing, in either order."""
    told = "\n".join(exchange)
    numbers = [float(number) for number in re.findall(r"\d+\.\d+|\b[01]\b", told.rpartition("[")[2].partition("]")[0])]
    named = [(one.phrase, one.box) for one in context.regions] + [(one.category, one.box) for one in context.instances]
    return len(numbers) == 4 and any(
        phrase.lower().rstrip(".") in told.lower()
        and all(abs(a - b) < 0.006 for a, b in zip(numbers, box, strict=True))
        for phrase, box in named
    )


def contradiction(exchange: Exchange, context: Context) -> str | None:
    """A statement that boxes speak against and no caption agrees with, or None.

    Wrong is a number above that of the boxes, `two dogs` where one is boxed, or below it where all are counted, `There are two
    dogs` or `How many dogs are there?`; and a no to whether there is a thing that is boxed. Numbers of categories with a crowd,
    or with more than 9 boxes, are not held to it.
    """
    question, answer = exchange
    counts = _box_counts(context)
    if not counts:
        return None
    by_people = {(name, number) for name, number, _ in _counted(_known(context), counts)}

    def is_wrong(name: str, number: int, is_all: bool) -> bool:
        wrong = number > counts[name] or (is_all and number < counts[name])
        return wrong and (name, number) not in by_people

    for sentence in sentences_of(answer):
        is_total = _IS_TOTAL.match(sentence) is not None
        for name, number, is_own in _counted(sentence, counts):
            if is_wrong(name, number, is_total and is_own):
                return f"{sentence} ({name}: {counts[name]})"
    if asked := _HOW_MANY.match(question):
        what, stated = _named(asked["what"], counts), _only_number(answer)
        if what is not None and stated is not None and is_wrong(what, stated, is_all=True):
            return f"{question} {answer} ({what}: {counts[what]})"
    if (asked := _IS_THERE.match(question)) and _SAYS_NO.match(answer):
        if (what := _named(asked["what"], counts)) is not None:
            return f"{question} {answer} ({what}: {counts[what]})"
    return None


def _known(context: Context) -> str:
    """All words that are known of a picture."""
    named = [one.category for one in context.instances] + [one.phrase for one in context.regions]
    return "\n".join([*context.captions, *named])


@lru_cache(maxsize=1024)
def _is_known(category: str, known: str) -> bool:
    return mentions(known, category)


def _box_counts(context: Context) -> dict[str, int]:
    """Category -> boxes, of categories without a crowd and with few enough to be counted."""
    counts = Counter(one.category.lower() for one in context.instances)
    crowds = {one.category.lower() for one in context.instances if one.is_crowd}
    return {name: number for name, number in counts.items() if name not in crowds and number <= _MOST_COUNTED}


def _named(words: str, counts: Mapping[str, int]) -> str | None:
    """The category whose name or synonym the words are."""
    words = words.lower().strip()
    name = own_words().get(words, words)
    if name in counts:
        return name
    return next((one for one in counts if words == plural(one)), None)


def _counted(text: str, counts: Mapping[str, int]) -> Iterator[tuple[str, int, bool]]:
    """Things in the plural with a number before them: category, number, and whether it is called by its own "
    "name or a synonym.
    """
    low = text.lower()
    found = [
        (name, one.word, one.start) for one in category_words_in(text) for name in one.categories if name in counts
    ]
    for name in counts:
        if name not in own_words():
            found += [(name, plural(name), match.start()) for match in _plural_pattern(name).finditer(low)]
    for name, word, start in found:
        number = _number_before(low[:start])
        if number is not None and number >= 2:
            yield name, number, own_words().get(word, word) in (name, plural(name))


@lru_cache(maxsize=4096)
def _plural_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(plural(name))}(?!\w)")


def _number_before(low: str) -> int | None:
    """The number that a text ends in, with up to two adjectives behind it; None for one that is rough or of a "
    "part.
    """
    tokens = _TOKEN.findall(low[-60:])
    for place in range(len(tokens) - 1, max(len(tokens) - 4, -1), -1):
        if (number := _number(tokens[place])) is not None:
            return None if place and tokens[place - 1] in _ROUGHLY else number
        if tokens[place] in _NO_ADJECTIVE or not tokens[place][0].isalpha():
            return None
    return None


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 4 else NUMBER_WORDS.get(word)


def _only_number(answer: str) -> int | None:
    """The number of an answer that has a single, exact one."""
    if _VAGUE.search(answer):
        return None
    numbers = [number for word in words_of(answer) if (number := _number(word)) is not None]
    return numbers[0] if len(numbers) == 1 else None
