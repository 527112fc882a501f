"""Train the same tiny recipes under every engine on this machine's CPUs, and compare the weights with those of one process.

    python scripts/try_engines.py OUT [--families chat ...] [--engines torchrun ...] [--deepspeed PYTHON] [--json FILE]

Every run has the same update (`training.global_batch_size`), on one process or divided over two. The first table says how far
weights are from those of one process at most, after six updates; the second what each engine is and whether it really divided
the weights. FSDP2 and DeepSpeed run here by `engines_on_cpus.py`, as accelerate takes neither for CPUs. DeepSpeed wants an
environment that has it, whose Python is named by `--deepspeed`.

The exit status is 1 if a run failed or ended with weights further than 1e-4 from one process's.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
FILES = ROOT / "scripts" / "distributed"
BRIDGE = str(ROOT / "scripts" / "engines_on_cpus.py")
TOLERANCE = 1e-4
SECONDS = 400  # a run may take: DeepSpeed compiles an extension the first time

# The recipes


def write_recipes(folder: Path) -> dict[str, Path]:
    """Recipe files by family: tiny random models, six updates, nothing drawn at random in a forward pass."""
    sys.path.insert(0, str(ROOT))  # the tests' tiny sets and models
    from tests.tiny_lines import tiny_recipe, write_splits
    from tests.training.tiny_conversations import tiny_llava_recipe, write_conversations, write_parts
    from tests.training.tiny_pictures import tiny_picture_recipe, write_picture_splits
    from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

    torch.manual_seed(0)
    pictures = write_picture_splits(folder / "pictures")
    parts, chat = write_parts(folder / "parts"), write_conversations(folder / "chat")
    sets, decoders = write_task_sets(folder / "tasks"), write_decoder_parts(folder / "decoders")
    recipes = {
        "ocr": tiny_recipe(write_splits(folder / "lines"), folder),
        "classification": tiny_picture_recipe(pictures, folder),
        "pretraining": tiny_picture_recipe(pictures, folder, "masked-image-modeling"),
        "tokenization": tiny_picture_recipe(pictures, folder, "image-tokenization"),
        "caption": {
            "task": "caption",
            "architecture": "cnn_lstm",
            "model": {
                "vision": str(decoders / "efficientnet-lite0"),
                "text": str(decoders / "minilm"),
                "settings": {"attention": "additive", "hidden_size": 16, "embedding_size": 8, "dropout": 0.0},
            },
            "data": {"folder": str(sets), "train": [{"path": "photo_captions", "split": "train"}]},
        },
        "chat": tiny_llava_recipe(parts, chat, folder, parts={"train": ["projector", "language"]}),
    }
    recipes["ocr"]["model"]["text_config"]["dropout"] = 0.0
    recipes["classification"]["model"]["config"]["drop_path_rate"] = 0.0
    recipes["pretraining"]["model"]["config"]["drop_path_rate"] = 0.0
    recipes["tokenization"]["model"]["config"] = {
        "model_type": "hf_vlm_vqvae",
        "image_size": 16,
        "hidden_channels": [8, 8],
        "num_codes": 16,
        "code_dim": 4,
        "ema_decay": 0.8,
    }
    files = {}
    for name, sections in recipes.items():
        items = 2 if name == "chat" else 8  # rows of packed conversations; else lines or pictures
        sections["training"] = {
            "output_dir": str(folder),
            "max_steps": 6,
            "global_batch_size": items,
            # Masks are drawn a batch, so one process takes two, one by one; a codebook's running means move once a batch.
            "per_device_train_batch_size": items if name == "tokenization" else items // 2,
            "per_device_eval_batch_size": 2,
            "learning_rate": 1e-3,
            "save_steps": 3,
            "eval_steps": 3,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(sections), encoding="utf-8")
    return files


# The engines


@dataclass
class Run:
    """What is started: a command a node, and variables of the environment."""

    commands: list[list[str]]
    variables: dict[str, str]


Engine = Callable[[str, list[str]], Run]  # of a Python, and what `hf-vlm` is given -> what is started


def torchrun(python: str, *options: str) -> list[str]:
    """The command that starts two processes, or as `options` say."""
    return [python, "-m", "torch.distributed.run", *(options or ("--standalone", "--nproc-per-node", "2"))]


def accelerate(python: str, file: str, *options: str) -> list[str]:
    """Accelerate's launcher with one of our files."""
    launcher = [python, "-m", "accelerate.commands.launch", "--config_file", str(FILES / f"{file}.yaml")]
    return [*launcher, "--num_processes", "2", *options]


def two_nodes(python: str, arguments: list[str]) -> Run:
    """Two torchruns that meet at a port."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "7"]
    command = torchrun(python, *meeting, "--rdzv-endpoint", f"localhost:{free_port()}")
    return Run([[*command, "-m", "hf_vlm.cli", *arguments]] * 2, {})


def slurm(script: str) -> Engine:
    """One of the scripts for SLURM, with stand-ins for SLURM's commands: two nodes of one process, on this machine."""

    def build(python: str, arguments: list[str]) -> Run:
        commands = Path(os.environ["TRY_ENGINES"]) / "slurm"
        commands.mkdir(exist_ok=True)
        stand_ins = {
            "scontrol": "echo localhost",
            "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & nodes="${nodes:-} $!"; done\n'
            "for node in $nodes; do wait $node || exit 1; done",
        }
        for name, text in stand_ins.items():
            (commands / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            (commands / name).chmod(0o755)
        path = os.pathsep.join([str(commands), str(Path(python).parent), os.environ["PATH"]])
        of_slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
        of_slurm |= {"SLURM_GPUS_ON_NODE": "1", "PORT": str(free_port()), "PATH": path}
        return Run([["bash", str(FILES / script), *arguments[1:]]], of_slurm)

    return build


def by_deepspeed(stage: int) -> Engine:
    """ZeRO by torchrun and a recipe's setting; the file of stage 1 is made of that of stage 2."""

    def build(python: str, arguments: list[str]) -> Run:
        file = FILES / f"deepspeed-zero{stage}.json"
        if stage == 1:
            settings = json.loads((FILES / "deepspeed-zero2.json").read_text(encoding="utf-8"))
            settings["zero_optimization"]["stage"] = 1
            file = Path(os.environ["TRY_ENGINES"]) / "zero1.json"
            file.write_text(json.dumps(settings), encoding="utf-8")
        return Run([[*torchrun(python), BRIDGE, *arguments, f"training.deepspeed={file}"]], {"DS_ACCELERATOR": "cpu"})

    return build


ENGINES: dict[str, tuple[str, Engine]] = {
    "python": ("one process", lambda python, arguments: Run([[python, "-m", "hf_vlm.cli", *arguments]], {})),
    "torchrun": (
        "DDP by torchrun",
        lambda python, arguments: Run([[*torchrun(python), "-m", "hf_vlm.cli", *arguments]], {}),
    ),
    "accelerate": (
        "DDP by accelerate, ddp.yaml",
        lambda python, arguments: Run([[*accelerate(python, "ddp"), "-m", "hf_vlm.cli", *arguments]], {}),
    ),
    "two-nodes": ('DDP by torchrun, two "nodes"', two_nodes),
    "slurm-torchrun": ("DDP by slurm-torchrun.sh, stand-ins for SLURM", slurm("slurm-torchrun.sh")),
    "slurm-accelerate": ("DDP by slurm-accelerate.sh, stand-ins for SLURM", slurm("slurm-accelerate.sh")),
    "fsdp2-asked": (
        "accelerate's own choice on CPUs where fsdp2.yaml asks for FSDP2: DDP, with a warning",
        lambda python, arguments: Run([[*accelerate(python, "fsdp2"), "-m", "hf_vlm.cli", *arguments]], {}),
    ),
    "fsdp2": (
        "FSDP2 by torchrun, training.fsdp=true",
        lambda python, arguments: Run([[*torchrun(python), BRIDGE, *arguments, "training.fsdp=true"]], {}),
    ),
    "fsdp2-accelerate": (
        "FSDP2 by accelerate, fsdp2.yaml",
        lambda python, arguments: Run([[*accelerate(python, "fsdp2"), BRIDGE, *arguments]], {}),
    ),
    "zero1": ("DeepSpeed ZeRO-1 by torchrun", by_deepspeed(1)),
    "zero2": ("DeepSpeed ZeRO-2 by torchrun, deepspeed-zero2.json", by_deepspeed(2)),
    "zero3": ("DeepSpeed ZeRO-3 by torchrun, deepspeed-zero3.json", by_deepspeed(3)),
    "zero2-accelerate": (
        "DeepSpeed ZeRO-2 by accelerate, deepspeed-zero2.yaml",
        lambda python, arguments: Run(
            [[*accelerate(python, "deepspeed-zero2"), BRIDGE, *arguments]], {"DS_ACCELERATOR": "cpu"}
        ),
    ),
    "zero3-accelerate": (
        "DeepSpeed ZeRO-3 by accelerate, deepspeed-zero3.yaml",
        lambda python, arguments: Run(
            [[*accelerate(python, "deepspeed-zero3"), BRIDGE, *arguments]], {"DS_ACCELERATOR": "cpu"}
        ),
    ),
}


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


# Trying them


@dataclass
class Trial:
    """What came of a family under an engine.

    Attributes:
        difference: the largest of any weight to one process's; None if the run failed or there is nothing to compare.
        num_processes: that the run noted.
        warned: whether hf-vlm said that the engine asked for isn't on.
        notes: of `engines_on_cpus.py`.
        fault: the end of what a failed run printed.
    """

    family: str
    engine: str
    difference: float | None = None
    num_processes: int | None = None
    warned: bool = False
    notes: dict[str, Any] | None = None
    fault: str | None = None


def try_one(family: str, recipe: Path, engine: str, out: Path, python: str) -> Trial:
    """Trains a family under an engine into `out / family / engine`."""
    folder = out / family / engine
    shutil.rmtree(folder, ignore_errors=True)
    trial = Trial(family, engine)
    run = ENGINES[engine][1](python, ["train", str(recipe), f"training.output_dir={folder}"])
    notes = out / f"{family}-{engine}.json"
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ENGINE_NOTES": str(notes), **run.variables}
    code, printed = run_together(run.commands, os.environ | variables)
    (out / f"{family}-{engine}.log").write_text(printed, encoding="utf-8")
    trial.warned = "was asked for, and accelerate has none" in printed
    if code:
        told = [line for line in printed.splitlines() if line.startswith(("hf-vlm", "[rank")) and ": " in line]
        trial.fault = (told or printed.splitlines() or ["nothing printed"])[-1][:300]
        return trial
    environment = json.loads((folder / "run_environment.json").read_text(encoding="utf-8"))
    trial.num_processes = environment["sessions"][-1]["num_processes"]
    if notes.is_file():
        trial.notes = json.loads(notes.read_text(encoding="utf-8"))
    if engine != "python":
        try:
            trial.difference = largest_difference(folder, out / family / "python")
        except ValueError as error:
            trial.fault = str(error)
    return trial


def run_together(commands: Sequence[Sequence[str]], variables: dict[str, str]) -> tuple[int, str]:
    """Runs the nodes of one run at the same time: the largest exit code, and what they printed, one after the other."""
    nodes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    printed = []
    try:
        for node in nodes:
            printed.append(node.communicate(timeout=SECONDS)[0])
    except subprocess.TimeoutExpired:
        printed.append(f"stopped after {SECONDS} seconds")
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                printed.append(node.communicate()[0])
    return max(abs(node.returncode) for node in nodes), "\n".join(printed)


def largest_difference(folder: Path, other: Path) -> float:
    """Between the weights of two models' folders.

    Raises:
        ValueError: if they don't hold the same tensors.
    """
    weights, wanted = (load_file(place / "model.safetensors") for place in (folder, other))
    if other_names := weights.keys() ^ wanted.keys():
        raise ValueError(
            f"The same weights are wanted in {folder} and {other}, got `{min(other_names)}` in one alone. See their files."
        )
    return max(float((weights[name].float() - wanted[name].float()).abs().max()) for name in weights)


def tables(trials: Sequence[Trial], left_out: Sequence[str]) -> str:
    """Both tables in Markdown."""
    families = list(dict.fromkeys(trial.family for trial in trials))
    engines = [engine for engine in ENGINES if any(trial.engine == engine for trial in trials) or engine in left_out]
    found = {(trial.engine, trial.family): trial for trial in trials}
    lines = ["| engine | " + " | ".join(families) + " |", "|---|" + "---|" * len(families)]
    for engine in engines:
        cells = [_cell(found.get((engine, family))) for family in families]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    lines += ["", "| engine | what it is | processes | parameters in parts |", "|---|---|---|---|"]
    for engine in engines:
        of_engine = [trial for trial in trials if trial.engine == engine and trial.fault is None]
        processes = ", ".join(dict.fromkeys(str(trial.num_processes) for trial in of_engine)) or "-"
        notes = [trial.notes for trial in of_engine if trial.notes]
        parts = ", ".join(f"{note['divided']} of {note['parameters']}" for note in notes) or "none"
        parts += f" ({', '.join(dict.fromkeys(note['optimizer'] for note in notes))})" if notes else ""
        lines.append(f"| {engine} | {ENGINES[engine][0]} | {processes} | {parts} |")
    return "\n".join(lines)


def is_refused(trial: Trial) -> bool:
    """Whether hf-vlm said before it began that the engine can't train this family."""
    return trial.fault is not None and trial.fault.startswith("hf-vlm: DeepSpeed's ZeRO-3 wants layers")


def _cell(trial: Trial | None) -> str:
    if trial is None:
        return "not run"
    if trial.fault is not None:
        return "refused" if is_refused(trial) else "failed"
    return "-" if trial.difference is None else f"{trial.difference:.1e}"


def main() -> int:
    """Runs what the command line asks for, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--families", nargs="+", help="default: all")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--deepspeed", metavar="PYTHON", help="of an environment with DeepSpeed; default: this one's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what came of each run")
    options = parser.parse_args()
    out = options.out.resolve()
    data = out / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    os.environ["TRY_ENGINES"] = str(out)
    recipes = write_recipes(data)
    families = options.families or list(recipes)
    of_deepspeed = options.deepspeed or (sys.executable if find_spec("deepspeed") else None)
    engines = [engine for engine in ENGINES if engine in options.engines or engine == "python"]
    left_out = [engine for engine in engines if engine.startswith("zero") and of_deepspeed is None]
    trials = []
    for family in families:
        for engine in engines:
            if engine in left_out:
                continue
            python = of_deepspeed if engine.startswith("zero") else sys.executable
            trial = try_one(family, recipes[family], engine, out, str(python))
            trials.append(trial)
            told = trial.fault or ("" if trial.difference is None else f"{trial.difference:.1e}")
            print(f"{family} {engine}: {told or 'ran'}", file=sys.stderr, flush=True)
            if engine == "python" and trial.fault:
                break  # nothing to compare with
    print(tables(trials, left_out))
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1), encoding="utf-8")
    far = [trial for trial in trials if trial.difference is not None and not trial.difference <= TOLERANCE]
    return int(bool(far) or any(trial.fault and not is_refused(trial) for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
