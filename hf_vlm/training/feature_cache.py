"""What a frozen vision encoder sees in every picture of a data set, computed once and kept on disk."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hf_vlm.data.conversations.conversations import Conversations
from hf_vlm.parts.weight_report import hash_weights

logger = logging.getLogger(__name__)

_STATE = "features.json"
_FEATURES = "features.npy"
_LOOKED_AT = 32  # rows whose pictures tell a data set from one that was written anew in its place


def cached_features(
    model: Any, processor: Any, rows: Conversations, folder: str | Path, *, batch_size: int = 16
) -> np.ndarray:
    """Features of all pictures in the rows' order, float32 (pictures, tokens, width), mapped from disk.

    What the folder has of the same encoder, pre-processing and rows is used; a run that was stopped goes on where it was.

    Args:
        model: gives `vision_features(pixel_values)`; moved nowhere.
        processor: gives `prepare_images(pictures)`.
        folder: of this data set alone.

    Raises:
        ValueError: if a picture can't be read, naming its row; those before it are kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    numbers = [rows.num_images(index) for index in range(len(rows))]
    size, of_picture = _shape_of_picture(model, processor)
    shape = (sum(numbers), *of_picture)
    key = {
        "vision": hash_weights(model.get_encoder(modality="image").state_dict()),
        "image_size": size,
        "layer": getattr(config, "vision_feature_layer", -1),
        "strategy": getattr(config, "vision_feature_select_strategy", None),
        "processor": hashlib.sha256(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode()).hexdigest(),
        "rows": _rows_digest(rows, numbers),
        "shape": list(shape),
    }
    state_file, file = folder / _STATE, folder / _FEATURES
    state = json.loads(state_file.read_text(encoding="utf-8")) if state_file.is_file() else {}
    done = state.get("rows_done", 0) if state.get("key") == key and file.is_file() else 0
    if done < len(rows) and shape[0]:
        mode: Any = "r+" if done else "w+"
        # Before the file changes: an older note would otherwise speak of its new content.
        _write(state_file, {"key": key, "rows_done": done})
        features = np.lib.format.open_memmap(file, mode=mode, dtype=np.float32, shape=None if done else shape)
        at = sum(numbers[:done])
        was_training = model.training
        model.eval()
        progress = tqdm(total=len(rows), initial=done, desc=f"Features in {folder}", leave=False)
        try:
            for first in range(done, len(rows), batch_size):
                past = min(first + batch_size, len(rows))
                pictures = [picture for index in range(first, past) if numbers[index] for picture in rows.images(index)]
                if pictures:
                    pixel_values = processor.prepare_images(pictures).to(model.device)
                    with torch.no_grad():
                        seen = model.vision_features(pixel_values).float().cpu().numpy()
                    features[at : at + len(seen)] = seen
                    at += len(seen)
                progress.update(past - first)
                done = past
                if (first // batch_size) % 50 == 49:
                    features.flush()
                    _write(state_file, {"key": key, "rows_done": done})
        finally:  # at a picture that can't be read too
            features.flush()
            _write(state_file, {"key": key, "rows_done": done})
            progress.close()
            model.train(was_training)
        logger.info("Features of %d pictures in %s.", shape[0], folder)
    return np.load(file, mmap_mode="r") if shape[0] else np.zeros(shape, np.float32)


def _shape_of_picture(model: Any, processor: Any) -> tuple[list[int], tuple[int, int]]:
    """Height and width in pixels that pictures are brought to, and the shape of their features."""
    config = model.config
    if getattr(config, "num_image_tokens", None):  # a LLaVA's says
        return list(config.image_size), (config.num_image_tokens, config.vision_hidden_size)
    pixel_values = processor.prepare_images([Image.new("RGB", (64, 64))]).to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        features = model.vision_features(pixel_values)
    model.train(was_training)
    return list(pixel_values.shape[-2:]), (features.shape[1], features.shape[2])


def _rows_digest(rows: Conversations, numbers: list[int]) -> str:
    digest = hashlib.sha256("\n".join(map(str, rows.sources)).encode())
    digest.update(str(numbers).encode())
    with_pictures = np.flatnonzero(numbers)
    spread = np.linspace(0, len(with_pictures) - 1, min(_LOOKED_AT, len(with_pictures))).round().astype(int)
    for index in with_pictures[spread].tolist():
        for picture in rows.images(index):
            digest.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
