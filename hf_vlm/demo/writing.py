"""Captions of a picture, and answers to a question about one."""

from typing import Any

from PIL import Image

from hf_vlm.pipelines.image_captioning import ImageCaptioningPipeline
from hf_vlm.pipelines.picture_question_answering import PictureQuestionAnsweringPipeline


def write_captions(pipe: ImageCaptioningPipeline, picture: Image.Image, num_captions: int = 1) -> list[str]:
    """Captions of a picture, the likeliest first; several are found by a beam search of as many beams, or more."""
    settings: dict[str, Any] = {}
    if num_captions > 1:
        beams = max(num_captions, pipe.model.generation_config.num_beams or 1)
        settings = {"num_return_sequences": num_captions, "num_beams": beams}
    return [row["generated_text"] for row in pipe(picture, **settings)]


def answer_question(
    pipe: PictureQuestionAnsweringPipeline, picture: Image.Image, question: str, num_answers: int = 3
) -> list[tuple[str, float]]:
    """Answers and the probability that the model gives to exactly each, the best first.

    Raises:
        ValueError: if the question is empty or too long.
    """
    return [(row["answer"], row["score"]) for row in pipe(picture, question=question, top_k=num_answers)]
