"""Oracles: transformers' own classifiers, with every parameter random; the loss worked out by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
)

from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.models.vit.image_classification import VisionTransformerForImageClassification
from hf_vlm.models.vit.modeling_vit import VisionTransformerModel
from tests.model_contract import ModelContract
from tests.models.vit.test_weights_vit import random_model

CLASSIFIERS = {
    "vit": (ViTForImageClassification, ViTConfig, {"num_labels": 5}),
    "deit": (DeiTForImageClassification, DeiTConfig, {"num_labels": 5}),
    "deit_teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, {"num_labels": 5}),
    "beit": (BeitForImageClassification, BeitConfig, {"num_labels": 5, "use_relative_position_bias": True}),
    "beit_cls": (BeitForImageClassification, BeitConfig, {"num_labels": 5, "use_mean_pooling": False}),
}


class TestVisionTransformerForImageClassification(ModelContract):
    model_class = VisionTransformerForImageClassification
    auto_class = AutoModelForImageClassification

    def config(self):
        return VisionTransformerConfig(hidden_size=32, num_labels=5, num_linear_layers=2, num_register_tokens=2)

    def batch(self, model):
        torch.manual_seed(0)
        return {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 3, 1])}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_foreign_classifier_gives_equal_logits(name: str, tmp_path: Path) -> None:
    theirs = random_model(*CLASSIFIERS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = VisionTransformerForImageClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours.save_pretrained(tmp_path / "ours")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    for height, width in [(32, 32), (40, 24)]:
        pixel_values = torch.randn(2, 3, height, width)
        other_size = (height, width) != (32, 32)
        with torch.no_grad():
            expected = theirs(pixel_values, interpolate_pos_encoding=other_size).logits
            got = ours(pixel_values, interpolate_pos_encoding=other_size).logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def tiny_classifier(**settings: object) -> VisionTransformerForImageClassification:
    torch.manual_seed(0)
    return VisionTransformerForImageClassification(
        VisionTransformerConfig(**{"hidden_size": 16, "num_labels": 3, **settings})
    )


def test_loss_of_classes_and_of_probabilities_is_the_mean_over_pictures() -> None:
    model = tiny_classifier().eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    outputs = model(pixel_values, labels=torch.tensor([2, 0]))
    by_hand = -(outputs.logits[0].log_softmax(0)[2] + outputs.logits[1].log_softmax(0)[0]) / 2
    torch.testing.assert_close(outputs.loss, by_hand)
    mixed = torch.tensor([[0.3, 0.0, 0.7], [1.0, 0.0, 0.0]])
    by_hand = -(mixed * outputs.logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(pixel_values, labels=mixed).loss, by_hand)


def test_label_smoothing_is_for_training_only() -> None:
    model = tiny_classifier(label_smoothing=0.3)
    pixel_values, labels = torch.randn(2, 3, 32, 32), torch.tensor([2, 0])
    outputs = model.train()(pixel_values, labels=labels)
    target = torch.nn.functional.one_hot(labels, 3) * 0.7 + 0.1
    torch.testing.assert_close(outputs.loss, -(target * outputs.logits.log_softmax(1)).sum(1).mean())
    outputs = model.eval()(pixel_values, labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))


def test_distillation_head_learns_the_teachers_classes() -> None:
    settings = {"use_distillation_token": True, "use_distillation_head": True}
    model = tiny_classifier(**settings).eval()
    pixel_values, labels, teacher = torch.randn(2, 3, 32, 32), torch.tensor([2, 0]), torch.tensor([1, 1])
    tokens = model.vision_model(pixel_values).last_hidden_state
    by_cls, by_token = model.classifier(tokens[:, 0]), model.distillation_classifier(tokens[:, 1])
    outputs = model(pixel_values, labels=labels, distillation_labels=teacher)
    torch.testing.assert_close(outputs.logits, (by_cls + by_token) / 2)
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(outputs.loss, (cross_entropy(by_cls, labels) + cross_entropy(by_token, teacher)) / 2)
    with pytest.raises(ValueError, match="are for a distillation head, got a model without"):
        tiny_classifier()(pixel_values, labels=labels, distillation_labels=teacher)


@torch.no_grad()
def test_head_has_as_many_layers_as_asked_for() -> None:
    model = tiny_classifier(num_linear_layers=3, pooling="mean", use_cls_token=False).eval()
    assert len(model.classifier.hidden_layers) == 2
    pixel_values = torch.randn(2, 3, 32, 32)
    vector = model.vision_model(pixel_values).pooler_output
    for layer in model.classifier.hidden_layers:
        vector = torch.tanh(vector @ layer.weight.T + layer.bias)
    last = model.classifier.output_layer
    torch.testing.assert_close(model(pixel_values).logits, vector @ last.weight.T + last.bias)


@pytest.mark.parametrize("has_both", [True, False])
def test_reset_head_is_saved_and_reloaded(has_both: bool, tmp_path: Path) -> None:
    model = tiny_classifier(num_linear_layers=2, use_distillation_token=has_both, use_distillation_head=has_both)
    model.reset_head(num_labels=7)
    if has_both:
        assert model.distillation_classifier.output_layer.weight.shape == (7, 16)
    assert torch.equal(model(torch.randn(1, 3, 32, 32)).logits, torch.zeros(1, 7))
    model.save_pretrained(tmp_path)
    reloaded = VisionTransformerForImageClassification.from_pretrained(tmp_path)
    assert reloaded.config.num_labels == 7 and reloaded.config.num_linear_layers == 1
    with pytest.raises(ValueError, match="`num_labels` must be at least 1, got 0"):
        model.reset_head(num_labels=0)


@torch.no_grad()
def test_without_cls_token_and_pooling_the_mean_of_the_patches_is_read() -> None:
    model = tiny_classifier(use_cls_token=False, num_register_tokens=2).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    patches = model.vision_model(pixel_values).last_hidden_state[:, 2:]
    torch.testing.assert_close(model(pixel_values).logits, model.classifier(patches.mean(1)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"must be int64 \(2,\) classes or float \(2, 3\), got torch.int64 \(3,\)"),
        (torch.zeros(2, 4), r"got torch.float32 \(2, 4\)"),
        (torch.zeros(2), r"got torch.float32 \(2,\)"),
    ],
)
def test_labels_of_another_shape_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_classifier()(torch.zeros(2, 3, 32, 32), labels=labels)


def test_base_folder_gives_a_classifier_with_a_new_head(tmp_path: Path) -> None:
    base = VisionTransformerModel(VisionTransformerConfig(hidden_size=16))
    base.save_pretrained(tmp_path)
    model = VisionTransformerForImageClassification.from_pretrained(tmp_path, num_labels=4)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 4)
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.state_dict()[f"vision_model.{name}"], tensor)


def test_gradients_of_accumulated_batches_add_up_to_those_of_one(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(16)]
    weights = []
    for batch, steps in ((16, 1), (2, 8)):
        model = tiny_classifier()
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1, use_cpu=True,
            learning_rate=0.1, optim="sgd", max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_mean_of_patches_leaves_padding_out() -> None:
    model = tiny_classifier(use_cls_token=False, num_register_tokens=1).eval()
    pixel_values, pixel_mask = torch.randn(2, 3, 32, 32), torch.ones(2, 32, 32)
    pixel_mask[0, :, 16:] = 0
    alone = model(pixel_values[:1, ..., :16], pixel_mask=pixel_mask[:1, :, :16]).logits[0]
    torch.testing.assert_close(model(pixel_values, pixel_mask=pixel_mask).logits[0], alone)


def test_home_classifier_takes_other_classes(tmp_path: Path) -> None:
    random_model(*CLASSIFIERS["vit"]).save_pretrained(tmp_path)
    names = {0: "cat", 1: "dog", 2: "eel"}
    model = VisionTransformerForImageClassification.from_pretrained(
        tmp_path, id2label=names, ignore_mismatched_sizes=True
    )
    assert model.config.id2label == names
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="must have the shapes that its config asks for"):
        VisionTransformerForImageClassification.from_pretrained(tmp_path, num_labels=9)


def test_head_that_is_there_in_part_only_is_refused(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.output_layer.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="got none for 1 tensors, the first `classifier.output_layer.bias`"):
        VisionTransformerForImageClassification.from_pretrained(tmp_path)


def test_classes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 2, got 0 to 3"):
        tiny_classifier()(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 3]))


def test_callers_config_stays_as_it_is(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    config = VisionTransformerConfig.from_pretrained(tmp_path)
    config.image_size = 64
    for _ in range(2):
        model = VisionTransformerForImageClassification.from_pretrained(tmp_path, config=config)
        assert config.image_size == model.config.image_size == 64


def test_teachers_classes_are_not_smoothed() -> None:
    settings = {"use_distillation_token": True, "use_distillation_head": True, "label_smoothing": 0.5}
    model = tiny_classifier(**settings).train()
    pixel_values, labels, teacher = torch.randn(2, 3, 32, 32), torch.tensor([2, 0]), torch.tensor([1, 1])
    tokens = model.vision_model(pixel_values).last_hidden_state
    cross_entropy = torch.nn.functional.cross_entropy
    of_labels = cross_entropy(model.classifier(tokens[:, 0]), labels, label_smoothing=0.5)
    of_teacher = cross_entropy(model.distillation_classifier(tokens[:, 1]), teacher)
    loss = model(pixel_values, labels=labels, distillation_labels=teacher).loss
    torch.testing.assert_close(loss, (of_labels + of_teacher) / 2)
