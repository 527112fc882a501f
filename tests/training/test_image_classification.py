"""Training on pictures: what runs must equal, and what they refuse before they start."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ConvNextImageProcessor,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_vlm import VAEConfig, VAEModel, VisionTransformerForImageClassification, VQVAEConfig, VQVAEModel
from hf_vlm.data.labelled_images import ImageAugmentation, ProcessedBatch, TrainingBatch, TrainingImages, read_images
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.training.dry_run import dry_run
from hf_vlm.training.image_classification import build_trainer, train
from hf_vlm.training.image_models import build_model, measure_processor
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.scores.image_evaluation import evaluate_image_folders
from hf_vlm.training.scores.metrics import top_k_accuracy
from tests.training.tiny_pictures import (
    COLOURS,
    picture_recipe_of,
    tiny_picture_recipe,
    write_picture_splits,
    write_pictures,
)

NAMES = sorted(COLOURS)
FOREIGN = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
SWIN = {
    "model_type": "hf_vlm_swin",
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 4,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_picture_splits(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def sections(pictures, tmp_path):
    return tiny_picture_recipe(pictures, tmp_path / "out")


@pytest.fixture
def masked_sections(pictures, tmp_path):
    return tiny_picture_recipe(pictures, tmp_path / "masked", "masked-image-modeling")


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:  # one step behind the last checkpoint
            raise KeyboardInterrupt


def history(trainer, *keys):
    return [tuple(entry.get(key) for key in ("step", *keys)) for entry in trainer.state.log_history]


@pytest.mark.parametrize("kind", ["ours", "swin", "transformers' own", "masked"])
def test_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one(kind, pictures, tmp_path, monkeypatch, caplog):
    runs = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        task = "masked-image-modeling" if kind == "masked" else "image-classification"
        runs[name] = tiny_picture_recipe(pictures, tmp_path / name / "out", task)
        runs[name]["training"]["dataloader_num_workers"] = 2 * (kind == "ours" and name == "stopped")
        if kind == "swin":
            runs[name]["model"]["config"] = {**SWIN, "drop_path_rate": 0.1}
        if kind == "transformers' own":
            # with dropout, and weights whose names in the file are not those in memory
            runs[name]["model"]["config"] = {**FOREIGN, "hidden_dropout_prob": 0.1}
        if kind != "masked":
            runs[name]["data"]["augmentation"] |= {"mixup": 0.8, "cutmix": 1.0, "randaugment_ops": 1}
            runs[name]["optimizer"] = {"layer_decay": 0.8}
    whole = train(picture_recipe_of(runs["whole"]))
    assert whole.state.global_step == 6
    stopped = picture_recipe_of(runs["stopped"])
    with monkeypatch.context() as patch:
        trainer = build_trainer(stopped)
        trainer.add_callback(Stop())
        patch.setattr("hf_vlm.training.image_classification.build_trainer", lambda recipe: trainer)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    resumed = train(stopped)
    assert f"Going on from {tmp_path / 'stopped' / 'out' / 'checkpoint-4'}" in caplog.text
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        weights, of_whole = (load_file(tmp_path / run / "out" / name) for run in ("stopped", "whole"))
        assert weights.keys() == of_whole.keys()
        assert all(torch.equal(weights[key], of_whole[key]) for key in weights), name
    assert (
        history(resumed, "loss", "eval_loss", "eval_accuracy")[:-1]
        == history(whole, "loss", "eval_loss", "eval_accuracy")[:-1]
    )


def test_trained_folder_knows_its_classes_and_reloads_by_itself(sections, tmp_path):
    trainer = train(picture_recipe_of(sections))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert [model.config.id2label[i] for i in range(3)] == NAMES and model.config.label2id["red"] == 2
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"]) == (16, 16)
    saved = ImageRecipe.load(tmp_path / "out" / "recipe.yaml")
    assert saved.to_dict() == picture_recipe_of(sections).to_dict()


def test_classes_are_learnt(sections):
    """Three colours: a picture's mean says it all."""
    sections["training"] |= {"max_steps": 30, "eval_steps": 30, "save_steps": 30, "learning_rate": 5e-3}
    trainer = train(picture_recipe_of(sections))
    assert trainer.evaluate()["eval_accuracy"] > 0.8


@pytest.mark.parametrize("model", ["ours", "transformers' own"])
def test_best_checkpoint_by_accuracy_is_what_is_kept(sections, tmp_path, monkeypatch, model):
    if model != "ours":
        sections["model"]["config"] = FOREIGN
    scores = iter([0.5, 0.75, 0.25])
    monkeypatch.setattr("hf_vlm.training.trainers.image_trainer.top_k_accuracy", lambda *args: next(scores))
    trainer = train(picture_recipe_of(sections))
    assert trainer.state.best_global_step == 4
    best = type(trainer.model).from_pretrained(tmp_path / "out" / "checkpoint-4").state_dict()
    last = type(trainer.model).from_pretrained(tmp_path / "out" / "checkpoint-6").state_dict()
    assert all(torch.equal(best[name], weight) for name, weight in trainer.model.state_dict().items())
    assert not all(torch.equal(best[name], last[name]) for name in best)


def test_eight_accumulated_batches_are_one(sections):
    def update(size, accumulation, *labels):
        sections["training"] |= {
            "max_steps": 1,
            "max_grad_norm": 0,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
        }
        plain = ["data.validation=null", "training.save_steps=9"]
        trainer = build_trainer(picture_recipe_of(sections, *plain, *labels))
        trainer.train()
        return history(trainer, "loss", "grad_norm")[0]

    for config in (FOREIGN, {**sections["model"]["config"], "drop_path_rate": 0.0}):
        sections["model"]["config"] = config
        assert update(16, 1) == pytest.approx(update(2, 8), rel=1e-4)
        probabilities = ["data.augmentation.mixup=1", "data.augmentation.mix_probability=1e-12"]  # and none mixed
        assert update(16, 1, *probabilities) == pytest.approx(update(2, 8, *probabilities), rel=1e-4)


def test_optimizer_has_the_groups_of_layer_decay(sections):
    sections["optimizer"] = {"layer_decay": 0.5}
    trainer = build_trainer(picture_recipe_of(sections))
    trainer.create_optimizer()
    of = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    named = dict(trainer.model.named_parameters())
    assert len(of) == len(named)
    for name, rate, decay in (
        ("vision_model.embeddings.position_embedding", 1e-3 / 8, 0.0),
        ("vision_model.layers.0.mlp.fc1.weight", 1e-3 / 4, 0.1),
        ("vision_model.layers.1.mlp.fc1.bias", 1e-3 / 2, 0.0),
        ("classifier.output_layer.weight", 1e-3, 0.1),
    ):
        group = of[id(named[name])]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name
    assert trainer.optimizer.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("config", ["ours", "transformers' own"])
def test_loss_of_mixed_labels_is_their_cross_entropy(sections, config):
    if config != "ours":
        sections["model"]["config"] = FOREIGN
    sections["data"]["augmentation"] |= {"mixup": 0.8}
    trainer = build_trainer(picture_recipe_of(sections))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    logits = trainer.model(pixel_values=batch["pixel_values"]).logits
    by_hand = -(batch["labels"] * logits.log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    plain = trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"].argmax(-1)})
    assert plain.item() == pytest.approx(F.cross_entropy(logits, batch["labels"].argmax(-1)).item(), rel=1e-5)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.5, 0.9], image_std=[0.2, 0.3, 0.4]),
        ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False),
        ViTImageProcessor(size={"height": 16, "width": 16}, do_rescale=False, do_normalize=False),
    ],
)
def test_training_batch_is_normalised_as_the_processor_does_it(pictures, processor):
    statistics, prepare = measure_processor(processor, ViTConfig(image_size=16))
    plain = ImageAugmentation(crop="none", horizontal_flip=0)
    rows = read_images(pictures, "train")
    images = TrainingImages(rows, lambda image: plain.transform((18, 16)[::-1], (0,) * 3)(image), seed=0, length=24)
    order = np.random.default_rng([0, 0, 0]).permutation(24)
    batch = TrainingBatch(statistics.scale, statistics.offset, plain)([images[i] for i in range(24)])
    processor.do_resize = False
    wanted = ProcessedBatch(processor, to_rgb)([rows[int(i)] for i in order])
    assert torch.allclose(batch["pixel_values"], wanted["pixel_values"].float(), atol=1e-5)
    assert batch["labels"].tolist() == wanted["labels"].tolist()
    assert statistics.size == (16, 16) and prepare is to_rgb


def test_gray_model_gets_gray_pictures(sections):
    sections["model"]["config"]["num_channels"] = 1
    trainer = build_trainer(picture_recipe_of(sections))
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        assert next(iter(loader))["pixel_values"].shape == (4, 1, 16, 16)


def test_pretrained_classifier_keeps_its_head_for_its_own_classes_only(sections, tmp_path):
    saved = build_trainer(picture_recipe_of(sections))
    saved.save_model(str(tmp_path / "saved"))
    sections["model"] = {"pretrained": str(tmp_path / "saved")}
    same, _ = build_model(picture_recipe_of(sections), NAMES)
    assert torch.equal(same.classifier.output_layer.weight, saved.model.classifier.output_layer.weight)
    other, _ = build_model(picture_recipe_of(sections), ["a", "b", "c"])
    assert other.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert not other.classifier.output_layer.weight.any()
    for name, weight in saved.model.vision_model.state_dict().items():
        assert torch.equal(other.vision_model.state_dict()[name], weight), name


def test_classes_of_a_pretrained_classifier_are_found_by_name(sections, tmp_path):
    """Its classes may be numbered otherwise than the folder's."""
    reversed_names = NAMES[::-1]
    model, processor = build_model(picture_recipe_of(sections), reversed_names)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    sections["model"] = {"pretrained": str(tmp_path / "saved")}
    trainer = build_trainer(picture_recipe_of(sections))
    assert torch.equal(trainer.model.classifier.output_layer.weight, model.classifier.output_layer.weight)
    assert trainer.train_dataset.rows.names == reversed_names == trainer.eval_dataset.names


def test_foreign_classifier_gets_a_new_head_and_keeps_the_rest(sections, tmp_path):
    config = ViTConfig(**{**FOREIGN, "model_type": "vit"}, id2label={i: f"old {i}" for i in range(3)})
    old = ViTForImageClassification(config)
    old.save_pretrained(tmp_path / "saved")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "saved")
    sections["model"] = {"pretrained": str(tmp_path / "saved")}
    new = build_trainer(picture_recipe_of(sections)).model
    assert isinstance(new, ViTForImageClassification) and list(new.config.id2label.values()) == NAMES
    assert not torch.equal(new.classifier.weight, old.classifier.weight)
    assert all(torch.equal(weight, new.vit.state_dict()[name]) for name, weight in old.vit.state_dict().items())


def test_masked_pretraining_lowers_the_loss_and_is_fine_tuned(masked_sections, sections, pictures, tmp_path):
    masked_sections["training"] |= {"max_steps": 40, "eval_steps": 20, "save_steps": 20, "learning_rate": 5e-3}
    trainer = train(picture_recipe_of(masked_sections))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0] and trainer.state.best_global_step == 40
    again = trainer.evaluate()["eval_loss"]
    torch.manual_seed(123)
    assert trainer.evaluate()["eval_loss"] == again  # the same masks
    masked = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "masked")
    sections["model"] = {"pretrained": str(tmp_path / "masked"), "settings": {"label_smoothing": 0.1}}
    model = build_trainer(picture_recipe_of(sections)).model
    assert isinstance(model, VisionTransformerForImageClassification) and model.config.label_smoothing == 0.1
    for name, weight in masked.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], weight), name


def saved_tokenizer(folder, **settings):
    torch.manual_seed(0)
    config = VQVAEConfig(**{"image_size": 16, "hidden_channels": (8, 8), "num_codes": 16, "code_dim": 4, **settings})
    VQVAEModel(config).save_pretrained(folder)
    return str(folder)


def code_recipe(masked_sections, tokenizer):
    masked_sections["model"]["config"] |= {"masked_image_target": "codes", "num_codes": 16, "mask_ratio": 0.5}
    masked_sections["model"]["tokenizer"] = tokenizer
    return masked_sections


def test_codes_of_a_tokenizer_are_predicted(masked_sections, tmp_path):
    sections = code_recipe(masked_sections, saved_tokenizer(tmp_path / "tokenizer"))
    sections["training"] |= {"max_steps": 60, "learning_rate": 1e-2, "eval_steps": 20, "save_steps": 20}
    trainer = train(picture_recipe_of(sections))
    losses = [loss for _, loss in history(trainer, "eval_loss") if loss is not None]
    assert losses[-1] < 0.8 * losses[0]
    # what was learnt are the tokenizer's codes of the very pictures that the model saw
    batch = next(iter(trainer.get_eval_dataloader()))
    pixels = batch["pixel_values"] * 0.5 + 0.5  # the processor's mean and deviation
    wanted = VQVAEModel.from_pretrained(tmp_path / "tokenizer").encode(pixels.clamp(0, 1))
    assert torch.equal(trainer._prepare_inputs(batch)["code_ids"], wanted)


def test_tokenizer_of_finer_codes_sees_smaller_pictures(masked_sections, tmp_path):
    sections = code_recipe(
        masked_sections, saved_tokenizer(tmp_path / "t", hidden_channels=(8,), num_residual_blocks=(0,))
    )
    trainer = build_trainer(picture_recipe_of(sections))  # patches of 4 pixels, codes of 2
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer._prepare_inputs(batch)["code_ids"].shape == (4, 4, 4)
    assert trainer.code_targets.size == (8, 8)


@pytest.mark.parametrize(
    ("settings", "overrides", "told"),
    [
        ({"num_codes": 32}, [], "must predict the 32 codes of .*got `num_codes=16`"),
        ({"num_channels": 1}, [], "must see the same channels, got 3 and 1"),
        ({}, ["model.config.masked_image_target=pixels"], "`masked_image_target: codes`, got"),
        ({}, ["model.tokenizer=null"], "or a tokenizer's codes"),
        ({}, ["task=image-classification"], "`model.tokenizer` is for masked-image-modeling"),
    ],
)
def test_tokenizer_that_does_not_suit_is_refused(settings, overrides, told, masked_sections, tmp_path):
    sections = code_recipe(masked_sections, saved_tokenizer(tmp_path / "tokenizer", **settings))
    with pytest.raises(ValueError, match=told):
        build_trainer(picture_recipe_of(sections, *overrides))


def test_continuous_tokenizer_has_no_codes_to_predict(masked_sections, tmp_path):
    VAEModel(VAEConfig(image_size=16)).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="must have codes, got `hf_vlm_vae`"):
        build_trainer(picture_recipe_of(code_recipe(masked_sections, str(tmp_path / "vae"))))


def test_masked_pretraining_wants_no_labels(masked_sections, tmp_path):
    (tmp_path / "flat").mkdir()
    for split in ("train", "validation"):
        folder = write_pictures(tmp_path / split, 4, ["red"]) / "red"
        folder.rename(tmp_path / "flat" / split)
    masked_sections["data"]["folder"] = str(tmp_path / "flat")
    masked_sections["training"] |= {"max_steps": 2}
    assert "loss" in train(picture_recipe_of(masked_sections)).state.log_history[0]


def test_image_size_reaches_model_processor_and_pictures(sections, tmp_path):
    build_trainer(picture_recipe_of(sections)).save_model(str(tmp_path / "saved"))
    sections["model"] = {"pretrained": str(tmp_path / "saved"), "settings": {"image_size": 24}}
    trainer = build_trainer(picture_recipe_of(sections))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 24, 24)
    trainer.model(**batch)
    assert next(iter(trainer.get_eval_dataloader()))["pixel_values"].shape == (4, 3, 24, 24)


def test_backbone_of_a_recipe_is_the_pretrained_one(sections, tmp_path):
    from PIL import Image
    from transformers import BitImageProcessor, ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    backbone = ResNetModel(config)
    backbone.save_pretrained(tmp_path / "cnn")
    settings = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sections["model"] = {"backbone": str(tmp_path / "cnn"), "settings": settings}
    of_backbone = BitImageProcessor(size={"shortest_edge": 80}, image_mean=[0.2, 0.3, 0.4], image_std=[0.5, 0.4, 0.3])
    of_backbone.save_pretrained(tmp_path / "cnn")
    trainer = train(picture_recipe_of(sections, "training.max_steps=1", "training.learning_rate=0"))
    model, processor = trainer.model, trainer.processing_class
    picture = Image.new("RGB", (50, 40), (200, 100, 50))
    seen = processor(picture, return_tensors="pt").pixel_values
    assert seen.shape == (1, 3, 32, 32)  # of the model's size, in the backbone's range
    wanted = of_backbone(picture, return_tensors="pt").pixel_values[0, :, 112, 112]
    torch.testing.assert_close(seen[0, :, 0, 0], wanted, atol=1e-5, rtol=0)
    kept = model.vision_model.embeddings.backbone.state_dict()
    assert all(
        torch.equal(kept[name], value)
        for name, value in backbone.state_dict().items()
        if name.endswith(("weight", "bias"))
    )


def test_evaluation_of_the_saved_folder_is_that_of_the_run(sections, pictures, tmp_path):
    trainer = train(picture_recipe_of(sections))
    ((folder, scores),) = evaluate_image_folders(
        str(tmp_path / "out"), [str(pictures)], split="validation", batch_size=4
    )
    assert folder == str(pictures)
    assert scores.accuracy == pytest.approx(trainer.evaluate()["eval_accuracy"])
    assert scores.top5_accuracy is None and scores.num_pictures == 9 and scores.pictures_per_second > 0
    assert [row["label"] for row in scores.predictions] == [name for name in NAMES for _ in range(3)]
    right = [row["label"] == row["predicted"] for row in scores.predictions]
    assert np.mean(right) == pytest.approx(scores.accuracy)
    assert all(1 / 3 <= row["probability"] <= 1 for row in scores.predictions)
    assert json.dumps(scores.to_dict())


def test_top_k_accuracy_against_a_count_by_hand():
    ranked = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2], [1, 0, 2]])
    labels = np.array([2, 2, 1, 2])
    assert [top_k_accuracy(labels, ranked, k) for k in (1, 2, 3)] == [0.25, 0.75, 1.0]
    with pytest.raises(ValueError, match="At least 4 ranked classes"):
        top_k_accuracy(labels, ranked, 4)


def test_top_5_is_told_for_more_than_five_classes(sections, tmp_path):
    sections["data"]["folder"] = str(tmp_path / "six")
    for number, told in ((5, False), (6, True)):
        folder = tmp_path / f"classes-{number}"
        for split in ("train", "validation"):
            write_pictures(folder / split, 2, [f"class {i}" for i in range(number)])
        sections["data"]["folder"] = str(folder)
        metrics = build_trainer(picture_recipe_of(sections)).evaluate()
        assert ("eval_top5_accuracy" in metrics) == told


def test_dry_run_shows_classes_and_trains_nothing(sections, tmp_path):
    report = dry_run(picture_recipe_of(sections))
    assert "6 steps of 8 pictures" in report and "validation set eval: 9 pictures" in report
    shown = [line.strip() for line in report.splitlines() if line.strip() in NAMES]
    assert len(shown) == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dry_run.png"]
    mixed = dry_run(picture_recipe_of(sections, "data.augmentation.mixup=0.8"))
    assert any(line.count(".") == 2 and "," in line for line in mixed.splitlines() if line.startswith("  "))


def test_steps_follow_from_the_epochs(sections):
    del sections["training"]["max_steps"]
    trainer = build_trainer(picture_recipe_of(sections, "training.num_train_epochs=2"))
    assert trainer.args.max_steps == 6 and len(trainer.train_dataset) == 48  # 2 times 24 pictures, 8 an update


# What is refused before the start


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.config.num_labels=4"], r"`model.config.num_labels` must be the 3 classes .*`blue`, .*got 4"),
        (["model.config.hiden_size=4"], "Did you mean `model.config.hidden_size`"),
        (["model.settings.label_smothing=0.1"], "Did you mean `model.settings.label_smoothing`"),
        (["model.config.num_channels=4"], "A model of 1 or 3 channels is wanted, got `num_channels=4`"),
        (["model.config.model_type=hf_vlm_trocr_text"], "model.config"),
        (["model.config={model_type: bert}"], "A model for image-classification is wanted, got `bert`"),
        (["model.settings.label_smoothing=0.1", "training.label_smoothing_factor=0.1"], "smoothed by model or Trainer"),
        (["data.augmentation.mixup=0.1", "training.label_smoothing_factor=0.1"], "`model.settings.label_smoothing`"),
        (["training.remove_unused_columns=true"], "`training.remove_unused_columns` must be False"),
        (["data.validation=testing"], "pictures of a split `testing` are wanted"),
        (["data.folder=nowhere"], "A folder of pictures is wanted, got nowhere"),
        (["data.augmentation.horizontal_flip=2"], r"`horizontal_flip` must be in \[0, 1\]"),
        (["data.augmentation.crop=random"], "`data.augmentation.crop` must be"),
        (["data.augmentation.mixap=1"], "Did you mean `data.augmentation.mixup`"),
        (["optimizer.layer_decay=0"], r"`optimizer.layer_decay` must be in \(0, 1\]"),
        (["layer_decay=0.9"], "Did you mean `optimizer.layer_decay`"),
        (["model.config=null", "model.pretrained=somewhere"], "somewhere"),
        (["model.pretrained=somewhere"], "Give exactly one of the three"),
        (["model.config=null"], "got none of them. Give exactly one"),
        (["task=image-clasification"], "`task` must be one of `ocr`, `caption`"),
        (["task=masked-image-modeling", "data.augmentation.mixup=1"], "mixes labels"),
        (["task=masked-image-modeling", "model.config.masked_image_target=codes"], "draws its masks and predicts"),
    ],
)
def test_wrong_recipe_is_refused(sections, overrides, told):
    with pytest.raises((ValueError, OSError), match=told):
        build_trainer(picture_recipe_of(sections, *overrides))


def test_validation_picture_of_an_unknown_class_is_refused(sections, tmp_path):
    write_pictures(tmp_path / "data" / "train", 2)
    write_pictures(tmp_path / "data" / "validation", 2, ["blue", "cow"])
    sections["data"]["folder"] = str(tmp_path / "data")
    with pytest.raises(ValueError, match="split validation, row 2: a class of the training pictures .* got `cow`"):
        build_trainer(picture_recipe_of(sections))


def test_one_class_is_too_few(sections, tmp_path):
    write_pictures(tmp_path / "data" / "train", 2, ["blue"])
    sections["data"] = {"folder": str(tmp_path / "data"), "validation": None}
    with pytest.raises(ValueError, match="Two classes or more are wanted to tell apart, got `blue`"):
        build_trainer(picture_recipe_of(sections))


def test_processor_that_does_not_suit_the_model_is_refused(sections, tmp_path):
    model, _ = build_model(picture_recipe_of(sections), NAMES)
    model.save_pretrained(tmp_path / "saved")
    sections["model"] = {"pretrained": str(tmp_path / "saved")}
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="Pictures of 16 x 16 pixels are wanted by the model, got 32 x 32"):
        build_trainer(picture_recipe_of(sections))
    processor = ConvNextImageProcessor(size={"shortest_edge": 400}, do_center_crop=False)
    processor.size, processor.do_resize = {"shortest_edge": 16}, False
    processor.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="makes all pictures of one size"):
        build_trainer(picture_recipe_of(sections))


def test_unreadable_picture_stops_training_with_its_name(sections, tmp_path):
    write_picture_splits(tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "3.png").write_bytes(b"no picture")
    sections["data"]["folder"] = str(tmp_path / "data")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="^[^\n]*row 19, .*red/3.png: wanted a picture"):
            train(picture_recipe_of(sections, f"training.dataloader_num_workers={workers}"), resume=False)


def test_resume_of_another_model_or_optimizer_is_refused(sections, caplog):
    train(picture_recipe_of(sections, "training.max_steps=2"))
    train(picture_recipe_of(sections, "training.max_steps=4", "data.augmentation.mixup=0.1"))
    assert "Going on with another `data` than before: augmentation" in caplog.text
    with pytest.raises(ValueError, match=r"another `model.config`.*--no-resume"):
        train(picture_recipe_of(sections, "model.config.hidden_size=8"))
    with pytest.raises(ValueError, match=r"another `optimizer.layer_decay`.*--no-resume"):
        train(picture_recipe_of(sections, "optimizer.layer_decay=0.9"))
