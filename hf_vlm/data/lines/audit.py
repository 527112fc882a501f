"""Whether lines with texts can be learnt from: every fault with its file and row, before a run finds them one by one."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from hf_vlm.data.lines.image_text import TextLines, find_splits, read_lines, rows_of_no_split

_SAMPLES = 5  # of each kind, in the text report


@dataclass
class LineAudit:
    """What was found.

    Attributes:
        num_lines: split -> how many lines can be read.
        faults: kind -> messages; any makes the data unusable as it is.
        characters: those that do not come back from the tokenizer: `{"character", "becomes", "count", "first"}` each.
        heights: px -> how many pictures are that high at most and higher than the step before.
        aspects: width by height -> likewise.
    """

    num_lines: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    characters: list[dict[str, Any]] = field(default_factory=list)
    heights: dict[int, int] = field(default_factory=dict)
    aspects: dict[int, int] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether training and evaluation on the data will run, and mean something."""
        return not self.faults and sum(self.num_lines.values()) > 0

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, and `is_usable`."""
        return {**asdict(self), "is_usable": self.is_usable}

    def __str__(self) -> str:
        lines = [f"{split}: {number} lines" for split, number in self.num_lines.items()]
        for name, counts in (("height, px", self.heights), ("width / height", self.aspects)):
            lines.append(f"{name}: " + ", ".join(f"<= {limit}: {number}" for limit, number in sorted(counts.items())))
        for kind, messages in self.faults.items():
            lines.append(f"{kind}: {len(messages)}")
            lines += [f"  {message}" for message in messages[:_SAMPLES]]
            if len(messages) > _SAMPLES:
                lines.append(f"  ... and {len(messages) - _SAMPLES} more (`--json` lists all)")
        if self.characters:
            lines.append("characters that the tokenizer does not give back, most frequent first:")
        for row in self.characters[: 4 * _SAMPLES]:
            code = f"U+{ord(row['character']):04X}"
            lines.append(f"  {row['character']!r} {code} x {row['count']}: becomes {row['becomes']!r}; {row['first']}")
        if len(self.characters) > 4 * _SAMPLES:
            lines.append(f"  ... and {len(self.characters) - 4 * _SAMPLES} more (`--json` lists all)")
        lines.append("usable" if self.is_usable else "not usable as it is: mend or remove what is listed")
        return "\n".join(lines)


def _to_grey(image: Image.Image) -> Image.Image:
    """The picture in grey, for whom no model prepares it; as it is if it is transparent or has more than 8 bits."""
    return image if image.has_transparency_data or image.mode.startswith(("I", "F")) else image.convert("L")


def audit_lines(
    path: str | Path,
    splits: Iterable[str | None] | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    max_label_length: int | None = None,
    prepare: Callable[[Image.Image], Image.Image] = _to_grey,
) -> LineAudit:
    """Read every line of a data set and tell what is wrong with it.

    Args:
        path: a folder or file that `read_lines` reads.
        splits: which splits; None takes all those of the usual names.
        where: columns to choose rows by, as in `read_lines`.
        tokenizer: of the model that is to learn; None leaves labels and characters unchecked.
        max_label_length: the longest label in tokens, end token included; None for no limit.
        prepare: makes a picture of any mode what training makes of it.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it has none of the layouts, or not the split asked for, nor another that can be audited.
    """
    audit = LineAudit()

    def fault(kind: str, message: str) -> None:
        audit.faults.setdefault(kind, []).append(message)

    seen: dict[str, tuple[str, str]] = {}  # of a picture's pixels -> split and source that had them first
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    failure: Exception | None = None
    found = list(splits or find_splits(path))
    for split in found:
        name = split or "all"
        audit.num_lines[name] = 0
        try:
            rows = read_lines(path, split, where=where, on_bad_row=lambda error: fault("bad rows", str(error)))
        except (ValueError, OSError) as error:  # nor does it end the audit of other splits
            fault("splits without lines", str(error))
            failure = error
            continue
        audit.num_lines[name] = len(rows)
        for index, (text, source) in enumerate(zip(rows.texts, rows.sources, strict=True)):
            for character in text:
                first.setdefault(character, source)
            counts.update(text)
            if message := _label_fault(text, tokenizer, max_label_length):
                fault("labels", f"{source}: {message}")
            _check_picture(audit, fault, rows, index, name, seen, prepare)
    if failure is not None and len(audit.faults) == 1 and not any(audit.num_lines.values()):
        raise failure
    if not splits:
        for message in rows_of_no_split(path, found):
            fault("rows of no split", message)
    if "bad rows" in audit.faults:  # a file of all splits is read for each
        audit.faults["bad rows"] = list(dict.fromkeys(audit.faults["bad rows"]))
    if tokenizer is not None:
        for character, count in counts.most_common():
            becomes = _given_back(character, tokenizer)
            if becomes != character:
                row = {"character": character, "becomes": becomes, "count": count, "first": first[character]}
                audit.characters.append(row)
    return audit


def _label_fault(text: str, tokenizer: Any, max_label_length: int | None) -> str | None:
    if tokenizer is None:
        return None
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens or (tokenizer.unk_token_id is not None and set(tokens) == {tokenizer.unk_token_id}):
        return f"wanted a label that the tokenizer can write, got {text!r}. Leave the row out, or extend the alphabet."
    if max_label_length is not None and len(tokens) + 1 > max_label_length:
        return f"wanted at most {max_label_length} tokens, got {len(tokens) + 1} for {text[:60]!r}. Leave the row out."
    return None


def _given_back(character: str, tokenizer: Any) -> str:
    """What a character reads after a way through the tokenizer, set between two letters, where spaces last."""
    tokens = tokenizer(f"a{character}a", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == "a" else text.replace("a", "")


def _check_picture(
    audit: LineAudit,
    fault: Any,
    rows: TextLines,
    index: int,
    split: str,
    seen: dict[str, tuple[str, str]],
    prepare: Callable[[Image.Image], Image.Image],
) -> None:
    source = rows.sources[index]
    try:
        image = prepare(rows[index]["image"])
    except (ValueError, OSError) as error:
        fault("unreadable pictures", str(error))
        return
    extrema: Any = image.getextrema()
    levels = extrema if isinstance(extrema[0], tuple) else (extrema,)  # (darkest, lightest) a band
    if all(darkest == lightest for darkest, lightest in levels):
        level = ", ".join(str(darkest) for darkest, _ in levels)
        fault("empty pictures", f"{source}: wanted a picture with text, got one grey level, {level}. Remove the row.")
    for counts, value, step in ((audit.heights, image.height, 16), (audit.aspects, image.width / image.height, 5)):
        limit = max(math.ceil(value / step), 1) * step
        counts[limit] = counts.get(limit, 0) + 1
    pixels = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()
    known = seen.setdefault(pixels, (split, source))
    if known[0] != split:
        fault("pictures in two splits", f"{source}: the same picture is in `{known[0]}` ({known[1]}). Remove one.")
