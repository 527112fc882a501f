from hf_vlm import VAEConfig, VAEImageProcessor, VAEImageProcessorPil, VAEModel
from tests.models.tokenizer_contract import TokenizerImagesContract


class TestVAEImageProcessor(TokenizerImagesContract):
    model_class = VAEModel
    config_class = VAEConfig
    processor_classes = (VAEImageProcessor, VAEImageProcessorPil)
