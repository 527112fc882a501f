"""What engines keep and send, beside the papers' figures."""

import pytest
import torch
from torch import nn

from hf_vlm.training.estimates.engine_memory import ENGINES, ModelSize, bytes_sent, engine_memory, model_size
from hf_vlm.training.estimates.step_costs import StepMemory

# The example of ZeRO's figure 1: 7.5B weights, 64 devices, Adam, half precision, no activations.
SIZE = ModelSize(all=7_500_000_000, trained=7_500_000_000, layer=0, outside=0, trained_outside=0)
NOTHING = StepMemory(kept=0, peak=0, peak_with_gradients=0)


def memory_of(engine, size=SIZE, step=NOTHING, num_devices=64, accumulates=False):
    return engine_memory(
        engine, size, step, num_devices=num_devices, is_half=True, accumulates=accumulates, optim="adamw_torch"
    )


def test_zero_keeps_what_its_paper_says_and_the_gradients_in_fp32_for_the_update():
    second, third = memory_of("zero2"), memory_of("zero3")
    in_fp32 = 4 * 7.5e9 / 64
    assert second.weights + second.gradients + second.optimizer - in_fp32 == pytest.approx(16.6e9, rel=0.01)
    assert third.weights + third.gradients + third.optimizer - in_fp32 == pytest.approx(1.9e9, rel=0.02)


def test_ddp_and_fsdp2_keep_sixteen_bytes_a_weight_whole_and_split():
    whole, split = memory_of("ddp"), memory_of("fsdp2")
    assert whole.weights + whole.gradients + whole.optimizer == 16 * 7_500_000_000
    assert split.weights + split.gradients + split.optimizer == pytest.approx(16 * 7.5e9 / 64)
    assert whole.gathered == whole.gradients
    assert split.gathered == 0  # this size has no layers


def test_one_device_gathers_nothing():
    size = ModelSize(all=100, trained=100, layer=10, outside=20, trained_outside=20)
    assert memory_of("ddp", size, num_devices=1).gathered == memory_of("fsdp2", size, num_devices=1).gathered == 0
    assert memory_of("fsdp2", size, num_devices=2).gathered == 2 * (20 + 20 + 2 * 10)


def test_frozen_weights_have_neither_gradients_nor_state():
    size = ModelSize(all=1_000, trained=10, layer=10, outside=0, trained_outside=0)
    memory = memory_of("ddp", size)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4_000, 40, 80)


def test_gradients_of_earlier_batches_come_on_top_of_activations():
    size = ModelSize(all=1_000, trained=1_000, layer=0, outside=0, trained_outside=0)
    step = StepMemory(kept=5_000, peak=6_000, peak_with_gradients=7_000)
    assert memory_of("ddp", size, step).activations == 3_000  # 4,000 of the 7,000 are the gradients
    assert memory_of("ddp", size, step, accumulates=True).activations == 6_000
    assert memory_of("zero3", size, step).activations == 6_000


@pytest.mark.parametrize(("engine", "factor"), [("ddp", 2 * 4), ("zero2", 2 * 2), ("fsdp2", 3 * 2), ("zero3", 3 * 2)])
def test_rings_send_what_the_papers_count(engine, factor):
    """ZeRO's section 7: stages 1 and 2 as much as data parallelism, twice the weights; stage 3 half as much again."""
    sent = bytes_sent(engine, SIZE, num_devices=64, is_half=True, num_passes=1)
    assert sent == pytest.approx(factor * 7.5e9 * 63 / 64)
    assert bytes_sent(engine, SIZE, num_devices=1, is_half=True, num_passes=1) == 0


def test_layers_that_fsdp2_wraps_are_told_from_what_lies_outside():
    class Layer(nn.Linear):
        pass

    class Model(nn.Module):
        _no_split_modules = ["Layer"]

        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.layers = nn.ModuleList([Layer(4, 4), Layer(4, 6)])
            self.words.requires_grad_(False)

    with torch.device("meta"):
        found = model_size(Model())
    assert found == ModelSize(all=40 + 20 + 30, trained=50, layer=30, outside=40, trained_outside=0)


def test_every_engine_is_known():
    assert [memory_of(engine).engine for engine in ENGINES] == list(ENGINES)
