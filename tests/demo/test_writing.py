"""Captions and answers on the page are those of the model."""

import pytest
import torch
from PIL import Image

from hf_vlm import CnnLstmForConditionalGeneration, CnnLstmProcessor
from hf_vlm.demo.folders import look_at_folders
from hf_vlm.demo.loaded_models import load_model
from hf_vlm.demo.writing import answer_question, write_captions
from tests.demo.tiny_folders import drawn_line, model_folders  # noqa: F401 (a fixture)

# ruff: noqa: F811 (a fixture's name is an argument's name)


def test_captions_are_those_of_the_models_search(model_folders):
    folder = model_folders["caption"]
    picture = Image.new("RGB", (40, 30), (200, 30, 90))
    model = CnnLstmForConditionalGeneration.from_pretrained(folder).eval()
    processor = CnnLstmProcessor.from_pretrained(folder)
    inputs = processor(images=[picture])

    def said(**settings):
        return [
            text.strip()
            for text in processor.batch_decode(model.generate(**inputs, **settings), skip_special_tokens=True)
        ]

    pipe = load_model(*look_at_folders([folder])).use
    assert write_captions(pipe, picture) == said()
    assert write_captions(pipe, picture, 3) == said(num_beams=3, num_return_sequences=3)


def test_answers_come_with_their_probability_the_likeliest_first(model_folders):
    loaded = load_model(*look_at_folders([model_folders["ask"]]))
    picture = drawn_line("a short line")
    answers = answer_question(loaded.use, picture, "what?", 3)
    shares = [share for _, share in answers]
    assert 1 < len(answers) == len({text for text, _ in answers}) <= 3 and shares == sorted(shares, reverse=True)
    text, share = answers[0]
    processor, model = loaded.processor, loaded.model
    inputs = processor(images=[picture], prompt=["what?"])
    said = processor.tokenizer(text, add_special_tokens=False)["input_ids"] + [processor.end_token_id]
    before = inputs["decoder_input_ids"]
    inputs["decoder_input_ids"] = torch.cat([before, torch.tensor([said[:-1]], dtype=before.dtype)], dim=1)
    with torch.no_grad():
        log_probs = model(**inputs).logits[0, before.shape[1] - 1 :].log_softmax(-1)
    expected = sum(log_probs[at, token].item() for at, token in enumerate(said))
    assert share == pytest.approx(2.718281828**expected, rel=1e-3)


def test_empty_question_is_refused(model_folders):
    pipe = load_model(*look_at_folders([model_folders["ask"]])).use
    with pytest.raises(ValueError, match="question is wanted"):
        answer_question(pipe, drawn_line("x"), "  ")
