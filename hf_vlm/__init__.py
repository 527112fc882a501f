"""Encoder-decoder style visual language models for the Hugging Face ecosystem.

Importing this package registers its configs, models, processors and pipeline tasks with transformers, and changes nothing
else there.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedImageModeling,
    AutoProcessor,
)

from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.dvae.image_processing_dvae import DVAEImageProcessor, DVAEImageProcessorPil
from hf_vlm.models.dvae.modeling_dvae import DVAEModel
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.swin.configuration_swin import SwinTransformerConfig
from hf_vlm.models.swin.image_processing_swin import SwinTransformerImageProcessor, SwinTransformerImageProcessorPil
from hf_vlm.models.swin.modeling_swin import (
    SwinTransformerBackbone,
    SwinTransformerForImageClassification,
    SwinTransformerModel,
)
from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.models.vae.configuration_vae import VAEConfig
from hf_vlm.models.vae.image_processing_vae import VAEImageProcessor, VAEImageProcessorPil
from hf_vlm.models.vae.modeling_vae import VAEModel
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor, VisionTransformerImageProcessorPil
from hf_vlm.models.vit.masked_image_modeling import VisionTransformerForMaskedImageModeling
from hf_vlm.models.vit.modeling_vit import VisionTransformerBackbone, VisionTransformerModel
from hf_vlm.models.vqvae.configuration_vqvae import VQVAEConfig
from hf_vlm.models.vqvae.image_processing_vqvae import VQVAEImageProcessor, VQVAEImageProcessorPil
from hf_vlm.models.vqvae.modeling_vqvae import VQVAEModel
from hf_vlm.parts.package_version import __version__
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.pipelines.image_captioning import ImageCaptioningPipeline
from hf_vlm.pipelines.image_to_text import ImageToTextPipeline
from hf_vlm.pipelines.image_tokenization import ImageTokenizationPipeline
from hf_vlm.pipelines.page_reading import PageReader
from hf_vlm.pipelines.picture_question_answering import PictureQuestionAnsweringPipeline
from hf_vlm.pipelines.tasks import register_tasks, restore_removed_tasks
from hf_vlm.pipelines.text_recognition import TextRecognitionPipeline

AutoConfig.register("hf_vlm_vit", VisionTransformerConfig)
AutoModel.register(VisionTransformerConfig, VisionTransformerModel)
AutoModelForImageClassification.register(VisionTransformerConfig, VisionTransformerForImageClassification)
AutoModelForMaskedImageModeling.register(VisionTransformerConfig, VisionTransformerForMaskedImageModeling)
AutoBackbone.register(VisionTransformerConfig, VisionTransformerBackbone)
AutoImageProcessor.register(
    VisionTransformerConfig,
    image_processor_classes={"torchvision": VisionTransformerImageProcessor, "pil": VisionTransformerImageProcessorPil},
)

AutoConfig.register("hf_vlm_swin", SwinTransformerConfig)
AutoModel.register(SwinTransformerConfig, SwinTransformerModel)
AutoModelForImageClassification.register(SwinTransformerConfig, SwinTransformerForImageClassification)
AutoBackbone.register(SwinTransformerConfig, SwinTransformerBackbone)
AutoImageProcessor.register(
    SwinTransformerConfig,
    image_processor_classes={"torchvision": SwinTransformerImageProcessor, "pil": SwinTransformerImageProcessorPil},
)

AutoConfig.register("hf_vlm_vae", VAEConfig)
AutoModel.register(VAEConfig, VAEModel)
AutoImageProcessor.register(
    VAEConfig, image_processor_classes={"torchvision": VAEImageProcessor, "pil": VAEImageProcessorPil}
)

AutoConfig.register("hf_vlm_vqvae", VQVAEConfig)
AutoModel.register(VQVAEConfig, VQVAEModel)
AutoImageProcessor.register(
    VQVAEConfig, image_processor_classes={"torchvision": VQVAEImageProcessor, "pil": VQVAEImageProcessorPil}
)

AutoConfig.register("hf_vlm_dvae", DVAEConfig)
AutoModel.register(DVAEConfig, DVAEModel)
AutoImageProcessor.register(
    DVAEConfig, image_processor_classes={"torchvision": DVAEImageProcessor, "pil": DVAEImageProcessorPil}
)

AutoConfig.register("hf_vlm_trocr_text", TrOCREncoderDecoderTextConfig)
AutoModelForCausalLM.register(TrOCREncoderDecoderTextConfig, TrOCREncoderDecoderForCausalLM)

AutoConfig.register("hf_vlm_trocr", TrOCREncoderDecoderConfig)
AutoModel.register(TrOCREncoderDecoderConfig, TrOCREncoderDecoderForConditionalGeneration)
AutoModelForImageTextToText.register(TrOCREncoderDecoderConfig, TrOCREncoderDecoderForConditionalGeneration)
AutoProcessor.register(TrOCREncoderDecoderConfig, TrOCREncoderDecoderProcessor)

AutoConfig.register("hf_vlm_llava", LlavaVisionLanguageConfig)
AutoModel.register(LlavaVisionLanguageConfig, LlavaVisionLanguageForConditionalGeneration)
AutoModelForImageTextToText.register(LlavaVisionLanguageConfig, LlavaVisionLanguageForConditionalGeneration)
AutoProcessor.register(LlavaVisionLanguageConfig, LlavaVisionLanguageProcessor)

AutoConfig.register("hf_vlm_cnn_lstm", CnnLstmConfig)
AutoModel.register(CnnLstmConfig, CnnLstmForConditionalGeneration)
AutoModelForImageTextToText.register(CnnLstmConfig, CnnLstmForConditionalGeneration)
AutoProcessor.register(CnnLstmConfig, CnnLstmProcessor)

register_tasks()

__all__ = [
    "CnnLstmConfig",
    "CnnLstmForConditionalGeneration",
    "CnnLstmProcessor",
    "DVAEConfig",
    "DVAEImageProcessor",
    "DVAEImageProcessorPil",
    "DVAEModel",
    "ImageCaptioningPipeline",
    "ImageToTextPipeline",
    "ImageTokenizationPipeline",
    "LlavaVisionLanguageConfig",
    "LlavaVisionLanguageForConditionalGeneration",
    "LlavaVisionLanguageProcessor",
    "PageReader",
    "PictureQuestionAnsweringPipeline",
    "SwinTransformerBackbone",
    "SwinTransformerConfig",
    "SwinTransformerForImageClassification",
    "SwinTransformerImageProcessor",
    "SwinTransformerImageProcessorPil",
    "SwinTransformerModel",
    "TextRecognitionPipeline",
    "TrOCREncoderDecoderConfig",
    "TrOCREncoderDecoderForCausalLM",
    "TrOCREncoderDecoderForConditionalGeneration",
    "TrOCREncoderDecoderProcessor",
    "TrOCREncoderDecoderTextConfig",
    "VAEConfig",
    "VAEImageProcessor",
    "VAEImageProcessorPil",
    "VAEModel",
    "VQVAEConfig",
    "VQVAEImageProcessor",
    "VQVAEImageProcessorPil",
    "VQVAEModel",
    "VisionTransformerBackbone",
    "VisionTransformerConfig",
    "VisionTransformerForImageClassification",
    "VisionTransformerForMaskedImageModeling",
    "VisionTransformerImageProcessor",
    "VisionTransformerImageProcessorPil",
    "VisionTransformerModel",
    "__version__",
    "default_ocr_model",
    "restore_removed_tasks",
]
