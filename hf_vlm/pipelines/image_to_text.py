"""Pictures in, text out, for models that need nothing but the picture: the way of every pipeline here.

path, URL, bytes or PIL picture -> `preprocess` opens it, upright, in RGB
  -> `_forward` prepares the pictures of a batch together, so the processor pads lines of different widths as in
     training, and generates token ids (batch, texts a picture, tokens)
  -> `postprocess` decodes the texts of one picture
"""

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import BatchFeature, GenerationConfig, GenerationMixin, Pipeline, PreTrainedModel

from hf_vlm.data.pictures import open_picture
from hf_vlm.parts.pictures import to_rgb


class ImageToTextPipeline(Pipeline):
    """The text that a model generates for a picture: `[{"generated_text": str}]`, one entry a text asked for.

    Use it by name with any model that generates from `pixel_values` alone, ours or a `VisionEncoderDecoderModel`:
    `pipeline("image-to-text", model=FOLDER, pipeline_class=hf_vlm.ImageToTextPipeline)`.

    Args:
        model: the model. One stored in half precision and loaded by `pipeline()` runs in float32 on a CPU, where that is
            twice as fast; ask for `dtype=torch.float16` to keep it.
        settings: as for `Pipeline` (`processor`, or `tokenizer` and `image_processor`; `device`, `batch_size`, ...), and
            what every call may be given: generation settings (`num_beams`, `max_new_tokens`, `generation_config`, ...)
            and `interpolate_pos_encoding`. What a call gives wins.

    Raises:
        ValueError: if there is no processor for the model.
        TypeError: if a setting is none that generation knows.
    """

    # Each is loaded where the folder has it: ours have a processor, some older ones only its two parts.
    _load_processor = None
    _load_tokenizer = None
    _load_image_processor = None
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    call_settings = frozenset({"interpolate_pos_encoding"})
    """What a call takes beside generation settings."""

    def __init__(self, model: PreTrainedModel, *, dtype: str | torch.dtype | None = None, **settings: Any) -> None:
        super().__init__(model, **settings)
        if self.tokenizer is None or self.image_processor is None:
            name = self.model.name_or_path or type(self.model).__name__
            raise ValueError(
                f"A processor for {name} is wanted, got none. Save one beside the model, or pass `processor=`; "
                "`AutoProcessor.from_pretrained` says what is wrong with one that is there."
            )
        if dtype == "auto" and self.device.type == "cpu" and self.dtype in (torch.float16, torch.bfloat16):
            self.model.float()

    def __call__(self, images: Any, **settings: Any) -> Any:
        """Read a picture, or many.

        Args:
            images: a picture (path, http(s) or data URL, bytes of a file, PIL picture), or a list, generator, torch data
                set or other sequence or iterator of them.
            settings: as at construction; also `batch_size` and `num_workers`.

        Returns: the result of a picture; for a sequence a list of results; for a generator, iterator or torch data set an
            iterator over them, which reads as it is asked.

        Raises:
            FileNotFoundError: if a picture is not there.
            ValueError: if a picture can't be read. Either message names the picture.
            TypeError: if it is no picture, or a setting is none that generation knows.
        """
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            images = list(images)
            if not images:
                return []
        elif isinstance(images, Iterator):
            images = (image for image in images)  # of all iterators, `Pipeline` knows only generators
        return super().__call__(images, **settings)

    def _sanitize_parameters(
        self, generate_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        settings = {**(generate_kwargs or {}), **settings}
        known = {
            *vars(GenerationConfig()),
            *inspect.signature(GenerationMixin.generate).parameters,
            *self.call_settings,
        }
        for name in sorted(settings.keys() - known):
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"Did you mean `{near[0]}`?" if near else "See `transformers.GenerationConfig`."
            raise TypeError(f"A setting of the pipeline or of generation is wanted, got `{name}`. {advice}")
        return {}, settings, {}

    def preprocess(self, image: Any) -> dict[str, Any]:
        """Open one picture; the batch it ends up in is prepared as a whole.

        Raises:
            ValueError: if the picture is damaged or none at all.
            OSError: if there is no such file.
        """
        picture = open_picture(image)
        try:
            return {"picture": to_rgb(picture)}
        except (OSError, ValueError) as error:  # a PIL picture that was opened, but not read before
            name = image if isinstance(image, str | os.PathLike) else getattr(picture, "filename", "") or repr(picture)
            raise ValueError(
                f"{name}: wanted a whole picture, got an error from Pillow ({error}). Save or copy it again."
            ) from error

    def _forward(
        self, model_inputs: dict[str, Any], interpolate_pos_encoding: bool = False, **generation: Any
    ) -> dict[str, Any]:
        inputs = self.prepare(model_inputs["picture"])
        if interpolate_pos_encoding:
            inputs["interpolate_pos_encoding"] = True
        generation = self._prepare_generate_kwargs(generation, return_dict_in_generate=False)
        sequences = self.model.generate(**inputs, **generation)
        num_pictures = len(inputs["pixel_values"])
        return {"sequences": sequences.view(num_pictures, -1, sequences.shape[-1])}

    def prepare(self, pictures: Any) -> BatchFeature:
        """Model inputs of a batch: a list of RGB pictures, or a single one."""
        prepare = self.processor if self.processor is not None else self.image_processor
        pictures = pictures if isinstance(pictures, list) else [pictures]
        return prepare(images=pictures, return_tensors="pt").to(self.device, self.dtype)

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The texts of one picture."""
        (sequences,) = model_outputs["sequences"]  # int64 (1, texts, tokens)
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor, a folder for `from_pretrained` and `pipeline`.

        `Pipeline.save_pretrained` would leave out the processor, and turn the folder into one that asks to trust code.
        """
        parts = [self.processor] if self.processor is not None else [self.tokenizer, self.image_processor]
        for part in (self.model, *parts):
            part.save_pretrained(save_directory, **kwargs)
