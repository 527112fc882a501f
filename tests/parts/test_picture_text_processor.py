"""What processors of pictures and texts share: prompts. Oracles: literal token lists, and the loss of TrOCR over them."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ViTImageProcessor

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.picture_text_processor import check_vocabulary
from tests.models.trocr.tiny_models import tiny_reader

# ids: " " 4, "?" 5, a 6, b 7, c 8 behind <pad> 0, <s> 1, </s> 2, <unk> 3
ALPHABET = "abc ?"


def processor_of(processor_class=TrOCREncoderDecoderProcessor, **settings):
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return processor_class(image_processor, build_character_tokenizer(alphabet=ALPHABET), **settings)


def test_prompt_and_text_are_read_one_place_ahead_of_the_labels():
    batch = processor_of()(text=["bc", "a"], prompt=["a?", "cab?"])
    assert batch["decoder_input_ids"].tolist() == [[1, 6, 5, 2, 7, 8, 0], [1, 8, 6, 7, 5, 2, 6]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 7, 8, 2, -100], [-100, -100, -100, -100, -100, 6, 2]]
    assert batch["decoder_input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_prompt_alone_is_what_generation_goes_on_from():
    processor = processor_of()
    batch = processor(images=[Image.new("RGB", (9, 9))] * 2, prompt=["a?", "b?"])
    assert set(batch) == {"pixel_values", "decoder_input_ids"}
    assert batch["decoder_input_ids"].tolist() == [[1, 6, 5, 2], [1, 7, 5, 2]]
    assert processor(prompt="a?")["decoder_input_ids"].tolist() == [[1, 6, 5, 2]]


def test_prompts_of_unequal_length_are_refused_for_generation_alone():
    processor = processor_of()
    with pytest.raises(ValueError, match="of one length in tokens, got 4 to 6. Put questions of equal length"):
        processor(prompt=["a?", "cab?"])
    assert processor(prompt=["a?", "cab?"], return_tensors=None)["decoder_input_ids"] == [
        [1, 6, 5, 2],
        [1, 8, 6, 7, 5, 2],
    ]


def test_without_tensors_nothing_is_padded():
    batch = processor_of()(text=["bc", ""], prompt=["a?", ""], return_tensors=None)
    assert batch["decoder_input_ids"] == [[1, 6, 5, 2, 7, 8], [1, 2]]
    assert batch["labels"] == [[-100, -100, -100, 7, 8, 2], [-100, 2]]


def test_without_a_prompt_texts_are_as_ever():
    batch = processor_of()(text=["bc", "a"])
    assert set(batch) == {"labels"} and batch["labels"].tolist() == [[7, 8, 2], [6, 2, -100]]


def test_length_limit_counts_the_prompt():
    processor = processor_of(max_label_length=6)
    assert processor(text="bc", prompt="a?")["labels"].shape == (1, 6)
    with pytest.raises(ValueError, match="at most 6 tokens, got 7 for 'bcc'"):
        processor(text="bcc", prompt="a?")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ["a", "b"], "prompt": ["a?"]}, "`prompt` must have one entry for each of the texts, got 1 for 2"),
        (
            {"prompt": ["жж"]},
            "A prompt must hold characters that the tokenizer can write, got only unknown ones in 'жж'",
        ),
        ({"text": ["жж"], "prompt": ["a?"]}, "A label must hold characters"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        processor_of()(**inputs)


def test_number_of_prompts_is_that_of_pictures():
    with pytest.raises(ValueError, match="got 1 for 2 pictures"):
        processor_of()(images=[Image.new("RGB", (9, 9))] * 2, prompt=["a?"])


def test_captioner_takes_no_prompt():
    processor = processor_of(CnnLstmProcessor)
    assert "decoder_input_ids" not in processor.model_input_names
    with pytest.raises(
        ValueError, match="`prompt` is for models that go on from a question, got it with `CnnLstmProcessor`"
    ):
        processor(text="a", prompt="b?")


def test_tokenizer_without_start_token_is_refused_for_prompts():
    processor = processor_of()
    processor.tokenizer.bos_token = processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="start and end token, got None and None"):
        processor(prompt="a?")


def test_loss_of_a_prompted_batch_is_that_of_the_answers_after_their_questions():
    model = tiny_reader(vision={"num_channels": 3, "image_size": 16}, text={"vocab_size": 9})
    processor = processor_of()
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "green")]
    batch = processor(images=pictures, text=["bc", "a"], prompt=["a?", "cab?"])
    nats = []
    for row, tokens in enumerate(([1, 6, 5, 2, 7, 8, 2], [1, 8, 6, 7, 5, 2, 6, 2])):
        logits = model(batch["pixel_values"][row : row + 1], decoder_input_ids=torch.tensor([tokens[:-1]])).logits[0]
        first = tokens.index(2) + 1  # of the answer
        nats += [F.cross_entropy(logits[place - 1], torch.tensor(tokens[place])) for place in range(first, len(tokens))]
    assert len(nats) == 5
    torch.testing.assert_close(model(**batch).loss, torch.stack(nats).mean())


def test_tokenizer_larger_than_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="got 9 tokens for 8 rows"):
        check_vocabulary(tiny_reader(text={"vocab_size": 8}), processor_of().tokenizer)
