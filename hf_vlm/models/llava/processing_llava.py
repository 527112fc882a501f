"""LLaVA's processor: pictures to pixels, conversations to tokens, and which of them are learnt.

A picture's place in a text is one image token, which becomes as many as the vision encoder gives tokens for a picture.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_transforms import to_pil_image
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from ...blocks.token_loss import IGNORE_INDEX
from ...parts.checkpoint_files import find_file, read_config, said_by
from ...parts.image_preparation import fix_picture_size, picture_size
from ...parts.pictures import to_rgb
from ...parts.pretrained_model import HUB_ARGUMENTS
from ...parts.vision_features import (
    configured_image_size,
    describe_vision_model,
    num_selected_tokens,
    read_vision_config,
    usual_feature_layer,
)
from .chat_template import end_of_turn_token, extend_template, has_spans, render, template_text

ROLES = ("system", "user", "assistant")
_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"


class LlavaVisionLanguageProcessor(ProcessorMixin):
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: of the vision encoder; all its pictures come out in one size.
        tokenizer: of the language model, with the image token among its own.
        chat_template: Jinja; one with `{% generation %}` spans where the processor is to prepare training data.
        num_image_tokens: tokens that a picture takes.
        image_token: what stands for a picture in a text.
        image_aspect_ratio: "pad" fills a picture up to a square first, with the image processor's mean colour, as LLaVA-1.5
            does; "square" leaves it to the image processor, which for most cuts the middle out.
        end_token: token that ends the assistant's turn; None means the tokenizer's end token.

    Source: Liu et al. 2023b, section 3.3 and its code's `expand2square`, https://arxiv.org/abs/2310.03744
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        num_image_tokens: int = 1,
        image_token: str = "<image>",
        image_aspect_ratio: Literal["pad", "square"] = "pad",
        end_token: str | None = None,
        **kwargs: Any,
    ) -> None:
        if image_aspect_ratio not in ("pad", "square"):
            raise ValueError(f"`image_aspect_ratio` must be `pad` or `square`, got {image_aspect_ratio!r}. Choose one.")
        if num_image_tokens < 1:
            raise ValueError(f"`num_image_tokens` must be 1 or more, got {num_image_tokens}. Ask the model's config.")
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_aspect_ratio = image_aspect_ratio
        self.end_token = end_token
        if tokenizer is not None:
            if image_token not in tokenizer.get_added_vocab():
                raise ValueError(
                    f"The tokenizer must know the image token {image_token!r} as a token of its own, got none. Add it by "
                    "`add_image_token`, or use `from_pretrained_parts`, which does."
                )
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
            tokenizer.padding_side = "left"  # answers go on at the right end; a saved tokenizer forgets its side
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained_parts(
        cls,
        vision: str | os.PathLike | Any,
        text: str | os.PathLike | PreTrainedTokenizerBase,
        *,
        image_size: int | tuple[int, int] | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_aspect_ratio: Literal["pad", "square"] = "pad",
        vision_config: PreTrainedConfig | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str = "default",
    ) -> "LlavaVisionLanguageProcessor":
        """Join the image processor of a vision model and the tokenizer of a language model.

        Args:
            vision: Hub name or folder of a vision model, or an image processor, then with `vision_config`.
            text: Hub name or folder with a tokenizer, or a tokenizer.
            image_size: pixels, one number or (height, width), of the pictures, where they are not to have the size that the
                image processor makes.
            chat_template: `llava_v1`, `llava_v0`, `llava_llama_2`, `plain`, or Jinja; by default the tokenizer's own, extended
                for pictures.
            vision_config: of the vision model where `vision` is an image processor.
            vision_feature_layer, vision_feature_select_strategy: as in the model's config, where its `from_pretrained_parts`
                is asked for them too.

        Raises:
            ValueError: if there is no image processor or tokenizer, or the tokenizer has neither an end token nor a template
                that can be used.
        """
        if isinstance(vision, str | os.PathLike):
            vision_config = vision_config or read_vision_config(vision)
            image_processor = _load(AutoImageProcessor, vision, "an image processor, `preprocessor_config.json`")
        else:
            image_processor = vision
        if vision_config is None:
            raise ValueError(
                "`vision_config` is wanted with an image processor, to know how many tokens a picture takes, got none. Pass "
                "the vision model's config, or the name or folder of the model instead."
            )
        image_processor = copy.deepcopy(image_processor)
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        image_processor = fix_picture_size(
            image_processor,
            image_size,
            otherwise=configured_image_size(vision_config),
            keep_all=image_aspect_ratio == "pad",
        )
        size = picture_size(image_processor)
        assert size is not None
        if vision_feature_layer is None:
            vision_feature_layer = usual_feature_layer(vision_config, size)
        seen = describe_vision_model(vision_config, size, vision_feature_layer)

        tokenizer = _load(AutoTokenizer, text, "a tokenizer's files") if isinstance(text, str | os.PathLike) else text
        tokenizer = copy.deepcopy(tokenizer)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer must have an end token (`eos_token`), got none: a model could not learn to stop. Set "
                "`tokenizer.eos_token` and pass the tokenizer as `text`."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked, never told by its token
        add_image_token(tokenizer, image_token)
        template = template_text(chat_template) if chat_template else extend_template(tokenizer, image_token)
        tokenizer.chat_template = None  # the processor's is the one
        end_token = end_of_turn_token(template, tokenizer)
        return cls(
            image_processor,
            tokenizer,
            chat_template=template,
            num_image_tokens=num_selected_tokens(seen, vision_feature_select_strategy),
            image_token=image_token,
            image_aspect_ratio=image_aspect_ratio,
            end_token=end_token,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote.

        A folder that a pipeline saved has image processor and tokenizer alone: the rest is then taken from the model's config.

        Raises:
            ValueError: if image processor or tokenizer are missing or damaged.
        """
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        file = find_file(pretrained_model_name_or_path, PROCESSOR_NAME, **where)
        if file is not None:
            kind = json.loads(file.read_text(encoding="utf-8")).get("processor_class", cls.__name__)
            if kind != cls.__name__:
                raise ValueError(
                    f"{pretrained_model_name_or_path} must hold a processor of ours, got a `{kind}`, which counts a picture's "
                    "tokens by other settings. Make ours of its parts: `LlavaVisionLanguageProcessor.from_pretrained_parts("
                    "vision=FOLDER, text=FOLDER, image_aspect_ratio='square', chat_template='vicuna_v1')`."
                )
        try:
            if file is None:
                stored = read_config(pretrained_model_name_or_path, **where)
                processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
                processor.num_image_tokens = stored["num_image_tokens"]
                processor.image_aspect_ratio = stored["image_aspect_ratio"]
                processor.end_token = end_of_turn_token(processor.chat_template, processor.tokenizer)
                return processor
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except Exception as error:  # whatever a file with other content makes its loader raise
            raise ValueError(
                f"{pretrained_model_name_or_path} must hold a processor, `processor_config.json` and `tokenizer.json`, got "
                f"{said_by(error)}. Write them with the processor's `save_pretrained`."
            ) from error

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the pictures that come out; None where they differ."""
        return picture_size(self.image_processor)

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end an answer: that of the assistant's turn, and the tokenizer's."""
        ids = [self.tokenizer.eos_token_id]
        if self.end_token is not None:
            ids.insert(0, self.tokenizer.convert_tokens_to_ids(self.end_token))
        return list(dict.fromkeys(ids))

    @property
    def num_text_tokens(self) -> int:
        """Tokens of the vocabulary that a language model must have a row for: all but an image token at its end."""
        return len(self.tokenizer) - (self.image_token_id == len(self.tokenizer) - 1)

    # Pictures

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        return super()._process_images(self._shaped(images), **kwargs)

    def _shaped(self, images: Any) -> Any:
        """Pictures, alone or in nested lists, upright, opaque, and square where that is asked for."""
        if isinstance(images, list | tuple):
            return [self._shaped(image) for image in images]
        if self.image_aspect_ratio == "pad":
            if not isinstance(images, Image.Image):
                images = to_pil_image(images)
            return pad_to_square(to_rgb(images), getattr(self.image_processor, "image_mean", None))
        return to_rgb(images) if isinstance(images, Image.Image) else images

    def prepare_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pixels of pictures, float (pictures, channels, height, width)."""
        return self.image_processor(self._shaped(list(images)), return_tensors="pt")["pixel_values"]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """What a picture's place becomes in a text."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        number = len(image_sizes or [])
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * number, num_image_patches=[1] * number)

    # Conversations

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """As `ProcessorMixin.apply_chat_template`; the template writes every special token itself, as in training.

        Args:
            conversation: one conversation or a list of them, as for `encode_conversation`; a picture stands in its part, as
                `{"type": "image", "image": ...}`, `"path"` or `"url"`.
            chat_template: Jinja, or a name such as `llava_v1`.
        """
        if kwargs.get("tokenize"):
            kwargs["processor_kwargs"] = {"add_special_tokens": False, **(kwargs.get("processor_kwargs") or {})}
        if kwargs.get(
            "return_assistant_tokens_mask"
        ):  # a list unless asked otherwise, as then is all that it goes with
            kwargs.setdefault("return_tensors", kwargs.get("processor_kwargs", {}).get("return_tensors"))
        template = template_text(chat_template) if chat_template else None
        return super().apply_chat_template(conversation, chat_template=template, **kwargs)

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]], *, max_length: int | None = None, chat_template: str | None = None
    ) -> dict[str, list[int]]:
        """A conversation as training data: its tokens, and those that are learnt.

        Only the assistant's words and the end of its turns carry loss. A conversation that is too long loses whole
        exchanges at its end; the first exchange loses the end of its answer, never a part of a picture.

        Args:
            messages: `{"role", "content"}` each, system first if at all, then user and assistant by turns; content is a text,
                or parts `{"type": "image"}` and `{"type": "text", "text": ...}`.
            max_length: the most tokens, those of pictures included; None for no limit.
            chat_template: name or Jinja of another template than the processor's, such as `plain`.

        Returns: `input_ids`, with `num_image_tokens` image tokens a picture, and `labels`, as many, `IGNORE_INDEX` where
            nothing is learnt.

        Raises:
            ValueError: if roles are unknown or out of order, an answer is empty, a text holds the image token, a part is
                neither text nor picture, the template has no spans, a picture would be cut, or nothing is left to learn.
        """
        check_conversation(messages, self.image_token)
        template = template_text(chat_template) if chat_template else self.chat_template
        if not template or not has_spans(template):
            raise ValueError(
                "A chat template with `{% generation %}` spans is wanted, to know what the assistant said, got none. Make the "
                "processor by `from_pretrained_parts`, or name a template such as `llava_v1`."
            )
        kept = list(messages)
        while True:
            input_ids, labels = self._encode(kept, template)
            if max_length is None or len(input_ids) <= max_length:
                break
            if len(kept) > 3 or (len(kept) == 3 and kept[0]["role"] != "system"):
                kept = kept[:-2]
                continue
            if self.image_token_id in input_ids[max_length:]:
                raise ValueError(
                    f"A conversation's pictures and first question must fit into `max_length`={max_length} tokens, got "
                    f"{len(input_ids)} tokens with a picture past it. Raise it, or leave the row out."
                )
            input_ids, labels = input_ids[:max_length], labels[:max_length]
            break
        if all(label == IGNORE_INDEX for label in labels[1:]):
            cut = f" in the first {max_length} tokens" if max_length is not None and len(labels) == max_length else ""
            raise ValueError(
                f"A conversation must have words of the assistant to learn, got none{cut}. Leave the row out, or raise "
                "`max_length`."
            )
        return {"input_ids": input_ids, "labels": labels}

    def _encode(self, messages: list[Mapping[str, Any]], template: str) -> tuple[list[int], list[int]]:
        text, spans = render(
            template, [dict(message) for message in messages], self.tokenizer, image_token=self.image_token
        )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        input_ids: list[int] = []
        labels: list[int] = []
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token == self.image_token_id:
                input_ids += [token] * self.num_image_tokens
                labels += [IGNORE_INDEX] * self.num_image_tokens
                continue
            is_learnt = bool(
                ((start < ends) & (end > starts)).any()
            )  # a token that overlaps a span's start is its first
            input_ids.append(token)
            labels.append(token if is_learnt else IGNORE_INDEX)
        return input_ids, labels

    def show_labels(self, sample: Mapping[str, Any], in_colour: bool = True) -> str:
        """What is learnt of a sample, as text: learnt words green, read ones dim, a picture's tokens as `<image> x N`.

        Args:
            sample: `messages` as for `encode_conversation`, or an encoded sample with `input_ids` and `labels`.
            in_colour: escape codes of terminals; without them learnt words stand between `[[` and `]]`.
        """
        if "input_ids" not in sample:
            sample = self.encode_conversation(sample["messages"])
        learn, read, stop = (_GREEN, _DIM, _PLAIN) if in_colour else ("[[", "", "]]")
        shown: list[str] = []
        for tokens, is_learnt in _runs(torch.as_tensor(sample["input_ids"]), torch.as_tensor(sample["labels"])):
            text = ""
            for token, number in _repeats(tokens, self.image_token_id):
                text += f"{self.image_token} x {number}" if token is None else self.tokenizer.decode(token)
            shown.append(f"{learn if is_learnt else read}{text}{stop if is_learnt or in_colour else ''}")
        return "".join(shown)

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Prepare pictures, texts or both.

        Args:
            images: one picture, a list, or a list of lists: PIL pictures, arrays, paths or URLs, in the order of their places.
            text: one text or a list, each with one image token a picture.
            return_tensors: "pt"; None for lists.
            kwargs: as for the tokenizer and the image processor.

        Returns: `input_ids` and `attention_mask`, int64 (batch, tokens), padded at the left, and `pixel_values`, float
            (pictures, channels, height, width).

        Raises:
            ValueError: if pictures and their places differ in number, or `truncation` would cut a picture.
        """
        if isinstance(text, list | tuple) and len(text) > 1 and return_tensors is not None:
            kwargs.setdefault("padding", True)
        return super().__call__(images=images, text=text, return_tensors=return_tensors, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a model takes."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]


def add_image_token(tokenizer: PreTrainedTokenizerBase, image_token: str = "<image>") -> None:
    """Make the image token one of the tokenizer's own; `tokenizer.image_token` then names it."""
    if image_token not in tokenizer.get_added_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False)


def check_conversation(messages: Sequence[Mapping[str, Any]], image_token: str) -> None:
    """Checks that roles take turns, the assistant last, and that contents can be learnt from.

    Raises:
        ValueError: if not; the message says which.
    """
    if not messages:
        raise ValueError("A conversation must have messages, got none. Leave the row out.")
    wanted = "user"
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"A role must be one of {', '.join(ROLES)}, got {role!r} in message {index}. Rename it.")
        _check_content(message.get("content"), role, index, image_token)
        if role == "system" and index == 0:
            continue
        if role != wanted:
            raise ValueError(
                f"User and assistant must take turns, the user first, got {role!r} as message {index}, where {wanted!r} is "
                "wanted. Mend or leave out the row."
            )
        wanted = "assistant" if role == "user" else "user"
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            f"A conversation must end with the assistant, got {messages[-1]['role']!r} last. Add an answer, or leave the "
            "last message out."
        )


def _check_content(content: Any, role: str, index: int, image_token: str) -> None:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        raise ValueError(
            f"A message must have a text or parts as its `content`, got {content!r} in message {index}. Mend it."
        )
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    for kind in kinds:
        if kind not in ("text", "image"):
            raise ValueError(
                f"A part must be of type `text` or `image`, got {kind!r} in message {index}. Leave it out."
            )
    if "image" in kinds and role != "user":
        raise ValueError(
            f"Pictures must stand in the user's messages, got one in message {index}, the {role}'s. Move it there."
        )
    texts = [part.get("text") for part in parts if part["type"] == "text"]
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(f"A part of type `text` must have a `text`, got none in message {index}. Mend it.")
    text = "".join(texts)
    if image_token in text:
        raise ValueError(
            f"A text must not hold {image_token!r}, which stands for a picture, got one in message {index}. Put the "
            'picture as a part `{"type": "image"}`, or take the word out.'
        )
    if role == "assistant" and not text.strip():
        raise ValueError(f"An answer must have words, got none in message {index}. Leave the exchange out.")


def pad_to_square(picture: Image.Image, mean: Sequence[float] | float | None) -> Image.Image:
    """The picture in the middle of a square of the mean colour, as LLaVA-1.5's `expand2square` places it.

    Args:
        picture: of mode `RGB`.
        mean: of the image processor's normalisation, in [0, 1]; black where there is none.
    """
    width, height = picture.size
    if width == height:
        return picture
    shares = [0.0] * 3 if mean is None else [float(mean)] * 3 if isinstance(mean, int | float) else list(mean)
    shares = shares * 3 if len(shares) == 1 else shares
    colour = tuple(int(share * 255) for share in shares)
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _load(auto_class: Any, name_or_folder: str | os.PathLike, wanted: str) -> Any:
    try:
        return auto_class.from_pretrained(name_or_folder)
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{name_or_folder} must hold {wanted}, got {said_by(error)}. Check the name, copy the files there, or pass the "
            "loaded one itself."
        ) from error


def _runs(input_ids: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[int], bool]]:
    """Tokens in order, in runs of those that are learnt and those that are not."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(input_ids.tolist(), labels.tolist(), strict=True):
        if not runs or runs[-1][1] != (label != IGNORE_INDEX):
            runs.append(([], label != IGNORE_INDEX))
        runs[-1][0].append(token)
    return runs


def _repeats(tokens: list[int], image_token_id: int) -> list[tuple[list[int] | None, int]]:
    """Runs of tokens: words as they are, image tokens as None with their number."""
    parts: list[tuple[list[int] | None, int]] = []
    for token in tokens:
        if token == image_token_id:
            number = parts.pop()[1] if parts and parts[-1][0] is None else 0
            parts.append((None, number + 1))
        elif parts and parts[-1][0] is not None:
            parts[-1][0].append(token)
        else:
            parts.append(([token], 1))
    return parts
