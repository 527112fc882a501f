"""transformers' own processor tests on our line reader's processor."""

import unittest

from transformers_tests.test_processing_common import ProcessorTesterMixin

from hf_vlm import TrOCREncoderDecoderProcessor, VisionTransformerImageProcessor
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer


class TrOCREncoderDecoderProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """Our image processor and a tokenizer of single characters."""

    processor_class = TrOCREncoderDecoderProcessor
    text_input_name = "labels"

    @classmethod
    def _setup_image_processor(cls) -> VisionTransformerImageProcessor:
        return VisionTransformerImageProcessor(size={"height": 16, "width": 64})

    @classmethod
    def _setup_tokenizer(cls):
        return build_character_tokenizer(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'-()<>[]/\n"
        )
