"""Folders name the version that wrote them; those of newer versions are taken only if this one knows all they say."""

import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

import hf_vlm
from hf_vlm import (
    CnnLstmConfig,
    DVAEConfig,
    LlavaVisionLanguageConfig,
    SwinTransformerConfig,
    TrOCREncoderDecoderConfig,
    TrOCREncoderDecoderTextConfig,
    VAEConfig,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerModel,
    VQVAEConfig,
)

CONFIGS = [
    CnnLstmConfig,
    DVAEConfig,
    LlavaVisionLanguageConfig,
    SwinTransformerConfig,
    TrOCREncoderDecoderConfig,
    TrOCREncoderDecoderTextConfig,
    VAEConfig,
    VisionTransformerConfig,
    VQVAEConfig,
]


def change(folder, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_config_names_the_version_that_wrote_it_and_does_not_keep_it(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hf_vlm_version"] == hf_vlm.__version__
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "hf_vlm_version")


@pytest.mark.parametrize("config_class", CONFIGS)
def test_newer_version_that_says_nothing_new_is_taken(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version="99.1")
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == config_class().to_dict() | {"_name_or_path": str(tmp_path)}


@pytest.mark.parametrize("version", ["99.1", "next generation"])
def test_newer_version_with_an_unknown_setting_is_refused(version, tmp_path):
    VisionTransformerModel(VisionTransformerConfig(num_hidden_layers=1)).save_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version=version, spectral_norm=True)
    wanted = rf"hf-vlm {hf_vlm.__version__}, got `spectral_norm`.*: hf-vlm {version} wrote it.*pip install --upgrade"
    for loads in (AutoConfig, VisionTransformerConfig, AutoModel, VisionTransformerModel):
        with pytest.raises(ValueError, match=wanted):
            loads.from_pretrained(tmp_path)


def test_newer_version_with_an_unknown_setting_of_a_part_is_refused(tmp_path):
    TrOCREncoderDecoderConfig(vision_config=VisionTransformerConfig()).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, hf_vlm_version="99.1", vision_config=stored["vision_config"] | {"spectral_norm": True})
    with pytest.raises(ValueError, match=r"got `vision_config\.spectral_norm`"):
        AutoConfig.from_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version="99.1", vision_config={"model_type": "hf_vlm_perceiver"})
    with pytest.raises(ValueError, match=r"got `vision_config\.model_type`"):
        AutoConfig.from_pretrained(tmp_path)


def test_newer_version_with_a_value_that_does_not_fit_is_told(tmp_path):
    VisionTransformerConfig().save_pretrained(tmp_path)
    change(tmp_path, num_hidden_layers="many")
    with pytest.raises(StrictDataclassError):
        AutoConfig.from_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version="99.1")
    with pytest.raises(ValueError, match="num_hidden_layers.*hf-vlm 99.1 wrote it"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", [None, hf_vlm.__version__, "0.0.1"])
def test_other_versions_may_have_settings_of_the_users_own(version, tmp_path):
    VisionTransformerConfig().save_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version=version, my_note="from the archive")
    assert AutoConfig.from_pretrained(tmp_path).my_note == "from the archive"


def test_missing_weights_of_a_newer_version_are_told_as_such(tmp_path):
    VisionTransformerModel(VisionTransformerConfig(num_hidden_layers=1)).save_pretrained(tmp_path)
    change(tmp_path, hf_vlm_version="99.1", num_hidden_layers=2)
    told = "got none for .*hf-vlm 99.1 wrote it, this is " + re.escape(hf_vlm.__version__)
    with pytest.raises(ValueError, match=told):
        VisionTransformerForImageClassification.from_pretrained(tmp_path)


def test_parts_tell_no_folder_of_this_machine(tmp_path):
    VisionTransformerModel(VisionTransformerConfig(num_hidden_layers=1)).save_pretrained(tmp_path / "vision")
    vision = AutoConfig.from_pretrained(tmp_path / "vision")
    assert vision.name_or_path == str(tmp_path / "vision")
    TrOCREncoderDecoderConfig(vision_config=vision).save_pretrained(tmp_path / "reader")
    assert str(tmp_path) not in (tmp_path / "reader" / "config.json").read_text()
