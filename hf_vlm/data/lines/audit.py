"""Whether lines with texts can be learnt from: every fault with its file and row, before a run finds them one by one."""

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from hf_vlm.data.lines.image_text import TextLines, find_splits, read_lines, rows_of_no_split
from hf_vlm.data.worker_processes import check_num_proc, work_on

_SAMPLES = 5  # of each kind, in the text report
_FOUND = datasets.Features(  # `faults`: kind and message each, as JSON; the others only of a picture that can be read
    {
        "faults": datasets.Value("string"),
        "digest": datasets.Value("binary"),
        "height": datasets.Value("int64"),
        "aspect": datasets.Value("float64"),
    }
)


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
    num_proc: int = 1,
) -> LineAudit:
    """Read every line of a data set and tell what is wrong with it.

    Args:
        path: a folder or file that `read_lines` reads.
        splits: which splits; None takes all those of the usual names.
        where: columns to choose rows by, as in `read_lines`.
        tokenizer: of the model that is to learn; None leaves labels and characters unchecked.
        max_label_length: the longest label in tokens, end token included; None for no limit.
        prepare: makes a picture of any mode what training makes of it.
        num_proc: processes that open pictures and try labels; what is found is the same for any number.

    Raises:
        ChildProcessError: if one of these processes is killed.
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it has none of the layouts, or not the split asked for, nor another that can be audited.
    """
    check_num_proc(num_proc)
    audit = LineAudit()

    def fault(kind: str, message: str) -> None:
        audit.faults.setdefault(kind, []).append(message)

    seen: dict[bytes, tuple[str, str]] = {}  # of a picture's pixels -> split and source that had them first
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
        look = functools.partial(look_at_lines, tokenizer=tokenizer, max_label_length=max_label_length, prepare=prepare)
        found_in_rows = work_on(rows, look, _FOUND, num_proc=num_proc)
        for text, source, of_row in zip(rows.texts, rows.sources, found_in_rows, strict=True):
            for character in text:
                first.setdefault(character, source)
            counts.update(text)
            for kind, message in json.loads(of_row["faults"]):
                fault(kind, message)
            if of_row["digest"] is None:
                continue
            for counted, value, step in ((audit.heights, of_row["height"], 16), (audit.aspects, of_row["aspect"], 5)):
                limit = max(math.ceil(value / step), 1) * step
                counted[limit] = counted.get(limit, 0) + 1
            known = seen.setdefault(of_row["digest"], (name, source))
            if known[0] != name:
                fault(
                    "pictures in two splits", f"{source}: the same picture is in `{known[0]}` ({known[1]}). Remove one."
                )
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


def look_at_lines(
    rows: TextLines,
    first: int,
    *,
    tokenizer: Any,
    max_label_length: int | None,
    prepare: Callable[[Image.Image], Image.Image],
) -> Iterator[dict[str, Any]]:
    """What is found in each line, as `_FOUND` has it: its label tried, its picture opened.

    Args:
        first: number of the first in the whole set; nothing depends on it.
        tokenizer, max_label_length, prepare: as in `audit_lines`.
    """
    for index, (text, source) in enumerate(zip(rows.texts, rows.sources, strict=True)):
        faults: list[tuple[str, str]] = []
        if message := _label_fault(text, tokenizer, max_label_length):
            faults.append(("labels", f"{source}: {message}"))
        found: dict[str, Any] = {"digest": None, "height": None, "aspect": None}
        try:
            image = prepare(rows[index]["image"])
        except (ValueError, OSError) as error:
            faults.append(("unreadable pictures", str(error)))
        else:
            extrema: Any = image.getextrema()
            levels = extrema if isinstance(extrema[0], tuple) else (extrema,)  # (darkest, lightest) a band
            if all(darkest == lightest for darkest, lightest in levels):
                level = ", ".join(str(darkest) for darkest, _ in levels)
                told = f"{source}: wanted a picture with text, got one grey level, {level}. Remove the row."
                faults.append(("empty pictures", told))
            found = {"digest": _digest(image), "height": image.height, "aspect": image.width / image.height}
        yield {**found, "faults": json.dumps(faults)}


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


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()
