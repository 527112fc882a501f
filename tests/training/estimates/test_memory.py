"""What training takes, and what a run that ran out of it is told."""

import re

import pytest
import torch
from torch import nn

from hf_vlm.training.estimates.memory import kept_bytes, memory_advice, state_bytes, training_memory
from hf_vlm.training.tasks import build_trainer
from tests.tiny_lines import recipe_of
from tests.training.tiny_conversations import recipe_of as conversation_recipe_of
from tests.training.tiny_conversations import tiny_llava_recipe, write_conversations, write_parts


class FailedAllocation(RuntimeError):
    pass


ERROR = FailedAllocation("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.\nMore lines")


def test_states_are_counted_for_weights_that_train():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    model[0].requires_grad_(False)
    memory = training_memory(model, activation_bytes=7)
    frozen, trained = 4 * (10 * 20 + 20), 4 * (20 * 5 + 5)
    assert (memory.weights, memory.gradients, memory.optimizer) == (frozen + trained, trained, 2 * trained)
    assert memory.total == frozen + 4 * trained + 7


def test_moments_are_those_that_torch_keeps():
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(1000)
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer.state[weight].values() if value.numel() > 1)
    assert kept == 1000 * state_bytes("adamw_torch_fused")


@pytest.mark.parametrize(("optim", "number"), [("adamw_bnb_8bit", 2), ("adafactor", 0), ("sgd", 0), ("adamw_torch", 8)])
def test_other_optimizers_keep_less(optim, number):
    assert state_bytes(optim) == number


def test_kept_bytes_are_the_inputs_of_what_needs_them_once_and_no_weights():
    layer = nn.Linear(10, 10, bias=False)
    inputs = torch.ones(3, 10, requires_grad=True)  # so that the weights are kept too
    with kept_bytes(layer.parameters()) as kept:
        (layer(inputs) + layer(inputs)).sum()  # the same inputs are kept for both
    assert sum(kept.values()) == inputs.nbytes


def test_lines_are_advised_on_batch_layers_precision_and_sharding(recipe_sections):
    trainer = build_trainer(recipe_of(recipe_sections, "model.text_config.num_hidden_layers=6"))
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    advice = memory_advice(trainer, ERROR)
    assert "(DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes)" in advice
    assert f"weights {weights / 2**20:.1f} MiB, gradients {weights / 2**20:.1f} MiB" in advice
    assert f"in all {4 * weights / 2**20:.1f} MiB" in advice
    half = trainer.args.per_device_train_batch_size // 2
    twice = 2 * trainer.args.gradient_accumulation_steps
    assert (
        f"training.per_device_train_batch_size={half} training.gradient_accumulation_steps={twice}: saves 50%" in advice
    )
    recomputed = round(100 * (1 - 2 / 34 - 1 / 6))
    assert (
        f"training.activation_checkpointing=true: saves about {recomputed}% of what the step keeps; a third" in advice
    )
    assert "training.bf16=true: saves about 50%" in advice
    assert f"saves {4 * weights * 7 / 8 / 2**20:.1f} MiB of what is kept all the time" in advice
    assert "data." not in advice


def test_odd_batch_is_halved_without_a_promise(recipe_sections):
    advice = memory_advice(build_trainer(recipe_of(recipe_sections, "training.per_device_train_batch_size=3")), ERROR)
    assert "training.per_device_train_batch_size=1: saves 67%" in advice and "fewer items an update" in advice
    assert "gradient_accumulation_steps" not in advice and "the same items" not in advice


def test_what_is_set_already_is_not_advised(recipe_sections):
    overrides = ("per_device_train_batch_size=1", "activation_checkpointing=true", "bf16=true")
    trainer = build_trainer(recipe_of(recipe_sections, *(f"training.{override}" for override in overrides)))
    advice = memory_advice(trainer, ERROR)
    assert not re.search("per_device_train_batch_size|activation_checkpointing|bf16", advice)


def test_conversations_are_advised_on_their_lengths(tmp_path):
    parts, data = write_parts(tmp_path / "parts"), write_conversations(tmp_path / "data")
    packed = tiny_llava_recipe(parts, data, tmp_path / "run")
    assert "rows have up to 256 tokens" in memory_advice(build_trainer(conversation_recipe_of(tmp_path, packed)), ERROR)
    padded = tiny_llava_recipe(parts, data, tmp_path / "run", data={"max_tokens": None})
    advice = memory_advice(build_trainer(conversation_recipe_of(tmp_path, padded)), ERROR)
    assert "data.max_length lower" in advice and "data.grouping=length" in advice


def test_advice_makes_no_tensor_and_survives_a_trainer_that_says_nothing(recipe_sections, monkeypatch):
    trainer = build_trainer(recipe_of(recipe_sections))
    with torch.utils._python_dispatch._disable_current_modes(), _NoTensors():
        assert "Each of these" in memory_advice(trainer, ERROR)
        assert "per_device_train_batch_size" in memory_advice(object(), ERROR)
        assert "per_device_train_batch_size" in memory_advice(None, MemoryError())


class _NoTensors(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called")
