"""Time of one attention layer against the picture's area: quadratic over the whole picture (ViT), linear in windows (Swin).

    python scripts/benchmarks/attention_area.py [--out attention_area.png] [--hidden-size 64] [--window 7] [--sides 14 28 ...]

Prints, for maps of side x side patches, the operations of both layers by torch's counter, the seconds of a forward pass
(the least of the rounds: what the machine does when nothing else runs) and the exponent p of seconds ~ area^p from the map
before; then p fitted to all maps; and draws seconds against area. The counter counts a multiply and an add as two: it gives
twice 4hwC^2 + 2(hw)^2 C and 4hwC^2 + 2M^2 hwC, equations 1 and 2 of Liu et al. 2021.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from hf_vlm.blocks.attention import SelfAttention
from hf_vlm.models.swin.window_attention import WindowAttention


def seconds(layer: nn.Module, hidden_states: torch.Tensor, rounds: int, **arguments: object) -> float:
    """The least time of a forward pass."""
    times = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            start = time.perf_counter()
            layer(hidden_states, **arguments)
            if hidden_states.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Parse, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 42, 56, 70, 84, 112])
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--num-heads", type=int, default=2)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("attention_area.png"))
    arguments = parser.parse_args()

    width, window = arguments.hidden_size, arguments.window
    config = PreTrainedConfig(attn_implementation="eager")
    whole = SelfAttention(config, hidden_size=width, num_heads=arguments.num_heads)
    windows = WindowAttention(
        config, hidden_size=width, num_heads=arguments.num_heads, window=(window, window), is_shifted=True
    )
    layers = {"whole picture (ViT)": whole, f"shifted windows of {window} (Swin)": windows}
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in layers}
    print(f"{'side':>5}{'patches':>9}  {'layer':30}{'operations':>16}{'seconds':>12}{'exponent':>10}")
    for side in arguments.sides:
        hidden_states = torch.randn(1, side * side, width, device=arguments.device)
        for name, layer in layers.items():
            grid = {"grid": (side, side)} if layer is windows else {}
            layer.to(arguments.device).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                layer(hidden_states, **grid)
            area, time_taken = side * side, seconds(layer, hidden_states, arguments.rounds, **grid)
            exponent = ""
            if points[name]:
                area_before, time_before = points[name][-1]
                exponent = f"{math.log(time_taken / time_before) / math.log(area / area_before):.2f}"
            points[name].append((area, time_taken))
            operations = counter.get_total_flops()
            print(f"{side:>5}{area:>9}  {name:30}{operations:>16,}{time_taken:>12.6f}{exponent:>10}", flush=True)

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, of_layer in points.items():
        axes.loglog(*zip(*of_layer, strict=True), marker="o", label=name)
    first_area, last_area = arguments.sides[0] ** 2, arguments.sides[-1] ** 2
    for (name, of_layer), exponent in zip(points.items(), (2, 1), strict=True):
        areas, times = (torch.tensor(values, dtype=torch.float64).log() for values in zip(*of_layer, strict=True))
        slope = ((areas - areas.mean()) * (times - times.mean())).sum() / (areas - areas.mean()).square().sum()
        print(f"{name}: seconds ~ area^{slope:.2f} over all maps")
        last_time = of_layer[-1][1]
        guide = [last_time * (area / last_area) ** exponent for area in (first_area, last_area)]
        axes.loglog([first_area, last_area], guide, "--", color="gray", linewidth=0.8, label=f"~ area^{exponent}")
    axes.set(xlabel="patches of the map", ylabel="seconds of one attention layer")
    axes.legend()
    figure.savefig(arguments.out, dpi=120)
    print(f"drawn in {arguments.out}")


if __name__ == "__main__":
    main()
