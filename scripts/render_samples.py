"""A page of drawn lines as a picture: kind, face and text above each, so that one sees what a model learns from.

    python scripts/render_samples.py samples.png [--texts FILE] [--fonts FOLDER ...] [--kinds fax pen] [--lines 60]
    python scripts/render_samples.py samples.png --augment da2 mild              each line again, so augmented
    python scripts/render_samples.py samples.png --real ocr_receipts[:train]     each beside a real line of a data set

From Python: `sample_sheet(renderer[i] for i in range(60))` of `hf_vlm.data.lines.sample_sheet`.
"""

import argparse
from pathlib import Path

import numpy as np

from hf_vlm.data.lines.augmentation import AUGMENTATIONS
from hf_vlm.data.lines.font_faces import FONT_FOLDERS
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.data.lines.line_texts import SHIPPED_SENTENCES
from hf_vlm.data.lines.ocr_lines import KIND_WEIGHTS, LineRenderer
from hf_vlm.data.lines.sample_sheet import sample_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, default=SHIPPED_SENTENCES, help="sentences, one a line")
    parser.add_argument("--fonts", type=Path, nargs="*", default=FONT_FOLDERS)
    parser.add_argument("--kinds", nargs="*", choices=KIND_WEIGHTS, default=list(KIND_WEIGHTS), help="each as often")
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augment", nargs="*", choices=AUGMENTATIONS, default=[])
    parser.add_argument("--real", help="lines to read, as FOLDER_OR_FILE[:SPLIT]")
    arguments = parser.parse_args()

    renderer = LineRenderer(
        arguments.texts, arguments.fonts, seed=arguments.seed, kinds=dict.fromkeys(arguments.kinds, 1.0)
    )
    lines = []
    rng = np.random.default_rng(arguments.seed)
    if arguments.real:
        path, _, split = arguments.real.partition(":")
        real = read_lines(path, split=split or None)
    for index in range(arguments.lines):
        line = renderer[index]
        lines.append(line)
        for name in arguments.augment:
            lines.append({**line, "image": AUGMENTATIONS[name](line["image"], rng), "augment": name})
        if arguments.real:
            row = real[int(rng.random() * len(real))]
            picture = row["image"].convert("L")
            height = line["image"].height
            picture = picture.resize((max(round(picture.width * height / picture.height), 1), height))
            lines.append({"image": picture, "text": row["text"], "kind": "real"})
    columns = 1 + len(arguments.augment) + bool(arguments.real)
    sample_sheet(lines, columns=columns if columns > 1 else 2).save(arguments.out)
    print(f"{arguments.out}: {arguments.lines} lines, {len(renderer.faces)} faces")


if __name__ == "__main__":
    main()
