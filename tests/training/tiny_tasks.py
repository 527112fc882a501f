"""Sets of every task about pictures of one colour, and tiny parts of every architecture, in which recipes run in seconds."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTImageProcessor

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
GERMAN = {"red": "rot", "green": "grün", "blue": "blau"}


def write_rows(folder: Path, rows: list[dict]) -> None:
    """A split as pictures and a metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        for shade in range(4):
            Image.new("RGB", (24, 20), tuple(max(0, channel - 6 * shade) for channel in colour)).save(
                folder / f"{name}{shade}.png"
            )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_task_sets(folder: Path) -> Path:
    """Captions, questions, statements and translations, under the names that the shipped recipes read."""
    shades = [(name, shade) for shade in range(4) for name in COLOURS]
    captions = [{"file_name": f"{n}{s}.png", "captions": [f"a {n} picture .", f"it is {n} ."]} for n, s in shades]
    questions = [
        {"file_name": f"{n}{s}.png", "question": ["which colour?", f"is it {n}?"], "answer": [n, "yes"]}
        for n, s in shades
    ]
    names = list(COLOURS)
    statements = []
    for at, name in enumerate(names):
        other = names[(at + 1) % 3]
        for shade, (pair, label) in enumerate(
            [((name, name), True), ((name, other), False), ((other, name), False), ((name, name), True)]
        ):
            images = [f"{pair[0]}{shade}.png", f"{pair[1]}{(shade + 1) % 4}.png"]
            statements.append({"images": images, "sentence": f"Both are {name}.", "label": label, "kind": "both"})
    translations = [{"image": f"{n}{s}.png", "source": n, "target": GERMAN[n], "kind": "en-de"} for n, s in shades]
    sets = {
        "photo_captions": captions,
        "vqa_rooms": questions,
        "emoji-nlvr": statements,
        "emoji-nlvr-talk": statements,
        "emoji-translate": translations,
        "emoji-translate-picture": translations,
        "emoji-translate-text": [{k: v for k, v in row.items() if k != "image"} for row in translations],
    }
    for name, rows in sets.items():
        for split in ("train", "validation"):
            write_rows(folder / name / split, rows)
    return folder


def write_decoder_parts(folder: Path) -> Path:
    """`efficientnet-lite0` and `dinov2-small`, both a ResNet, and `minilm`, a BERT of characters: random and tiny."""
    torch.manual_seed(0)
    for name in ("efficientnet-lite0", "dinov2-small"):
        ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ).save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / name)
    tokenizer = build_character_tokenizer(alphabet=" ?.abcdefghijklmnopqrstuvwxyz")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=96)).save_pretrained(
        folder / "minilm"
    )
    tokenizer.save_pretrained(folder / "minilm")
    return folder
