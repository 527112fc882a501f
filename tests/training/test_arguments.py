"""A recipe's `training` as the Trainer's settings: items an update on any number of devices, and what is refused."""

import json
import logging
from importlib.util import find_spec

import pytest
import torch
from transformers import TrainingArguments

from hf_vlm.training.arguments import check_same_step, divide_update, items_per_update, training_arguments
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.tasks import load_recipe
from tests.training.processes import on_two_processes, write

SECTIONS = {
    "task": "image-classification",
    "model": {"config": {"model_type": "hf_vlm_vit"}},
    "data": {"folder": "pictures"},
    "training": {"output_dir": "out", "max_steps": 1, "report_to": "none"},
}


def recipe_of(**training) -> ImageRecipe:
    return ImageRecipe.parse(SECTIONS | {"training": SECTIONS["training"] | training})


def arguments_of(**training) -> TrainingArguments:
    return training_arguments(recipe_of(**training), {}, {})


@pytest.fixture
def on_devices(monkeypatch):
    """`on_devices(4)`: from here on a run believes that it is one of so many processes."""

    def pretend(number: int) -> None:
        monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: number))

    return pretend


def test_update_divides_into_the_largest_batches_that_fit_as_counting_them_shows():
    for items in range(1, 49):
        for num_devices in (size for size in range(1, items + 1) if items % size == 0):
            for most in range(1, 12):
                at_once, num_steps = divide_update(items, num_devices=num_devices, max_per_device=most)
                assert at_once * num_steps * num_devices == items and at_once <= most
                larger = range(at_once + 1, most + 1)
                assert not any(size * steps * num_devices == items for size in larger for steps in range(1, items + 1))


@pytest.mark.parametrize(
    ("num_devices", "batch"), [(1, (16, 16)), (2, (16, 8)), (8, (16, 2)), (16, (16, 1)), (32, (8, 1))]
)
def test_global_batch_size_is_the_same_update_on_any_number_of_devices(on_devices, num_devices, batch):
    on_devices(num_devices)
    arguments = arguments_of(global_batch_size=256, per_device_train_batch_size=16)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == batch
    assert items_per_update(arguments) == 256


def test_recipe_without_global_batch_size_trains_as_transformers_says(on_devices):
    on_devices(4)
    arguments = arguments_of(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (3, 2)
    assert items_per_update(arguments) == 24


def test_number_of_devices_that_does_not_divide_the_update_names_those_that_do(on_devices):
    on_devices(6)
    with pytest.raises(ValueError, match="multiple of the 6 devices that share it, got 256") as told:
        arguments_of(global_batch_size=256)
    assert "Run on 1, 2, 4, 8, 16, 32, 64 or 128 devices, or set it to 252 or 258." in str(told.value)
    with pytest.raises(ValueError, match="got 4. Run on 1, 2 or 4 devices, or set it to 6."):
        arguments_of(global_batch_size=4)


def test_accumulation_that_contradicts_global_batch_size_is_refused_and_one_that_agrees_is_not(on_devices):
    on_devices(4)
    size = {"global_batch_size": 64, "per_device_train_batch_size": 8}
    assert arguments_of(**size, gradient_accumulation_steps=2).gradient_accumulation_steps == 2
    with pytest.raises(
        ValueError, match="must be 2 for `training.global_batch_size=64` on 4 devices of at most 8.* got 3"
    ):
        arguments_of(**size, gradient_accumulation_steps=3)


def test_batch_that_shrinks_by_itself_is_refused_beside_global_batch_size():
    with pytest.raises(ValueError, match="wants a batch that stays, got `training.auto_find_batch_size`"):
        arguments_of(global_batch_size=64, auto_find_batch_size=True)


def note_arguments(rank, folder, recipe_file):
    arguments = training_arguments(load_recipe(recipe_file), {}, {})
    batch = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    torch.save((arguments.world_size, *batch), folder / f"{rank}.pt")


def test_processes_are_counted_as_gloo_counts_them(tmp_path):
    sections = SECTIONS | {
        "training": SECTIONS["training"] | {"global_batch_size": 24, "per_device_train_batch_size": 6}
    }
    on_two_processes(note_arguments, tmp_path, write(tmp_path, sections))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [(2, 6, 2)] * 2


def test_recipe_stays_as_it_was_read_when_an_engine_fills_in_its_settings():
    recipe = recipe_of(fsdp=True, fsdp_config={"fsdp_version": 2}, global_batch_size=8)
    training_arguments(recipe, {}, {})
    assert recipe.training["fsdp_config"] == {"fsdp_version": 2} and recipe.training["global_batch_size"] == 8


# Going on from a checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint(64, 2)`: a checkpoint's folder as a run of 64 items an update on 2 devices leaves it."""

    def write_state(items: int | None, num_devices: int):
        sessions = [{"last_step": 2, "num_devices": 7, "items_per_update": 1}]
        sessions.append({"last_step": 4, "num_devices": num_devices} | ({"items_per_update": items} if items else {}))
        state = {"stateful_callbacks": {"SessionClock": {"args": {}, "attributes": {"sessions": sessions}}}}
        (tmp_path / "trainer_state.json").write_text(json.dumps(state))
        return tmp_path

    return write_state


@pytest.mark.parametrize(("num_devices", "num_steps"), [(2, 2), (1, 4), (4, 1)])
def test_checkpoint_goes_on_with_as_many_items_an_update_however_they_are_divided(
    checkpoint, on_devices, caplog, num_devices, num_steps
):
    on_devices(num_devices)
    arguments = arguments_of(per_device_train_batch_size=16, gradient_accumulation_steps=num_steps)
    with caplog.at_level(logging.WARNING, "hf_vlm"):
        check_same_step(arguments, checkpoint(64, 2))
    told = f"Going on with {num_devices} devices in the place of 2: an update has 64 items as before."
    assert caplog.messages == ([told] if num_devices != 2 else [])


def test_checkpoint_of_another_update_is_refused_with_the_setting_that_makes_them_alike(checkpoint, on_devices):
    folder = checkpoint(64, 2)
    with pytest.raises(
        ValueError, match="64 items an update are wanted, as in .* of 2 devices, got 32 on 1. Set"
    ) as told:
        check_same_step(arguments_of(per_device_train_batch_size=32), folder)
    assert "`training.global_batch_size=64`, without `training.gradient_accumulation_steps`, or" in str(told.value)
    check_same_step(arguments_of(per_device_train_batch_size=32, global_batch_size=64), folder)
    on_devices(3)
    with pytest.raises(ValueError, match="got 96 on 3. Set .*accumulation_steps` on 1, 2, 4, 8, 16, 32 or 64 devices"):
        check_same_step(arguments_of(per_device_train_batch_size=32), folder)


def test_checkpoint_without_a_note_of_its_update_is_let_through(checkpoint, tmp_path):
    check_same_step(arguments_of(), checkpoint(None, 2))
    (tmp_path / "trainer_state.json").write_text("{}")
    check_same_step(arguments_of(), tmp_path)


# Engines and devices


@pytest.mark.parametrize(
    ("training", "variables"),
    [({"fsdp": True, "fsdp_config": {"version": 2}}, {}), ({}, {"ACCELERATE_USE_FSDP": "true"})],
)
def test_engine_that_was_asked_for_and_is_not_on_is_told(monkeypatch, caplog, training, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "hf_vlm"):
        arguments_of(**training)
    (told,) = caplog.messages
    assert told.startswith("FSDP was asked for, and accelerate has none by one process")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_not_installed_is_asked_for_before_any_work(monkeypatch):
    with pytest.raises(
        ImportError, match="`training.deepspeed` wants the package deepspeed, got none. Run `pip install"
    ):
        arguments_of(deepspeed="zero2.json")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ImportError, match="wants the package deepspeed"):
        arguments_of()


def test_run_without_an_engine_is_silent(caplog):
    with caplog.at_level(logging.WARNING, "hf_vlm"):
        arguments_of()
    assert caplog.messages == []


def test_more_processes_than_gpus_are_refused_before_two_share_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="A GPU for each of 8 processes of this machine is wanted, got 4. Start 4"):
        arguments_of()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    arguments_of(use_cpu=True)  # no device is asked for
