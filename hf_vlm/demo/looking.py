"""Which class a picture is of, and what a model looks at in it."""

from typing import Any

from PIL import Image
from transformers import ImageClassificationPipeline

from hf_vlm.demo.loaded_models import LoadedModel
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.parts.attention_pictures import seen_picture
from hf_vlm.parts.vision_features import load_vision_model, show_every_patch
from hf_vlm.pipelines.attention_maps import NoAttentionMapError, attention_maps, bias_maps
from hf_vlm.pipelines.attention_sheets import Sheet, attention_sheet, bias_sheet, caption_sheet, say_words

_NUM_CLASSES = 5


def classify(pipe: ImageClassificationPipeline, picture: Image.Image) -> list[tuple[str, float]]:
    """The likeliest classes and their probabilities, at most five, the likeliest first."""
    return [(row["label"], row["score"]) for row in pipe(picture, top_k=_NUM_CLASSES)]


def look(loaded: LoadedModel, picture: Image.Image) -> Sheet:
    """What a model looks at in a picture; of one that attends in windows, such as Swin, its relative position biases.

    A captioner that looks anew for every word tells where it looked for each.

    Raises:
        NoAttentionMapError: if there is neither.
        ValueError: if the picture doesn't suit the model.
    """
    model: Any = loaded.model
    if isinstance(model, CnnLstmForConditionalGeneration) and model.config.attention == "additive":
        said = say_words(model, loaded.processor, picture)
        return caption_sheet(said.seen, said.words, said.maps)
    vision, _ = load_vision_model(model)
    show_every_patch(vision.config)
    made = loaded.image_processor([picture], return_tensors="pt")
    inputs = {name: made[name].to(vision.device) for name in ("pixel_values", "pixel_mask") if name in made}
    try:
        maps = attention_maps(vision.eval(), **inputs)
    except NoAttentionMapError:
        biases = bias_maps(vision)
        if not biases:
            raise
        return bias_sheet(biases)
    return attention_sheet(seen_picture(loaded.image_processor, inputs["pixel_values"][0]), maps)
