"""`pipeline("text-recognition")`: what it takes, what it gives, and that a batch is read as its pictures alone."""

import base64
import http.server
import math
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, ViTConfig, pipeline

import hf_vlm
from hf_vlm import TextRecognitionPipeline, TrOCREncoderDecoderForConditionalGeneration, TrOCREncoderDecoderProcessor


@pytest.fixture(scope="module")
def reader(reader_folder):
    return pipeline("text-recognition", model=reader_folder)


def texts_of(results):
    return [result["generated_text"] for (result,) in results]


def assert_same(found, wanted):
    """The same texts and words, confidences equal up to rounding."""
    for (one,), (other,) in zip(found, wanted, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert [word["word"] for word in one["words"]] == [word["word"] for word in other["words"]]
        confidences = [word["confidence"] for word in other["words"]]
        assert [word["confidence"] for word in one["words"]] == pytest.approx(confidences, rel=1e-4)


def brute_force(reader_folder, picture, **search):
    """Text, score and words of one picture, its tokens scored one by one without a cache."""
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(reader_folder)
    processor = TrOCREncoderDecoderProcessor.from_pretrained(reader_folder)
    inputs = processor(images=[picture])
    sequence = model.generate(**inputs, **search)
    log_probs = []
    for place in range(1, sequence.shape[1]):
        logits = model(**inputs, decoder_input_ids=sequence[:, :place], use_cache=False).logits[0, -1]
        log_probs.append(logits.log_softmax(dim=-1)[sequence[0, place]].item())
    words, word, log = [], "", 0.0
    for token, log_prob in zip(sequence[0, 1:].tolist(), log_probs, strict=True):
        character = processor.decode([token], skip_special_tokens=True)
        if word and character in ("", " "):  # the word is over
            words.append({"word": word, "confidence": math.exp(log)})
            word, log = "", 0.0
        if character:
            word, log = word + character.strip(), log + log_prob  # white space counts to the word behind it
    if word:
        words.append({"word": word, "confidence": math.exp(log)})
    text = processor.decode(sequence[0], skip_special_tokens=True).strip()
    return {"generated_text": text, "score": math.exp(sum(log_probs) / len(log_probs)), "words": words}


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 3, "max_new_tokens": 5}])
def test_confidences_are_the_models_probabilities(reader, reader_folder, line_pictures, search):
    assert_same(reader(line_pictures, **search), [[brute_force(reader_folder, p, **search)] for p in line_pictures])


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_batch_is_read_as_its_pictures_alone(reader, line_pictures, batch_size, num_beams):
    singles = [reader(picture, num_beams=num_beams) for picture in line_pictures]
    assert_same(reader(line_pictures, batch_size=batch_size, num_beams=num_beams), singles)


def test_one_picture_gives_one_list_of_one_result(reader, line_pictures):
    (result,) = reader(line_pictures[0])
    assert set(result) == {"generated_text", "score", "words"}
    assert " ".join(word["word"] for word in result["words"]) == " ".join(result["generated_text"].split())


def test_paths_urls_bytes_and_pictures_are_read_alike(reader, line_pictures, line_files):
    data = Path(line_files[2]).read_bytes()
    sources = [
        line_pictures[2],
        Image.open(line_files[2]),
        line_files[2],
        Path(line_files[2]),
        data,
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ]
    wanted = reader(line_pictures[2])
    for source in sources:
        assert reader(source) == wanted
    assert_same(reader(sources, batch_size=3), [wanted] * len(sources))


def test_http_url_is_fetched(reader, line_pictures, line_files):
    class Server(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=Path(line_files[0]).parent)

        def log_message(self, *arguments): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert reader(f"{address}/3.png") == reader(line_pictures[3])
        with pytest.raises(ValueError, match=f"{address}/missing.png"):
            reader(f"{address}/missing.png")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lists_tuples_generators_iterators_and_data_sets_are_read_alike(reader, line_pictures, batch_size):
    wanted = [reader(picture) for picture in line_pictures]
    for many in (line_pictures, tuple(line_pictures)):
        results = reader(many, batch_size=batch_size)
        assert isinstance(results, list)
        assert_same(results, wanted)
    for stream in ((picture for picture in line_pictures), iter(line_pictures), Pictures(line_pictures)):
        results = reader(stream, batch_size=batch_size)
        assert not isinstance(results, list)
        assert_same(list(results), wanted)


def test_generator_is_read_as_it_is_asked_for(reader, line_pictures):
    taken = []

    def pictures():
        for number, picture in enumerate(line_pictures):
            taken.append(number)
            yield picture

    results = iter(reader(pictures()))
    assert len(taken) <= 1
    next(results)
    assert len(taken) < len(line_pictures)


def test_nothing_to_read_gives_nothing(reader):
    assert reader([]) == []
    assert list(reader(picture for picture in [])) == []


def test_settings_at_construction_hold_for_every_call_and_a_call_can_change_them(reader, reader_folder, line_pictures):
    beam = pipeline("text-recognition", model=reader_folder, num_beams=3, max_new_tokens=6, batch_size=3)
    assert_same(beam(line_pictures), reader(line_pictures, num_beams=3, max_new_tokens=6))
    assert_same(beam(line_pictures, num_beams=1), reader(line_pictures, max_new_tokens=6))
    assert texts_of(beam(line_pictures)) != texts_of(beam(line_pictures, num_beams=1))
    config = GenerationConfig(num_beams=3, max_new_tokens=4)
    assert_same(beam(line_pictures, generation_config=config), reader(line_pictures, num_beams=3, max_new_tokens=4))
    assert_same(reader(line_pictures, generate_kwargs={"num_beams": 3}), reader(line_pictures, num_beams=3))


def test_abstaining_empties_the_text_and_says_so(reader, reader_folder, line_pictures):
    read = [result for (result,) in reader(line_pictures)]
    scores = sorted(result["score"] for result in read)
    threshold = (scores[2] + scores[3]) / 2  # other batches move a score by some 1e-8
    careful = pipeline("text-recognition", model=reader_folder, abstain_below=threshold)
    for results in (reader(line_pictures, abstain_below=threshold, batch_size=2), careful(line_pictures)):
        for (result,), before in zip(results, read, strict=True):
            assert result["abstained"] == (before["score"] < threshold)
            assert result["generated_text"] == ("" if result["abstained"] else before["generated_text"])
            assert [word["word"] for word in result["words"]] == [word["word"] for word in before["words"]]
        assert sum(result["abstained"] for (result,) in results) == 3
    assert "abstained" not in careful(line_pictures[0], abstain_below=None)[0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_bad_picture_is_named(reader, line_files, damaged_picture, tmp_path, batch_size):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for bad in (damaged_picture, str(text)):
        with pytest.raises(ValueError, match=bad):
            reader([line_files[0], bad, line_files[1]], batch_size=batch_size)
    with pytest.raises(FileNotFoundError, match="no_such_line.png"):
        reader([line_files[0], "no_such_line.png"], batch_size=batch_size)
    with pytest.raises(TypeError, match="got int"):
        reader([line_files[0], 7], batch_size=batch_size)


def test_damaged_picture_that_was_opened_before_is_named(reader, damaged_picture):
    with pytest.raises(ValueError, match=damaged_picture):
        reader(Image.open(damaged_picture))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_are_read(reader, line_pictures, mode):
    grey = line_pictures[2]
    picture = (
        grey.convert(mode) if mode != "I;16" else Image.frombytes(mode, grey.size, grey.convert("I").tobytes()[::2])
    )
    (result,) = reader(picture)
    assert 0 < result["score"] <= 1


def test_tiniest_and_widest_pictures_are_read(reader):
    for size in ((1, 1), (20000, 30), (3, 400)):
        (result,) = reader(Image.new("RGB", size, "white"))
        assert 0 < result["score"] <= 1


def test_reloads_from_its_own_folder(reader, line_pictures, tmp_path):
    reader.save_pretrained(tmp_path)
    again = pipeline("text-recognition", model=str(tmp_path))  # no `trust_remote_code`
    assert again(line_pictures) == reader(line_pictures)
    assert type(again.processor) is TrOCREncoderDecoderProcessor
    assert again.processor.max_label_length == reader.processor.max_label_length == 20
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()


def test_model_and_processor_can_be_given_loaded(reader, reader_folder, line_pictures):
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(reader_folder)
    processor = TrOCREncoderDecoderProcessor.from_pretrained(reader_folder)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    wanted = reader(line_pictures)
    assert pipeline("text-recognition", model=model, processor=processor)(line_pictures) == wanted
    assert pipeline("text-recognition", model=model, **parts)(line_pictures) == wanted
    assert TextRecognitionPipeline(model, processor=processor)(line_pictures) == wanted


def test_model_without_processor_is_refused(reader_folder):
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(reader_folder)
    with pytest.raises(ValueError, match="A processor for .* is wanted, got none"):
        pipeline("text-recognition", model=model)


def test_model_that_knows_no_confidence_is_refused(reader):
    vit = hf_vlm.VisionTransformerModel(hf_vlm.VisionTransformerConfig())
    with pytest.raises(ValueError, match="A model with `recognize` is wanted, got `VisionTransformerModel`"):
        TextRecognitionPipeline(vit, processor=reader.processor)


def test_misspelt_setting_is_refused_with_the_nearest(reader, reader_folder, line_pictures):
    for call in (
        lambda: reader(line_pictures[0], num_beam=3),
        lambda: pipeline("text-recognition", model=reader_folder, num_beam=3),
    ):
        with pytest.raises(TypeError, match="got `num_beam`. Did you mean `num_beams`"):
            call()
    with pytest.raises(TypeError, match="Did you mean `abstain_below`"):
        reader(line_pictures[0], abstain_bellow=0.3)
    with pytest.raises(ValueError, match="got 90"):
        reader(line_pictures[0], abstain_below=90)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folder_runs_in_float32_on_a_cpu_unless_asked(
    reader_folder, reader, line_pictures, tmp_path, dtype
):
    reader.processor.save_pretrained(tmp_path)
    TrOCREncoderDecoderForConditionalGeneration.from_pretrained(reader_folder).to(dtype).save_pretrained(tmp_path)
    assert pipeline("text-recognition", model=str(tmp_path), device="cpu").dtype == torch.float32
    asked = pipeline("text-recognition", model=str(tmp_path), device="cpu", dtype=dtype)
    assert asked.dtype == dtype
    (result,) = asked(line_pictures[0])
    assert 0 < result["score"] <= 1


def test_stock_trocr_folder_is_read_with_confidences(line_pictures, stock_trocr):
    folder, model, processor = stock_trocr
    reader = pipeline("text-recognition", model=folder)
    assert type(reader.model) is TrOCREncoderDecoderForConditionalGeneration
    for picture in line_pictures[:2]:
        pixel_values = processor(images=picture.convert("RGB"), return_tensors="pt").pixel_values
        sequence = model.generate(pixel_values, max_new_tokens=6)
        logits = model(pixel_values=pixel_values, decoder_input_ids=sequence[:, :-1]).logits
        log_probs = logits.log_softmax(-1).gather(2, sequence[:, 1:, None])
        (result,) = reader(picture, max_new_tokens=6)
        assert result["generated_text"] == processor.decode(sequence[0], skip_special_tokens=True).strip()
        assert result["score"] == pytest.approx(log_probs.mean().exp().item(), rel=1e-4)


def test_folder_of_a_model_that_is_no_reader_is_refused(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads folders of model type `hf_vlm_trocr` .* got `vit`"):
        pipeline("text-recognition", model=str(tmp_path))
