"""Oracles: the definition of cross-entropy written out, and literal token lists."""

import itertools
import math

import pytest
import torch

from hf_vlm.blocks.token_loss import IGNORE_INDEX, ctc_loss, shift_right, token_cross_entropy


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
