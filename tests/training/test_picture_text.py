"""Encoder-decoders learn to write about pictures by a recipe: exactly, resumably, and scored as the task is."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm.cli import main
from hf_vlm.data.tasks.task_rows import read_task
from hf_vlm.training.picture_text import build_trainer, check_engine, check_rows, train
from hf_vlm.training.scores.task_evaluation import evaluate_rows
from hf_vlm.training.scores.task_metrics import score_task
from hf_vlm.training.tasks import load_recipe
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner
from tests.training.tiny_tasks import COLOURS, write_decoder_parts, write_task_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_task_sets(folder)
    return write_decoder_parts(folder)


def recipe_for(name, folder, output_dir, *overrides):
    parts = [f"model.vision={folder}/efficientnet-lite0", f"data.folder={folder}", f"training.output_dir={output_dir}"]
    if name != "caption-cnn-lstm":
        parts.append(f"model.text={folder}/minilm")
    else:
        parts.append("model.settings={attention: additive, hidden_size: 24, embedding_size: 16, dropout: 0.0}")
    quiet = ["training.report_to=none", "training.disable_tqdm=true", "training.warmup_steps=0"]
    return load_recipe(name, [*parts, *quiet, "training.per_device_train_batch_size=4", *overrides])


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_captioner_learns_its_captions_and_the_best_is_kept(folder, tmp_path):
    """Of the colours' captions either is right; the score is that of what `generate` writes."""
    overrides = ["training.max_steps=120", "training.learning_rate=1e-2", "training.eval_steps=60", "training.save_steps=60",
                 "model.min_word_count=1", "generation.num_beams=1"]  # fmt: skip
    trainer = train(recipe_for("caption-cnn-lstm", folder, tmp_path / "run", *overrides))
    rows = read_task(folder / "photo_captions", "validation", task="caption")
    scores = evaluate_rows(trainer.model, trainer.processing_class, rows, task="caption")
    for index, answer in enumerate(scores.answers):
        (colour,) = [name for name in COLOURS if name in rows.references(index)[0]]
        assert answer in (f"a {colour} picture", f"it is {colour}")
    logged = [entry["eval_cider"] for entry in trainer.state.log_history if "eval_cider" in entry]
    assert len(logged) == 2 and trainer.state.best_metric == max(logged)
    references = [rows.references(index) for index in range(len(rows))]
    assert max(logged) == pytest.approx(score_task("caption", references, scores.answers)["cider"])


def test_features_computed_once_train_to_the_same_weights(folder, tmp_path):
    overrides = ["training.max_steps=4", "training.eval_strategy='no'", "training.load_best_model_at_end=false"]
    # Adam makes steps of rounding where gradients are tiny.
    overrides += ["training.optim=sgd", "training.learning_rate=1.0"]
    with_features = train(recipe_for("caption-cnn-lstm", folder, tmp_path / "one", *overrides))
    direct = train(recipe_for("caption-cnn-lstm", folder, tmp_path / "two", *overrides, "data.features_folder=null"))
    for name, tensor in weights_of(direct).items():
        torch.testing.assert_close(with_features.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    stored = np.load(tmp_path / "one" / "features" / "train-0" / "features.npy")
    assert len(stored) == 12  # of 24 captions


@pytest.mark.parametrize("name", ["caption-cnn-lstm", "vqa-trocr"])
def test_interrupted_run_goes_on_to_the_same_weights(name, folder, tmp_path):
    common = ["training.save_steps=2", "training.eval_strategy='no'", "training.load_best_model_at_end=false"]
    recipe = recipe_for(name, folder, tmp_path, *common, "training.max_steps=4")
    whole = weights_of(train(recipe))
    shutil.rmtree(tmp_path / "checkpoint-4")
    (tmp_path / "model.safetensors").unlink()
    resumed = train(recipe)
    assert resumed.state.global_step == 4
    assert all(torch.equal(tensor, weights_of(resumed)[key]) for key, tensor in whole.items())
    fresh = weights_of(train(recipe, resume=False))
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in whole.items())


def test_question_is_read_and_carries_no_loss(folder, tmp_path):
    trainer = build_trainer(recipe_for("vqa-trocr", folder, tmp_path))
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    tokenizer = trainer.processing_class.tokenizer
    first = "".join(tokenizer.convert_ids_to_tokens(batch["labels"][0][batch["labels"][0] >= 0].tolist()))
    assert first.startswith("red") and "colour" not in first
    read = "".join(tokenizer.convert_ids_to_tokens(batch["decoder_input_ids"][0].tolist()))
    assert "which" in read.replace("▁", " ") and read.index("which") < read.index("red")
    trainer.model.eval()
    batch = {name: value for name, value in batch.items()}
    with torch.no_grad():
        asked = trainer.model(**batch).logits
        batch["decoder_input_ids"][:, 1] = tokenizer.convert_tokens_to_ids("z")
        assert not torch.allclose(asked, trainer.model(**batch).logits)


def test_answers_end_where_the_decoder_has_no_more_positions(folder, tmp_path):
    trainer = build_trainer(recipe_for("vqa-trocr", folder, tmp_path))
    rows = read_task(folder / "vqa_rooms", "validation", task="vqa").select([0, 1])
    assert trainer.model.config.text_config.max_position_embeddings == 96
    scores = evaluate_rows(trainer.model, trainer.processing_class, rows, task="vqa", max_new_tokens=95, eos_token_id=1)
    assert len(scores.answers) == 2


def test_another_start_token_than_the_models_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="must begin with the model's `decoder_start_token_id` 5, got the tokenizer's"):
        build_trainer(recipe_for("vqa-trocr", folder, tmp_path, "model.settings.decoder_start_token_id=5"))


@pytest.mark.slow  # 15 seconds of training
def test_trocr_answers_what_it_is_asked(folder, tmp_path):
    overrides = ["training.max_steps=150", "training.learning_rate=5e-3", "training.eval_strategy='no'",
                 "training.load_best_model_at_end=false", "parts.train=[vision, projector, decoder]",
                 "data.features_folder=null", "training.per_device_train_batch_size=12"]  # fmt: skip
    trainer = train(recipe_for("vqa-trocr", folder, tmp_path, *overrides))
    rows = read_task(folder / "vqa_rooms", "validation", task="vqa")
    scores = evaluate_rows(trainer.model, trainer.processing_class, rows, task="vqa")
    assert scores.scores["exact_match"] > 0.9


def test_rows_that_no_decoder_can_learn_are_named_or_left_out(folder, tmp_path):
    trainer = build_trainer(recipe_for("caption-cnn-lstm", folder, tmp_path))
    processor = trainer.processing_class
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": text} for text in ("a red picture", "quux quuux")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_task(tmp_path / "rows.jsonl", task="caption")
    assert len(check_rows(read, processor, asks=False)) == 1
    processor.max_label_length = 3
    with pytest.raises(ValueError, match="line 1: a text of at most 3 tokens is wanted, got 4"):
        check_rows(read, processor, asks=False)
    processor.max_label_length = None
    with pytest.raises(ValueError, match="words that the tokenizer knows are wanted, got none"):
        check_rows(read.select([1]), processor, asks=False)
    (tmp_path / "two.jsonl").write_text(json.dumps({"images": ["a.png", "a.png"], "caption": "a red picture"}) + "\n")
    with pytest.raises(ValueError, match="line 1: one picture a row is wanted, got 2"):
        check_rows(read_task(tmp_path / "two.jsonl", task="caption"), processor, asks=False)


def test_word_count_that_leaves_no_word_is_told(folder, tmp_path):
    with pytest.raises(ValueError, match="`min_count` must leave at least a word, got 99"):
        build_trainer(recipe_for("caption-cnn-lstm", folder, tmp_path, "model.min_word_count=99"))


def test_several_validation_sets_give_their_means_too(folder, tmp_path):
    sets = "data.validation={a: {path: photo_captions, split: validation}, b: {path: photo_captions, split: train, max_rows: 6}}"
    trainer = build_trainer(recipe_for("caption-cnn-lstm", folder, tmp_path, sets))
    metrics = trainer.evaluate()
    for name in ("loss", "cider", "rouge_l"):
        assert metrics[f"eval_{name}"] == pytest.approx((metrics[f"eval_a_{name}"] + metrics[f"eval_b_{name}"]) / 2)


def test_dry_run_shows_labels_and_what_the_batch_is_made_of(folder, tmp_path, capsys):
    command = ["train", "caption-cnn-lstm", "--dry-run", f"model.vision={folder}/efficientnet-lite0", f"data.folder={folder}",
               "training.report_to=none", "training.per_device_train_batch_size=4"]  # fmt: skip
    assert main([*command, f"training.output_dir={tmp_path / 'a'}"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "72 steps of 4 texts" in told and "image_features (4, " in told and "picture" in told
    assert main([*command, f"training.output_dir={tmp_path / 'b'}", "data.features_folder=null"]) == 0
    assert "drawn in" in capsys.readouterr().out and (tmp_path / "b" / "dry_run.png").is_file()


@pytest.mark.parametrize(
    ("attention", "stage", "is_refused"), [("additive", 3, True), ("additive", 2, False), ("none", 3, False)]
)
def test_lstm_that_looks_again_at_every_word_is_refused_under_zero_3_alone(attention, stage, is_refused):
    engine = SimpleNamespace(hf_ds_config=SimpleNamespace(is_zero3=lambda: stage == 3))
    model, arguments = tiny_captioner(attention=attention), SimpleNamespace(deepspeed_plugin=engine)
    told = "ZeRO-3 wants layers that .* got `model.settings.attention: additive`.* Take ZeRO-2"
    with pytest.raises(ValueError, match=told) if is_refused else nullcontext():
        check_engine(model, arguments)
    check_engine(model, SimpleNamespace(deepspeed_plugin=None))
