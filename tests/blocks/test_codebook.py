import math

import numpy as np
import pytest
import torch

from hf_vlm.blocks.codebook import Codebook, CodebookUpdate, check_code_ids, code_counts, codebook_perplexity

BOTH = pytest.mark.parametrize("update", ["loss", "ema"])


def codebook_at(codewords: torch.Tensor, update: CodebookUpdate = "ema", **settings: float) -> Codebook:
    """A codebook with these codewords, each with a count of one; neither k-means nor revival unless asked for."""
    codebook = Codebook(*codewords.shape, update=update, **({"kmeans_iterations": 0, "revive_below": 0} | settings))
    with torch.no_grad():
        codebook.codewords.copy_(codewords)
        if update == "ema":
            codebook.sums.copy_(codewords)
    return codebook


def state(codebook: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in codebook.state_dict().items()}


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@BOTH
def test_code_ids_match_brute_force_nearest_codeword(update: CodebookUpdate) -> None:
    codebook = codebook_at(torch.randn(37, 4), update).eval()
    latents = torch.randn(2, 5, 6, 4)
    discrete = codebook(latents)
    distances = (latents.double()[..., None, :] - codebook.codewords.double()).square().sum(-1)
    assert torch.equal(discrete.code_ids, distances.argmin(-1))
    assert torch.equal(discrete.quantized, codebook.codewords[discrete.code_ids])
    assert torch.equal(codebook.lookup(discrete.code_ids), discrete.quantized)


@BOTH
def test_gradient_of_quantized_reaches_latents_unchanged(update: CodebookUpdate) -> None:
    codebook = codebook_at(torch.randn(9, 3), update)
    latents, gradient = torch.randn(4, 5, 3, requires_grad=True), torch.randn(4, 5, 3)
    codebook(latents).quantized.backward(gradient)
    assert torch.equal(latents.grad, gradient)
    assert codebook.codewords.grad is None


@BOTH
def test_losses_move_codewords_only_and_latents_only(update: CodebookUpdate) -> None:
    codebook = codebook_at(torch.randn(9, 3), update).eval()
    latents = torch.randn(20, 3, requires_grad=True)
    discrete = codebook(latents)
    difference = (codebook.codewords[discrete.code_ids] - latents).detach()
    torch.testing.assert_close(discrete.commitment_loss, difference.square().mean())
    discrete.commitment_loss.backward()
    torch.testing.assert_close(latents.grad, -2 * difference / 60)
    assert codebook.codewords.grad is None
    if update == "ema":
        assert discrete.codebook_loss == 0 and not discrete.codebook_loss.requires_grad
        return
    torch.testing.assert_close(discrete.codebook_loss, difference.square().mean())
    latents.grad = None
    discrete.codebook_loss.backward()
    wanted = torch.zeros(9, 3).index_add_(0, discrete.code_ids, 2 * difference / 60)
    torch.testing.assert_close(codebook.codewords.grad, wanted)
    assert latents.grad is None


def test_ema_update_equals_the_recursion_of_the_paper() -> None:
    decay, smoothing = 0.8, 0.3
    codebook = codebook_at(torch.randn(6, 3), decay=decay, smoothing=smoothing)
    codewords = codebook.codewords.double().numpy().copy()
    counts, sums = np.ones(6), codewords.copy()
    for _ in range(3):
        latents = torch.randn(2, 20, 3)
        quantized = codebook(latents).quantized
        vectors = latents.double().numpy().reshape(-1, 3)
        codes = ((vectors[:, None] - codewords) ** 2).sum(-1).argmin(-1)
        np.testing.assert_allclose(quantized.numpy().reshape(-1, 3), codewords[codes], rtol=1e-4, atol=1e-5)
        for code in range(6):
            chosen = vectors[codes == code]
            counts[code] = decay * counts[code] + (1 - decay) * len(chosen)
            sums[code] = decay * sums[code] + (1 - decay) * chosen.sum(0)
        total = counts.sum()
        codewords = sums / ((counts + smoothing) / (total + 6 * smoothing) * total)[:, None]
        np.testing.assert_allclose(codebook.codewords.numpy(), codewords, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(codebook.counts.numpy(), counts, rtol=1e-5)


def blobs(centres: torch.Tensor, size: int = 50) -> torch.Tensor:
    """Vectors close around each centre."""
    return (centres + 0.01 * torch.randn(size, *centres.shape)).flatten(0, 1)


@BOTH
def test_kmeans_start_finds_well_separated_clusters(update: CodebookUpdate) -> None:
    centres = torch.tensor([[10.0, 0.0], [-10.0, 3.0]])
    latents = blobs(centres)
    codebook = Codebook(2, 2, update=update)
    assert not codebook.is_started
    discrete = codebook(latents)
    assert codebook.is_started
    means = latents.view(50, 2, 2).mean(0)
    torch.testing.assert_close(codebook.codewords.detach()[codebook.codewords[:, 0].argsort(descending=True)], means)
    assert discrete.commitment_loss < 1e-3  # the first batch already sees them
    torch.testing.assert_close(codebook.counts, torch.tensor([50.0, 50.0]))
    if update == "ema":
        torch.testing.assert_close(codebook.sums, codebook.codewords * 50)


def test_kmeans_start_leaves_no_cluster_without_a_codeword_and_no_codeword_without_one() -> None:
    points = 20 * torch.randn(5, 4)  # each many times, so that most of the first centres are equal
    codebook = Codebook(12, 4, update="loss", revive_below=0)
    assert codebook(points.repeat(50, 1)).commitment_loss < 1e-6
    distances = torch.cdist(codebook.codewords, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 1e-3


@BOTH
def test_kmeans_start_is_not_repeated(update: CodebookUpdate) -> None:
    codebook = Codebook(4, 2, update=update, revive_below=0, decay=0.99)
    codebook(torch.randn(50, 2))
    before = codebook.codewords.detach().clone()
    codebook(torch.randn(50, 2) + 5)
    moved = (codebook.codewords - before).norm(dim=1)
    assert moved.max() < 1  # a second start would move them by 5


@BOTH
def test_dead_codeword_revives_on_a_vector_of_the_batch_and_stays(update: CodebookUpdate) -> None:
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    far = torch.tensor([[900.0, 900.0]])
    codebook = codebook_at(torch.cat((centres, far)), update, decay=0.5, revive_below=0.1)
    latents = blobs(centres, size=30)
    codebook(latents)
    revived = codebook.codewords[3].detach().clone()
    assert (latents == revived).all(1).any()
    torch.testing.assert_close(codebook.codewords.detach()[:3], centres, rtol=0, atol=0.01)
    # 15.5 for each of three codewords in use, 0.5 for the dead one
    torch.testing.assert_close(codebook.counts, torch.tensor([15.5, 15.5, 15.5, (3 * 15.5 + 0.5) / 4]))
    if update == "ema":
        torch.testing.assert_close(codebook.sums[3], revived * codebook.counts[3])
    codebook(latents)
    assert (codebook.codewords[3] - revived).norm() < 0.1  # a kept sum would pull it back to where it was


def test_revival_can_be_switched_off() -> None:
    codebook = codebook_at(torch.tensor([[0.0], [900.0]]), decay=0.5, revive_below=0)
    for _ in range(3):
        codebook(torch.randn(40, 1))
    assert codebook.codewords[1] > 800


@BOTH
@pytest.mark.parametrize("kmeans_iterations", [0, 3])
def test_nothing_is_learnt_in_evaluation_or_on_request(update: CodebookUpdate, kmeans_iterations: int) -> None:
    codebook = Codebook(8, 2, update=update, kmeans_iterations=kmeans_iterations)
    before, latents = state(codebook), torch.randn(30, 2)
    codebook(latents, is_learning=False)
    assert_same_state(state(codebook), before)
    codebook.eval()(latents)
    assert_same_state(state(codebook), before)
    codebook(latents, is_learning=True)
    assert not torch.equal(codebook.counts, before["counts"])


@BOTH
@pytest.mark.parametrize("num_steps_before", [0, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_no_numbers_raise_and_change_nothing(
    update: CodebookUpdate, num_steps_before: int, bad: float
) -> None:
    codebook = Codebook(8, 2, update=update)
    for _ in range(num_steps_before):
        codebook(torch.randn(30, 2))
    before, latents = state(codebook), torch.randn(30, 2)
    latents[7, 1] = bad
    with pytest.raises(ValueError, match="Latents must be finite numbers .*, got NaN or infinity. Lower"):
        codebook(latents)
    assert_same_state(state(codebook), before)


@BOTH
@pytest.mark.parametrize(("num_vectors", "num_codes"), [(5, 20), (1, 20), (30, 1), (1, 1)])
def test_any_number_of_vectors_and_codes_can_be_learnt(
    update: CodebookUpdate, num_vectors: int, num_codes: int
) -> None:
    codebook = Codebook(num_codes, 3, update=update)
    latents = torch.randn(num_vectors, 3)
    for _ in range(3):
        discrete = codebook(latents)
    assert all(value.isfinite().all() for value in codebook.state_dict().values())
    if num_vectors <= num_codes:
        assert discrete.commitment_loss < 1e-2  # a codeword for each
    else:
        torch.testing.assert_close(codebook.codewords.detach()[0], latents.mean(0))


@BOTH
def test_saved_codebook_continues_exactly(update: CodebookUpdate) -> None:
    codebook, batches = Codebook(8, 3, update=update, decay=0.5, revive_below=0.3), torch.randn(5, 30, 3)
    for batch in batches[:2]:
        codebook(batch)
    other = Codebook(8, 3, update=update, decay=0.5, revive_below=0.3)
    other.load_state_dict(state(codebook))
    for each in (codebook, other):
        torch.manual_seed(1)  # of the draws of revival
        for batch in batches[2:]:
            each(batch)
    assert_same_state(state(codebook), state(other))


@BOTH
def test_half_precision_latents_are_learnt_from_in_fp32(update: CodebookUpdate) -> None:
    codebook, other = (codebook_at(torch.arange(24.0).view(8, 3), update, decay=0.7) for _ in range(2))
    latents = 10 * torch.randn(100, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        discrete = codebook(latents)
    wanted = other(latents.float())
    assert discrete.quantized.dtype == discrete.commitment_loss.dtype == torch.float32
    assert torch.equal(discrete.code_ids, wanted.code_ids)
    assert torch.equal(discrete.commitment_loss, wanted.commitment_loss)
    assert_same_state(state(codebook), state(other))


@BOTH
def test_codewords_stay_in_fp32_when_the_model_goes_to_half_precision(update: CodebookUpdate) -> None:
    codebook = Codebook(8, 3, update=update)
    before = state(codebook)
    assert_same_state(state(codebook.to(torch.bfloat16)), before)
    assert_same_state(state(codebook.half()), before)
    assert {value.device.type for value in codebook.to("meta", torch.bfloat16).state_dict().values()} == {"meta"}
    assert codebook.codewords.dtype == torch.float32


def test_channels_first_latents_raise() -> None:
    with pytest.raises(ValueError, match=r"channels-last with 3 channels, got shape \(2, 3, 5, 5\)\. Move"):
        Codebook(8, 3)(torch.randn(2, 3, 5, 5))


def test_counts_and_perplexity_by_hand() -> None:
    counts = code_counts(torch.tensor([[3, 0], [3, 1]]), 5)
    assert counts.tolist() == [1, 1, 0, 2, 0]
    torch.testing.assert_close(codebook_perplexity(counts), torch.tensor(2 * math.sqrt(2)))  # of 1/4, 1/4, 1/2
    torch.testing.assert_close(codebook_perplexity(torch.tensor([0.0, 7.0, 0.0])), torch.tensor(1.0))
    torch.testing.assert_close(codebook_perplexity(torch.full((512,), 3.0)), torch.tensor(512.0))


@pytest.mark.parametrize(
    ("code_ids", "error", "message"),
    [
        ([[[0]]], TypeError, r"must be a tensor of whole numbers, got list\. Take"),
        (torch.zeros(1, 2, 2), TypeError, r"must be a tensor of whole numbers, got torch\.float32\. Take"),
        (torch.ones(1, 2, 2, dtype=torch.bool), TypeError, r"whole numbers, got torch\.bool\. Take"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"must be \(batch, rows, columns\), got \(2, 2\)\. Reshape"),
        (torch.zeros(0, 2, 2, dtype=torch.int64), ValueError, r"got \(0, 2, 2\)\. Reshape"),
        (torch.tensor([[[0, 8]]]), ValueError, r"must be in \[0, 8\), got 0 to 8\. Were"),
        (torch.tensor([[[-1, 7]]]), ValueError, r"must be in \[0, 8\), got -1 to 7\. Were"),
    ],
)
def test_codes_that_cannot_be_decoded_raise(code_ids: object, error: type[Exception], message: str) -> None:
    check_code_ids(torch.tensor([[[0, 7]]], dtype=torch.int32), 8)
    with pytest.raises(error, match=message):
        check_code_ids(code_ids, 8)


def test_codeword_that_no_vector_ever_chose_stays_where_it_is():
    codebook = Codebook(3, 2, revive_below=0.0, kmeans_iterations=0, decay=0.5).train()
    with torch.no_grad():
        codebook.codewords.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]))
        codebook.sums.copy_(codebook.codewords)
        codebook.counts[2] = 0.0
        codebook.sums[2] = 0.0
    codebook(torch.tensor([[0.1, 0.0], [1.0, 0.9]]))
    assert codebook.codewords[2].tolist() == [9.0, 9.0]
