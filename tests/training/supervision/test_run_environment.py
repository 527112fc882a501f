"""What a run ran on: its sessions add up over resumptions, and its rows are those that its trainer holds."""

import json
import platform
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import ConcatDataset, Subset
from transformers import TrainerCallback, TrainerState, TrainingArguments

from hf_vlm.data.lines.line_mixture import LineMixture
from hf_vlm.sharing.cards.model_card import write_card
from hf_vlm.training.runs import run
from hf_vlm.training.supervision.run_environment import SessionClock, rows_of_sets
from hf_vlm.training.tasks import build_trainer, load_recipe, train
from tests.tiny_lines import recipe_of, tiny_recipe, write_splits
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

STEPS = ["training.max_steps=4", "training.save_steps=2", "training.eval_steps=2", "training.report_to=none"]


class Stop(TrainerCallback):
    """Fails in the third step, after the checkpoint of the second."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.2)


def environment_of(folder: Path) -> dict:
    return json.loads((folder / "run_environment.json").read_text())


@pytest.fixture
def pictures(tmp_path):
    return write_picture_splits(tmp_path / "pictures")


def test_run_tells_versions_device_and_rows_and_not_the_machine(pictures, tmp_path):
    train(picture_recipe_of(tiny_picture_recipe(pictures, tmp_path / "out"), *STEPS))
    told = environment_of(tmp_path / "out")
    (session,) = told["sessions"]
    assert (session["first_step"], session["last_step"]) == (0, 4)
    assert (session["num_processes"], session["num_devices"]) == (1, 1)
    assert session["versions"]["torch"] == torch.__version__
    assert session["versions"]["python"] == platform.python_version()
    assert 0 < told["seconds"] == session["seconds"]
    assert session["items_per_update"] == 8
    # two steps of eight pictures in less than the whole session
    assert told["items_per_second"] > 16 / told["seconds"] and told["tokens_per_second"] is None
    num_rows = {split: len(list((pictures / split).rglob("*.png"))) for split in ("train", "validation")}
    assert told["rows"] == {"train": [num_rows["train"]], "validation": {"validation": num_rows["validation"]}}
    text = (tmp_path / "out" / "run_environment.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text and socket.gethostname() not in text


def test_sessions_of_a_stopped_run_add_up_and_its_weights_are_those_of_one_that_was_not(pictures, tmp_path):
    straight, stopped = (
        picture_recipe_of(tiny_picture_recipe(pictures, tmp_path / name), *STEPS) for name in ("straight", "stopped")
    )
    train(straight)
    trainer = build_trainer(stopped)
    trainer.add_callback(Slow())
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        run(trainer, stopped, resume=True)
    assert not (tmp_path / "stopped" / "run_environment.json").exists()
    trainer = build_trainer(stopped)
    run(trainer, stopped, resume=True)
    told = environment_of(tmp_path / "stopped")
    assert [(one["first_step"], one["last_step"]) for one in told["sessions"]] == [(0, 2), (2, 4)]
    assert told["sessions"][0]["seconds"] >= 0.4  # of two slow steps, which the Trainer's own measure has forgotten
    assert told["seconds"] == pytest.approx(sum(one["seconds"] for one in told["sessions"]))
    (runtime,) = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    assert runtime < told["seconds"]
    train(stopped)  # nothing is left to do: no session is added
    again = environment_of(tmp_path / "stopped")["sessions"]
    assert [(one["first_step"], one["last_step"]) for one in again] == [(0, 2), (2, 4)]
    card = write_card(tmp_path / "stopped", license="mit").read_text()
    assert " in 2 sessions\n" in card and "; then " not in card  # on one machine, with the same versions
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_goes_on_from_a_checkpoint_without_a_clock(pictures, tmp_path):
    recipe = picture_recipe_of(tiny_picture_recipe(pictures, tmp_path / "out"), *STEPS)
    trainer = build_trainer(recipe)
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(recipe)
    (session,) = environment_of(tmp_path / "out")["sessions"]
    assert (session["first_step"], session["last_step"]) == (2, 4)


def test_steps_after_the_checkpoint_do_not_count():
    arguments = TrainingArguments(use_cpu=True)
    later = {"first_step": 3, "last_step": 8, "seconds": 5.0}
    sessions = [{"first_step": 0, "last_step": 3, "seconds": 2.0}, later]
    saved = {"SessionClock": {"args": {}, "attributes": {"sessions": sessions}}}
    clock, state = SessionClock(), TrainerState(global_step=3)
    state.stateful_callbacks = saved
    clock.on_train_begin(arguments, state, SimpleNamespace())
    assert clock.sessions == sessions[:1]


def test_rows_are_those_of_each_set(tmp_path):
    write_splits(tmp_path / "lines")
    recipe = recipe_of(tiny_recipe(tmp_path / "lines", tmp_path / "out"), *STEPS)
    trainer = build_trainer(recipe)
    (source,) = trainer.train_dataset.sources
    assert rows_of_sets(trainer, recipe)["train"] == [len(source.rows)]
    without = SimpleNamespace(
        data=SimpleNamespace(train=[SimpleNamespace(weight=0), SimpleNamespace(weight=2)], validation=None)
    )
    mixture = LineMixture([(source.rows, 0, False), (source.rows, 2, False)], length=4)
    told = rows_of_sets(SimpleNamespace(train_dataset=mixture, eval_dataset=None), without)
    assert told == {"train": [0, len(source.rows)], "validation": {}}
    joined = ConcatDataset([Subset(list("abc"), [0, 0, 1]), Subset(list("ab"), [1])])
    assert rows_of_sets(SimpleNamespace(train_dataset=joined, eval_dataset={"x": "four"}), without) == {
        "train": [3, 2],
        "validation": {"x": 4},
    }


def test_rows_of_captions_are_counted_before_their_weight(tmp_path):
    write_task_sets(tmp_path)
    write_decoder_parts(tmp_path)
    settings = [
        f"model.vision={tmp_path}/dinov2-small",
        f"data.folder={tmp_path}",
        f"training.output_dir={tmp_path}/out",
    ]
    settings += ["model.settings={hidden_size: 8, embedding_size: 8}", "data.train.0.weight=2", *STEPS]
    recipe = load_recipe("caption-cnn-lstm", settings)
    trainer = build_trainer(recipe)
    told = rows_of_sets(trainer, recipe)
    assert 2 * told["train"][0] == len(trainer.train_dataset)
    assert sum(told["validation"].values()) == len(trainer.eval_dataset)
