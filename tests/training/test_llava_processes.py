"""A LLaVA trained by two processes on CPUs ends with the weights of one process with the double batch: DDP and FSDP2."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.constants import FSDP_AUTO_WRAP_POLICY, FSDP_STATE_DICT_TYPE
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from safetensors.torch import load_file
from torch import distributed
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    TrainingArguments,
)
from transformers.integrations import deepspeed

from hf_vlm import LlavaVisionLanguageConfig, LlavaVisionLanguageForConditionalGeneration
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.llava import build_trainer
from hf_vlm.training.runs import run
from hf_vlm.training.tasks import load_recipe
from tests.training.processes import FSDP2, Notes, Stop, assert_close, notes_of, on_two_processes, shard_on_cpus, write
from tests.training.tiny_conversations import recipe_of, tiny_llava_recipe, write_conversations, write_parts

SECOND = {"train": ["projector", "language"], "learning_rates": {"projector": 5e-3}}
CHAT = [{"path": "chat", "split": "train"}]
PADDED, PACKED = {"max_tokens": None}, {"max_tokens": 256}
DISTRIBUTED = Path(__file__).parents[2] / "scripts" / "distributed"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    return write_parts(tmp_path_factory.mktemp("parts")), write_conversations(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sections(folders, tmp_path) -> Callable[..., dict]:
    """`sections("name", data={...}, training={...})`: a recipe of the second phase with its output in `tmp_path / name`."""

    def build(name: str, data: dict, **training: Any) -> dict:
        settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 2e-3, "dataloader_num_workers": 0, **training}
        data = {"train": CHAT, **data}
        return tiny_llava_recipe(*folders, tmp_path / name, data=data, parts=SECOND, training=settings)

    return build


def train_to_the_end(rank: int, folder: Path, recipe_file: Path, shards: bool, *outputs: Path) -> None:
    """Trains the recipe into each of `outputs`; the last of several is stopped after two steps, and goes on from there."""
    if shards:
        shard_on_cpus()
    for number, output in enumerate(outputs):
        recipe = load_recipe(recipe_file, [f"training.output_dir={output}"])
        trainer = build_trainer(recipe)
        notes = Notes()
        trainer.add_callback(notes)
        if number > 0:
            trainer.add_callback(Stop())
            trainer.train()
            distributed.barrier()
            trainer = build_trainer(recipe)
            trainer.add_callback(notes)
        run(trainer, recipe, resume=True)
        torch.save(vars(notes), folder / f"{output.name}-{rank}.pt")


def one_process(tmp_path: Path, sections: dict) -> Any:
    """The trainer of one process with the double batch."""
    size = sections["training"]["per_device_train_batch_size"]
    training = {**sections["training"], "per_device_train_batch_size": 2 * size, "output_dir": str(tmp_path / "one")}
    training = {name: value for name, value in training.items() if not name.startswith(("fsdp", "ddp"))}
    trainer = build_trainer(recipe_of(tmp_path, {**sections, "training": training}))
    assert trainer.args.world_size == 1
    trainer.train()
    return trainer


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model, told = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.state_dict()


def pictures_of_ranks(trainer: Any) -> list[list[int]]:
    """Of each step: the pictures that each of two processes with one item sees; `trainer` is of one with two."""
    schedule = trainer.train_dataset
    numbers = [int(schedule.num_images[schedule.rows_of(index)].sum()) for index in range(len(schedule))]
    return [numbers[first : first + 2] for first in range(0, len(numbers), 2)]


@pytest.mark.parametrize("kind", ["padded", pytest.param("packed", marks=pytest.mark.slow)])
def test_two_processes_end_as_one_with_the_double_batch(sections, tmp_path, kind):
    recipe = sections("two", PADDED if kind == "padded" else PACKED, ddp_find_unused_parameters=False)
    one = one_process(tmp_path, recipe)
    before = build_trainer(recipe_of(tmp_path, recipe)).model.state_dict()
    if kind == "padded":  # without pictures on one process only: its projector has to be asked all the same
        assert any(0 in step and any(step) for step in pictures_of_ranks(one))
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, recipe), False, tmp_path / "two", tmp_path / "again")
    assert [note["first_step"] for note in notes_of(tmp_path)] == [0, 0, 2, 2]
    assert all(note["split"] == set() for note in notes_of(tmp_path))
    weights = weights_of(tmp_path / "two")
    assert_close(weights, one.model.state_dict())
    assert max(float((weights[name] - before[name]).abs().max()) for name in weights) > 1e-3
    for name, tensor in weights_of(tmp_path / "again").items():
        assert torch.equal(tensor, weights[name]), name
    projector = load_file(tmp_path / "again" / "checkpoint-4" / "projector.safetensors")
    assert all(torch.equal(tensor, weights[f"projector.{name}"]) for name, tensor in projector.items())


@pytest.mark.parametrize(
    "kind", ["packed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("padded", "features", "tied"))]
)
def test_weights_split_over_two_processes_end_as_those_of_one(sections, folders, tmp_path, kind):
    data = PACKED if kind in ("packed", "tied") else PADDED
    if kind == "features":
        data = data | {"features_folder": "features"}
    recipe = sections("two", data, **FSDP2)
    if kind == "tied":
        text = AutoModelForCausalLM.from_pretrained(folders[0] / "text", tie_word_embeddings=True)
        text.save_pretrained(tmp_path / "tied")
        AutoTokenizer.from_pretrained(folders[0] / "text").save_pretrained(tmp_path / "tied")
        recipe["model"]["text"] = str(tmp_path / "tied")
    one = one_process(tmp_path, recipe)
    assert one.model.loss_chunk_size and one.model._no_split_modules >= {"LlamaDecoderLayer", "PreNormLayer"}
    if data["max_tokens"] is None:
        assert any(0 in step and any(step) for step in pictures_of_ranks(one))
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, recipe), True, tmp_path / "two", tmp_path / "again")
    assert [note["first_step"] for note in notes_of(tmp_path)] == [0, 0, 2, 2]
    for note in notes_of(tmp_path):
        assert note["split"] == {name for name, _ in one.model.named_parameters()} and note["whole"] == set()
    weights = weights_of(tmp_path / "two")
    assert_close(weights, one.model.state_dict())
    for name, tensor in weights_of(tmp_path / "again").items():
        assert torch.equal(tensor, weights[name]), name
    projector = load_file(tmp_path / "again" / "projector.safetensors")
    assert all(torch.equal(tensor, weights[f"projector.{name}"]) for name, tensor in projector.items())

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "two").eval()
    batch = one.data_collator([one.train_dataset[0]])
    batch = {name: value for name, value in batch.items() if name in ("input_ids", "pixel_values", "image_features")}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, one.model.eval()(**batch).logits, rtol=0, atol=1e-4)
    report = json.loads((tmp_path / "two" / "weight_report.json").read_text())
    hashes = {part["name"]: part["sha256"] for part in report["parts"]}
    assert hashes["projector"] == hash_weights(projector)


# Files for GPUs: read by the libraries that they are for, but not run, for want of several GPUs and of DeepSpeed


def test_fsdp2_file_is_what_accelerate_reads():
    config = load_config_from_file(str(DISTRIBUTED / "fsdp2.yaml"))
    assert config.distributed_type == DistributedType.FSDP and config.num_processes == 8
    assert config.mixed_precision == "bf16"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known)
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_state_dict_type"] in FSDP_STATE_DICT_TYPE
    assert config.fsdp_config["fsdp_auto_wrap_policy"] in FSDP_AUTO_WRAP_POLICY


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_file_is_what_transformers_fills_in(stage, tmp_path, monkeypatch):
    settings = json.loads((DISTRIBUTED / f"deepspeed-zero{stage}.json").read_text())
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda name: None)
    monkeypatch.setattr(deepspeed, "set_hf_deepspeed_config", lambda config: None)  # this process goes on without

    class Settings(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """As it is where DeepSpeed is installed."""

    config = Settings(settings)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, per_device_train_batch_size=3)
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=LlavaVisionLanguageConfig()), 10)
    assert config.mismatches == [] and config.config["zero_optimization"]["stage"] == stage
    assert config.config["train_micro_batch_size_per_gpu"] == 3 and config.config["bf16"]["enabled"] is True
    assert "auto" not in json.dumps(config.config)
