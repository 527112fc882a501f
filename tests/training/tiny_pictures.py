"""A folder of tiny pictures in classes, and a recipe that trains on it in seconds."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hf_vlm.training.tasks import load_recipe

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def write_pictures(folder, number, names=tuple(COLOURS), size=(18, 16), seed=0):
    """`number` noisy pictures a class, each mostly of its class's colour, in folders of the classes."""
    rng = np.random.default_rng(seed)
    for name in names:
        colour = np.array(COLOURS.get(name, (128, 128, 128)))
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = colour + rng.integers(-40, 40, (size[1], size[0], 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def write_picture_splits(folder):
    """`train` with 8 pictures a class, `validation` with 3."""
    write_pictures(folder / "train", 8)
    write_pictures(folder / "validation", 3, seed=1)
    return folder


def tiny_picture_recipe(pictures, output_dir, task="image-classification"):
    """A recipe as nested dicts: a random model of 10k parameters, six steps of two batches of 4."""
    return {
        "task": task,
        "model": {
            "config": {
                "model_type": "hf_vlm_vit",
                "image_size": 16,
                "patch_size": 4,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "drop_path_rate": 0.1,
            },
        },
        "data": {"folder": str(pictures), "augmentation": {"crop": "padded", "crop_padding": 2}},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "eval_steps": 2,
            "save_steps": 2,
            "disable_tqdm": True,
            "report_to": "none",
        },
    }


def picture_recipe_of(sections, *overrides):
    """The recipe of nested dicts, through a file as users give it."""
    file = Path(sections["training"]["output_dir"]).parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_recipe(file, overrides)
