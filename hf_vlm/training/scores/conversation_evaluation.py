"""Asking a saved LLaVA: loading it, and its answers to many questions."""

import json
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_vlm.data.conversations.conversations import Conversations, text_of
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.parts.adapter_loading import base_of_adapter, load_with_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import find_file, read_config


def is_visual_chat(name_or_folder: str) -> bool:
    """Whether a folder or Hub name is a LLaVA, or an adapter of one."""
    if find_file(name_or_folder, "adapter_config.json") is not None:
        stored = find_file(name_or_folder, "processor_config.json")
        if stored is None:
            base = base_of_adapter(name_or_folder)
            return base is not None and is_visual_chat(base)
        kind = json.loads(stored.read_text(encoding="utf-8")).get("processor_class")
        return kind == LlavaVisionLanguageProcessor.__name__
    try:
        return read_config(name_or_folder).get("model_type") in ("hf_vlm_llava", "llava")
    except FileNotFoundError:
        return False


def load_visual_chat(name_or_folder: str) -> tuple[Any, LlavaVisionLanguageProcessor]:
    """A saved LLaVA, or an adapter on its base, in fp32, and its processor."""
    processor = LlavaVisionLanguageProcessor.from_pretrained(processor_folder(name_or_folder))
    model = load_with_adapter(LlavaVisionLanguageForConditionalGeneration, name_or_folder, dtype=torch.float32)
    return model, processor


def answer_conversations(
    model: PreTrainedModel,
    processor: LlavaVisionLanguageProcessor,
    rows: Conversations,
    shown: Callable[[int], list[Image.Image] | None] | None = None,
    *,
    batch_size: int = 16,
    **generation: Any,
) -> list[str]:
    """The model's last answer in each conversation, greedy unless `generation` says otherwise, in the rows' order.

    Args:
        shown: row -> the pictures it is asked with; an empty list leaves the places for pictures out too, None gives the row
            up, whose answer is empty. By default each row's own.
    """
    generation = {"do_sample": False, **generation}
    shown = shown or rows.images
    prompts = [list(rows.messages(index)[:-1]) for index in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda index: sum(len(text_of(message)) for message in prompts[index]))
    answers = [""] * len(rows)
    device = model.device
    model.eval()
    for first in tqdm(range(0, len(order), batch_size), desc="Answering", leave=False, disable=None):
        opened = {index: shown(index) for index in order[first : first + batch_size]}
        pictures = {index: images for index, images in opened.items() if images is not None}
        if not pictures:
            continue
        texts = [
            processor.apply_chat_template(
                prompts[index] if images else [{**message, "content": text_of(message)} for message in prompts[index]],
                add_generation_prompt=True,
                tokenize=False,
            )
            for index, images in pictures.items()
        ]
        inputs = processor(
            images=list(pictures.values()) if any(pictures.values()) else None,
            text=texts,
            padding=True,
            add_special_tokens=False,
        ).to(device)
        with torch.inference_mode():
            token_ids = model.generate(**inputs, **generation)
        said = processor.batch_decode(token_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(pictures, said, strict=True):
            answers[index] = text.strip()
    return answers
