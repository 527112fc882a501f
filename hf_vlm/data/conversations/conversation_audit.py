"""Whether conversations can be learnt from, and how much there is to learn: every fault with its file and row."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_vlm.data.conversations.conversations import (
    ConversationError,
    Conversations,
    find_conversation_splits,
    read_conversations,
)
from hf_vlm.data.worker_processes import check_num_proc, work_on

_SAMPLES = 5  # of each kind, in the text report
_NOT_LEARNT = -100  # label of a token without loss
_FOUND = datasets.Features(  # `faults`: kind and message each, as JSON; the numbers are of tokens
    {
        "digest": datasets.Value("binary"),
        "faults": datasets.Value("string"),
        **{of: datasets.Value("int64") for of in ("all", "text", "trained")},
    }
)


@dataclass
class ConversationAudit:
    """What was found.

    Attributes:
        num_conversations: split -> how many can be read.
        faults: kind -> messages; any makes the data unusable as it is.
        picture_counts: pictures in a conversation -> how many conversations have so many.
        num_tokens: of all conversations that can be encoded, `all`, `text` (those of pictures left out) and `trained` (those
            that carry loss); empty without a processor.
        lengths: tokens of a conversation, those of pictures included: `median`, `95 %` (so many are at most that long) and
            `longest`; empty likewise.
    """

    num_conversations: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    picture_counts: dict[int, int] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether training and evaluation on the data will run, and mean something."""
        return not self.faults and sum(self.num_conversations.values()) > 0

    @property
    def text_only_share(self) -> float | None:
        """Share in [0, 1] of conversations without a picture; None if there are none at all."""
        total = sum(self.picture_counts.values())
        return self.picture_counts.get(0, 0) / total if total else None

    @property
    def trained_shares(self) -> dict[str, float]:
        """Share in [0, 1] of trained tokens in `text` tokens and in `all`."""
        return {
            of: self.num_tokens["trained"] / self.num_tokens[of] for of in ("text", "all") if self.num_tokens.get(of)
        }

    def to_dict(self) -> dict[str, Any]:
        """The attributes and properties by name."""
        return {
            **asdict(self),
            "text_only_share": self.text_only_share,
            "trained_shares": self.trained_shares,
            "is_usable": self.is_usable,
        }

    def __str__(self) -> str:
        lines = [f"{split}: {number} conversations" for split, number in self.num_conversations.items()]
        counts = ", ".join(f"{number}: {count}" for number, count in sorted(self.picture_counts.items()))
        if self.text_only_share is not None:
            lines.append(f"pictures in a conversation: {counts}; text only: {100 * self.text_only_share:.1f} %")
        if self.lengths:
            lines.append("tokens: " + ", ".join(f"{name} {number}" for name, number in self.lengths.items()))
        if self.trained_shares:
            shares = [f"{100 * share:.1f} % of {of}" for of, share in self.trained_shares.items()]
            lines.append(f"trained tokens: {self.num_tokens['trained']}, {', '.join(shares)}")
        for kind, messages in self.faults.items():
            lines.append(f"{kind}: {len(messages)}")
            lines += [f"  {message}" for message in messages[:_SAMPLES]]
            if len(messages) > _SAMPLES:
                lines.append(f"  ... and {len(messages) - _SAMPLES} more (`--json` lists all)")
        lines.append("usable" if self.is_usable else "not usable as it is: mend or remove what is listed")
        return "\n".join(lines)


def audit_conversations(
    path: str | Path,
    splits: Iterable[str | None] | None = None,
    *,
    image_folder: str | Path | None = None,
    processor: Any = None,
    max_length: int | None = None,
    num_proc: int = 1,
) -> ConversationAudit:
    """Read every conversation of a data set, open every picture, and tell what is wrong.

    Args:
        path: a folder or file that `read_conversations` reads.
        splits: which splits; None takes all there are.
        image_folder: that the names of pictures are relative to, as in `read_conversations`.
        processor: of the model that is to learn, with `encode_conversation` and `image_token_id`; None leaves tokens
            unchecked and uncounted.
        max_length: the most tokens of a conversation, those of pictures included; longer ones are faults, as training cuts
            them. None for no limit.
        num_proc: processes that open pictures and count tokens; what is found is the same for any number.

    Raises:
        ChildProcessError: if one of these processes is killed.
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it has none of the layouts, or not the split asked for, nor another that can be audited; or
            `max_length` comes without a processor.
    """
    if max_length is not None and processor is None:
        raise ValueError(f"`max_length` wants a processor to count tokens with, got {max_length} and none. Give one.")
    check_num_proc(num_proc)
    audit = ConversationAudit()

    def fault(kind: str, message: str) -> None:
        audit.faults.setdefault(kind, []).append(message)

    def bad_row(error: Exception) -> None:
        missing = "missing pictures" if isinstance(error, FileNotFoundError) else "bad rows"
        fault(error.kind if isinstance(error, ConversationError) else missing, str(error))

    seen: dict[bytes, tuple[str, str]] = {}  # a conversation's hash -> split and source that had it first
    lengths: list[int] = []
    failure: Exception | None = None
    for split in list(splits or find_conversation_splits(path)):
        name = split or "all"
        audit.num_conversations[name] = 0
        try:
            rows = read_conversations(path, split, image_folder=image_folder, on_bad_row=bad_row)
        except (ValueError, OSError) as error:  # nor does it end the audit of other splits
            fault("splits without conversations", str(error))
            failure = error
            continue
        audit.num_conversations[name] = len(rows)
        look = functools.partial(look_at_rows, processor=processor, max_length=max_length)
        for index, found in enumerate(work_on(rows, look, _FOUND, num_proc=num_proc)):
            num_pictures = rows.num_images(index)
            audit.picture_counts[num_pictures] = audit.picture_counts.get(num_pictures, 0) + 1
            if found["digest"] is not None:
                known = seen.setdefault(found["digest"], (name, rows.sources[index]))
                if known[0] != name:
                    told = f"the same conversation is in `{known[0]}` ({known[1]}). Remove one."
                    fault("conversations in two splits", f"{rows.sources[index]}: {told}")
            for kind, message in json.loads(found["faults"]):
                fault(kind, message)
            if found["all"] is not None:
                lengths.append(found["all"])
                for of in ("all", "text", "trained"):
                    audit.num_tokens[of] = audit.num_tokens.get(of, 0) + found[of]
    if failure is not None and len(audit.faults) == 1 and not any(audit.num_conversations.values()):
        raise failure
    if lengths:
        median, most, longest = np.quantile(lengths, [0.5, 0.95, 1.0], method="inverted_cdf")
        audit.lengths = {"median": int(median), "95 %": int(most), "longest": int(longest)}
    return audit


def look_at_rows(
    rows: Conversations, first: int, *, processor: Any, max_length: int | None
) -> Iterator[dict[str, Any]]:
    """What is found in each row, as `_FOUND` has it: its pictures opened, its tokens counted.

    Args:
        first: number of the first in the whole set; nothing depends on it.
        processor, max_length: as in `audit_conversations`.
    """
    for index in range(len(rows)):
        faults: list[tuple[str, str]] = []
        digest = _digest(rows, index, faults)
        counts = {} if processor is None else _count_tokens(rows, index, processor, max_length, faults)
        yield {"digest": digest, "faults": json.dumps(faults), **dict.fromkeys(("all", "text", "trained")), **counts}


def _digest(rows: Conversations, index: int, faults: list[tuple[str, str]]) -> bytes | None:
    """Opens the pictures; SHA-256 of words and pixels, None if a picture can't be read."""
    content = hashlib.sha256(json.dumps(rows.messages(index)).encode())
    try:
        for image in rows.images(index):
            content.update(repr((image.mode, image.size)).encode() + image.tobytes())
    except (ValueError, OSError) as error:
        kind = "missing pictures" if isinstance(error, FileNotFoundError) else "unreadable pictures"
        faults.append((kind, str(error)))
        return None
    return content.digest()


def _count_tokens(
    rows: Conversations, index: int, processor: Any, max_length: int | None, faults: list[tuple[str, str]]
) -> dict[str, int]:
    """Tokens of a row, as `ConversationAudit.num_tokens` has them; empty if it can't be encoded."""
    source, messages = rows.sources[index], rows.messages(index)
    try:
        encoded = processor.encode_conversation(messages)
    except ValueError as error:
        faults.append(("conversations that can't be encoded", f"{source}: {error}"))
        return {}
    length = len(encoded["input_ids"])
    num_text = sum(token != processor.image_token_id for token in encoded["input_ids"])
    num_trained = sum(
        label != _NOT_LEARNT for label in encoded["labels"][1:]
    )  # nothing is before the first to tell it by
    if not num_trained:
        told = f"{source}: wanted tokens that carry loss, got none in {length}. Remove the row."
        faults.append(("nothing to learn", told))
    elif max_length is not None and length > max_length:
        told = f"{source}: wanted at most {max_length} tokens, got {length}. Shorten it, or raise the limit."
        faults.append(("too long", told))
        try:
            processor.encode_conversation(messages, max_length=max_length)
        except ValueError as error:
            faults.append(("nothing left when cut", f"{source}: {error}"))
    return {"all": length, "text": num_text, "trained": num_trained}
