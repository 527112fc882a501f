"""Training visual tokenizers: what runs must equal, what they tell, and what they refuse before they start."""

import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, TrainerCallback

from hf_vlm.data.labelled_images import read_images
from hf_vlm.training.dry_run import dry_run
from hf_vlm.training.image_tokenization import build_trainer, train
from hf_vlm.training.scores.tokenizer_evaluation import evaluate_tokenizer_folders, is_tokenizer
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits, write_pictures
from tests.training.tiny_runs import recipe_for

CONFIGS = {
    "vae": {"model_type": "hf_vlm_vae", "image_size": 16, "hidden_channels": [8, 8]},
    "vq": {
        "model_type": "hf_vlm_vqvae",
        "image_size": 16,
        "hidden_channels": [8, 8],
        "num_codes": 16,
        "code_dim": 4,
        "ema_decay": 0.8,
        "revive_below": 0.5,
    },
    "dvae": {"model_type": "hf_vlm_dvae", "image_size": 16, "group_channels": 8, "num_codes": 16, "code_dim": 8},
}
ANNEALING = {
    "vae": {"beta": {"kind": "linear", "start": 0.1, "end": 1.0, "num_steps": 8}},
    "dvae": {
        "temperature": {"kind": "cosine", "start": 1.0, "end": 0.1, "num_steps": 8},
        "kl_weight": {"kind": "linear", "start": 0.0, "end": 1.0, "num_steps": 4},
        "learning_rate": {"kind": "cosine", "start": 1e-3, "end": 1e-5, "num_steps": 4},
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_picture_splits(tmp_path_factory.mktemp("data") / "pictures")


def tokenizer_recipe(kind, pictures, output_dir):
    """Six steps of two batches of 4, validated and saved at every second."""
    sections = tiny_picture_recipe(pictures, output_dir, "image-tokenization")
    sections["model"]["config"] = dict(CONFIGS[kind])
    if kind in ANNEALING:
        sections["annealing"] = {name: dict(schedule) for name, schedule in ANNEALING[kind].items()}
    if kind == "dvae":
        sections["optimizer"] = {"weight_average": 0.9}
        del sections["training"]["learning_rate"]
    return sections


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:  # one step behind the last checkpoint
            raise KeyboardInterrupt


def of_history(trainer, *keys):
    return [tuple(entry.get(key) for key in ("step", *keys)) for entry in trainer.state.log_history]


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one(kind, pictures, tmp_path, monkeypatch, caplog):
    # in the middle of annealing, of a running mean of weights, and of codewords that are running means
    recipes = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        recipes[name] = picture_recipe_of(tokenizer_recipe(kind, pictures, tmp_path / name / "out"))
    whole = train(recipes["whole"])
    with monkeypatch.context() as patch:
        trainer = build_trainer(recipes["stopped"])
        trainer.add_callback(Stop())
        patch.setattr("hf_vlm.training.image_tokenization.build_trainer", lambda recipe: trainer)
        with pytest.raises(KeyboardInterrupt):
            train(recipes["stopped"])
    resumed = train(recipes["stopped"])
    assert f"Going on from {tmp_path / 'stopped' / 'out' / 'checkpoint-4'}" in caplog.text
    files = ["model.safetensors", "checkpoint-6/model.safetensors"]
    if kind == "dvae":
        files.append("checkpoint-6/average.safetensors")
    for file in files:
        weights, of_whole = (load_file(tmp_path / run / "out" / file) for run in ("stopped", "whole"))
        assert weights.keys() == of_whole.keys()
        assert all(torch.equal(weights[key], of_whole[key]) for key in weights), file
    keys = ("loss", "eval_loss", "eval_mse", "reconstruction_nats", "temperature", "kl_weight", "beta", "learning_rate")
    assert of_history(resumed, *keys)[:-1] == of_history(whole, *keys)[:-1]


def test_annealed_values_follow_the_step_and_are_saved(pictures, tmp_path):
    trainer = train(picture_recipe_of(tokenizer_recipe("dvae", pictures, tmp_path / "out")))
    logged = [entry for entry in trainer.state.log_history if "temperature" in entry]
    temperatures = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(6)]
    assert [entry["temperature"] for entry in logged] == pytest.approx(temperatures)
    assert [entry["kl_weight"] for entry in logged] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    # the rate of each step
    rates = [1e-5 + 0.99e-3 * (1 + math.cos(math.pi * min(step / 4, 1))) / 2 for step in range(6)]
    assert [entry["learning_rate"] for entry in logged] == pytest.approx(rates)
    saved = AutoModel.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert saved.config.temperature == pytest.approx(temperatures[3])
    assert saved.temperature.item() == pytest.approx(temperatures[3])


def test_averaged_weights_are_validated_and_saved(pictures, tmp_path):
    trainer = train(picture_recipe_of(tokenizer_recipe("dvae", pictures, tmp_path / "out")))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    average = load_file(tmp_path / "out" / "checkpoint-6" / "average.safetensors")
    last = load_file(tmp_path / "out" / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in average)
    assert any(not torch.equal(saved[name], last[name]) for name in average)
    [(_, result)] = evaluate_tokenizer_folders(str(tmp_path / "out"), [str(pictures)], split="validation")
    last_scores = [entry for entry in trainer.state.log_history if "eval_mse" in entry][-1]
    assert result["mse"] == pytest.approx(last_scores["eval_mse"], rel=1e-5)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_term_of_the_loss_is_logged(kind, pictures, tmp_path):
    trainer = train(picture_recipe_of(tokenizer_recipe(kind, pictures, tmp_path / "out")))
    [first, *_] = [entry for entry in trainer.state.log_history if "loss" in entry]
    weight = {"vae": 0.1, "vq": 0.0, "dvae": 0.0}[kind]
    loss = (first["reconstruction_nats"] + weight * first["kl_nats"]) / (3 * 16 * 16)
    if kind == "vq":
        loss += first["codebook_loss"] + 0.25 * first["commitment_loss"]
    assert first["loss"] == pytest.approx(loss, rel=1e-4)
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    of_latents = {"eval_active_channels"} if kind == "vae" else {"eval_used_codes", "eval_perplexity"}
    assert {"eval_bits_per_dim", "eval_psnr", "eval_sharpness", "eval_reconstruction_nats"} | of_latents <= set(
        evaluated
    )


def test_pictures_of_the_run_are_left_beside_it(pictures, tmp_path):
    train(picture_recipe_of(tokenizer_recipe("vq", pictures, tmp_path / "out")))
    names = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    steps = (2, 4, 6)
    wanted = {f"{kind}-{step}.png" for kind in ("reconstructions", "samples") for step in steps}
    assert names == wanted | {"codes.png", "code_usage.csv"}
    lines = (tmp_path / "out" / "pictures" / "code_usage.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines] == list(steps)
    assert all(sum(map(int, line.split(",")[1:])) == 9 * 16 for line in lines)  # nine pictures of 4 x 4 codes


def test_pictures_are_written_to_tensorboard(pictures, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sections = tokenizer_recipe("vq", pictures, tmp_path / "out")
    sections["training"]["report_to"] = "tensorboard"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(picture_recipe_of(sections))
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert set(events.Tags()["images"]) == {"reconstructions", "samples", "codes"}
    assert "train/commitment_loss" in events.Tags()["scalars"]


def test_scores_equal_those_by_hand(pictures, tmp_path):
    train(picture_recipe_of(tokenizer_recipe("vq", pictures, tmp_path / "out")))
    assert is_tokenizer(str(tmp_path / "out"))
    [(name, result)] = evaluate_tokenizer_folders(
        str(tmp_path / "out"), [str(pictures)], split="validation", batch_size=4
    )
    model, processor = (cls.from_pretrained(tmp_path / "out") for cls in (AutoModel, AutoImageProcessor))
    rows = read_images(pictures, "validation", with_labels=False)
    errors, psnr, codes = [], [], []
    with torch.no_grad():
        for row in rows:
            pixels = processor(images=row["image"], return_tensors="pt")["pixel_values"]
            error = np.square(model.reconstruct(pixels).clamp(0, 1).numpy() - pixels.numpy()).mean()
            errors.append(error)
            psnr.append(10 * math.log10(1 / error))
            codes += model.encode(pixels).flatten().tolist()
    shares = np.unique(codes, return_counts=True)[1] / len(codes)
    assert name == str(pictures)
    assert result["mse"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert result["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
    assert result["used_codes"] == len(set(codes))
    assert result["perplexity"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_sharpness_is_one_for_equal_pictures_and_falls_with_blur():
    from hf_vlm.training.scores.tokenizer_evaluation import _edge_energy

    pixels = torch.rand(2, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1)
    assert _edge_energy(blurred) < 0.2 * _edge_energy(pixels)


def test_collapse_is_told(pictures, tmp_path, caplog):
    sections = tokenizer_recipe("vq", pictures, tmp_path / "out")
    sections["model"]["config"] |= {"num_codes": 4096, "revive_below": 0.0, "kmeans_iterations": 0}
    train(picture_recipe_of(sections))
    assert "of 4096 codes are in use" in caplog.text


def test_posterior_collapse_is_told(pictures, tmp_path, caplog):
    sections = tokenizer_recipe("vae", pictures, tmp_path / "out")
    sections["annealing"]["beta"] = {"kind": "constant", "start": 1e4}
    sections["training"]["max_steps"] = 40
    sections["training"] |= {"learning_rate": 1e-2, "eval_steps": 20, "logging_steps": 20}
    train(picture_recipe_of(sections))
    assert "posterior collapse" in caplog.text


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_eight_accumulated_batches_are_one(kind, pictures, tmp_path):
    # the codebook learns from each batch as it comes: without learning, and without noise, the gradients are the same
    gradients = []
    for accumulated in (1, 4):
        sections = tokenizer_recipe(kind, pictures, tmp_path / "out")
        sections["training"] |= {
            "per_device_train_batch_size": 8 // accumulated,
            "gradient_accumulation_steps": accumulated,
            "max_steps": 1,
            "max_grad_norm": 0.0,
        }
        trainer = build_trainer(picture_recipe_of(sections))
        kept = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, kept=kept, **kwargs):
                kept |= {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

        trainer.model.eval()
        trainer.model.train = lambda mode=True: None
        trainer.add_callback(Keep())
        trainer.train()
        gradients.append(kept)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_dry_run_trains_nothing(pictures, tmp_path):
    told = dry_run(picture_recipe_of(tokenizer_recipe("dvae", pictures, tmp_path / "out")))
    assert "6 steps of 8 pictures" in told and "encoder.groups" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dry_run.png"}


def test_trained_tokenizer_is_gone_on_with(pictures, tmp_path):
    train(picture_recipe_of(tokenizer_recipe("vq", pictures, tmp_path / "first")))
    again = tokenizer_recipe("vq", pictures, tmp_path / "second")
    again["model"] = {"pretrained": str(tmp_path / "first"), "settings": {"commitment_weight": 1.0, "image_size": 32}}
    trainer = build_trainer(picture_recipe_of(again))
    codebook = load_file(tmp_path / "first" / "model.safetensors")["codebook.codewords"]
    assert torch.equal(trainer.model.codebook.codewords, codebook)
    assert trainer.model.config.commitment_weight == 1.0
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape[-2:] == (32, 32)


def test_grayscale_tokenizer_gets_gray_pictures(pictures, tmp_path):
    sections = tokenizer_recipe("vq", pictures, tmp_path / "out")
    sections["model"]["config"]["num_channels"] = 1
    trainer = train(picture_recipe_of(sections))
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape[1] == 1
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(images=Image.new("RGB", (20, 20), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 16, 16) and 0.2 < pixels.mean() < 0.4


@pytest.mark.parametrize(
    ("kind", "overrides", "told"),
    [
        ("vae", ["model.config.model_type=hf_vlm_vit"], "`hidden_channels`|visual tokenizer is wanted"),
        ("vae", ["model.pretrained=x"], "exactly one of the two"),
        ("vae", ["annealing.temperature={kind: constant, start: 1}"], "`beta`, got `temperature`"),
        ("vae", ["annealing.beta.kind=cosinus"], "annealing.beta.kind"),
        ("vae", ["annealing.beta.steps=5"], r"Did you mean `annealing.beta.num_steps`"),
        ("vae", ["model.settings.beat=0"], r"Did you mean `model.settings.beta`"),
        ("vae", ["model.settings.image_size=18"], "multiples of 4 pixels are wanted, got 18 x 18"),
        ("vq", ["model.config.num_codes=1"], "`num_codes` must be 2 or more"),
        ("vq", ["data.augmentation.mixup=0.5"], "mixes labels"),
        ("vq", ["optimizer.weight_average=1.0"], r"in \(0, 1\), got 1.0"),
        ("dvae", ["annealing.learning_rate.end=-1"], "must start above 0 and end at 0 or more, got 0.001 and -1"),
        (
            "vq",
            ["model.image_processor={do_rescale: false}"],
            r"Pixels in \[0, 1\] are wanted",
        ),
        ("vq", ["model.image_processor={sise: 3}"], r"Did you mean `model.image_processor.size`"),
        ("dvae", ["annealing.temperature.end=0"], "`temperature` must be above 0"),
    ],
)
def test_wrong_recipe_is_refused(kind, overrides, told, pictures, tmp_path):
    sections = tokenizer_recipe(kind, pictures, tmp_path / "out")
    with pytest.raises(ValueError, match=told):
        build_trainer(picture_recipe_of(sections, *overrides))


def test_resume_without_the_average_of_the_checkpoint_is_refused(pictures, tmp_path):
    sections = tokenizer_recipe("dvae", pictures, tmp_path / "out")
    train(picture_recipe_of(sections, "training.max_steps=2"))
    (tmp_path / "out" / "checkpoint-2" / "average.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"average.safetensors.*checkpoint-2"):
        train(picture_recipe_of(sections))


def test_unreadable_picture_stops_training_with_its_name(tmp_path):
    pictures = write_pictures(tmp_path / "pictures" / "train", 4)
    broken = next(pictures.glob("*/0.png"))
    broken.write_bytes(b"no picture")
    sections = tokenizer_recipe("vq", tmp_path / "pictures", tmp_path / "out")
    sections["data"]["validation"] = None
    with pytest.raises(ValueError, match="0.png"):
        train(picture_recipe_of(sections))


def test_run_is_recorded(pictures, tmp_path):
    train(picture_recipe_of(tokenizer_recipe("vq", pictures, tmp_path / "out")))
    assert "ema_decay: 0.8" in (tmp_path / "out" / "recipe.yaml").read_text()
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 6


def test_learning_rate_of_the_recipe_gives_way_to_its_schedule(pictures, tmp_path, caplog):
    sections = tokenizer_recipe("dvae", pictures, tmp_path / "out")
    trainer = build_trainer(picture_recipe_of(sections, "training.learning_rate=0.5"))
    assert trainer.args.learning_rate == 1e-3
    assert "not used: `training.learning_rate`" in caplog.text


def test_schedule_longer_than_the_run_is_told(pictures, tmp_path, caplog):
    build_trainer(picture_recipe_of(tokenizer_recipe("dvae", pictures, tmp_path / "out")))
    assert "`annealing.temperature` ends after 8 steps, the run after 6" in caplog.text
    assert "annealing.kl_weight" not in caplog.text


@pytest.mark.parametrize(
    "override", ["annealing={kl_weight: {kind: constant, start: 1}}", "annealing.learning_rate.start=1e-4"]
)
def test_resume_without_a_schedule_or_with_another_rate_is_refused(override, pictures, tmp_path):
    sections = tokenizer_recipe("dvae", pictures, tmp_path / "out")
    train(picture_recipe_of(sections, "training.max_steps=2"))
    with pytest.raises(ValueError, match=r"another `annealing.(kl_weight|temperature|learning_rate)`.*--no-resume"):
        train(picture_recipe_of(sections, override))


def test_longer_schedule_goes_on_with_a_warning(pictures, tmp_path, caplog):
    sections = tokenizer_recipe("vae", pictures, tmp_path / "out")
    train(picture_recipe_of(sections, "training.max_steps=2"))
    train(picture_recipe_of(sections, "training.max_steps=4", "annealing.beta.num_steps=16"))
    assert "Going on with another `annealing` than before: beta" in caplog.text


def test_tokenizer_that_crops_goes_on_cropping_at_another_size(pictures, tmp_path):
    sections = tokenizer_recipe("vq", pictures, tmp_path / "first")
    sections["model"]["image_processor"] = {
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True,
    }
    train(picture_recipe_of(sections, "training.max_steps=2"))
    again = tokenizer_recipe("vq", pictures, tmp_path / "second")
    again["model"] = {"pretrained": str(tmp_path / "first"), "settings": {"image_size": 32}}
    processor = build_trainer(picture_recipe_of(again)).processing_class
    wide = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None], 32, axis=0)).convert("RGB")
    pixels = processor(images=wide, return_tensors="pt")["pixel_values"][0, 0, 0] * 255
    assert pixels.round().tolist() == list(range(16, 48))  # the middle, not the whole squeezed


def evaluate_on_two(rank, world, folder, pictures, queue):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(29000 + os.getppid() % 2000)
    trainer = build_trainer(picture_recipe_of(tokenizer_recipe("vq", pictures, folder / str(rank) / "out")))
    metrics = trainer.evaluate()
    queue.put(
        (
            rank,
            trainer.args.world_size,
            {name: value for name, value in metrics.items() if "mse" in name or "used" in name},
        )
    )


@pytest.mark.slow  # two processes that import torch
def test_two_processes_evaluate_each_picture_once(pictures, tmp_path):
    single = build_trainer(
        picture_recipe_of(tokenizer_recipe("vq", pictures, tmp_path / "out"))
    ).evaluate()  # of 9 pictures
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    workers = [context.Process(target=evaluate_on_two, args=(rank, 2, tmp_path, pictures, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    for _, world_size, metrics in found:
        assert world_size == 2
        assert metrics["eval_mse"] == pytest.approx(single["eval_mse"], rel=1e-6)
        assert metrics["eval_used_codes"] == single["eval_used_codes"]


def test_evaluation_before_training_has_the_precision_of_training(tmp_path):
    recipe = recipe_for("tokenizer", tmp_path / "in", tmp_path / "out", "training.bf16=true", "data.validation=train")
    trainer = build_trainer(recipe)
    seen = set()
    layer = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.evaluate()
    assert seen == {torch.bfloat16}
