"""What `hf-vlm estimate` tells of runs that are not made."""

import json

import pytest
import torch
import yaml

from hf_vlm.training.estimates.estimate import SHIPPED_SHARE, estimate, speed_of
from hf_vlm.training.estimates.gpus import GPUS, gpu_named, gpu_of_device
from hf_vlm.training.estimates.unloaded_models import unloaded_config, unloaded_model
from hf_vlm.training.tasks import build_trainer, load_recipe
from tests.tiny_lines import recipe_of as line_recipe_of
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Parts and conversations; `bare` are the parts' configurations alone."""
    folder = tmp_path_factory.mktemp("estimate")
    write_parts(folder / "parts")
    write_conversations(folder / "data")
    for part in ("vision", "text"):
        bare = folder / "bare" / part
        bare.mkdir(parents=True)
        (bare / "config.json").write_bytes((folder / "parts" / part / "config.json").read_bytes())
    return folder


def chat_recipe(folders, tmp_path, of="bare", **sections):
    settings = tiny_llava_recipe(folders / of, folders / "data", tmp_path / "run", **sections)
    return recipe_of(tmp_path, settings)


def counted(model):
    parameters = list(model.parameters())
    return len(parameters), sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


@pytest.mark.parametrize("train", [["projector"], ["projector", "language"]])
def test_model_of_configurations_alone_has_the_weights_of_the_real_one(folders, tmp_path, train):
    real = build_trainer(chat_recipe(folders, tmp_path, "parts", parts={"train": train})).model
    recipe = chat_recipe(folders, tmp_path, parts={"train": train})
    model = unloaded_model(recipe, unloaded_config(recipe))
    assert counted(model) == counted(real)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_readers_and_classifiers_are_made_without_weights_too(recipe_sections, tmp_path):
    for recipe in (
        line_recipe_of(recipe_sections),
        picture_recipe_of(tiny_picture_recipe(write_picture_splits(tmp_path / "pictures"), tmp_path / "out")),
    ):
        trainer = build_trainer(recipe)
        config = unloaded_config(recipe)
        config.num_labels = 3
        assert counted(unloaded_model(recipe, config)) == counted(trainer.model)


@pytest.mark.parametrize(
    ("preset", "vision", "language", "projector"),
    # CLIP ViT-L/14 at 336; Llama 2's 6,738,415,616 and 13,015,864,320 with the row of the picture's token, in and out
    [
        ("llava-1.5-7b", 303_507_456, 6_738_415_616 + 2 * 4096, 1024 * 4096 + 4096 + 4096 * 4096 + 4096),
        ("llava-1.5-13b", 303_507_456, 13_015_864_320 + 2 * 5120, 1024 * 5120 + 5120 + 5120 * 5120 + 5120),
    ],
)
def test_presets_have_the_published_numbers_of_weights(preset, vision, language, projector):
    recipe = load_recipe("llava-1.5-chat")
    model = unloaded_model(recipe, unloaded_config(recipe, preset))
    for part, number in (("vision_model", vision), ("language_model", language), ("projector", projector)):
        assert sum(parameter.numel() for parameter in model.get_submodule(part).parameters()) == number


def test_report_shows_parts_engines_and_hours(folders, tmp_path):
    recipe = chat_recipe(folders, tmp_path, data={"max_tokens": None}, training={"max_steps": -1})
    found = estimate(recipe, gpus=2, gpu="l4", rows=1000, tokens=50)
    told = str(found)
    assert "2 x l4" in told and "Computed, not run." in told
    assert all(word in told for word in ("vision_model", "projector", "ddp", "zero2", "fsdp2", "zero3", "updates"))
    assert json.loads(json.dumps(found.to_dict()))["engines"]["zero3"]["fits"] is True
    assert found.updates == 1500  # three passes over a thousand rows, one a device
    without = estimate(recipe, gpus=2, gpu="l4")
    assert without.hours() is None and "--rows" in str(without)


def test_hours_go_with_rows_and_against_devices(folders, tmp_path):
    recipe = chat_recipe(folders, tmp_path, training={"max_steps": -1, "global_batch_size": 8})
    one, twice, on_four = (
        estimate(recipe, rows=rows, gpus=gpus, tokens=40, engine="ddp")
        for rows, gpus in ((80_000, 1), (160_000, 1), (80_000, 4))
    )
    assert twice.hours()[0] == pytest.approx(2 * one.hours()[0], rel=1e-3)
    assert on_four.hours()[0] == pytest.approx(one.hours()[0] / 4, rel=1e-3)
    assert on_four.hours()[1] > on_four.hours()[0]  # what is sent
    assert one.hours()[0] == one.hours()[1]
    assert (one.num_passes, on_four.num_passes) == (8, 2)
    assert one.updates == on_four.updates == -(-3 * 80_000 * 40 // 256 // 8)  # rows packed into rows of 256


def test_measured_run_is_found_again_on_its_own_gpu(folders, tmp_path):
    """A run's items a second go in by its folder, and come out as the estimate's of the same recipe."""
    recipe = chat_recipe(folders, tmp_path, data={"max_tokens": None})
    run = tmp_path / "measured"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()), encoding="utf-8")
    session = {"device": "NVIDIA H100 80GB HBM3", "num_devices": 2}
    speed = {"items_per_second": 10.0, "tokens_per_second": 500.0}
    (run / "run_environment.json").write_text(json.dumps({"sessions": [session], **speed}), encoding="utf-8")
    found = estimate(recipe, gpu="h100", gpus=1, tokens=50, measured=run)
    assert found.items_per_update / found.seconds_of_arithmetic == pytest.approx(5.0)  # of one of its two devices
    assert found.tokens_per_second()[0] == pytest.approx(250)
    on_other = estimate(recipe, gpu="a100-80", gpus=1, tokens=50, measured=run)
    assert on_other.tokens_per_second()[0] == pytest.approx(250 * 312 / 989)


@pytest.mark.parametrize("tokens", [32, 64])
def test_packed_rows_are_counted_by_their_tokens(folders, tmp_path, tokens):
    """A run counts conversations, a pass takes rows of them: tokens a second come out as they went in."""
    recipe = chat_recipe(folders, tmp_path, data={"max_tokens": 256, "max_length": 64})
    run = tmp_path / "measured"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()), encoding="utf-8")
    speed = {"items_per_second": 1000 / tokens, "tokens_per_second": 1000.0}
    session = {"device": "NVIDIA H100 80GB HBM3", "num_devices": 1}
    (run / "run_environment.json").write_text(json.dumps({"sessions": [session], **speed}), encoding="utf-8")
    found = estimate(recipe, gpu="h100", tokens=tokens, measured=run)
    assert found.tokens_per_second()[0] == pytest.approx(1000)
    assert found.seconds_of_arithmetic == pytest.approx(found.items_per_update * 256 / 1000)
    assert "packed in rows of 256 tokens" in str(found)


def test_labels_longer_than_usual_are_estimated_up_to_the_decoders_positions(tmp_path):
    recipe = load_recipe("trocr-finetune-lines")
    found = estimate(recipe, tokens=44)
    assert found.mean.tokens == found.longest.tokens == 44 > estimate(recipe).longest.tokens
    with pytest.raises(ValueError, match="`tokens` must be at most the 112"):
        estimate(recipe, tokens=113)


def test_misspelt_settings_are_refused_as_training_refuses_them(folders, tmp_path):
    recipe = chat_recipe(folders, tmp_path)
    recipe.model.settings["max_new_tokens"] = 64
    assert (
        unloaded_config(recipe, "llava-1.5-7b").text_config.hidden_size == 4096
    )  # of generation: taken as in training
    recipe.model.settings["num_linear_layerz"] = 3
    with pytest.raises(ValueError, match="got `num_linear_layerz`. Did you mean `model.settings.num_linear_layers`"):
        estimate(recipe, preset="llava-1.5-7b")


def test_measured_file_is_a_share_of_its_gpu(tmp_path):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"device": "NVIDIA A100-SXM4-80GB", "flops_per_second": 156e12}), encoding="utf-8")
    assert speed_of(file, GPUS["h100"]).flops_per_second == pytest.approx(989e12 / 2)
    assert speed_of(None, GPUS["a100-80"]).flops_per_second == pytest.approx(SHIPPED_SHARE * 312e12)


@pytest.mark.parametrize(
    ("told", "message"),
    [({"device": "cpu, x86_64", "flops_per_second": 1e9}, "a GPU of the table"), ({"cases": []}, "must hold `device`")],
)
def test_speeds_of_no_known_gpu_are_refused(tmp_path, told, message):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        speed_of(file, GPUS["h100"])


@pytest.mark.parametrize("text", [None, "# A page", "[1, 2]"])
def test_what_holds_no_measurement_is_told(tmp_path, text):
    run = tmp_path / "run"
    run.mkdir()
    for place in (tmp_path / "speed.json", run):
        if text is not None:
            (place if place.suffix else place / "run_environment.json").write_text(text, encoding="utf-8")
        with pytest.raises(
            ValueError, match="`measured` must be the folder of a finished run, or JSON .* got .*Name another"
        ):
            speed_of(place, GPUS["h100"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu": "h1000"}, "`gpu` must be one of"),
        ({"gpus": 0}, "`gpus` must be 1 or more, got 0"),
        ({"rows": 0}, "`rows` must be 1 or more"),
        ({"engine": "megatron"}, "`engine` must be one of `ddp`"),
        ({"preset": "llava-2"}, "A published model is wanted"),
        ({"tokens": 500}, "`tokens` must be at most the 200"),
        ({"gpus": 3}, "multiple of the 3 devices"),
    ],
)
def test_what_makes_no_sense_is_refused(folders, tmp_path, settings, message):
    training = {"global_batch_size": 8, "per_device_train_batch_size": 2}
    recipe = chat_recipe(folders, tmp_path, data={"max_tokens": None}, training=training)
    with pytest.raises(ValueError, match=message):
        estimate(recipe, **settings)


def test_missing_part_is_named(folders, tmp_path):
    recipe = chat_recipe(folders, tmp_path, "nowhere")
    with pytest.raises(OSError, match="config.json"):
        estimate(recipe)


def test_four_bit_bases_are_not_guessed(folders, tmp_path):
    build_trainer(chat_recipe(folders, tmp_path, "parts")).model.save_pretrained(tmp_path / "whole")
    lora = {"rank": 2, "quantization": "nf4"}
    model = {"pretrained": str(tmp_path / "whole"), "vision": None, "text": None, "settings": {}}
    recipe = chat_recipe(folders, tmp_path, model=model, parts={"train": ["projector"], "lora": lora})
    with pytest.raises(ValueError, match="not quantised"):
        estimate(recipe)


def test_adapters_train_little_and_keep_the_base_in_memory(folders, tmp_path):
    build_trainer(chat_recipe(folders, tmp_path, "parts")).model.save_pretrained(tmp_path / "whole")
    model = {"pretrained": str(tmp_path / "whole"), "vision": None, "text": None, "settings": {}}
    recipe = chat_recipe(
        folders, tmp_path, model=model, parts={"train": ["projector"], "lora": {"rank": 2, "dropout": 0.0}}
    )
    (memory,) = estimate(recipe).engines
    assert memory.weights > 4 * memory.gradients > 0
    assert memory.optimizer == 2 * memory.gradients


def test_devices_are_told_by_their_names():
    assert gpu_of_device("NVIDIA H100 80GB HBM3").name == "h100"
    assert gpu_of_device("NVIDIA L40S").name == "l40s" and gpu_of_device("NVIDIA L4").name == "l4"
    assert gpu_of_device("cpu, x86_64") is None
    assert gpu_named("H100") is GPUS["h100"]


@pytest.mark.slow  # both sizes of a published model, layer by layer
def test_published_model_needs_what_its_authors_took():
    """13B fits 8 A100 of 80 GB by ZeRO-3, not by DDP; 7B's second phase is of the order of the authors' ten hours."""
    chat = load_recipe("llava-1.5-chat")
    large = estimate(chat, gpus=8, gpu="a100-80", preset="llava-1.5-13b", rows=665_298, tokens=772)
    fits = {memory.engine: large.fits(memory) for memory in large.engines}
    assert fits["zero3"] and fits["fsdp2"] and not fits["ddp"]
    assert 10 < large.hours()[0] < 40  # the authors: about 20


def test_half_weights_are_those_of_engines_that_split(folders, tmp_path):
    recipe = chat_recipe(folders, tmp_path, training={"bf16": True})
    found = {memory.engine: memory for memory in estimate(recipe, gpus=2).engines}
    assert found["ddp"].weights == 2 * found["zero2"].weights
    assert found["fsdp2"].activations < found["ddp"].activations + found["ddp"].gradients
    assert estimate(recipe, gpus=2).precision == str(torch.bfloat16).removeprefix("torch.")
