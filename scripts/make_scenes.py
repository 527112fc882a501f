"""Compose pictures of drawings whose places are known, with the captions and boxes that a teacher reads.

    python scripts/make_scenes.py DATA OUT [--train 2000] [--validation 300] [--size 224] [--seed 0]

    hf-vlm make-data OUT/train/contexts.jsonl --teacher rules --vocabulary OUT/categories.txt --image-folder OUT/train --out TRAIN

DATA holds google.parquet and twitter.parquet with name_en and image. OUT/train and OUT/validation become folders of PNGs,
each with a contexts.jsonl (`hf_vlm/data/instructions/contexts.py`), of which the second command makes instruction data whose
answers are true of the pixels. A scene has one to six things of one to three categories that don't touch. Scene i is a pure
function of (seed, split, i). Licences of the drawings: Noto Emoji (google) Apache-2.0, Twemoji (twitter) CC BY 4.0.
"""

import argparse
import json
import random
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow.parquet
from PIL import Image

# category -> CLDR's name of the drawing
CATEGORIES = {
    name: name
    for name in (
        "dog cat horse cow pig elephant giraffe zebra bear rabbit penguin owl duck frog turtle snake octopus "
        "crab butterfly snail banana lemon pineapple strawberry carrot broccoli pizza hamburger bus tractor "
        "bicycle motorcycle airplane rocket sailboat guitar drum hammer chair bed umbrella "
    ).split()
} | {"apple": "red apple", "donut": "doughnut", "cake": "birthday cake", "car": "automobile", "hot dog": "hot dog"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MOST_CATEGORIES, MOST_OF_ONE = 3, 3
SMALLEST, LARGEST = 0.18, 0.42  # side of a thing, as a share of the picture's


def load_drawings(folder: Path) -> dict[str, list[Image.Image]]:
    """Category -> its drawings, RGB on white, one a vendor."""
    drawings: dict[str, list[Image.Image]] = {category: [] for category in CATEGORIES}
    for vendor in ("google", "twitter"):
        rows = pyarrow.parquet.read_table(folder / f"{vendor}.parquet", columns=["name_en", "image"]).to_pylist()
        stored = {row["name_en"]: row["image"]["bytes"] for row in rows}
        for category, name in CATEGORIES.items():
            if name in stored:
                drawings[category].append(Image.open(BytesIO(stored[name])).convert("RGB"))
    missing = [category for category, found in drawings.items() if not found]
    if missing:
        raise ValueError(
            f"{folder} must hold drawings of {', '.join(missing)}, got none. Give the folder of the emoji."
        )
    return drawings


def compose(drawings: dict[str, list[Image.Image]], size: int, draw: random.Random) -> tuple[Image.Image, dict]:
    """A scene, RGB (size, size), and its captions and instances."""
    canvas = Image.new("RGB", (size, size), "white")
    taken: list[tuple[int, int, int, int]] = []
    instances = []
    for category in draw.sample(sorted(drawings), draw.randint(1, MOST_CATEGORIES)):
        for _ in range(draw.randint(1, MOST_OF_ONE)):
            picture = draw.choice(drawings[category])
            side = round(size * draw.uniform(SMALLEST, LARGEST))
            for _ in range(50):  # tries to find room
                left, top = draw.randint(0, size - side), draw.randint(0, size - side)
                box = (left, top, left + side, top + side)
                if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in taken):
                    break
            else:
                continue
            taken.append(box)
            canvas.paste(picture.resize((side, side), Image.Resampling.BICUBIC), box[:2])
            instances.append({"category": category, "bbox": [round(edge / size, 3) for edge in box]})
    counts = Counter(one["category"] for one in instances)
    named = [f"{NUMBERS[number]} {name if number == 1 else plural(name)}" for name, number in counts.items()]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return canvas, {"captions": [f"{listed.capitalize()} on white."], "instances": instances}


def plural(name: str) -> str:
    """As written of more than one."""
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else "broccoli" if name == "broccoli" else f"{name}s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--size", type=int, default=224, help="pixels, default 224")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawings = load_drawings(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "categories.txt").write_text("".join(f"{name}\n" for name in sorted(drawings)), encoding="utf-8")
    for split, number in (("train", options.train), ("validation", options.validation)):
        folder = options.out / split
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "contexts.jsonl").open("w", encoding="utf-8") as stream:
            for index in range(number):
                picture, told = compose(drawings, options.size, random.Random(f"{options.seed} {split} {index}"))
                name = f"{split}-{index:06}.png"
                picture.save(folder / name)
                stream.write(json.dumps({"id": Path(name).stem, "image": name, **told}) + "\n")
        print(f"{folder}: {number} scenes")


if __name__ == "__main__":
    main()
