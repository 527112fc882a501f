"""Where a model looks when it writes each word of an answer, laid over its picture.

A map tells where information is taken from, not why: a bright patch need not have decided anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.parts.attention_pictures import overlay_map, seen_picture
from hf_vlm.parts.vision_features import describe_vision_model
from hf_vlm.training.reports.label_masks import token_texts

_MAX_WORDS = 8  # of an answer
_MAX_BYTES = 2**30  # of attention, float32, all layers at once
_SIDE, _LINE_WIDTH = 128, 320  # px of a map: of a picture, and of a line of text
_WIDE = 2.5  # aspect from which a picture is shown as a line


class NoWordMapError(ValueError):
    """A model whose attention to the picture can't be had."""


@dataclass
class WordMap:
    """Where a model looked for a word.

    Attributes:
        word: as it was written.
        picture: the picture as the model sees it, faded, under the map: clear is its least, dark red its most.
        number: which of the row's pictures, from 1.
        most: the largest share of a patch, in [0, 1]; the map's shares of one picture sum to at most 1.
    """

    word: str
    picture: Image.Image
    number: int
    most: float


def words_of(texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Words, or the characters of a single word, with the places of the tokens that they are made of.

    Args:
        texts: what each token adds, see `token_texts`; "" for tokens that are no text.
    """
    words: list[tuple[str, list[int]]] = []
    goes_on = False
    for place, text in enumerate(texts):
        if not text.strip():
            goes_on = goes_on and not text
            continue
        if goes_on and not text[0].isspace():
            word, places = words[-1]
            words[-1] = (word + text.strip(), [*places, place])
        else:
            words.append((text.strip(), [place]))
        goes_on = not text[-1].isspace()
    if len(words) == 1:
        return [(texts[place].strip(), [place]) for place in words[0][1]]
    return words


def word_maps(
    maps: torch.Tensor, texts: Sequence[str], seen: Image.Image, number: int = 1, max_words: int = _MAX_WORDS
) -> list[WordMap]:
    """One map a word.

    Args:
        maps: float (tokens, rows, columns), shares of the attention paid to each patch when a token was written.
        texts: what each token adds; "" for tokens that are no text.
        seen: the picture that the grid lies over.
        number: of the picture, from 1.
        max_words: of a longer answer the first.
    """
    found = []
    for word, places in words_of(texts)[:max_words]:
        shares = maps[places].float().mean(dim=0)
        found.append(WordMap(word, overlay(seen, shares), number, float(shares.max())))
    return found


def overlay(picture: Image.Image, shares: torch.Tensor) -> Image.Image:
    """A faded picture, enlarged to be looked at, under its map, float (rows, columns)."""
    is_line = picture.width >= _WIDE * picture.height
    scale = _LINE_WIDTH / picture.width if is_line else _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    return overlay_map(picture, shares)


def written_words(model: Any, processor: Any, picture: Image.Image, token_ids: torch.Tensor) -> list[WordMap]:
    """Maps of what an encoder-decoder wrote about a picture: a TrOCR, or a model with `attention_over_words`.

    Args:
        model: in evaluation mode. `attention_over_words(pixel_values, token_ids)`, where it has that, gives float
            (batch, tokens, rows, columns), a map for each of `token_ids`.
        processor: its own.
        picture: of any mode.
        token_ids: int64 (1, tokens), what `generate` gave, the start token first.

    Raises:
        NoWordMapError: if its attention does not lie over a grid of patches.
    """
    inputs = processor(images=[picture], return_tensors="pt").to(model.device)
    seen = seen_picture(processor.image_processor, inputs["pixel_values"][0])
    said = token_ids[:, 1:]
    if hasattr(model, "attention_over_words"):
        try:
            with torch.no_grad():
                maps = model.attention_over_words(inputs["pixel_values"], said)[0]
        except ValueError as error:  # a model without attention says so
            raise NoWordMapError(str(error)) from error
    else:
        maps, seen = _cross_attention(model, inputs, token_ids, seen)
    return word_maps(maps, _said(processor.tokenizer, said[0].tolist()), seen)


@torch.no_grad()
def _cross_attention(
    model: TrOCREncoderDecoderForConditionalGeneration, inputs: Any, token_ids: torch.Tensor, seen: Image.Image
) -> tuple[torch.Tensor, Image.Image]:
    """Maps of all tokens but the first, and the picture without padding."""
    pixel_values = inputs["pixel_values"]
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    layout = describe_vision_model(model.config.vision_config, size)
    encoded = model.encoder(**inputs)
    with eager(model.decoder):
        outputs = model(encoder_outputs=encoded, decoder_input_ids=token_ids[:, :-1], output_attentions=True)
    told = [attention for attention in outputs.cross_attentions or () if attention is not None]
    if not told or told[0].shape[-1] != layout.num_tokens:
        raise NoWordMapError("Attention to every patch is wanted of the decoder, got none that it tells of.")
    attention = torch.stack([layer[0].float() for layer in told]).mean(dim=(0, 1))  # (tokens, picture tokens)
    maps = attention[:, layout.num_prefix_tokens :].unflatten(-1, layout.grid)  # (tokens, rows, columns)
    if encoded.attention_mask is None:
        return maps, seen
    real = encoded.attention_mask[0, layout.num_prefix_tokens :].unflatten(-1, layout.grid)
    rows, columns = int(real.any(dim=1).sum()), int(real.any(dim=0).sum())
    width, height = seen.width * columns // layout.grid[1], seen.height * rows // layout.grid[0]
    return maps[:, :rows, :columns], seen.crop((0, 0, width, height))


@torch.no_grad()
def answered_words(
    model: Any, processor: LlavaVisionLanguageProcessor, prompt: str, pictures: Sequence[Image.Image], answer: str
) -> list[WordMap]:
    """Maps of a LLaVA's answer, a mean over layers and heads, over every picture of the conversation.

    Args:
        prompt: what the chat template made of the conversation up to the answer, an image token a picture.
        pictures: in the order of their places.

    Raises:
        NoWordMapError: if the language model tells no attention, or it would take more than 1 GiB.
    """
    config, tokenizer = model.config, processor.tokenizer
    layout = describe_vision_model(config.vision_config, tuple(config.image_size), config.vision_feature_layer)
    inputs = processor(images=list(pictures), text=[prompt], add_special_tokens=False)
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    token_ids = torch.cat([inputs["input_ids"][0], torch.tensor(said, dtype=torch.int64)])
    text_config = config.text_config
    layers, heads = (getattr(text_config, name, 1) or 1 for name in ("num_hidden_layers", "num_attention_heads"))
    if layers * heads * len(token_ids) ** 2 * 4 > _MAX_BYTES:
        raise NoWordMapError(
            f"Attention of at most 1 GiB is drawn, got {layers} layers of {heads} heads over {len(token_ids)} tokens, which "
            "take more."
        )
    with eager(model.language_model):
        outputs = model(
            input_ids=token_ids[None].to(model.device),
            pixel_values=inputs["pixel_values"].to(model.device),
            output_attentions=True,
            logits_to_keep=1,
        )
    told = [attention for attention in outputs.attentions or () if attention is not None]
    if not told or told[0].shape[-1] != len(token_ids):
        raise NoWordMapError("Attention to every token is wanted of the language model, got none that it tells of.")
    attention = torch.stack([layer[0].float().mean(dim=0) for layer in told]).mean(dim=0)  # (tokens, tokens)
    asked = len(token_ids) - len(said)
    looks = attention[asked - 1 : len(token_ids) - 1]  # each token is written by the place before its own
    places = (token_ids == processor.image_token_id).nonzero().flatten().view(len(pictures), -1)
    texts = _said(tokenizer, said)
    found = []
    for number, of_picture in enumerate(places, start=1):
        patches = of_picture[-layout.num_patches :]  # behind the prefix, where that is shown too
        maps = looks[:, patches].unflatten(-1, layout.grid)
        seen = seen_picture(processor.image_processor, inputs["pixel_values"][number - 1])
        found += word_maps(maps, texts, seen, number, max_words=_MAX_WORDS // len(pictures) or 1)
    return found


def _said(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """What each token adds, "" for tokens that are no text."""
    special = set(tokenizer.all_special_ids)
    texts = token_texts(tokenizer, token_ids)
    return ["" if token in special else text for token, text in zip(token_ids, texts, strict=True)]


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """With the eager kernel, the only one that tells its attention; the model gets its own back afterwards."""
    kernel = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(kernel)
