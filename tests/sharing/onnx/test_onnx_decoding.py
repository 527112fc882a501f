"""Rules, searches and the CTC head's word in numpy, against transformers and torch."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as processors

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.sharing.onnx.decoding import (
    TokenRules,
    Writing,
    best_path,
    decode_by_beams,
    decode_greedily,
    log_softmax,
    spelled_log_prob,
)
from tests.models.trocr.tiny_models import TEXT_DECODER
from tests.sharing.onnx.tiny_onnx import parting_ends, random_weights

PAD, START, END = 0, 1, 2


class WholeTextWriter:
    """A PyTorch decoder that keeps no cache: every step reads the whole text anew."""

    def __init__(self, model):
        self.model, self.text = model, None

    def step(self, token_ids):
        ids = torch.from_numpy(token_ids)
        self.text = ids if self.text is None else torch.cat([self.text, ids], dim=1)
        with torch.no_grad():
            return self.model(input_ids=self.text, use_cache=False).logits[:, -1].numpy()

    def keep(self, rows):
        self.text = self.text[torch.from_numpy(rows)] if self.text is not None else None


@pytest.fixture(scope="module")
def decoder():
    """A language model that ends its texts early and late."""
    model = TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextConfig(**TEXT_DECODER, tie_word_embeddings=False))
    return random_weights(model)


def prompts():
    return torch.tensor(
        [[START, 5, 9], [START, 31, 7], [START, 12, 12], [START, 8, 30], [START, 14, 6], [START, 22, 33]]
    )


@pytest.mark.parametrize("length", [3, 4, 9])
@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"repetition_penalty": 1.7}, lambda: processors.RepetitionPenaltyLogitsProcessor(1.7)),
        ({"no_repeat_ngram_size": 1}, lambda: processors.NoRepeatNGramLogitsProcessor(1)),
        ({"no_repeat_ngram_size": 2}, lambda: processors.NoRepeatNGramLogitsProcessor(2)),
        ({"min_length": 4}, lambda: processors.MinLengthLogitsProcessor(4, [END, 7])),
        ({"min_new_tokens": 2}, lambda: processors.MinNewTokensLengthLogitsProcessor(3, 2, [END, 7])),
        ({"forced_eos_token_id": END}, lambda: processors.ForcedEOSTokenLogitsProcessor(10, END)),
        ({"suppress_tokens": [4, 6]}, lambda: processors.SuppressTokensLogitsProcessor([4, 6])),
        ({"begin_suppress_tokens": [4]}, lambda: processors.SuppressTokensAtBeginLogitsProcessor([4], 3)),
    ],
)
def test_a_rule_changes_scores_as_transformers_does(settings, processor, length):
    generator = np.random.default_rng(length)
    written = generator.integers(0, 8, (5, length))
    scores = generator.normal(size=(5, 20)).astype(np.float32)
    rules = TokenRules({"eos_token_ids": [END, 7], **settings}, prompt_length=3, max_length=10)
    wanted = LogitsProcessorList([processor()])(torch.from_numpy(written), torch.from_numpy(scores))
    np.testing.assert_array_equal(rules(written, scores, np.arange(5)), wanted.numpy())
    assert not rules.is_empty


def test_a_forced_first_token_moves_the_rule_for_beginnings_one_on():
    rules = TokenRules({"forced_bos_token_id": 5, "begin_suppress_tokens": [4]}, prompt_length=1, max_length=9)
    scores = np.ones((1, 8), dtype=np.float32)
    assert rules(np.array([[START]]), scores, np.arange(1)).argmax() == 5
    assert rules(np.array([[START, 5]]), scores, np.arange(1))[0, 4] == -np.inf


def test_repetition_in_padding_is_not_punished():
    rules = TokenRules({"repetition_penalty": 2.0}, prompt_length=3, max_length=9, padding=np.array([2, 0]))
    scores = rules(np.array([[3, 3, 4], [3, 3, 4]]), np.ones((2, 6), dtype=np.float32), np.arange(2))
    assert scores[:, 3].tolist() == [1.0, 0.5]


def test_saved_rules_without_effect_are_empty():
    settings = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "suppress_tokens": None}
    assert TokenRules(settings, prompt_length=1, max_length=9).is_empty


@pytest.fixture(scope="module")
def ends(decoder):
    """Tokens that end the decoder's texts at different places."""
    free = decoder.generate(prompts(), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=PAD)
    return [*parting_ends(free, 3), 39]


def test_greedy_search_writes_what_generate_writes(decoder, ends):
    ids = prompts()
    wanted = decoder.generate(
        ids, do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=PAD, no_repeat_ngram_size=3
    )
    rules = TokenRules({"eos_token_ids": ends, "no_repeat_ngram_size": 3}, prompt_length=3, max_length=15)
    got, log_probs = decode_greedily(WholeTextWriter(decoder), ids.numpy(), rules, PAD)
    np.testing.assert_array_equal(got, wanted.numpy())
    lengths = (wanted[:, 3:] != PAD).sum(dim=1)
    assert len(set(lengths.tolist())) > 1  # a row ends before the others
    with torch.no_grad():
        told = decoder(input_ids=wanted[:1]).logits.log_softmax(-1)[0, 2:-1]
    of_first = told.gather(1, wanted[0, 3:, None])[: lengths[0], 0]
    np.testing.assert_allclose(log_probs[0, : lengths[0]], of_first, rtol=1e-4, atol=1e-5)


class ScriptedWriter:
    """Wants to write what it is given, and knows how many rows it is asked for."""

    def __init__(self, texts):
        self.texts, self.place, self.num_rows = np.array(texts), 0, []

    def step(self, token_ids):
        assert len(token_ids) == len(self.texts)
        self.num_rows.append(len(self.texts))
        self.place += 1
        return np.eye(10, dtype=np.float32)[self.texts[:, self.place - 1]]

    def keep(self, rows):
        self.texts = self.texts[rows]


def test_an_ended_row_is_padded_and_leaves_with_the_next_ones():
    writer = ScriptedWriter([[5, END, 7, 7], [6, 6, 6, 6], [END, 7, 7, 7], [8, 8, END, 7], [9, 9, 9, END]])
    rules = TokenRules({"eos_token_ids": [END]}, prompt_length=1, max_length=5)
    got, _ = decode_greedily(writer, np.full((5, 1), START), rules, pad_id=3)
    assert got[:, 1:].tolist() == [[5, END, 3, 3], [6, 6, 6, 6], [END, 3, 3, 3], [8, 8, END, 3], [9, 9, 9, END]]
    assert writer.num_rows == [5, 5, 3, 2]  # one row alone is not taken out


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5, -1.0])
def test_beam_search_writes_what_generate_writes(decoder, early_stopping, length_penalty):
    ids = prompts()
    ends = [6, 7, 10, 13, 22, 33, 35]  # so many that several beams end at once
    wanted = decoder.generate(
        ids,
        num_beams=3,
        do_sample=False,
        max_new_tokens=9,
        eos_token_id=ends,
        pad_token_id=3,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    rules = TokenRules({"eos_token_ids": ends}, prompt_length=3, max_length=12)
    got = decode_by_beams(
        WholeTextWriter(decoder), ids.numpy(), rules, 3, 3, length_penalty=length_penalty, early_stopping=early_stopping
    )
    np.testing.assert_array_equal(got, wanted.numpy())


def test_settings_of_a_call_replace_saved_ones_and_unknown_ones_are_refused():
    saved = {"max_new_tokens": 5, "eos_token_ids": [END], "pad_token_id": None, "num_beams": 1}
    start = np.ones((1, 1), dtype=np.int64)
    assert Writing(saved, start, None, {"max_new_tokens": 7}, 8).max_length == 8
    assert Writing(saved, start, None, {"max_new_tokens": 70}).max_length == 71
    assert Writing(saved, start.repeat(6, axis=1), None, {}, 8).max_length == 9  # the last token is not read
    for name in ("temperature", "max_positions"):
        with pytest.raises(ValueError, match=f"are `max_new_tokens`, .*, got `{name}`"):
            Writing(saved, start, None, {name: 2}, 8)
    with pytest.raises(ValueError, match="positions for `max_new_tokens` up to 8, got 9"):
        Writing(saved, start, None, {"max_new_tokens": 9}, 8)
    for beams in (0, -1):
        with pytest.raises(ValueError, match=f"`num_beams` must be at least 1, got {beams}"):
            Writing(saved, start, None, {"num_beams": beams})


# A CTC head


def spelt(path, blank):
    """What a path says: repeated tokens once, then without blanks."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 1], [2, 2, 2], [1, 1, 2, 1]])
def test_spelled_log_prob_is_the_sum_over_all_paths(text):
    log_probs = log_softmax(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    paths = [path for path in itertools.product(range(3), repeat=5) if spelt(path, 0) == text]
    total = sum(np.exp(sum(log_probs[place, token] for place, token in enumerate(path))) for path in paths)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(spelled_log_prob(log_probs, text, 0), np.log(total), rtol=1e-5)


def test_spelled_log_prob_is_that_of_torch_for_a_blank_of_another_number():
    log_probs = log_softmax(np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32))
    text = [0, 5, 5, 1]
    wanted = -torch.nn.functional.ctc_loss(
        torch.from_numpy(log_probs)[:, None], torch.tensor(text), (9,), (4,), blank=3, reduction="sum"
    )
    np.testing.assert_allclose(spelled_log_prob(log_probs, text, 3), wanted, rtol=1e-5)


def test_best_path_drops_repetitions_then_blanks():
    path = [0, 4, 4, 0, 4, 5, 5, 0]
    assert best_path(np.eye(6, dtype=np.float32)[path], 0) == [4, 4, 5]
