"""transformers' own model, backbone, config and image-processor tests on our vision transformer."""

import tempfile
import unittest

import torch
from huggingface_hub.dataclasses import strict
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import floats_tensor

from hf_vlm import (
    VisionTransformerBackbone,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerForMaskedImageModeling,
    VisionTransformerImageProcessor,
    VisionTransformerImageProcessorPil,
    VisionTransformerModel,
)
from tests.hub_mixins.external_model import ExternalModelMixin


class VisionTransformerModelTester:
    """A tiny model and a batch for it. The attributes are those that the mixin reads."""

    batch_size = 3
    is_training = True
    image_size = 16
    patch_size = 4
    num_channels = 3
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_labels = 3
    seq_length = 1 + (16 // 4) ** 2  # CLS and the patches
    num_masks = 5
    mask_length = (16 // 4) ** 2

    def __init__(self, **settings: object) -> None:
        self.settings = settings

    def get_config(self) -> VisionTransformerConfig:
        return VisionTransformerConfig(
            **{
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "num_channels": self.num_channels,
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "use_mask_token": True,
                **self.settings,
            }
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[VisionTransformerConfig, dict]:
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class VisionTransformerModelTest(ExternalModelMixin, unittest.TestCase):
    """The plain model and its heads, as ViT."""

    all_model_classes = (
        VisionTransformerModel,
        VisionTransformerForImageClassification,
        VisionTransformerForMaskedImageModeling,
        VisionTransformerBackbone,
    )
    auto_classes = {
        "MODEL_MAPPING_NAMES": (VisionTransformerModel,),
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": (VisionTransformerForImageClassification,),
        "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES": (VisionTransformerForMaskedImageModeling,),
        "MODEL_FOR_BACKBONE_MAPPING_NAMES": (VisionTransformerBackbone,),
    }
    test_resize_embeddings = False
    settings: dict[str, object] = {"pooling": "cls", "masked_image_target": "codes", "num_codes": 11}

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = VisionTransformerModelTester(**self.settings)

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        """Masked models get codes to learn, and a mask, lest each call draw one; the mixin's own hides nothing.

        In training the classifier gets the mask too: the tester's config has a mask token, and no weight is to idle.
        """
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        is_masked_model = model_class is VisionTransformerForMaskedImageModeling
        if is_masked_model or (return_labels and model_class is VisionTransformerForImageClassification):
            hidden = torch.arange(self.model_tester.mask_length) < self.model_tester.num_masks
            inputs["bool_masked_pos"] = hidden.repeat(len(inputs["pixel_values"]), 1)
        if is_masked_model and return_labels and self.settings["masked_image_target"] == "codes":
            inputs["code_ids"] = torch.zeros(inputs["bool_masked_pos"].shape, dtype=torch.long)
        return inputs

    def test_model_outputs_equivalence(self) -> None:
        """The mixin's test subtracts outputs from each other; among those of a masked model is the mask, which is bool."""
        masked = VisionTransformerForMaskedImageModeling
        with_mask = masked in self.all_model_classes
        self.all_model_classes = tuple(
            model_class for model_class in self.all_model_classes if model_class is not masked
        )
        super().test_model_outputs_equivalence()
        if with_mask:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = self._prepare_for_class(inputs, masked, return_labels=True) | {"output_hidden_states": True}
            with torch.no_grad():
                model = masked(config).eval()
                torch.testing.assert_close(model(**inputs, return_dict=False), model(**inputs).to_tuple())

    def test_model_get_set_embeddings(self) -> None:
        """The mixin's test insists on an `nn.Embedding`; pictures have patches."""
        model = VisionTransformerModel(self.model_tester.get_config())
        self.assertIs(model.get_input_embeddings(), model.embeddings.patch_embedding)
        self.assertIsNone(model.get_output_embeddings())

    def test_config(self) -> None:
        ConfigTester(self, config_class=VisionTransformerConfig, has_text_modality=False).run_common_tests()


class BeitSettingsModelTest(VisionTransformerModelTest):
    """Every switch of BEiT: relative position bias, layer scale, no key bias, mean pooling, no learned positions."""

    settings = {
        **VisionTransformerModelTest.settings,
        "pooling": "mean",
        "position_embedding": "none",
        "relative_position_bias": "per_layer",
        "layer_scale_init_value": 0.1,
        "key_bias": False,
    }


class LineSettingsModelTest(VisionTransformerModelTest):
    """Lines of text: patches that are not square, a convolutional stem, no CLS token."""

    settings = {
        **VisionTransformerModelTest.settings,
        "pooling": "none",
        "patch_size": (8, 4),
        "stem_channels": (8, 16),
        "use_cls_token": False,
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.seq_length = self.model_tester.mask_length = (16 // 8) * (16 // 4)


class DeitSettingsModelTest(VisionTransformerModelTest):
    """Every token beside CLS, two heads, and positions that are a buffer."""

    settings = {
        **VisionTransformerModelTest.settings,
        "pooling": "cls_token",
        "position_embedding": "sincos",
        "use_distillation_token": True,
        "use_distillation_head": True,
        "num_register_tokens": 2,
        "num_linear_layers": 2,
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.seq_length = 1 + 1 + 2 + (16 // 4) ** 2

    def test_can_load_ignoring_mismatched_shapes(self) -> None:
        """The mixin's test knows of one head with as many outputs as labels; here are two."""
        model = VisionTransformerForImageClassification(self.model_tester.get_config())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with self.assertRaises(ValueError):
                type(model).from_pretrained(folder, num_labels=42)
            loaded = type(model).from_pretrained(folder, num_labels=42, ignore_mismatched_sizes=True)
        saved = model.state_dict()
        shapes = {
            name: tuple(new.shape) for name, new in loaded.state_dict().items() if not torch.equal(new, saved[name])
        }
        of_a_head = {"output_layer.weight": (42, 32), "output_layer.bias": (42,)}
        heads = ("classifier", "distillation_classifier")
        self.assertEqual(shapes, {f"{head}.{name}": shape for head in heads for name, shape in of_a_head.items()})


class HybridSettingsModelTest(VisionTransformerModelTest):
    """Patches of a CNN's feature map, positions by row and column."""

    settings = {
        **VisionTransformerModelTest.settings,
        "pooling": "none",
        "position_embedding": "learned_2d",
        "patch_size": 1,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.mask_length = (16 // 8) ** 2
        self.model_tester.seq_length = 1 + (16 // 8) ** 2
        self.model_tester.num_masks = 2


class PixelsModelTest(VisionTransformerModelTest):
    """Masked pre-training on pixels: the encoder sees the CLS token and the visible patches."""

    all_model_classes = (VisionTransformerForMaskedImageModeling,)
    settings = {"masked_image_target": "pixels", "position_embedding": "sincos"}

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.seq_length = 1 + self.model_tester.mask_length - self.model_tester.num_masks

    def check_training_gradient_checkpointing(self, **kwargs: object) -> None:
        """Every weight is to have a gradient; the tester's mask token stands in for codes only."""
        self.model_tester = VisionTransformerModelTester(**self.settings, use_mask_token=False)
        super().check_training_gradient_checkpointing(**kwargs)


@strict
class _DeeperConfig(VisionTransformerConfig):
    """The backbone mixin names stages 1 to 3 of the default config."""

    num_hidden_layers: int = 3


class VisionTransformerBackboneTest(BackboneTesterMixin, unittest.TestCase):
    """Feature maps of layers."""

    all_model_classes = (VisionTransformerBackbone,)
    config_class = _DeeperConfig

    def setUp(self) -> None:
        self.model_tester = VisionTransformerModelTester(out_features=["stem", "stage2"])


class VisionTransformerImageProcessingTester(ImageProcessingTester):
    """Settings of the image processor under test."""

    def __init__(self, parent: unittest.TestCase, **kwargs: object) -> None:
        kwargs.setdefault("size", {"height": 18, "width": 18})
        kwargs.setdefault("do_normalize", True)
        kwargs.setdefault("image_mean", [0.5, 0.5, 0.5])
        kwargs.setdefault("image_std", [0.5, 0.5, 0.5])
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": VisionTransformerImageProcessor, "pil": VisionTransformerImageProcessorPil}


class VisionTransformerImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    """Both backends."""

    image_processor_tester_class = VisionTransformerImageProcessingTester
