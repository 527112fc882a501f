"""Tiny parts and assistants that the LLaVA tests share."""

import string
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CLIPImageProcessor, PreTrainedModel, PreTrainedTokenizerFast

from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration

Batch = dict[str, torch.Tensor]

# Of models alone: ids of a vocabulary without words.
VOCAB_SIZE = 40
PAD, START, END, IMAGE = 0, 1, 2, 39
CANVAS = (16, 16)  # pixels, (height, width)

OWN_VISION = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": CANVAS,
    "patch_size": 8,
    "use_cls_token": True,
    "pooling": "none",
}
CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 6}
OPT = {
    "model_type": "opt",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}


def tiny_config(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **settings: Any
) -> LlavaVisionLanguageConfig:
    """Config of an assistant; `vision` and `text` change single fields, or with a `model_type` everything."""
    vision, text = vision or {}, text or {}
    return LlavaVisionLanguageConfig(
        vision_config=dict(vision) if "model_type" in vision else OWN_VISION | vision,
        text_config=dict(text) if "model_type" in text else LLAMA | text,
        **{"vision_feature_layer": -1, "image_token_id": IMAGE, **settings},
    )


def randomise(model: nn.Module, gain: float = 1.0) -> None:
    """Give weights and biases values that matter; a fresh model says nearly the same to all."""
    with torch.no_grad():
        for module in model.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(module, nn.Embedding):
                weight.normal_(std=gain)
            elif weight is not None and weight.dim() > 1:
                weight.normal_(std=gain / weight[0].numel() ** 0.5)
            if isinstance(bias, torch.Tensor):
                bias.normal_(std=0.1)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()


def tiny_llava(*args: Any, gain: float = 1.0, **settings: Any) -> LlavaVisionLanguageForConditionalGeneration:
    """An assistant with random weights that matter, in evaluation mode."""
    model = LlavaVisionLanguageForConditionalGeneration(tiny_config(*args, **settings)).eval()
    randomise(model, gain)
    return model


def picture_batch(
    num_image_tokens: int,
    pictures: Sequence[int] = (1, 1, 2, 0),
    answers: Sequence[int] = (4, 5, 3, 4),
    size: tuple[int, int] = CANVAS,
    num_channels: int = 3,
) -> Batch:
    """Prompts padded at the left with `pictures` pictures each, answers of `answers` tokens, the last END, padded at the right.

    The first two prompts are one text: what tells them apart is the picture.
    """
    generator = torch.Generator().manual_seed(3)
    prompts, said = [], []
    for number, length in zip(pictures, answers, strict=True):
        picture = [IMAGE] * num_image_tokens
        prompts.append([START, *(number * [5, *picture, 6]), 7, 8])
        said.append([*torch.randint(10, IMAGE, (length - 1,), generator=generator).tolist(), END])
    longest, longest_answer = max(map(len, prompts)), max(map(len, said))
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in zip(prompts, said, strict=True):
        before, after = longest - len(prompt), longest_answer - len(answer)
        rows["input_ids"].append([PAD] * before + prompt + answer + [PAD] * after)
        rows["attention_mask"].append([0] * before + [1] * len(prompt + answer) + [0] * after)
        rows["labels"].append([-100] * longest + answer + [-100] * after)
    batch = {name: torch.tensor(value) for name, value in rows.items()}
    if sum(pictures):
        batch["pixel_values"] = torch.randn(sum(pictures), num_channels, *size, generator=generator)
    return batch


def rows_of(batch: Batch, rows: Sequence[int], num_image_tokens: int, *, trim: bool = False) -> Batch:
    """Some rows of a batch with the pictures that are theirs; with `trim` without the padding that none of them needs."""
    own = {name: batch[name][list(rows)] for name in ("input_ids", "attention_mask", "labels") if name in batch}
    if trim:
        real = own["attention_mask"].any(dim=0).nonzero().flatten()
        own = {name: value[:, int(real[0]) : int(real[-1]) + 1] for name, value in own.items()}
    counts = (batch["input_ids"] == IMAGE).sum(dim=1) // num_image_tokens
    starts = counts.cumsum(dim=0) - counts
    places = [place for row in rows for place in range(int(starts[row]), int(starts[row] + counts[row]))]
    for name in ("pixel_values", "image_features"):
        if name in batch and places:
            own[name] = batch[name][places]
    return own


def prompt_of(batch: Batch) -> Batch:
    """What `generate` takes of a batch: all before the first label."""
    length = int((batch["labels"] != -100).any(dim=0).nonzero()[0])
    prompt = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask")}
    return prompt | {name: batch[name] for name in ("pixel_values", "image_features") if name in batch}


# Of processors: a tokenizer of one token a character.

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<end_of_turn>")
CHARACTERS = "\n " + string.ascii_letters + string.digits + string.punctuation
NUM_TOKENS = len(SPECIAL_TOKENS) + len(CHARACTERS)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHATML, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a character, that knows nothing of pictures."""
    tokens = [*SPECIAL_TOKENS, *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: token for name, token in special.items() if token is not None},
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def tiny_image_processor(height: int = 16, width: int = 16) -> CLIPImageProcessor:
    size = {"height": height, "width": width}
    return CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
