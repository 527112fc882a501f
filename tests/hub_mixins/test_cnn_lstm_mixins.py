"""transformers' own model, config and processor tests on our captioner, without and with attention."""

import unittest

from transformers import ViTImageProcessor
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import floats_tensor, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from hf_vlm import CnnLstmConfig, CnnLstmForConditionalGeneration, CnnLstmProcessor
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from tests.hub_mixins.external_model import ExternalModelMixin

RESNET = {"embedding_size": 8, "hidden_sizes": (8, 8, 16), "depths": (1, 1, 1), "layer_type": "basic"}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


class CaptionerTester:
    """A tiny captioner and a batch for it. The attributes are those that the mixin reads."""

    batch_size = 3
    seq_length = decoder_seq_length = 7
    is_training = True
    hidden_size = 32
    num_hidden_layers = 1
    num_attention_heads = 4
    vocab_size = 99
    image_size = 32
    with_input_ids = False

    def __init__(self, attention: str, vision: dict[str, object]) -> None:
        self.settings = {
            "vision_config": vision,
            "attention": attention,
            "vocab_size": self.vocab_size,
            "embedding_size": 32,
            "hidden_size": self.hidden_size,
            "dropout": 0.0,
        }

    def get_config(self) -> CnnLstmConfig:
        return CnnLstmConfig(**{**self.settings, "vision_config": dict(self.settings["vision_config"])})

    def prepare_config_and_inputs_for_common(self) -> tuple[CnnLstmConfig, dict]:
        shape = [self.batch_size, self.decoder_seq_length]
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
            "decoder_input_ids": ids_tensor(shape, self.vocab_size - 3) + 3,  # no start, end or padding token
        }
        if self.with_input_ids:
            inputs["input_ids"] = inputs["decoder_input_ids"]
        return self.get_config(), inputs


class CaptionerTest(ExternalModelMixin, unittest.TestCase):
    """Show and Tell on a ResNet."""

    all_model_classes = (CnnLstmForConditionalGeneration,)
    all_generative_model_classes = (CnnLstmForConditionalGeneration,)
    auto_classes = {"MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": (CnnLstmForConditionalGeneration,)}
    additional_model_inputs = ["decoder_input_ids"]
    is_encoder_decoder = True
    has_attentions = False  # layers that kernels could be chosen for are the encoder's, if it has any
    _is_composite = True
    attention = "none"
    vision: dict[str, object] = {"model_type": "resnet", **RESNET}

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = CaptionerTester(self.attention, self.vision)

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
        ConfigTester(self, config_class=CnnLstmConfig, has_text_modality=False).run_common_tests()


class AttentiveCaptionerTest(CaptionerTest):
    """Show, Attend and Tell on a vision transformer."""

    attention = "additive"
    vision = {"model_type": "hf_vlm_vit", **VIT}


class CaptionerProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """An image processor of the Hub and a tokenizer of single characters, whose texts come back as they were."""

    processor_class = CnnLstmProcessor
    text_input_name = "labels"

    @classmethod
    def _setup_image_processor(cls) -> ViTImageProcessor:
        return ViTImageProcessor(size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        return build_character_tokenizer(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'-()<>[]/\n"
        )
