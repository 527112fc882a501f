"""Memory and speed of making instruction data by rules, over many contexts.

    python scripts/benchmarks/make_data.py OUT [--contexts 1000000] [--kinds conversation] [--every 100000]

Contexts are drawn by chance and written to OUT/contexts.jsonl first; the run is `hf-vlm make-data` with `--teacher rules`.
Printed while it runs: how many contexts are done, the resident memory of the process in MiB, and contexts/s; at the end, its
peak. The memory of a run that keeps nothing grows by nothing but what the system's allocator holds back.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path

from hf_vlm.data.instructions.rule_teacher import RuleTeacher
from hf_vlm.data.instructions.teachers import KINDS
from hf_vlm.data.instructions.visual_instructions import InstructionReport, make_instructions

CATEGORIES = ("dog", "cat", "person", "car", "bicycle", "bird", "chair", "cup", "horse", "umbrella")
PAGE_MIB = resource.getpagesize() / 2**20


def write_contexts(file: Path, number: int) -> None:
    """One to five boxes each, and a caption that does not speak of them."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for index in range(number):
            instances = []
            for _ in range(draw.randint(1, 5)):
                left, top = draw.uniform(0, 0.7), draw.uniform(0, 0.7)
                box = [left, top, left + draw.uniform(0.1, 0.3), top + draw.uniform(0.1, 0.3)]
                instances.append({"category": draw.choice(CATEGORIES), "bbox": [round(side, 3) for side in box]})
            row = {
                "id": f"{index:09}",
                "image": f"{index:09}.jpg",
                "captions": ["Seen on a bright day."],
                "instances": instances,
            }
            stream.write(json.dumps(row) + "\n")


def resident_mib() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MIB


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--contexts", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["conversation"])
    parser.add_argument("--every", type=int, default=100_000, help="contexts between two lines, default 100000")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "contexts.jsonl"
    write_contexts(file, options.contexts)
    start, told = time.monotonic(), 0
    print(f"{'contexts':>10}{'resident, MiB':>16}{'contexts/s':>12}")

    def progress(done: int, total: int, report: InstructionReport) -> None:
        nonlocal told
        number = done // len(options.kinds)
        if number - told >= options.every or done == total or not told:
            told = number
            print(f"{number:10}{resident_mib():16.1f}{number / (time.monotonic() - start):12.1f}", flush=True)

    report = make_instructions(
        file, options.out / "data", RuleTeacher(), kinds=options.kinds, across_pictures=False, progress=progress
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"after writing: {resident_mib():.1f} MiB resident, {peak:.1f} MiB at the peak, {time.monotonic() - start:.0f} s in all"
    )
    print(report)


if __name__ == "__main__":
    main()
