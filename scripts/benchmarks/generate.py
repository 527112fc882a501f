"""Pictures read a second: our TrOCR beside transformers' VisionEncoderDecoderModel, in turns in one run.

    python scripts/benchmarks/generate.py [--shape small] [--batches 1 8] [--json FILE]
    python scripts/benchmarks/generate.py --device cuda --dtype bfloat16 --shape base --batches 1 32 256 --beam-batches 32

Both hold the same random weights, read the same random pictures and write the same number of tokens, none of which ends the text.
`default` is plain `generate`; `eager` ours without recorded steps, on a GPU; `static` is `cache_implementation="static"`, which
transformers also compiles on a GPU. A row is a setting: the median over the rounds of pictures/s, and the ratio to each of the
peer's settings within a round, as median (least to most). The first call, which compiles or records, is timed by itself.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DeiTConfig, PreTrainedModel, TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

import hf_vlm
from hf_vlm import TrOCREncoderDecoderForConditionalGeneration

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {
            "image_size": 96,
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 768,
        },
        {"vocab_size": 1000, "d_model": 192, "decoder_layers": 4, "decoder_attention_heads": 3, "decoder_ffn_dim": 768},
    ),
    # trocr-base: Li et al. 2023, section 4.2 and microsoft/trocr-base-printed's config
    "base": (
        {"image_size": 384, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "qkv_bias": False},
        {"d_model": 1024, "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096},
    ),
}


def build_models(shape: str, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Ours and the peer, of equal random weights."""
    vision, text = SHAPES[shape]
    torch.manual_seed(0)
    decoder = TrOCRConfig(**text, cross_attention_hidden_size=vision["hidden_size"], dropout=0.0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(DeiTConfig(**vision), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 2
    peer = VisionEncoderDecoderModel(config)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder)
    for model in (ours, peer):
        model.to(device=device, dtype=dtype).eval()
    return ours, peer


def random_pictures(model: PreTrainedModel, batch: int) -> torch.Tensor:
    """Pixels that the peer's encoder takes, float (batch, 3, height, width)."""
    size = model.config.encoder.image_size
    return torch.randn(batch, 3, size, size, device=model.device, dtype=model.dtype)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(run: Callable[[], Any], clock: str) -> float:
    """What a call takes, until the device is done."""
    start = CLOCKS[clock]()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int, clock: str) -> dict[str, dict[str, Any]]:
    """Seconds of each call: the first, which may compile, and then one a round, all of them in turn."""
    results: dict[str, dict[str, Any]] = {
        name: {"first": seconds(run, clock), "rounds": []} for name, run in runs.items()
    }
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            results[name]["rounds"].append(seconds(run, clock))
    return results


def ratio(results: dict[str, dict[str, Any]], name: str, peer: str) -> tuple[float, float, float]:
    """How many times faster `name` is than `peer`: median, least and most over the rounds."""
    each = [other / own for own, other in zip(results[name]["rounds"], results[peer]["rounds"], strict=True)]
    return statistics.median(each), min(each), max(each)


def report(title: str, results: dict[str, dict[str, Any]], items: int, unit: str) -> dict[str, Any]:
    """Print a case and give what goes into the JSON file; names of our own settings begin with `hf-vlm`."""
    peers = [name for name in results if not name.startswith("hf-vlm")]
    print(f"\n{title}")
    print(f"  {'setting':24}{unit:>12}{'first call, s':>15}" + "".join(f"{'/ ' + peer:>30}" for peer in peers))
    rows = {}
    for name, times in results.items():
        rate = items / statistics.median(times["rounds"])
        ratios = {peer: ratio(results, name, peer) for peer in peers}
        rows[name] = {"rate": rate, "unit": unit, "first_call_s": times["first"], "ratio": ratios, "s": times["rounds"]}
        cells = [f"{middle:.2f} ({least:.2f} to {most:.2f})" for middle, least, most in ratios.values()]
        print(f"  {name:24}{rate:12.2f}{times['first']:15.2f}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
    return {"case": title, "results": rows}


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine and versions, printed too."""
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor()
    found = {
        "machine": f"{platform.machine()} {name}".strip(),
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "shape": arguments.shape,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_vlm": hf_vlm.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks take."""
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tokens", type=int, default=32, help="written a picture, default 32")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, default 7")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: seconds of this process, on a CPU that has other work too",
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="pictures at a time, greedy")
    parser.add_argument("--beam-batches", type=int, nargs="*", default=[1], help="pictures at a time, beam search")
    parser.add_argument("--beams", type=int, default=10)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")

    figures = {"environment": environment(arguments), "cases": []}
    ours, peer = build_models(arguments.shape, arguments.device, getattr(torch, arguments.dtype))
    for model in (ours, peer):
        model.generation_config.eos_token_id = model.generation_config.max_length = None
    for beams, batch in [(1, size) for size in arguments.batches] + [
        (arguments.beams, size) for size in arguments.beam_batches
    ]:
        pixels = random_pictures(peer, batch)

        def call(model: PreTrainedModel, pixels: torch.Tensor = pixels, beams: int = beams, **how: Any) -> Callable:
            settings = {"num_beams": beams, "max_new_tokens": arguments.tokens, **how}
            return lambda: model.generate(pixel_values=pixels, **settings)

        runs = {
            "transformers default": call(peer),
            "transformers static": call(peer, cache_implementation="static"),
            "hf-vlm default": call(ours),
            "hf-vlm static": call(ours, cache_implementation="static"),
        }
        if on_gpu and beams == 1:
            runs["hf-vlm eager"] = call(ours, disable_compile=True)
        search = "greedy" if beams == 1 else f"beam {beams}"
        case = f"{search}, batch {batch}, {arguments.tokens} tokens"
        figures["cases"].append(report(case, in_turns(runs, arguments.rounds, arguments.clock), batch, "pictures/s"))
        if arguments.dtype == "float32":
            print(f"  same tokens: {torch.equal(runs['hf-vlm default'](), runs['transformers default']())}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
