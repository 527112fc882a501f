"""Latent vectors -> codewords: the vector quantisation of VQ-VAE, with what keeps all codewords in use.

    latents (..., code_dim) -> code_ids (...) of the nearest codewords -> codewords (..., code_dim), gradients straight through

The codewords are learnt in one of two ways: `loss`, by the codebook loss, or `ema`, as the running mean of the vectors that
chose them (paper, appendix A.1):

    N <- decay N + (1 - decay) n,   m <- decay m + (1 - decay) sum of vectors,   e = m / N      N smoothed towards an even share

What keeps a codebook from collapsing to a few codewords: it starts from k-means over the first training batch, and a codeword
that hardly any vector chooses is put on a vector of the batch, its running mean started anew. Counts, sums and draws are those of
all processes: codebooks are the same on each, and what one process would learn from their batches put together.

Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; Razavi et al. 2019, https://arxiv.org/abs/1906.00446
    (smoothing); Dhariwal et al. 2020, https://arxiv.org/abs/2005.00341, section 3.1 (restarting unused codewords)
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import distributed, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .nearest_codeword import nearest_codeword
from .processes import draw_rows, is_distributed, of_first_process, spread_over_processes, sum_over_processes
from .straight_through import straight_through
from .weight_placement import set_weight, with_weights

CodebookUpdate = Literal["loss", "ema"]


@dataclasses.dataclass(frozen=True)
class DiscreteLatents:
    """Latent vectors replaced by the nearest of finitely many.

    Attributes:
        quantized: float (..., code_dim), the codewords; gradients go straight through to the latents.
        code_ids: int64 (...), which ones.
        codebook_loss, commitment_loss: fp32 scalars, mean squares over all latent values: what draws codewords to latents
            (0 where no gradient does that), and latents to their codewords.
    """

    quantized: torch.Tensor
    code_ids: torch.Tensor
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor


class Codebook(nn.Module):
    """A learnt set of `num_codes` vectors of `code_dim` numbers.

    Args:
        num_codes, code_dim: number and width of codewords.
        update: how they are learnt.
        decay: of the running counts and sums, in [0, 1), a forward pass in training.
        smoothing: added to every running count in the mean, Laplace's; above 0.
        revive_below: a codeword is put on a vector of the batch where its running count falls below this share of an even
            one; 0 for never.
        kmeans_iterations: of the start from the first training batch; 0 for a start from random codewords.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        update: CodebookUpdate = "ema",
        decay: float = 0.99,
        smoothing: float = 1e-5,
        revive_below: float = 0.03,
        kmeans_iterations: int = 10,
    ) -> None:
        super().__init__()
        self.num_codes, self.code_dim, self.update_by = num_codes, code_dim, update
        self.decay, self.smoothing, self.revive_below = decay, smoothing, revive_below
        self.kmeans_iterations = kmeans_iterations
        self.counts: torch.Tensor
        self.sums: torch.Tensor
        self.is_started: torch.Tensor
        codewords = torch.empty(num_codes, code_dim, dtype=torch.float32)  # in a half-precision model too
        if update == "loss":
            self.codewords = nn.Parameter(codewords)
        else:
            self.register_buffer("codewords", codewords)
            self.register_buffer("sums", torch.empty_like(codewords))
        self.register_buffer("counts", torch.empty(num_codes, dtype=torch.float32))
        self.register_buffer("is_started", torch.tensor(False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random codewords, uniform in (-1/num_codes, 1/num_codes), of even use."""
        init.uniform_(self.codewords, -1 / self.num_codes, 1 / self.num_codes)
        init.ones_(self.counts)
        init.zeros_(self.is_started)
        if self.update_by == "ema":
            init.copy_(self.sums, self.codewords)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Codebook":
        """Follows the model to a device, not to another precision: running means need fp32's digits."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(moved, recurse)

    def forward(self, latents: torch.Tensor, *, is_learning: bool | None = None) -> DiscreteLatents:
        """Replace each latent vector by its nearest codeword.

        Args:
            latents: float (..., code_dim), channels last.
            is_learning: whether counts, and codewords learnt by `ema`, follow this batch; by default in training mode.

        Raises:
            ValueError: if the last axis is not `code_dim` (flattening would mix places with channels), or, learning on a
                CPU, a latent is infinite or not a number.
        """
        if latents.shape[-1] != self.code_dim:
            raise ValueError(
                f"`latents` must be channels-last with {self.code_dim} channels, got shape {tuple(latents.shape)}. Move the "
                "channel axis last with `latents.movedim(1, -1)`."
            )
        is_learning = self.training if is_learning is None else is_learning
        with maybe_autocast(latents.device.type, enabled=False):
            latents = latents.float()
            vectors = latents.detach().flatten(0, -2)  # (N, code_dim)
            if is_learning:
                self._start(vectors)
            code_ids = nearest_codeword(vectors, self.codewords)  # (N,); van den Oord eq. 1
            codewords = F.embedding(code_ids.view(latents.shape[:-1]), self.codewords.float())  # van den Oord eq. 2
            codebook_loss = F.mse_loss(codewords, latents.detach())  # 0 gradient where codewords are a buffer
            commitment_loss = F.mse_loss(latents, codewords.detach())  # van den Oord eq. 3, this and the line above
            if is_learning:
                self._learn(vectors, code_ids)
        return DiscreteLatents(
            quantized=straight_through(codewords, gradient_to=latents),
            code_ids=code_ids.view(latents.shape[:-1]),
            codebook_loss=codebook_loss if self.update_by == "loss" else torch.zeros_like(codebook_loss),
            commitment_loss=commitment_loss,
        )

    def lookup(self, code_ids: torch.Tensor) -> torch.Tensor:
        """The codewords of these numbers, float (..., code_dim); `code_ids` int64 (...) in [0, num_codes)."""
        return with_weights(self, lambda ids: F.embedding(ids, self.codewords), code_ids)

    @torch.no_grad()
    def _start(self, vectors: torch.Tensor) -> None:
        """On the first training batch: codewords by k-means over it."""
        if self.kmeans_iterations == 0 or bool(self.is_started):
            return
        _check_finite(vectors)
        centres = _draw(vectors, self.num_codes)
        for iteration in range(self.kmeans_iterations):
            sums, counts = self._totals(vectors, nearest_codeword(vectors, centres))
            means = sums / counts.clamp(min=1)[:, None]
            if iteration < self.kmeans_iterations - 1:  # a centre without vectors moves to one, but not at last
                means = torch.where(counts[:, None] > 0, means, _draw(vectors, self.num_codes))
                centres = means
            else:
                centres = torch.where(counts[:, None] > 0, means, centres)
        set_weight(self, "codewords", centres)
        self.counts.copy_(counts)
        if self.update_by == "ema":
            self.sums.copy_(centres * counts[:, None])
        self.is_started.fill_(True)

    @torch.no_grad()
    def _learn(self, vectors: torch.Tensor, code_ids: torch.Tensor) -> None:
        """Counts, running means and revived codewords after a batch."""
        is_finite = _check_finite(vectors)
        sums, counts = self._totals(vectors, code_ids)
        # van den Oord eq. 6 to 8
        self.counts.lerp_(torch.where(is_finite, counts, self.counts), 1 - self.decay)
        if self.update_by == "ema":
            self.sums.lerp_(torch.where(is_finite, sums, self.sums), 1 - self.decay)
            total = self.counts.sum()
            smoothed = (self.counts + self.smoothing) / (total + self.num_codes * self.smoothing) * total
            is_used = (self.counts > 0)[:, None]  # a codeword that no vector ever chose stays where it is
            self.codewords.copy_(torch.where(is_used, self.sums / smoothed[:, None], self.codewords))
        if self.revive_below > 0:
            self._revive(vectors, is_finite)

    def _revive(self, vectors: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Puts codewords that hardly any vector chooses on vectors of the batch, with an even share as their count."""
        even = self.counts.mean()
        is_dead = (self.counts < self.revive_below * even) & is_finite
        drawn = _draw(vectors, self.num_codes)
        self.counts.copy_(torch.where(is_dead, even, self.counts))
        is_dead = is_dead[:, None]
        set_weight(self, "codewords", drawn, where=is_dead)
        if self.update_by == "ema":
            self.sums.copy_(torch.where(is_dead, drawn * even, self.sums))

    def _totals(self, vectors: torch.Tensor, code_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum, (num_codes, code_dim), and number, (num_codes,), of the vectors of each code, over all processes."""
        sums = vectors.new_zeros(self.num_codes, self.code_dim).index_add_(0, code_ids, vectors)
        return sum_over_processes(sums), sum_over_processes(code_counts(code_ids, self.num_codes))


def code_counts(code_ids: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each code occurs: fp32 (num_codes,).

    Args:
        code_ids: int64, any shape, in [0, num_codes).
    """
    flat = code_ids.flatten()
    return torch.zeros(num_codes, device=flat.device).index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))


def codebook_perplexity(counts: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of the codes, a scalar in [1, num_codes]: how many would be in use, were all used evenly.

    Args:
        counts: float (num_codes,), as from `code_counts`.
    """
    shares = counts / counts.sum()
    return (-torch.xlogy(shares, shares).sum()).exp()


def check_code_ids(code_ids: torch.Tensor, num_codes: int) -> None:
    """Checks that codes can be decoded.

    Args:
        code_ids: what should be int (batch, rows, columns) in [0, num_codes). The range is checked on CPUs only.

    Raises:
        TypeError: if it is no tensor of whole numbers.
        ValueError: if shape or range are others.
    """
    if not isinstance(code_ids, torch.Tensor) or code_ids.is_floating_point() or code_ids.dtype == torch.bool:
        got = code_ids.dtype if isinstance(code_ids, torch.Tensor) else type(code_ids).__name__
        raise TypeError(f"`code_ids` must be a tensor of whole numbers, got {got}. Take them from `encode`.")
    if code_ids.ndim != 3 or code_ids.numel() == 0:
        raise ValueError(f"`code_ids` must be (batch, rows, columns), got {tuple(code_ids.shape)}. Reshape them.")
    if code_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = code_ids.long().aminmax()
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"`code_ids` must be in [0, {num_codes}), got {int(low)} to {int(high)}. Were they made by another tokenizer?"
        )


def _draw(vectors: torch.Tensor, number: int) -> torch.Tensor:
    """Vectors of the batches of all processes, see `draw_rows`; where there are too few, again with a little noise."""
    drawn, is_enough = draw_rows(vectors, number)
    if is_enough:
        return drawn
    return drawn + 0.01 * spread_over_processes(vectors) * of_first_process(torch.randn_like(drawn))


def _check_finite(vectors: torch.Tensor) -> torch.Tensor:
    """Whether the vectors of all processes are finite, a bool scalar: running means never recover from a NaN.

    Raises:
        ValueError: if not, on CPUs; elsewhere the host would have to wait, and such a batch is left out.
    """
    is_finite = vectors.isfinite().all()
    if is_distributed():
        number = is_finite.float()
        distributed.all_reduce(number, op=distributed.ReduceOp.MIN)
        is_finite = number > 0
    if vectors.device.type == "cpu" and not torch.compiler.is_compiling() and not is_finite:
        raise ValueError(
            "Latents must be finite numbers to learn codewords from, got NaN or infinity. Lower the learning rate, or train "
            "in bf16 in place of fp16; the codebook is as it was before this batch."
        )
    return is_finite
