"""The nearest codeword, and a step of training a codebook: ours beside torch.cdist and vector-quantize-pytorch, in turns.

    python scripts/benchmarks/codebooks.py [--cases 8192x512x64 ...] [--training] [--json FILE]
    python scripts/benchmarks/codebooks.py --device cuda --cases 262144x8192x256

A case is vectors x codewords x numbers of each. Vectors are codewords with noise, so that all are chosen. `hf-vlm` and
`torch.cdist` are the search alone; `hf-vlm codebook` and `vector-quantize-pytorch` also look the codewords up and measure losses.
Peak memory is what a run takes beside its inputs, measured in a process of its own: on a GPU by torch's counter, on a CPU by the
system's peak of the process's resident memory. `--training` takes a step of learning codewords as running means (forward, losses,
gradient of the latents, update), with dead codewords replaced, ours beside vector-quantize-pytorch with the same settings.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate import CLOCKS, environment, in_turns, report
from vector_quantize_pytorch import VectorQuantize

from hf_vlm.blocks.codebook import Codebook
from hf_vlm.blocks.nearest_codeword import nearest_codeword

CASES = ["8192x512x64", "8192x8192x256", "2048x65536x64"]
MEBIBYTE = 2**20


def data_of(case: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and codewords of a case."""
    num_vectors, num_codes, width = map(int, case.split("x"))
    generator = torch.Generator().manual_seed(0)
    codewords = torch.randn(num_codes, width, generator=generator)
    chosen = torch.randint(num_codes, (num_vectors,), generator=generator)
    vectors = codewords[chosen] + 0.5 * torch.randn(num_vectors, width, generator=generator)
    return vectors.to(device), codewords.to(device)


def searches(case: str, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to find the nearest codewords."""
    vectors, codewords = data_of(case, device)
    peer = VectorQuantize(dim=codewords.shape[1], codebook_size=len(codewords)).to(device).eval()
    peer._codebook.embed.copy_(codewords[None])

    @torch.no_grad()
    def by_peer() -> torch.Tensor:
        return peer(vectors[None])[1][0]

    ours = Codebook(*codewords.shape).to(device).eval()
    ours.codewords.copy_(codewords)
    return {
        "torch.cdist": lambda: torch.cdist(vectors, codewords).argmin(1),
        "vector-quantize-pytorch": by_peer,
        "hf-vlm": lambda: nearest_codeword(vectors, codewords),
        "hf-vlm codebook": torch.no_grad()(lambda: ours(vectors).code_ids),
    }


def training_steps(case: str, device: str) -> dict[str, Callable[[], Any]]:
    """A step of learning a codebook, both ways."""
    vectors, codewords = data_of(case, device)
    ours = Codebook(*codewords.shape, decay=0.99, kmeans_iterations=0).to(device).train()
    peer = VectorQuantize(
        dim=codewords.shape[1],
        codebook_size=len(codewords),
        decay=0.99,
        threshold_ema_dead_code=2,
        rotation_trick=False,
    )
    peer = peer.to(device).train()
    with torch.no_grad():
        ours.codewords.copy_(codewords)
        peer._codebook.embed.copy_(codewords[None])
    latents = vectors[None].requires_grad_()

    def by_ours() -> None:
        found = ours(latents)
        (found.quantized.mean() + found.commitment_loss).backward()

    def by_peer() -> None:
        quantized, _, loss = peer(latents)
        (quantized.mean() + loss.sum()).backward()

    return {"vector-quantize-pytorch": by_peer, "hf-vlm": by_ours}


def peak_of(case: str, name: str, device: str) -> float:
    """MiB that a search takes beside its inputs, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--cases", case, "--device", device]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-1])


def print_peak(case: str, name: str, device: str) -> None:
    """Runs a search once more than to warm up, and prints what `peak_of` reads."""
    search = searches(case, device)[name]
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        search()
        print((torch.cuda.max_memory_allocated() - before) / MEBIBYTE)
        return
    searches("64x64x8", device)[name]()  # libraries take their own share at first use
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory starts anew
    before = peak_of_this_process()
    search()
    print(peak_of_this_process() - before)


def peak_of_this_process() -> float:
    """MiB of resident memory at most so far; of Linux."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", dest="shape", default=CASES, metavar="NxKxD")
    parser.add_argument("--training", action="store_true", help="a step of learning instead of the search alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, default 7")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--peak", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    arguments.dtype = "float32"
    if arguments.peak:
        print_peak(arguments.shape[0], arguments.peak, arguments.device)
        return

    figures: dict[str, Any] = {"environment": environment(arguments), "cases": []}
    for case in arguments.shape:
        runs = (training_steps if arguments.training else searches)(case, arguments.device)
        number = int(case.split("x")[0])
        results = in_turns(runs, arguments.rounds, arguments.clock)
        what = "a step of learning" if arguments.training else "nearest codeword"
        figures["cases"].append(report(f"{case}, {what}", results, number, "vectors/s"))
        if not arguments.training:
            peaks = {name: round(peak_of(case, name, arguments.device), 1) for name in runs}
            figures["cases"][-1]["peak_mib"] = peaks
            print("  peak beside the inputs, MiB:", ", ".join(f"{name} {peak}" for name, peak in peaks.items()))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
