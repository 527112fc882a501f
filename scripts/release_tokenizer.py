"""Make the shipped folder of a trained visual tokenizer: half-precision weights, config, processor, licence, pictures, a card.

    python scripts/release_tokenizer.py RUN DATA --results OUT/results.json --command "COMMAND" --emoji EMOJI --out FOLDER

RUN: a folder that scripts/compare_tokenizers.py or `hf-vlm train` left; DATA: the pictures that it was trained on, whose split
`validation` measures the half-precision weights that are shipped; --results: figures of the tokenizers beside it; --emoji: a data
set of emoji, of which pictures are shown.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from compare_tokenizers import table
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoImageProcessor, AutoModel

from hf_vlm.data.labelled_images import read_images
from hf_vlm.training.scores.tokenizer_evaluation import evaluate_tokenizer_folders
from hf_vlm.training.scores.tokenizer_pictures import paired_grid

CHECKOUT = Path(__file__).parents[1]
LARGEST_FILE = 2e6  # bytes
SHOWN = 12

CARD = """# {name}

A small visual tokenizer: a picture becomes a grid of codes, one for every {side} x {side} pixels, each one of {num_codes}; and
back. {parameters:.2f}M parameters, a {kind}. Trained on pictures of 32 x 32 pixels; any size that is a multiple of {side} is
taken. A toy beside DALL-E's, made to learn from, to test with, and to start from on your own pictures.

![Emoji, and what is left of them](emoji.png)

## Use

```python
from transformers import pipeline

import hf_vlm

tokenizer = pipeline("image-tokenization", model="model_cards/{name}")
found = tokenizer("scripts/example_lines/validation/printed-0.jpg")
print(found["code_ids"])  # rows of numbers in [0, {num_codes})
```

`AutoModel` gives the model itself: `encode`, `decode`, `reconstruct`; `hf-vlm tokenize IMAGES --model ... --out CACHE` writes the
codes of many pictures.

## Figures

The shipped weights, on the validation pictures (`hf-vlm evaluate model_cards/{name} DATA --split validation`):

{figures}

Beside other tokenizers of 512 codes, before rounding to half precision, each trained with the same pictures, steps and trainer
({command}; `peer-vq` has the codebook of vector-quantize-pytorch in the place of ours):

{table}

MSE of pixels in [0, 1]; PSNR is the mean over pictures; sharpness is the energy of edges beside that of the originals. bits/dim
counts the codes (log2 {num_codes} each) and the picture given them, by a normal distribution of one learnt deviation, for `dvae`
by a logit-Laplace with predicted scales: compare it among like ones. Codes in use and perplexity are counted over all validation
pictures. Minutes are of a machine that did other things besides.

## Limits

- It was trained on small photographs of ten kinds of things and knows no other: line drawings lose their lines, text is not
  readable. Fine-tune it: `hf-vlm train {recipe} data.folder=PICTURES model.config=null model.pretrained=model_cards/{name}`.
- JPEG blocks of the training pictures were learnt too.
- `sample` draws codes independently, which gives texture, not pictures.

## How it was made

By the recipe `{recipe}` on 20,000 pictures of CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny
Images") as JPEG. **These pictures carry no stated licence**: none of them is shipped here; the trained weights are, under
Apache-2.0. The emoji above are {emoji_source}.
"""
EMOJI_SOURCE = "Noto Emoji (Google, Apache-2.0) and Twemoji (Twitter, CC BY 4.0), which it was not trained on"


@torch.no_grad()
def draw_emoji(model: torch.nn.Module, processor: object, emoji: Path, file: Path) -> None:
    """Emoji of two vendors above their reconstructions."""
    rows, names = [], []
    for vendor in ("google", "twitter"):
        images = read_images(emoji, vendor, with_labels=False)
        chosen = [images[(2 * index + 1) * len(images) // (2 * SHOWN)]["image"] for index in range(SHOWN)]
        pixel_values = processor(images=chosen, return_tensors="pt", size={"height": 64, "width": 64})["pixel_values"]
        rows += [processor.post_process(pixel_values), processor.post_process(model.reconstruct(pixel_values))]
        names += [f"{vendor}, 64 x 64 pixels", "from its codes"]
    paired_grid(rows, names).save(file)


def main() -> None:
    """Convert, check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained folder")
    parser.add_argument("data", type=Path, help="data set with a split `validation`")
    parser.add_argument("--results", type=Path, required=True, help="JSON of scripts/compare_tokenizers.py")
    parser.add_argument("--command", required=True, help="command that trained it and those beside it")
    parser.add_argument("--emoji", type=Path, required=True, help="data set of emoji")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, such as model_cards/vqvae-mini-32px")
    arguments = parser.parse_args()

    model = AutoModel.from_pretrained(arguments.run).half()
    processor = AutoImageProcessor.from_pretrained(arguments.run)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    shutil.copy(CHECKOUT / "LICENSE", arguments.out / "LICENSE")
    weights = arguments.out / "model.safetensors"
    if weights.stat().st_size >= LARGEST_FILE:
        raise SystemExit(
            f"The weights must be below {LARGEST_FILE:.0f} bytes, got {weights.stat().st_size}. Train a smaller model."
        )

    shipped = AutoModel.from_pretrained(arguments.out, dtype=torch.float32).eval()
    draw_emoji(shipped, processor, arguments.emoji, arguments.out / "emoji.png")
    [(_, scores)] = evaluate_tokenizer_folders(
        str(arguments.out), [str(arguments.data)], split="validation", batch_size=250
    )
    figures = "\n".join(
        ["| measure | value |", "|---|---|", *(f"| {name} | {value:.5g} |" for name, value in scores.items())]
    )
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    results = {run: found for run, found in results.items() if "used_codes" in found}
    is_vq = model.config.model_type == "hf_vlm_vqvae"
    text = CARD.format(
        name=arguments.out.name,
        kind="VQ-VAE" if is_vq else "discrete VAE (Gumbel-softmax, the form of DALL-E's)",
        recipe="vqvae-tokenizer" if is_vq else "dvae-tokenizer",
        side=model.config.downsampling,
        num_codes=model.config.num_codes,
        parameters=model.num_parameters() / 1e6,
        figures=figures,
        table=table(results),
        command=f"`{arguments.command}`",
        emoji_source=EMOJI_SOURCE,
    )
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["hf-vlm", "image-tokenization", "vq-vae" if is_vq else "dvae"],
        model_name=arguments.out.name,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(arguments.out / "README.md")
    print(f"{arguments.out}: {model.num_parameters()} parameters, {weights.stat().st_size} bytes of weights\n{scores}")


if __name__ == "__main__":
    main()
