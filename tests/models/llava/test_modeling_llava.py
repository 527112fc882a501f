"""The whole assistant: one contract for every kind of parts, and the oracles for pictures, loss, packing and decoding."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.parts.language_model import packing_way
from tests.model_contract import Batch, GenerationContract, ModelContract
from tests.models.llava.tiny_llava import (
    CANVAS,
    CLIP_VISION,
    END,
    GEMMA,
    IMAGE,
    LLAMA,
    OPT,
    PAD,
    START,
    VOCAB_SIZE,
    picture_batch,
    prompt_of,
    randomise,
    rows_of,
    tiny_config,
    tiny_llava,
)

SWIN_VISION = {
    "model_type": "hf_vlm_swin",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "image_size": CANVAS,
    "patch_size": (4, 4),
    "window_size": (2, 2),
    "drop_path_rate": 0.0,
}
RESNET_VISION = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
}
GPT2 = {  # with a table of positions, where padding in front must not count
    "model_type": "gpt2",
    "vocab_size": VOCAB_SIZE,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
VQVAE_VISION = {
    "model_type": "hf_vlm_vqvae",
    "image_size": 16,
    "code_dim": 8,
    "hidden_channels": [8, 8],
    "num_residual_blocks": [0, 0],
}


class AssistantContract(ModelContract, GenerationContract):
    """What every pair of parts owes: rows with one picture, two and none share a batch, padded on either side."""

    model_class = LlavaVisionLanguageForConditionalGeneration
    auto_class = AutoModelForImageTextToText
    vision: dict[str, Any] = {}
    text: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    learning_rate = 3e-3
    steps = 40

    def config(self):
        return tiny_config(self.vision, self.text, **self.settings)

    def batch(self, model) -> Batch:
        return picture_batch(model.config.num_image_tokens)

    def single(self, batch, row):
        num_image_tokens = (batch["input_ids"] == IMAGE).sum() // len(batch["pixel_values"])
        real = batch["attention_mask"][row].nonzero().flatten()
        return rows_of(batch, [row], int(num_image_tokens), trim=True), slice(int(real[0]), int(real[-1]) + 1)

    def test_batch_equals_singles(self):
        with torch.no_grad():
            model = self.model()
            batch = self.batch(model)
            together = model(**batch).logits
            for row in range(len(together)):
                single, own = self.single(batch, row)
                torch.testing.assert_close(together[row][own], model(**single).logits[0], atol=2e-5, rtol=0)

    @torch.no_grad()
    def test_attention_implementations_agree(self):
        # Padding at the left has no token to look at: its logits mean nothing.
        model = self.model()
        batch = self.batch(model)
        real = batch["attention_mask"].bool()
        model.set_attn_implementation("sdpa")
        expected = model(**batch).logits[real]
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**batch).logits[real], expected, atol=2e-5, rtol=0)

    def prompt(self, batch):
        return prompt_of(batch)

    def generate(self, model, batch, **settings):
        prompt = self.prompt(batch)
        written = model.generate(**prompt, max_new_tokens=self.max_new_tokens, **settings)
        return written[:, prompt["input_ids"].shape[1] :]

    def learnt_ids(self, model, labels):
        return labels


class TestLlavaOneLayer(AssistantContract):
    """LLaVA's linear projector; the prefix shown too."""

    settings = {"num_linear_layers": 1, "vision_feature_select_strategy": "full"}


class TestLlavaMlp(AssistantContract):
    """LLaVA-1.5's projector, and a language model whose embeddings are tied and scaled."""

    text = GEMMA | {"tie_word_embeddings": True}


class TestSwinOpt(AssistantContract):
    """An encoder whose output is a map, and a language model with learned positions."""

    vision = SWIN_VISION
    text = OPT


# Pictures among words


def merged_by_hand(model, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    """Embeddings with a picture's words written one by one over its places. `features`: (pictures, tokens, width)."""
    embeds = model.language_model.get_input_embeddings()(batch["input_ids"]).clone()
    linears = model.projector.linears
    words = F.linear(features, linears[0].weight, linears[0].bias)
    for linear in linears[1:]:
        words = F.linear(F.gelu(words), linear.weight, linear.bias)
    words = iter(words.flatten(0, 1))
    for row, ids in enumerate(batch["input_ids"].tolist()):
        for place, token in enumerate(ids):
            if token == IMAGE:
                embeds[row, place] = next(words)
    assert next(words, None) is None
    return embeds


@torch.no_grad()
@pytest.mark.parametrize("text", [LLAMA, GEMMA, GPT2], ids=["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("num_linear_layers", [1, 2, 3])
def test_forward_is_the_language_model_on_embeddings_merged_by_hand(num_linear_layers, text):
    model = tiny_llava(CLIP_VISION, text, num_linear_layers=num_linear_layers)
    batch = picture_batch(model.config.num_image_tokens)
    features = model.vision_model(batch["pixel_values"]).last_hidden_state[:, 1:]
    embeds = merged_by_hand(model, batch, features)
    logits = model(**batch).logits
    for row in range(4):  # without padding: positions and masks have no part in it
        real = batch["attention_mask"][row].bool()
        expected = model.language_model(inputs_embeds=embeds[row : row + 1, real]).logits[0]
        torch.testing.assert_close(logits[row][real], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2, -3, -4, 0, 1, 2, 3], ids=lambda layer: f"layer {layer}")
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("family", ["clip_vision_model", "dinov2"])
def test_features_are_those_of_the_layer_and_places_asked_for(family, strategy, layer):
    vision = CLIP_VISION if family == "clip_vision_model" else CLIP_VISION | {"model_type": family, "mlp_ratio": 2}
    model = tiny_llava(vision, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    pixel_values = torch.randn(2, 3, *CANVAS)
    outputs = model.vision_model(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    if family == "dinov2":  # -1 is behind the final norm, 3 before it
        assert (outputs.last_hidden_state - outputs.hidden_states[3]).abs().max() > 0.1
    wanted = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    wanted = wanted[:, 1:] if strategy == "default" else wanted
    assert torch.equal(model.vision_features(pixel_values), wanted)
    assert model.config.num_image_tokens == wanted.shape[1] == (4 if strategy == "default" else 5)
    batch = picture_batch(wanted.shape[1], (2,), (3,))
    features = model.vision_features(batch["pixel_values"])
    expected = model.language_model(inputs_embeds=merged_by_hand(model, batch, features)).logits
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_layer_that_the_vision_model_lacks_is_refused():
    with pytest.raises(ValueError, match="one of its 4 hidden states, got 4"):
        tiny_llava(CLIP_VISION, vision_feature_layer=4)


@pytest.mark.parametrize(
    ("vision", "size"), [(RESNET_VISION, (64, 32)), (VQVAE_VISION, (16, 16))], ids=["resnet", "vqvae"]
)
def test_maps_and_visual_words_are_read_row_by_row(vision, size, tmp_path):
    model = tiny_llava(vision, image_size=list(size))
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        seen = model.vision_model(pixel_values).last_hidden_state
        assert model.vision_features(pixel_values).shape == (2, seen.shape[2] * seen.shape[3], seen.shape[1])
        by_hand = torch.stack(
            [seen[:, :, row, column] for row in range(seen.shape[2]) for column in range(seen.shape[3])], 1
        )
        assert torch.equal(model.vision_features(pixel_values), by_hand)
    batch = picture_batch(model.config.num_image_tokens, size=size)
    with torch.no_grad():
        features = model.vision_features(batch["pixel_values"])
        row = rows_of(batch, [2], model.config.num_image_tokens, trim=True)
        embeds = merged_by_hand(model, row, features[2:4])
        torch.testing.assert_close(
            model(**row).logits, model.language_model(inputs_embeds=embeds).logits, atol=1e-5, rtol=1e-5
        )
        model.save_pretrained(tmp_path)
        reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert torch.equal(reloaded(**batch).logits, model(**batch).logits)
    model(**batch).loss.backward()
    assert model.projector.linears[0].weight.grad.abs().max() > 0


@torch.no_grad()
def test_every_picture_has_its_own_place():
    # A swap of two pictures, within a row or across rows, is seen where it was made and nowhere before.
    model = tiny_llava()
    number = model.config.num_image_tokens
    batch = picture_batch(number)
    before = model(**batch).logits
    for order, rows in (([1, 0, 2, 3], [0, 1]), ([0, 1, 3, 2], [2]), ([0, 2, 1, 3], [1, 2])):
        after = model(**batch | {"pixel_values": batch["pixel_values"][order]}).logits
        changed = (after - before).abs().amax(dim=-1) > 1e-4
        for row in range(4):
            first = int((batch["input_ids"][row] == IMAGE).int().argmax())
            assert bool(changed[row, first:].any()) == (row in rows)
            assert not changed[row, :first].any()


@torch.no_grad()
def test_features_computed_before_stand_for_their_pictures():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    features = model.vision_features(batch["pixel_values"])
    other = {name: value for name, value in batch.items() if name != "pixel_values"} | {"image_features": features}
    outputs, expected = model(**other), model(**batch)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.image_features, expected.image_features)
    generated = model.generate(**prompt_of(other), max_new_tokens=5)
    assert torch.equal(generated, model.generate(**prompt_of(batch), max_new_tokens=5))


@torch.no_grad()
def test_image_features_are_given_in_transformers_form():
    model = tiny_llava()
    pixel_values = torch.randn(3, 3, *CANVAS)
    outputs = model.get_image_features(pixel_values)
    assert torch.equal(outputs.last_hidden_state, model.vision_features(pixel_values))
    assert [picture.shape for picture in outputs.pooler_output] == [(4, 24)] * 3
    batch = picture_batch(4, (3,), (2,)) | {"pixel_values": pixel_values}
    assert torch.equal(torch.stack(list(outputs.pooler_output)), model(**batch).image_features)


@pytest.mark.parametrize("name", ["pixel_values", "image_features"])
def test_pictures_and_places_of_another_number_are_refused(name):
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    if name == "image_features":
        batch["image_features"] = model.vision_features(batch.pop("pixel_values")).detach()
    with pytest.raises(ValueError, match="4 image tokens a picture, got 16 for 3 pictures of 4 tokens"):
        model(**batch | {name: batch[name][:3]})
    with pytest.raises(ValueError, match="got 16 for 5 pictures"):
        model(**batch | {name: torch.cat([batch[name], batch[name][:1]])})
    without = {key: value for key, value in batch.items() if key != name}
    with pytest.raises(ValueError, match="with every picture of `input_ids`, got none for 16 image tokens"):
        model(**without)
    with pytest.raises(ValueError, match="with every picture of `input_ids`, got none for 16 image tokens"):
        model.generate(**prompt_of(without | {"labels": batch["labels"]}), max_new_tokens=2)
    with pytest.raises(ValueError, match="got 16 for 3 pictures"):
        model.generate(**prompt_of(batch | {name: batch[name][:3]}), max_new_tokens=2)


def test_ids_and_embeddings_are_not_both_taken():
    model = tiny_llava()
    ids = torch.tensor([[START, 7]])
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="got both"):
        model(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="got neither"):
        model()
    with pytest.raises(ValueError, match="Pictures are placed by `input_ids`"):
        model(inputs_embeds=embeds, pixel_values=torch.randn(1, 3, *CANVAS))
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_pictures_of_another_size_are_read_where_the_vision_model_can():
    model = tiny_llava(image_size=[24, 16])
    assert model.config.num_image_tokens == 6
    batch = picture_batch(6, size=(24, 16))
    features = model.vision_model(batch["pixel_values"], interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    assert torch.equal(model.vision_features(batch["pixel_values"]), features)
    assert model(**batch).logits.isfinite().all()


# Text alone

TEXTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma": GEMMA,  # scales embeddings in `forward`
    "xglm": {  # in the embedding module
        "model_type": "xglm",
        "vocab_size": VOCAB_SIZE,
        "d_model": 24,
        "ffn_dim": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "granite": LLAMA | {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 4.0},
    "opt": OPT,
    "mamba": {
        "model_type": "mamba",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 24,
        "state_size": 4,
        "num_hidden_layers": 2,
    },
}


def with_plain_language_model(family: str):
    """An assistant, and its language model as its own folder would give it."""
    model = tiny_llava(text=TEXTS[family])
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TEXTS[family])).eval()
    plain.load_state_dict(model.language_model.state_dict())
    return model, plain


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_text_alone_gives_the_logits_of_the_plain_language_model(family):
    model, plain = with_plain_language_model(family)
    ids = torch.randint(3, IMAGE, (2, 9))
    expected = plain(input_ids=ids).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
    last = model(input_ids=ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, expected[:, -2:], atol=1e-5, rtol=1e-5)
    kept = model(input_ids=ids, logits_to_keep=torch.tensor([0, 4])).logits
    torch.testing.assert_close(kept, expected[:, [0, 4]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma", "xglm", "granite", "opt"])
def test_text_alone_generates_what_the_plain_language_model_generates(family, num_beams):
    model, plain = with_plain_language_model(family)
    ids = torch.randint(3, IMAGE, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # padding at the left
    settings = {"max_new_tokens": 5, "num_beams": num_beams, "eos_token_id": END, "pad_token_id": PAD}
    expected = plain.generate(ids, attention_mask=mask, suppress_tokens=[IMAGE], **settings)
    assert torch.equal(model.generate(ids, attention_mask=mask, **settings), expected)


# Loss


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


def sixteen_rows(num_image_tokens: int) -> Batch:
    """Rows of no, one or two pictures, and of 2 to 6 labels: means over batches are not means of means."""
    return picture_batch(num_image_tokens, [row % 3 for row in range(16)], [2 + row % 5 for row in range(16)])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_is_the_mean_cross_entropy_of_the_next_token(mode):
    model = tiny_llava()
    model.train(mode == "train")
    batch = picture_batch(model.config.num_image_tokens)
    outputs = model(**batch)
    log_probs = torch.log_softmax(outputs.logits, dim=-1)
    expected = [
        -log_probs[row, place - 1, label]
        for row, labels in enumerate(batch["labels"].tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    assert len(expected) == 16
    torch.testing.assert_close(outputs.loss, torch.stack(expected).mean())
    by_hand = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(outputs.loss, by_hand)
    for number in (50, torch.tensor(50)):
        torch.testing.assert_close(model(**batch, num_items_in_batch=number).loss, by_hand * 16 / 50)


@pytest.mark.parametrize("loss_chunk_size", [None, 4])
def test_labels_that_come_shifted_are_not_shifted_again(loss_chunk_size):
    model = tiny_llava().train()
    model.loss_chunk_size = loss_chunk_size
    batch = picture_batch(model.config.num_image_tokens)
    expected = model(**batch).loss
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    for labels in (None, torch.full_like(shifted, 11)):  # which says nothing beside them
        torch.testing.assert_close(model(**batch | {"labels": labels, "shift_labels": shifted}).loss, expected)


def test_batch_without_labels_that_count_has_loss_zero():
    model = tiny_llava().train()
    batch = picture_batch(model.config.num_image_tokens)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("loss_chunk_size", [None, 5])
def test_eight_accumulated_batches_equal_one_large_batch(loss_chunk_size):
    model = tiny_llava().train()
    model.loss_chunk_size = loss_chunk_size
    batch = sixteen_rows(model.config.num_image_tokens)
    large_loss = model(**batch).loss
    large_loss.backward()
    large = gradients_of(model)
    assert max(gradient.abs().max() for gradient in large.values()) > 1e-2
    model.zero_grad()
    num_items = (batch["labels"] != -100).sum()
    total = 0.0
    for start in range(0, 16, 2):
        part = rows_of(batch, [start, start + 1], model.config.num_image_tokens)
        loss = model(**part, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(large_loss.item(), abs=1e-5)
    assert_same_gradients(gradients_of(model), large)


@pytest.mark.parametrize(
    "text", [LLAMA, GEMMA | {"tie_word_embeddings": True}, TEXTS["granite"]], ids=lambda t: t["model_type"]
)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss_chunk_size", [1, 7, 1000])
def test_logits_of_a_chunk_at_a_time_give_equal_loss_and_gradients(loss_chunk_size, label_smoothing, text):
    model = tiny_llava(text=text, label_smoothing=label_smoothing).train()
    batch = picture_batch(model.config.num_image_tokens)
    whole = model(**batch, num_items_in_batch=20)
    whole.loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    model.loss_chunk_size = loss_chunk_size
    outputs = model(**batch, num_items_in_batch=20)
    outputs.loss.backward()
    assert outputs.logits is None and whole.logits is not None
    torch.testing.assert_close(outputs.loss, whole.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients_of(model), expected)


def test_chunks_in_evaluation_give_the_plain_loss():
    model = tiny_llava(label_smoothing=0.2)
    batch = picture_batch(model.config.num_image_tokens)
    expected = model(**batch).loss
    model.loss_chunk_size = 3
    torch.testing.assert_close(model(**batch).loss, expected)
    assert model(**{name: value for name, value in batch.items() if name != "labels"}).logits is not None


def test_chunks_reach_a_trained_body_below_a_frozen_head():
    model = tiny_llava().train()
    model.get_output_embeddings().requires_grad_(False)
    batch = picture_batch(model.config.num_image_tokens)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    model.loss_chunk_size = 3
    model(**batch).loss.backward()
    assert "language_model.lm_head.weight" not in expected
    assert_same_gradients(gradients_of(model), expected)


def test_label_smoothing_has_its_closed_form_in_training_only():
    model = tiny_llava(label_smoothing=0.2)
    batch = picture_batch(model.config.num_image_tokens)
    plain = model(**batch).loss
    outputs = model.train()(**batch)
    log_probs = torch.log_softmax(outputs.logits[:, :-1], dim=-1)
    labels = batch["labels"][:, 1:]
    counts = labels != -100
    label_term = -log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0][counts].mean()
    even_term = -log_probs.mean(dim=-1)[counts].mean()
    torch.testing.assert_close(outputs.loss, 0.8 * label_term + 0.2 * even_term)
    torch.testing.assert_close(plain, label_term)


def one_step(model, batch: Batch, folder, per_device: int, accumulation: int, **settings: Any):
    """Weights after one step of Trainer with plain gradient descent, and the loss it logged."""
    number = model.config.num_image_tokens
    rows = [rows_of(batch, [row], number) for row in range(len(batch["labels"]))]

    def collate(examples: list[Batch]) -> Batch:
        return {name: torch.cat([e[name] for e in examples if name in e]) for name in examples[0] | examples[-1]}

    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        max_grad_norm=0.0,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    return dict(model.named_parameters()), trainer.state.log_history[0]["loss"]


def test_accumulation_under_trainer_equals_one_large_batch(tmp_path):
    model = tiny_llava(gain=0.5)
    batch = sixteen_rows(model.config.num_image_tokens)
    large, large_loss = one_step(copy.deepcopy(model), batch, tmp_path, 16, 1)
    small, small_loss = one_step(copy.deepcopy(model), batch, tmp_path, 2, 8)
    assert large_loss == pytest.approx(small_loss, abs=1e-4)
    moved = 0.0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(small[name], large[name], atol=1e-5, rtol=1e-5)
        moved = max(moved, (large[name] - parameter).abs().max().item())
    assert moved > 1e-3


# Packing


def packed(batch: Batch, num_image_tokens: int) -> Batch:
    """The samples of a batch in one row, positions starting again with each."""
    samples = [rows_of(batch, [row], num_image_tokens, trim=True) for row in range(len(batch["labels"]))]
    row = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples], dim=1),
        "labels": torch.cat([sample["labels"] for sample in samples], dim=1),
        "position_ids": torch.cat([torch.arange(sample["labels"].shape[1]) for sample in samples])[None],
    }
    assert (row["labels"][row["position_ids"] == 0] == -100).all()
    return row | {name: batch[name] for name in ("pixel_values", "image_features") if name in batch}


@pytest.mark.parametrize("loss_chunk_size", [None, 6])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("text", "way"), [(LLAMA, "positions"), (GEMMA, "positions"), (OPT, "mask")], ids=["llama", "gemma", "opt"]
)
def test_packed_row_equals_separate_samples_in_loss_and_gradients(text, way, checkpointing, loss_chunk_size):
    model = tiny_llava(text=text).train()
    assert packing_way(model.language_model) == way
    model.packs_by_mask = way == "mask"
    model.loss_chunk_size = loss_chunk_size
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = picture_batch(model.config.num_image_tokens)
    separate_loss = model(**batch).loss
    separate_loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    loss = model(**packed(batch, model.config.num_image_tokens)).loss
    loss.backward()
    torch.testing.assert_close(loss, separate_loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients_of(model), expected)


@torch.no_grad()
def test_packed_samples_do_not_see_each_other_in_evaluation_either():
    model = tiny_llava()
    number = model.config.num_image_tokens
    batch = picture_batch(number)
    row = packed(batch, number)
    before = model(**row).logits[0]
    starts = (row["position_ids"][0] == 0).nonzero().flatten().tolist()
    changed = row["input_ids"].clone()
    changed[0, starts[1] - 2] = 20  # the first sample's last word but one
    after = model(**row | {"input_ids": changed}).logits[0]
    difference = (after - before).abs().amax(dim=-1)
    assert difference[: starts[1]].max() > 1e-3 and difference[starts[1] :].max() == 0


def test_language_model_that_wants_a_mask_would_mix_samples_without_it():
    # The oracle can tell: OPT's samples, packed by positions alone, see each other.
    model = tiny_llava(text=OPT).train()
    batch = picture_batch(model.config.num_image_tokens)
    row = packed(batch, model.config.num_image_tokens)
    assert (model(**row).loss - model(**batch).loss).abs() > 1e-3


# Every part in every step


@pytest.mark.parametrize("frozen", [True, False], ids=["vision frozen", "vision trained"])
def test_text_only_batch_gives_the_projector_zero_gradients(frozen):
    model = tiny_llava().train()
    model.vision_model.requires_grad_(not frozen)
    batch = picture_batch(model.config.num_image_tokens, (0, 0), (3, 4))
    model(**batch).loss.backward()
    parts = [model.projector] if frozen else [model.projector, model.vision_model]
    for part in parts:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name
    if frozen:
        assert all(parameter.grad is None for parameter in model.vision_model.parameters())
    expected = {name: gradient for name, gradient in gradients_of(model).items() if name.startswith("language")}
    # ... and changes nothing for the words.
    plain = copy.deepcopy(model.language_model)
    plain.zero_grad()
    plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(expected[f"language_model.{name}"], parameter.grad, atol=1e-5, rtol=1e-4)


def test_text_only_batch_in_evaluation_does_not_ask_the_vision_model():
    model = tiny_llava()
    model.vision_model.forward = None
    batch = picture_batch(model.config.num_image_tokens, (0, 0), (3, 4))
    assert model(**batch).loss.isfinite()


def test_frozen_vision_model_gets_no_gradient_and_the_projector_does():
    model = tiny_llava().train()
    model.vision_model.requires_grad_(False)
    model.language_model.requires_grad_(False)
    model(**picture_batch(model.config.num_image_tokens)).loss.backward()
    assert set(gradients_of(model)) == {f"projector.linears.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert all(gradient.abs().max() > 0 for gradient in gradients_of(model).values())


# Decoding


def count_calls(module) -> list[int]:
    """Batch sizes that a module is called with from now on."""
    sizes: list[int] = []
    module.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("text", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("name", ["pixel_values", "image_features"])
def test_rows_with_different_numbers_of_pictures_decode_as_alone(name, text, num_beams):
    model = tiny_llava(text=text)
    number = model.config.num_image_tokens
    batch = picture_batch(number, (1, 3, 0, 2), (2, 2, 2, 2))
    if name == "image_features":
        with torch.no_grad():
            batch["image_features"] = model.vision_features(batch.pop("pixel_values"))
    settings = {"max_new_tokens": 6, "num_beams": num_beams, "min_new_tokens": 6}
    seen = count_calls(model.vision_model)
    together = model.generate(**prompt_of(batch), **settings)
    assert seen == ([6] if name == "pixel_values" else [])  # each picture once, whatever the number of beams
    answers = together[:, -6:]
    assert len({tuple(answer) for answer in answers.tolist()}) >= 3
    for row in range(4):
        alone = model.generate(**prompt_of(rows_of(batch, [row], number, trim=True)), **settings)
        assert torch.equal(alone[0, -6:], answers[row])


def test_pictures_are_seen_once_a_generation():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    seen, projected = count_calls(model.vision_model), count_calls(model.projector)
    for settings in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        seen.clear(), projected.clear()
        model.generate(**prompt_of(batch), max_new_tokens=4, min_new_tokens=4, **settings)
        assert len(seen) == len(projected) == 1


def test_several_answers_a_prompt_keep_their_pictures():
    model = tiny_llava()
    number = model.config.num_image_tokens
    batch = picture_batch(number)
    torch.manual_seed(0)
    settings = {"max_new_tokens": 4, "do_sample": True, "top_k": 1}  # sampling of one: greedy
    three = model.generate(**prompt_of(batch), num_return_sequences=3, **settings)
    one = model.generate(**prompt_of(batch), max_new_tokens=4)
    assert torch.equal(three, one.repeat_interleave(3, dim=0))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_image_token_is_never_said(num_beams, tmp_path):
    model = tiny_llava()
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForImageTextToText.from_pretrained(tmp_path)):
        batch = picture_batch(each.config.num_image_tokens)

        def shout(module, inputs, output):
            output.logits[..., IMAGE] += 1e4

        each.language_model.register_forward_hook(shout)
        with torch.no_grad():
            assert (each(**batch).logits.argmax(-1) == IMAGE).all()
        written = each.generate(**prompt_of(batch), max_new_tokens=5, num_beams=num_beams)
        assert not (written[:, -5:] == IMAGE).any()


def test_generation_goes_on_from_a_cache():
    # A conversation's second question reads its own tokens alone, not the pictures again.
    model = tiny_llava()
    number = model.config.num_image_tokens
    batch = rows_of(picture_batch(number), [2], number, trim=True)
    prompt = prompt_of(batch)
    first = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    question = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], dim=1)
    pictures = {"pixel_values": prompt["pixel_values"]}
    expected = model.generate(question, attention_mask=torch.ones_like(question), **pictures, max_new_tokens=4)
    seen = count_calls(model.vision_model)
    cached = model.generate(question, attention_mask=torch.ones_like(question), cache=first.cache, max_new_tokens=4)
    assert torch.equal(cached, expected) and not seen


@torch.no_grad()
def test_half_precision_stays_close():
    model = tiny_llava(gain=0.5)
    batch = picture_batch(model.config.num_image_tokens)
    expected = model(**batch)
    model = model.to(torch.bfloat16)
    for pixel_values in (batch["pixel_values"], batch["pixel_values"].bfloat16()):
        outputs = model(**batch | {"pixel_values": pixel_values})
        assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32
        real = batch["attention_mask"].bool()
        limit = 0.05 * expected.logits.abs().max().item()
        torch.testing.assert_close(outputs.logits.float()[real], expected.logits[real], atol=limit, rtol=0)


@torch.no_grad()
def test_parts_of_different_precision_work_together():
    # A frozen encoder in bfloat16 below a projector that trains in float32.
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    model.vision_model.to(torch.bfloat16)
    assert model(**batch).logits.dtype == torch.float32
    model.language_model.to(torch.bfloat16)
    assert model(**batch).logits.dtype == torch.bfloat16


@pytest.mark.slow
@torch.no_grad()
def test_compiled_forward_gives_equal_logits():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    expected = model(**batch)
    compiled = torch.compile(model)(**batch)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled.loss, expected.loss)


@pytest.mark.slow
def test_compiled_training_step_gives_equal_gradients():
    model = tiny_llava().train()
    batch = picture_batch(model.config.num_image_tokens)
    model(**batch).loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    torch.compile(model)(**batch).loss.backward()
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_gives_equal_tokens():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    settings = {"max_new_tokens": 6, "cache_implementation": "static"}
    expected = model.generate(**prompt_of(batch), **settings)
    model.language_model.forward = torch.compile(model.language_model.forward, fullgraph=True)
    assert torch.equal(model.generate(**prompt_of(batch), **settings), expected)


# Parts and vocabulary


def test_parts_are_found_by_role():
    model = tiny_llava()
    assert model.get_encoder(modality="image") is model.vision_model
    assert model.get_decoder() is model.language_model.model
    assert model.get_input_embeddings() is model.language_model.model.embed_tokens
    assert model.get_output_embeddings() is model.language_model.lm_head


@torch.no_grad()
@pytest.mark.parametrize("text", [LLAMA, GEMMA | {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_vocabulary_grows_and_pictures_keep_their_places(text, tmp_path):
    model = tiny_llava(text=text)
    batch = picture_batch(model.config.num_image_tokens)
    before = model(**batch).logits
    tokens = model.generate(**prompt_of(batch), max_new_tokens=4)
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert model.config.text_config.vocab_size == VOCAB_SIZE + 3
    tied = model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert tied == (text["model_type"] == "gemma")
    after = model(**batch).logits
    assert after.shape[-1] == VOCAB_SIZE + 3
    assert torch.equal(after[..., :VOCAB_SIZE], before)
    new = [[VOCAB_SIZE + i] for i in range(3)]
    assert torch.equal(model.generate(**prompt_of(batch), max_new_tokens=4, bad_words_ids=new), tokens)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(reloaded(**batch).logits, after)


def test_tuple_output_begins_with_loss_and_logits():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    outputs = model(**batch)
    loss, logits = model(**batch, return_dict=False)[:2]
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)


def test_states_and_attentions_of_the_language_model_are_given_on_demand():
    model = tiny_llava()
    batch = picture_batch(model.config.num_image_tokens)
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    length = batch["input_ids"].shape[1]
    assert [states.shape for states in outputs.hidden_states] == [(4, length, 24)] * 3
    assert [weights.shape for weights in outputs.attentions] == [(4, 4, length, length)] * 2


# Configurations


def clip_parameters(width: int, mlp: int, layers: int, image_size: int, patch: int) -> int:
    embeddings = width + 3 * patch**2 * width + ((image_size // patch) ** 2 + 1) * width
    layer = 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width
    return embeddings + layers * layer + 4 * width  # a norm before and one behind


def llama_parameters(width: int, mlp: int, layers: int, vocabulary: int) -> int:
    layer = 4 * width**2 + 3 * width * mlp + 2 * width
    return 2 * vocabulary * width + layers * layer + width


def projector_parameters(vision: int, text: int, layers: int) -> int:
    return vision * text + text + (layers - 1) * (text**2 + text)


@pytest.mark.parametrize(
    ("name", "image_size", "width", "mlp", "layers", "linears"),
    [
        ("llava-7b", 224, 4096, 11008, 32, 1),
        ("llava-13b", 224, 5120, 13824, 40, 1),
        ("llava-1.5-7b", 336, 4096, 11008, 32, 2),
        ("llava-1.5-13b", 336, 5120, 13824, 40, 2),
    ],
)
def test_presets_have_the_published_sizes(name, image_size, width, mlp, layers, linears):
    config = LlavaVisionLanguageConfig.preset(name)
    with torch.device("meta"):
        model = LlavaVisionLanguageForConditionalGeneration(config)
    vocabulary = 32001  # 32000 words and the image token
    expected = (
        clip_parameters(1024, 4096, 24, image_size, 14)
        + projector_parameters(1024, width, linears)
        + llama_parameters(width, mlp, layers, vocabulary)
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert config.num_image_tokens == (image_size // 14) ** 2 == {224: 256, 336: 576}[image_size]
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.image_token_id, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (32000, 1, 2, 0)
    if name == "llava-1.5-7b":
        # llava-hf/llava-1.5-7b-hf has 7,063,427,072: its vocabulary is padded to 32064 rows.
        assert expected == 7_063_427_072 - 2 * 63 * 4096
        theirs = LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32001, "max_position_embeddings": 4096})
        with torch.device("meta"):
            peer = LlavaForConditionalGeneration(theirs)
        assert sum(parameter.numel() for parameter in peer.parameters()) == expected


def test_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="llava-7b, llava-13b, llava-1.5-7b, llava-1.5-13b, got `llava-2`"):
        LlavaVisionLanguageConfig.preset("llava-2")


def test_settings_go_over_a_preset_and_leave_it_alone():
    changed = LlavaVisionLanguageConfig.preset("llava-1.5-7b", num_linear_layers=3, label_smoothing=0.1)
    assert (changed.num_linear_layers, changed.label_smoothing) == (3, 0.1)
    changed.text_config.hidden_size = 8
    assert LlavaVisionLanguageConfig.preset("llava-1.5-7b").text_config.hidden_size == 4096


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_linear_layers": 0}, "`num_linear_layers` must be 1 or more, got 0"),
        ({"projector_hidden_act": "gelo"}, "`projector_hidden_act` must be .* got 'gelo'"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\), got 1.0"),
        ({"image_size": [0, 16]}, r"`image_size` must be \[height, width\] in pixels, got \[0, 16\]"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(Exception, match=said):
        tiny_config(**settings)


def test_config_knows_special_tokens_of_its_language_model():
    config = tiny_config()
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (START, END, PAD)
    assert tiny_config(text=GEMMA | {"tie_word_embeddings": True}).tie_word_embeddings
    assert not tiny_config().tie_word_embeddings


def test_model_leaves_no_state_in_a_config_shared_by_two():
    config = tiny_config()
    first, second = (LlavaVisionLanguageForConditionalGeneration(copy.deepcopy(config)) for _ in range(2))
    first.set_attn_implementation("eager")
    batch = picture_batch(second.config.num_image_tokens)
    randomise(first)
    second.load_state_dict(first.state_dict())
    assert second.config._attn_implementation == "sdpa"
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(first(**batch).logits[real], second(**batch).logits[real], atol=1e-5, rtol=1e-4)
