"""Oracles: the definition of cross-entropy written out, and literal token lists."""

import contextlib
import itertools
import math
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_vlm.blocks.token_loss import (
    IGNORE_INDEX,
    chunked_token_cross_entropy,
    ctc_loss,
    shift_right,
    token_cross_entropy,
)


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over five tokens, float (2, 3, 5), and labels of which two carry no loss."""
    return torch.randn(2, 3, 5) * 3, torch.tensor([[1, 4, -100], [0, -100, 2]])


def terms(logits, labels, smoothing=0.0):
    """Every label's loss by definition: cross-entropy with the target (1 - s) one-hot + s even."""
    found = []
    for row, places in enumerate(labels.tolist()):
        for place, label in enumerate(places):
            if label == -100:
                continue
            scores = logits[row, place].double().tolist()
            normaliser = math.log(sum(math.exp(score) for score in scores))
            log_probs = [score - normaliser for score in scores]
            target = [smoothing / len(scores) + (1 - smoothing) * (token == label) for token in range(len(scores))]
            found.append(-sum(t * p for t, p in zip(target, log_probs, strict=True)))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_is_the_mean_over_labels_that_count(example, smoothing):
    expected = terms(*example, smoothing)
    assert token_cross_entropy(*example, label_smoothing=smoothing).item() == pytest.approx(sum(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("count", [16, torch.tensor(16)])
def test_loss_is_the_sum_over_the_items_of_the_whole_step(example, count):
    loss = token_cross_entropy(*example, num_items_in_batch=count)
    assert loss.item() == pytest.approx(sum(terms(*example)) / 16, rel=1e-5)


def test_loss_without_any_label_is_zero_with_a_gradient(example):
    logits = example[0].requires_grad_()
    loss = token_cross_entropy(logits, torch.full((2, 3), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


def test_loss_of_half_precision_logits_is_computed_in_single_precision(example):
    logits, labels = example[0].bfloat16(), example[1]
    loss = token_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, token_cross_entropy(logits.float(), labels))


def test_shift_right_puts_the_start_token_in_front_and_drops_the_last():
    labels = torch.tensor([[7, 8, 2], [9, 2, -100], [-100, -100, -100]])
    shifted = shift_right(labels, start_token_id=1, pad_token_id=0)
    assert shifted.tolist() == [[1, 7, 8], [1, 9, 2], [1, 0, 0]]
    assert labels[1, 2] == -100  # the labels themselves stay as they are


def test_shift_right_of_no_tokens_gives_none():
    assert shift_right(torch.zeros(2, 0, dtype=torch.long), start_token_id=1, pad_token_id=0).shape == (2, 0)


def collapsed(path: tuple[int, ...]) -> list[int]:
    """What a path of tokens and blanks (0) spells: repeats made one, then blanks left out."""
    return [token for token, _ in itertools.groupby(path) if token != 0]


def test_ctc_loss_sums_over_all_paths_that_spell_the_label():
    logits = torch.randn(2, 4, 3) * 2
    labels = torch.tensor([[1, 1], [2, IGNORE_INDEX]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    expected = 0.0
    for row, places, spelled in ((0, 4, [1, 1]), (1, 3, [2])):
        probabilities = logits[row].double().softmax(dim=-1)
        paths = [path for path in itertools.product(range(3), repeat=places) if collapsed(path) == spelled]
        total = sum(math.prod(float(probabilities[at, token]) for at, token in enumerate(path)) for path in paths)
        expected -= math.log(total)
    assert ctc_loss(logits, labels, mask, blank_token_id=0).item() == pytest.approx(expected / 3, rel=1e-5)
    assert ctc_loss(logits, labels, mask, blank_token_id=0, num_items_in_batch=7).item() == pytest.approx(
        expected / 7, rel=1e-5
    )


def test_ctc_loss_of_a_label_without_room_counts_nothing():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([[1, 2, 1]]), blank_token_id=0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


TOKENS, WIDTH, VOCABULARY = 23, 6, 17


@pytest.fixture
def head_example():
    """A head with a bias, hidden states float (23, 6), and labels of which a third carry no loss."""
    torch.manual_seed(0)
    labels = torch.randint(VOCABULARY, (TOKENS,))
    labels[::3] = IGNORE_INDEX
    return nn.Linear(WIDTH, VOCABULARY), torch.randn(TOKENS, WIDTH) * 2, labels


def gradients_of(loss, tensors):
    return torch.autograd.grad(loss, tensors)


def assert_all_close(left, right, tolerance):
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 1000])
def test_chunked_loss_and_gradients_are_those_of_whole_logits(head_example, chunk_size, smoothing):
    head, hidden, labels = head_example
    hidden.requires_grad_()
    wanted = [hidden, *head.parameters()]
    settings = {"label_smoothing": smoothing, "num_items_in_batch": 7}
    whole = token_cross_entropy(head(hidden), labels, **settings)
    chunked = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=chunk_size, **settings)
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    assert_all_close(gradients_of(3 * chunked, wanted), gradients_of(3 * whole, wanted), 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_chunked_gradients_in_double_precision_are_exact(head_example, smoothing):
    head, hidden, labels = head_example
    head, hidden = head.double(), hidden.double().requires_grad_()
    wanted = [hidden, *head.parameters()]
    whole = F.cross_entropy(head(hidden), labels, label_smoothing=smoothing)
    chunked = chunked_token_cross_entropy(
        hidden, labels, head, [*head.parameters()], chunk_size=4, label_smoothing=smoothing
    )
    assert chunked.dtype == torch.float32
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    assert_all_close(gradients_of(chunked, wanted), gradients_of(whole, wanted), 1e-10)


def test_chunked_losses_of_parts_add_up_to_the_whole(head_example):
    head, hidden, labels = head_example
    whole = token_cross_entropy(head(hidden), labels)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    count = labels.ne(IGNORE_INDEX).sum()
    total = 0.0
    for part in torch.arange(TOKENS).split(10):
        loss = chunked_token_cross_entropy(
            hidden[part], labels[part], head, [*head.parameters()], chunk_size=4, num_items_in_batch=count
        )
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-6)
    assert_all_close([parameter.grad for parameter in head.parameters()], expected, 1e-6)


def test_chunked_loss_never_holds_the_logits_of_all_tokens(head_example):
    head, hidden, labels = head_example
    made, kept = [], []

    def watched(states):
        logits = head(states)
        made.append(logits.shape)
        kept.append(weakref.ref(logits))
        assert sum(reference() is not None for reference in kept) == 1  # those before are gone
        return logits

    loss = chunked_token_cross_entropy(hidden.requires_grad_(), labels, watched, [*head.parameters()], chunk_size=4)
    assert made == [(4, VOCABULARY)] * 3 + [(3, VOCABULARY)]  # the 15 tokens with a loss, once each
    assert not any(reference() is not None for reference in kept)
    loss.backward()
    assert len(made) == 4  # nothing is computed again


def test_chunked_loss_keeps_tensors_of_the_size_of_inputs_only(head_example):
    head, hidden, labels = head_example
    loss = chunked_token_cross_entropy(hidden.requires_grad_(), labels, head, [*head.parameters()], chunk_size=4)
    node = loss.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    assert [tuple(tensor.shape) for tensor in node.saved_tensors] == [
        (TOKENS, WIDTH),
        (VOCABULARY, WIDTH),
        (VOCABULARY,),
    ]


@pytest.mark.parametrize("was_used_without_gradients", [False, True])
def test_chunked_loss_under_autocast_is_that_of_whole_logits(head_example, was_used_without_gradients):
    head, hidden, labels = head_example
    hidden.requires_grad_()
    wanted = [hidden, *head.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = token_cross_entropy(head(hidden), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if was_used_without_gradients:
            with torch.no_grad():
                head(hidden)
        dtypes = []

        def watched(states):
            dtypes.append(head(states).dtype)
            return head(states)

        chunked = chunked_token_cross_entropy(hidden, labels, watched, [*head.parameters()], chunk_size=4)
    assert set(dtypes) == {torch.bfloat16}
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    gradients = gradients_of(chunked, wanted)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert_all_close(gradients, gradients_of(whole, wanted), 2e-3)


def test_chunked_loss_of_half_precision_logits_is_computed_in_single_precision(head_example):
    head, hidden, labels = head_example
    head, hidden = head.bfloat16(), hidden.bfloat16()
    chunked = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=4)
    torch.testing.assert_close(chunked, token_cross_entropy(head(hidden), labels), atol=1e-6, rtol=1e-6)


def test_chunked_gradients_of_half_precision_weights_add_up_in_single_precision():
    head = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(head.weight)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)  # each adds a half; in bf16 sums of halves stop at 128
    loss = chunked_token_cross_entropy(
        hidden, torch.zeros(1000, dtype=torch.long), head, [head.weight], chunk_size=1, num_items_in_batch=1
    )
    loss.backward()
    assert head.weight.grad.tolist() == [[-500.0], [500.0]]


def test_chunked_gradients_in_fp16_survive_a_large_number_of_items():
    head = nn.Linear(2, 3, bias=False, dtype=torch.float16)
    hidden = torch.randn(4, 2).half().requires_grad_()
    labels = torch.tensor([0, 1, 2, 1])
    scale, count = 2.0**16, 10**6  # as GradScaler does
    loss = chunked_token_cross_entropy(hidden, labels, head, [head.weight], num_items_in_batch=count)
    (gradient,) = gradients_of(loss * scale, [hidden])
    states = hidden.detach().float().requires_grad_()
    logits = states @ head.weight.detach().float().T
    (expected,) = gradients_of(token_cross_entropy(logits, labels, num_items_in_batch=count) * scale, [states])
    torch.testing.assert_close(gradient.float(), expected, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("frozen", ["head", "hidden", "bias"])
def test_chunked_loss_gives_gradients_only_to_what_learns(head_example, frozen):
    head, hidden, labels = head_example
    hidden.requires_grad_(frozen != "hidden")
    head.requires_grad_(frozen != "head")
    if frozen == "bias":
        head.bias.requires_grad_(False)
    wanted = [tensor for tensor in (hidden, *head.parameters()) if tensor.requires_grad]
    loss = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=4)
    assert_all_close(gradients_of(loss, wanted), gradients_of(token_cross_entropy(head(hidden), labels), wanted), 1e-6)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "all_frozen"])
def test_chunked_loss_without_gradients_makes_no_graph(head_example, how):
    head, hidden, labels = head_example
    expected = token_cross_entropy(head(hidden), labels).item()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, contextlib.nullcontext)
    if how == "all_frozen":
        head.requires_grad_(False)
    graphs = []

    def watched(states):
        graphs.append(head(states).requires_grad)
        return head(states)

    with context():
        loss = chunked_token_cross_entropy(hidden, labels, watched, [*head.parameters()], chunk_size=4)
    assert not loss.requires_grad and graphs == [False] * 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_chunked_loss_of_tied_weights_adds_to_the_embedding_s_gradient(head_example):
    _, _, labels = head_example
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    tokens = torch.arange(TOKENS) % VOCABULARY

    def head(states):
        return states @ embedding.weight.T

    expected = gradients_of(token_cross_entropy(head(embedding(tokens).tanh()), labels), [embedding.weight])
    loss = chunked_token_cross_entropy(embedding(tokens).tanh(), labels, head, [embedding.weight], chunk_size=4)
    assert_all_close(gradients_of(loss, [embedding.weight]), expected, 1e-6)


def test_chunked_loss_of_no_labels_is_zero_and_its_gradients_too(head_example):
    head, hidden, labels = head_example
    hidden.requires_grad_()
    loss = chunked_token_cross_entropy(hidden, torch.full_like(labels, IGNORE_INDEX), head, [*head.parameters()])
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    for tensor in (hidden, *head.parameters()):
        assert tensor.grad is not None and tensor.grad.eq(0).all()  # one at all: processes wait for each other's


def test_chunked_losses_of_one_head_add_up_and_go_back_twice(head_example):
    head, hidden, labels = head_example
    hidden.requires_grad_()
    wanted = [hidden, *head.parameters()]
    expected = gradients_of(3 * token_cross_entropy(head(hidden), labels), wanted)
    first = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=4)
    second = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=7)
    assert_all_close(gradients_of(first + 2 * second, wanted), expected, 1e-6)
    third = chunked_token_cross_entropy(hidden, labels, head, [*head.parameters()], chunk_size=4)
    once = torch.autograd.grad(third, wanted, retain_graph=True)
    assert_all_close(gradients_of(third, wanted), once, 0)


def test_chunked_loss_refuses_a_second_derivative(head_example):
    head, hidden, labels = head_example
    loss = chunked_token_cross_entropy(hidden.requires_grad_(), labels, head, [*head.parameters()])
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(loss * weight, [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_chunked_loss_names_a_weight_of_the_head_that_was_left_out(head_example):
    head, hidden, labels = head_example
    with pytest.raises(ValueError, match=r"got none of shape \(17,\). Add it"):
        chunked_token_cross_entropy(hidden.requires_grad_(), labels, head, [head.weight])
    head.bias.requires_grad_(False)
    chunked_token_cross_entropy(hidden, labels, head, [head.weight])


def test_chunked_loss_of_wrong_shapes_or_chunks_is_refused(head_example):
    head, hidden, labels = head_example
    with pytest.raises(ValueError, match=r"got \(23, 6\) and \(22,\). Flatten"):
        chunked_token_cross_entropy(hidden, labels[1:], head, [])
    with pytest.raises(ValueError, match="`chunk_size` must be 1 or more, got 0"):
        chunked_token_cross_entropy(hidden, labels, head, [], chunk_size=0)
