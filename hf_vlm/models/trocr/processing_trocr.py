"""TrOCR's processor: pictures to pixels, texts to labels, token ids to text."""

import copy
import os
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ViTImageProcessor
from transformers.processing_utils import ProcessorMixin

from ...blocks.token_loss import IGNORE_INDEX
from ...parts.checkpoint_files import said_by
from ...parts.image_preparation import without_timm
from ...parts.pictures import to_rgb


class TrOCREncoderDecoderProcessor(ProcessorMixin):
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: of the vision encoder. One that pads lines of different widths also gives `pixel_mask`.
        tokenizer: of the text model.
        max_label_length: the longest label in tokens, end token included; longer ones are refused. None for no limit.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_label_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.max_label_length = max_label_length
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained_parts(
        cls,
        vision: str | os.PathLike | Any,
        text: str | os.PathLike | PreTrainedTokenizerBase,
        image_size: int | tuple[int, int] | None = None,
        **settings: Any,
    ) -> "TrOCREncoderDecoderProcessor":
        """Join the image processor of a vision model and the tokenizer of a text model.

        Args:
            vision: Hub name or folder of a vision model, whose image processor is made to show whole lines (see
                `show_whole_lines`), or an image processor, which is taken as it is.
            text: Hub name or folder with a tokenizer, or a tokenizer.
            image_size: pixels, one number or (height, width), where the model's `from_pretrained_parts` is asked for it too.
            settings: `max_label_length`.

        Raises:
            ValueError: if there is no image processor or tokenizer, or the tokenizer has no token to end a text with.
        """
        image_processor = load_image_processor(vision) if isinstance(vision, str | os.PathLike) else vision
        tokenizer = load_tokenizer(text) if isinstance(text, str | os.PathLike) else text
        processor = cls(image_processor, tokenizer, **settings)
        if processor.end_token_id is None:
            raise ValueError(
                "The tokenizer must have an end token (`eos_token` or `sep_token`), got none. Set "
                "`tokenizer.eos_token` and pass the tokenizer as `text`."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(processor.end_token_id)
        if image_size is not None:
            processor.resize(image_size)
        return processor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote.

        Raises:
            ValueError: if image processor or tokenizer are missing or damaged.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except Exception as error:  # whatever a file with other content makes its loader raise
            raise ValueError(
                f"{pretrained_model_name_or_path} must hold a processor, `processor_config.json` and `tokenizer.json`, got "
                f"{said_by(error)}. Write them with the processor's `save_pretrained`."
            ) from error

    def resize(self, image_size: int | tuple[int, int]) -> None:
        """Make pictures of `image_size` pixels, one number or (height, width), as the model's `resize` makes it take."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_processor: Any = show_whole_lines(copy.deepcopy(self.image_processor))  # others may hold it too
        self.image_processor.size = {"height": height, "width": width}

    @property
    def start_token_id(self) -> int | None:
        """Token that a text model expects in front: its start token, or its end token where it has no other."""
        tokenizer = self.tokenizer
        for token_id in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        return None

    @property
    def end_token_id(self) -> int | None:
        """Token that ends a text."""
        eos = self.tokenizer.eos_token_id
        return eos if eos is not None else self.tokenizer.sep_token_id

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare pictures, texts or both.

        Args:
            images: one picture or a list: PIL pictures of any mode, arrays or tensors.
            text: one text or a list, as many as pictures.
            return_tensors: "pt"; None for lists.
            kwargs: settings of the image processor for this call, such as `size` or `device`.

        Returns: `pixel_values`, float (batch, channels, height, width), where the image processor pads also `pixel_mask`,
            int64 (batch, height, width); with `text` `labels`, int64 (batch, tokens): no start token, one end token,
            padded with -100.

        Raises:
            ValueError: if neither came, there is no picture in `images`, their numbers differ, or a label is longer than
                `max_label_length`.
        """
        if images is None and text is None:
            raise ValueError("`images`, `text` or both must be given, got neither. Pass at least one picture.")
        data: dict[str, Any] = {}
        if images is not None:
            pictures = images if isinstance(images, list | tuple) else [images]
            if not pictures:
                raise ValueError("`images` must hold a picture, got an empty list. Pass at least one.")
            pictures = [to_rgb(picture) if isinstance(picture, Image.Image) else picture for picture in pictures]
            data.update(self.image_processor(pictures, return_tensors=return_tensors, **kwargs))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if images is not None and len(texts) != len(pictures):
                raise ValueError(
                    f"`text` must have one entry a picture, got {len(texts)} for {len(pictures)} pictures. Give as many."
                )
            data["labels"] = self.labels(texts, return_tensors=return_tensors)
        return BatchFeature(data)

    def labels(self, texts: list[str], return_tensors: str | None = "pt") -> torch.Tensor | list[list[int]]:
        """Token ids that a decoder learns to write: the text, then the end token, padded with -100.

        Returns: int64 (batch, tokens), or lists without padding where `return_tensors` is None.

        Raises:
            ValueError: if a label is longer than `max_label_length` or holds nothing but unknown characters.
        """
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        for row, text in zip(rows, texts, strict=True):
            if row and unknown is not None and all(token == unknown for token in row):
                raise ValueError(
                    f"A label must hold characters that the tokenizer can write, got only unknown ones in {text!r}. Leave "
                    "the row out, or use a tokenizer of that script."
                )
            row.append(self.end_token_id)
            if self.max_label_length is not None and len(row) > self.max_label_length:
                raise ValueError(
                    f"A label must have at most {self.max_label_length} tokens, got {len(row)} for {text!r}. Leave the "
                    "row out, or raise `max_label_length` up to the decoder's `max_position_embeddings`."
                )
        if return_tensors is None:
            return rows
        width = max(len(row) for row in rows)
        return torch.tensor([row + [IGNORE_INDEX] * (width - len(row)) for row in rows])

    @property
    def model_input_names(self) -> list[str]:
        """What a model takes."""
        return [*self.image_processor.model_input_names, "labels"]


def load_image_processor(name_or_folder: str | os.PathLike) -> Any:
    """The image processor of a Hub name or folder, made to show whole lines.

    Raises:
        ValueError: if there is none, or a damaged one.
    """
    try:
        image_processor = AutoImageProcessor.from_pretrained(name_or_folder)
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{name_or_folder} must hold an image processor, `preprocessor_config.json`, got {said_by(error)}. "
            "Check the name, copy the file there, or pass the image processor itself."
        ) from error
    return show_whole_lines(image_processor)


def load_tokenizer(name_or_folder: str | os.PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub name or folder.

    Raises:
        ValueError: if there is none, or a damaged one. transformers makes one of special tokens alone where the vocabulary
            is missing, with ids of its own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{name_or_folder} must hold a tokenizer's files, got {said_by(error)}. Check the name, copy them there, or "
            "pass the tokenizer itself."
        ) from error
    if len(tokenizer) == len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"{name_or_folder} must hold a tokenizer's files, got none with a vocabulary. Copy them beside the weights, or "
            "pass the tokenizer itself."
        )
    return tokenizer


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that tokenizer and model speak of the same tokens.

    Raises:
        ValueError: if the tokenizer knows more tokens than the model has rows for, or another end or pad token.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer's tokens need a row each in the model's vocabulary, got {len(tokenizer)} tokens for {rows} "
            "rows. Take the tokenizer that belongs to the model, or resize the embeddings."
        )
    for name in ("eos_token_id", "pad_token_id"):
        of_tokenizer, of_model = getattr(tokenizer, name), getattr(model.config, name)
        if of_tokenizer is not None and of_tokenizer not in (of_model if isinstance(of_model, list) else [of_model]):
            raise ValueError(
                f"Model and tokenizer must agree on `{name}`, got {of_model} and {of_tokenizer}. Take the tokenizer "
                "that belongs to the model."
            )


def show_whole_lines(image_processor: Any) -> Any:
    """An image processor of photographs, changed to squeeze the whole picture into what it would crop to.

    For classification the shorter side is scaled and the middle cut out, which leaves a few letters of a line. TrOCR's
    encoders see lines squeezed into their square. One that cuts nothing off is given back as it is.

    Source: Li et al. 2023, section "Encoder", https://arxiv.org/abs/2109.10282
    """
    image_processor = without_timm(image_processor)
    size = dict(getattr(image_processor, "size", None) or {})
    if getattr(image_processor, "do_center_crop", False):
        size = dict(image_processor.crop_size)
    elif set(size) == {"shortest_edge"}:  # ConvNeXT's crops without saying so
        size = {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    else:
        return image_processor
    kept = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return ViTImageProcessor(size=size, **{name: getattr(image_processor, name) for name in kept})
