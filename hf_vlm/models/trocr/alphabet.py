"""Teach a reader's tokenizer and model new characters: rows to learn in, and an account of what the texts gain by them.

    characters, texts -> NFC -> those that don't come back from the tokenizer
      -> entries of its vocabulary, behind the known ones -> rows of embedding, output layer and CTC head
      -> what every text reads after a way through the tokenizer, before and after

A new character is an entry of the vocabulary, not an added token: those are cut out of a text before it is split into
words, and decoding then sets spaces beside them (WordPiece, Unigram) where none were.
"""

import json
import math
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...parts.picture_text_processor import check_vocabulary, load_tokenizer
from .modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from .processing_trocr import TrOCREncoderDecoderProcessor

# How far a new row starts from its relative's, on the way to the mean of all rows. Above 0, so that of the two the known
# character is the likelier: logits are linear in the rows, hence no new one is the highest before it was learnt.
_WAY_TO_MEAN = 0.1

# Characters of one shape, Latin, Greek and Cyrillic letters and what formulas and typesetters use for one another.
_LOOK_ALIKES = (
    "AΑА", "BΒВ", "CСϹ", "EΕЕ", "HΗН", "IΙІ", "JЈ", "KΚК", "MΜМ", "NΝ", "OΟО", "PΡР", "SЅ", "TΤТ", "XΧХ", "YΥУ", "ZΖ",
    "aαа", "cсϲ", "eеε", "iιі", "jј", "kκк", "nη", "oοо", "pρр", "sѕς", "tτт", "uυ", "vν", "wω", "xχх", "yγу", "ßβ", "µμ",
    "ΓГ", "ΔД∆", "ΛЛ", "ΠП∏", "ΣЕ∑", "ΦФ", "ΩΩ", "3З", "6б", "-−‐‑–", "'′ʼ’", '"″”', "·⋅∙•", "*∗", ":∶", "/⁄∕", "|∣",
    "~∼", "<≤⟨‹", ">≥⟩›", "=≡≈",
)  # fmt: skip

_SHOWN = 40  # characters in the text report


@dataclass
class CharacterReport:
    """What became of one character.

    Attributes:
        character: one code point, in NFC.
        count: how often the texts have it.
        status: `known` (came back from the tokenizer as it was), `added`, `normalised` (the tokenizer's normaliser writes
            something else for it), `lost` (the tokenizer takes no entry for it), `refused` (a control character or
            half of a surrogate pair).
        becomes: what it reads within a word after a way through the tokenizer as it is now; with spaces beside it where
            the tokenizer takes it for a word of its own.
        starts_from: of an added one the character whose rows its own start beside; None for the mean of all.
    """

    character: str
    count: int
    status: str
    becomes: str
    starts_from: str | None = None


@dataclass
class AlphabetReport:
    """What extending an alphabet did.

    Attributes:
        characters: all that were asked for or that the texts have, most frequent first.
        num_rows: of the model's vocabulary, before and after.
        num_characters, num_lines: in the texts, as far as not empty.
        characters_written: share in [0, 1] of the texts' characters that come back, before and after.
        lines_written: share of the texts that come back from the tokenizer exactly, before and after.
    """

    characters: list[CharacterReport] = field(default_factory=list)
    num_rows: tuple[int, int] = (0, 0)
    num_characters: int = 0
    num_lines: int = 0
    characters_written: tuple[float, float] = (1.0, 1.0)
    lines_written: tuple[float, float] = (1.0, 1.0)

    def of(self, *statuses: str) -> list[CharacterReport]:
        """The characters of these statuses."""
        return [row for row in self.characters if row.status in statuses]

    @property
    def is_complete(self) -> bool:
        """Whether every character can be written now."""
        return len(self.of("known", "added")) == len(self.characters)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, and `is_complete`."""
        return {**asdict(self), "is_complete": self.is_complete}

    def __str__(self) -> str:
        rows = [("character", "code", "in the texts", "status", "", "name")]
        told = self.of("added", "normalised", "lost", "refused")
        for row in told[:_SHOWN]:
            details = [f"becomes {row.becomes!r}"] if row.becomes != row.character else []
            if row.status == "added":
                details.insert(0, f"starts from {row.starts_from!r}" if row.starts_from else "starts from the mean")
            # a mark is shown on a dotted circle, as in Unicode's charts
            shown = f"'\u25cc{row.character}'" if unicodedata.combining(row.character) else repr(row.character)
            name = unicodedata.name(row.character, "")
            rows.append((shown, f"U+{ord(row.character):04X}", str(row.count), row.status, ", ".join(details), name))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if len(told) > _SHOWN:
            lines.append(f"... and {len(told) - _SHOWN} more (`--json` lists all)")
        lines = lines if told else []
        lines.append(
            f"{len(self.of('added'))} characters added, {len(self.of('known'))} known already; vocabulary "
            f"{self.num_rows[0]} -> {self.num_rows[1]} rows"
        )
        if self.num_lines:
            for what, number, (before, after) in (
                ("characters", self.num_characters, self.characters_written),
                ("whole lines", self.num_lines, self.lines_written),
            ):
                shares = [f"{math.floor(10_000 * share) / 100:.2f} %" for share in (before, after)]  # 100 % is all
                lines.append(f"{what} written, of {number}: {' -> '.join(shares)}")
        if self.of("normalised", "lost"):
            lines.append(
                "This tokenizer cannot write some of them. Leave their lines out, or train a model with `model.tokenizer: "
                "characters`, which keeps all."
            )
        return "\n".join(lines)


def extend_folder(
    model: str | os.PathLike, out: str | os.PathLike, characters: str = "", texts: Iterable[str] = ()
) -> AlphabetReport:
    """Extend the alphabet of a model and save it, with its processor, to another folder.

    Nothing is saved where no character is new.

    Args:
        model: Hub name or folder; its weights keep their precision.
        out: folder to write, in which no model is yet.
        characters, texts: as for `extend_alphabet`.

    Raises:
        ValueError: if `out` is a file or holds a model, or as `extend_alphabet`.
    """
    if Path(out).is_file() or (Path(out) / "config.json").exists():
        raise ValueError(f"`out` must be a folder without a model, got {out}. Name a new one.")
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(model)
    processor = TrOCREncoderDecoderProcessor.from_pretrained(model)
    report = extend_alphabet(reader, processor, characters, texts)
    if report.of("added"):
        reader.save_pretrained(out)
        processor.save_pretrained(out)
    return report


def extend_alphabet(
    model: TrOCREncoderDecoderForConditionalGeneration,
    processor: TrOCREncoderDecoderProcessor,
    characters: str = "",
    texts: Iterable[str] = (),
) -> AlphabetReport:
    """Give a reader, in place, the characters that its tokenizer loses, and tell what that changed.

    Old rows stay as they are bit for bit, so do the logits of old tokens. A new row starts near that of a relative (the
    letter without its accent, one of the same shape, the other case), else at the mean of all, and below either: until it
    is trained a greedy reading never has a new character. Scores fall, as the new rows take their share of the softmax.

    Args:
        characters: to add, such as "ąćęł"; brought to NFC, white space collapsed.
        texts: texts whose characters shall all be written, such as the transcripts of a training set.

    Raises:
        ValueError: if neither holds a character, `characters` holds one that cannot be printed, the tokenizer is not of
            the `tokenizers` library, or it and the model don't belong together. Both are then as they were.
    """
    tokenizer = processor.tokenizer
    characters = _collapsed(characters)
    lines = [line for text in texts if (line := _collapsed(text))]
    counts = Counter(character for line in lines for character in line)
    alphabet = [*(character for character, _ in counts.most_common()), *sorted(set(characters) - set(counts))]
    if not alphabet:
        raise ValueError("`characters` or `texts` must hold characters, got none. Give some.")
    if unprintable := sorted(filter(_is_refused, characters)):
        raise ValueError(f"`characters` must be printable, got U+{ord(unprintable[0]):04X}. Leave it out.")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"The tokenizer must be one of the `tokenizers` library, got `{type(tokenizer).__name__}`. Convert it first."
        )
    check_vocabulary(model, tokenizer)

    rows = {c: CharacterReport(c, counts[c], "refused" if _is_refused(c) else "known", c) for c in alphabet}
    asked = [c for c in alphabet if rows[c].status == "known"]
    before = _round_trips(tokenizer, asked)
    missing = [c for c in asked if not _is_written(c, before[c])]
    for c in missing:
        rows[c].status = "normalised" if _is_normalised_away(tokenizer, c) else "added"
    new = [c for c in missing if rows[c].status == "added"]
    extended = tokenizer
    if new:
        after = _round_trips(_with_entries(tokenizer, new), asked)
        for c in new:
            if not _is_written(c, after[c]):
                rows[c].status = "lost"
        new = [c for c in new if rows[c].status == "added"]
        extended = _with_entries(tokenizer, new) if new else tokenizer
    after = _round_trips(extended, asked)
    for c in asked:
        rows[c].becomes = after[c]

    old_vocabulary: dict[str, int] = tokenizer.get_vocab()
    for c in new:
        rows[c].starts_from = _relative(c, old_vocabulary)
    starts: dict[int, int | None] = {}
    for entry, c, token_id in _new_entries(extended, old_vocabulary, new):
        relative = rows[c].starts_from
        # in the same place of a word where the tokenizer tells them apart: `##ą` from `##a`
        starts[token_id] = (
            old_vocabulary.get(entry.replace(c, relative), old_vocabulary[relative]) if relative else None
        )
    num_rows = _grow(model, sorted(old_vocabulary.values()), starts)
    processor.tokenizer = extended

    written = {c for c in asked if _is_written(c, after[c])}
    return AlphabetReport(
        characters=list(rows.values()),
        num_rows=num_rows,
        num_characters=counts.total(),
        num_lines=len(lines),
        characters_written=(_share(counts, set(asked) - set(missing)), _share(counts, written)),
        lines_written=(_lines_written(tokenizer, lines), _lines_written(extended, lines)),
    )


# Characters


def _collapsed(text: str) -> str:
    """NFC, runs of white space as one space, none at the ends: as `read_lines` gives texts."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _is_refused(character: str) -> bool:
    """Whether nothing would be seen of it: controls, marks of direction or order, private and unassigned places."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs") and character not in "\u200c\u200d"


def _relative(character: str, vocabulary: Mapping[str, int]) -> str | None:
    """The nearest character of the vocabulary that looks or is alike: `ą` has `a`, `ά` by way of `α` has `a`."""
    seen, queue = {character}, [character]
    for member in queue:
        if member != character and member in vocabulary:
            return member
        for other in _alike(member):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return None


def _alike(character: str) -> Iterator[str]:
    """Characters near this one: without its last accent, stroke or hook, of its shape, case, meaning; nearest first."""
    marked = unicodedata.normalize("NFD", character)
    bare = [unicodedata.normalize("NFC", marked[:-1])]
    name = unicodedata.name(character, "")
    bare.append(_named(name.split(" WITH ")[0]))
    # `LATIN SMALL LETTER R ROTUNDA`, `... DOTLESS I`, `COMBINING LATIN SMALL LETTER E`: the letter is one word of the name
    if letter := re.match(r"(?:COMBINING )?(LATIN (?:SMALL|CAPITAL) LETTER )(?:\S+ )*?([A-Z])(?: |$)", name):
        bare.append(_named(letter[1] + letter[2]))
    bare += [other for group in _LOOK_ALIKES if character in group for other in group]
    bare += [character.swapcase(), unicodedata.normalize("NFKD", character)[:1]]
    return (other for other in bare if len(other) == 1)


def _named(name: str) -> str:
    try:
        return unicodedata.lookup(name)
    except KeyError:
        return ""


# Tokenizer


def _written(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """What texts read after a way through the tokenizer, decoded as a model's output is."""
    if not texts:
        return []  # `batch_decode` makes one text of no texts
    return tokenizer.batch_decode(
        tokenizer(list(texts), add_special_tokens=False)["input_ids"], skip_special_tokens=True
    )


def _round_trips(tokenizer: PreTrainedTokenizerBase, characters: Sequence[str]) -> dict[str, str]:
    """What each character becomes within a word, or, where that is lost, as a word of its own."""
    letters = [letter for letter in "axqn1" if _written(tokenizer, [letter * 2]) == [letter * 2]]
    if not letters:  # an alphabet of its own
        own = sorted(token for token in tokenizer.get_vocab() if len(token) == 1 and token.isalnum())
        letters = [letter for letter in own if _written(tokenizer, [letter * 2]) == [letter * 2]]
    spaced = bool(letters) and _written(tokenizer, [f"{letters[0]} {letters[0]}"]) == [f"{letters[0]} {letters[0]}"]
    frames: list[tuple[str, str, str]] = []  # a letter, the character, the text of both
    for character in characters:
        # a letter that it doesn't melt into one code point with
        letter = next((x for x in letters if character in unicodedata.normalize("NFC", x + character)), "")
        frames.append((letter, character, letter + character + letter))
        if spaced and character != " ":
            frames.append((letter, character, f"{letter} {character} {letter}"))
    becomes: dict[str, str] = {}
    for (letter, character, _), text in zip(frames, _written(tokenizer, [f for *_, f in frames]), strict=True):
        inner = text.removeprefix(letter).removesuffix(letter)
        if _is_written(character, becomes.setdefault(character, inner)) and not _is_written(character, inner):
            becomes[character] = inner
    return becomes


def _is_written(character: str, becomes: str) -> bool:
    """Whether a character comes back; some tokenizers set spaces beside some, which counts against lines only."""
    return (becomes if character == " " else becomes.strip()) == character


def _is_normalised_away(tokenizer: Any, character: str) -> bool:
    normaliser = tokenizer.backend_tokenizer.normalizer
    if normaliser is None or character == " ":
        return False
    # behind a letter: a combining mark alone may be dropped, or a first character be set behind a sign for a space
    return all(character not in normaliser.normalize_str(letter + character) for letter in "xqn1")


def _entries(model: Mapping[str, Any], character: str) -> list[str]:
    """How a vocabulary writes a character: as it is, and inside or at the end of words where those differ."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return list(dict.fromkeys(p + character + s for p in ("", prefix) for s in ("", suffix)))


def _with_entries(tokenizer: PreTrainedTokenizerBase, characters: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer, saved and loaded again, with entries for these characters behind all that it has.

    Raises:
        ValueError: if the vocabulary is of a kind that can't be added to, or known tokens would get other ids.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        state = json.loads(file.read_text(encoding="utf-8"))
        model = state["model"]
        if model["type"] not in ("WordLevel", "WordPiece", "BPE", "Unigram"):
            raise ValueError(
                f"The tokenizer's vocabulary must be WordLevel, WordPiece, BPE or Unigram, got {model['type']}. Train a model "
                "with `model.tokenizer: characters`."
            )
        # Added tokens behind the vocabulary are numbered from its end on loading: they become entries to keep their ids.
        added = [token["content"] for token in sorted(state["added_tokens"], key=lambda token: token["id"])]
        new = [entry for character in characters for entry in _entries(model, character)]
        known = {entry for entry, _ in model["vocab"]} if model["type"] == "Unigram" else set(model["vocab"])
        entries = [entry for entry in dict.fromkeys([*added, *new]) if entry not in known]
        if model["type"] == "Unigram":
            lowest = min((score for _, score in model["vocab"]), default=0.0)
            model["vocab"] += [[entry, lowest] for entry in entries]
        else:
            end = max([*model["vocab"].values(), -1]) + 1
            model["vocab"].update({entry: end + index for index, entry in enumerate(entries)})
        file.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        extended = load_tokenizer(folder)
    extended.name_or_path = tokenizer.name_or_path
    now = extended.get_vocab()
    moved = [token for token, index in tokenizer.get_vocab().items() if now.get(token) != index]
    if moved:
        raise ValueError(
            f"Known tokens must keep their ids, got another for {moved[0]!r}: the ids of this tokenizer have gaps. Train a "
            "model with `model.tokenizer: characters`."
        )
    return extended


def _new_entries(
    extended: Any, old_vocabulary: Mapping[str, int], characters: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    """(entry, its character, its id) of all that a tokenizer has and did not have."""
    model = json.loads(extended.backend_tokenizer.to_str())["model"] if characters else {}
    vocabulary = extended.get_vocab() if characters else {}
    for character in characters:
        for entry in _entries(model, character):
            if entry not in old_vocabulary:
                yield entry, character, vocabulary[entry]


def _share(counts: Counter[str], written: set[str]) -> float:
    return sum(counts[character] for character in written) / counts.total() if counts else 1.0


def _lines_written(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> float:
    printable = [line for line in lines if not any(map(_is_refused, line))]
    same = sum(a == b for a, b in zip(printable, _written(tokenizer, printable), strict=True))
    return same / len(lines) if lines else 1.0


# Model


@torch.no_grad()
def _grow(model: Any, old_ids: Sequence[int], starts: Mapping[int, int | None]) -> tuple[int, int]:
    """Make room for new tokens and set where their rows start; gives the number of rows before and after.

    Args:
        old_ids: of the tokens that have rows with a meaning; spare ones behind them are taken first.
        starts: new token id -> the old id whose row it starts beside, or None for the mean of all.
    """
    before = model.get_input_embeddings().weight.shape[0]
    num_rows = max([before - 1, *starts]) + 1
    if num_rows > before:
        names = {name for name, _ in model.decoder.named_parameters()}
        model.decoder.resize_token_embeddings(num_rows, mean_resizing=False)
        # BERT's setter makes one of two biases, which saving would then drop where the config ties nothing
        for name in names - {name for name, _ in model.decoder.named_parameters()}:
            module, _, attribute = name.rpartition(".")
            own = torch.nn.Parameter(model.decoder.get_parameter(name).clone())
            setattr(model.decoder.get_submodule(module), attribute, own)
    heads = [model.get_output_embeddings()]
    if hasattr(model, "ctc_head"):
        heads.append(model.ctc_head)
        if num_rows > before:
            new = torch.nn.Linear(model.ctc_head.in_features, num_rows, dtype=model.ctc_head.weight.dtype)
            new = new.to(model.ctc_head.weight.device).train(model.ctc_head.training)
            for name, parameter in model.ctc_head.named_parameters():
                new.get_parameter(name)[:before] = parameter
                new.get_parameter(name).requires_grad_(parameter.requires_grad)
            model.ctc_head = heads[-1] = new
    tables = {id(t): t for t in [model.get_input_embeddings().weight, *(t for h in heads for t in h.parameters())]}
    for table in tables.values():
        mean = table[list(old_ids)].float().mean(0)
        for row, relative in starts.items():
            table[row] = mean if relative is None else torch.lerp(table[relative].float(), mean, _WAY_TO_MEAN)
    return before, num_rows
