"""An optimizer's state by names and by numbers, and checkpoints that no other engine goes on from."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from hf_vlm.training.supervision.checkpoints import engine_of
from hf_vlm.training.supervision.optimizer_files import layers_to_split, state_by_name, state_by_number
from hf_vlm.training.trocr import build_trainer, train
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner
from tests.models.trocr.tiny_models import tiny_reader
from tests.tiny_lines import recipe_of


class Tied(nn.Module):
    """Two names for one weight, and a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.head, self.frozen = nn.Linear(3, 5), nn.Linear(2, 2).requires_grad_(False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(ids)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights, biases = ([p for p in trained if (p.dim() > 1) is is_weight] for is_weight in (True, False))
    groups = [{"params": biases, "lr": 1e-2}, {"params": weights, "weight_decay": 0.1}, {"params": []}]
    return torch.optim.AdamW(groups, lr=1e-3)


def test_state_by_name_is_what_torch_writes_and_comes_back_by_number():
    torch.manual_seed(0)
    model = Tied()
    optimizer = optimizer_of(model)
    for _ in range(2):
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()
    by_number = copy.deepcopy(optimizer.state_dict())
    by_name = state_by_name(by_number, optimizer, model)
    torchs = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    assert by_name["state"].keys() <= torchs["state"].keys() and len(by_name["state"]) == 4
    for name, values in by_name["state"].items():
        assert all(torch.equal(values[key], torchs["state"][name][key]) for key in values)
    names = [set(group["params"]) for group in by_name["param_groups"]]
    assert all(own <= set(group["params"]) for own, group in zip(names, torchs["param_groups"], strict=True))

    for written in (by_name, torchs):
        fresh = Tied()
        other = optimizer_of(fresh)
        other.load_state_dict(state_by_number(written, other, fresh))
        back = other.state_dict()
        assert back["param_groups"] == by_number["param_groups"]
        for number, values in by_number["state"].items():
            assert all(torch.equal(values[key], back["state"][number][key]) for key in values)


def test_state_of_other_parameters_is_refused():
    model, smaller = Tied(), nn.Linear(3, 3)
    by_number = optimizer_of(smaller).state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2, 2, 0\] parameters is wanted, got one of \[1, 1, 0\]"):
        state_by_name(by_number, optimizer_of(model), model)
    own = optimizer_of(smaller)
    by_name = state_by_name(own.state_dict(), own, smaller)
    with pytest.raises(ValueError, match="An optimizer of `middle.bias` is wanted, got one of 2 other parameters"):
        state_by_number(by_name, optimizer_of(model), model)


def test_checkpoint_of_deepspeed_goes_on_there_alone(recipe_sections, tmp_path):
    recipe = recipe_of(recipe_sections, "training.max_steps=1", "data.validation={}")
    train(recipe)
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert engine_of(checkpoint) == "plain"
    (checkpoint / "latest").write_text("global_step1")
    trainer = build_trainer(recipe)
    with pytest.raises(ValueError, match="of one process or DDP is wanted in .*checkpoint-1, got one of DeepSpeed"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_layers_that_hold_the_embeddings_are_no_group_of_their_own():
    reader, captioner = tiny_reader(), tiny_captioner()
    assert "TrOCREncoderDecoderTextLayer" in layers_to_split(reader)
    assert captioner._no_split_modules >= {"CnnLstmDecoder"}
    assert "CnnLstmDecoder" not in layers_to_split(captioner)


@pytest.mark.parametrize("written_by", ["plain", "fsdp"])
def test_optimizer_without_a_state_goes_on_at_the_rate_of_the_checkpoint_under_fsdp2(
    recipe_sections, tmp_path, monkeypatch, written_by
):
    settings = ("training.optim=sgd", "training.warmup_steps=4", "training.max_steps=2", "data.validation={}")
    recipe = recipe_of(recipe_sections, *settings, "training.learning_rate=0.4")
    trained = train(recipe)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    if written_by == "fsdp":  # which names the parameters in the place of numbers
        names = {id(weight): name for name, weight in trained.model.named_parameters()}
        groups = [
            {**group, "params": [names[id(one)] for one in group["params"]]} for group in trained.optimizer.param_groups
        ]
        torch.save({"state": {}, "param_groups": groups}, checkpoint / "optimizer.bin")
        torch.save({}, checkpoint / "pytorch_model_fsdp.bin")
    trainer = build_trainer(recipe)
    monkeypatch.setattr(type(trainer), "engine", "fsdp")
    trainer.create_optimizer_and_scheduler(4)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0}
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.2, 0.2])
    assert trainer.lr_scheduler.last_epoch == 2
