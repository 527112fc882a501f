"""Which checkpoint of a run to go on from."""

import json
import logging
import zipfile
from pathlib import Path

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
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return "no weights"
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if missing := shards - {path.name for path in weights}:
                return f"`{min(missing)}` is missing"
        for path in weights:
            with safe_open(path, "pt"):  # compares the header's sizes with the file's
                pass
        optimizer = "optimizer.bin" if (folder / "pytorch_model_fsdp.bin").exists() else "optimizer.pt"  # FSDP's name
        has_own = (folder / "latest").is_file()  # DeepSpeed keeps its optimizer's shards in a folder of its own
        for name in ("scheduler.pt",) if has_own else (optimizer, "scheduler.pt"):
            if not zipfile.is_zipfile(folder / name):  # torch.save writes a zip, whose directory stands at its end
                return f"`{name}` is missing or cut off"
        if not any(zipfile.is_zipfile(path) for path in folder.glob("rng_state*.pth")):
            return "`rng_state.pth` is missing or cut off"
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return str(error)
    return None
