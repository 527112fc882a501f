"""A folder of tiny lines and a recipe that trains on it in seconds."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont

from hf_vlm.training.recipe import TrOCRRecipe

TEXTS = ["a cat", "two dogs ran", "no", "the sun is up", "rain", "we saw a ship", "old town", "it is late now"]


def write_lines(folder, texts):
    """An image folder: one drawn line a text, and its metadata.jsonl."""
    folder.mkdir(parents=True)
    font = ImageFont.load_default(size=18)
    rows = []
    for index, text in enumerate(texts):
        picture = Image.new("L", (24 + 9 * len(text), 28), 255)
        ImageDraw.Draw(picture).text((4, 2), text, fill=0, font=font)
        picture.save(folder / f"line_{index}.png")
        rows.append(json.dumps({"file_name": f"line_{index}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def recipe_of(sections, *overrides):
    """The recipe of nested dicts, through a file as users give it."""
    file = Path(sections["training"]["output_dir"]).parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return TrOCRRecipe.load(file, overrides)


def write_splits(folder):
    """`train` with 8 lines, `validation` with 3."""
    write_lines(folder / "train", TEXTS)
    write_lines(folder / "validation", ["a ship", "the rain", "no dogs"])
    return folder


def tiny_recipe(lines, output_dir):
    """A recipe as nested dicts: a random model of 60k parameters, three steps of two batches of 4."""
    return {
        "model": {
            "tokenizer": "characters",
            "alphabet": " abcdefghijklmnopqrstuvwxyz",
            "vision_config": {
                "model_type": "hf_vlm_vit",
                "num_channels": 1,
                "image_size": [32, 256],
                "patch_size": [32, 8],
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "use_cls_token": False,
            },
            "text_config": {
                "model_type": "hf_vlm_trocr_text",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 24,
                "dropout": 0.1,
            },
            "image_processor": {"keep_aspect_ratio": True, "image_mean": [0.5], "image_std": [0.5]},
        },
        "data": {
            "folder": str(lines),
            "train": [{"path": ".", "split": "train"}],
            "validation": {"lines": {"path": ".", "split": "validation"}},
        },
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "eval_steps": 1,
            "save_steps": 1,
            "disable_tqdm": True,
        },
        "generation": {"max_new_tokens": 6},
    }


@pytest.fixture
def lines_folder(tmp_path):
    return write_splits(tmp_path / "lines")


@pytest.fixture
def recipe_sections(tmp_path, lines_folder):
    return tiny_recipe(lines_folder, tmp_path / "out")
