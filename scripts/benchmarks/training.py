"""Lines trained on a second: our TrOCR beside transformers' VisionEncoderDecoderModel, in turns in one run.

    python scripts/benchmarks/training.py [--shape small] [--batch 8] [--compile] [--json FILE]
    python scripts/benchmarks/training.py --device cuda --dtype bfloat16 --shape base --batch 32 --compile

A step is forward, backward and AdamW on the same random pictures and labels, from the same random weights. `--dtype bfloat16`
trains under autocast, as the Trainer's `bf16=True`. With `--compile` both are measured compiled as well.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from generate import add_arguments, build_models, environment, in_turns, random_pictures, report
from transformers import PreTrainedModel


def training_step(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], dtype: torch.dtype, compiled: bool
) -> Callable:
    """A function that trains one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=batch["labels"].is_cuda)
    forward: Any = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(batch["labels"].device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="also compiled; takes minutes on a CPU")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    figures = {"environment": environment(arguments), "cases": []}
    runs = {}
    for setting in ("default", "compiled")[: 1 + arguments.compile]:
        ours, peer = build_models(arguments.shape, arguments.device, torch.float32)
        pixels = random_pictures(peer, arguments.batch)
        labels = torch.randint(
            3, peer.config.decoder.vocab_size, (arguments.batch, arguments.tokens), device=peer.device
        )
        batch = {"pixel_values": pixels, "labels": labels}
        for name, model in (("transformers", peer), ("hf-vlm", ours)):
            runs[f"{name} {setting}"] = training_step(model.train(), batch, dtype, setting == "compiled")
    case = f"training, batch {arguments.batch}, {arguments.tokens} tokens"
    figures["cases"].append(report(case, in_turns(runs, arguments.rounds, arguments.clock), arguments.batch, "lines/s"))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
