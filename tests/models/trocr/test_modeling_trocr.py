"""The whole reader: one contract for every kind of parts, and the oracles for loss, masks, caches and sizes."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageTextToText, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from tests.model_contract import Batch, GenerationContract, ModelContract
from tests.models.trocr.tiny_models import (
    CANVAS,
    END,
    PAD,
    START,
    VOCAB_SIZE,
    line_batch,
    randomise,
    tiny_config,
    tiny_reader,
)

HUB_ENCODER = {
    "model_type": "vit",
    "hidden_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": CANVAS,
    "patch_size": 8,
    "num_channels": 1,
}
BERT_DECODER = {
    "model_type": "bert",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "is_decoder": True,
    "add_cross_attention": True,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
GPT2_DECODER = {
    "model_type": "gpt2",
    "vocab_size": VOCAB_SIZE,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 20,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "add_cross_attention": True,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
BART_DECODER = {
    "model_type": "bart",
    "vocab_size": VOCAB_SIZE,
    "d_model": 24,
    "encoder_layers": 1,  # another number than the decoder's: the cache must count the decoder's
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 20,
    "dropout": 0.0,
    "is_decoder": True,
    "add_cross_attention": True,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "decoder_start_token_id": START,
}


class ReaderContract(ModelContract, GenerationContract):
    """What every pair of parts owes: pictures of different widths share a batch."""

    model_class = TrOCREncoderDecoderForConditionalGeneration
    vision: dict[str, Any] = {}
    text: dict[str, Any] = {}

    def config(self):
        return tiny_config(self.vision, self.text)

    def batch(self, model) -> Batch:
        return line_batch()

    def single(self, batch, row):
        # The image processor pads a picture that comes alone to a multiple of the patch width, and no further.
        width = -(-int(batch["pixel_mask"][row, 0].sum()) // 8) * 8
        alone = {name: batch[name][row : row + 1, ..., :width] for name in ("pixel_values", "pixel_mask")}
        length = None
        if "labels" in batch:
            length = int((batch["labels"][row] != -100).sum())
            alone["labels"] = batch["labels"][row : row + 1, :length]
        return alone, slice(0, length)


class FixedSizeReaderContract(ReaderContract):
    """An encoder of the Hub always sees the whole canvas; padded tokens are kept from the decoder."""

    def single(self, batch, row):
        alone, own = super().single(batch, row)
        missing = CANVAS[1] - alone["pixel_values"].shape[-1]
        for name in ("pixel_values", "pixel_mask"):
            alone[name] = F.pad(alone[name], (0, missing))
        return alone, own

    def batch(self, model) -> Batch:
        batch = super().batch(model)
        batch["pixel_values"] = batch["pixel_values"] * batch["pixel_mask"][:, None]
        return batch


class TestPostNormReader(ReaderContract):
    """Parts as in the paper."""


class TestPreNormReader(ReaderContract):
    """A convolutional stem and pre-norm layers."""

    vision = {"stem_channels": (4, 8), "stem_strides": (2, 2), "patch_size": (16, 8)}
    text = {
        "norm_position": "pre",
        "position_embedding": "sinusoidal",
        "embedding_norm": False,
        "scale_embedding": True,
    }


class TestHubEncoderReader(FixedSizeReaderContract):
    """A Hub encoder of another width than the decoder takes, so with a projection, and an untied output layer."""

    vision = HUB_ENCODER
    text = {"tie_word_embeddings": False}

    def test_gradient_reaches_every_trained_parameter(self):
        pytest.skip("the Hub's ViT has a pooler, which a reader does not use")

    def test_gradient_checkpointing_changes_no_gradient(self):
        pytest.skip("likewise; our own encoder's layers are the other classes' matter")


class TestSwinReader(FixedSizeReaderContract):
    """Shifted windows on a map that is no multiple of them."""

    vision = {
        "model_type": "hf_vlm_swin",
        "embed_dim": 8,
        "num_channels": 1,
        "image_size": CANVAS,
        "patch_size": (2, 2),
        "window_size": (4, 5),
        "drop_path_rate": 0.0,
    }

    def test_resized_encoder_is_saved_and_reloaded_as_such(self, tmp_path):
        model = self.model()
        randomise(model)
        model.save_pretrained(tmp_path / "first")
        model.resize(image_size=(20, 40), window_size=(3, 7))
        model.save_pretrained(tmp_path / "second")
        pixel_values = torch.randn(1, 1, 20, 40)
        expected = model.generate(pixel_values, max_new_tokens=6)
        for reloaded in (
            AutoModel.from_pretrained(tmp_path / "second"),
            AutoModel.from_pretrained(tmp_path / "first", image_size=(20, 40), window_size=(3, 7)),
            TrOCREncoderDecoderForConditionalGeneration.from_pretrained(
                tmp_path / "first", image_size=(20, 40), window_size=(3, 7)
            ),
        ):
            assert torch.equal(reloaded.generate(pixel_values, max_new_tokens=6), expected)
            vision_config = reloaded.config.vision_config
            assert tuple(vision_config.window_size) == (3, 7) and tuple(vision_config.image_size) == (20, 40)


class TestRegisterReader(ReaderContract):
    """Prefix tokens of every kind, fixed positions."""

    vision = {
        "use_cls_token": True,
        "use_distillation_token": True,
        "num_register_tokens": 2,
        "position_embedding": "sincos",
    }


class TestBertReader(ReaderContract):
    text = BERT_DECODER


class TestGpt2Reader(ReaderContract):
    text = GPT2_DECODER

    def test_every_weight_and_buffer_is_initialised_when_a_checkpoint_lacks_it(self):
        pytest.skip("transformers' GPT-2 scales its residual projections in one of the two cases only")


class TestBartReader(ReaderContract):
    text = BART_DECODER


# Loss


def plain_batch(num_pictures: int = 3) -> Batch:
    """Pictures of the canvas' own size, without padding; labels of different lengths."""
    batch = line_batch(widths=(CANVAS[1],) * num_pictures)
    del batch["pixel_mask"]
    return batch


def test_loss_is_the_mean_cross_entropy_of_the_labels_that_count():
    model, batch = tiny_reader(), plain_batch()
    outputs = model(**batch)
    log_probs = torch.log_softmax(outputs.logits, dim=-1)
    expected = [
        -log_probs[row, place, label]
        for row, labels in enumerate(batch["labels"].tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    torch.testing.assert_close(outputs.loss, torch.stack(expected).mean())


def test_labels_are_shifted_once():
    model = tiny_reader()
    labels = torch.tensor([[5, 6, END, -100]])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[START, 5, 6, END]]
    batch = plain_batch(1) | {"labels": labels}
    # Losses may agree by accident, gradients of every weight hardly.
    gradients = []
    for extra in ({}, {"decoder_input_ids": shifted}):
        model.zero_grad()
        model(**batch, **extra).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


@torch.no_grad()
def test_prediction_of_a_label_does_not_see_it():
    model, batch = tiny_reader(), plain_batch(1)
    before = model(**batch).logits[0]
    changed = batch["labels"].clone()
    changed[0, 3] = (changed[0, 3] + 1) % VOCAB_SIZE
    after = model(**batch | {"labels": changed}).logits[0]
    assert torch.equal(before[:4], after[:4])  # labels 0 to 3 are predicted from those before them
    assert (before[4:] - after[4:]).abs().amax(dim=-1).min() > 1e-4


def test_padding_of_labels_becomes_padding_tokens_and_changes_nothing():
    model, batch = tiny_reader(), plain_batch()
    longer = F.pad(batch["labels"], (0, 3), value=-100)
    assert model.prepare_decoder_input_ids_from_labels(longer)[2].tolist()[-2:] == [PAD, PAD]
    torch.testing.assert_close(model(**batch | {"labels": longer}).loss, model(**batch).loss)


def test_eight_accumulated_batches_equal_one_large_batch():
    model = tiny_reader()
    batch = line_batch(widths=tuple(range(24, 40)))
    for row in range(16):
        batch["labels"][row, 1 + row % 4 :] = -100
    num_items = (batch["labels"] != -100).sum()
    model(**batch).loss.backward()
    large = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    large_loss = model(**batch).loss
    model.zero_grad()
    total = 0.0
    for start in range(0, 16, 2):
        part = {name: value[start : start + 2] for name, value in batch.items()}
        loss = model(**part, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    assert abs(total - large_loss.item()) < 1e-5
    for name, gradient in large.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, atol=1e-5, rtol=1e-5)


def one_step(model, batch: Batch, folder, per_device: int, accumulation: int, **settings: Any):
    """Weights after one step of Trainer with plain gradient descent, and the loss it logged."""
    rows = [{name: value[row] for name, value in batch.items()} for row in range(len(batch["labels"]))]
    arguments = Seq2SeqTrainingArguments(
        folder,
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=1.0,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    return dict(model.named_parameters()), trainer.state.log_history[0]["loss"]


def test_accumulation_under_trainer_equals_one_large_batch(tmp_path):
    batch = plain_batch(8)
    for row in range(8):
        batch["labels"][row, 1 + row % 4 :] = -100
    model = tiny_reader(std=0.1)
    large, large_loss = one_step(copy.deepcopy(model), batch, tmp_path, 8, 1)
    small, small_loss = one_step(copy.deepcopy(model), batch, tmp_path, 2, 4)
    assert large_loss == pytest.approx(small_loss, abs=1e-4)
    moved = 0.0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(small[name], large[name], atol=1e-5, rtol=1e-5)
        moved = max(moved, (large[name] - parameter).abs().max().item())
    assert moved > 1e-2


def test_label_smoothing_has_its_closed_form_in_training_only():
    model, batch = tiny_reader(label_smoothing=0.2), plain_batch()
    plain = model(**batch).loss
    model.train()
    outputs = model(**batch)
    log_probs = torch.log_softmax(outputs.logits, dim=-1)
    counts = batch["labels"] != -100
    label_term = -log_probs.gather(2, batch["labels"].clamp(min=0)[..., None])[..., 0][counts].mean()
    even_term = -log_probs.mean(dim=-1)[counts].mean()
    torch.testing.assert_close(outputs.loss, 0.8 * label_term + 0.2 * even_term)
    torch.testing.assert_close(plain, label_term)


def test_label_smoothing_of_model_and_of_trainer_are_one(tmp_path):
    batch = plain_batch(4)
    model = tiny_reader(std=0.1, label_smoothing=0.1)
    by_model = model.train()(**batch).loss
    outputs = model(
        pixel_values=batch["pixel_values"],
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(batch["labels"]),
    )
    torch.testing.assert_close(LabelSmoother(epsilon=0.1)(outputs, batch["labels"]), by_model)
    smoothed, _ = one_step(copy.deepcopy(model), batch, tmp_path, 4, 1)
    # Trainer's own smoothing takes the labels away, so the collator supplies what the decoder reads.
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    plain = copy.deepcopy(model)
    plain.config.label_smoothing = 0.0
    by_trainer, _ = one_step(plain, batch, tmp_path, 4, 1, label_smoothing_factor=0.1)
    for name, parameter in smoothed.items():
        torch.testing.assert_close(by_trainer[name], parameter, atol=1e-5, rtol=1e-5)


def test_training_without_start_or_padding_token_is_refused():
    model = tiny_reader()
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="`decoder_start_token_id` and `pad_token_id`, got None and 0"):
        model(**plain_batch())


def test_forward_without_picture_or_text_says_what_is_missing():
    model, batch = tiny_reader(), plain_batch()
    with pytest.raises(ValueError, match="`pixel_values`, `image_features` or `encoder_outputs`"):
        model(labels=batch["labels"])
    with pytest.raises(ValueError, match="`decoder_input_ids`.*call `generate`"):
        model(pixel_values=batch["pixel_values"])


# Masks, caches


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing():
    model, batch = tiny_reader(), line_batch()
    expected = model(**batch).logits
    scribbled = batch["pixel_values"] + 100 * (1 - batch["pixel_mask"][:, None])
    torch.testing.assert_close(model(**batch | {"pixel_values": scribbled}).logits, expected, atol=1e-5, rtol=0)
    whole = {name: value for name, value in batch.items() if name != "pixel_mask"}
    assert (model(**whole).logits - expected)[1].abs().max() > 1e-3  # the mask is not idle


@torch.no_grad()
def test_mask_reaches_the_cross_attention_of_a_hub_encoder():
    model = tiny_reader(HUB_ENCODER)
    batch = line_batch()
    encoded = model.encoder(batch["pixel_values"], batch["pixel_mask"])
    # 1 prefix token, then 2 rows of 6 patches; pictures are 48, 24 and 37 pixels wide, so 6, 3 and 5 patches
    expected = [[True] + 2 * ([True] * columns + [False] * (6 - columns)) for columns in (6, 3, 5)]
    assert encoded.attention_mask.tolist() == expected
    hidden = encoded.last_hidden_state.clone()
    hidden[~encoded.attention_mask] = 50.0
    scribbled = type(encoded)(last_hidden_state=hidden, attention_mask=encoded.attention_mask)
    logits = model(encoder_outputs=encoded, labels=batch["labels"]).logits
    torch.testing.assert_close(model(encoder_outputs=scribbled, labels=batch["labels"]).logits, logits)


def test_cross_attention_is_projected_once_a_picture():
    model, batch = tiny_reader(), plain_batch()
    calls = []
    for layer in model.decoder.model.layers:
        for projection in (layer.cross_attention.k_proj, layer.cross_attention.v_proj):
            projection.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[0]))
    steps = []
    model.decoder.register_forward_hook(lambda module, inputs, output: steps.append(1))
    for settings in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        calls.clear(), steps.clear()
        model.generate(pixel_values=batch["pixel_values"], min_new_tokens=6, max_new_tokens=6, **settings)
        assert len(steps) == 6
        assert len(calls) == 2 * len(model.decoder.model.layers)


def test_generation_reads_a_second_batch_of_another_shape_afresh():
    # A static cache is kept between calls: nothing of the first pictures may stay in it.
    model = tiny_reader()
    first, second = line_batch(), line_batch(widths=(40, 16))
    settings = {"max_new_tokens": 5, "cache_implementation": "static"}
    expected = model.generate(pixel_values=second["pixel_values"], pixel_mask=second["pixel_mask"], max_new_tokens=5)
    model.generate(pixel_values=first["pixel_values"], pixel_mask=first["pixel_mask"], **settings)
    got = model.generate(pixel_values=second["pixel_values"], pixel_mask=second["pixel_mask"], **settings)
    assert torch.equal(got, expected)


def test_generation_from_encoder_outputs_equals_generation_from_pictures():
    model, batch = tiny_reader(), line_batch()
    pictures = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
    expected = model.generate(**pictures, max_new_tokens=6, num_beams=2)
    encoded = model.get_encoder()(**pictures)
    assert torch.equal(model.generate(encoder_outputs=encoded, max_new_tokens=6, num_beams=2), expected)


@pytest.mark.parametrize("vision", [{}, HUB_ENCODER], ids=["ours", "with a projection"])
@torch.no_grad()
def test_features_take_the_place_of_the_picture(vision):
    model, batch = tiny_reader(vision), plain_batch()
    features = model.vision_features(batch["pixel_values"])
    assert features.shape[2] == model.config.vision_hidden_size == vision.get("hidden_size", 16)
    wanted, got = model(**batch), model(image_features=features, labels=batch["labels"])
    assert torch.equal(got.logits, wanted.logits) and torch.equal(got.loss, wanted.loss)
    for settings in ({}, {"num_beams": 2}, {"use_cache": False}):
        written = model.generate(batch["pixel_values"], max_new_tokens=5, **settings)
        assert torch.equal(model.generate(image_features=features, max_new_tokens=5, **settings), written)


def test_features_beside_a_picture_or_of_another_width_are_refused():
    model, batch = tiny_reader(), line_batch()
    features = model.vision_features(batch["pixel_values"])
    for name in ("pixel_values", "pixel_mask"):
        with pytest.raises(ValueError, match=f"in place of the picture, got `{name}` too"):
            model(image_features=features, labels=batch["labels"], **{name: batch[name]})
        with pytest.raises(ValueError, match=f"in place of the picture, got `{name}` too"):
            model.generate(image_features=features, **{name: batch[name]})
    with pytest.raises(ValueError, match=r"`image_features` must be \(batch, tokens, 16\), got \(3, 12, 15\)"):
        model(image_features=features[..., :15], labels=batch["labels"])


def test_projection_learns_from_features():
    model, batch = tiny_reader(HUB_ENCODER), plain_batch()
    features = model.vision_features(batch["pixel_values"]).detach()
    model(image_features=features, labels=batch["labels"]).loss.backward()
    assert model.encoder.projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.encoder.vision_model.parameters())


@pytest.mark.parametrize("text", [{}, BERT_DECODER, GPT2_DECODER], ids=["ours", "bert", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@torch.no_grad()
def test_generation_goes_on_from_a_prompt(text, settings):
    # Each further token by one pass over all before it; beams are compared with and without a cache.
    model, batch = tiny_reader(text=text), plain_batch()
    prompt = torch.tensor([[START, 7, 9, END], [START, 11, 5, END], [START, 30, 4, END]])
    picture = {"pixel_values": batch["pixel_values"], "decoder_input_ids": prompt}
    written = model.generate(**picture, max_new_tokens=6, **settings)
    assert torch.equal(written[:, :4], prompt) and written.shape[1] > 4
    uncached = {name: value for name, value in settings.items() if name == "num_beams"}
    assert torch.equal(model.generate(**picture, max_new_tokens=6, use_cache=False, **uncached), written)
    if "num_beams" not in settings:
        for row in range(3):
            tokens = prompt[row : row + 1]
            for _ in range(6):
                logits = model(batch["pixel_values"][row : row + 1], decoder_input_ids=tokens).logits
                tokens = torch.cat((tokens, logits[:, -1:].argmax(dim=-1)), dim=1)
                if tokens[0, -1] == END:
                    break
            length = tokens.shape[1]
            assert torch.equal(written[row, :length], tokens[0])
            assert (written[row, length:] == PAD).all()


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_after_a_prompt_stops_at_the_decoders_positions(num_beams):
    model, batch = tiny_reader(), plain_batch()
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([[START, *range(4, 13), END]]).repeat(
        3, 1
    )  # 11 of 20 positions; the default asks for 19 more
    written = model.generate(batch["pixel_values"], decoder_input_ids=prompt, num_beams=num_beams)
    assert written.shape[1] == 21  # the last token is written and not read
    short = model.generate(batch["pixel_values"], decoder_input_ids=prompt, max_new_tokens=3, num_beams=num_beams)
    assert short.shape[1] == 14


def test_generation_stops_at_the_decoders_positions_by_default():
    model, batch = tiny_reader(), plain_batch()
    model.generation_config.eos_token_id = None
    written = model.generate(pixel_values=batch["pixel_values"])
    assert written.shape[1] == 20  # `max_position_embeddings`, start token included


@torch.no_grad()
def test_half_precision_stays_close():
    model, batch = tiny_reader(std=0.1), line_batch()
    expected = model(**batch).logits
    logits = model.to(torch.bfloat16)(**batch | {"pixel_values": batch["pixel_values"].bfloat16()}).logits
    torch.testing.assert_close(logits.float(), expected, atol=0.02 * expected.abs().max().item(), rtol=0)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_compiled_decoding_gives_equal_tokens(num_beams):
    model, batch = tiny_reader(), line_batch()
    prompt = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
    settings = {"max_new_tokens": 6, "num_beams": num_beams, "cache_implementation": "static"}
    expected = model.generate(**prompt, **settings)
    model.decoder.forward = torch.compile(model.decoder.forward, fullgraph=True)
    assert torch.equal(model.generate(**prompt, **settings), expected)


# Sizes


@torch.no_grad()
@pytest.mark.parametrize("vision", [{}, HUB_ENCODER | {"image_size": 16}], ids=["ours", "hub"])
def test_other_picture_sizes_need_and_take_interpolation(vision):
    model = tiny_reader(vision)
    batch = plain_batch() | {"pixel_values": torch.randn(3, 1, 24, 64)}
    with pytest.raises(ValueError, match="interpolate_pos_encoding|doesn't match model"):
        model(**batch)
    encoded = model.encoder.vision_model(batch["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
    expected = model(encoder_outputs=(model.encoder.projection(encoded),), labels=batch["labels"]).logits
    assert torch.equal(model(**batch, interpolate_pos_encoding=True).logits, expected)
    first = model.generate(pixel_values=batch["pixel_values"], interpolate_pos_encoding=True, max_new_tokens=1)[:, 1]
    start = torch.full((3, 1), START)
    next_token = model(encoder_outputs=(model.encoder.projection(encoded),), decoder_input_ids=start).logits[:, 0]
    assert torch.equal(first, next_token.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize(
    "auto_class", [TrOCREncoderDecoderForConditionalGeneration, AutoModel, AutoModelForImageTextToText]
)
def test_loading_at_another_picture_size_resamples_and_is_saved(auto_class, tmp_path):
    model = tiny_reader()
    model.save_pretrained(tmp_path / "stored")
    batch = plain_batch() | {"pixel_values": torch.randn(3, 1, 24, 64)}
    expected = model(**batch, interpolate_pos_encoding=True).logits
    resized = auto_class.from_pretrained(tmp_path / "stored", image_size=(24, 64))
    torch.testing.assert_close(resized(**batch).logits, expected, atol=1e-5, rtol=0)
    resized.save_pretrained(tmp_path / "resized")
    reloaded = AutoModel.from_pretrained(tmp_path / "resized")
    assert tuple(reloaded.config.vision_config.image_size) == (24, 64)
    torch.testing.assert_close(reloaded(**batch).logits, expected, atol=1e-5, rtol=0)


def test_resizing_an_encoder_that_can_not_is_refused():
    with pytest.raises(ValueError, match="able to change its `image_size`, got `ViTModel`"):
        tiny_reader(HUB_ENCODER).resize(image_size=32)


# Parts


def test_parts_are_found_by_role():
    model = tiny_reader()
    assert model.get_encoder() is model.encoder
    assert model.get_encoder(modality="image") is model.encoder.vision_model
    assert model.get_decoder() is model.decoder
    assert model.get_input_embeddings() is model.decoder.model.embed_tokens
    assert model.get_output_embeddings() is model.decoder.lm_head


def test_vocabulary_grows_with_the_config_and_stays_tied():
    model, batch = tiny_reader(), plain_batch()
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert model.config.text_config.vocab_size == VOCAB_SIZE + 3
    assert model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight
    assert model(**batch).logits.shape[-1] == VOCAB_SIZE + 3


def test_tuple_output_begins_with_loss_and_logits():
    model, batch = tiny_reader(), plain_batch()
    outputs = model(**batch)
    loss, logits = model(**batch, return_dict=False)[:2]
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)


def test_attentions_of_both_kinds_are_given_on_demand():
    model, batch = tiny_reader(), plain_batch()
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in outputs.decoder_attentions] == [(3, 3, 7, 7)] * 2
    assert [a.shape for a in outputs.cross_attentions] == [(3, 3, 7, 12)] * 2  # 2 x 6 patches
    assert len(outputs.decoder_hidden_states) == 3


def test_kernels_without_a_bias_are_refused_where_a_part_needs_one():
    biased = {"relative_position_bias": "shared", "use_cls_token": True, "position_embedding": "none"}
    with pytest.raises(ValueError, match="VisionTransformerModel does not support"):
        TrOCREncoderDecoderForConditionalGeneration._from_config(
            tiny_config(biased), attn_implementation="flex_attention"
        )


def test_ctc_loss_is_added_in_training_only_and_spells_without_the_end_token():
    model = tiny_reader(ctc_loss_weight=0.5, text={"dropout": 0.0})
    batch = plain_batch()
    with torch.no_grad():
        plain = model(**batch).loss
        trained = model.train()(**batch).loss
        tokens = model.encoder(batch["pixel_values"], batch.get("pixel_mask")).last_hidden_state
        log_probs = model.ctc_head(tokens).log_softmax(dim=-1)
    total, count = 0.0, 0
    for row, label in zip(log_probs, batch["labels"].tolist(), strict=True):
        spelled = [token for token in label if token not in (-100, END)]
        count += len(spelled)
        total += torch.nn.functional.ctc_loss(
            row, torch.tensor(spelled), torch.tensor(len(row)), torch.tensor(len(spelled)), blank=PAD, reduction="sum"
        ).item()
    assert trained.item() == pytest.approx(plain.item() + 0.5 * total / count, rel=1e-4)


class TestCtcReader(ReaderContract):
    """The encoder's tokens spell the text too, while training."""

    def config(self):
        return tiny_config(ctc_loss_weight=1.0)
