"""What a run says of its speed is what happened: items and tokens of all processes, and of the time that steps took."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_vlm.training.supervision import progress
from hf_vlm.training.supervision.progress import Progress, Speed
from hf_vlm.training.tasks import build_trainer
from tests.training.tiny_runs import After, recipe_for


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


PADDED = {
    "input_ids": torch.ones(2, 5, dtype=torch.int64),
    "labels": torch.tensor([[-100, 3, 4, -100, -100], [-100, -100, 1, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
}
PACKED = {"input_ids": torch.ones(1, 9, dtype=torch.int64), "labels": torch.tensor([[-100] * 5 + [7] * 4])}


@pytest.mark.parametrize(
    ("inputs", "num_items", "wanted"),
    [
        (PADDED, 0, {"items_per_second": 1.0, "tokens_per_second": 4.0, "learnt_tokens_per_second": 2.5}),
        (PACKED, 3, {"items_per_second": 1.5, "tokens_per_second": 4.5, "learnt_tokens_per_second": 2.0}),
        (
            {"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.tensor([[2, 3, -100], [1, -100, -100]])},
            0,
            {"items_per_second": 2.0, "tokens_per_second": 1.5, "learnt_tokens_per_second": 1.5},
        ),
        ({"pixel_values": torch.zeros(4, 3, 8, 8)}, 0, {"items_per_second": 2.0}),
        ({"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 0])}, 0, {"items_per_second": 2.0}),
        ({"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.zeros(4, 10)}, 0, {"items_per_second": 2.0}),
    ],
    ids=["padded", "packed", "labels of a decoder", "pictures", "classes", "mixed classes"],
)
def test_speed_counts_items_and_tokens_of_every_kind_of_batch(clock, inputs, num_items, wanted):
    speed = Speed()
    speed.count(inputs, num_items)
    clock.seconds += 2.0
    assert speed.since_log(lambda totals: totals) == wanted


def test_speed_leaves_out_evaluations_and_begins_anew_at_every_log(clock):
    speed = Speed()
    speed.count(PADDED, 0)
    clock.seconds += 2.0
    speed.pause()
    clock.seconds += 1000.0
    assert speed.since_log(lambda totals: 3 * totals)["tokens_per_second"] == 12.0  # of three processes
    clock.seconds += 1000.0
    speed.go_on()
    speed.count(PADDED, 0)
    clock.seconds += 4.0
    assert speed.since_log(lambda totals: totals)["tokens_per_second"] == 2.0


def test_speed_of_a_session_is_that_without_its_first_two_steps(clock):
    speed = Speed()
    for seconds in (50.0, 50.0, 1.0, 1.0, 2.0):
        assert speed.of_session(lambda totals: totals)["items_per_second"] is None or seconds != 50.0
        speed.count(PADDED, 0)
        clock.seconds += seconds
        speed.end_step()
    told = speed.of_session(lambda totals: totals)
    assert told == {"items_per_second": 1.5, "tokens_per_second": 6.0, "learnt_tokens_per_second": 3.75}


def test_speed_of_a_session_leaves_out_what_follows_its_last_step(clock, tmp_path, monkeypatch):
    def pass_time(seconds):
        clock.seconds += seconds

    trainer = build_trainer(recipe_for("classifier", tmp_path / "in", tmp_path / "out"))
    for step in range(6):
        trainer.add_callback(After(step, lambda model: pass_time(2.0)))
    trainer.args.load_best_model_at_end = True
    monkeypatch.setattr(trainer, "_load_best_model", lambda: pass_time(1000.0))
    save = trainer._save_checkpoint

    def save_slowly(*args):
        pass_time(1000.0)
        trainer.state.best_model_checkpoint = str(tmp_path / "out" / "checkpoint-2")
        save(*args)

    monkeypatch.setattr(trainer, "_save_checkpoint", save_slowly)
    trainer.train()
    assert clock.seconds > 4000.0
    assert trainer.session_speed["items_per_second"] == 4.0  # eight an update


def test_time_that_runs_is_not_begun_anew(clock):
    speed = Speed()
    speed.count(PADDED, 0)
    clock.seconds += 1.0
    speed.go_on()
    clock.seconds += 1.0
    assert speed.since_log(lambda totals: totals)["items_per_second"] == 1.0


def test_session_without_tokens_or_of_two_steps_has_no_speed_of_them(clock):
    speed = Speed()
    for _ in range(2):
        speed.count({"pixel_values": torch.zeros(4, 3, 8, 8)}, 0)
        clock.seconds += 1.0
        speed.end_step()
    assert set(speed.of_session(lambda totals: totals).values()) == {None}
    speed.count({"pixel_values": torch.zeros(4, 3, 8, 8)}, 0)
    clock.seconds += 1.0
    speed.end_step()
    told = speed.of_session(lambda totals: totals)
    assert told == {"items_per_second": 4.0, "tokens_per_second": None, "learnt_tokens_per_second": None}


def steps(callback, clock, number, seconds, first=0, max_steps=400, is_first_process=True, **arguments):
    """What a Trainer calls in a run of `number` steps."""
    args = TrainingArguments(use_cpu=True, **arguments)
    state = TrainerState(max_steps=max_steps, global_step=first, is_world_process_zero=is_first_process)
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-4}, {"lr": 2e-3}])
    callback.on_train_begin(args, state, TrainerControl())
    for _ in range(number):
        callback.speed.count(PADDED, 0)
        clock.seconds += seconds
        state.global_step += 1
        callback.on_step_end(args, state, TrainerControl(), optimizer=optimizer)
    return args, state


def test_log_of_a_batch_system_has_a_line_every_half_a_minute(clock, capsys):
    steps(Progress(Speed(), lambda: 2.5), clock, 70, 1.0, first=100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 130 of 400, loss 2.5, 2 items/s, 8 tokens/s, 5 learnt/s, learning rate 0.002, 0:04:30 left",
        "step 160 of 400, loss 2.5, 2 items/s, 8 tokens/s, 5 learnt/s, learning rate 0.002, 0:04:00 left",
    ]


def test_slow_steps_have_a_line_each_and_evaluations_tell_their_scores(clock, capsys):
    callback = Progress(Speed(), lambda: 2.5)
    args, state = steps(callback, clock, 2, 45.0)
    callback.on_log(args, state, TrainerControl(), logs={"eval_cer": 0.125, "eval_runtime": 3.0, "epoch": 1.0})
    clock.seconds += 31.0
    callback.on_prediction_step(args, state, TrainerControl())
    callback.on_train_end(args, state, TrainerControl())
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == ["step 1 of 400", "step 2 of 400"]
    assert lines[2:] == ["step 2: eval_cer 0.125, eval_runtime 3", "step 2: validating", "2 steps in 0:02:01"]


def test_other_processes_than_the_first_are_quiet(clock, capsys):
    callback = Progress(Speed(), lambda: 2.5)
    args, state = steps(callback, clock, 2, 45.0, is_first_process=False)
    callback.on_prediction_step(args, state, TrainerControl())
    callback.on_log(args, state, TrainerControl(), logs={"eval_cer": 0.125})
    callback.on_train_end(args, state, TrainerControl())
    assert capsys.readouterr() == ("", "")


def test_terminal_has_one_bar_with_the_same_numbers(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    callback = Progress(Speed(), lambda: 2.5)
    args, state = steps(callback, clock, 4, 3.0, max_steps=4)
    callback.on_log(args, state, TrainerControl(), logs={"eval_cer": 0.125})
    callback.on_train_end(args, state, TrainerControl())
    told = capsys.readouterr().err
    assert "4/4" in told and "loss 2.5, 0.667 items/s" in told and "learning rate 0.002" in told
    assert "step 4: eval_cer 0.125\n" in told and told.endswith("4 steps in 0:00:12\n")


def test_terminal_without_a_bar_has_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    steps(Progress(Speed(), lambda: 2.5), clock, 1, 45.0, disable_tqdm=True)
    assert capsys.readouterr().err.startswith("step 1 of 400, loss 2.5")


def test_losses_of_a_run_that_logs_nothing_are_not_kept(clock, capsys):
    losses = iter(range(1000))
    callback = Progress(Speed(), lambda: float(next(losses)))
    steps(callback, clock, 100, 1.0)
    assert "step 90 of 400, loss 44.5," in capsys.readouterr().err  # the mean of 0 to 89
    assert not [value for value in vars(callback).values() if isinstance(value, list) and len(value) > 10]
