"""TrOCR and the CNN + LSTM trained by two processes on CPUs end as one process with as many items an update does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hf_vlm import VisionTransformerConfig, VisionTransformerImageProcessor, VisionTransformerModel
from hf_vlm.training.tasks import build_trainer, load_recipe
from tests.tiny_lines import tiny_recipe, write_splits
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
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

QUIET = {"report_to": "none", "disable_tqdm": True, "dataloader_num_workers": 0}
FOUR_STEPS = {
    "max_steps": 4,
    "save_steps": 2,
    "eval_steps": 2,
    "logging_steps": 1,
    "save_total_limit": 10,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_splits(folder / "lines")
    write_task_sets(folder)
    write_decoder_parts(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pooling": "none"}
    VisionTransformerModel(VisionTransformerConfig(image_size=32, patch_size=8, **shape)).save_pretrained(
        folder / "vit"
    )
    VisionTransformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    config = json.loads((folder / "minilm" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "minilm" / "config.json").write_text(json.dumps(config))
    return folder


def ocr(folder: Path) -> dict:
    sections = tiny_recipe(folder / "lines", folder)
    sections["model"]["text_config"]["dropout"] = 0.0
    return sections


def of_task(name: str, folder: Path, *overrides: str) -> dict:
    vision = f"model.vision={folder}/efficientnet-lite0"
    return load_recipe(name, [vision, f"data.folder={folder}", *overrides]).to_dict()


FAMILIES: dict[str, Callable[[Path], dict]] = {
    "ocr": ocr,
    "caption_trocr": lambda folder: of_task("caption-trocr", folder, f"model.text={folder}/minilm"),
    "vqa_trocr": lambda folder: of_task("vqa-trocr", folder, f"model.text={folder}/minilm"),
    "caption_trocr_with_vision": lambda folder: of_task(
        "caption-trocr",
        folder,
        f"model.text={folder}/minilm",
        f"model.vision={folder}/vit",
        "data.features_folder=null",
        "parts.train=[vision, projector, decoder]",
    ),
    "vqa_trocr_with_vision_asked_in_every_step": lambda folder: of_task(
        "vqa-trocr", folder, f"model.text={folder}/minilm", f"model.vision={folder}/vit", "data.features_folder=null"
    ),
    "caption_cnn_lstm": lambda folder: of_task(
        "caption-cnn-lstm",
        folder,
        "model.settings={attention: additive, hidden_size: 24, embedding_size: 16, dropout: 0.0, max_new_tokens: 6}",
    ),
}
SCORES = ("eval_loss", "eval_cer", "eval_wer", "eval_cider", "eval_rouge_l", "eval_vqa_accuracy", "eval_exact_match")


def recipe_of_family(name: str, folder: Path, **training: Any) -> dict:
    """A recipe as nested dicts, without draws: no dropout, no augmentation."""
    sections = FAMILIES[name](folder)
    best = {"load_best_model_at_end": name == "ocr"}
    sections["training"] = {**sections["training"], **QUIET, **FOUR_STEPS, **best, **training}
    return sections


def recipe_of(tmp_path: Path, sections: dict) -> Any:
    return load_recipe(write(tmp_path, sections))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.state_dict()


QUICK = ("ocr-fsdp2", "vqa_trocr-ddp", "caption_cnn_lstm-fsdp2")


@pytest.mark.parametrize(
    ("family", "engine"),
    [
        pytest.param(family, engine, id=(name := f"{family}-{engine}"), marks=() if name in QUICK else pytest.mark.slow)
        for family in FAMILIES
        for engine in ("ddp", "fsdp2")
    ],
)
def test_two_processes_do_what_one_does(family, engine, folder, tmp_path):
    plain = recipe_of_family(family, folder)
    one = one_process(tmp_path, plain)
    keep_half(tmp_path / "one", tmp_path / "up")
    recipe_file = write(tmp_path, recipe_of_family(family, folder, **(FSDP2 if engine == "fsdp2" else {})))
    on_two_processes(train_to_the_end, tmp_path, recipe_file, engine == "fsdp2", "two", "again", "up")
    assert [note["first_step"] for note in notes_of(tmp_path)] == [0, 0, 2, 2]
    names = {name for name, _ in one.model.named_parameters()}
    for note in notes_of(tmp_path):
        assert note["split"] == (names if engine == "fsdp2" else set())

    weights, of_one = (weights_of(tmp_path / name / "checkpoint-4") for name in ("two", "one"))
    start = build_trainer(recipe_of(tmp_path, plain)).model.state_dict()
    assert max(float((weights[name] - start[name]).abs().max()) for name in weights) > 1e-3
    assert_close(weights, of_one)
    told, wanted = notes_of(tmp_path)[0]["log"], one.state.log_history
    for names_of_kind in (("loss", "grad_norm"), SCORES):
        assert_same_log(told, wanted, *names_of_kind)

    for name, tensor in weights_of(tmp_path / "again" / "checkpoint-4").items():
        assert torch.equal(tensor, weights[name]), name
    keep_half(tmp_path / "two", tmp_path / "down")
    down = one_process(tmp_path, plain, "down")
    for name in ("up", "down"):
        assert not (tmp_path / name / "checkpoint-1").exists()
        assert_close(weights_of(tmp_path / name / "checkpoint-4"), of_one)
    for name in ("two", "up", "down"):  # the best of the run, where that is asked for
        assert_close(weights_of(tmp_path / name), weights_of(tmp_path / "one"))
    assert down.state.log_history[-1]["step"] == 4
    assert_same_log(down.state.log_history, wanted, "loss")


@pytest.fixture
def adapting(folder, tmp_path) -> dict:
    """A recipe of adapters on a reader of random weights."""
    sections = recipe_of_family("ocr", folder, output_dir=str(tmp_path / "none"))
    trainer = build_trainer(recipe_of(tmp_path, sections))
    trainer.model.save_pretrained(tmp_path / "base")
    trainer.processing_class.save_pretrained(tmp_path / "base")
    sections["training"]["learning_rate"] = 1e-2
    return sections | {
        "model": {"pretrained": str(tmp_path / "base")},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
    }


def test_adapters_of_two_processes_end_as_those_of_one(adapting, tmp_path):
    one = one_process(tmp_path, adapting)
    keep_half(tmp_path / "one", tmp_path / "up")
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, adapting), False, "two", "again", "up")
    assert [note["first_step"] for note in notes_of(tmp_path)] == [0, 0, 2, 2]
    keep_half(tmp_path / "two", tmp_path / "down")
    one_process(tmp_path, adapting, "down")
    adapters = {
        name: load_file(tmp_path / name / "checkpoint-4" / "adapter_model.safetensors")
        for name in ("one", "two", "again", "up", "down")
    }
    assert any(name.endswith("lora_B.weight") and value.abs().max() > 1e-2 for name, value in adapters["one"].items())
    for name in ("two", "up", "down"):
        assert_close(adapters[name], adapters["one"])
    assert all(torch.equal(value, adapters["two"][name]) for name, value in adapters["again"].items())
    assert_same_log(notes_of(tmp_path)[0]["log"], one.state.log_history, "loss", *SCORES)


@pytest.mark.slow
def test_adapters_are_refused_where_weights_are_split(adapting, tmp_path):
    adapting["training"] |= FSDP2
    with pytest.raises(Exception, match="Adapters are saved from whole weights, got FSDP or DeepSpeed"):
        on_two_processes(train_to_the_end, tmp_path, write(tmp_path, adapting), True, "two")


@pytest.mark.slow
def test_shards_that_are_saved_apart_are_refused(folder, tmp_path):
    config = FSDP2["fsdp_config"] | {"state_dict_type": "SHARDED_STATE_DICT"}
    sections = recipe_of_family("ocr", folder, **FSDP2 | {"fsdp_config": config})
    with pytest.raises(
        Exception, match="must hold whole weights, `state_dict_type: FULL_STATE_DICT`, got SHARDED_STATE_DICT"
    ):
        on_two_processes(train_to_the_end, tmp_path, write(tmp_path, sections), True, "two")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ocr", "vqa_trocr"])
def test_accumulated_batches_end_as_one_batch_and_take_its_checkpoint(family, folder, tmp_path):
    """The same items in every update: two batches of two by one process are what two processes see."""
    sections = recipe_of_family(family, folder)
    one = one_process(tmp_path, sections)
    keep_half(tmp_path / "one", tmp_path / "half")
    accumulated = {"gradient_accumulation_steps": 2}
    other = one_process(tmp_path, sections, "accumulated", **accumulated)
    half = one_process(tmp_path, sections, "half", **accumulated)
    for trainer in (other, half):
        assert_close(trainer.model.state_dict(), one.model.state_dict())
        assert_same_log(trainer.state.log_history, one.state.log_history, "loss")


def test_lines_of_an_update_are_the_same_however_it_is_divided(folder, tmp_path):
    def lines(size: int, accumulation: int) -> tuple[int, list]:
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        sections = recipe_of_family("ocr", folder, output_dir=str(tmp_path), **settings)
        mixture = build_trainer(recipe_of(tmp_path, sections)).train_dataset
        return mixture.group_size, [(item["text"], item["image"].tobytes()) for item in mixture]

    (size, at_once), *others = (lines(4, 1), lines(2, 2), lines(1, 4))
    assert size == 4 and all(other == (4, at_once) for other in others)


def test_order_other_than_the_trainers_own_is_refused(folder, tmp_path):
    sections = recipe_of_family("caption_trocr", folder, output_dir=str(tmp_path), train_sampling_strategy="sequential")
    with pytest.raises(ValueError, match="`training.train_sampling_strategy` must be 'random' for caption"):
        build_trainer(recipe_of(tmp_path, sections))


def test_rows_of_an_update_are_the_same_past_the_end_of_an_epoch(folder, tmp_path):
    """24 rows, updates of 5: none is filled up with rows of the epoch that ends in it."""

    def rows(size: int, accumulation: int) -> list[list[int]]:
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 10}
        sections = recipe_of_family("vqa_trocr", folder, output_dir=str(tmp_path), **settings)
        loader = build_trainer(recipe_of(tmp_path, sections)).get_train_dataloader()
        return [[token for token in row.tolist() if token >= 0] for batch in loader for row in batch["labels"]]

    at_once = rows(5, 1)
    assert len(at_once) == 50 and rows(1, 5) == at_once
    assert sorted(at_once[:24]) == sorted(at_once[24:48])


@pytest.mark.slow
def test_plain_sgd_goes_on_under_fsdp2_and_from_one_process(folder, tmp_path):
    sections = ocr(folder)
    sections["training"] |= FOUR_STEPS | QUIET | FSDP2 | {"optim": "sgd", "learning_rate": 0.1, "warmup_steps": 4}
    wanted = one_process(tmp_path, sections).model.state_dict()
    keep_half(tmp_path / "one", tmp_path / "up")
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, sections), True, "two", "again", "up")
    notes = [torch.load(tmp_path / f"{name}-0.pt") for name in ("two", "again", "up")]
    assert [noted["first_step"] for noted in notes] == [0, 2, 2] and all(noted["split"] for noted in notes)
    for name in ("two", "again", "up"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert_close(weights, {key: wanted[key] for key in weights})
