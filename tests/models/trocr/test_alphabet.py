"""Extending an alphabet: what a tokenizer writes afterwards, which rows a model gets, and that it can learn them."""

import unicodedata

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, AutoProcessor, BertTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.trocr.alphabet import extend_alphabet, extend_folder
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from tests.models.trocr.tiny_models import LINE_ENCODER, TEXT_DECODER, line_batch, randomise, tiny_config, tiny_reader

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
NAMED = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def characters():
    return build_character_tokenizer(alphabet=LETTERS + " A-")


def word_piece(lowercase=False):
    vocab = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    for letter in LETTERS:
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault("##" + letter, len(vocab))
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase)


def byte_bpe():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED)


def word_bpe():
    """Merges within words, whose last letter is marked, as in the first GPT and FSMT; an added token behind."""
    tokens = [*SPECIAL, *LETTERS, *(letter + "</w>" for letter in LETTERS), "ka</w>"]
    bpe = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        [("k", "a</w>")],
        unk_token="<unk>",
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


def unigram():
    pieces = [(token, 0.0) for token in ["<s>", "<pad>", "</s>", "<unk>"]]
    pieces += [("▁", -2.0), ("▁ma", -3.0), *((letter, -5.0) for letter in LETTERS)]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])


def reader_of(tokenizer, text=None, **settings):
    """A random reader and a processor of this tokenizer."""
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(
        vision=VisionTransformerImageProcessor(
            size={"height": 16, "width": 48}, do_convert_grayscale=True, image_mean=[0.5], image_std=[0.5]
        ),
        text=tokenizer,
    )
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": processor.start_token_id,
        "eos_token_id": processor.end_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return tiny_reader(text=(text or TEXT_DECODER) | tokens, **settings), processor


def written(tokenizer, text):
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


# Tokenizers


@pytest.mark.parametrize("make", [characters, word_piece, word_bpe, unigram])
def test_added_characters_come_back_in_words_and_between_spaces_after_reloading(make, tmp_path):
    model, processor = reader_of(make())
    lost = "mąka ł a ą b żż"
    assert written(processor.tokenizer, lost) != lost
    old = processor.tokenizer.get_vocab()
    report = extend_alphabet(model, processor, "ąłż")
    processor.save_pretrained(tmp_path)
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert [row.status for row in report.characters] == ["added"] * 3 and report.is_complete
    for text in (lost, "abc no ą", "ą", " ".join("ąłż")):
        assert written(tokenizer, text) == text
    assert old.items() <= tokenizer.get_vocab().items()
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size


@pytest.mark.parametrize("make", [characters, word_piece, word_bpe, unigram])
def test_texts_of_known_characters_keep_their_tokens(make):
    model, processor = reader_of(make())
    texts = ["maka no a", "ka ka"]
    before = processor.tokenizer(texts)["input_ids"]
    extend_alphabet(model, processor, "ąłż")
    assert processor.tokenizer(texts)["input_ids"] == before


def test_added_token_behind_the_vocabulary_keeps_its_id():
    model, processor = reader_of(word_bpe())
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    extend_alphabet(model, processor, "ą")
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids("<image>") == image == len(SPECIAL) + 2 * len(LETTERS) + 1
    assert tokenizer.convert_tokens_to_ids(["ą", "ą</w>"]) == [image + 1, image + 2]
    assert tokenizer("<image>ą", add_special_tokens=False)["input_ids"] == [image, image + 2]


def test_bytes_write_every_character_so_none_is_added():
    model, processor = reader_of(byte_bpe())
    before = model.get_input_embeddings().weight.clone()
    report = extend_alphabet(model, processor, "ą中∞")
    assert [row.status for row in report.characters] == ["known"] * 3
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_character_that_the_normaliser_changes_is_told_and_not_added():
    model, processor = reader_of(word_piece(lowercase=True))
    report = extend_alphabet(model, processor, "Aął", ["mąka"])
    rows = {row.character: row for row in report.characters}
    assert {name: row.status for name, row in rows.items()} == {
        "m": "known", "a": "known", "k": "known", "ą": "normalised", "A": "normalised", "ł": "added"
    }  # fmt: skip
    assert rows["ą"].becomes == rows["A"].becomes == "a"
    assert not report.is_complete and report.characters_written == (0.75, 0.75)
    assert "'ą'" in str(report) and "normalised" in str(report)
    assert written(processor.tokenizer, "ał") == "ał"


def test_character_that_the_splitting_into_words_drops_is_told_and_takes_no_row():
    tokenizer = word_bpe()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("ą")
    model, processor = reader_of(tokenizer)
    rows = len(model.get_input_embeddings().weight)
    report = extend_alphabet(model, processor, "ął")
    assert {row.character: row.status for row in report.characters} == {"ą": "lost", "ł": "added"}
    assert "ą" not in processor.tokenizer.get_vocab()
    assert len(model.get_input_embeddings().weight) == rows + 2  # `ł` and `ł</w>`


def test_sign_that_bert_sets_apart_is_added_and_told_so():
    tokenizer = word_piece()
    tokenizer.clean_up_tokenization_spaces = True  # as BERT's own folders have it: "a . a" is decoded to "a. a"
    model, processor = reader_of(tokenizer)
    report = extend_alphabet(model, processor, "„.")
    assert {row.character: (row.status, row.becomes) for row in report.characters} == {
        "„": ("added", " „ "),
        ".": ("added", ". "),
    }


def test_combining_marks_are_added_where_no_composed_letter_exists():
    model, processor = reader_of(characters())
    text = unicodedata.normalize("NFC", "u\u0364 q\u0308 x\u0301 a\u0301")
    report = extend_alphabet(model, processor, "", [text])
    assert {row.character for row in report.of("added")} == {"\u0364", "\u0308", "\u0301", "á"}
    assert written(processor.tokenizer, text) == text


def test_white_space_is_one_space_and_input_is_composed_first():
    model, processor = reader_of(characters())
    report = extend_alphabet(model, processor, " \ta\u0301 \n", ["a\u00a0\u2003a"])
    assert {row.character: row.status for row in report.characters} == {"á": "added", "a": "known", " ": "known"}


def test_coverage_counts_characters_and_whole_lines_before_and_after():
    model, processor = reader_of(characters())
    report = extend_alphabet(model, processor, "", ["mąka", "abc", "ąą", "", "a\x07", "\ud800"])
    assert (report.num_characters, report.num_lines) == (12, 5)
    assert report.characters_written == (7 / 12, 10 / 12)
    assert report.lines_written == (1 / 5, 3 / 5)
    assert {row.character for row in report.of("refused")} == {"\x07", "\ud800"}
    assert [(row.character, row.count) for row in report.characters if row.count > 1] == [("ą", 3), ("a", 3)]
    assert str(report).splitlines()[-2:] == [
        "characters written, of 12: 58.33 % -> 83.33 %",
        "whole lines written, of 5: 20.00 % -> 60.00 %",
    ]
    assert report.to_dict()["characters"][0]["character"] in "aą"


@pytest.mark.parametrize(
    ("given", "told"),
    [("a\x07", "printable, got U\\+0007"), ("\udc80", "printable, got U\\+DC80"), (" ", "must hold characters")],
)
def test_what_cannot_be_an_alphabet_is_refused(given, told):
    model, processor = reader_of(characters())
    with pytest.raises(ValueError, match=told):
        extend_alphabet(model, processor, given)


def test_tokenizer_without_a_vocabulary_file_of_tokenizers_is_refused():
    model, processor = reader_of(characters())
    processor.tokenizer = type("Slow", (), {"is_fast": False})()
    with pytest.raises(ValueError, match="got `Slow`"):
        extend_alphabet(model, processor, "ą")


# Rows


@pytest.mark.parametrize(
    ("character", "relative"),
    [
        ("ą", "a"),  # its decomposition
        ("ế", "e"),
        ("ł", "l"),  # its name
        ("ꝛ", "r"),
        ("ı", "i"),
        ("Α", "A"),  # Greek, of one shape
        ("ά", "a"),  # its decomposition, of one shape
        ("Q", "q"),  # the other case
        ("ſ", "s"),
        ("−", "-"),
        ("∞", None),
    ],
)
def test_new_row_starts_near_its_relative_or_at_the_mean(character, relative):
    model, processor = reader_of(characters())
    table = model.get_input_embeddings().weight.detach().clone()
    vocabulary = processor.tokenizer.get_vocab()
    report = extend_alphabet(model, processor, character)
    assert report.characters[0].starts_from == relative
    row = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids(character)]
    wanted = table.mean(0) if relative is None else 0.9 * table[vocabulary[relative]] + 0.1 * table.mean(0)
    torch.testing.assert_close(row, wanted)


def test_piece_inside_a_word_starts_from_the_relative_inside_a_word():
    model, processor = reader_of(word_piece())
    extend_alphabet(model, processor, "ą")
    rows = model.get_input_embeddings().weight
    near = {}
    for entry in ("ą", "##ą"):
        token = processor.tokenizer.convert_tokens_to_ids(entry)
        near[entry] = processor.tokenizer.convert_ids_to_tokens(
            int((rows[: token - 1] - rows[token]).norm(dim=1).argmin())
        )
    assert near == {"ą": "a", "##ą": "##a"}


def foreign(model_type, **fields):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "model_type": model_type,
        "max_position_embeddings": 30,
        "is_decoder": True,
        "add_cross_attention": True,
    } | (sizes | fields)


BART = {
    "d_model": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "scale_embedding": True,
}
DECODERS = {
    "ours": TEXT_DECODER,
    "ours, output layer of its own": TEXT_DECODER | {"tie_word_embeddings": False},
    "BERT": foreign("bert"),
    "BERT, output layer of its own": foreign("bert", tie_word_embeddings=False),
    "RoBERTa": foreign("roberta"),
    "BART": foreign("bart", **BART),
    "GPT-2": foreign("gpt2", n_positions=30),
}


@pytest.mark.parametrize("text", DECODERS.values(), ids=DECODERS)
def test_old_rows_and_logits_stay_and_the_saved_folder_reads_the_same(text, tmp_path):
    model, processor = reader_of(characters(), text, ctc_loss_weight=0.5)
    model.generation_config.max_new_tokens = 12
    old = len(processor.tokenizer)
    batch = line_batch()
    batch["labels"] %= old
    tables = {name: value.clone() for name, value in model.state_dict().items()}
    tables.pop("decoder.cls.predictions.bias", None)  # BERT's second name for its output layer's bias, unused
    with torch.no_grad():
        logits, read = model(**batch).logits, model.generate(batch["pixel_values"])
    extend_alphabet(model, processor, "ął∞")
    for name, table in tables.items():
        assert torch.equal(model.state_dict()[name][: len(table)] if table.ndim else model.state_dict()[name], table), (
            name
        )
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[..., :old], logits, rtol=0, atol=1e-5)
        assert torch.equal(model.generate(batch["pixel_values"]), read)  # no new character wins before it is learnt
    model.train()
    assert model(**batch).loss.isfinite()  # the CTC head has their rows too
    model.eval()

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, batch["labels"] = AutoModel.from_pretrained(tmp_path), batch["labels"].fill_(old + 2)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        torch.testing.assert_close(again.ctc_head.weight, model.ctc_head.weight)
    assert again.config.text_config.vocab_size == old + 3


def test_new_characters_win_nowhere_even_where_hidden_states_are_extreme():
    model, processor = reader_of(characters(), TEXT_DECODER | {"tie_word_embeddings": False})
    old = len(processor.tokenizer)
    extend_alphabet(model, processor, "ąćęłńóśźżĄßΑΒά∞√ꝛ")
    logits = model.get_output_embeddings()(torch.randn(2000, 24) * 30)
    assert (logits[:, old:].amax(1) <= logits[:, :old].amax(1)).all()


def test_spare_rows_behind_the_tokens_are_used_first():
    tokenizer = characters()
    model, processor = reader_of(tokenizer)
    model.decoder.resize_token_embeddings(64, mean_resizing=False)
    assert extend_alphabet(model, processor, "ął").num_rows == (64, 64)
    row = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids("ą")]
    table = model.get_input_embeddings().weight[: len(tokenizer)]
    torch.testing.assert_close(row, 0.9 * table[tokenizer.convert_tokens_to_ids("a")] + 0.1 * table.mean(0))


# Folders


def test_folder_is_extended_into_another_one_in_its_precision(tmp_path):
    model, processor = reader_of(characters())
    model.half().save_pretrained(tmp_path / "old")
    processor.save_pretrained(tmp_path / "old")
    assert extend_folder(tmp_path / "old", tmp_path / "new", "ą").is_complete
    again = AutoModel.from_pretrained(tmp_path / "new")
    assert again.dtype == torch.float16
    assert torch.equal(again.get_input_embeddings().weight[:-1], model.get_input_embeddings().weight)
    assert written(AutoProcessor.from_pretrained(tmp_path / "new").tokenizer, "ą a") == "ą a"


def test_no_model_is_overwritten_and_nothing_is_saved_where_nothing_is_new(tmp_path):
    model, processor = reader_of(characters())
    model.save_pretrained(tmp_path / "old")
    processor.save_pretrained(tmp_path / "old")
    (tmp_path / "file").touch()
    for out in (tmp_path / "old" / ".", tmp_path / "file"):
        with pytest.raises(ValueError, match="a folder without a model"):
            extend_folder(tmp_path / "old", out, "ą")
    assert extend_folder(tmp_path / "old", tmp_path / "new", "abc").is_complete
    assert not (tmp_path / "new").exists()


# Learning


def drawn(text):
    """A line in cells of 8 px; a letter that Pillow's own font lacks is its base with a bar below."""
    picture = Image.new("L", (48, 16), 255)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for index, character in enumerate(text):
        base = {"ł": "l"}.get(character, unicodedata.normalize("NFD", character)[0])
        draw.text((8 * index, -1), base, fill=0, font=font)
        if base != character:
            draw.line((8 * index, 14, 8 * index + 6, 14), fill=0, width=2)
    return picture


def test_extended_model_learns_to_write_the_new_characters():
    tokenizer = characters()
    text = TEXT_DECODER | {"vocab_size": len(tokenizer), "norm_position": "pre"}
    model = TrOCREncoderDecoderForConditionalGeneration(
        tiny_config(LINE_ENCODER | {"patch_size": (16, 8), "hidden_size": 32}, text | {"cross_attention_size": 32})
    )
    randomise(model, 0.1)
    _, processor = reader_of(tokenizer)
    extend_alphabet(model, processor, "ąłż")
    texts = ["mąka", "maka", "łza ż", "lza z", "żal", "zał ą"]
    batch = processor(images=[drawn(text) for text in texts], text=texts)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(180):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    read = model.eval().generate(pixel_values=batch["pixel_values"], max_new_tokens=8)
    assert processor.batch_decode(read, skip_special_tokens=True) == texts
