"""Joint decoding gives the likelier of two texts, each judged by a decoder and a CTC head, as brute force does."""

import copy
import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import GenerationMixin

from hf_vlm.models.trocr import greedy
from hf_vlm.models.trocr.joint_decoding import best_paths, spelled_log_probs
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from tests.model_contract import train
from tests.models.trocr.tiny_models import END, PAD, START, line_batch, tiny_config

WIDTHS = (48, 40, 36, 44, 32)
LINE = {"patch_size": (16, 4)}  # one row of places, up to twelve


@pytest.fixture(scope="module")
def pictures():
    batch = line_batch(widths=WIDTHS)
    return {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}


@pytest.fixture(scope="module")
def taught():
    """A reader both of whose judges know five lines by heart."""
    torch.manual_seed(0)
    config = tiny_config(vision=LINE, ctc_loss_weight=1.0, ctc_decoding_weight=0.5)
    model = TrOCREncoderDecoderForConditionalGeneration(config)
    train(model, line_batch(widths=WIDTHS), 150, 1e-2)
    return model.eval()


def disturbed(reader, seed, of_decoder=1.2, of_head=1.2, weight=0.5):
    """A copy whose judges make mistakes, and other ones."""
    reader = copy.deepcopy(reader)
    reader.config.ctc_decoding_weight = weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, std in ((reader.decoder.model.layers, of_decoder), (reader.ctc_head, of_head)):
            for parameter in part.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) * std * parameter.std().nan_to_num(0.1)
    return reader


def alone(reader, pictures):
    """What transformers' loop reads by the decoder alone: lists of tokens, the end token last if there is one."""
    sequences = reader.generate(
        **pictures, custom_generate=lambda model, *args, **kwargs: GenerationMixin._sample(model, *args, **kwargs)
    )
    return [ended(row) for row in sequences[:, 1:].tolist()]


def ended(row):
    return row[: row.index(END) + 1] if END in row else row


def judged(reader, pictures):
    """For each picture (draft, reading, score of draft, score of reading), step by step."""
    results = []
    for row, reading in enumerate(alone(reader, pictures)):
        one = {name: value[row : row + 1, ..., : WIDTHS[row]] for name, value in pictures.items()}
        with torch.no_grad():
            tokens = reader.encoder(**one).last_hidden_state
            spelling = reader.ctc_head(tokens).log_softmax(dim=-1)[0]  # (places, vocab_size)
            masked = spelling.clone()
            masked[:, END] = -torch.inf
            path = masked.argmax(dim=-1).tolist()
            draft = [token for token, _ in itertools.groupby(path) if token != PAD] + [END]
            scores = []
            for text in (draft, reading):
                ids = torch.tensor([[START, *text]])
                logits = reader(encoder_outputs=(tokens, None), decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)
                by_decoder = logits[0].gather(1, ids[0, 1:, None]).sum()
                label = torch.tensor([token for token in text if token != END])
                by_head = -torch.nn.functional.ctc_loss(
                    spelling[:, None], label[None], (len(spelling),), (len(label),), blank=PAD, reduction="sum"
                )
                weight = reader.config.ctc_decoding_weight
                scores.append(float((1 - weight) * by_decoder + weight * by_head))
        results.append((draft, reading, *scores))
    return results


def test_the_likelier_of_draft_and_reading_is_given(taught, pictures):
    taken = {"draft": 0, "reading": 0, "both": 0}
    for weight, seed in itertools.product((0.3, 0.5, 0.95), range(6)):
        reader = disturbed(taught, seed, weight=weight)
        found = [ended(row) for row in reader.generate(**pictures)[:, 1:].tolist()]
        for text, (draft, reading, of_draft, of_reading) in zip(found, judged(reader, pictures), strict=True):
            if abs(of_draft - of_reading) > 1e-3 or draft == reading:
                assert text == (draft if of_draft > of_reading else reading)
                taken["both" if draft == reading else "draft" if of_draft > of_reading else "reading"] += 1
    assert all(taken.values()), taken  # every case was there


def test_texts_that_the_decoder_would_write_too_are_not_written_twice(taught, pictures, monkeypatch):
    wanted = alone(taught, pictures)
    monkeypatch.setattr(TrOCREncoderDecoderForCausalLM, "next_logits", None)  # a token at a time
    monkeypatch.setattr(GenerationMixin, "_sample", None)
    assert [ended(row) for row in taught.generate(**pictures)[:, 1:].tolist()] == wanted


@pytest.mark.parametrize("as_if_recorded", [False, True])
def test_batch_is_read_as_its_pictures_alone_with_confidences(taught, pictures, as_if_recorded, monkeypatch):
    reader = disturbed(taught, 3)
    if as_if_recorded:
        monkeypatch.setattr(greedy, "can_be_recorded", lambda decoder, tokens: True)
        monkeypatch.setattr("hf_vlm.models.trocr.joint_decoding.can_be_recorded", lambda decoder, tokens: True)
    told = greedy.TokenLogProbs()
    sequences = reader.generate(**pictures, stopping_criteria=[told])
    assert told.log_probs.shape == sequences[:, 1:].shape
    with torch.no_grad():
        tokens = reader.encoder(**pictures)
        logits = reader(encoder_outputs=tokens, decoder_input_ids=sequences[:, :-1]).logits.log_softmax(dim=-1)
    wanted = logits.gather(2, sequences[:, 1:, None])[..., 0]
    for row, text in enumerate(sequences[:, 1:].tolist()):
        length = len(ended(text))
        torch.testing.assert_close(told.log_probs[row, :length], wanted[row, :length], atol=1e-4, rtol=1e-4)
        one = {name: value[row : row + 1] for name, value in pictures.items()}
        assert ended(reader.generate(**one)[0, 1:].tolist()) == ended(text)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 1}, {"max_new_tokens": 4}, {"pad_token_id": END}], ids=str)
def test_lengths_and_padding_are_as_asked(taught, pictures, settings):
    sequences = taught.generate(**pictures, **settings)
    plain = alone(taught, pictures)
    longest = settings.get("max_new_tokens", 19)
    assert sequences.shape[1] <= 1 + longest
    for row, text in zip(sequences[:, 1:].tolist(), plain, strict=True):
        assert row[: len(text)] == text[:longest]
        assert set(row[len(text) :]) <= {settings.get("pad_token_id", PAD)}


@pytest.mark.parametrize(
    "settings", [{"num_beams": 2}, {"repetition_penalty": 3.0}, {"cache_implementation": "static"}]
)
def test_other_searches_ask_the_decoder_alone(taught, pictures, settings):
    reader = disturbed(taught, 3)
    plain = copy.deepcopy(reader)
    plain.config.ctc_decoding_weight = 0
    assert torch.equal(reader.generate(**pictures, **settings), plain.generate(**pictures, **settings))


def test_evaluation_in_training_reads_as_later(taught, pictures, monkeypatch):
    """`Seq2SeqTrainer` gives `generate` the labels too, which must not send it another way."""
    reader = disturbed(taught, 3)
    wanted = reader.generate(**pictures)
    monkeypatch.setattr(GenerationMixin, "_sample", None)
    assert torch.equal(reader.generate(**pictures, labels=line_batch(widths=WIDTHS)["labels"]), wanted)


def test_best_path_drops_repeats_then_blanks():
    path = torch.tensor([[5, 5, 0, 5, 7, 7, 0, 9], [0, 0, 3, 3, 3, 4, 6, 6]])
    log_probs = torch.nn.functional.one_hot(path, 10).float()
    found = best_paths(log_probs, torch.tensor([8, 6]), blank=0)
    assert [row.tolist() for row in found] == [[5, 5, 7, 9], [3, 4]]


def test_spelling_is_summed_over_all_paths():
    torch.manual_seed(0)
    log_probs = torch.randn(1, 4, 3).log_softmax(dim=-1)
    paths = [
        path for path in itertools.product(range(3), repeat=4) if [t for t, _ in itertools.groupby(path) if t] == [1, 1]
    ]
    wanted = torch.stack([log_probs[0, range(4), path].sum() for path in paths]).logsumexp(dim=0)
    found = spelled_log_probs(log_probs, torch.tensor([4]), [torch.tensor([1, 1, 2])], torch.tensor([2]), blank=0)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    none = spelled_log_probs(log_probs, torch.tensor([2]), [torch.tensor([1, 1, 2])], torch.tensor([2]), blank=0)
    assert none.item() == -torch.inf  # two places have no room for 1, blank, 1


def test_folder_without_a_head_is_refused_where_it_is_asked(tmp_path, pictures):
    reader = TrOCREncoderDecoderForConditionalGeneration(tiny_config(vision=LINE))
    reader.save_pretrained(tmp_path)
    load = TrOCREncoderDecoderForConditionalGeneration.from_pretrained
    with pytest.raises(ValueError, match="must hold every weight .* the first `ctc_head.bias`"):
        load(tmp_path, ctc_loss_weight=1.0, ctc_decoding_weight=0.5)
    assert load(tmp_path, ctc_loss_weight=1.0).config.ctc_decoding_weight == 0
    for settings, told in (
        ({"ctc_decoding_weight": 0.5}, "wants a CTC head, got `ctc_loss_weight`=0"),
        ({"ctc_loss_weight": 1.0, "ctc_decoding_weight": 1}, r"`ctc_decoding_weight` must be in \[0, 1\), got 1"),
    ):
        with pytest.raises(StrictDataclassClassValidationError, match=told):
            tiny_config(**settings)
