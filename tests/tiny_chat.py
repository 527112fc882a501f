"""A tiny LLaVA that has learnt to name the colours of pictures, saved as a folder, and pictures for it.

It says `red blue` to `colours?` with two such pictures, then `green` with one more; `red` to `first?` in a conversation that
began with one picture; and `hi` to `hello`, before all that. More than it was taught it can't be relied on for.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from scripts.tiny_parts import END, PAD, START, VOCAB_SIZE, randomise, tiny_image_processor, tiny_tokenizer

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
NUM_POSITIONS = 256  # tokens
NUM_LESSONS = 400
NUM_ROWS = 8  # a step


def coloured(name: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of one colour, (width, height) px."""
    return Image.new("RGB", size, COLOURS[name])


def user(text: str, *pictures: Any) -> dict[str, Any]:
    """A message as `apply_chat_template` takes it: pictures, then the text."""
    parts = [picture if isinstance(picture, dict) else {"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def tiny_chat_model() -> tuple[LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor]:
    """Assembled of a random ViT and a random Llama; it has learnt nothing yet."""
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    vision = ViTModel(ViTConfig(**layers, num_hidden_layers=1, image_size=32, patch_size=16), add_pooling_layer=False)
    text = LlamaForCausalLM(
        LlamaConfig(
            **layers,
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=NUM_POSITIONS,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
        )
    )
    randomise(vision)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(32, 32), tiny_tokenizer(), vision_config=vision.config
    )
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
        vision, text, processor=processor, max_new_tokens=20
    )
    return model, processor


def teach_colours(model: Any, processor: Any, num_steps: int = 280) -> float:
    """Trains on conversations of one to three exchanges; gives back the last loss, nats a token."""
    draw = random.Random(0)
    lessons = [_lesson(processor, draw) for _ in range(NUM_LESSONS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    model.train()
    for _ in range(num_steps):
        rows = draw.sample(lessons, NUM_ROWS)
        ids = [torch.tensor(encoded["input_ids"]) for encoded, _ in rows]
        labels = [torch.tensor(encoded["labels"]) for encoded, _ in rows]
        loss = model(
            input_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD),
            labels=torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
            attention_mask=torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            pixel_values=torch.cat([pixel_values for _, pixel_values in rows]),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return loss.item()


def _lesson(processor: Any, draw: random.Random) -> tuple[dict[str, list[int]], torch.Tensor]:
    messages: list[dict[str, Any]] = []
    seen: list[str] = []

    def exchange(content: Any, answer: str) -> None:
        messages.extend([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])

    if draw.random() < 0.2:
        exchange("hello", "hi")
    names = draw.choices(list(COLOURS), k=draw.randint(1, 2))
    exchange([*[{"type": "image"}] * len(names), {"type": "text", "text": "colours?"}], " ".join(names))
    seen += names
    if draw.random() < 0.5:
        names = draw.choices(list(COLOURS), k=1)
        exchange([{"type": "image"}, {"type": "text", "text": "colours?"}], names[0])
        seen += names
    if draw.random() < 0.5:
        exchange("first?", seen[0])
    pixel_values = processor.prepare_images([coloured(name) for name in seen])
    return processor.encode_conversation(messages), pixel_values


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trained model and its processor."""
    model, processor = tiny_chat_model()
    teach_colours(model, processor)
    folder = tmp_path_factory.mktemp("chat")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def colour_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file for each colour, its name telling nothing but the colour."""
    folder: Path = tmp_path_factory.mktemp("colours")
    for name in COLOURS:
        coloured(name).save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in COLOURS}
