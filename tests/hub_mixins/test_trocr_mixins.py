"""transformers' own model and config tests on our line reader and its text decoder."""

import unittest

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import floats_tensor, ids_tensor, random_attention_mask

from hf_vlm import (
    TrOCREncoderDecoderConfig,
    TrOCREncoderDecoderForCausalLM,
    TrOCREncoderDecoderForConditionalGeneration,
    TrOCREncoderDecoderTextConfig,
)
from tests.hub_mixins.external_model import ExternalModelMixin

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "dropout": 0.0,
}
VISION = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


class TextDecoderTester:
    """A tiny text decoder and a batch for it. The attributes are those that the mixin reads."""

    batch_size = 3
    seq_length = 7
    is_training = True
    hidden_size = TEXT["hidden_size"]
    num_hidden_layers = TEXT["num_hidden_layers"]
    num_attention_heads = TEXT["num_attention_heads"]
    vocab_size = TEXT["vocab_size"]

    def __init__(self, **settings: object) -> None:
        self.settings = settings

    def get_config(self) -> TrOCREncoderDecoderTextConfig:
        return TrOCREncoderDecoderTextConfig(**{**TEXT, **self.settings})

    def prepare_config_and_inputs_for_common(self) -> tuple[TrOCREncoderDecoderTextConfig, dict]:
        shape = [self.batch_size, self.seq_length]
        input_ids = ids_tensor(shape, self.vocab_size - 3) + 3  # no start, end or padding token
        return self.get_config(), {"input_ids": input_ids, "attention_mask": random_attention_mask(shape)}


class TextDecoderTest(ExternalModelMixin, unittest.TestCase):
    """The decoder of the paper: normalised after each sub-layer."""

    all_model_classes = (TrOCREncoderDecoderForCausalLM,)
    all_generative_model_classes = (TrOCREncoderDecoderForCausalLM,)
    auto_classes = {"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": (TrOCREncoderDecoderForCausalLM,)}
    additional_model_inputs = ["attention_mask"]
    # Without a picture cross-attention is left out, so it has no gradient.
    test_all_params_have_gradient = False
    settings: dict[str, object] = {}

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = TextDecoderTester(**self.settings)

    def test_config(self) -> None:
        ConfigTester(self, config_class=TrOCREncoderDecoderTextConfig, **TEXT).run_common_tests()


class PreNormTextDecoderTest(TextDecoderTest):
    """The other kind of every setting: normalised before each sub-layer, fixed positions, scaled embeddings."""

    settings = {
        "norm_position": "pre",
        "position_embedding": "sinusoidal",
        "first_position": 2,
        "embedding_norm": False,
        "scale_embedding": True,
    }


class LineReaderTester:
    """A tiny whole model and a batch for it."""

    batch_size = 3
    seq_length = decoder_seq_length = 7
    encoder_seq_length = 1 + (16 // 4) ** 2
    is_training = True
    hidden_size = TEXT["hidden_size"]
    num_hidden_layers = TEXT["num_hidden_layers"]
    num_attention_heads = TEXT["num_attention_heads"]
    vocab_size = TEXT["vocab_size"]
    with_input_ids = False

    def get_config(self) -> TrOCREncoderDecoderConfig:
        text_config = {"model_type": "hf_vlm_trocr_text", **TEXT}
        return TrOCREncoderDecoderConfig(vision_config=dict(VISION), text_config=text_config)

    def prepare_config_and_inputs_for_common(self) -> tuple[TrOCREncoderDecoderConfig, dict]:
        shape = [self.batch_size, self.decoder_seq_length]
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, VISION["image_size"], VISION["image_size"]]),
            "decoder_input_ids": ids_tensor(shape, self.vocab_size - 3) + 3,
            "decoder_attention_mask": random_attention_mask(shape),
        }
        if self.with_input_ids:
            inputs["input_ids"] = inputs["decoder_input_ids"]
        return self.get_config(), inputs


class LineReaderTest(ExternalModelMixin, unittest.TestCase):
    """Vision encoder and text decoder together."""

    all_model_classes = (TrOCREncoderDecoderForConditionalGeneration,)
    all_generative_model_classes = (TrOCREncoderDecoderForConditionalGeneration,)
    auto_classes = {"MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": (TrOCREncoderDecoderForConditionalGeneration,)}
    additional_model_inputs = ["decoder_input_ids", "decoder_attention_mask"]
    is_encoder_decoder = True
    _is_composite = True

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = LineReaderTester()

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        inputs.pop("input_ids", None)  # the tests of resized embeddings read it, the model doesn't take it
        return inputs

    def test_resize_tokens_embeddings(self) -> None:
        self.model_tester.with_input_ids = True
        super().test_resize_tokens_embeddings()

    def test_resize_embeddings_untied(self) -> None:
        self.model_tester.with_input_ids = True
        super().test_resize_embeddings_untied()

    def test_config(self) -> None:
        ConfigTester(self, config_class=TrOCREncoderDecoderConfig, has_text_modality=False).run_common_tests()
