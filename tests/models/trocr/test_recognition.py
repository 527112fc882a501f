"""Confidences are the model's own probabilities, whatever search chose the text, and words are words of the text."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.recognition import word_confidences
from tests.models.trocr.tiny_models import END, LINE_ENCODER, START, line_batch, tiny_config

ALPHABET = " abé"
TEXTS = ["the cat sat", "deux  étés là-bas", "naïve coöperation", " 12 € ", "Straße 7", "the the"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer(alphabet=ALPHABET)


@pytest.fixture(scope="module")
def pictures():
    """Five lines of different widths, padded."""
    batch = line_batch(widths=(48, 24, 37, 16, 40))
    return {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}


@pytest.fixture(scope="module")
def reader(tokenizer, pictures):
    """The first random reader that has something to say: four different texts, words in two, not all of them cut."""
    config = tiny_config(
        vision={"initializer_range": 0.2}, text={"initializer_range": 0.2, "vocab_size": len(tokenizer)}
    )
    for seed in range(200):
        torch.manual_seed(seed)
        reader = TrOCREncoderDecoderForConditionalGeneration(config).eval()
        ids = reader.generate(**pictures)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if (
            ids[0, -1] != END
            and END in ids[0]
            and len(set(texts)) > 3
            and sum(len(text.split()) > 1 for text in texts) > 1
        ):
            return reader
    raise AssertionError("No random reader reads different texts of several words.")


def step_by_step(reader, pictures, row, ids):
    """Log-probability of each of `ids`, from one pass a token over the one picture, without cache or needless padding."""
    patch_width = LINE_ENCODER["patch_size"][1]
    width = math.ceil(int(pictures["pixel_mask"][row, 0].sum()) / patch_width) * patch_width
    picture = pictures["pixel_values"][row : row + 1, :, :, :width]
    mask = pictures["pixel_mask"][row : row + 1, :, :width]
    read, log_probs = [START], []
    for token in ids:
        logits = reader(
            pixel_values=picture, pixel_mask=mask, decoder_input_ids=torch.tensor([read]), use_cache=False
        ).logits
        log_probs.append(torch.log_softmax(logits[0, -1].double(), dim=-1)[token].item())
        read.append(token)
    return log_probs


def tokens_of(reader, pictures, **settings):
    """The tokens that `generate` chose a picture, to the end token, which is the last unless the text was cut."""
    rows = []
    for ids in reader.generate(**pictures, **settings)[:, 1:].tolist():
        rows.append(ids[: ids.index(END) + 1] if END in ids else ids)
    return rows


def words_by_spaces(text, log_probs):
    """Words of a text of one token a character; a space counts to the word that it leads to."""
    words, logs, log = [], [], 0.0
    for place, character in enumerate(text):
        log += log_probs[place]
        if character == " ":
            if place and text[place - 1] != " ":
                log = log_probs[place]
        elif place and text[place - 1] != " ":
            words[-1] += character
            logs[-1] += log_probs[place]
        else:
            words.append(character)
            logs.append(log)
            log = 0.0
    return [(word, math.exp(log)) for word, log in zip(words, logs, strict=True)]


def spread(words):
    return [(word["word"], word["confidence"]) for word in words]


def assert_same_words(found, wanted):
    assert [word for word, _ in found] == [word for word, _ in wanted]
    assert [confidence for _, confidence in found] == pytest.approx([c for _, c in wanted], rel=1e-4)


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 3},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
        {"cache_implementation": "static"},
        {"max_new_tokens": 3},
    ],
    ids=["greedy", "beam", "beam with length penalty", "sampling", "penalties", "static cache", "cut short"],
)
def test_confidences_are_step_by_step_probabilities(reader, tokenizer, pictures, search):
    torch.manual_seed(0)
    chosen = tokens_of(reader, pictures, **search)
    torch.manual_seed(0)
    results = reader.recognize(**pictures, tokenizer=tokenizer, **search)
    for row, (result, ids) in enumerate(zip(results, chosen, strict=True)):
        log_probs = step_by_step(reader, pictures, row, ids)
        text = "".join(tokenizer.convert_ids_to_tokens([token for token in ids if token > 3]))
        logs = [log for token, log in zip(ids, log_probs, strict=True) if token > 3]
        assert result.text == text.strip()
        assert result.score == pytest.approx(math.exp(sum(log_probs) / len(log_probs)), rel=1e-4)
        assert_same_words(spread(result.words), words_by_spaces(text, logs))


def test_beam_search_reads_other_texts_than_greedy(reader, tokenizer, pictures):
    greedy = [result.text for result in reader.recognize(**pictures, tokenizer=tokenizer)]
    assert greedy != [result.text for result in reader.recognize(**pictures, tokenizer=tokenizer, num_beams=4)]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_batch_is_read_as_its_pictures_alone(reader, tokenizer, pictures, num_beams):
    together = reader.recognize(**pictures, tokenizer=tokenizer, num_beams=num_beams)
    for row, result in enumerate(together):
        alone = {name: value[row : row + 1] for name, value in pictures.items()}
        (single,) = reader.recognize(**alone, tokenizer=tokenizer, num_beams=num_beams)
        assert single.text == result.text
        assert single.score == pytest.approx(result.score, rel=1e-5)
        assert_same_words(spread(single.words), spread(result.words))


def test_empty_text_has_a_score_and_no_words(reader, tokenizer, pictures):
    results = reader.recognize(**pictures, tokenizer=tokenizer, max_new_tokens=1, forced_eos_token_id=END)
    for row, result in enumerate(results):
        assert (result.text, result.words) == ("", [])
        assert result.score == pytest.approx(math.exp(step_by_step(reader, pictures, row, [END])[0]), rel=1e-4)


def test_abstaining_drops_the_text_where_the_score_is_lower(reader, tokenizer, pictures):
    read = reader.recognize(**pictures, tokenizer=tokenizer)
    assert not any(result.abstained for result in read)
    threshold = sorted(result.score for result in read)[2]
    results = reader.recognize(**pictures, tokenizer=tokenizer, abstain_below=threshold)
    assert [result.abstained for result in results] == [result.score < threshold for result in read]
    assert sum(result.abstained for result in results) == 2  # a score at the threshold is no reason to abstain
    for before, after in zip(read, results, strict=True):
        assert after.text == ("" if after.abstained else before.text)
        assert (after.score, after.words) == (before.score, before.words)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 90])
def test_abstain_threshold_must_be_a_probability(reader, tokenizer, pictures, threshold):
    with pytest.raises(ValueError, match=rf"`abstain_below` must be a probability .* got {threshold}"):
        reader.recognize(**pictures, tokenizer=tokenizer, abstain_below=threshold)


def test_another_end_token_given_at_the_call_ends_the_score_too(reader, tokenizer, pictures):
    """The batch goes on after the first picture's end; what pads its row is no part of its text."""
    rows = tokens_of(reader, pictures)
    place, ids = max(enumerate(rows), key=lambda row: len(set(row[1])))
    end = ids[len(ids) // 2]
    result = reader.recognize(**pictures, tokenizer=tokenizer, eos_token_id=end)[place]
    ids = ids[: ids.index(end) + 1]
    log_probs = step_by_step(reader, pictures, place, ids)
    assert result.score == pytest.approx(math.exp(sum(log_probs) / len(log_probs)), rel=1e-4)
    assert result.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_several_texts_a_picture_are_refused(reader, tokenizer, pictures):
    several = {"num_beams": 2, "num_return_sequences": 2}
    for settings in (several, {"generation_config": GenerationConfig(**several)}):
        with pytest.raises(ValueError, match="one text a picture, got `num_return_sequences=2`"):
            reader.recognize(**pictures, tokenizer=tokenizer, **settings)


def test_generation_config_is_followed_without_a_warning(reader, tokenizer, pictures, caplog):
    wanted = reader.recognize(**pictures, tokenizer=tokenizer, num_beams=3, max_new_tokens=5)
    config = GenerationConfig(num_beams=3, max_new_tokens=5, return_dict_in_generate=True)
    assert reader.recognize(**pictures, tokenizer=tokenizer, generation_config=config) == wanted
    assert "deprecated" not in caplog.text


# Words of the tokens that tokenizers make. The oracle knows nothing of decoding: it goes by the characters of the text
# that each token covers.


def character_level():
    return build_character_tokenizer(TEXTS)


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # so few merges that many characters are two or three tokens
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sentence_piece():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def probabilities_by_offsets(tokenizer, text, probabilities):
    """Product of the probabilities of the tokens of each word, by the characters that each token covers.

    A token of white space alone counts to the word behind it; at the end of the text to none.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    words, begin = [], 0
    for word in text.split():
        end = text.index(word, begin) + len(word)
        confidence = math.prod(p for (_, last), p in zip(spans, probabilities, strict=True) if begin < last <= end)
        words.append((word, confidence))
        begin = end
    return words


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("build", [character_level, byte_level_bpe, word_piece, sentence_piece])
def test_words_are_those_of_the_text_with_their_tokens_probabilities(build, text):
    tokenizer = build()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    probabilities = [0.5 + 0.4 * math.sin(place) for place in range(len(ids))]
    found = word_confidences(tokenizer, ids, [math.log(value) for value in probabilities])
    assert_same_words(spread(found), probabilities_by_offsets(tokenizer, text, probabilities))


@pytest.mark.parametrize("build", [character_level, byte_level_bpe, word_piece, sentence_piece])
def test_special_tokens_belong_to_no_word(build):
    tokenizer = build()
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    special = tokenizer.all_special_ids[0]
    plain = word_confidences(tokenizer, ids, [-0.5] * len(ids))
    framed = word_confidences(tokenizer, [special, *ids, special], [-9.0, *[-0.5] * len(ids), -9.0])
    assert framed == plain
    assert [word["word"] for word in plain] == ["the", "cat"]
