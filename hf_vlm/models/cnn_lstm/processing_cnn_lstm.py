"""The captioner's processor: pictures to pixels, captions to labels, token ids to words."""

import os
from typing import Any

from ...parts.image_preparation import without_timm
from ...parts.picture_text_processor import PictureTextProcessor, load_image_processor


class CnnLstmProcessor(PictureTextProcessor):
    """The vision model's own image processor, which for photographs resizes and cuts out the middle, and any tokenizer.

    Args:
        image_processor: of the vision encoder.
        tokenizer: any; `data/word_tokenizer.py` builds one of whole words, as the papers use.
        max_label_length: the longest label in tokens, end token included; longer ones are refused. None for no limit.
    """

    @classmethod
    def load_image_processor(cls, name_or_folder: str | os.PathLike) -> Any:
        """The image processor of a Hub name or folder; timm's pre-processing as one of the usual settings."""
        return without_timm(load_image_processor(name_or_folder))
