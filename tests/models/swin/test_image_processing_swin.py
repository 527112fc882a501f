import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SwinConfig, ViTImageProcessor

from hf_vlm import SwinTransformerConfig, SwinTransformerImageProcessor, SwinTransformerImageProcessorPil

PROCESSORS = [SwinTransformerImageProcessor, SwinTransformerImageProcessorPil]


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_pixels_equal_those_of_the_home_processor() -> None:
    # Published folders name a ViT processor with ImageNet's mean and deviation.
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    theirs = ViTImageProcessor(**settings)(picture(), return_tensors="pt").pixel_values
    ours = SwinTransformerImageProcessor()(picture(), return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs)
    assert SwinConfig().image_size == 224 and ours.shape == (1, 3, 224, 224)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_pictures_of_every_mode_are_shown_as_a_viewer_does(processor: type) -> None:
    through = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    white = processor()(through, return_tensors="pt").pixel_values
    torch.testing.assert_close(white, processor()(Image.new("RGB", (8, 8), "white"), return_tensors="pt").pixel_values)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("wrap", [np.asarray, torch.tensor])
def test_pixels_that_are_no_numbers_are_refused(processor: type, wrap) -> None:
    pixels = np.zeros((3, 16, 16), np.float32)
    pixels[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite numbers, got NaN or infinity"):
        processor()(wrap(pixels), do_rescale=False, return_tensors="pt")


def test_processor_is_found_by_the_models_folder(tmp_path) -> None:
    SwinTransformerConfig().save_pretrained(tmp_path)
    SwinTransformerImageProcessor(size={"height": 48, "width": 32}).save_pretrained(tmp_path)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is SwinTransformerImageProcessor and reloaded.size["height"] == 48
