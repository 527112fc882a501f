"""Training runs: what they must equal, and what they refuse before they start."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFont
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_vlm.data.lines.augmentation import AUGMENTATIONS
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.models.trocr.alphabet import extend_alphabet
from hf_vlm.parts.weight_report import WeightReport, describe_part
from hf_vlm.training.trocr import build_model, build_renderer, build_trainer, train
from tests.tiny_lines import TEXTS, recipe_of, write_lines


class Gradients(TrainerCallback):
    """Keeps the gradients of the first update."""

    def __init__(self):
        self.kept = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.kept:
            self.kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def first_update(sections, *overrides):
    """Loss and gradients of the first update, on 16 lines in the order of the folder."""
    trainer = build_trainer(recipe_of(sections, "training.max_steps=1", "training.max_grad_norm=0", *overrides))
    trainer.train_dataset = read_lines(sections["data"]["folder"], split="train")
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return losses(trainer)[0][1], gradients.kept


def assert_same_update(one, other):
    (loss_one, gradients_one), (loss_other, gradients_other) = one, other
    assert loss_one == pytest.approx(loss_other, abs=1e-5)
    assert gradients_one.keys() == gradients_other.keys() and gradients_one
    for name, gradient in gradients_one.items():
        assert torch.allclose(gradient, gradients_other[name], atol=1e-5, rtol=1e-5), name


@pytest.fixture
def accumulation_sections(recipe_sections, tmp_path):
    """16 lines of very different length, no dropout, no validation."""
    write_lines(tmp_path / "sixteen" / "train", TEXTS + [text[::-1] for text in TEXTS])
    recipe_sections["data"] = {"folder": str(tmp_path / "sixteen"), "train": [{"path": ".", "split": "train"}]}
    recipe_sections["model"]["text_config"]["dropout"] = 0.0
    return recipe_sections


@pytest.mark.parametrize(
    "loss",
    [
        (),
        ("model.settings.label_smoothing=0.2",),
        ("training.label_smoothing_factor=0.2",),
        ("model.settings.ctc_loss_weight=0.5",),
    ],
)
def test_eight_accumulated_batches_of_two_are_one_batch_of_sixteen(accumulation_sections, loss):
    size, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    one = first_update(accumulation_sections, f"{size}=16", f"{accumulation}=1", *loss)
    many = first_update(accumulation_sections, f"{size}=2", f"{accumulation}=8", *loss)
    assert_same_update(one, many)


def test_label_smoothing_of_the_trainer_is_that_of_the_model(accumulation_sections):
    by_model = first_update(accumulation_sections, "model.settings.label_smoothing=0.2")
    by_trainer = first_update(accumulation_sections, "training.label_smoothing_factor=0.2")
    without = first_update(accumulation_sections)
    assert_same_update(by_model, by_trainer)
    assert by_model[0] != pytest.approx(without[0], abs=1e-5)


# Trains a recipe in a process for each moment, which kills itself then; forks, so as to import only once.
RUN_UNTIL_KILLED = """
import os, signal, sys
import torch
import transformers
from hf_vlm.training import trocr
from hf_vlm.training.recipe import TrOCRRecipe

folder, num_threads, *moments = sys.argv[1:]
children = []
for moment in moments:
    child = os.fork()
    if child == 0:
        break
    children.append(child)
else:
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print("exit codes", *ends)
    sys.exit()

torch.set_num_threads(int(num_threads))
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

class Killer(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if moment == "between" and state.global_step == 5:
            kill()

build = trocr.build_trainer
def build_with_killer(recipe):
    trainer = build(recipe)
    trainer.add_callback(Killer())
    save = trainer._save_optimizer_and_scheduler
    def save_half(folder):
        if moment == "saving" and trainer.state.global_step == 4:
            open(os.path.join(folder, "optimizer.pt"), "wb").write(b"PK half a file")
            kill()
        save(folder)
    trainer._save_optimizer_and_scheduler = save_half
    return trainer
trocr.build_trainer = build_with_killer
trocr.train(TrOCRRecipe.load(os.path.join(folder, moment, "recipe.yaml")))
"""


def test_killed_run_resumes_to_the_weights_of_the_uninterrupted_one(tmp_path, recipe_sections, caplog):
    """SIGKILL between two checkpoints, and while one is being written."""
    recipe_sections["training"].update(max_steps=7, save_steps=2, eval_steps=2)
    script = tmp_path / "run.py"
    script.write_text(RUN_UNTIL_KILLED)
    recipes = {}
    for moment in ("between", "saving", "never"):
        recipe_sections["training"]["output_dir"] = str(tmp_path / moment / "out")
        (tmp_path / moment).mkdir()
        recipes[moment] = recipe_of(recipe_sections)
    killed = subprocess.run(
        [sys.executable, script, tmp_path, str(torch.get_num_threads()), "between", "saving"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert f"exit codes {-signal.SIGKILL} {-signal.SIGKILL}" in killed.stdout, killed.stderr
    whole = train(recipes["never"])
    for moment, last_step in (("between", 4), ("saving", 2)):
        output_dir = tmp_path / moment / "out"
        assert (output_dir / "checkpoint-4").is_dir()  # half of it, where the kill came while saving

        resumed = train(recipes[moment])
        assert f"Going on from {output_dir / f'checkpoint-{last_step}'}" in caplog.text
        assert resumed.state.global_step == whole.state.global_step == 7
        for name in ("model.safetensors", "checkpoint-7/model.safetensors"):
            weights, of_whole = load_file(output_dir / name), load_file(tmp_path / "never" / "out" / name)
            assert weights.keys() == of_whole.keys()
            assert all(torch.equal(weights[key], of_whole[key]) for key in weights), name
        assert losses(resumed) == losses(whole)


def losses(trainer):
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def test_no_resume_starts_anew(recipe_sections, caplog):
    recipe = recipe_of(recipe_sections, "training.max_steps=2")
    train(recipe)
    first = train(recipe, resume=False)
    assert "Going on from" not in caplog.text
    assert [step for step, _ in losses(first)] == [1, 2]


def test_resume_of_another_model_is_refused_and_other_changes_are_told(recipe_sections, caplog):
    train(recipe_of(recipe_sections, "training.max_steps=1"))
    train(recipe_of(recipe_sections, "training.max_steps=2"))
    assert "Going on with another `training` than before: max_steps" in caplog.text
    with pytest.raises(ValueError, match=r"another `model.text_config`.*--no-resume"):
        train(recipe_of(recipe_sections, "model.text_config.hidden_size=16"))


def test_trained_folder_reloads_by_itself_with_the_recipes_generation(recipe_sections, tmp_path):
    trainer = train(recipe_of(recipe_sections))
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.generation_config.max_new_tokens == 6
    assert model.generation_config.max_length is None  # evaluation must not leave transformers' default of 20 behind
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.cpu()), name
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert saved["model"]["vision_config"]["hidden_size"] == 32


def test_pretrained_parts_are_joined_trained_and_reloaded(recipe_sections, tmp_path):
    """A stock vision encoder and a stock encoder-only text model, each with its own processor's files."""
    tokenizer = build_character_tokenizer(alphabet=" abcdefghijklmnopqrstuvwxyz")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vision")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vision")
    text_config = BertConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=24)
    BertModel(text_config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    recipe_sections["model"] = {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text")}
    recipe_sections["model"]["settings"] = {"label_smoothing": 0.1, "num_decoder_layers": 1}
    trainer = train(recipe_of(recipe_sections))
    assert trainer.model.config.label_smoothing == 0.1
    reloaded = AutoModel.from_pretrained(tmp_path / "out")
    assert all(torch.equal(weight, reloaded.state_dict()[name]) for name, weight in trainer.model.state_dict().items())

    report = WeightReport.load(tmp_path / "out")
    assert report["decoder"].sha256 == describe_part("decoder", reloaded.decoder).sha256
    assert report["vision"].source == "vision" and len(report["vision"].copied) == len(
        trainer.model.encoder.state_dict()
    )
    reloaded.save_pretrained(tmp_path / "again")
    assert WeightReport.load(tmp_path / "again") == report


def test_image_size_reaches_model_and_processor_of_parts_and_of_a_pretrained_reader(recipe_sections, tmp_path):
    train(recipe_of(recipe_sections))
    out = tmp_path / "out"
    reader = AutoModel.from_pretrained(out)
    reader.encoder.vision_model.save_pretrained(tmp_path / "vision")
    processor = AutoProcessor.from_pretrained(out)
    processor.image_processor.save_pretrained(tmp_path / "vision")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text_config = BertConfig(**shape, vocab_size=len(processor.tokenizer), max_position_embeddings=24)
    BertModel(text_config).save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    size = {"settings": {"image_size": [32, 320]}}
    for section in ({"pretrained": str(out)}, {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text")}):
        model, processor = build_model(recipe_of(recipe_sections | {"model": section | size}), [])
        assert tuple(model.config.vision_config.image_size) == (32, 320)
        pixels = processor(images=Image.new("RGB", (4000, 32)))["pixel_values"]
        assert pixels.shape[-2:] == (32, 320)
        model(pixel_values=pixels, labels=torch.tensor([[5, 2]]))


def test_misspelt_model_setting_is_refused(recipe_sections):
    with pytest.raises(ValueError, match="Did you mean `model.settings.label_smoothing`"):
        build_trainer(recipe_of(recipe_sections, "model.settings.label_smothing=0.1"))


def test_best_checkpoint_by_cer_is_what_is_kept(recipe_sections, tmp_path, monkeypatch):
    errors = iter([0.5, 0.25, 0.75])
    monkeypatch.setattr(
        "hf_vlm.training.trainers.line_trainer.character_error_rate", lambda *args, **kwargs: next(errors)
    )
    trainer = train(recipe_of(recipe_sections))
    assert trainer.state.best_global_step == 2
    best = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    final = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(best[name], final[name]) for name in best)


def test_several_validation_sets_log_each_and_the_mean(recipe_sections, lines_folder):
    write_lines(lines_folder.parent / "others" / "validation", ["up", "to"])
    others = {"path": str(lines_folder.parent / "others"), "split": "validation"}
    recipe_sections["data"]["validation"]["others"] = others
    trainer = build_trainer(recipe_of(recipe_sections))
    metrics = trainer.evaluate()
    for name in ("cer", "wer"):
        mean = (metrics[f"eval_lines_{name}"] + metrics[f"eval_others_{name}"]) / 2
        assert metrics[f"eval_{name}"] == pytest.approx(mean)
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_lines_cer", "eval_others_cer", "eval_cer"} <= logged


def test_evaluation_scores_against_the_text_even_where_the_tokenizer_does_not_know_it(
    recipe_sections, lines_folder, monkeypatch
):
    """A model that reads all it can still errs where its alphabet ends."""
    write_lines(lines_folder.parent / "greek" / "validation", ["aβγd"])
    greek = {"path": str(lines_folder.parent / "greek"), "split": "validation"}
    recipe_sections["data"]["validation"] = {"greek": greek}
    trainer = build_trainer(recipe_of(recipe_sections))
    a, d = trainer.processing_class.tokenizer.convert_tokens_to_ids(["a", "d"])
    monkeypatch.setattr(trainer.model, "generate", lambda *args, **kwargs: torch.tensor([[1, a, d, 2]]))
    assert trainer.evaluate()["eval_cer"] == pytest.approx(0.5)


def test_case_is_ignored_in_a_set_that_asks_for_it(recipe_sections, lines_folder, monkeypatch):
    write_lines(lines_folder.parent / "upper" / "validation", ["aB"])
    of_set = {"path": str(lines_folder.parent / "upper"), "split": "validation"}
    recipe_sections["data"]["validation"] = {"strict": of_set, "folded": {**of_set, "ignore_case": True}}
    trainer = build_trainer(recipe_of(recipe_sections))
    a, b = trainer.processing_class.tokenizer.convert_tokens_to_ids(["a", "b"])
    monkeypatch.setattr(trainer.model, "generate", lambda *args, **kwargs: torch.tensor([[1, a, b, 2]]))
    metrics = trainer.evaluate()
    assert (metrics["eval_strict_cer"], metrics["eval_folded_cer"]) == (0.5, 0)


def test_steps_follow_from_the_epochs_over_real_lines(recipe_sections):
    del recipe_sections["training"]["max_steps"]
    trainer = build_trainer(recipe_of(recipe_sections, "training.num_train_epochs=3"))
    assert trainer.args.max_steps == 3  # 3 times 8 lines, 2 x 4 an update
    assert len(trainer.train_dataset) == 24


def test_processes_get_lines_of_like_width(recipe_sections, monkeypatch):
    """All processes wait for the one with the widest lines: a group of like lines is an update of them all."""
    monkeypatch.setattr(Seq2SeqTrainingArguments, "world_size", 3)
    trainer = build_trainer(recipe_of(recipe_sections))
    args = trainer.args
    assert trainer.train_dataset.group_size == 3 * args.train_batch_size * args.gradient_accumulation_steps
    assert len(trainer.train_dataset) == 3 * trainer.args.max_steps * trainer.args.train_batch_size * 2


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_lines_are_augmented_in_the_colours_that_the_model_sees(recipe_sections, channels, mode, monkeypatch):
    seen = set()
    monkeypatch.setitem(AUGMENTATIONS, "da2", lambda image, rng: seen.add(image.mode) or image)
    recipe_sections["model"]["vision_config"]["num_channels"] = channels
    recipe_sections["model"]["image_processor"]["do_convert_grayscale"] = channels == 1
    for statistic in ("image_mean", "image_std"):
        recipe_sections["model"]["image_processor"][statistic] = [0.5] * channels
    recipe_sections["data"]["train"][0]["augment"] = "da2"
    trainer = build_trainer(recipe_of(recipe_sections))
    trainer.train_dataset[0]
    assert seen == {mode}


def test_max_lines_reads_lines_from_all_over_the_set(recipe_sections):
    recipe = recipe_of(recipe_sections, "data.validation.lines.max_lines=2")
    assert build_trainer(recipe).eval_dataset.texts == ["a ship", "no dogs"]


# What is refused before the start


def test_validation_set_without_rows_is_refused(recipe_sections):
    with pytest.raises(ValueError, match="got none"):
        build_trainer(recipe_of(recipe_sections, "data.validation.lines.where={text: nothing such}"))


def test_label_of_only_unknown_characters_is_refused_with_its_row(recipe_sections, lines_folder):
    write_lines(lines_folder.parent / "greek" / "train", ["a", "βγδ"])
    recipe_sections["data"]["train"][0]["path"] = str(lines_folder.parent / "greek")
    with pytest.raises(ValueError, match="greek.*line 2.*'βγδ'"):
        build_trainer(recipe_of(recipe_sections))


def test_label_longer_than_the_decoder_is_refused_with_its_row(recipe_sections):
    with pytest.raises(ValueError, match="line 2: a label of at most 8 tokens is wanted, got 13.*'two dogs ran'"):
        build_trainer(recipe_of(recipe_sections, "model.text_config.max_position_embeddings=8"))


@pytest.mark.parametrize("harm", ["vocabulary", "end token"])
def test_tokenizer_that_disagrees_with_the_model_is_refused(recipe_sections, harm):
    wrong = {"vocabulary": "model.text_config.vocab_size=20", "end token": "model.text_config.eos_token_id=1"}[harm]
    with pytest.raises(ValueError, match="tokens for 20 rows" if harm == "vocabulary" else "agree on `eos_token_id`"):
        build_trainer(recipe_of(recipe_sections, wrong))


def test_missing_jiwer_is_told_before_the_start(recipe_sections, monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ImportError, match=r"hf-vlm\[ocr\]"):
        build_trainer(recipe_of(recipe_sections))


@pytest.mark.parametrize("of_model", ["label_smoothing", "ctc_loss_weight"])
def test_loss_of_model_and_of_trainer_at_once_is_refused(recipe_sections, tmp_path, of_model):
    """Also where the model's own setting lies in a checkpoint, and not in the recipe."""
    both = [f"model.settings.{of_model}=0.1", "training.label_smoothing_factor=0.1"]
    with pytest.raises(ValueError, match=f"{of_model}`=0.1.*label_smoothing_factor`"):
        build_trainer(recipe_of(recipe_sections, *both))
    build_trainer(recipe_of(recipe_sections, both[0])).save_model(str(tmp_path / "saved"))
    recipe_sections["model"] = {"pretrained": str(tmp_path / "saved")}
    with pytest.raises(ValueError, match="Set one of the two to 0"):
        build_trainer(recipe_of(recipe_sections, both[1]))
    build_trainer(recipe_of(recipe_sections, both[1], f"model.settings.{of_model}=0"))


def test_setting_that_would_break_line_training_is_refused(recipe_sections):
    with pytest.raises(ValueError, match="`training.remove_unused_columns` must be False"):
        build_trainer(recipe_of(recipe_sections, "training.remove_unused_columns=true"))


def test_rendered_lines_alone_want_a_number_of_steps(recipe_sections, tmp_path):
    (tmp_path / "words.txt").write_text("some words to draw\n")
    del recipe_sections["training"]["max_steps"]
    recipe_sections["data"]["train"] = []
    recipe_sections["data"]["synthetic"] = {"texts": str(tmp_path / "words.txt")}
    with pytest.raises(ValueError, match="`training.max_steps` is wanted"):
        build_trainer(recipe_of(recipe_sections))


def test_part_without_a_gradient_stops_the_run(recipe_sections):
    trainer = build_trainer(recipe_of(recipe_sections, "data.validation={}"))
    encoder = trainer.model.encoder
    forward = encoder.forward

    def detached(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.detach()
        return output

    encoder.forward = detached
    with pytest.raises(ValueError, match="got none in `encoder.vision_model`"):
        trainer.train()


def test_state_log_is_json(recipe_sections, tmp_path):
    train(recipe_of(recipe_sections, "training.max_steps=1"))
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_cer" in entry for entry in history)


def test_an_extended_alphabet_is_drawn(recipe_sections, tmp_path):
    """Synthetic lines have the characters that a pretrained reader got by `extend-alphabet`."""
    trainer = build_trainer(recipe_of(recipe_sections))
    extend_alphabet(trainer.model, trainer.processing_class, "ąż")
    trainer.model.save_pretrained(tmp_path / "extended")
    trainer.processing_class.save_pretrained(tmp_path / "extended")
    (tmp_path / "words.txt").write_text("zażółć gęś\nwąż żaba\n" * 20, encoding="utf-8")
    recipe_sections["model"] = {"pretrained": str(tmp_path / "extended")}
    (tmp_path / "font.ttf").write_bytes(ImageFont.load_default(20).path.getvalue())
    recipe_sections["data"]["synthetic"] = {
        "texts": str(tmp_path / "words.txt"),
        "fonts": [str(tmp_path / "font.ttf")],
        "kinds": {"print": 1},
    }
    renderer = build_renderer(recipe_of(recipe_sections), trainer.processing_class, seed=0)
    drawn = set("".join(renderer.texts.fragment(12, np.random.default_rng(index)) for index in range(60)))
    assert set("ąż") <= drawn
    assert not drawn & set("ółćęś")
