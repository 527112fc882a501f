"""Measuring a saved image classifier on pictures with labels."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_vlm.data.labelled_images import LabelledImages, ProcessedBatch, read_images
from hf_vlm.parts.adapter_loading import base_of_adapter, load_with_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.parts.weight_report import hash_weights
from hf_vlm.training.image_models import measure_processor, model_names
from hf_vlm.training.scores.measurements import describe_measurement
from hf_vlm.training.trainers.image_trainer import accuracies, best_classes


@dataclass
class ClassificationScores:
    """How well pictures were classified.

    Attributes:
        accuracy: share of pictures whose class came first, in [0, 1].
        top5_accuracy: share whose class was among the first five; None for 5 classes or fewer.
        num_pictures: how many were classified.
        pictures_per_second: decoded, prepared and classified a second, on the machine it ran on.
        predictions: of each picture, in order: `label`, `predicted` and its `probability` in [0, 1].
        measurement: what the scores depend on, see `describe_measurement`; empty where that is not told.
    """

    accuracy: float
    top5_accuracy: float | None
    num_pictures: int
    pictures_per_second: float
    predictions: list[dict[str, Any]]
    measurement: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, what the scores depend on among them."""
        rest = asdict(self)
        return {**rest.pop("measurement"), **rest}

    def __str__(self) -> str:
        top5 = "" if self.top5_accuracy is None else f"top-5 accuracy {100 * self.top5_accuracy:.2f} %, "
        return (
            f"top-1 accuracy {100 * self.accuracy:.2f} %, {top5}on {self.num_pictures} pictures "
            f"({self.pictures_per_second:.1f} pictures/s)"
        )


def is_image_classifier(model: str) -> bool:
    """Whether a saved model is one of `AutoModelForImageClassification`, by the architecture that its config names.

    Args:
        model: folder or Hub name.

    Raises:
        OSError: if there is no such model.
    """
    stored = read_config(base_of_adapter(model) or model)
    model_type, mapping = stored.get("model_type"), AutoModelForImageClassification._model_mapping
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in mapping:
        return False
    classes = mapping[CONFIG_MAPPING[model_type]]
    names = {known.__name__ for known in (classes if isinstance(classes, tuple) else (classes,))}
    return bool(names & set(stored.get("architectures") or ()))


def load_classifier(name_or_folder: str) -> tuple[Any, Any]:
    """A saved classifier or adapter of one, in fp32, and its image processor."""
    model = load_with_adapter(AutoModelForImageClassification, name_or_folder, dtype=torch.float32)
    return model, AutoImageProcessor.from_pretrained(processor_folder(name_or_folder))


def evaluate_image_folders(
    model: str, folders: Sequence[str], *, split: str | None = None, batch_size: int = 16
) -> Iterator[tuple[str, ClassificationScores]]:
    """Each folder's name and the scores of a saved classifier on its pictures.

    Args:
        model: folder or Hub name.
        folders: folders that `hf_vlm.data.labelled_images.read_images` reads.
        split: which split of them; None if they have one only.
        batch_size: pictures at a time.

    Raises:
        ValueError: if a folder holds no pictures, or a class that the model does not know.
    """
    classifier, processor = load_classifier(model)
    classifier = classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    weights = hash_weights(classifier.state_dict())
    settings = {"split": split, "batch_size": batch_size}
    names = model_names(classifier.config)
    for folder in folders:
        rows = read_images(folder, split).with_names(names)
        scores = evaluate_images(classifier, processor, rows, batch_size=batch_size)
        scores.measurement = describe_measurement(classifier, model, folder, settings, weights)
        yield folder, scores


def evaluate_images(
    model: PreTrainedModel, processor: Any, rows: LabelledImages, *, batch_size: int = 16
) -> ClassificationScores:
    """The scores of a classifier on pictures whose labels are numbered as its classes.

    Raises:
        ValueError: if the processor doesn't suit the model.
    """
    _, prepare = measure_processor(processor, model.config)
    collate = ProcessedBatch(processor, prepare)
    start = time.perf_counter()
    ranked, probabilities = [], []
    model.eval()
    for first in range(0, len(rows), batch_size):
        batch = collate([rows[index] for index in range(first, min(first + batch_size, len(rows)))])
        with torch.inference_mode():
            logits = model(pixel_values=batch["pixel_values"].to(model.device)).logits.float()
        ranked.append(best_classes(logits).cpu().numpy())
        probabilities += logits.softmax(-1).amax(-1).tolist()
    seconds = time.perf_counter() - start
    classes = np.concatenate(ranked)
    assert rows.labels is not None
    scores = accuracies(np.asarray(rows.labels), classes)
    predictions = [
        {"label": rows.names[label], "predicted": rows.names[number], "probability": probability}
        for label, number, probability in zip(rows.labels, classes[:, 0].tolist(), probabilities, strict=True)
    ]
    return ClassificationScores(
        accuracy=scores["accuracy"],
        top5_accuracy=scores.get("top5_accuracy"),
        num_pictures=len(rows),
        pictures_per_second=len(rows) / seconds,
        predictions=predictions,
    )
