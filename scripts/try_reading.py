"""What `scripts/try.sh` shows of a reading.

    python scripts/try_reading.py show READ.jsonl PICTURE.png    text and confidence, printed and drawn below each line
    python scripts/try_reading.py reload MODEL DATA              MODEL, saved and reloaded, reads as it did in training

READ.jsonl is what `hf-vlm read --json` printed, MODEL what `hf-vlm train` saved, DATA the lines that it was validated on.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UNSURE = 0.5  # words with less confidence are marked


def show(lines: Sequence[dict[str, Any]], picture: Path) -> None:
    """Print and draw, the surest line first."""
    lines = sorted(lines, key=lambda line: -line["score"])
    for line in lines:
        print(f"{line['score']:5.0%}  {Path(line['file']).name:20}  {marked_text(line)}")
    print(f"(how sure it is of the line; [words] that it is less than {UNSURE:.0%} sure of)")
    draw(lines, picture)
    print(f"Drawn in {picture}")


def marked_text(line: dict[str, Any]) -> str:
    """The text, with brackets around the words that the model is not sure of."""
    return " ".join(word["word"] if word["confidence"] >= UNSURE else f"[{word['word']}]" for word in line["words"])


def draw(lines: Sequence[dict[str, Any]], picture: Path, columns: int = 2) -> None:
    """A sheet of the lines, the text read below each, greener the surer the model is of the whole line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = math.ceil(len(lines) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(8 * columns, 0.9 * rows), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 / rows, top=1 - 0.05 / rows, wspace=0.02, hspace=0.6)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, line in zip(axes.flat, lines, strict=False):
        with Image.open(line["file"]) as image:
            axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255)
        axis.set_anchor("W")
        text = f"{line['score']:.0%}   {marked_text(line)}"
        color = pyplot.get_cmap("RdYlGn")(line["score"] ** 2)[:3]
        below = {"xy": (0, 0), "xycoords": "axes fraction", "xytext": (0, -3), "textcoords": "offset points"}
        axis.annotate(text, va="top", color=[0.6 * part for part in color], parse_math=False, fontsize=12, **below)
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def reload(model: str, data: str) -> int:
    """0 if the saved model, loaded in two ways, reads the validation lines as it did in training, 1 if not."""
    import torch
    from transformers import AutoModel, AutoProcessor, pipeline

    import hf_vlm  # noqa: F401  registers our classes
    from hf_vlm.data.lines.image_text import read_lines
    from hf_vlm.training.scores.metrics import character_error_rate

    lines = read_lines(data, split="validation")
    pictures = [line["image"] for line in lines]
    reader = AutoModel.from_pretrained(model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model)
    by_model = reader.recognize(**processor(images=pictures), tokenizer=processor.tokenizer)
    by_pipeline = pipeline("text-recognition", model=model, device="cpu")(pictures, batch_size=8)
    texts = [result.text for result in by_model]
    same = sum(text == result["generated_text"] for text, (result,) in zip(texts, by_pipeline, strict=True))
    in_training = json.loads((Path(model) / "trainer_state.json").read_text(encoding="utf-8"))["best_metric"]
    reloaded = character_error_rate(lines.texts, texts)
    print(f"trained, before it was saved    CER {in_training:.2%}")
    print(f"reloaded through AutoModel      CER {reloaded:.2%}")
    print(f"reloaded through the pipeline   {same} of {len(lines)} lines read as by AutoModel")
    return int(same < len(lines) or abs(reloaded - in_training) > 1e-6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    showing = commands.add_parser("show")
    showing.add_argument("read", type=Path)
    showing.add_argument("picture", type=Path)
    reloading = commands.add_parser("reload")
    reloading.add_argument("model")
    reloading.add_argument("data")
    options = parser.parse_args()
    if options.command == "reload":
        return reload(options.model, options.data)
    show([json.loads(line) for line in options.read.read_text(encoding="utf-8").splitlines()], options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
