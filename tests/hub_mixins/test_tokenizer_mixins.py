"""transformers' own model, config and image-processor tests on our visual tokenizers."""

import dataclasses
import unittest
from typing import Any
from unittest.mock import patch

import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import floats_tensor

from hf_vlm import (
    DVAEConfig,
    DVAEImageProcessor,
    DVAEImageProcessorPil,
    DVAEModel,
    VAEConfig,
    VAEImageProcessor,
    VAEImageProcessorPil,
    VAEModel,
    VQVAEConfig,
    VQVAEImageProcessor,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from hf_vlm.blocks.codebook import Codebook
from hf_vlm.parts.image_preparation import GrayscaleKwargs
from tests.hub_mixins.external_model import ExternalModelMixin


class TokenizerTester:
    """A tiny model and a batch for it. The attributes are those that the mixin reads."""

    batch_size = 3
    is_training = True
    image_size = 16
    num_channels = 3

    def __init__(self, config_class: Any, settings: dict[str, object], first_map: int, num_maps: int) -> None:
        self.config_class = config_class
        self.settings = settings
        # The mixin compares the first hidden state's last two axes, which here are rows and columns.
        self.seq_length = self.hidden_size = first_map
        self.num_hidden_layers = num_maps - 1  # beside these the mixin expects one of the embeddings

    def get_config(self) -> Any:
        return self.config_class(image_size=self.image_size, num_channels=self.num_channels, **self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict]:
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class TokenizerModelTest(ExternalModelMixin):
    """What the three have in common.

    No entry in `auto_classes`: a class among those of `AutoModel` is taken for one without a loss, and never trained.
    """

    test_resize_embeddings = False
    has_attentions = False
    config_class: Any
    settings: dict[str, object] = {}
    first_map = 8  # rows and columns of the first hidden state
    num_maps = 2

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = TokenizerTester(self.config_class, self.settings, self.first_map, self.num_maps)

    def test_model_get_set_embeddings(self) -> None:
        """The mixin's test insists on an `nn.Embedding`; the first layer of these models is a convolution of pixels."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsNone(model.get_output_embeddings())
            self.assertIsNone(model.get_input_embeddings())

    def test_config(self) -> None:
        ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=["hidden_size"]
        ).run_common_tests()


class VAEModelTest(TokenizerModelTest, unittest.TestCase):
    """The VAE, the deviation of its pixels learnt."""

    all_model_classes = (VAEModel,)
    config_class = VAEConfig
    settings = {"hidden_channels": (8, 16), "likelihood_scale_kind": "shared"}

    def test_batching_equivalence(self) -> None:
        """Each row of the batch is compared with it alone; `kl_per_channel` is a mean over rows, and left out."""
        forward = VAEModel.forward

        def without_mean(model: VAEModel, *args: Any, **kwargs: Any) -> Any:
            return dataclasses.replace(forward(model, *args, **kwargs), kl_per_channel=None)

        with patch.object(VAEModel, "forward", without_mean):
            super().test_batching_equivalence()


class AutoencoderModelTest(VAEModelTest):
    """No KL term and no variance."""

    settings = {"hidden_channels": (8, 16), "beta": 0}


class VQVAEModelTest(TokenizerModelTest, unittest.TestCase):
    """Codewords that are running means."""

    all_model_classes = (VQVAEModel,)
    config_class = VQVAEConfig
    settings = {"hidden_channels": (8, 16)}

    def test_init_weights_can_init_buffers(self) -> None:
        """The mixin's test wants buffers to be equal, and codewords are random ones: here each begins at one seed."""
        reset_parameters = Codebook.reset_parameters

        def reset_at_one_seed(codebook: Codebook) -> None:
            torch.manual_seed(0)
            reset_parameters(codebook)

        with patch.object(Codebook, "reset_parameters", reset_at_one_seed):
            super().test_init_weights_can_init_buffers()


class TrainedCodebookModelTest(VQVAEModelTest):
    """Codewords that are parameters."""

    settings = {"hidden_channels": (8, 16), "codebook_update": "loss", "loss_reduction": "sum"}


class RoundingModelTest(VQVAEModelTest):
    """No codebook."""

    settings = {"hidden_channels": (8, 16), "discretisation": "levels", "levels": (5, 3, 4)}

    def test_keep_in_fp32_modules_exist(self) -> None:
        """The module that the mixin's test looks for is there, but has no tensor that could be of the wrong type."""
        model = VQVAEModel(self.model_tester.get_config())
        self.assertEqual(list(model.codebook.state_dict()), [])


class DVAEModelTest(TokenizerModelTest, unittest.TestCase):
    """The discrete VAE; the first of its three maps is as large as the picture."""

    all_model_classes = (DVAEModel,)
    config_class = DVAEConfig
    settings = {"group_channels": 8, "likelihood": "laplace"}
    first_map = 16
    num_maps = 3


class VAEImageProcessingTester(ImageProcessingTester):
    """Settings of the image processor under test."""

    classes = {"torchvision": VAEImageProcessor, "pil": VAEImageProcessorPil}

    def __init__(self, parent: unittest.TestCase, **kwargs: object) -> None:
        kwargs.setdefault("size", {"height": 18, "width": 18})
        kwargs.setdefault("do_normalize", False)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return self.classes


class VAEImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    """Both backends."""

    image_processor_tester_class: type = VAEImageProcessingTester

    def test_valid_kwargs_set(self) -> None:
        """The mixin's test wants a class of keywords with the processor's name; the tokenizers have one together."""
        for image_processor_class in self.image_processing_classes.values():
            self.assertIs(image_processor_class.valid_kwargs, GrayscaleKwargs)
            self.assertTrue(image_processor_class(do_convert_grayscale=True).do_convert_grayscale)


class VQVAEImageProcessingTester(VAEImageProcessingTester):
    """Settings of the image processor under test."""

    classes = {"torchvision": VQVAEImageProcessor, "pil": VQVAEImageProcessorPil}


class VQVAEImageProcessingTest(VAEImageProcessingTest):
    """Both backends."""

    image_processor_tester_class = VQVAEImageProcessingTester


class DVAEImageProcessingTester(VAEImageProcessingTester):
    """Settings of the image processor under test."""

    classes = {"torchvision": DVAEImageProcessor, "pil": DVAEImageProcessorPil}


class DVAEImageProcessingTest(VAEImageProcessingTest):
    """Both backends."""

    image_processor_tester_class = DVAEImageProcessingTester
