"""transformers' own model, config and processor tests on our assistant."""

import unittest

import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import floats_tensor, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from hf_vlm import (
    LlavaVisionLanguageConfig,
    LlavaVisionLanguageForConditionalGeneration,
    LlavaVisionLanguageProcessor,
)
from hf_vlm.models.llava.processing_llava import add_image_token
from tests.hub_mixins.external_model import ExternalModelMixin
from tests.models.llava.tiny_llava import tiny_image_processor, tiny_tokenizer

TEXT = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
VISION = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "use_cls_token": True,
    "pooling": "none",
}
IMAGE_TOKEN_ID = 4
NUM_IMAGE_TOKENS = 4


class AssistantTester:
    """A tiny assistant and a batch for it: a picture in each row. The attributes are those that the mixin reads."""

    batch_size = (
        7  # as the comparison of attention kernels has it, which fills smaller ones up with rows without pictures
    )
    seq_length = 12
    is_training = True
    hidden_size = TEXT["hidden_size"]
    num_hidden_layers = TEXT["num_hidden_layers"]
    num_attention_heads = TEXT["num_attention_heads"]
    vocab_size = TEXT["vocab_size"]
    with_pictures = True

    def get_config(self) -> LlavaVisionLanguageConfig:
        return LlavaVisionLanguageConfig(
            vision_config=dict(VISION),
            text_config=dict(TEXT),
            vision_feature_layer=-1,
            image_token_id=IMAGE_TOKEN_ID,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[LlavaVisionLanguageConfig, dict]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 10) + 5
        input_ids[:, 1 : 1 + NUM_IMAGE_TOKENS] = IMAGE_TOKEN_ID
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, VISION["image_size"], VISION["image_size"]]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        if not self.with_pictures:
            input_ids[:, 1 : 1 + NUM_IMAGE_TOKENS] = 5
            del inputs["pixel_values"]
        return self.get_config(), inputs


class AssistantTest(ExternalModelMixin, unittest.TestCase):
    """Vision encoder, projector and language model together."""

    all_model_classes = (LlavaVisionLanguageForConditionalGeneration,)
    all_generative_model_classes = (LlavaVisionLanguageForConditionalGeneration,)
    auto_classes = {"MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": (LlavaVisionLanguageForConditionalGeneration,)}
    additional_model_inputs = ["pixel_values"]
    skip_test_image_features_output_shape = (
        True  # which it doesn't find in our vision config; ours has a test of its own
    )
    _is_composite = True

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = AssistantTester()

    def test_inputs_embeds(self) -> None:
        self.model_tester.with_pictures = False  # pictures are placed by ids
        super().test_inputs_embeds()

    def test_config(self) -> None:
        ConfigTester(self, config_class=LlavaVisionLanguageConfig, has_text_modality=False).run_common_tests()


class AssistantProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """An image processor of the Hub and a tokenizer of single characters."""

    processor_class = LlavaVisionLanguageProcessor

    @classmethod
    def _setup_image_processor(cls):
        return tiny_image_processor()

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = tiny_tokenizer(None)
        add_image_token(tokenizer)
        return tokenizer

    @classmethod
    def _setup_test_attributes(cls, processor: LlavaVisionLanguageProcessor) -> None:
        cls.image_token = processor.image_token

    @staticmethod
    def prepare_processor_dict() -> dict:
        template = (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
            "{% if message['content'] is string %}{{ message['content'] }}"
            "{% else %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        # Pictures are compared with what the image processor alone makes of them: without our padding.
        return {"chat_template": template, "num_image_tokens": 4, "image_aspect_ratio": "square"}
