import numpy as np

from hf_vlm import DVAEConfig, DVAEImageProcessor, DVAEImageProcessorPil, DVAEModel
from hf_vlm.models.dvae.image_processing_dvae import PRESETS
from tests.models.tokenizer_contract import TokenizerImagesContract, drawing


class TestDVAEImageProcessor(TokenizerImagesContract):
    model_class = DVAEModel
    config_class = DVAEConfig
    processor_classes = (DVAEImageProcessor, DVAEImageProcessorPil)


def test_presets_processor_crops_the_middle_of_256_pixels() -> None:
    for processor_class in (DVAEImageProcessor, DVAEImageProcessorPil):
        processor = processor_class(**PRESETS["dall-e"])
        for size in [(300, 200), (256, 700)]:
            assert processor(drawing(size=size), return_tensors="pt").pixel_values.shape == (1, 3, 256, 256)
        wide = drawing(size=(300, 256))
        pixel_values = processor(wide, return_tensors="pt").pixel_values
        [back] = processor.post_process(pixel_values)
        assert np.array_equal(np.array(back), np.array(wide)[:, 22:278])
