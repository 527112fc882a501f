"""Make conversations about pictures out of emoji, captioned photographs and questions about rooms, by a seeded rule.

    python scripts/make_picture_conversations.py DATA OUT [--kinds emoji photos] [--seed 0] [--openmoji-seen 400]

DATA holds the folders that a kind needs: `emoji` (parquet files google, twitter and openmoji with name_en, keywords, group,
subgroup, hexcode, image), or `photo_captions` and `vqa_rooms` (pictures and a metadata.jsonl in train and validation). Every set
below OUT is a folder for `datasets.load_from_disk` with the columns

    messages    [{"role", "content": [{"type": "image" | "text", "text"}]}], pictures first
    images      the pictures of these messages, in the bytes that they were stored in
    id          which picture, and which question about it
    kind        what is asked; `conversation` where several things are

| set | what it holds |
|---|---|
| emoji-captions | a drawing and its English name, for the phase that trains the projector alone |
| emoji-chat | conversations of up to three exchanges about a drawing, or about two |
| photos-captions | a photograph and a caption; all five captions in train, the first in validation |
| photos-chat | up to six questions about a room, and requests for captions |

Rows of train are conversations. All other splits ask one thing a row, whose answer is the reference: a name, `yes` or `no`, a
group, a number; but keywords and captions, where others are right as well. Half of the yes/no questions are to be answered yes.

Emoji are split by meaning: about 8 % are held out with all drawings of them. Meanings that one picture stands for, or whose names
differ in man, woman, person or direction only, stay on one side.

    train               google and twitter, meanings in train
    validation          google and twitter, meanings held out
    openmoji_seen       a vendor kept out, meanings in train (as many as --openmoji-seen says)
    openmoji_unseen     the vendor and the meanings kept out

In `same_meaning`, a drawing of the vendor kept out is compared with one of google or twitter. What is dropped is counted and
printed by reason. Licences: Noto Emoji (google) Apache-2.0, Twemoji (twitter) CC BY 4.0, OpenMoji CC BY-SA 4.0; the photographs
are for research and internal evaluation only.
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, Image, List, Value, disable_progress_bars
from PIL import Image as PILImage

FEATURES = Features(
    {
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "images": List(Image()),
        "id": Value("string"),
        "kind": Value("string"),
    }
)
Row = dict[str, Any]
Sets = dict[str, dict[str, list[Row]]]  # set -> split -> rows

HELD_OUT = 0.08  # of the meanings
LARGEST_CONVERSATION = 6  # questions about a room
VENDORS = ("google", "twitter")
VENDOR_KEPT_OUT = "openmoji"
# Looked at: this drawing shows something else.
WRONG_DRAWINGS = {("google", "1F1E8-1F1F6")}  # flag of Sark, drawn as Saudi Arabia's
SKIN_TONE = re.compile("1F3F[B-F]")
VARIANT_WORDS = {"man", "men", "woman", "women", "person", "people", "and"}
KEYWORD = re.compile(r"[^\W\d_]{3,}(?:[ ’-][^\W\d_]+)*")  # a word; not `143`, `<3` or a country's code

ONE_PICTURE = ("name", "group", "subgroup", "yes_no_group", "yes_no_keyword", "keywords")
# Asked in two conversations: who has just heard the group need not look to say whether it is that one.
APART = (("group", "yes_no_group"), ("keywords", "yes_no_keyword"), ("name", "subgroup"))
TWO_PICTURES = ("same_meaning", "first_or_second")
TWO_ANSWERS = {"yes_no_group": ("yes", "no"), "yes_no_keyword": ("yes", "no"), "same_meaning": ("yes", "no"),
               "first_or_second": ("first", "second")}  # fmt: skip
WORDINGS = {
    "emoji_caption": (
        "Name this emoji.", "Give a short caption.", "What is drawn here?", "Caption this drawing.",
        "What does this picture show?", "Say in a few words what this is.",
    ),
    "name": (
        "What is this emoji called?", "Which emoji is this?", "Tell me the name of this emoji.", "What would you call this?",
        "Give me its English name.", "How is this emoji named?",
    ),
    "group": (
        "Which group of emoji does it belong to?", "What kind of emoji is it?", "In which group would I find it?",
        "Under which heading is it listed?", "Name the group it is in.", "What group should I look in?",
    ),
    "subgroup": (
        "Which subgroup is it in?", "What is its narrower group?", "To be more precise, which subgroup is it?",
        "Name the subgroup it belongs to.", "Within its group, which part is it listed under?",
        "Which of the smaller groups holds it?",
    ),
    "yes_no_group": (
        "Does it belong to the group {}?", "Is it one of the emoji of {}?", "Would I find it under {}?",
        "Is {} the group it is in?", "Is it listed under {}?", "Should I look for it under {}?",
    ),
    "yes_no_keyword": (
        'Does the word "{}" go with it?', 'Would someone who types "{}" be offered this?', 'Is "{}" a fitting word for it?',
        'Could "{}" be one of its keywords?', 'Do you connect it with the word "{}"?', 'Is it found by searching for "{}"?',
    ),
    "keywords": (
        "Which words go with it?", "Give me a few keywords.", "What could I type to find it?",
        "Name up to three words that fit it.", "Which search words lead to it?", "List some words people connect with it.",
    ),
    "same_meaning": (
        "Do both mean the same?", "Are these two drawings of one emoji?", "Is it the same emoji twice?",
        "Two hands drew these. Did they draw the same emoji?", "Do the two pictures show the same thing?",
        "Could one of these stand in for the other?",
    ),
    "first_or_second": (
        'Which of the two is "{}"?', 'Which picture shows "{}", the first or the second?', 'One of these is "{}". Which one?',
        'Is the first or the second called "{}"?', 'Where do you see "{}": first or second?',
        'I am looking for "{}". First or second?',
    ),
    "caption": (
        "Describe the photograph in one sentence.", "What does the photograph show?", "Give a short caption.",
        "Write a caption for this photograph.", "What is happening here?", "Say in a sentence what can be seen.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One vendor's drawing of one meaning.

    Attributes:
        family: meanings of the same number are held out together.
        picture: the stored file.
    """

    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    hexcode: str
    vendor: str
    family: int
    picture: bytes


def row(id: str, kind: str, pictures: Sequence[bytes], exchanges: Iterable[tuple[str, str]]) -> Row:
    """One conversation; its pictures stand before the first question."""
    messages: list[dict[str, Any]] = []
    for question, answer in exchanges:
        content = [] if messages else [{"type": "image", "text": None} for _ in pictures]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    images = [{"bytes": picture, "path": None} for picture in pictures]
    return {"messages": messages, "images": images, "id": id, "kind": kind}


def even(number: int, rng: random.Random) -> list[bool]:
    """As many True as False, in seeded order; one more True where the number is odd."""
    answers = [index % 2 == 0 for index in range(number)]
    rng.shuffle(answers)
    return answers


def pick(drawings: list[Drawing], is_fit: Callable[[Drawing], bool], rng: random.Random) -> Drawing:
    """A drawing that fits, each with the same chance.

    Raises:
        ValueError: if a thousand tries found none.
    """
    for _ in range(1000):
        if is_fit(chosen := rng.choice(drawings)):
            return chosen
    raise ValueError(
        f"Drawings of other groups, words and meanings to choose wrong answers from are wanted, got {len(drawings)} "
        "alike. Take a larger data set."
    )


def spoken(group: str) -> str:
    """A group of emoji as one would say it: `food-drink` is `food and drink`."""
    return group.replace("-", " and ")


def usable_keywords(drawing: Drawing) -> list[str]:
    """The keywords that are words."""
    return [word for word in drawing.keywords if KEYWORD.fullmatch(word) and not word.isupper()]


def read_emoji(folder: Path, dropped: Counter[str]) -> dict[str, list[Drawing]]:
    """The drawings of each vendor, what is dropped being counted by reason.

    A drawing that a vendor uses for several meanings keeps the shortest name: the flag of Norway is also Bouvet Island's.
    """
    stored = {
        vendor: pyarrow.parquet.read_table(folder / f"{vendor}.parquet").to_pylist()
        for vendor in (*VENDORS, VENDOR_KEPT_OUT)
    }
    pixels = {
        (vendor, emoji["hexcode"]): PILImage.open(BytesIO(emoji["image"]["bytes"])).convert("RGB").tobytes()
        for vendor, rows in stored.items()
        for emoji in rows
    }
    families = family_numbers([(vendor, emoji) for vendor, rows in stored.items() for emoji in rows], pixels)
    drawings: dict[str, list[Drawing]] = {}
    for vendor, rows in stored.items():
        taken: dict[str, set[Any]] = {"name": set(), "pixels": set()}
        kept = set()
        for emoji in sorted(rows, key=lambda emoji: (len(emoji["name_en"]), emoji["name_en"])):
            place = (vendor, emoji["hexcode"])
            reason = None
            if SKIN_TONE.search(emoji["hexcode"]):
                reason = "a skin tone"
            elif place in WRONG_DRAWINGS:
                reason = "drawing shows something else"
            elif emoji["name_en"] in taken["name"]:
                reason = "name of another meaning too"
            elif pixels[place] in taken["pixels"]:
                reason = "drawing of another meaning too"
            if reason:
                dropped[f"{vendor}: {reason}"] += 1
                continue
            taken["name"].add(emoji["name_en"])
            taken["pixels"].add(pixels[place])
            kept.add(emoji["hexcode"])
        drawings[vendor] = [
            Drawing(
                name=emoji["name_en"],
                keywords=tuple(emoji["keywords"]),
                group=emoji["group"],
                subgroup=emoji["subgroup"],
                hexcode=emoji["hexcode"],
                vendor=vendor,
                family=families[emoji["hexcode"]],
                picture=emoji["image"]["bytes"],
            )
            for emoji in rows
            if emoji["hexcode"] in kept
        ]
    return drawings


def family_numbers(emoji: list[tuple[str, Row]], pixels: dict[tuple[str, str], bytes]) -> dict[str, int]:
    """Number the meanings, hexcode -> number; those with variants of one name, or one drawing, get the same."""
    leader = {one["hexcode"]: one["hexcode"] for _, one in emoji}

    def lead(hexcode: str) -> str:
        while leader[hexcode] != hexcode:
            hexcode = leader[hexcode]
        return hexcode

    first: dict[Any, str] = {}
    for vendor, one in emoji:
        hexcode = one["hexcode"]
        for likeness in (variant_key(one["name_en"]), (vendor, pixels[vendor, hexcode])):
            leader[lead(hexcode)] = lead(first.setdefault(likeness, hexcode))
    numbers: dict[str, int] = {}
    return {hexcode: numbers.setdefault(lead(hexcode), len(numbers)) for hexcode in leader}


def variant_key(name: str) -> tuple[str, ...]:
    """The words of a name that tell it from others, sorted, without man, woman, person and direction."""
    words = re.findall(r"[\w’#*]+", name.removesuffix(": facing right").casefold())
    return tuple(sorted(word for word in words if word not in VARIANT_WORDS)) or tuple(words)


def hold_out(drawings: Iterable[Drawing], rng: random.Random) -> set[str]:
    """The hexcodes that are held out: whole families, until they make up `HELD_OUT` of all meanings."""
    members: dict[int, set[str]] = defaultdict(set)
    for drawing in drawings:
        members[drawing.family].add(drawing.hexcode)
    families = sorted(members)
    rng.shuffle(families)
    wanted = HELD_OUT * sum(map(len, members.values()))
    held: set[str] = set()
    for family in families:
        if len(held | members[family]) <= wanted:
            held |= members[family]
    return held


class EmojiQuestions:
    """Asks about drawings of one split; wrong answers and second pictures come from the same split.

    Args:
        drawings: what is asked about.
        others: drawings of other vendors of the same meanings, which `same_meaning` compares with.
        all_drawings: tells which keywords go with a subgroup.
        rng: the seeded choice.
    """

    def __init__(
        self, drawings: list[Drawing], others: list[Drawing], all_drawings: Iterable[Drawing], rng: random.Random
    ) -> None:
        self.drawings, self.others, self.rng = drawings, others, rng
        self.words_of_subgroup: dict[str, set[str]] = defaultdict(set)
        for drawing in all_drawings:
            self.words_of_subgroup[drawing.subgroup] |= {*drawing.keywords, *drawing.name.casefold().split()}
        self.by_group: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        self.by_vendor: dict[str, list[Drawing]] = defaultdict(list)
        self.by_meaning: dict[str, list[Drawing]] = defaultdict(list)
        for drawing in {(one.vendor, one.hexcode): one for one in (*drawings, *others)}.values():
            self.by_group[drawing.vendor, drawing.group].append(drawing)
            self.by_vendor[drawing.vendor].append(drawing)
            self.by_meaning[drawing.hexcode].append(drawing)

    def askable(self, kind: str, drawing: Drawing) -> bool:
        """Whether there is enough to ask this about the drawing."""
        if kind in ("keywords", "yes_no_keyword"):
            return len(usable_keywords(drawing)) >= (2 if kind == "keywords" else 1)
        return kind != "same_meaning" or any(one.vendor != drawing.vendor for one in self.by_meaning[drawing.hexcode])

    def reworded(self, kind: str, word: str = "") -> str:
        return self.rng.choice(WORDINGS[kind]).format(word)

    def about_one(self, kind: str, drawing: Drawing, is_yes: bool) -> tuple[str, str]:
        """Question and answer of a kind of `ONE_PICTURE`; `is_yes` matters to yes/no questions alone."""
        rng = self.rng
        if kind == "yes_no_group":
            group = drawing.group
            if not is_yes:
                group = pick(self.drawings, lambda one: one.group != drawing.group, rng).group
            return self.reworded(kind, spoken(group)), TWO_ANSWERS[kind][not is_yes]
        if kind == "yes_no_keyword":
            word = rng.choice(usable_keywords(drawing))
            if not is_yes:
                own = self.words_of_subgroup[drawing.subgroup]
                other = pick(self.drawings, lambda one: bool({*usable_keywords(one)} - own), rng)
                word = rng.choice([word for word in usable_keywords(other) if word not in own])
            return self.reworded(kind, word), TWO_ANSWERS[kind][not is_yes]
        if kind == "keywords":
            words = usable_keywords(drawing)
            chosen = sorted(rng.sample(range(len(words)), min(3, len(words))))
            return self.reworded(kind), ", ".join(words[index] for index in chosen)
        answers = {"name": drawing.name, "group": spoken(drawing.group), "subgroup": drawing.subgroup.replace("-", " ")}
        return self.reworded(kind), answers[kind]

    def another(self, drawing: Drawing, vendor: str) -> Drawing:
        """A vendor's drawing of something else; every second time of the same group, if there is one."""
        near = [one for one in self.by_group[vendor, drawing.group] if one.family != drawing.family]
        candidates = near if near and self.rng.random() < 0.5 else self.by_vendor[vendor]
        return pick(candidates, lambda one: one.family != drawing.family, self.rng)

    def about_two(self, kind: str, drawing: Drawing, is_yes: bool) -> tuple[list[Drawing], tuple[str, str]]:
        """Two drawings with a question of a kind of `TWO_PICTURES`; `is_yes`: the same meaning, or `first`."""
        if kind == "first_or_second":
            pair = [drawing, self.another(drawing, drawing.vendor)]
            question = self.reworded(kind, drawing.name)
            return pair if is_yes else pair[::-1], (question, TWO_ANSWERS[kind][not is_yes])
        twins = [one for one in self.by_meaning[drawing.hexcode] if one.vendor != drawing.vendor]
        twin = self.rng.choice(twins)
        pair = [drawing, twin if is_yes else self.another(drawing, twin.vendor)]
        self.rng.shuffle(pair)
        return pair, (self.reworded(kind), TWO_ANSWERS[kind][not is_yes])

    def evenly(self, kind: str, drawings: Iterable[Drawing], dropped: Counter[str], split: str) -> dict[Drawing, bool]:
        """The drawings that can be asked about, each with the answer it is to get."""
        drawings = list(drawings)
        asked = [drawing for drawing in drawings if self.askable(kind, drawing)]
        if len(drawings) > len(asked):
            dropped[f"{split}: nothing to ask of kind {kind}"] += len(drawings) - len(asked)
        return dict(zip(asked, even(len(asked), self.rng), strict=True))


def caption_rows(questions: EmojiQuestions) -> list[Row]:
    """A drawing and its name."""
    return [
        row(f"{one.vendor}/{one.hexcode}", "name", [one.picture], [(questions.reworded("emoji_caption"), one.name)])
        for one in questions.drawings
    ]


def first_of_each_meaning(drawings: Iterable[Drawing], rng: random.Random) -> list[Drawing]:
    """One drawing a meaning, of a seeded vendor."""
    by_meaning: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        by_meaning[drawing.hexcode].append(drawing)
    return [rng.choice(same) for same in by_meaning.values()]


def chat_rows(questions: EmojiQuestions, dropped: Counter[str]) -> list[Row]:
    """Conversations for training: every question about every drawing once, in two conversations; one a meaning about two."""
    rng = questions.rng
    asked = {kind: questions.evenly(kind, questions.drawings, dropped, "train") for kind in ONE_PICTURE}
    rows = []
    for drawing in questions.drawings:
        halves: list[list[str]] = [[], []]
        for apart in APART:
            for half, kind in zip(halves, rng.sample(apart, 2), strict=True):
                half += [kind] if drawing in asked[kind] else []
        for number, half in enumerate(halves):
            rng.shuffle(half)
            exchanges = [questions.about_one(kind, drawing, asked[kind][drawing]) for kind in half]
            rows.append(
                row(f"{drawing.vendor}/{drawing.hexcode}/{number}", "conversation", [drawing.picture], exchanges)
            )

    pairs = first_of_each_meaning(questions.drawings, rng)
    rng.shuffle(pairs)
    for kind, half in zip(TWO_PICTURES, (pairs[0::2], pairs[1::2]), strict=True):
        for drawing, is_yes in questions.evenly(kind, half, dropped, "train").items():
            pair, exchange = questions.about_two(kind, drawing, is_yes)
            exchanges = [exchange]
            if kind == "same_meaning" and is_yes:
                exchanges.append((questions.reworded("name"), drawing.name))
            elif kind == "same_meaning":
                answer = "first" if pair[0] is drawing else "second"
                exchanges.append((questions.reworded("first_or_second", drawing.name), answer))
            id = f"{'+'.join(one.vendor for one in pair)}/{drawing.hexcode}/{kind}"
            rows.append(row(id, "conversation", [one.picture for one in pair], exchanges))
    return rows


def question_rows(questions: EmojiQuestions, dropped: Counter[str], split: str) -> list[Row]:
    """One question a row: all about one picture for each drawing, those about two for one drawing a meaning."""
    rows = []
    for kind in ONE_PICTURE:
        for drawing, is_yes in questions.evenly(kind, questions.drawings, dropped, split).items():
            exchange = questions.about_one(kind, drawing, is_yes)
            rows.append(row(f"{drawing.vendor}/{drawing.hexcode}/{kind}", kind, [drawing.picture], [exchange]))
    for kind in TWO_PICTURES:
        drawings = first_of_each_meaning(questions.drawings, questions.rng)
        for drawing, is_yes in questions.evenly(kind, drawings, dropped, split).items():
            pair, exchange = questions.about_two(kind, drawing, is_yes)
            id = f"{'+'.join(one.vendor for one in pair)}/{drawing.hexcode}/{kind}"
            rows.append(row(id, kind, [one.picture for one in pair], [exchange]))
    return rows


def make_emoji(data: Path, seed: int, num_seen: int, dropped: Counter[str]) -> Sets:
    """The sets emoji-captions and emoji-chat."""
    drawings = read_emoji(data / "emoji", dropped)
    everything = [one for vendor in drawings.values() for one in vendor]
    held = hold_out((one for vendor in VENDORS for one in drawings[vendor]), random.Random(f"{seed}/held out"))
    train = [one for vendor in VENDORS for one in drawings[vendor] if one.hexcode not in held]
    validation = [one for vendor in VENDORS for one in drawings[vendor] if one.hexcode in held]
    in_train = {one.hexcode for one in train}
    families = {one.family for one in train}
    seen = [one for one in drawings[VENDOR_KEPT_OUT] if one.hexcode in in_train]
    unseen = [one for one in drawings[VENDOR_KEPT_OUT] if one.family not in families]
    if related := len(drawings[VENDOR_KEPT_OUT]) - len(seen) - len(unseen):
        dropped[f"{VENDOR_KEPT_OUT}: not in train itself, but its variant is"] += related
    if len(seen) > num_seen:
        dropped["openmoji_seen: more than --openmoji-seen"] += len(seen) - num_seen
        seen = random.Random(f"{seed}/seen").sample(seen, num_seen)

    sets: Sets = {"emoji-captions": {}, "emoji-chat": {}}
    splits = {
        "train": (train, []),
        "validation": (validation, []),
        "openmoji_seen": (seen, train),
        "openmoji_unseen": (unseen, validation),
    }
    for split, (about, others) in splits.items():
        rng = random.Random(f"{seed}/{split}")
        questions = EmojiQuestions(about, others, everything, rng)
        captions = caption_rows(questions)
        chat = chat_rows(questions, dropped) if split == "train" else question_rows(questions, dropped, split)
        rng.shuffle(captions)
        rng.shuffle(chat)
        sets["emoji-captions"][split], sets["emoji-chat"][split] = captions, chat
    return sets


def clean_caption(caption: str) -> str:
    """Undo tokenisation, start with a capital and end with a full stop."""
    caption = re.sub(r"""(?<!\S)(["'])\s+(.*?)\s+\1(?!\S)""", r"\1\2\1", " ".join(caption.split()))
    caption = re.sub(r" (?=[.,;:!?])| (?='s\b)", "", caption).rstrip(" .,;")
    return caption[:1].upper() + caption[1:] + ("" if caption.endswith(("!", "?", '."')) else ".")


def kind_of_question(question: str) -> str:
    """What is asked about a room: a number, a colour or an object."""
    if question.startswith("how "):
        return "count"
    return "colour" if re.search("colou?r", question) else "object"


def read_photographs(folder: Path, dropped: Counter[str]) -> dict[str, list[Row]]:
    """The rows of metadata.jsonl by split, with `picture`, the stored bytes."""
    splits: dict[str, list[Row]] = {}
    known: set[bytes] = set()
    for split in ("validation", "train"):  # of a picture that lies in both, train's is dropped
        lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        splits[split] = []
        for stored in map(json.loads, lines):
            picture = (folder / split / stored["file_name"]).read_bytes()
            if picture in known:
                dropped[f"{folder.name}, {split}: photograph again"] += 1
                continue
            known.add(picture)
            splits[split].append({**stored, "picture": picture})
    return splits


def make_photos(data: Path, seed: int, dropped: Counter[str]) -> Sets:
    """The sets photos-captions and photos-chat."""
    captioned = read_photographs(data / "photo_captions", dropped)
    rooms = read_photographs(data / "vqa_rooms", dropped)
    sets: Sets = {"photos-captions": {}, "photos-chat": {}}
    for split in ("train", "validation"):
        rng = random.Random(f"{seed}/photos/{split}")
        captions, chat = [], []
        for photo in captioned[split]:
            id = f"photo_captions/{split}/{photo['file_name']}"
            cleaned = list(dict.fromkeys(map(clean_caption, photo["captions"])))
            if len(photo["captions"]) > len(cleaned):
                dropped[f"photo_captions, {split}: caption again"] += len(photo["captions"]) - len(cleaned)
            for number, caption in enumerate(cleaned if split == "train" else cleaned[:1]):
                exchange = (rng.choice(WORDINGS["caption"]), caption)
                captions.append(row(f"{id}#{number}", "caption", [photo["picture"]], [exchange]))
            # Other phases see other captions; references stay the first.
            caption = rng.choice(cleaned) if split == "train" else cleaned[0]
            chat.append(row(id, "caption", [photo["picture"]], [(rng.choice(WORDINGS["caption"]), caption)]))
        for room in rooms[split]:
            id = f"vqa_rooms/{split}/{room['file_name']}"
            asked: dict[str, str] = {}
            for question, answer in zip(room["question"], room["answer"], strict=True):
                if question in asked:
                    dropped[f"vqa_rooms, {split}: question asked again about the photograph"] += 1
                asked.setdefault(question, answer)
            exchanges = list(asked.items())
            if split == "train":
                rng.shuffle(exchanges)
                num_parts = -(-len(exchanges) // LARGEST_CONVERSATION)
                parts = [exchanges[number::num_parts] for number in range(num_parts)]
            else:
                parts = [[exchange] for exchange in exchanges]
            for number, part in enumerate(parts):
                kind = "conversation" if split == "train" else kind_of_question(part[0][0])
                chat.append(row(f"{id}#{number}", kind, [room["picture"]], part))
        rng.shuffle(captions)
        rng.shuffle(chat)
        sets["photos-captions"][split], sets["photos-chat"][split] = captions, chat
    return sets


def table(sets: Sets) -> str:
    """What was made, as Markdown."""
    lines = ["| set | split | rows | exchanges | pictures | kinds |", "|---|---|---|---|---|---|"]
    for name, splits in sets.items():
        for split, rows in splits.items():
            kinds = Counter(one["kind"] for one in rows)
            told = []
            for kind, number in sorted(kinds.items()):
                told.append(f"{kind} {number}")
                if kind in TWO_ANSWERS:
                    answers = [one["messages"][-1]["content"][0]["text"] for one in rows if one["kind"] == kind]
                    told[-1] += f" ({answers.count(TWO_ANSWERS[kind][0])} {TWO_ANSWERS[kind][0]})"
            pictures = len({image["bytes"] for one in rows for image in one["images"]})
            num_exchanges = sum(len(one["messages"]) // 2 for one in rows)
            lines.append(f"| {name} | {split} | {len(rows)} | {num_exchanges} | {pictures} | {', '.join(told)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read, make, save, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=("emoji", "photos"), default=["emoji", "photos"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--openmoji-seen", type=int, default=400, help="meanings of train asked about in openmoji")
    options = parser.parse_args(arguments)

    disable_progress_bars()
    dropped: Counter[str] = Counter()
    makers: dict[str, Callable[[], Sets]] = {
        "emoji": lambda: make_emoji(options.data, options.seed, options.openmoji_seen, dropped),
        "photos": lambda: make_photos(options.data, options.seed, dropped),
    }
    sets: Sets = {}
    for kind in options.kinds:
        sets |= makers[kind]()
    for name, splits in sets.items():
        made = DatasetDict({split: Dataset.from_list(rows, features=FEATURES) for split, rows in splits.items()})
        made.save_to_disk(options.out / name)
    print(table(sets))
    print("\n| dropped | number |\n|---|---|")
    for reason, number in sorted(dropped.items()):
        print(f"| {reason} | {number} |")


if __name__ == "__main__":
    main()
