"""Which licence a model may have that is made of parts: never one that allows more than a part's.

Source: the Hub's licence ids, https://huggingface.co/docs/hub/repositories-licenses
"""

import difflib
from collections.abc import Mapping

_NONE = ("cc0-1.0", "pddl", "unlicense", "wtfpl")
_NOTICE = (
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "bsl-1.0",
    "isc",
    "mit",
    "ncsa",
    "postgresql",
    "zlib",
)
_ATTRIBUTION = (
    "afl-3.0",
    "apache-2.0",
    "artistic-2.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "ecl-2.0",
    "ms-pl",
    "odc-by",
)
_OWN_TERMS = (  # share alike, non-commercial, or with rules of use: what is made of them keeps them
    *("agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "mpl-2.0", "osl-3.0"),
    *("cc", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-2.0"),
    *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0"),
    *("c-uda", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "lppl-1.3c", "odbl", "ofl-1.1"),
    *("openrail", "openrail++", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m"),
    *(
        "creativeml-openrail-m",
        "apple-amlr",
        "apple-ascl",
        "deepfloyd-if-license",
        "fair-noncommercial-research-license",
    ),
    *(
        "h-research",
        "intel-research",
        "gemma",
        "grok2-community",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
    ),
    "llama4",
)
_LEVELS: tuple[tuple[str, ...], ...] = (_NONE, _NOTICE, _ATTRIBUTION, _OWN_TERMS)
OTHER = "other"
KNOWN_LICENSES: tuple[str, ...] = (*(name for level in _LEVELS for name in level), OTHER)

# Of these the last that a part has covers all: each asks for what those before it ask, and more.
_DERIVED = ("cc0-1.0", "unlicense", "isc", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0")


def settle_license(wanted: str | None, parts: Mapping[str, str]) -> str:
    """The licence of a model.

    Args:
        wanted: what its author says; None derives it, where the parts' licences are the same, or all of the simple permissive
            kind (public domain, ISC, MIT, BSD, Apache-2.0).
        parts: role -> licence of its source; "" where that is not known.

    Raises:
        ValueError: if it has to be named, is unknown, or allows more than a part's.
    """
    if wanted is None:
        return _derived(parts)
    if wanted not in KNOWN_LICENSES:
        near = difflib.get_close_matches(wanted.lower(), KNOWN_LICENSES, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else "Take `other`, with its name and link."
        raise ValueError(f"`license` must be one that the Hub knows, such as `apache-2.0`, got {wanted!r}. {hint}")
    for role, license in parts.items():
        if license and wanted != OTHER and not covers(wanted, license):
            raise ValueError(
                f"A model's licence must not allow more than that of its part `{role}`, {license}, got `{wanted}`. Take that "
                "licence, or `other`, with a name and a link to terms that keep it."
            )
    return wanted


def _derived(parts: Mapping[str, str]) -> str:
    licenses = set(parts.values())
    if len(licenses) == 1 and (only := next(iter(licenses))) in KNOWN_LICENSES and only != OTHER:
        return only
    if licenses and licenses <= set(_DERIVED):
        return max(licenses, key=_DERIVED.index)
    told = ", ".join(f"`{role}`: {license or 'not recorded'}" for role, license in parts.items())
    raise ValueError(
        "A card wants a licence, which follows from the parts' only where all are known and simply agree, got "
        f"{told or 'no part with one'}. Name it by `license` (`--license`)."
    )


def covers(wanted: str, license: str) -> bool:
    """Whether a licence allows no more than that of a part."""
    if wanted == license:
        return True
    of_part = next((level for level, names in enumerate(_LEVELS) if license in names), len(_LEVELS))
    own = next(level for level, names in enumerate(_LEVELS) if wanted in names)
    return of_part < _LEVELS.index(_OWN_TERMS) and own >= of_part
