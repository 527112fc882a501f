from hf_vlm import VQVAEConfig, VQVAEImageProcessor, VQVAEImageProcessorPil, VQVAEModel
from tests.models.tokenizer_contract import TokenizerImagesContract


class TestVQVAEImageProcessor(TokenizerImagesContract):
    model_class = VQVAEModel
    config_class = VQVAEConfig
    processor_classes = (VQVAEImageProcessor, VQVAEImageProcessorPil)
