"""`pipeline("image-captioning")`."""

import pytest
from transformers import pipeline

from hf_vlm import ImageCaptioningPipeline, ImageToTextPipeline


def test_captions_are_those_of_the_model_several_if_asked(reader_folder, line_pictures):
    captioner = pipeline("image-captioning", model=reader_folder, num_beams=3)
    assert type(captioner) is ImageCaptioningPipeline
    assert captioner.task == "image-captioning"
    reader = pipeline("image-to-text", model=reader_folder, pipeline_class=ImageToTextPipeline)
    for number in (1, 3):
        captions = captioner(line_pictures, num_return_sequences=number, batch_size=4)
        assert captions == reader(line_pictures, num_beams=3, num_return_sequences=number)
        assert all(len(caption) == number for caption in captions)
        assert all(set(entry) == {"generated_text"} for caption in captions for entry in caption)


def test_bad_picture_is_named(reader_folder, damaged_picture):
    with pytest.raises(ValueError, match=damaged_picture):
        pipeline("image-captioning", model=reader_folder)([damaged_picture])
