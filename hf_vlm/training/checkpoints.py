"""Which checkpoint of a run to go on from."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest `checkpoint-<step>` folder that was written to its end; None if there is none.

    A process that is killed while it saves, or while it removes an old checkpoint, leaves a folder with missing or
    cut-off files behind. Such a folder is passed over with a warning; training writes it anew when it gets there.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        fault = _fault(folder)
        if fault is None:
            return folder
        logger.warning("%s was not written to its end (%s): passed over.", folder, fault)
    return None


def _fault(folder: Path) -> str | None:
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
        num_processes = _num_processes(state)
        if (folder / "latest").is_file():
            pickled = _files_of_deepspeed(folder, num_processes)
        else:
            of_fsdp = folder / "pytorch_model_fsdp.bin"
            if not (weights or of_fsdp.is_file()):
                return "no weights"
            optimizer = [of_fsdp, folder / "optimizer.bin"] if of_fsdp.is_file() else [folder / "optimizer.pt"]
            pickled = [*optimizer, folder / "scheduler.pt"]
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
    shares = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    number = len(list(shares.glob("*optim_states.pt")))
    if number < num_processes:
        raise ValueError(f"`{shares.name}` has {number} of {num_processes} shares of the optimizer")
    schedule = folder / "scheduler.pt"
    return [*sorted(shares.glob("*.pt")), *([schedule] if schedule.exists() else [])]


def _num_processes(state: Mapping[str, Any]) -> int:
    """How many processes saved a checkpoint, by the sessions in its state; 1 where it doesn't tell."""
    clock = state.get("stateful_callbacks", {}).get("SessionClock", {})
    sessions = clock.get("attributes", {}).get("sessions", []) if isinstance(clock, Mapping) else []
    return sessions[-1].get("num_processes", 1) if sessions else 1
