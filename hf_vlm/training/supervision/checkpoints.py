"""Which checkpoint of a run to go on from, what wrote it, and what its files are called."""

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

Engine = Literal["plain", "fsdp", "deepspeed"]

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
WEIGHTS_OF_FSDP, OPTIMIZER_OF_FSDP = "pytorch_model_fsdp.bin", "optimizer.bin"
_FOLDER_OF_DEEPSPEED = "latest"  # a file that names the folder of the shards
_ASIDE = ".before-"


def engine_of(folder: Path) -> Engine:
    """What wrote a checkpoint's folder, by its files."""
    if (folder / _FOLDER_OF_DEEPSPEED).is_file():
        return "deepspeed"
    return "fsdp" if (folder / WEIGHTS_OF_FSDP).is_file() else "plain"


def sessions_of(callbacks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions that a `SessionClock` noted, the oldest first; none where there was no such clock.

    Args:
        callbacks: `stateful_callbacks` of a Trainer's state.
    """
    clock = callbacks.get("SessionClock")
    return clock["attributes"]["sessions"] if isinstance(clock, Mapping) else []


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-<step>` folders, whole or not, the highest step first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest `checkpoint-<step>` folder that was written to its end; None if there is none.

    A process that is killed while it saves, or while it removes an old checkpoint, leaves a folder with missing or
    cut-off files behind. Such a folder is passed over with a warning; training writes it anew when it gets there.
    """
    for folder in checkpoints_in(output_dir):
        fault = fault_of(folder)
        if fault is None:
            return folder
        logger.warning("%s was not written to its end (%s): passed over.", folder, fault)
    return None


def set_aside(folder: Path) -> Path:
    """Where a checkpoint is now that was moved out of the way of a new one of the same step."""
    before = _aside(folder)
    shutil.rmtree(before, ignore_errors=True)
    return folder.replace(before)


def remove_aside(folder: Path) -> None:
    """Removes what `set_aside` moved, once the new checkpoint is whole."""
    shutil.rmtree(_aside(folder), ignore_errors=True)


def put_back(output_dir: str | Path) -> None:
    """Undoes `set_aside` where a process was killed before the new checkpoint was whole. No run may be saving there now."""
    for before in Path(output_dir).glob(_aside(Path("checkpoint-*")).name):
        folder = before.with_name(before.name.removeprefix(_ASIDE))
        if fault_of(folder) is None:
            remove_aside(folder)
        elif fault_of(before) is None:
            shutil.rmtree(folder, ignore_errors=True)
            before.replace(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{_ASIDE}{folder.name}")  # which neither we nor the Trainer take for a checkpoint


def fault_of(folder: Path) -> str | None:
    """What is missing in a checkpoint folder, None if nothing is."""
    index = folder / "model.safetensors.index.json"
    try:
        weights = sorted(folder.glob("*.safetensors"))
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if missing := shards - {path.name for path in weights}:
                return f"`{min(missing)}` is missing"
        for path in weights:
            with safe_open(path, "pt"):  # compares the header's sizes with the file's
                pass
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        num_processes, engine = _num_processes(state), engine_of(folder)
        if engine == "deepspeed":
            pickled = _files_of_deepspeed(folder, num_processes)
        else:
            if engine == "plain" and not weights:
                return "no weights"
            names = [OPTIMIZER] if engine == "plain" else [WEIGHTS_OF_FSDP, OPTIMIZER_OF_FSDP]
            pickled = [folder / name for name in (*names, SCHEDULER)]
        random = [folder / f"rng_state_{rank}.pth" for rank in range(num_processes)]
        if num_processes == 1:  # or it isn't told how many there were
            random = sorted(folder.glob("rng_state*.pth"))[:1] or [folder / "rng_state.pth"]
        for path in (*pickled, *random):
            if not zipfile.is_zipfile(path):  # torch.save writes a zip, whose directory stands at its end
                return f"`{path.name}` is missing or cut off"
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return str(error)
    return None


def _files_of_deepspeed(folder: Path, num_processes: int) -> list[Path]:
    """The files that DeepSpeed keeps in a folder of its own, and the schedule where it doesn't keep that too.

    Raises:
        ValueError: if a process's share of the optimizer is missing.
    """
    shares = folder / (folder / _FOLDER_OF_DEEPSPEED).read_text(encoding="utf-8").strip()
    number = len(list(shares.glob("*optim_states.pt")))
    if number < num_processes:
        raise ValueError(f"`{shares.name}` has {number} of {num_processes} shares of the optimizer")
    schedule = folder / SCHEDULER
    return [*sorted(shares.glob("*.pt")), *([schedule] if schedule.exists() else [])]


def _num_processes(state: Mapping[str, Any]) -> int:
    """How many processes saved a checkpoint, by the sessions in its state; 1 where it doesn't tell."""
    sessions = sessions_of(state.get("stateful_callbacks", {}))
    return sessions[-1].get("num_processes", 1) if sessions else 1
