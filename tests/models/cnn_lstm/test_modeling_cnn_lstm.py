"""The whole captioner: one contract for every kind of encoder, and the oracles for loss, modes, decoding and attention."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmEncoderOutput, CnnLstmForConditionalGeneration
from tests.model_contract import Batch, GenerationContract, ModelContract, train
from tests.models.cnn_lstm.tiny_captioners import (
    END,
    GRID,
    PAD,
    SIZE,
    START,
    VOCAB_SIZE,
    caption_batch,
    tiny_captioner,
    tiny_config,
)

VIT = {
    "model_type": "hf_vlm_vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 16,
    "use_cls_token": True,
    "num_register_tokens": 2,
}
SWIN = {
    "model_type": "hf_vlm_swin",
    "embed_dim": 8,
    "image_size": SIZE,
    "patch_size": (2, 2),
    "window_size": (4, 5),
    "drop_path_rate": 0.0,
}
TIMM = {
    "model_type": "timm_wrapper",
    "architecture": "vit_tiny_patch16_224",
    "do_pooling": False,
    "model_args": {"img_size": list(SIZE), "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
BOTH = pytest.mark.parametrize("attention", ["none", "additive"])


class CaptionerContract(ModelContract, GenerationContract):
    """A decoder that learns on a frozen encoder, as it mostly does."""

    model_class = CnnLstmForConditionalGeneration
    auto_class = AutoModelForImageTextToText
    learning_rate = 2e-2
    learning_steps = 100
    reload_tolerance = 1e-6
    attention = "none"
    vision: dict[str, Any] | None = None
    settings: dict[str, Any] = {}

    def config(self):
        return tiny_config(self.attention, self.vision, **self.settings)

    def model(self):
        model = super().model()
        model.encoder.vision_model.requires_grad_(False)
        return model

    def batch(self, model) -> Batch:
        return caption_batch()

    def test_attention_implementations_agree(self):
        if self.config().vision_config.model_type == "resnet":
            pytest.skip("a ResNet has no attention, and that of the decoder has one implementation")
        super().test_attention_implementations_agree()


class TestShowAndTell(CaptionerContract):
    """The picture as the first word."""


class TestShowAttendAndTell(CaptionerContract):
    """The picture looked at for every word; the encoder learns too."""

    attention = "additive"
    settings = {"attention_regularization": 0.1}  # three captions can't look once at each of six places
    learning_rate = 1e-2

    def model(self):
        return ModelContract.model(self)


class TestTwoLayers(CaptionerContract):
    attention = "additive"
    settings = {"num_hidden_layers": 2, "attention_regularization": 0.0}


class TestVitCaptioner(CaptionerContract):
    """An encoder whose patches stand behind prefix tokens."""

    attention = "additive"
    vision = VIT
    settings = {"attention_regularization": 0.1}


class TestSwinCaptioner(CaptionerContract):
    vision = SWIN


class TestTimmCaptioner(CaptionerContract):
    vision = TIMM

    def config(self):
        pytest.importorskip("timm")
        return super().config()

    def test_every_weight_and_buffer_is_initialised_when_a_checkpoint_lacks_it(self):
        pytest.skip("timm initialises its models itself")


# What the decoder is shown


@pytest.mark.parametrize(
    ("vision", "grid", "num_prefix"), [(None, GRID, 0), (VIT, (3, 2), 3), (SWIN, (12, 8), 0), (TIMM, (3, 2), 1)]
)
@torch.no_grad()
def test_features_are_the_patches_without_the_prefix(vision, grid, num_prefix):
    if vision is TIMM:
        pytest.importorskip("timm")
    model, pixel_values = tiny_captioner(vision=vision), caption_batch()["pixel_values"]
    features = model.vision_features(pixel_values)
    assert features.shape == (3, grid[0] * grid[1], model.config.vision_hidden_size)
    assert model.config.num_prefix_tokens == num_prefix
    hidden = model.encoder.vision_model(pixel_values).last_hidden_state
    wanted = hidden.flatten(2).mT if hidden.ndim == 4 else hidden[:, num_prefix:]
    assert torch.equal(features, wanted)


@BOTH
@torch.no_grad()
def test_features_take_the_place_of_the_picture(attention):
    model, batch = tiny_captioner(attention), caption_batch()
    features = model.vision_features(batch["pixel_values"])
    by_picture, by_features = model(**batch), model(image_features=features, labels=batch["labels"])
    assert torch.equal(by_features.logits, by_picture.logits) and torch.equal(by_features.loss, by_picture.loss)
    assert torch.equal(by_picture.encoder_last_hidden_state, features)
    for settings in ({}, {"num_beams": 2}, {"use_cache": False}):
        wanted = model.generate(batch["pixel_values"], max_new_tokens=5, **settings)
        assert torch.equal(model.generate(image_features=features, max_new_tokens=5, **settings), wanted)


def test_no_or_two_sources_of_the_picture_are_refused():
    model, batch = tiny_captioner(), caption_batch()
    features = model.vision_features(batch["pixel_values"])
    with pytest.raises(ValueError, match="must be given, got none"):
        model(labels=batch["labels"])
    with pytest.raises(ValueError, match="got both of the former"):
        model(**batch, image_features=features)
    with pytest.raises(ValueError, match="got both of the former"):
        model.generate(batch["pixel_values"], image_features=features)
    with pytest.raises(ValueError, match=r"must be \(batch, places, 10\), got \(3, 6, 9\)"):
        model(image_features=features[..., :9], labels=batch["labels"])
    with pytest.raises(ValueError, match="`labels` \\(training\\) or `decoder_input_ids`, got neither"):
        model(batch["pixel_values"])


def test_encoder_runs_once_a_caption(monkeypatch):
    model, batch = tiny_captioner("additive"), caption_batch()
    calls = []
    model.encoder.vision_model.register_forward_hook(lambda *_: calls.append(1))
    for settings in ({}, {"use_cache": False}, {"num_beams": 3}):
        model.generate(batch["pixel_values"], max_new_tokens=6, min_new_tokens=6, **settings)
    assert len(calls) == 3


# Loss


@BOTH
def test_loss_is_the_mean_cross_entropy_of_the_shifted_words(attention):
    model, batch = tiny_captioner(attention), caption_batch()
    read = torch.cat((torch.full((3, 1), START), batch["labels"][:, :-1]), dim=1).clamp(min=PAD)
    logits = model(batch["pixel_values"], decoder_input_ids=read).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, wanted)
    torch.testing.assert_close(outputs.token_loss, wanted)
    num_labels = int((batch["labels"] != -100).sum())
    torch.testing.assert_close(model(**batch, num_items_in_batch=3 * num_labels).loss, wanted / 3)


def test_regulariser_is_in_the_training_loss_alone():
    model, batch = tiny_captioner("additive", attention_regularization=0.7), caption_batch()
    evaluated = model(**batch)
    (weights,) = model(**batch, output_attentions=True).cross_attentions
    by_hand = 0.0
    for row, labels in zip(weights[:, 0], batch["labels"], strict=True):
        num_words = int((labels != -100).sum())
        for place in range(row.shape[1]):
            by_hand += (1 - sum(row[t, place].item() for t in range(num_words))) ** 2
    by_hand /= int((batch["labels"] != -100).sum())
    assert evaluated.attention_loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert evaluated.loss.item() == evaluated.token_loss.item()
    trained = model.train()(**batch)
    assert trained.loss.item() == pytest.approx(evaluated.token_loss.item() + 0.7 * by_hand, rel=1e-5)
    assert tiny_captioner()(**batch).attention_loss is None


@BOTH
def test_label_smoothing_is_for_training(attention):
    model, batch = tiny_captioner(attention, label_smoothing=0.2), caption_batch()
    plain = model(**batch).token_loss
    logits = model.train()(**batch).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(model(**batch).token_loss, wanted)
    assert abs(plain - wanted) > 1e-3


@BOTH
def test_padding_of_labels_changes_no_term(attention):
    model, batch = tiny_captioner(attention).train(), caption_batch()
    longer = F.pad(batch["labels"], (0, 4), value=-100)
    outputs, wanted = model(**batch | {"labels": longer}), model(**batch)
    torch.testing.assert_close(outputs.loss, wanted.loss)
    if attention == "additive":
        torch.testing.assert_close(outputs.attention_loss, wanted.attention_loss)
        empty = {name: torch.cat((value, value[:1])) for name, value in batch.items()}
        empty["labels"][3] = -100  # a picture without a caption, as the last of an uneven batch
        torch.testing.assert_close(model(**empty).loss, wanted.loss)


@BOTH
def test_eight_accumulated_batches_equal_one_large_batch(attention):
    model, batch = tiny_captioner(attention).train(), caption_batch(16)
    num_items = (batch["labels"] != -100).sum()
    large_loss = model(**batch).loss
    large_loss.backward()
    large = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for start in range(0, 16, 2):
        part = {name: value[start : start + 2] for name, value in batch.items()}
        loss = model(**part, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(large_loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, large[name], atol=1e-5, rtol=1e-4, msg=name)
    assert max(gradient.abs().max() for name, gradient in large.items() if "vision_model" in name) > 1e-3


def trainer_of(model, batch: Batch, folder, **settings: Any) -> Seq2SeqTrainer:
    rows = [{name: value[row] for name, value in batch.items()} for row in range(len(batch["labels"]))]
    arguments = Seq2SeqTrainingArguments(
        folder,
        use_cpu=True,
        max_steps=1,
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
    return Seq2SeqTrainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def test_accumulation_under_trainer_equals_one_large_batch(tmp_path):
    model, batch = tiny_captioner("additive", std=0.1), caption_batch(8)
    after, losses = [], []
    for size, steps in ((8, 1), (2, 4)):
        trained = copy.deepcopy(model)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = trainer_of(trained, batch, tmp_path, **settings)
        trainer.train()
        after.append(dict(trained.named_parameters()))
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, parameter in after[0].items():
        torch.testing.assert_close(after[1][name], parameter, atol=1e-5, rtol=1e-5)
    moved = [(after[0][name] - parameter).abs().max() for name, parameter in model.named_parameters()]
    assert max(moved) > 1e-2


def test_trainer_evaluates_and_writes_from_features(tmp_path):
    model, batch = tiny_captioner("additive"), caption_batch(4)
    features = model.vision_features(batch["pixel_values"]).detach()
    known = {"image_features": features, "labels": batch["labels"]}
    trainer = trainer_of(model, known, tmp_path, predict_with_generate=True, per_device_eval_batch_size=4)
    predicted = trainer.predict(trainer.eval_dataset, max_new_tokens=5)
    wanted = model.generate(batch["pixel_values"], max_new_tokens=5).numpy()
    assert np.array_equal(predicted.predictions[:, : wanted.shape[1]], wanted)
    assert predicted.metrics["test_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-3)
    trainer.args.predict_with_generate = False
    logits = trainer.predict(trainer.eval_dataset).predictions
    assert isinstance(logits, np.ndarray) and logits.shape == (4, 6, VOCAB_SIZE)


# What of the encoder changes in training


def statistics(model) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name]


def test_batch_norm_keeps_its_stored_statistics_in_training():
    model, batch = tiny_captioner(), caption_batch()
    stored, evaluated = statistics(model), model(**batch).logits
    model.train()
    torch.testing.assert_close(model(**batch).logits, evaluated)
    assert all(torch.equal(left, right) for left, right in zip(stored, statistics(model), strict=True))
    model(**batch).loss.backward()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.weight.grad.abs().sum() > 0 and not norm.training for norm in norms)
    assert model.encoder.vision_model.training


def test_batch_norm_follows_the_batch_where_it_is_asked_to():
    model, batch = tiny_captioner(train_batch_norm=True), caption_batch()
    stored, evaluated = statistics(model), model(**batch).logits
    trained = model.train()(**batch).logits
    assert (trained - evaluated).abs().max() > 1e-3
    assert not any(torch.equal(left, right) for left, right in zip(stored, statistics(model), strict=True))


@pytest.mark.parametrize("train_batch_norm", [False, True])
def test_frozen_encoder_stays_in_evaluation_mode(train_batch_norm):
    vision = VIT | {"hidden_dropout_prob": 0.5} if not train_batch_norm else None
    model, batch = tiny_captioner(vision=vision, train_batch_norm=train_batch_norm), caption_batch()
    stored, features = statistics(model), model.vision_features(batch["pixel_values"])
    model.train()
    assert not torch.equal(model.vision_features(batch["pixel_values"]), features)  # not frozen yet
    model.eval().encoder.vision_model.requires_grad_(False)
    for buffer, value in zip([b for n, b in model.named_buffers() if "running" in n], stored, strict=True):
        buffer.copy_(value)
    model.train()
    assert model.training and model.decoder.training and not model.encoder.vision_model.training
    assert torch.equal(model.vision_features(batch["pixel_values"]), features)
    assert all(torch.equal(left, right) for left, right in zip(stored, statistics(model), strict=True))
    model.encoder.vision_model.requires_grad_(True)
    assert model.train().encoder.vision_model.training


def test_encoder_frozen_in_the_midst_of_training_is_kept_from_the_next_picture_on():
    model, batch = tiny_captioner(vision=VIT | {"hidden_dropout_prob": 0.5}), caption_batch()
    features = model.vision_features(batch["pixel_values"])
    model.train()
    model.encoder.vision_model.requires_grad_(False)
    assert torch.equal(model.vision_features(batch["pixel_values"]), features)


def test_dropout_is_for_training():
    for attention in ("none", "additive"):
        model, batch = tiny_captioner(attention, dropout=0.5), caption_batch()
        first = model(**batch).logits
        assert torch.equal(model(**batch).logits, first)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


# Decoding


def score_of(model, features, words: list[int], length_penalty: float) -> float:
    """Log-probability of one sequence by one pass over it, in nats, divided as beam search divides it."""
    labels = torch.tensor([words])
    logits = model(image_features=features, labels=labels).logits[0].log_softmax(dim=-1)
    return sum(logits[place, word].item() for place, word in enumerate(words)) / len(words) ** length_penalty


@BOTH
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@torch.no_grad()
def test_beam_search_finds_the_best_of_all_sequences(attention, length_penalty):
    torch.manual_seed(3)
    model = tiny_captioner(attention, vocab_size=5, std=0.8)
    features = model.vision_features(caption_batch(2)["pixel_values"])
    model.generation_config.pad_token_id = PAD
    others = [word for word in range(5) if word != END]
    sequences = [
        [*before, last]
        for length in (1, 2, 3)
        for before in itertools.product(others, repeat=length - 1)
        for last in ([END] if length < 3 else range(5))
    ]
    settings = {"num_beams": 16, "max_new_tokens": 3, "length_penalty": length_penalty, "early_stopping": "never"}
    for use_cache in (True, False):
        found = model.generate(image_features=features, use_cache=use_cache, **settings)
        for row in range(2):
            scores = {
                tuple(words): score_of(model, features[row : row + 1], words, length_penalty) for words in sequences
            }
            best = max(scores, key=scores.__getitem__)
            assert tuple(found[row, 1 : 1 + len(best)].tolist()) == best


@BOTH
@torch.no_grad()
def test_decoding_with_and_without_state_gives_the_same_tokens(attention):
    model, batch = tiny_captioner(attention, num_hidden_layers=2, std=0.5), caption_batch(4)
    picture = batch["pixel_values"]
    for settings in (
        {},
        {"num_beams": 4, "num_return_sequences": 4},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 3},
    ):
        written = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            written.append(model.generate(picture, use_cache=use_cache, max_new_tokens=8, **settings))
        assert torch.equal(*written)
        assert len({tuple(row) for row in written[0].tolist()}) > 1


@torch.no_grad()
def test_generated_states_are_carried_and_not_read_anew():
    model, picture = tiny_captioner("additive"), caption_batch()["pixel_values"]
    lengths = []
    forward = model.decoder.forward
    model.decoder.forward = lambda ids, *rest: lengths.append(ids.shape[1]) or forward(ids, *rest)
    model.generate(picture, max_new_tokens=5, min_new_tokens=5)
    assert lengths == [1] * 5


@torch.no_grad()
def test_caption_goes_on_from_words_that_are_given():
    model, picture = tiny_captioner("additive"), caption_batch()["pixel_values"]
    whole = model.generate(picture, max_new_tokens=6, min_new_tokens=6)
    for use_cache in (True, False):
        rest = model.generate(
            picture, decoder_input_ids=whole[:, :3], max_new_tokens=4, min_new_tokens=4, use_cache=use_cache
        )
        assert torch.equal(rest, whole)


# Where it looks


@pytest.mark.parametrize("vision", [None, VIT])
@torch.no_grad()
def test_attention_of_generated_words_is_that_of_one_pass_over_them(vision):
    model, picture = tiny_captioner("additive", vision=vision), caption_batch()["pixel_values"]
    written = model.generate(
        picture, max_new_tokens=5, min_new_tokens=5, output_attentions=True, return_dict_in_generate=True
    )
    maps = model.attention_over_words(picture, written.sequences[:, 1:])
    assert maps.shape == (3, 5, *GRID)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(3, 5))
    for place, (weights,) in enumerate(written.cross_attentions):
        assert weights.shape == (3, 1, 1, 6)
        torch.testing.assert_close(maps[:, place].flatten(1), weights[:, 0, 0])
    assert (maps[:, 1] - maps[:, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_attention_map_lies_as_the_picture_does(monkeypatch):
    model = tiny_captioner("additive", std=0.02)
    model.projector.keys.weight.fill_(1.0)  # a place counts as much as it holds
    model.decoder.attention.score.weight.fill_(1.0)
    features = torch.zeros(1, 6, 10)
    features[0, 4] = 50.0  # row 2, column 0 of a map of 3 rows and 2 columns
    encoded = CnnLstmEncoderOutput(last_hidden_state=features)
    monkeypatch.setattr(model.encoder, "forward", lambda *args, **kwargs: encoded)
    maps = model.attention_over_words(caption_batch(1)["pixel_values"], torch.tensor([[5, END]]))
    assert maps.shape == (1, 2, 3, 2) and (maps[0, :, 2, 0] > 0.9).all()


@torch.no_grad()
def test_attention_over_words_takes_labels_and_refuses_what_it_cannot_show():
    model, batch = tiny_captioner("additive"), caption_batch()
    maps = model.attention_over_words(batch["pixel_values"], batch["labels"])
    (weights,) = model(**batch, output_attentions=True).cross_attentions
    torch.testing.assert_close(maps.flatten(2), weights[:, 0])
    with pytest.raises(ValueError, match="without the start token"):
        model.attention_over_words(batch["pixel_values"], model.generate(batch["pixel_values"], max_new_tokens=3))
    with pytest.raises(ValueError, match="`attention='additive'`, got 'none'"):
        tiny_captioner().attention_over_words(batch["pixel_values"], batch["labels"])


# Vocabulary, adapters, precision


@torch.no_grad()
def test_resized_vocabulary_is_saved_and_known_words_keep_their_scores(tmp_path):
    model, batch = tiny_captioner("additive"), caption_batch()
    before = model(**batch).logits
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    after = model(**batch).logits
    torch.testing.assert_close(after[..., :VOCAB_SIZE], before)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert reloaded.config.vocab_size == after.shape[-1] == VOCAB_SIZE + 5
    torch.testing.assert_close(reloaded(**batch).logits, after)


@BOTH
def test_adapters_on_linear_modules_train_save_and_merge(attention, tmp_path):
    torch.manual_seed(0)
    model, batch = tiny_captioner(attention), caption_batch()
    base = copy.deepcopy(model)
    targets = r"projector\..*" if attention == "none" else r"(projector\..*|decoder\.(attention\.|from_).*)"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    outputs = adapted(**batch)
    outputs.loss.backward()
    learnt = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert learnt and all("lora_" in name for name in learnt)
    assert all(adapted.get_parameter(name).grad.abs().sum() > 0 for name in learnt)
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = base(**batch).logits
        assert (outputs.logits - plain).abs().max() > 1e-3
        merged = PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, outputs.logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(merged.generate(batch["pixel_values"]), adapted.generate(batch["pixel_values"]))


@BOTH
def test_autocast_and_half_precision_stay_near_full_precision(attention):
    model, batch = tiny_captioner(attention, std=0.1).train(), caption_batch()
    wanted = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
        steps = model.generate(batch["pixel_values"], max_new_tokens=4)
    outputs.loss.backward()
    assert abs(outputs.loss - wanted.loss) < 0.02 and steps.shape[1] <= 5
    half = model.to(torch.bfloat16).eval()
    outputs = half(batch["pixel_values"].bfloat16(), labels=batch["labels"], use_cache=True)
    assert outputs.logits.dtype == torch.bfloat16 and abs(outputs.loss - wanted.token_loss) < 0.05
    half.generate(batch["pixel_values"].bfloat16(), max_new_tokens=4, num_beams=2)


# The whole of it


@BOTH
def test_thirty_two_pictures_are_learnt_by_heart(attention):
    torch.manual_seed(0)
    batch = caption_batch(32)
    settings = {"embedding_size": 32, "hidden_size": 64, "attention_regularization": 0.0}
    model = CnnLstmForConditionalGeneration(tiny_config(attention, **settings))
    model.encoder.vision_model.requires_grad_(False)
    train(model, batch, 200, 1e-2)
    written = model.eval().generate(batch["pixel_values"], max_new_tokens=8)
    for row, labels in zip(written.tolist(), batch["labels"].tolist(), strict=True):
        words = [label for label in labels if label != -100]
        assert row[1 : 1 + len(words)] == words
