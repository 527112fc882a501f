import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vlm.blocks import nearest_codeword as module
from hf_vlm.blocks.nearest_codeword import nearest_codeword


def brute_force(vectors: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    """In fp64, by differences; of equally near codewords numpy's argmin gives the first."""
    points, centres = vectors.detach().double().numpy(), codewords.detach().double().numpy()
    rows = [
        ((row[:, None] - centres) ** 2).sum(-1).argmin(-1) for row in np.array_split(points, len(points) // 100 + 1)
    ]
    return torch.from_numpy(np.concatenate(rows))


def clusters(num_codes: int, code_dim: int, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codewords in threes that differ by a few of fp32's last digits, and vectors close to them."""
    base = torch.randn(num_codes // 3, code_dim).repeat(3, 1) + offset
    ulp = torch.nextafter(base.abs(), torch.tensor(torch.inf)) - base.abs()
    codewords = base + ulp * torch.randint(-3, 4, base.shape)
    vectors = codewords[torch.randint(len(codewords), (400,))]
    return vectors + ulp[0] * torch.randint(-3, 4, vectors.shape), codewords


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements of any tensor made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("num_vectors", "num_codes", "code_dim"),
    [(7, 1, 3), (50, 2, 1), (130, 65, 16), (64, 64, 8), (1, 100, 5), (1100, 130, 6), (30, 4500, 4), (2100, 2200, 3)],
)
def test_codes_equal_brute_force(num_vectors: int, num_codes: int, code_dim: int) -> None:
    vectors, codewords = torch.randn(num_vectors, code_dim), torch.randn(num_codes, code_dim)
    code_ids = nearest_codeword(vectors, codewords)
    assert code_ids.dtype == torch.int64
    assert torch.equal(code_ids, brute_force(vectors, codewords))


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("code_dim", [2, 64])
def test_codes_equal_brute_force_when_codewords_differ_in_last_digits(offset: float, code_dim: int) -> None:
    vectors, codewords = clusters(300, code_dim, offset)
    by_products = (codewords.square().sum(1) / 2 - vectors @ codewords.T).argmin(1)
    wanted = brute_force(vectors, codewords)
    assert not torch.equal(by_products, wanted)  # rounded products do not tell these apart
    assert torch.equal(nearest_codeword(vectors, codewords), wanted)


@pytest.mark.parametrize("offset", [0, 1000])
def test_vectors_midway_between_two_codewords_go_to_the_lower_code(offset: int) -> None:
    places = torch.randperm(3000)  # of codeword k on a line
    codes = places.argsort()  # of each place
    wanted = torch.minimum(codes[:-1], codes[1:])
    vectors = (torch.arange(2999) + 0.5 + offset)[:, None]
    assert torch.equal(nearest_codeword(vectors, places[:, None].float() + offset), wanted)


@pytest.mark.parametrize(("first", "second"), [(1, 64), (63, 64), (3, 2500), (2047, 2048), (64, 4000)])
def test_of_equal_codewords_the_lowest_code_is_taken(first: int, second: int) -> None:
    vectors, codewords = torch.randn(1100, 6), torch.randn(4001, 6) + 5
    codewords[second] = codewords[first] = vectors.mean(0)
    code_ids = nearest_codeword(vectors, codewords)
    assert (code_ids == first).sum() > 500
    assert torch.equal(code_ids, brute_force(vectors, codewords))


def test_all_codewords_equal_gives_code_zero() -> None:
    assert not nearest_codeword(torch.randn(1500, 4), torch.randn(1, 4).expand(5000, 4)).any()


@pytest.mark.parametrize("num_codes", [1, 2500])
def test_no_vectors_give_no_codes(num_codes: int) -> None:
    code_ids = nearest_codeword(torch.empty(0, 3), torch.randn(num_codes, 3))
    assert code_ids.shape == (0,) and code_ids.dtype == torch.int64


def test_fp64_inputs_are_compared_in_fp64() -> None:
    codewords = 1 + torch.arange(100.0, dtype=torch.float64)[:, None] * 1e-12
    order = torch.randperm(100)
    assert torch.equal(nearest_codeword(codewords, codewords[order]), order.argsort())


def test_half_precision_inputs_are_compared_in_fp32() -> None:
    vectors, codewords = (300 * torch.randn(200, 8)).half(), (300 * torch.randn(150, 8)).half()  # squares overflow
    assert torch.equal(nearest_codeword(vectors, codewords), brute_force(vectors, codewords))


def test_autocast_gives_the_same_codes() -> None:
    vectors, codewords = torch.randn(500, 16), torch.randn(1000, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codeword(vectors, codewords), brute_force(vectors, codewords))


@pytest.mark.parametrize(("precision", "num_bits"), [("bf16", 7), ("tf32", 10)])
def test_products_of_shortened_factors_give_the_same_codes(
    precision: str, num_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processors cut fp32 factors, if the user allows it: here it is imitated."""

    def cut(factor: torch.Tensor) -> torch.Tensor:
        return (factor.view(torch.int32) & ~(2 ** (23 - num_bits) - 1)).view(torch.float32)

    def addmm(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, alpha: float) -> torch.Tensor:
        return bias + alpha * (cut(left.contiguous()) @ cut(right.contiguous()))

    codewords = torch.randn(200, 16).repeat(5, 1) + 1e-3 * torch.randn(1000, 16)
    vectors = codewords[:500] + 1e-2 * torch.randn(500, 16)
    wanted = brute_force(vectors, codewords)
    monkeypatch.setattr(module.torch, "addmm", addmm)
    assert not torch.equal(nearest_codeword(vectors, codewords), wanted)  # nobody told that factors are cut
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = precision
    try:
        assert torch.equal(nearest_codeword(vectors, codewords), wanted)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_compiled_gives_the_same_codes() -> None:
    vectors, codewords = clusters(150, 8, 0.0)
    compiled = torch.compile(lambda *inputs: nearest_codeword(*inputs) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(vectors, codewords), brute_force(vectors, codewords) + 1)


def test_meta_tensors_give_the_shape() -> None:
    code_ids = nearest_codeword(torch.empty(7, 3, device="meta"), torch.empty(5, 3, device="meta"))
    assert code_ids.device.type == "meta" and code_ids.shape == (7,) and code_ids.dtype == torch.int64


@pytest.mark.parametrize("is_equal", [False, True])
def test_no_table_of_all_distances_is_made(is_equal: bool) -> None:
    """However many vectors and codewords, the largest tensor is a tile, an input, or a share of the pairs to compare."""
    largest = []
    for num_vectors, num_codes in ((1024, 4224), (1024, 4224) if is_equal else (4096, 8192)):
        vectors = torch.randn(num_vectors, 4)
        codewords = torch.zeros(num_codes, 4) if is_equal else torch.randn(num_codes, 4)
        with LargestTensor() as seen:
            module._nearest_codeword._init_fn(vectors, codewords)  # what the operator hides from dispatch
        largest.append(seen.numel)
    assert 1024 * 2048 <= largest[0] == largest[1] < 1024 * 4224


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vector_that_is_no_number_gets_some_code_and_spoils_no_other(bad: float) -> None:
    codewords = torch.randn(100, 3)
    codewords[99] = codewords[98]  # a tie gives as many candidates more as the bad vector has less
    vectors = codewords[[5, 98, 7]].clone()
    vectors[0, 1] = bad
    code_ids = nearest_codeword(vectors, codewords)
    assert 0 <= code_ids[0] < 100
    assert code_ids[1:].tolist() == [98, 7]


def test_codewords_that_are_no_numbers_give_codes_in_range() -> None:
    code_ids = nearest_codeword(torch.randn(10, 3), torch.full((5, 3), torch.nan))
    assert ((code_ids >= 0) & (code_ids < 5)).all()


def test_codes_have_no_gradient_though_inputs_do() -> None:
    vectors, codewords = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    code_ids = nearest_codeword(vectors, codewords)
    assert not code_ids.requires_grad
    assert torch.equal(code_ids, brute_force(vectors, codewords))


@pytest.mark.parametrize(
    ("vectors", "codewords"), [((4, 3), (5, 2)), ((4, 3), (0, 3)), ((2, 4, 3), (5, 3)), ((3,), (5, 3)), ((4, 3), (3,))]
)
def test_shapes_that_do_not_fit_raise(vectors: tuple[int, ...], codewords: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, code_dim\) and codewords .* are wanted, got .*\. Put channels last"):
        nearest_codeword(torch.randn(vectors), torch.randn(codewords))
