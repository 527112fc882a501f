"""transformers' own model, backbone, config and image-processor tests on our Swin transformer."""

import unittest

import torch
from huggingface_hub.dataclasses import strict
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import floats_tensor

from hf_vlm import (
    SwinTransformerBackbone,
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
    SwinTransformerImageProcessor,
    SwinTransformerImageProcessorPil,
    SwinTransformerModel,
)
from tests.hub_mixins.external_model import ExternalModelMixin


class SwinTransformerModelTester:
    """A tiny model of two stages and a batch for it. The attributes are those that the mixin reads."""

    batch_size = 3
    is_training = True
    image_size = 32
    patch_size = 2
    num_channels = 3
    hidden_size = 16  # of the first stage, as the first recorded hidden state has it
    depths = (2, 2)
    num_hidden_layers = 2  # one recorded hidden state a stage
    num_attention_heads = 2  # of the first stage
    num_labels = 3
    seq_length = (32 // 2) ** 2

    def __init__(self, **settings: object) -> None:
        self.settings = settings

    def get_config(self) -> SwinTransformerConfig:
        return SwinTransformerConfig(
            **{
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "num_channels": self.num_channels,
                "embed_dim": self.hidden_size,
                "depths": self.depths,
                "num_attention_heads": (2, 4),
                "window_size": 4,
                **self.settings,
            }
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[SwinTransformerConfig, dict]:
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class SwinTransformerModelTest(ExternalModelMixin, unittest.TestCase):
    """The plain model and its heads; the maps of both stages, 16 and 8 patches wide, are shifted."""

    all_model_classes = (SwinTransformerModel, SwinTransformerForImageClassification, SwinTransformerBackbone)
    auto_classes = {
        "MODEL_MAPPING_NAMES": (SwinTransformerModel,),
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": (SwinTransformerForImageClassification,),
        "MODEL_FOR_BACKBONE_MAPPING_NAMES": (SwinTransformerBackbone,),
    }
    test_resize_embeddings = False
    settings: dict[str, object] = {}
    grids = ((16, 16), (8, 8))
    window_patches = 4 * 4

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = SwinTransformerModelTester(**self.settings)

    def test_attention_outputs(self) -> None:
        """Attention is recorded for each layer, not each stage, and is of a window's patches."""
        self.model_tester.num_hidden_layers = sum(self.model_tester.depths)
        self.model_tester.encoder_seq_length = self.window_patches
        super().test_attention_outputs()

    def test_hidden_states_output(self) -> None:
        """Beyond the first, which the mixin's test looks at: each stage hands on half the rows and columns."""
        super().test_hidden_states_output()
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (rows, columns), (last_rows, last_columns) = self.grids
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), torch.no_grad():
                hidden_states = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
                shapes = [tuple(state.shape) for state in hidden_states]
                last = (3, last_rows * last_columns, 32)
                self.assertEqual(shapes, [(3, rows * columns, 16), last, last])

    def test_model_get_set_embeddings(self) -> None:
        """The mixin's test insists on an `nn.Embedding`; pictures have patches."""
        model = SwinTransformerModel(self.model_tester.get_config())
        self.assertIs(model.get_input_embeddings(), model.embeddings.patch_embedding)
        self.assertIsNone(model.get_output_embeddings())

    def test_config(self) -> None:
        ConfigTester(
            self,
            config_class=SwinTransformerConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_hidden_layers", "num_attention_heads"],
        ).run_common_tests()


class PaddedSettingsModelTest(SwinTransformerModelTest):
    """Absolute positions, and windows that are not square and don't divide the maps: 16 and 8 patches in 3 x 5."""

    settings = {"window_size": (3, 5), "use_absolute_positions": True, "qkv_bias": False, "num_linear_layers": 2}
    window_patches = 3 * 5


@strict
class _DeeperConfig(SwinTransformerConfig):
    """The backbone mixin names stages 1 to 3 of the default config."""

    depths: list[int] | tuple[int, ...] = (1, 1, 1)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 4)


class SwinTransformerBackboneTest(BackboneTesterMixin, unittest.TestCase):
    """Feature maps of stages."""

    all_model_classes = (SwinTransformerBackbone,)
    config_class = _DeeperConfig

    def setUp(self) -> None:
        self.model_tester = SwinTransformerModelTester(out_features=["stem", "stage2"])


class SwinTransformerImageProcessingTester(ImageProcessingTester):
    """Settings of the image processor under test."""

    def __init__(self, parent: unittest.TestCase, **kwargs: object) -> None:
        kwargs.setdefault("size", {"height": 18, "width": 18})
        kwargs.setdefault("do_normalize", True)
        kwargs.setdefault("image_mean", [0.5, 0.5, 0.5])
        kwargs.setdefault("image_std", [0.5, 0.5, 0.5])
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": SwinTransformerImageProcessor, "pil": SwinTransformerImageProcessorPil}


class SwinTransformerImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    """Both backends."""

    image_processor_tester_class = SwinTransformerImageProcessingTester
