"""Make the shipped folder of a trained line reader: half-precision weights, config, processor, licence, and a card.

    python scripts/release_checkpoint.py RUN --figures FIGURES.json [--out model_cards/trocr-mini-lines]

RUN is a trained folder, as `hf-vlm train` leaves it; FIGURES.json is written by `scripts/compare_ocr.py DATA --model OUT --json
FIGURES.json`. Run this script once without `--figures` to make the folder, measure it, and run it again: the card then tells the
figures of the half-precision weights that it stands beside.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from compare_ocr import table
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModel, AutoProcessor

import hf_vlm  # noqa: F401  registers our classes

CHECKOUT = Path(__file__).parents[1]
LARGEST_FILE = 16e6  # bytes

CARD = """# {name}

A small line reader: one picture of one line of text in, the text out, with a confidence for every word. {parameters:.1f}M
parameters, trained from scratch on a laptop-sized CPU budget. It is the default of `hf-vlm read` and a starting point for
fine-tuning on your own lines; see the figures before you rely on it.

A decoder writes the text character by character from the picture, and a CTC head spells it in one step; what is given is the
likelier of the two texts by both (`ctc_decoding_weight` in the config; 0 asks the decoder alone).

## Use

```python
import hf_vlm
from transformers import pipeline

reader = pipeline("text-recognition", model=hf_vlm.default_ocr_model())
```

## Figures

Character and word error rate in percent on the validation lines, all readers in one run on the same line pictures, without text
detection, on 2 CPU cores: read lines/s as ratios. Receipts are scored without case; receipts and `handwritten-en` were never
trained on, nor was any page of the book and of the two archives in `unseen-printed` and `unseen-typewritten`. bfloat16 and int8
are the same weights, rounded.
{figures}

Made by `python scripts/compare_ocr.py DATA --model model_cards/{name} --json FIGURES.json`.

## Limits

- Latin script: the {num_characters} characters of `tokenizer.json`. One line at a time: it finds no lines on a page.
- Handwriting is read poorly, English cursive hardly at all.
- Pictures are scaled to {height} px of height; a line wider than {width} px at that height is squeezed.
- Confidence is the model's own probability. It is not calibrated.

## How it was made

By `hf-vlm train trocr-mini-lines`, the recipe in `hf_vlm/training/recipes/`, three quarters of the lines rendered while
training. {cost}

| data | lines | licence |
|---|---|---|
| rendered lines: Debian's font packages; manuals, handbooks, `fortunes`, and the training transcripts below | on the fly | - |
| 19th-century print: GT-commentaries-OCR (Romanello et al., HIP '21) | 1,042 | CC BY 4.0 |
| typescripts: ehri-dataset (EHRI project), tapuscorpus (HTR-United) | 1,997 | CC BY 4.0 |
| French handwriting: CREMMA-AN-TestamentsDePoilus (HTR-United) | 1,100 | CC BY 4.0 |

The weights are published under Apache-2.0.
"""


def main() -> None:
    """Convert, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained folder")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "model_cards" / "trocr-mini-lines")
    parser.add_argument("--figures", type=Path, help="JSON of scripts/compare_ocr.py")
    parser.add_argument("--cost", default="", help="sentence about the time and the machine that training took")
    arguments = parser.parse_args()

    model = AutoModel.from_pretrained(arguments.run, dtype=torch.float16)
    processor = AutoProcessor.from_pretrained(arguments.run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    shutil.copy(CHECKOUT / "LICENSE", arguments.out / "LICENSE")
    weights = arguments.out / "model.safetensors"
    if weights.stat().st_size >= LARGEST_FILE:
        raise SystemExit(
            f"The weights must be below {LARGEST_FILE:.0f} bytes, got {weights.stat().st_size}. Train a smaller model."
        )

    figures = (
        "Not measured yet." if arguments.figures is None else table(json.loads(arguments.figures.read_text("utf-8")))
    )
    size = processor.image_processor.size
    text = CARD.format(
        name=arguments.out.name,
        parameters=model.num_parameters() / 1e6,
        figures="\n" + figures,
        num_characters=len(processor.tokenizer) - len(processor.tokenizer.all_special_ids),
        height=size["height"],
        width=size["width"],
        cost=arguments.cost,
    )
    data = ModelCardData(
        language=["en", "fr", "de", "la"],
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["ocr", "trocr", "hf-vlm", "text-recognition"],
        model_name=arguments.out.name,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(arguments.out / "README.md")
    print(f"{arguments.out}: {model.num_parameters()} parameters, {weights.stat().st_size} bytes of weights")


if __name__ == "__main__":
    main()
