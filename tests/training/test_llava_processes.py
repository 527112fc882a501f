"""A LLaVA trained by two processes on CPUs ends with the weights of one process with the double batch: DDP and FSDP2."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_vlm import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.llava import build_trainer
from tests.training.processes import (
    FSDP2,
    assert_close,
    assert_same_log,
    keep_half,
    notes_of,
    on_two_processes,
    one_process,
    train_to_the_end,
    write,
)
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts

SECOND = {"train": ["projector", "language"], "learning_rates": {"projector": 5e-3}}
CHAT = [{"path": "chat", "split": "train"}]
PADDED, PACKED = {"max_tokens": None}, {"max_tokens": 256}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    return write_parts(tmp_path_factory.mktemp("parts")), write_conversations(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sections(folders, tmp_path) -> Callable[..., dict]:
    """`sections("name", data={...}, training={...})`: a recipe of the second phase with its output in `tmp_path / name`."""

    def build(name: str, data: dict, **training: Any) -> dict:
        settings = {
            "max_steps": 4,
            "save_steps": 2,
            "eval_steps": 2,
            "learning_rate": 2e-3,
            "dataloader_num_workers": 0,
        }
        settings |= training
        data = {"train": CHAT, "validation": {"chat": {"path": "chat", "split": "validation", "max_rows": 3}}, **data}
        return tiny_llava_recipe(*folders, tmp_path / name, data=data, parts=SECOND, training=settings)

    return build


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model, told = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.state_dict()


def pictures_of_ranks(trainer: Any) -> list[list[int]]:
    """Of each step: the pictures that each of two processes with one item sees; `trainer` is of one with two."""
    schedule = trainer.train_dataset
    numbers = [int(schedule.num_images[schedule.rows_of(index)].sum()) for index in range(len(schedule))]
    return [numbers[first : first + 2] for first in range(0, len(numbers), 2)]


def run_on_two(tmp_path: Path, recipe: dict, one: Any, shards: bool) -> dict[str, torch.Tensor]:
    """The weights of two processes, after all that must be equal was looked at."""
    keep_half(tmp_path / "one", tmp_path / "up")
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, recipe), shards, "two", "again", "up")
    assert [note["first_step"] for note in notes_of(tmp_path)] == [0, 0, 2, 2]
    weights = weights_of(tmp_path / "two")
    assert_close(weights, one.model.state_dict())
    assert_same_log(notes_of(tmp_path)[0]["log"], one.state.log_history, "loss", "grad_norm", "eval_loss")
    for name, tensor in weights_of(tmp_path / "again").items():
        assert torch.equal(tensor, weights[name]), name
    assert_close(weights_of(tmp_path / "up"), one.model.state_dict())
    keep_half(tmp_path / "two", tmp_path / "down")
    down = one_process(tmp_path, recipe, "down")
    assert_close(down.model.state_dict(), one.model.state_dict())
    assert_same_log(down.state.log_history, one.state.log_history, "loss")
    return weights


@pytest.mark.parametrize("kind", ["padded", pytest.param("packed", marks=pytest.mark.slow)])
def test_two_processes_end_as_one_with_the_double_batch(sections, tmp_path, kind):
    recipe = sections("two", PADDED if kind == "padded" else PACKED, ddp_find_unused_parameters=False)
    one = one_process(tmp_path, recipe)
    before = build_trainer(recipe_of(tmp_path, recipe)).model.state_dict()
    if kind == "padded":  # without pictures on one process only: its projector has to be asked all the same
        assert any(0 in step and any(step) for step in pictures_of_ranks(one))
    weights = run_on_two(tmp_path, recipe, one, shards=False)
    assert all(note["split"] == set() for note in notes_of(tmp_path))
    assert max(float((weights[name] - before[name]).abs().max()) for name in weights) > 1e-3
    projector = load_file(tmp_path / "again" / "checkpoint-4" / "projector.safetensors")
    assert all(torch.equal(tensor, weights[f"projector.{name}"]) for name, tensor in projector.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "padded", "features", "tied", "length", "modality"])
def test_weights_split_over_two_processes_end_as_those_of_one(sections, folders, tmp_path, kind):
    data: dict[str, Any] = PACKED if kind in ("packed", "tied") else PADDED
    if kind == "features":
        data = data | {"features_folder": "features"}
    if kind in ("length", "modality"):
        data = data | {"grouping": kind}
    recipe = sections("two", data, **FSDP2)
    if kind == "tied":
        text = AutoModelForCausalLM.from_pretrained(folders[0] / "text", tie_word_embeddings=True)
        text.save_pretrained(tmp_path / "tied")
        AutoTokenizer.from_pretrained(folders[0] / "text").save_pretrained(tmp_path / "tied")
        recipe["model"]["text"] = str(tmp_path / "tied")
    one = one_process(tmp_path, recipe)
    assert one.model.loss_chunk_size and one.model._no_split_modules >= {"LlamaDecoderLayer", "PreNormLayer"}
    if kind in ("padded", "features"):
        assert any(0 in step and any(step) for step in pictures_of_ranks(one))
    weights = run_on_two(tmp_path, recipe, one, shards=True)
    for note in notes_of(tmp_path):
        assert note["split"] == {name for name, _ in one.model.named_parameters()} and note["whole"] == set()
    projector = load_file(tmp_path / "again" / "projector.safetensors")
    assert all(torch.equal(tensor, weights[f"projector.{name}"]) for name, tensor in projector.items())
    report = json.loads((tmp_path / "two" / "weight_report.json").read_text())
    hashes = {part["name"]: part["sha256"] for part in report["parts"]}
    assert hashes["projector"] == hash_weights(projector)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_rows_that_fill_up_the_last_batch_carry_no_loss_in_a_packed_row(sections, tmp_path, monkeypatch, at_once, rank):
    """Three packs for two processes: what accelerate adds behind them is not looked at."""
    data = PACKED | {"validation": {"chat": {"path": "chat", "split": "train"}}}
    trainer = build_trainer(recipe_of(tmp_path, sections("one", data, per_device_eval_batch_size=at_once)))
    packs = [trainer.eval_dataset[index] for index in range(3)]
    assert len({len(pack) for pack in packs}) > 1
    trainer.evaluated = trainer.eval_dataset
    monkeypatch.setattr(type(trainer.eval_dataset), "__len__", lambda self: 3)
    last = packs[rank * at_once : (rank + 1) * at_once] if at_once == 2 else [packs[2]]
    real = sum(len(row["input_ids"]) for pack in (last if at_once == 2 or rank == 0 else []) for row in pack)
    inputs = trainer.data_collator([*last, packs[0]][:at_once])
    state = SimpleNamespace(end_of_dataloader=True, remainder=3 % (2 * at_once))
    monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
    monkeypatch.setattr(type(trainer.args), "process_index", rank)
    labels = trainer.real_labels(inputs)
    assert torch.equal(labels[:, :real], inputs["labels"][:, :real]) and (labels[:, real:] == -100).all()
    assert real == 0 or (labels >= 0).any()
