"""Seconds that `import hf_vlm` and `hf-vlm --help` take, beside what they can't do without: torch, and transformers' classes.

    python scripts/benchmarks/import_time.py [--rounds 7] [--json FILE]

Each is a fresh process, in turns, one thread; seconds are of the CPU, medians of the rounds, so that other work on the machine
counts little. `transformers` imports what every package needs that registers models: its base class, its auto classes and its
pipelines (which bring torch, torchvision and accelerate, where these are installed). The last two lines name the packages that
`import hf_vlm` loads besides, and that the help loads besides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PROGRAMS = {
    "torch": "import torch",
    "transformers": "import transformers\n"
    "for name in ('PreTrainedModel', 'AutoModel', 'AutoProcessor', 'AutoImageProcessor', 'AutoBackbone', 'Pipeline'):\n"
    "    getattr(transformers, name)",
    "hf_vlm": "import hf_vlm",
    "hf-vlm --help": "import contextlib, io\nfrom hf_vlm.cli import main\n"
    "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])",
}
_LOADED = """
import importlib.metadata, sys
known = importlib.metadata.packages_distributions()
print(' '.join(sorted({module.partition('.')[0] for module in sys.modules} & set(known))))
"""


def cpu_seconds(program: str) -> float:
    """CPU seconds, of user and system, of a fresh Python that runs a program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"A program that runs is wanted, got exit status {status} of:\n{program}")
    return usage.ru_utime + usage.ru_stime


def loaded_packages(program: str) -> set[str]:
    """Top-level names of installed packages that a program loads."""
    done = subprocess.run([sys.executable, "-c", program + _LOADED], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()

    rounds = [{name: cpu_seconds(program) for name, program in PROGRAMS.items()} for _ in range(options.rounds)]
    figures = {name: statistics.median(one[name] for one in rounds) for name in PROGRAMS}
    for name, seconds in figures.items():
        print(f"{name:<14} {seconds:.2f} s")
    added = {
        "hf_vlm": statistics.median(one["hf_vlm"] - one["transformers"] for one in rounds),
        "hf-vlm --help": statistics.median(one["hf-vlm --help"] - one["hf_vlm"] for one in rounds),
    }
    packages = {name: loaded_packages(program) for name, program in PROGRAMS.items()}
    besides = {
        "hf_vlm": sorted(packages["hf_vlm"] - packages["transformers"] - {"hf_vlm"}),
        "hf-vlm --help": sorted(packages["hf-vlm --help"] - packages["hf_vlm"]),
    }
    for name, seconds in added.items():
        before = "transformers" if name == "hf_vlm" else "import hf_vlm"
        print(f"{name} adds {seconds:.2f} s to {before}, and loads besides: {', '.join(besides[name]) or 'nothing'}")
    if options.json is not None:
        options.json.write_text(
            json.dumps({"cpu_seconds": figures, "added": added, "loaded_besides": besides}, indent=1)
        )


if __name__ == "__main__":
    main()
