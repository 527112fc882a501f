"""Models of pictures trained by two processes on CPUs, by DDP and FSDP2: they end as those of one and go on from its checkpoints.

What a model draws is a function of the seed and the items of a batch: one process that accumulates two batches draws what two
processes draw for one each. Where weights change within a forward pass, as codewords do, the like is one process with the double
batch. A batch norm sees one batch at a time; only what it notes for later use differs.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from hf_vlm import VQVAEConfig, VQVAEModel
from hf_vlm.blocks import codebook
from hf_vlm.training.runs import run
from hf_vlm.training.tasks import build_trainer, load_recipe
from scripts.engines_on_cpus import use_engines_on_cpus
from tests.training.processes import FSDP2, Notes, Stop, assert_close, notes_of, on_two_processes, write
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits

TASKS = {
    "image-classification": ("vit", "swin", "transformers' own", "timm's own"),
    "masked-image-modeling": ("pixels", "codes"),
    "image-tokenization": ("vae", "rounding", "running means", "learnt codewords", "dvae"),
}
TASK_OF = {family: task for task, families in TASKS.items() for family in families}
OF_WHOLE_BATCHES = ("running means", "learnt codewords")
SWIN = {
    "model_type": "hf_vlm_swin",
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.2,
}
FOREIGN = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
    "hidden_dropout_prob": 0.1,
}
CONVOLUTIONS = {"image_size": 16, "hidden_channels": [8, 8]}
CODEBOOK = {**CONVOLUTIONS, "num_codes": 16, "code_dim": 4, "ema_decay": 0.8, "revive_below": 0.5}
TOKENIZERS = {
    "vae": {"model_type": "hf_vlm_vae", **CONVOLUTIONS},
    "rounding": {"model_type": "hf_vlm_vqvae", **CONVOLUTIONS, "discretisation": "levels", "levels": [5, 5, 5]},
    "running means": {"model_type": "hf_vlm_vqvae", **CODEBOOK},
    "learnt codewords": {"model_type": "hf_vlm_vqvae", **CODEBOOK, "codebook_update": "loss"},
    "dvae": {"model_type": "hf_vlm_dvae", "image_size": 16, "group_channels": 8, "num_codes": 16, "code_dim": 8},
}
ANNEALING = {
    "vae": {"beta": {"kind": "linear", "start": 0.1, "end": 1.0, "num_steps": 4}},
    "dvae": {"temperature": {"kind": "cosine", "start": 1.0, "end": 0.1, "num_steps": 4}},
}
TIMM = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """24 pictures to learn from, and 9 to validate on, a number that two processes can't share evenly."""
    return write_picture_splits(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def sections(pictures, tmp_path) -> Callable[..., dict]:
    """`sections(family)`: a recipe of four steps of 4 pictures a process, validated and saved at every second."""

    def build(family: str, **training: Any) -> dict:
        recipe = tiny_picture_recipe(pictures, tmp_path / "two", TASK_OF[family])
        recipe["training"] |= {"max_steps": 4, "gradient_accumulation_steps": 1, **training}
        if family == "vit":
            recipe["data"]["augmentation"] |= {"mixup": 0.8, "cutmix": 1.0}
            recipe["optimizer"] = {"layer_decay": 0.8}
        elif family == "swin":
            recipe["model"]["config"] = SWIN
        elif family == "transformers' own":
            recipe["model"]["config"] = FOREIGN
        elif family == "timm's own":
            recipe["model"] = {"pretrained": str(write_timm(tmp_path / "timm"))}
        elif family == "codes":
            recipe["model"] = {
                "config": {**recipe["model"]["config"], "masked_image_target": "codes", "num_codes": 16},
                "tokenizer": str(write_tokenizer(tmp_path / "tokenizer")),
            }
        elif family in TOKENIZERS:
            recipe["model"]["config"] = TOKENIZERS[family]
            recipe["annealing"] = ANNEALING.get(family, {})
        if family == "dvae":
            recipe["optimizer"] = {"weight_average": 0.9}
        if family == "learnt codewords":  # no steps out of rounding errors, where codewords have next to no gradient
            recipe["training"] |= {"adam_epsilon": 1e-3, "learning_rate": 1e-2}
        return recipe

    return build


def write_timm(folder: Path) -> Path:
    """A network of timm with batch norms, of five classes: the recipe's three get a new head."""
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=5, pretrained_cfg=TIMM)
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> Path:
    torch.manual_seed(0)
    VQVAEModel(VQVAEConfig(**CODEBOOK)).save_pretrained(folder)
    return folder


class Watch(Notes):
    """Notes after every step what a forward pass changes: codebooks, and statistics of batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        state_dict = model.state_dict().items()
        kept = {name: value for name, value in state_dict if name.startswith("codebook.") or ".running_" in name}
        self.learnt.append(
            {
                name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
                for name, value in kept.items()
            }
        )


def train_to_the_end(rank: int, folder: Path, recipe_file: Path, shards: bool, *outputs: Path) -> None:
    """Trains the recipe into each of `outputs`, from a checkpoint if there is one; `again` is stopped after two steps before."""
    if shards:
        use_engines_on_cpus()
    for output in outputs:
        recipe = load_recipe(recipe_file, [f"training.output_dir={output}"])
        if output.name == "again":
            trainer = build_trainer(recipe)
            trainer.add_callback(Stop())
            trainer.train()
            distributed.barrier()
        trainer = build_trainer(recipe)
        watch = Watch()
        trainer.add_callback(watch)
        run(trainer, recipe, resume=True)
        torch.save({**vars(watch), "log": trainer.state.log_history}, folder / f"{output.name}-{rank}.pt")


def of_one_process(sections: dict, output: Path) -> dict[str, Any]:
    """A recipe's section `training` without FSDP, into another folder."""
    training = {name: value for name, value in sections["training"].items() if not name.startswith("fsdp")}
    return {**training, "output_dir": str(output)}


def one_process(sections: dict, output: Path, *, has_double_batches: bool) -> Any:
    """The trainer of one process, after a run of as many items an update, from a checkpoint if there is one; it has a `watch`."""
    double = {"per_device_train_batch_size": 8} if has_double_batches else {"gradient_accumulation_steps": 2}
    recipe = picture_recipe_of({**sections, "training": of_one_process(sections, output) | double})
    trainer = build_trainer(recipe)
    assert trainer.args.world_size == 1
    trainer.watch = Watch()
    trainer.add_callback(trainer.watch)
    run(trainer, recipe, resume=True)
    return trainer


def put_checkpoint(source: Path, output: Path) -> Path:
    """A run's folder that holds the checkpoint of another after two steps."""
    shutil.copytree(source / "checkpoint-2", output / "checkpoint-2")
    return output


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a saved model, without what batch norms note for later use."""
    notes = (".running_mean", ".running_var", ".num_batches_tracked")
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if not name.endswith(notes)}


def assert_same_log(log: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same losses and scores at the same steps, but for those of a process's own batch, and times."""
    own = ("perplexity", "used_codes")

    def scores(entry: dict[str, Any]) -> dict[str, Any]:
        timed = ("runtime", "per_second", "preparation_time")
        return {name: value for name, value in entry.items() if name not in own and not name.endswith(timed)}

    assert len(log) == len(wanted)
    for entry, other in zip(log, wanted, strict=True):
        assert scores(entry) == pytest.approx(scores(other), rel=2e-4, abs=1e-5)


QUICK = [("vit", False), ("vae", False), ("running means", False), ("pixels", True), ("learnt codewords", True)]
SLOW = [(family, shards) for family in TASK_OF for shards in (False, True) if (family, shards) not in QUICK]
CASES = [pytest.param(*case) for case in QUICK] + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("family", "shards"), CASES)
def test_two_processes_end_as_one_and_go_on_from_its_checkpoint(sections, tmp_path, monkeypatch, family, shards):
    recipe = sections(family, **(FSDP2 if shards else {}))
    has_double_batches, revived = family in OF_WHOLE_BATCHES, []

    def set_weight(module, name, values, where=None, write=codebook.set_weight):
        revived.append(0 if where is None else int(where.sum()))
        write(module, name, values, where)

    monkeypatch.setattr(codebook, "set_weight", set_weight)
    one = one_process(recipe, tmp_path / "one", has_double_batches=has_double_batches)
    assert (sum(revived) > 0) == has_double_batches  # dead codewords, among them, were put on vectors

    from_one = put_checkpoint(tmp_path / "one", tmp_path / "from_one")
    outputs = (tmp_path / "two", tmp_path / "again", from_one)
    on_two_processes(train_to_the_end, tmp_path, write(tmp_path, recipe), shards, *outputs)
    notes = notes_of(tmp_path)
    assert [note["first_step"] for note in notes] == [0, 0, 2, 2]
    for note in notes:
        assert (note["whole"] if shards else note["split"]) == set()
        assert note["split"] | note["whole"] == {name for name, _ in one.model.named_parameters()}
    for own, other in (notes[:2], notes[2:]):
        assert_same_log(own["log"], other["log"])
        for step, of_other in zip(own["learnt"], other["learnt"], strict=True):
            assert all(torch.equal(value, of_other[name]) for name, value in step.items())
    if has_double_batches:
        for step, wanted in zip(notes[0]["learnt"], one.watch.learnt, strict=True):
            assert_close(step, wanted)

    weights = weights_of(tmp_path / "two")
    assert_close(weights, weights_of(tmp_path / "one"))
    for name, tensor in weights_of(tmp_path / "again").items():
        assert torch.equal(tensor, weights[name]), name
    if family == "timm's own":
        trainer = build_trainer(picture_recipe_of({**recipe, "training": of_one_process(recipe, tmp_path / "read")}))
        trainer._load_from_checkpoint(str(tmp_path / "two" / "checkpoint-4"))
        measured = [entry["eval_loss"] for entry in notes[0]["log"] if "eval_loss" in entry]
        assert measured[-1] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)  # of what is saved
        return
    assert_same_log(notes[0]["log"], one.state.log_history)
    assert_close(weights_of(from_one), weights)
    from_two = put_checkpoint(tmp_path / "two", tmp_path / "from_two")
    one_process(recipe, from_two, has_double_batches=has_double_batches)
    assert_close(weights_of(from_two), weights)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["learnt codewords", "dvae"])
def test_layers_that_write_their_weights_are_refused_in_a_group_with_others(sections, tmp_path, family):
    settings = FSDP2["fsdp_config"] | {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 10**9}
    recipe = sections(family, fsdp=True, fsdp_config=settings)
    if family == "dvae":
        recipe["model"]["config"] = TOKENIZERS[family] | {"start_logit_deviation": 1.0}
    with pytest.raises(Exception, match="Set `fsdp_config.auto_wrap_policy` to TRANSFORMER_BASED_WRAP"):
        on_two_processes(train_to_the_end, tmp_path, write(tmp_path, recipe), True, tmp_path / "two")
