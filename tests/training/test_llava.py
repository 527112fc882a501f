import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

from hf_vlm import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.data.instructions.rule_teacher import RuleTeacher
from hf_vlm.data.instructions.visual_instructions import make_instructions
from hf_vlm.training.dry_run import dry_run
from hf_vlm.training.llava import build_trainer, train
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    return write_parts(tmp_path_factory.mktemp("parts")), write_conversations(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(folders, tmp_path):
    """`recipe(parts={...}, data={...}, ...)`: a recipe with some of its sections' keys replaced."""

    def build(**sections):
        return recipe_of(tmp_path, tiny_llava_recipe(*folders, tmp_path / "run", **sections))

    return build


SECOND = {"data": {"train": [{"path": "chat", "split": "train"}]}, "parts": {"train": ["projector", "language"]}}


def states(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("train_parts", "wanted"),
    [
        (["projector"], {"projector"}),
        (["projector", "language"], {"projector", "language_model"}),
        (["projector", "language", "vision"], {"projector", "language_model", "vision_model"}),
    ],
)
def test_only_named_parts_change(recipe, train_parts, wanted):
    trainer = build_trainer(recipe(parts={"train": train_parts}, training={"max_steps": 2, "learning_rate": 1e-2}))
    before = states(trainer.model)
    trainer.train()
    assert changed_parts(before, trainer.model.state_dict()) == wanted


def test_loss_falls_and_the_folder_answers(recipe, tmp_path, folders):
    trainer = train(recipe(**SECOND, training={"max_steps": 60, "learning_rate": 1e-2, "save_steps": 60}))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.3 * losses[0]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    rows = trainer.train_dataset.dataset.sets[0].rows
    asked = rows.messages(1)[:1]  # a picture
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=rows.images(1), text=prompt, add_special_tokens=False)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(said, skip_special_tokens=True) == rows.messages(1)[1]["content"][0]["text"]


def base_of(folders, tmp_path) -> dict:
    """The section `model` of a whole model, saved from the parts."""
    trainer = build_trainer(recipe_of(tmp_path, tiny_llava_recipe(*folders, tmp_path / "base")))
    trainer.save_model()
    return {"pretrained": str(tmp_path / "base"), "vision": None, "text": None, "settings": {}}


@pytest.mark.parametrize("phase", ["projector", "language", "lora"])
def test_resumed_run_ends_as_the_uninterrupted_one(folders, tmp_path, phase):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "roles": ["language"]}
    sections = {
        "projector": {"parts": {"train": ["projector"]}},
        "language": {"parts": {"train": ["projector", "language"], "learning_rates": {"projector": 5e-3}}},
        "lora": {"parts": {"train": ["projector"], "lora": lora}, "model": base_of(folders, tmp_path)},
    }[phase]
    whole = train(recipe_of(tmp_path, tiny_llava_recipe(*folders, tmp_path / "whole", **sections)))

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    interrupted = build_trainer(recipe_of(tmp_path, tiny_llava_recipe(*folders, tmp_path / "parts", **sections)))
    interrupted.add_callback(Stop())
    interrupted.train()
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")  # killed while it wrote this one
    resumed = train(recipe_of(tmp_path, tiny_llava_recipe(*folders, tmp_path / "parts", **sections)))
    assert resumed.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_every_checkpoint_is_whole_and_has_the_projector_beside_it(recipe, tmp_path):
    train(recipe(**SECOND, training={"max_steps": 2}))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained(checkpoint)
    projector = load_file(checkpoint / "projector.safetensors")
    for name, tensor in model.projector.state_dict().items():
        assert torch.equal(projector[name], tensor)
    assert AutoProcessor.from_pretrained(checkpoint).num_image_tokens == 4


def test_second_phase_goes_on_from_the_first_or_from_its_projector(recipe, folders, tmp_path):
    first = train(recipe(training={"max_steps": 2}))
    learnt = states(first.model.projector)
    pretrained = {"pretrained": str(tmp_path / "run"), "vision": None, "text": None, "settings": {}}
    second = build_trainer(recipe(**SECOND, model=pretrained, training={"output_dir": str(tmp_path / "second")}))
    light = build_trainer(recipe(model={"projector": str(tmp_path / "run" / "projector.safetensors")}))
    for name, tensor in learnt.items():
        assert torch.equal(second.model.projector.state_dict()[name], tensor)
        assert torch.equal(light.model.projector.state_dict()[name], tensor)


def test_projector_of_other_parts_is_refused(recipe, tmp_path):
    train(recipe(training={"max_steps": 1}))
    with pytest.raises(ValueError, match="num_linear_layers"):
        build_trainer(
            recipe(
                model={
                    "projector": str(tmp_path / "run"),
                    "settings": {"num_linear_layers": 1, "vision_feature_layer": -1},
                }
            )
        )
    with pytest.raises(ValueError, match="layer -1"):
        build_trainer(recipe(model={"projector": str(tmp_path / "run"), "settings": {"vision_feature_layer": -2}}))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_packed_epoch_has_the_loss_and_gradients_of_the_padded_one(recipe):
    packed = build_trainer(recipe(**SECOND))
    data = SECOND["data"] | {"max_tokens": None}
    padded = build_trainer(recipe(data=data, parts=SECOND["parts"], training={"per_device_train_batch_size": 12}))
    padded.model.load_state_dict(packed.model.state_dict())
    results = []
    for trainer in (packed, padded):
        model = trainer.model.train()
        items = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
        seen, batches = [], []
        for item in items:  # one epoch
            seen += [example["source"] for example in item]
            batches.append(item)
            if len(seen) >= 12:
                break
        assert len(set(seen)) == 12
        if trainer is packed:
            collated = [trainer.data_collator([batch]) for batch in batches]
            assert all(len(batch["input_ids"]) == 1 for batch in collated) and len(collated) < 12
        else:
            collated = [trainer.data_collator(batches)]
        number = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in collated)
        total = 0.0
        for batch in collated:
            batch.pop("sources")
            loss = model(**batch, num_items_in_batch=number).loss
            loss.backward()
            total += loss.item()
        results.append((total, gradients(model)))
    (packed_loss, packed_gradients), (padded_loss, padded_gradients) = results
    assert packed_loss == pytest.approx(padded_loss, abs=1e-5)
    assert set(packed_gradients) == set(padded_gradients)
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], rtol=1e-4, atol=1e-6)


def test_accumulated_batches_train_as_one_large_batch(recipe, tmp_path):
    data = {"max_tokens": None, "train": [{"path": "chat", "split": "train"}]}
    weights = []
    for batch_size, accumulated, name in ((1, 4, "small"), (4, 1, "large")):
        trainer = build_trainer(
            recipe(
                data=data,
                parts=SECOND["parts"],
                training={
                    "per_device_train_batch_size": batch_size,
                    "gradient_accumulation_steps": accumulated,
                    "max_steps": 3,
                    "optim": "sgd",
                    "output_dir": str(tmp_path / name),
                },
            )
        )
        trainer.train()
        weights.append(states(trainer.model))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-6)


def test_rates_differ_by_part(recipe):
    trainer = build_trainer(
        recipe(**{**SECOND, "parts": {"train": ["projector", "language"], "learning_rates": {"projector": 3e-4}}})
    )
    optimizer = trainer.create_optimizer()
    of = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert of[id(parameter)] == (3e-4 if name.startswith("projector.") else 1e-2), name
        else:
            assert name.startswith("vision_model."), name


def test_cached_features_train_to_the_same_weights(recipe, tmp_path):
    plain = train(recipe(**SECOND, training={"output_dir": str(tmp_path / "plain")}))
    data = SECOND["data"] | {"features_folder": "features"}
    cached = train(recipe(data=data, parts=SECOND["parts"]))
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(tensor, cached.model.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert "image_features" in cached.train_dataset[0][0] or "image_features" in cached.train_dataset[1][0]


def test_cached_features_are_read_again_and_never_those_of_another_encoder(recipe, tmp_path):
    data = {"features_folder": "features"}
    first = build_trainer(recipe(data=data))
    file = tmp_path / "run" / "features" / "train-0" / "features.npy"
    stamp = file.stat().st_mtime_ns
    build_trainer(recipe(data=data))
    assert file.stat().st_mtime_ns == stamp
    stored = np.load(file)
    rows = first.train_dataset.dataset.sets[0].rows
    with torch.no_grad():
        wanted = first.model.vision_features(first.processing_class.prepare_images(rows.images(3)))
    torch.testing.assert_close(torch.from_numpy(stored[3:4]), wanted)
    build_trainer(recipe(data=data, model={"image_aspect_ratio": "square"}))
    assert file.stat().st_mtime_ns != stamp


def test_plain_context_shows_picture_and_caption_alone(recipe):
    trainer = build_trainer(recipe(data={"context": "plain"}))
    example = trainer.train_dataset[0][0]
    shown = trainer.processing_class.show_labels(example, in_colour=False)
    assert shown.startswith("<s><image> x 4[[") and shown.endswith("\n]]") and "What colour" not in shown


def test_instruction_context_asks_by_our_requests(recipe):
    trainer = build_trainer(recipe(data={"context": "instruction"}))
    shown = [trainer.processing_class.show_labels(example, in_colour=False) for example in trainer.train_dataset[0]]
    assert not any("What colour" in text for text in shown) and all("<|im_start|>user" in text for text in shown)


def test_corrupt_picture_stops_the_run_and_is_named(recipe, folders, tmp_path):
    data = broken_data(tmp_path)
    with pytest.raises(ValueError, match=r"broken\.json.*bad\.png"):
        train(recipe(data=data, training={"max_steps": 3}))


def test_corrupt_picture_is_skipped_and_reported_where_asked(recipe, tmp_path, caplog):
    trainer = train(recipe(data=broken_data(tmp_path) | {"bad_pictures": "skip"}, training={"max_steps": 3}))
    report = (tmp_path / "run" / "skipped_rows.txt").read_text()
    assert "bad.png" in report and "bad.png" in caplog.text
    item = trainer.train_dataset.dataset[1]
    assert (item["labels"] == -100).all() and not item["pixel_values"].any()
    assert (trainer.train_dataset.dataset[0]["labels"] >= 0).any()


def broken_data(tmp_path: Path) -> dict:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(name), "image": f"{name}.png", "conversations": turns} for name in ("good", "bad")]
    (tmp_path / "broken.json").write_text(json.dumps(rows))
    return {"folder": str(tmp_path), "train": [{"path": "broken.json"}]}


def test_nan_stops_the_run_and_names_tensor_step_and_rows(recipe, tmp_path):
    trainer = build_trainer(recipe(**SECOND, training={"max_steps": 4}))

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    model.get_submodule("language_model.model.layers.1.mlp.up_proj").weight[0, 0] = float("nan")

    trainer.add_callback(Poison())
    with pytest.raises(FloatingPointError, match=r"step 3.*layers\.1\.mlp\.up_proj\.weight.*chat"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_language_model_that_mixes_packed_samples_is_refused(recipe, monkeypatch):
    monkeypatch.setattr("hf_vlm.training.llava.packing_way", lambda model: None)
    with pytest.raises(ValueError, match="data.max_tokens"):
        build_trainer(recipe())


def test_dry_run_shows_what_is_learnt(recipe):
    report = dry_run(recipe(**SECOND))
    assert "<image> x 4" in report and "<|im_end|>]]" in report and "language_model" in report
    assert "tokens are learnt" in report


@pytest.mark.parametrize("max_tokens", [100, None])
def test_validation_loss_is_the_mean_over_learnt_tokens(recipe, max_tokens):
    sets = {"chat": {"path": "chat", "split": "validation"}}
    data = SECOND["data"] | {"validation": sets, "max_tokens": max_tokens, "max_length": 100}
    trainer = build_trainer(recipe(data=data, parts=SECOND["parts"], training={"eval_steps": 2}))
    assert len(trainer.eval_dataset) > 1  # means of batches would differ
    measured = trainer.evaluate()["eval_loss"]
    total, number = 0.0, 0
    trainer.model.eval()
    trainer.model.loss_chunk_size = None
    for index in range(4):
        example = trainer.eval_dataset.dataset[index]
        inputs = {"input_ids": example["input_ids"][None]}
        if "pixel_values" in example:
            inputs["pixel_values"] = example["pixel_values"]
        with torch.no_grad():
            log_probs = trainer.model(**inputs).logits[0, :-1].log_softmax(-1)
        labels = example["labels"][1:]
        learnt = labels >= 0
        total -= float(log_probs[learnt].gather(1, labels[learnt][:, None]).sum())
        number += int(learnt.sum())
    assert measured == pytest.approx(total / number, abs=1e-4)


def test_cut_conversations_are_counted(recipe, tmp_path, caplog):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    rows = [{"id": str(number), "conversations": turns * number} for number in (1, 5, 6)]
    (tmp_path / "words.json").write_text(json.dumps(rows), encoding="utf-8")
    data = {"train": [{"path": "words.json"}], "folder": str(tmp_path), "max_length": 100, "max_tokens": None}
    build_trainer(recipe(data=data, parts=SECOND["parts"]))
    assert "2 conversations are cut to `data.max_length`=100 tokens" in caplog.text


def test_first_step_without_pictures_is_no_missing_gradient(recipe, tmp_path):
    data = {"grouping": "modality", "max_tokens": None, "train": [{"path": "words.json"}], "folder": str(tmp_path)}
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    long = [{"from": "human", "value": "What? " * 12}, {"from": "gpt", "value": "No picture."}]
    short = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": "0", "conversations": long}, {"id": "1", "image": "red.png", "conversations": short}]
    (tmp_path / "words.json").write_text(json.dumps(rows))
    trainer = build_trainer(recipe(data=data, parts=SECOND["parts"], training={"max_steps": 2}))
    assert "pixel_values" not in trainer.train_dataset[0][0] and "pixel_values" in trainer.train_dataset[1][0]
    trainer.train()
    assert trainer.state.global_step == 2


def test_every_row_is_seen_in_a_pass(recipe):
    training = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 5}
    trainer = build_trainer(recipe(data={"max_tokens": None}, training=training))
    assert trainer.args.max_steps == 3 and len(trainer.train_dataset) == 15
    seen = {item[0]["source"] for item in trainer.train_dataset}
    assert len(seen) == 12


def test_batch_of_a_skipped_picture_alone_changes_nothing(recipe, tmp_path):
    data = broken_data(tmp_path) | {"bad_pictures": "skip", "max_tokens": None}
    trainer = train(recipe(data=data, training={"max_steps": 4}))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(np.isfinite(losses)) and 0.0 in losses


def test_packed_row_is_a_batch_where_the_recipe_does_not_say(folders, tmp_path):
    sections = tiny_llava_recipe(*folders, tmp_path / "run")
    del sections["training"]["per_device_train_batch_size"], sections["training"]["per_device_eval_batch_size"]
    arguments = build_trainer(recipe_of(tmp_path, sections)).args
    assert arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 1


def test_data_that_a_teacher_made_is_trained_on(recipe, tmp_path):
    contexts = []
    for index in range(4):
        Image.new("RGB", (16, 16), (index * 60, 0, 0)).save(tmp_path / f"{index}.png")
        boxes = [
            {"category": "dog", "bbox": [0.05, 0.1, 0.3, 0.9]},
            {"category": "boat", "bbox": [0.5, 0.1, 0.95, 0.9]},
        ]
        contexts.append({"id": str(index), "image": f"{index}.png", "captions": ["At sea."], "instances": boxes})
    (tmp_path / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contexts))
    report = make_instructions(
        tmp_path / "contexts.jsonl", tmp_path / "made", RuleTeacher(), image_folder=tmp_path, across_pictures=False
    )
    assert report.num_accepted == 12
    made = {"folder": str(tmp_path / "made"), "train": [{"path": ".", "split": "train"}]}
    trainer = build_trainer(
        recipe(
            data={**made, "max_length": 500, "max_tokens": 512},
            parts=SECOND["parts"],
            training={"max_steps": 24, "learning_rate": 1e-2},
        )
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
