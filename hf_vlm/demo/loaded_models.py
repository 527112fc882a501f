"""Models loaded when they are first wanted, and let go of when others need the room."""

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    ImageClassificationPipeline,
)

from hf_vlm.demo.folders import Ability, DemoFolder
from hf_vlm.parts.adapter_loading import load_with_adapter, processor_folder
from hf_vlm.parts.checkpoint_files import naming_faults
from hf_vlm.pipelines.chat import ChatSession
from hf_vlm.pipelines.image_captioning import ImageCaptioningPipeline
from hf_vlm.pipelines.page_reading import PageReader, TextDetector
from hf_vlm.pipelines.picture_question_answering import PictureQuestionAnsweringPipeline
from hf_vlm.pipelines.token_files import load_tokenizer

logger = logging.getLogger(__name__)

KEPT_BYTES = 2 * 2**30
"""Weights of all loaded models together may be so large before the one that was wanted longest ago goes."""


@dataclass
class LoadedModel:
    """A model ready for use.

    Attributes:
        folder: where it came from.
        model: in evaluation mode.
        processor: of pictures and text, or of pictures alone.
        use: what does the folder's main task: a pipeline, a `PageReader`; None where model and processor are enough.
    """

    folder: DemoFolder
    model: Any
    processor: Any
    use: Any = None

    @property
    def image_processor(self) -> Any:
        """The processor of its pictures."""
        return getattr(self.processor, "image_processor", self.processor)

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())


class LoadedModels:
    """Models by folder, loaded at most once as long as there is room for them.

    Args:
        load: makes the model of a folder.
        kept_bytes: room for weights; the model asked for last is kept in any case.
    """

    def __init__(
        self, load: Callable[[DemoFolder], LoadedModel] | None = None, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._load = load or load_model
        self._kept_bytes = kept_bytes
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # the one wanted longest ago is first

    def get(self, folder: DemoFolder) -> LoadedModel:
        """The model of a folder.

        Raises:
            OSError: if a file is missing.
            ValueError: if its files are damaged or do not belong together.
        """
        if folder.source not in self._loaded:
            self._loaded[folder.source] = self._load(folder)
        self._loaded.move_to_end(folder.source)
        while len(self._loaded) > 1 and sum(one.num_bytes for one in self._loaded.values()) > self._kept_bytes:
            source, _ = self._loaded.popitem(last=False)
            logger.info("%s is let go of, others need its room.", source)
        return self._loaded[folder.source]


def load_model(folder: DemoFolder) -> LoadedModel:
    """The model of a folder, on a GPU where there is one, in float32 on a CPU.

    Raises:
        OSError: if a file is missing.
        ValueError: if its files are damaged or do not belong together.
    """
    match folder.ability:
        case Ability.READ:
            reader = PageReader(folder.source, find_lines=lambda page: _detector()(page))
            lines = reader.read_lines
            return LoadedModel(folder, lines.model, lines.processor, reader)
        case Ability.CHAT:
            session = ChatSession.from_pretrained(folder.source)
            return LoadedModel(folder, session.model, session.processor)
        case Ability.TOKENS:
            pipe, _ = load_tokenizer(folder.source)
            return LoadedModel(folder, pipe.model, pipe.image_processor, pipe)
        case Ability.CAPTION | Ability.ASK:
            model, processor = _load(AutoModelForImageTextToText, AutoProcessor, folder)
            writes = ImageCaptioningPipeline if folder.ability == Ability.CAPTION else PictureQuestionAnsweringPipeline
            task = "image-captioning" if folder.ability == Ability.CAPTION else "picture-question-answering"
            return LoadedModel(
                folder, model, processor, writes(model, processor=processor, task=task, **_parts(processor))
            )
        case Ability.CLASSIFY:
            model, processor = _load(AutoModelForImageClassification, AutoImageProcessor, folder)
            return LoadedModel(
                folder, model, processor, ImageClassificationPipeline(model=model, image_processor=processor)
            )
        case _:
            return LoadedModel(folder, *_load(AutoModel, AutoImageProcessor, folder))


def _load(loader: Any, processor_loader: Any, folder: DemoFolder) -> tuple[Any, Any]:
    """A model in evaluation mode, and its processor."""
    with naming_faults(folder.adapter_of or folder.source):
        model = load_with_adapter(loader, folder.source, dtype=torch.float32)
    try:
        processor = processor_loader.from_pretrained(processor_folder(folder.source))
    except Exception as error:  # whatever a file with other content makes its loader raise
        raise ValueError(
            f"{folder.name} must hold a processor beside the model, got none that loads ({str(error).splitlines()[0]}). Copy "
            "its files there."
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def _parts(processor: Any) -> dict[str, Any]:
    """What a pipeline would have loaded beside the processor."""
    return {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}


@functools.cache
def _detector() -> TextDetector:
    """Of all readers; loaded when the first page comes, as lines alone need none."""
    return TextDetector()
