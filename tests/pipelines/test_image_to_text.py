"""`ImageToTextPipeline`, asked for by class, on our models and on stock ones."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, pipeline

import hf_vlm
from hf_vlm import ImageToTextPipeline


@pytest.fixture(scope="module")
def reader(reader_folder):
    return pipeline("image-to-text", model=reader_folder, pipeline_class=ImageToTextPipeline)


def texts_of_generate(folder, processor, pictures, **search):
    """What the model itself generates for each picture alone."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    texts = []
    for picture in pictures:
        pixels = processor(images=[picture.convert("RGB")], return_tensors="pt")
        texts.append([text.strip() for text in processor.batch_decode(model.generate(**pixels, **search), True)])
    return texts


def texts(results):
    return [[entry["generated_text"] for entry in result] for result in results]


def test_task_name_of_old_works_with_the_class(reader):
    assert type(reader) is ImageToTextPipeline
    assert type(reader.model) is hf_vlm.TrOCREncoderDecoderForConditionalGeneration


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_texts_are_those_that_the_model_generates(reader, reader_folder, line_pictures, search, batch_size):
    results = reader(line_pictures, batch_size=batch_size, **search)
    assert texts(results) == texts_of_generate(reader_folder, reader.processor, line_pictures, **search)
    assert all(set(entry) == {"generated_text"} for result in results for entry in result)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stock_vision_encoder_decoder_is_served(stock_trocr, line_pictures, batch_size):
    folder, model, processor = stock_trocr
    reader = pipeline("image-to-text", model=folder, pipeline_class=ImageToTextPipeline)
    assert type(reader.model) is type(model)
    results = reader(line_pictures, max_new_tokens=8, batch_size=batch_size)
    assert texts(results) == texts_of_generate(folder, processor, line_pictures, max_new_tokens=8)
    assert len({text for (text,) in texts(results)}) > 1


def test_folder_with_tokenizer_and_image_processor_but_no_processor_is_served(
    stock_trocr, folder_without_processor, line_pictures, tmp_path
):
    reader = pipeline(
        "image-to-text", model=folder_without_processor, pipeline_class=ImageToTextPipeline, max_new_tokens=8
    )
    assert reader.processor is None
    folder, _, processor = stock_trocr
    wanted = texts_of_generate(folder, processor, line_pictures, max_new_tokens=8)
    assert texts(reader(line_pictures, batch_size=2)) == wanted
    reader.save_pretrained(tmp_path)
    again = pipeline("image-to-text", model=str(tmp_path), pipeline_class=ImageToTextPipeline)
    assert again.processor is None
    assert texts(again(line_pictures, max_new_tokens=8)) == wanted


def test_other_picture_sizes_are_read_when_asked(stock_trocr, line_pictures):
    folder, model, processor = stock_trocr
    large = type(processor.image_processor)(size={"height": 64, "width": 64})
    reader = pipeline(
        "image-to-text",
        model=folder,
        tokenizer=processor.tokenizer,
        image_processor=large,
        processor=type(processor)(large, processor.tokenizer),
        pipeline_class=ImageToTextPipeline,
    )
    with pytest.raises(ValueError, match="64"):
        reader(line_pictures[0])
    (result,) = reader(line_pictures[0], interpolate_pos_encoding=True, max_new_tokens=8)
    pixels = large(line_pictures[0].convert("RGB"), return_tensors="pt").pixel_values
    ids = model.generate(pixels, interpolate_pos_encoding=True, max_new_tokens=8)
    assert result["generated_text"] == processor.decode(ids[0], skip_special_tokens=True).strip()


def test_model_keeps_its_weights_type_when_given_loaded(reader_folder, reader, line_pictures):
    model = AutoModelForImageTextToText.from_pretrained(reader_folder, dtype=torch.bfloat16)
    half = ImageToTextPipeline(model, processor=reader.processor, device="cpu")
    assert half.dtype == torch.bfloat16
    assert len(half(line_pictures[:2], batch_size=2)) == 2
