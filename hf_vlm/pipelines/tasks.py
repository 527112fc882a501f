"""Making our pipelines known to `transformers.pipeline`."""

import functools
from typing import Any

import transformers.pipelines
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    ImageTextToTextPipeline,
    Pipeline,
    PreTrainedModel,
    VisionEncoderDecoderModel,
)
from transformers.pipelines import PIPELINE_REGISTRY

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.parts.pretrained_model import HubModel
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.pipelines.image_captioning import ImageCaptioningPipeline
from hf_vlm.pipelines.image_to_text import ImageToTextPipeline
from hf_vlm.pipelines.image_tokenization import ImageTokenizationPipeline
from hf_vlm.pipelines.picture_question_answering import PictureQuestionAnsweringPipeline
from hf_vlm.pipelines.text_recognition import TextRecognitionPipeline


def register_tasks() -> None:
    """Add the tasks `text-recognition`, `image-captioning`, `image-tokenization` and `picture-question-answering`.

    Nothing that transformers has is changed.
    Without `model=`, `text-recognition` is done by the model that comes with the package, if it is there.
    """
    try:
        default: dict[str, Any] | None = {"model": (str(default_ocr_model()), "main")}
    except FileNotFoundError:
        default = None
    PIPELINE_REGISTRY.register_pipeline(
        "text-recognition",
        pipeline_class=TextRecognitionPipeline,
        # The first also reads `vision-encoder-decoder` folders and refuses all it doesn't know; the second reads adapters.
        pt_model=(TrOCREncoderDecoderForConditionalGeneration, AutoModelForImageTextToText),
        default=default,
        type="multimodal",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "image-captioning",
        pipeline_class=ImageCaptioningPipeline,
        pt_model=(AutoModelForImageTextToText,),
        type="multimodal",
    )
    PIPELINE_REGISTRY.register_pipeline(
        "image-tokenization", pipeline_class=ImageTokenizationPipeline, pt_model=(AutoModel,), type="image"
    )
    _register_question_answering("picture-question-answering")


def _register_question_answering(task: str) -> None:
    PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=PictureQuestionAnsweringPipeline,
        pt_model=(AutoModelForImageTextToText,),
        type="multimodal",
    )


def restore_removed_tasks() -> None:
    """Bring back `pipeline("image-to-text")` and `pipeline("visual-question-answering")`, which transformers 5 has no more.

    `image-to-text` it rewrites to `image-text-to-text`, which asks for text. Here our models and
    `VisionEncoderDecoderModel` are then served by `ImageToTextPipeline`; every other model goes on to
    `image-text-to-text` as before. `visual-question-answering`, or `vqa`, is then done by
    `PictureQuestionAnsweringPipeline`, with all models that it serves.

    For this, one private function of transformers is wrapped: hence a call of your own for the process that wants it, and
    not a consequence of importing hf_vlm. Calling it again changes nothing.
    """
    if PIPELINE_REGISTRY.supported_tasks.get("image-to-text", {}).get("impl") is _RestoredImageToTextPipeline:
        return
    PIPELINE_REGISTRY.register_pipeline(
        "image-to-text",
        pipeline_class=_RestoredImageToTextPipeline,
        pt_model=(AutoModelForImageTextToText,),
        type="multimodal",
    )
    _register_question_answering("visual-question-answering")
    PIPELINE_REGISTRY.task_aliases["vqa"] = "visual-question-answering"
    rewrite = getattr(transformers.pipelines, "_resolve_deprecated_task", None)
    if rewrite is None:  # another version of transformers, which asks the registry first
        return

    @functools.wraps(rewrite)
    def rewrite_unless_registered(task: str) -> str:
        known = task in PIPELINE_REGISTRY.supported_tasks or task in PIPELINE_REGISTRY.task_aliases
        return task if known else rewrite(task)

    transformers.pipelines._resolve_deprecated_task = rewrite_unless_registered


class _RestoredImageToTextPipeline:
    """What `pipeline("image-to-text")` constructs: the pipeline that serves the model, never an instance of this class."""

    _load_processor = None
    _load_tokenizer = None
    _load_image_processor = None
    _load_feature_extractor = False
    _load_video_processor = False

    def __new__(cls, model: PreTrainedModel, task: str, **settings: Any) -> Pipeline:
        picture_suffices = model.main_input_name == "pixel_values"
        if isinstance(model, HubModel | VisionEncoderDecoderModel) and picture_suffices:
            return ImageToTextPipeline(model=model, task=task, **settings)
        if settings.get("processor") is not None:  # the only part that `image-text-to-text` would have loaded
            settings.pop("tokenizer", None)
            settings.pop("image_processor", None)
        return ImageTextToTextPipeline(model=model, task="image-text-to-text", **settings)
