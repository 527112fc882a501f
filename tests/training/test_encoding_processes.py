"""Conversations are encoded before a LLaVA's training by several processes, once for all processes that train."""

import json
from pathlib import Path

import datasets
import pytest

from hf_vlm.data import worker_processes
from hf_vlm.training.llava import build_trainer
from hf_vlm.training.tasks import load_recipe
from tests.training.processes import on_two_processes, write
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts

CHAT = [{"path": "chat", "split": "train"}]


@pytest.fixture
def sections(tmp_path, monkeypatch):
    """A recipe of four rows a step, and a cache of `datasets` of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parts = write_parts(tmp_path / "parts")
    data = write_conversations(tmp_path / "data")
    training = {"max_steps": 3, "dataloader_num_workers": 0, "per_device_train_batch_size": 2}
    return tiny_llava_recipe(parts, data, tmp_path / "run", data={"train": CHAT, "num_proc": 2}, training=training)


def items(trainer):
    """The conversations of the first items of training, as lists."""
    return [
        [one["input_ids"].tolist(), one["labels"].tolist(), one["source"]]
        for index in range(6)
        for one in trainer.train_dataset[index]
    ]


def test_recipe_encodes_by_as_many_processes_as_it_says(sections, tmp_path, monkeypatch):
    asked = []
    write_parts_of = worker_processes._write_parts

    def counted(rows, number, folder):
        asked.append(number)
        return write_parts_of(rows, number, folder)

    monkeypatch.setattr(worker_processes, "_write_parts", counted)
    by_two = build_trainer(recipe_of(tmp_path, sections))
    assert set(asked) == {2}
    alone = {**sections, "data": {**sections["data"], "num_proc": 1}}
    assert items(by_two) == items(build_trainer(recipe_of(tmp_path, alone)))
    with pytest.raises(ValueError, match="`data.num_proc` must be 1 or more, got 0"):
        recipe_of(tmp_path, {**sections, "data": {**sections["data"], "num_proc": 0}})


def build_on_a_rank(rank: int, folder: Path, recipe_file: Path, cache: Path) -> None:
    """Notes what the rank encoded, and what it would train on."""
    datasets.config.HF_DATASETS_CACHE = cache
    made = []
    write_parts_of = worker_processes._write_parts
    worker_processes._write_parts = lambda *given: made.append(1) or write_parts_of(*given)  # type: ignore[func-returns-value]
    trainer = build_trainer(load_recipe(recipe_file))
    (folder / f"rank-{rank}.json").write_text(json.dumps({"made": len(made), "items": items(trainer)}))


@pytest.mark.slow
def test_first_process_encodes_for_all_that_train(sections, tmp_path):
    on_two_processes(build_on_a_rank, tmp_path, write(tmp_path, sections), tmp_path / "cache")
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["made"] > 0, second["made"]) == (True, 0)
    assert first["items"] == second["items"]
    alone = {**sections, "data": {**sections["data"], "num_proc": 1}}
    alone["training"] = {**sections["training"], "per_device_train_batch_size": 4}
    assert items(build_trainer(recipe_of(tmp_path, alone))) == first["items"]
