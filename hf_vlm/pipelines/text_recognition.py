"""The text in a picture, and how sure the model is of each word: the task `text-recognition`."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_vlm.models.trocr.recognition import RecognizedText
from hf_vlm.parts.picture_text_processor import check_vocabulary
from hf_vlm.pipelines.image_to_text import ImageToTextPipeline


class TextRecognitionPipeline(ImageToTextPipeline):
    """The text in a picture of a line: `[{"generated_text": str, "score": float, "words": list}]`, always one entry.

    `score` and the `confidence` of each of `words`, `{"word", "confidence"}`, are probabilities in [0, 1], as
    `TrOCREncoderDecoderForConditionalGeneration.recognize` gives them. `vision-encoder-decoder` folders, such as
    microsoft/trocr-*, are read by that class too.

    Args:
        settings: as for `ImageToTextPipeline`, at construction or call; also `abstain_below`, in [0, 1]: where the score
            is lower the text is empty, and every result says whether it is `abstained`. None gives every text.

    Raises:
        ValueError: if the model can't tell how sure it is, there is no processor for it, or a tokenizer of other tokens.
    """

    call_settings = ImageToTextPipeline.call_settings | {"abstain_below"}

    def __init__(self, model: PreTrainedModel, *, dtype: str | torch.dtype | None = None, **settings: Any) -> None:
        super().__init__(model, dtype=dtype, **settings)
        if not hasattr(model, "recognize"):
            raise ValueError(
                f"A model with `recognize` is wanted, got `{type(model).__name__}`. Load the folder with "
                "`TrOCREncoderDecoderForConditionalGeneration.from_pretrained`, which says if it can't, or use "
                "`ImageToTextPipeline`."
            )
        check_vocabulary(self.model, self.tokenizer)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        _, reading, _ = super()._sanitize_parameters(**settings)
        return {}, reading, {name: reading[name] for name in ("abstain_below",) if name in reading}

    def _forward(
        self, model_inputs: dict[str, Any], interpolate_pos_encoding: bool = False, **settings: Any
    ) -> dict[str, Any]:
        abstain_below = settings.pop("abstain_below", None)
        recognized = self.model.recognize(
            **self.prepare(model_inputs["picture"]),
            tokenizer=self.tokenizer,
            abstain_below=abstain_below,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **self._prepare_generate_kwargs(settings),
        )
        return {"recognized": recognized}

    def postprocess(self, model_outputs: dict[str, Any], abstain_below: float | None = None) -> list[dict[str, Any]]:
        """The result of one picture."""
        recognized = model_outputs["recognized"]
        if isinstance(recognized, list):  # as `_forward` gave it; out of a batch it comes alone
            (recognized,) = recognized
        assert isinstance(recognized, RecognizedText)
        result = {"generated_text": recognized.text, "score": recognized.score, "words": recognized.words}
        if abstain_below is not None:
            result["abstained"] = recognized.abstained
        return [result]
