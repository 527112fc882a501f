"""TrOCR's processor: pictures to pixels, texts to labels, token ids to text."""

import copy
import os
from typing import Any

from transformers import PreTrainedTokenizerBase, ViTImageProcessor

from ...parts.image_preparation import without_timm
from ...parts.picture_text_processor import PictureTextProcessor, load_image_processor


class TrOCREncoderDecoderProcessor(PictureTextProcessor):
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: of the vision encoder. One that pads lines of different widths also gives `pixel_mask`.
        tokenizer: of the text model.
        max_label_length: the longest label in tokens, end token and prompt included; longer ones are refused. None for no
            limit.
    """

    takes_prompt = True

    @classmethod
    def load_image_processor(cls, name_or_folder: str | os.PathLike) -> Any:
        """The image processor of a Hub name or folder, made to show whole lines."""
        return show_whole_lines(load_image_processor(name_or_folder))

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
        processor = super().from_pretrained_parts(vision, text, **settings)
        if image_size is not None:
            processor.resize(image_size)
        return processor

    def resize(self, image_size: int | tuple[int, int]) -> None:
        """Make pictures of `image_size` pixels, one number or (height, width), as the model's `resize` makes it take."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_processor: Any = show_whole_lines(copy.deepcopy(self.image_processor))  # others may hold it too
        self.image_processor.size = {"height": height, "width": width}


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
