"""Names that people's scripts rely on exist, and none of ours is one of transformers'.

transformers looks configs and processors up by class name first: a second `TrOCRProcessor`, saved and reloaded, would
silently come back as theirs.
"""

import importlib
import inspect
import pkgutil

import pytest
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

import hf_vlm
from hf_vlm.parts.hub_config import HubConfig

CONTRACT = {
    "cnn_lstm": ["CnnLstmConfig", "CnnLstmForConditionalGeneration", "CnnLstmProcessor"],
    "vit": ["VisionTransformerConfig", "VisionTransformerModel", "VisionTransformerImageProcessor"],
    "vae": ["VAEConfig", "VAEModel", "VAEImageProcessor"],
    "vqvae": ["VQVAEConfig", "VQVAEModel", "VQVAEImageProcessor"],
    "dvae": ["DVAEConfig", "DVAEModel", "DVAEImageProcessor"],
    "trocr": [
        "TrOCREncoderDecoderConfig",
        "TrOCREncoderDecoderForConditionalGeneration",
        "TrOCREncoderDecoderProcessor",
    ],
    "llava": [
        "LlavaVisionLanguageConfig",
        "LlavaVisionLanguageForConditionalGeneration",
        "LlavaVisionLanguageProcessor",
    ],
}


def own_classes() -> dict[str, type]:
    """Every class that a module of hf_vlm defines, public or not, by name."""
    classes = {}
    for module_info in pkgutil.walk_packages(hf_vlm.__path__, "hf_vlm."):
        module = importlib.import_module(module_info.name)
        for name, value in inspect.getmembers(module, inspect.isclass):
            if value.__module__ == module.__name__:
                classes[name] = value
    return classes


@pytest.mark.parametrize("name", [name for names in CONTRACT.values() for name in names])
def test_contract_name_is_public(name: str):
    assert name in hf_vlm.__all__
    assert inspect.isclass(getattr(hf_vlm, name))


def test_every_public_name_exists():
    assert [name for name in hf_vlm.__all__ if not hasattr(hf_vlm, name)] == []


def test_no_public_name_is_one_of_transformers():
    assert (set(hf_vlm.__all__) - {"__version__"}) & set(dir(transformers)) == set()


def test_no_class_is_named_like_one_of_transformers():
    assert set(own_classes()) & set(dir(transformers)) == set()


def test_model_types_are_prefixed_by_their_folder():
    for name, value in own_classes().items():
        if issubclass(value, transformers.PreTrainedConfig) and value is not HubConfig:
            folder = value.__module__.split(".")[2]  # hf_vlm.models.<folder>.<file>
            assert value.model_type.startswith(f"hf_vlm_{folder}"), name


@pytest.mark.parametrize(
    ("config", "auto_class", "wanted"),
    [
        *((f"{name}TransformerConfig", AutoModel, f"{name}TransformerModel") for name in ("Vision", "Swin")),
        *(
            (f"{name}TransformerConfig", AutoImageProcessor, f"{name}TransformerImageProcessor")
            for name in ("Vision", "Swin")
        ),
        *((f"{name}Config", AutoModel, f"{name}Model") for name in ("VAE", "VQVAE", "DVAE")),
        *((f"{name}Config", AutoImageProcessor, f"{name}ImageProcessor") for name in ("VAE", "VQVAE", "DVAE")),
        ("TrOCREncoderDecoderConfig", AutoModel, "TrOCREncoderDecoderForConditionalGeneration"),
        ("TrOCREncoderDecoderConfig", AutoModelForImageTextToText, "TrOCREncoderDecoderForConditionalGeneration"),
        ("TrOCREncoderDecoderConfig", AutoProcessor, "TrOCREncoderDecoderProcessor"),
        ("CnnLstmConfig", AutoModel, "CnnLstmForConditionalGeneration"),
        ("CnnLstmConfig", AutoModelForImageTextToText, "CnnLstmForConditionalGeneration"),
        ("CnnLstmConfig", AutoProcessor, "CnnLstmProcessor"),
        ("LlavaVisionLanguageConfig", AutoModel, "LlavaVisionLanguageForConditionalGeneration"),
        ("LlavaVisionLanguageConfig", AutoModelForImageTextToText, "LlavaVisionLanguageForConditionalGeneration"),
        ("LlavaVisionLanguageConfig", AutoProcessor, "LlavaVisionLanguageProcessor"),
    ],
)
def test_auto_classes_serve_our_classes(config: str, auto_class: type, wanted: str):
    config_class = getattr(hf_vlm, config)
    assert type(AutoConfig.for_model(config_class.model_type)) is config_class
    if auto_class is AutoProcessor:
        mapping = transformers.models.auto.processing_auto.PROCESSOR_MAPPING
    elif auto_class is AutoImageProcessor:
        mapping = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING
    else:
        mapping = auto_class._model_mapping
    served = mapping[config_class]
    served = served.values() if isinstance(served, dict) else [served]  # one class a backend for image processors
    assert getattr(hf_vlm, wanted) in served
