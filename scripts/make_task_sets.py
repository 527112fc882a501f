"""Make statements about pairs of emoji, and translations of emoji names, by a seeded rule: the tasks nlvr and translate.

    python scripts/make_task_sets.py DATA OUT [--seed 0] [--sentences 500] [--talks 1500]

DATA holds the folder `emoji` (parquet files google, twitter, openmoji). Meanings held out, vendor kept out and splits
are those of `make_picture_conversations.py` with the same seed. Every set below OUT is a folder for `datasets.load_from_disk`,
with `messages`, `images`, `id`, `kind`, `group` as `hf_vlm.data.conversations.conversations` reads them:

    emoji-nlvr                a statement about two drawings, `true` or `false`
    emoji-nlvr-talk           only train: conversations of several statements about two drawings, and in every other one
                              which groups they are of; as often true as false for statements of every form
    emoji-translate           an English name and the drawing -> its German or French name (kinds `en-de`, `en-fr`)
    emoji-translate-text      the same without the drawing: what the words alone give
    emoji-translate-picture   the same without the name: what the drawing alone gives

Every statement comes with four pairs (`group`), and is true of two: whoever sees the words alone is right in half of all cases,
whatever he answers. Names are those of Unicode CLDR.

Source of the design: Suhr et al. 2019 (NLVR2), https://arxiv.org/abs/1811.00491, whose sentences come with four pairs too.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, Image, List, Value, disable_progress_bars
from make_picture_conversations import (
    VENDOR_KEPT_OUT,
    VENDORS,
    Drawing,
    hold_out,
    read_emoji,
    spoken,
    usable_keywords,
)

from hf_vlm.data.tasks.format_prompts import with_format_prompt

FEATURES = Features(
    {
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "images": List(Image()),
        "id": Value("string"),
        "kind": Value("string"),
        "group": Value("string"),
    }
)
Row = dict[str, Any]
LANGUAGES = {"de": "German", "fr": "French"}
SHARE_OF_KEYWORDS = 0.5  # of the statements; the others speak of groups
FEWEST_FAMILIES = 3  # of meanings, that a group or keyword must have to be spoken of

# Which of the two fit (F) or do not (N), in two pairs that make the statement true and two that make it false.
STATEMENTS = {
    "both": ("Both pictures {}.", ("FF", "FF"), ("FN", "NF")),
    "neither": ("Neither picture {}.", ("NN", "NN"), ("FN", "NF")),
    "exactly_one": ("Exactly one of the pictures {}.", ("FN", "NF"), ("FF", "NN")),
    "at_least_one": ("At least one of the pictures {}.", ("FN", "NF"), ("NN", "NN")),
    "first": ("The first picture {}.", ("FN", "FF"), ("NF", "NN")),
    "second": ("The second picture {}.", ("NF", "FF"), ("FN", "NN")),
}
TRUE_OF: dict[str, Callable[[str], bool]] = {
    "both": lambda pattern: pattern == "FF",
    "neither": lambda pattern: pattern == "NN",
    "exactly_one": lambda pattern: pattern.count("F") == 1,
    "at_least_one": lambda pattern: "F" in pattern,
    "first": lambda pattern: pattern[0] == "F",
    "second": lambda pattern: pattern[1] == "F",
}
LARGEST_TALK = 7  # exchanges
VERBS = {"group": "{} to the group {}", "keyword": '{} with the word "{}"'}


def row(id: str, kind: str, group: str, pictures: Sequence[bytes], question: str, answer: str) -> Row:
    """One question about pictures, which stand before it."""
    asked = [*({"type": "image", "text": None} for _ in pictures), {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    images = [{"bytes": picture, "path": None} for picture in pictures]
    return {"messages": messages, "images": images, "id": id, "kind": kind, "group": group}


def talk_row(id: str, pictures: Sequence[bytes], exchanges: Sequence[tuple[str, str]]) -> Row:
    """A conversation about pictures, which stand before its first question."""
    whole = row(id, "conversation", id, pictures, *exchanges[0])
    for question, answer in exchanges[1:]:
        for role, text in (("user", question), ("assistant", answer)):
            whole["messages"].append({"role": role, "content": [{"type": "text", "text": text}]})
    return whole


class Statements:
    """Statements about two drawings of one split.

    Args:
        drawings: of the split.
        all_drawings: tells which keywords go with a subgroup: what fits half is shown in no pair.
        rng: the seeded choice.
    """

    def __init__(self, drawings: list[Drawing], all_drawings: list[Drawing], rng: random.Random) -> None:
        self.drawings, self.rng = drawings, rng
        self.words_of_subgroup: dict[str, set[str]] = defaultdict(set)
        for drawing in all_drawings:
            self.words_of_subgroup[drawing.subgroup] |= {*drawing.keywords, *drawing.name.casefold().split()}
        of_group: dict[str, set[int]] = defaultdict(set)
        of_keyword: dict[str, set[int]] = defaultdict(set)
        for drawing in drawings:
            of_group[drawing.group].add(drawing.family)
            for word in usable_keywords(drawing):
                of_keyword[word].add(drawing.family)
        enough = {
            kind: sorted(word for word, families in of_word.items() if len(families) >= FEWEST_FAMILIES)
            for kind, of_word in (("keyword", of_keyword), ("group", of_group))
        }
        self.keywords, self.groups = (
            [word for word in enough[kind] if len(self.pools(kind, word)[1]) >= FEWEST_FAMILIES]
            for kind in ("keyword", "group")
        )

    def pools(self, kind: str, word: str) -> tuple[list[Drawing], list[Drawing]]:
        """The drawings that fit, and those that plainly don't."""
        if kind == "group":
            fits = [drawing for drawing in self.drawings if drawing.group == word]
            return fits, [drawing for drawing in self.drawings if drawing.group != word]
        fits = [drawing for drawing in self.drawings if word in drawing.keywords]
        return fits, [drawing for drawing in self.drawings if word not in self.words_of_subgroup[drawing.subgroup]]

    def make(self, number: int) -> list[Row]:
        """The rows of one statement: two pairs of which it is true, two of which it is false."""
        rng = self.rng
        kind = "keyword" if self.keywords and rng.random() < SHARE_OF_KEYWORDS else "group"
        word = rng.choice(self.keywords if kind == "keyword" else self.groups)
        fits, others = self.pools(kind, word)
        relation = rng.choice(sorted(STATEMENTS))
        _, true_pairs, false_pairs = STATEMENTS[relation]
        sentence = self.sentence(relation, kind, word)
        rows = []
        for answer, pairs in (("true", true_pairs), ("false", false_pairs)):
            for at, pattern in enumerate(pairs):
                pair = self.pair(pattern, fits, others)
                rows.append(
                    row(
                        f"{number}/{answer}/{at}",
                        f"{relation}/{kind}",
                        f"{number}: {sentence}",
                        [drawing.picture for drawing in pair],
                        with_format_prompt(sentence, "true-false"),
                        answer,
                    )
                )
        return rows

    def talk(self, number: int, balance: Counter[str]) -> Row:
        """A conversation of statements about one pair.

        Args:
            balance: form of a statement -> how often it was true more than false so far; the next one makes up for it.
        """
        rng = self.rng
        first = rng.choice(self.drawings)
        near = [drawing for drawing in self.drawings if drawing.group == first.group]
        second = rng.choice(near if rng.random() < 0.5 else self.drawings)
        while second.family == first.family:
            second = rng.choice(self.drawings)
        exchanges = []
        if number % 2:
            exchanges.append(("Which groups are the two of?", f"{spoken(first.group)}; {spoken(second.group)}"))
        forms = [(relation, kind) for relation in sorted(STATEMENTS) for kind in ("group", "group", "keyword")]
        rng.shuffle(forms)
        for relation, kind in forms:
            if len(exchanges) == LARGEST_TALK:
                break
            wanted = balance[f"{relation}/{kind}"] <= 0
            words = [
                word
                for word in self.words(kind, first, second)
                if self.truth(relation, kind, word, first, second) is wanted
            ]
            if not words:
                continue
            balance[f"{relation}/{kind}"] += 1 if wanted else -1
            sentence = self.sentence(relation, kind, rng.choice(words))
            exchanges.append((with_format_prompt(sentence, "true-false"), "true" if wanted else "false"))
        return talk_row(f"talk/{number}", [first.picture, second.picture], exchanges)

    def words(self, kind: str, first: Drawing, second: Drawing) -> list[str]:
        """What can be said of a pair: every group; its own keywords and a few of others."""
        if kind == "group":
            return self.groups
        own = {*usable_keywords(first), *usable_keywords(second)}
        return sorted({*own & set(self.keywords), *self.rng.sample(self.keywords, min(4, len(self.keywords)))})

    def truth(self, relation: str, kind: str, word: str, first: Drawing, second: Drawing) -> bool | None:
        """Whether a statement is true of a pair; None where a drawing fits half."""
        pattern = ""
        for drawing in (first, second):
            if kind == "group":
                fits = drawing.group == word
            elif word in drawing.keywords:
                fits = True
            elif word in self.words_of_subgroup[drawing.subgroup]:
                return None
            else:
                fits = False
            pattern += "F" if fits else "N"
        return TRUE_OF[relation](pattern)

    def sentence(self, relation: str, kind: str, word: str) -> str:
        """A statement in words."""
        plural = relation == "both"
        verb = {"group": "belong", "keyword": "go"}[kind] + ("" if plural else "s" if kind == "group" else "es")
        return STATEMENTS[relation][0].format(VERBS[kind].format(verb, spoken(word)))

    def pair(self, pattern: str, fits: list[Drawing], others: list[Drawing]) -> list[Drawing]:
        """Two drawings of different meanings, the first and the second fitting as the pattern says."""
        for _ in range(1000):
            pair = [self.rng.choice(fits if letter == "F" else others) for letter in pattern]
            if pair[0].family != pair[1].family:
                return pair
        raise ValueError(f"Drawings of several meanings are wanted, got {len(fits)} that fit. Take a larger data set.")


def translation_rows(
    drawings: list[Drawing], names: dict[str, dict[str, str]], rng: random.Random
) -> dict[str, list[Row]]:
    """A meaning's name in every language, with one of its drawings, chosen by chance; with and without either."""
    by_meaning: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        by_meaning[drawing.hexcode].append(drawing)
    sets: dict[str, list[Row]] = {"emoji-translate": [], "emoji-translate-text": [], "emoji-translate-picture": []}
    for hexcode in sorted(by_meaning):
        for language, spelled in LANGUAGES.items():
            drawing = rng.choice(by_meaning[hexcode])
            answer = names[hexcode].get(language)
            if not answer:
                continue
            asked = with_format_prompt(drawing.name, f"translate-{language}")
            alone = f"What is this called in {spelled}?"
            common = (f"{drawing.vendor}/{hexcode}/{language}", f"en-{language}", hexcode)
            sets["emoji-translate"].append(row(*common, [drawing.picture], asked, answer))
            sets["emoji-translate-text"].append(row(*common, [], asked, answer))
            sets["emoji-translate-picture"].append(row(*common, [drawing.picture], alone, answer))
    return sets


def make(data: Path, seed: int, num_sentences: int, num_seen: int, num_talks: int) -> dict[str, dict[str, list[Row]]]:
    """Set -> split -> rows."""
    drawings = read_emoji(data / "emoji", Counter())
    everything = [one for vendor in drawings.values() for one in vendor]
    held = hold_out((one for vendor in VENDORS for one in drawings[vendor]), random.Random(f"{seed}/held out"))
    train = [one for vendor in VENDORS for one in drawings[vendor] if one.hexcode not in held]
    in_train, families = {one.hexcode for one in train}, {one.family for one in train}
    seen = [one for one in drawings[VENDOR_KEPT_OUT] if one.hexcode in in_train]
    splits = {
        "train": train,
        "validation": [one for vendor in VENDORS for one in drawings[vendor] if one.hexcode in held],
        "openmoji_seen": random.Random(f"{seed}/seen").sample(seen, num_seen) if len(seen) > num_seen else seen,
        "openmoji_unseen": [one for one in drawings[VENDOR_KEPT_OUT] if one.family not in families],
    }
    names = {
        emoji["hexcode"]: {language: emoji[f"name_{language}"] for language in LANGUAGES}
        for vendor in (*VENDORS, VENDOR_KEPT_OUT)
        for emoji in pyarrow.parquet.read_table(data / "emoji" / f"{vendor}.parquet").to_pylist()
    }
    sets: dict[str, dict[str, list[Row]]] = defaultdict(dict)
    for split, of_split in splits.items():
        rng = random.Random(f"{seed}/tasks/{split}")
        statements = Statements(of_split, everything, rng)
        number = num_sentences if split == "train" else max(1, num_sentences // 5)
        sets["emoji-nlvr"][split] = [one for at in range(number) for one in statements.make(at)]
        for name, rows in translation_rows(of_split, names, rng).items():
            sets[name][split] = rows
        for rows in (sets[name][split] for name in sets):
            rng.shuffle(rows)
    talking, balance = Statements(train, everything, random.Random(f"{seed}/talk")), Counter[str]()
    sets["emoji-nlvr-talk"]["train"] = [talking.talk(number, balance) for number in range(num_talks)]
    return sets


def main(arguments: list[str] | None = None) -> None:
    """Make, save, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sentences", type=int, default=500, help="statements in train, a fifth of them in other splits"
    )
    parser.add_argument("--openmoji-seen", type=int, default=400)
    parser.add_argument("--talks", type=int, default=1500, help="conversations of several statements")
    options = parser.parse_args(arguments)
    disable_progress_bars()
    sets = make(options.data, options.seed, options.sentences, options.openmoji_seen, options.talks)
    print("| set | split | rows | kinds |\n|---|---|---|---|")
    for name, splits in sets.items():
        saved = DatasetDict({split: Dataset.from_list(rows, features=FEATURES) for split, rows in splits.items()})
        saved.save_to_disk(options.out / name)
        for split, rows in splits.items():
            kinds = Counter(one["kind"] for one in rows)
            told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            print(f"| {name} | {split} | {len(rows)} | {told} |")


if __name__ == "__main__":
    main()
