"""Pictures and texts prepared together, for models whose decoder writes about a picture: what their processors share.

images -> the image processor -> `pixel_values`
text -> `labels`: the text's tokens, then the end token; no start token, the model puts it in front
prompt and text -> `decoder_input_ids`: start, prompt, end, text, and `labels` that leave the prompt out
"""

import os
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..blocks.token_loss import IGNORE_INDEX
from .checkpoint_files import said_by
from .pictures import to_rgb


class PictureTextProcessor(ProcessorMixin):
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: of the vision encoder. One that pads pictures of different widths also gives `pixel_mask`.
        tokenizer: of the text decoder.
        max_label_length: the longest label in tokens, end token and prompt included; longer ones are refused. None for no
            limit.

    Attributes:
        takes_prompt: whether the model's text may begin with a question that it goes on from.
    """

    takes_prompt = False

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
    def load_image_processor(cls, name_or_folder: str | os.PathLike) -> Any:
        """The image processor of a Hub name or folder, as this kind of model wants it."""
        return load_image_processor(name_or_folder)

    @classmethod
    def from_pretrained_parts(
        cls, vision: str | os.PathLike | Any, text: str | os.PathLike | PreTrainedTokenizerBase, **settings: Any
    ) -> Any:
        """Join the image processor of a vision model and a tokenizer.

        Args:
            vision: Hub name or folder of a vision model, or an image processor, which is taken as it is.
            text: Hub name or folder with a tokenizer, or a tokenizer.
            settings: `max_label_length`.

        Raises:
            ValueError: if there is no image processor or tokenizer, or the tokenizer has no token to end a text with.
        """
        image_processor = cls.load_image_processor(vision) if isinstance(vision, str | os.PathLike) else vision
        tokenizer = load_tokenizer(text) if isinstance(text, str | os.PathLike) else text
        processor = cls(image_processor, tokenizer, **settings)
        if processor.end_token_id is None:
            raise ValueError(
                "The tokenizer must have an end token (`eos_token` or `sep_token`), got none. Set "
                "`tokenizer.eos_token` and pass the tokenizer as `text`."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(processor.end_token_id)
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

    @property
    def start_token_id(self) -> int | None:
        """Token that a text begins with: the tokenizer's start token, or its end token where it has no other."""
        return start_token_id(self.tokenizer)

    @property
    def end_token_id(self) -> int | None:
        """Token that ends a text."""
        return end_token_id(self.tokenizer)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare pictures, texts or both.

        Args:
            images: one picture or a list: PIL pictures of any mode, arrays or tensors.
            text: one text or a list, as many as pictures.
            prompt: one question or a list, as many as pictures and texts, that the text goes on from.
            return_tensors: "pt"; None for lists.
            kwargs: settings of the image processor for this call, such as `size` or `device`.

        Returns: `pixel_values`, float (batch, channels, height, width), where the image processor pads also `pixel_mask`,
            int64 (batch, height, width); with `text` `labels`, int64 (batch, tokens): no start token, one end token,
            padded with -100; with `prompt` also `decoder_input_ids`, as `prompted` says.

        Raises:
            ValueError: if nothing came, there is no picture in `images`, their numbers differ, a label is longer than
                `max_label_length`, or a prompt came for a model that takes none.
        """
        if images is None and text is None and prompt is None:
            raise ValueError("`images`, `text` or both must be given, got neither. Pass at least one picture.")
        data: dict[str, Any] = {}
        counts: dict[str, int] = {}
        if images is not None:
            pictures = images if isinstance(images, list | tuple) else [images]
            if not pictures:
                raise ValueError("`images` must hold a picture, got an empty list. Pass at least one.")
            pictures = [to_rgb(picture) if isinstance(picture, Image.Image) else picture for picture in pictures]
            data.update(self.image_processor(pictures, return_tensors=return_tensors, **kwargs))
            counts["pictures"] = len(pictures)
        texts = [text] if isinstance(text, str) else None if text is None else list(text)
        prompts = [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)
        for name, given in (("text", texts), ("prompt", prompts)):
            if given is None:
                continue
            other, wanted = next(iter(counts.items()), ("", len(given)))
            if len(given) != wanted:
                raise ValueError(
                    f"`{name}` must have one entry for each of the {other}, got {len(given)} for {wanted} {other}. Give as many."
                )
            counts.setdefault("texts", len(given))
        if prompts is not None:
            data.update(self.prompted(prompts, texts, return_tensors=return_tensors))
        elif texts is not None:
            data["labels"] = self.labels(texts, return_tensors=return_tensors)
        return BatchFeature(data)

    def prepare_images(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Pixels of pictures that are all brought to one size, float (pictures, channels, height, width).

        Raises:
            ValueError: if the image processor pads pictures instead, whose mask would be lost.
        """
        prepared = self(images=pictures)
        if "pixel_mask" in prepared:
            raise ValueError(
                f"Pictures of one size are wanted, got a `{type(self.image_processor).__name__}` that pads them. Use one that "
                "resizes them."
            )
        return prepared["pixel_values"]

    def labels(self, texts: list[str], return_tensors: str | None = "pt") -> torch.Tensor | list[list[int]]:
        """Token ids that a decoder learns to write: the text, then the end token, padded with -100.

        Returns: int64 (batch, tokens), or lists without padding where `return_tensors` is None.

        Raises:
            ValueError: if a label is longer than `max_label_length` or holds nothing but unknown characters.
        """
        end: Any = self.end_token_id
        rows = [[*row, end] for row in self._token_rows("label", texts)]
        self._check_lengths(rows, texts)
        return rows if return_tensors is None else _padded(rows, IGNORE_INDEX)

    def prompted(
        self, prompts: list[str], texts: list[str] | None = None, return_tensors: str | None = "pt"
    ) -> dict[str, torch.Tensor | list[list[int]]]:
        """What a decoder reads and learns where each text goes on from a prompt.

        With texts `decoder_input_ids` are start, prompt, end, text, padded with the padding token, and `labels` the same one
        place on, ending with the end token: at place t the decoder reads `decoder_input_ids[t]` and is to write
        `labels[t]`, which is -100 as long as the prompt lasts. Without texts `decoder_input_ids` are start, prompt, end:
        what `generate` goes on from.

        The start token is the tokenizer's: a model with another `decoder_start_token_id` must be given that one by its
        tokenizer as `bos_token`.

        Returns: `decoder_input_ids` and, with texts, `labels`, each int64 (batch, tokens), or lists without padding where
            `return_tensors` is None.

        Raises:
            ValueError: if the model takes no prompt, a row is longer than `max_label_length`, prompt or text holds
                nothing but unknown characters, or prompts without texts are of different lengths, as padding between
                prompt and text would be read as part of both.
        """
        if not self.takes_prompt:
            raise ValueError(
                f"`prompt` is for models that go on from a question, got it with `{type(self).__name__}`. Leave it out; "
                "TrOCR and LLaVA answer questions."
            )
        if self.start_token_id is None or self.end_token_id is None:
            raise ValueError(
                f"`prompt` wants a tokenizer with start and end token, got {self.start_token_id} and {self.end_token_id}. "
                "Set `bos_token` and `eos_token`."
            )
        begun = [
            [self.start_token_id, *question, self.end_token_id] for question in self._token_rows("prompt", prompts)
        ]
        if texts is None:
            lengths = sorted({len(row) for row in begun})
            if len(lengths) > 1 and return_tensors is not None:
                raise ValueError(
                    f"Prompts to generate from must be of one length in tokens, got {lengths[0]} to {lengths[-1]}. Put "
                    "questions of equal length into a batch, or give them one at a time."
                )
            self._check_lengths(begun, prompts)
            return {"decoder_input_ids": begun if return_tensors is None else torch.tensor(begun)}
        inputs, labels = [], []
        for before, answer in zip(begun, self._token_rows("label", texts), strict=True):
            inputs.append(before + answer)
            labels.append([IGNORE_INDEX] * (len(before) - 1) + [*answer, self.end_token_id])
        self._check_lengths(labels, texts)
        if return_tensors is None:
            return {"decoder_input_ids": inputs, "labels": labels}
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else self.end_token_id
        return {"decoder_input_ids": _padded(inputs, pad), "labels": _padded(labels, IGNORE_INDEX)}

    def _token_rows(self, kind: str, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, no special ones added; one that the tokenizer can't write at all is refused."""
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        unknown = self.tokenizer.unk_token_id
        for row, text in zip(rows, texts, strict=True):
            if row and unknown is not None and all(token == unknown for token in row):
                raise ValueError(
                    f"A {kind} must hold characters that the tokenizer can write, got only unknown ones in {text!r}. Leave "
                    "the row out, or use a tokenizer of that script."
                )
        return rows

    def _check_lengths(self, rows: list[list[int]], texts: list[str]) -> None:
        for row, text in zip(rows, texts, strict=True):
            if self.max_label_length is not None and len(row) > self.max_label_length:
                raise ValueError(
                    f"A label must have at most {self.max_label_length} tokens, got {len(row)} for {text!r}. Leave the "
                    "row out, or raise `max_label_length` up to the decoder's `max_position_embeddings`."
                )

    @property
    def model_input_names(self) -> list[str]:
        """What a model takes of pictures and texts; a prompt adds `decoder_input_ids`."""
        return [*self.image_processor.model_input_names, "labels"]


def _padded(rows: list[list[int]], filling: int) -> torch.Tensor:
    """Rows of any lengths as int64 (batch, longest), filled on the right."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [filling] * (width - len(row)) for row in rows], dtype=torch.long)


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Token that texts begin with: start token, classification token, or the end token where there is no other."""
    for token_id in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    return None


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Token that ends a text."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def load_image_processor(name_or_folder: str | os.PathLike) -> Any:
    """The image processor of a Hub name or folder, as it is.

    Raises:
        ValueError: if there is none, or a damaged one.
    """
    try:
        return AutoImageProcessor.from_pretrained(name_or_folder)
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{name_or_folder} must hold an image processor, `preprocessor_config.json`, got {said_by(error)}. "
            "Check the name, copy the file there, or pass the image processor itself."
        ) from error


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
