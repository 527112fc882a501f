"""Which codeword is the nearest: exactly, and without the table of all distances.

|x - e|^2 = |x|^2 - 2 (x e - |e|^2 / 2), so the nearest codeword has the lowest score |e|^2 / 2 - x e: one matrix product, done
tile by tile. Rounded products may put near codewords in the wrong order; every codeword whose score is within the rounding error
of the lowest stays a candidate. Nearly always there is one; where there are more, their distances are taken again, by differences
in fp64. So the result is that of a brute-force search in fp64, ties included (the lowest number wins), whatever precision the
products have.

    vectors (N, D), codewords (K, D) -> code_ids (N,)       memory: the inputs, one tile of scores, a few numbers a vector
"""

import torch
from torch.nn import functional as F

# Rows and columns of a tile of scores: on a CPU it stays in the cache, on a GPU it fills the device.
_TILES = {"cpu": (1024, 2048)}
_OTHER_TILES = (8192, 8192)
_LANES = 64  # scores are first compared within this many interleaved groups: reductions over rows of numbers are quick
_PAIR_VALUES = 2**22  # numbers in fp64 that are compared at once, when candidates are re-scored
# Of a product whose factors are cut to 10 or 7 bits each, as settings of the user allow.
_SHORT_ROUNDING = {"tf32": 2.0**-9, "bf16": 2.0**-6}


@torch.library.custom_op("hf_vlm::nearest_codeword", mutates_args=())
def _nearest_codeword(vectors: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    # One opaque step for torch.compile: how many candidates there are depends on the data.
    with torch.autocast(vectors.device.type, enabled=False):
        rows, columns = _TILES.get(vectors.device.type, _OTHER_TILES)
        half_squares = codewords.square().sum(1) / 2  # (K,)
        margins = _rounding_margin(vectors, codewords)  # (N, 1)
        num_codes = len(codewords)
        if padding := -num_codes % _LANES:
            codewords = F.pad(codewords, (0, 0, 0, padding))
            half_squares = F.pad(half_squares, (0, padding), value=torch.inf)
        code_ids = torch.cat(
            [
                _nearest_in_tiles(part, codewords, half_squares, margin, columns)
                for part, margin in zip(vectors.split(rows), margins.split(rows), strict=True)
            ]
        )
        return code_ids.clamp_(max=num_codes - 1)  # squares that overflow would choose the padding


@_nearest_codeword.register_fake
def _(vectors: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    return vectors.new_empty(vectors.shape[0], dtype=torch.int64)


def nearest_codeword(vectors: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    """The number of each vector's nearest codeword by Euclidean distance, in fp32 also under autocast.

    Args:
        vectors: float (N, code_dim).
        codewords: float (num_codes, code_dim).

    Returns: int64 (N,) in [0, num_codes); of equally near ones the lowest. No gradient.

    Raises:
        ValueError: if the two differ in `code_dim`, or there is no codeword.
    """
    if vectors.ndim != 2 or codewords.ndim != 2 or vectors.shape[1] != codewords.shape[1] or len(codewords) == 0:
        raise ValueError(
            "Vectors (N, code_dim) and codewords (num_codes, code_dim) are wanted, got "
            f"{tuple(vectors.shape)} and {tuple(codewords.shape)}. Put channels last, and flatten all other axes."
        )
    dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    # NaN is near to nothing, so a vector would have no candidate: it counts as 0, the loss shows it.
    vectors, codewords = (each.detach().to(dtype).nan_to_num(0.0, 0.0, 0.0) for each in (vectors, codewords))
    return _nearest_codeword(vectors.contiguous(), codewords.contiguous())


def _nearest_in_tiles(
    vectors: torch.Tensor, codewords: torch.Tensor, half_squares: torch.Tensor, margin: torch.Tensor, columns: int
) -> torch.Tensor:
    """The nearest codewords of a tile's rows: candidates by rounded scores, the final choice by exact distances."""
    best = torch.full_like(margin, torch.inf)  # (rows, 1)
    rows = codes = torch.empty(0, dtype=torch.int64, device=vectors.device)
    for start in range(0, len(codewords), columns):
        tile = codewords[start : start + columns]
        scores = torch.addmm(half_squares[start : start + columns], vectors, tile.T, alpha=-1)
        lanes = scores.view(len(vectors), len(tile) // _LANES, _LANES)  # (rows, columns / lanes, lanes)
        lowest = lanes.amin(1)  # (rows, lanes)
        best = torch.minimum(best, lowest.amin(1, keepdim=True))
        limit = best + margin
        row, lane = (lowest <= limit).nonzero(as_tuple=True)
        pair, place = (lanes[row, :, lane] <= limit[row]).nonzero(as_tuple=True)
        rows, codes = torch.cat((rows, row[pair])), torch.cat((codes, place * _LANES + lane[pair] + start))
        if len(rows) > 4 * len(vectors):  # many equal codewords: keep one a row, or the list would grow without bound
            present = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
            present[rows] = True
            codes = _exact_choice(vectors, codewords, rows, codes)[present]
            rows = present.nonzero().flatten()
    if len(rows) == len(vectors):  # every row has at least one
        return torch.empty_like(codes).scatter_(0, rows, codes)
    return _exact_choice(vectors, codewords, rows, codes)


def _rounding_margin(vectors: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
    """By how much two rounded scores of a row can be in the wrong order: (rows, 1).

    Source: the error of an inner product, Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    rounding = torch.finfo(vectors.dtype).eps / 2 * (vectors.shape[1] + 4)
    if vectors.dtype == torch.float32:
        backend = torch.backends.cuda if vectors.is_cuda else torch.backends.mkldnn
        rounding += _SHORT_ROUNDING.get(backend.matmul.fp32_precision, 0.0)
    longest = codewords.norm(dim=1).amax()
    return 2 * rounding * (vectors.norm(dim=1, keepdim=True) * longest + longest**2 / 2)


def _exact_choice(
    vectors: torch.Tensor, codewords: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """The nearest code of each row among candidate pairs (rows[i], codes[i]), by fp64 differences; K where there is none."""
    pairs = max(1, _PAIR_VALUES // vectors.shape[1])
    distances = torch.cat(
        [
            (vectors[row].double() - codewords[code].double()).square().sum(1)
            for row, code in zip(rows.split(pairs), codes.split(pairs), strict=True)
        ]
    )
    nearest = torch.full((len(vectors),), torch.inf, dtype=torch.float64, device=vectors.device)
    nearest.scatter_reduce_(0, rows, distances, "amin")
    is_nearest = distances == nearest[rows]
    choice = torch.full((len(vectors),), len(codewords), dtype=torch.int64, device=vectors.device)
    return choice.scatter_reduce_(0, rows[is_nearest], codes[is_nearest], "amin")
