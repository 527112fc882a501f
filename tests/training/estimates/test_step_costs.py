"""Steps on tensors without content cost what real ones do."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hf_vlm.training.estimates.step_costs import give_shapes, shapes_only, step_arithmetic, step_memory
from tests.models.llava.tiny_llava import CANVAS, tiny_llava
from tests.models.trocr.tiny_models import line_batch, tiny_reader


class Regression(nn.Module):
    """Two linear layers and a loss; frozen below where asked."""

    def __init__(self, width=48, is_frozen=False):
        super().__init__()
        self.first, self.second = nn.Linear(32, width), nn.Linear(width, 16)
        self.first.requires_grad_(not is_frozen)

    def forward(self, inputs):
        return {"loss": self.second(self.first(inputs).relu()).square().mean()}


def test_arithmetic_of_linear_layers_is_their_closed_form():
    found = step_arithmetic(Regression(), {"inputs": torch.ones(8, 32)})
    first, second = 2 * 8 * 32 * 48, 2 * 8 * 48 * 16
    assert found.forward == first + second
    assert found.all == found.forward + first + 2 * second  # the first layer's inputs need no gradient


def test_frozen_layers_cost_their_forward_pass_alone():
    found = step_arithmetic(Regression(is_frozen=True), {"inputs": torch.ones(8, 32)})
    first, second = 2 * 8 * 32 * 48, 2 * 8 * 48 * 16
    assert found.all == first + second + second


def test_attention_is_counted_like_two_matrix_products():
    class Attention(nn.Module):
        def forward(self, query):
            return {"loss": nn.functional.scaled_dot_product_attention(query, query, query).sum()}

    query = torch.ones(2, 4, 24, 16, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        found = step_arithmetic(Attention(), {"query": query})
    product = 2 * 2 * 4 * 24 * 24 * 16
    assert (found.forward, found.all) == (2 * product, 2 * product + 5 * product)  # backward makes the scores again


def conversation_batch(model):
    """Two conversations with a picture each, the second shorter; made of what is there, so content or not."""
    number = model.config.num_image_tokens
    ids = torch.ones(2, 40, dtype=torch.int64)
    ids[:, 1 : 1 + number] = model.config.image_token_id
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    pixels = torch.zeros(2, 3, *CANVAS)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone(), "pixel_values": pixels}


def allocated(model, batch, precision):
    """The most bytes at once and after a real step, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
            loss = model(**batch)["loss"]
        loss.backward()
    now = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_memory_of_a_llava_is_what_the_allocator_gave_a_real_step(precision, recomputes):
    model = tiny_llava()
    model.vision_model.requires_grad_(False)
    if recomputes:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    real = allocated(model, conversation_batch(model), precision)
    model.zero_grad(set_to_none=True)
    with shapes_only():
        give_shapes(model)
        found = step_memory(model, conversation_batch(model), precision=precision)
    # recomputed in bf16 a real step has 20 kB more, which counts beside tensors this small
    assert found.peak_with_gradients == pytest.approx(real, rel=0.03 if precision is None else 0.15)
    assert found.kept < found.peak <= found.peak_with_gradients


def test_memory_of_a_reader_is_what_the_allocator_gave_a_real_step():
    model = tiny_reader().train()
    real = allocated(model, line_batch(), None)
    model.zero_grad(set_to_none=True)
    with shapes_only():
        give_shapes(model)
        batch = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in line_batch().items()}
        found = step_memory(model, batch)
    assert found.peak_with_gradients == pytest.approx(real, rel=0.05)


def test_arithmetic_of_a_llava_is_that_of_its_layers_one_by_one():
    """Forward, with hooks on a real step: each linear layer and convolution by its shapes, attention by its lengths."""
    model = tiny_llava().train()
    counted = []

    def note(module, inputs, output):
        if isinstance(module, nn.Linear):
            counted.append(2 * inputs[0].numel() * module.out_features)
        elif isinstance(module, nn.Conv2d):
            counted.append(2 * output.numel() * module.weight[0].numel())

    for module in model.modules():
        module.register_forward_hook(note)
    batch = conversation_batch(model)
    model(**batch)
    of_layers = sum(counted)
    vision, text = model.config.vision_config, model.config.text_config
    seen = 1 + model.config.num_image_tokens if model.config.num_prefix_tokens else model.config.num_image_tokens
    attention = 4 * 2 * vision.num_hidden_layers * seen**2 * vision.hidden_size
    attention += 4 * 2 * text.num_hidden_layers * 40**2 * text.hidden_size
    with shapes_only():
        give_shapes(model)
        found = step_arithmetic(model, conversation_batch(model))
    assert found.forward == of_layers + attention


def test_gradient_checkpointing_computes_layers_twice_and_keeps_less():
    costs = []
    for recomputes in (False, True):
        model = tiny_llava().train()
        if recomputes:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        with shapes_only():
            give_shapes(model)
            batch = conversation_batch(model)
            costs.append((step_memory(model, batch), step_arithmetic(model, batch)))
    (kept, computed), (kept_less, computed_more) = costs
    assert kept_less.kept < 0.7 * kept.kept
    assert computed.all < computed_more.all < computed.all + computed.forward


def test_nothing_is_left_behind():
    with pytest.raises(ZeroDivisionError), shapes_only():
        assert torch.compiler.is_compiling()
        raise ZeroDivisionError
    assert not torch.compiler.is_compiling()
    assert torch.ones(2).sum().item() == 2


def test_tied_weights_stay_tied_and_keep_what_trains():
    with torch.device("meta"):
        model = tiny_reader()
        model.encoder.requires_grad_(False)
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    number = len(list(model.parameters()))
    with shapes_only():
        give_shapes(model, torch.bfloat16)
    assert len(list(model.parameters())) == number
    assert sum(parameter.requires_grad for parameter in model.parameters()) == trained
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
