"""What a picture shows, in words: the task `image-captioning`."""

from hf_vlm.pipelines.image_to_text import ImageToTextPipeline


class ImageCaptioningPipeline(ImageToTextPipeline):
    """The captions that a model writes for a picture: `[{"generated_text": str}]`, one entry a caption asked for.

    `pipeline("image-captioning", model=FOLDER)(picture, num_return_sequences=3, num_beams=3)` gives three. Arguments and
    inputs are those of `ImageToTextPipeline`.
    """
