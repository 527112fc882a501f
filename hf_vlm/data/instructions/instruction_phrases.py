"""Words that an answer about a picture must not have, by why not; English, but for tokens and marks, which are everyone's.

Each is a regular expression, read without regard to case where it says so. A new one goes into its list, and into the tests.
"""

import re
from collections.abc import Sequence

_SAID = r"descriptions?|sentences?|information|context|statements?|prompt"
_GIVEN = r"given|provided|above|following|supplied|listed"
_TELLS = r"says?|states?|mentions?|tells?|describes?|suggests?|indicates?|does|do|provides?|implies"

IMAGE_TOKENS = (
    r"<\s*/?\s*(?:image|img|im_patch|video|vision)[^>]{0,20}>",
    r"\[IMG\]",
    r"<\|(?:image|vision)[^|]*\|>",
)
ROLE_MARKERS = (
    r"<\|[^|>]*\|>",
    r"</?s>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"<(?:start|end)_of_turn>",
    r"#{3,}",
    r"={3,}",
    r"(?:^|\n|(?<=[.?!] ))(?:(?:USER|ASSISTANT|SYSTEM|HUMAN|User|Assistant|System|Human|Question|Answer)\s?\d*|[QA]\d*)\s?:",
)
CAPTIONS = (
    r"\bcaption(?:s|ed)?\b",
    rf"\b(?:{_GIVEN}) (?:text|details|list|words|data|{_SAID})\b",
    rf"\b(?:text|{_SAID}) (?:{_GIVEN})\b",
    rf"\b(?:according to|based on|from|in|by|per|as) (?:the|this|these|your|its) (?:image |picture )?(?:{_SAID})\b",
    rf"\b(?:the|these|this) (?:{_SAID}) (?:{_TELLS})\b",
    r"\bthe text (?:says|states|mentions|describes|provided|does)\b(?! \")",  # what a sign says is quoted
    r"\b(?:is|are|was|were|been|as) (?:not )?(?:\w+ly )?(?:mentioned|specified|stated|described|listed) "
    r"(?:in|as|by|above|earlier|here)\b",
    r"\bnot (?:\w+ly )?(?:mentioned|specified|stated)\b",
    r"\bas (?:mentioned|stated)\b",
    r"\bno mention of\b",
    r"\bannotat(?:ed|ions?)\b",
    r"\bdata ?set\b",
)
BOXES = (
    r"\bbounding[ -]?box\w*",
    r"\bcoordinates?\b",
    r"\bbbox\w*",
    r"[\[(]\s*[01]?\.\d+\s*,",
    r"\b[01]\.\d+\s*,\s*[01]\.\d+",
    r"\b0\.\d{3}\b",
    r"\b[xy][12]\b",
    r"\bnormali[sz]ed (?:position|value)s?\b",
)
AS_A_MODEL = (
    r"\bas an? (?:ai|artificial|(?:large )?language|text[- ]based|(?:virtual |digital )?assistant)\b",
    r"\bi(?:'m| am) (?:just |only )?an? (?:ai|language|text|virtual|digital|assistant)\b",
    r"\blanguage model\b",
    r"\bi(?:'m| am) (?:sorry|unable|afraid i)\b",
    r"^sorry\b",
    r"\bunable to (?:see|view|access|determine)\b",
    r"\bi (?:cannot|can't|can not|do not|don't|could not|couldn't) (?:\w+ly )?"
    r"(?:see|view|access|have|look|know|tell|determine|provide|open|display)\b",
    r"\bi apologi[sz]e\b",
    r"\bi (?:was|have) not been (?:given|provided)\b",
    r"\btraining data\b",
    r"\b(?:provide|share|upload|attach|send|show) (?:me )?(?:with )?(?:the|an?|your) (?:image|picture|photo)\b",
    r"\bhow can i (?:help|assist)\b",
)
NOT_KNOWN = (
    r"\b(?:can|could|may)(?:not| not|'t) be (?:\w+ )?(?:determined|known|said|told|answered|identified|inferred|confirmed)\b",
    r"\b(?:not|n't) (?:\w+ly )?clear (?:what|who|how|if|whether|why|from|where|which|that)\b",
    r"\bit (?:is not|isn't) clear\b",
    r"\bunclear\b",
    r"\b(?:im|not )possible to (?:say|tell|know|determine|see|identify|be)\b",
    r"\b(?:hard|difficult) to (?:say|tell|determine|know)\b",
    r"\bunknown\b",
    r"\bnot (?:known|certain|sure|determinable|enough information)\b",
    r"\bwithout (?:knowing|(?:more|further|additional) (?:information|context|details))\b",
    r"\bno (?:information|indication|way to (?:know|tell))\b",
    r"\bdepends on the (?:context|picture|image)\b",
)
HEDGES = (
    r"\b(?:possibly|perhaps|maybe|probably|presumably|supposedly|potentially|likely|unlikely|might)\b",
    r"\bmay (?:be|have|also)\b",
    r"\bcould (?:be|have)\b",
    r"\bmust have been\b",
    r"\bi (?:think|guess|believe|assume)\b",
    r"\bit is possible\b",
    r"\bsuggest(?:s|ing)? that\b",
)


def compiled(phrases: Sequence[str], ignore_case: bool = True) -> re.Pattern[str]:
    """One expression for any of the phrases."""
    return re.compile("|".join(f"(?:{phrase})" for phrase in phrases), re.IGNORECASE if ignore_case else 0)


def found_in(pattern: re.Pattern[str], parts: Sequence[str]) -> str | None:
    """The first match in any of the parts, with some of the text around it; None where there is none."""
    for part in parts:
        if match := pattern.search(part):
            return part[max(0, match.start() - 30) : match.end() + 30].strip()
    return None
