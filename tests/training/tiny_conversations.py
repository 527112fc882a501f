"""Tiny parts of a LLaVA as folders, conversations about coloured pictures, and recipes that train on them in seconds."""

from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import LlamaConfig, LlamaForCausalLM

from hf_vlm import VisionTransformerConfig, VisionTransformerModel
from hf_vlm.training.tasks import load_recipe
from tests.models.llava.tiny_llava import END, NUM_TOKENS, PAD, START, randomise, tiny_image_processor, tiny_tokenizer

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
FEATURES = Features(
    {
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "images": List(Image()),
        "id": Value("string"),
    }
)


def write_parts(folder: Path) -> Path:
    """`vision` and `text`: a ViT of 16 x 16 pixels and a Llama that writes characters, both random."""
    vision = VisionTransformerModel(
        VisionTransformerConfig(
            image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pooling="none"
        )
    )
    vision.save_pretrained(folder / "vision")
    tiny_image_processor().save_pretrained(folder / "vision")
    config = LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    text = LlamaForCausalLM(config)
    randomise(text, 0.5)
    text.save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    return folder


def row(number: int, num_pictures: int, num_exchanges: int = 1) -> dict:
    """A conversation about pictures of one colour each; the answers name it."""
    generator = np.random.default_rng(number)
    names = [list(COLOURS)[(number + offset) % 3] for offset in range(max(num_pictures, 1))]
    pictures = [
        PILImage.fromarray(
            (np.array(COLOURS[name]) + generator.integers(-30, 30, (16, 20, 3))).clip(0, 255).astype(np.uint8)
        )
        for name in names[:num_pictures]
    ]
    messages = []
    for exchange in range(num_exchanges):
        asked = [{"type": "text", "text": "What colour?" + "?" * (number % 4)}]
        if exchange == 0:
            asked = [{"type": "image", "text": None}] * num_pictures + asked
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": " and ".join(names)}]})
    return {"messages": messages, "images": pictures, "id": str(number)}


def write_conversations(folder: Path, number: int = 12) -> Path:
    """`chat`, with pictures, two pictures, none, several exchanges; `captions`, one picture and one exchange each."""
    chat = [row(index, index % 3, 1 + index % 2) for index in range(number)]
    captions = [row(index, 1) for index in range(number)]
    for name, rows in (("chat", chat), ("captions", captions)):
        sets = {"train": rows, "validation": rows[:4]}
        DatasetDict(
            {split: Dataset.from_list(of_split, features=FEATURES) for split, of_split in sets.items()}
        ).save_to_disk(str(folder / name))
    return folder


def tiny_llava_recipe(parts_folder: Path, data_folder: Path, output_dir: Path, **sections: dict) -> dict:
    """A recipe as nested dicts: six steps of rows of up to 256 tokens, the projector alone."""
    recipe = {
        "task": "chat",
        "model": {
            "vision": str(parts_folder / "vision"),
            "text": str(parts_folder / "text"),
            "settings": {"vision_feature_layer": -1},
        },
        "data": {
            "folder": str(data_folder),
            "train": [{"path": "captions", "split": "train"}],
            "max_length": 200,
            "max_tokens": 256,
        },
        "parts": {"train": ["projector"]},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 6,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 10,
            "disable_tqdm": True,
            "report_to": "none",
        },
    }
    for name, section in sections.items():
        recipe[name] = recipe.get(name, {}) | section
    return recipe


def recipe_of(tmp_path: Path, sections: dict):
    """The recipe of nested dicts."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_recipe(file)
