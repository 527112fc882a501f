import json
import math

import pytest

from hf_vlm.training.reports.run_history import Chart, Line, has_evaluation, open_run, read_charts, set_names

LOG = [
    {"loss": 3.5, "grad_norm": 2.0, "learning_rate": 1e-3, "learning_rate_0": 1e-3, "epoch": 0.1, "step": 5},
    {"eval_chat_loss": 3.0, "eval_chat_runtime": 1.5, "eval_chat_samples_per_second": 2.0, "epoch": 0.1, "step": 5},
    {"eval_chat_long_loss": 4.0, "eval_loss": 3.5, "eval_top5_accuracy": 0.75, "epoch": 0.1, "step": 5},
    {"loss": math.nan, "grad_norm": math.inf, "learning_rate": 5e-4, "learning_rate_0": 5e-4, "epoch": 0.2, "step": 10},
    {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0, "learning_rate_0": 0, "epoch": 0.3, "step": 15},
    {"train_runtime": 9.0, "train_loss": 3.0, "total_flos": 7.0, "epoch": 0.3, "step": 15},
]


def test_charts_hold_what_was_logged_and_nothing_else():
    charts = read_charts(LOG, ["chat", "chat_long"])
    assert charts == [
        Chart(
            "loss",
            [
                Line("training", [5, 15], [3.5, 2.5], num_left_out=1),
                Line("validation: chat", [5], [3.0]),
                Line("validation: chat_long", [5], [4.0]),
                Line("validation, mean of the sets", [5], [3.5]),
            ],
        ),
        Chart(
            "learning rate",
            [
                Line("training", [5, 10, 15], [1e-3, 5e-4, 0.0]),
                Line("training, rate 1", [5, 10, 15], [1e-3, 5e-4, 0.0]),
            ],
        ),
        Chart("grad norm", [Line("training", [5, 15], [2.0, 1.0], num_left_out=1)]),
        Chart("top5 accuracy", [Line("validation", [5], [0.75])]),
    ]
    assert has_evaluation(charts) and not has_evaluation(read_charts(LOG[:1]))
    assert read_charts([]) == []


def test_single_validation_set_is_the_validation():
    assert read_charts([{"eval_cer": 0.5, "step": 1}], ["lines"]) == [Chart("cer", [Line("validation", [1], [0.5])])]


def test_names_of_sets_are_those_of_the_recipe():
    assert set_names({"data": {"validation": {"chat": {}, "words": {}}}}) == ["chat", "words"]
    assert set_names({"data": {"validation": "validation"}}) == set_names({}) == []


def write_state(folder, step):
    folder.mkdir(exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))


def test_folder_that_is_no_runs_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is none"):
        open_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"without `recipe\.yaml` and `trainer_state\.json`"):
        open_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("task: ocr\n")
    with pytest.raises(ValueError, match=r"without `trainer_state\.json`.*`training\.output_dir`"):
        open_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(ValueError, match="no `log_history`"):
        open_run(tmp_path)
    write_state(tmp_path, 3)
    assert open_run(tmp_path).state["global_step"] == 3


def test_checkpoint_that_is_further_is_taken(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("task: ocr\n")
    checkpoint = tmp_path / "checkpoint-8"
    monkeypatch.setattr("hf_vlm.training.reports.run_history.last_complete_checkpoint", lambda folder: checkpoint)
    write_state(checkpoint, 8)
    run = open_run(tmp_path)  # was stopped before it ended
    assert run.weights == checkpoint and run.state["global_step"] == 8
    (tmp_path / "model.safetensors").touch()
    write_state(tmp_path, 4)  # ended once, and goes on with more steps
    assert open_run(tmp_path).weights == checkpoint
    write_state(tmp_path, 8)
    assert open_run(tmp_path).weights == tmp_path
