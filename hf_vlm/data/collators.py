"""Examples in, a batch out: the processor is handed in, so that data never imports a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class LineCollator:
    """Turns `{"image", "text"}` examples into a batch for a line reader: pixels, their mask, labels.

    Args:
        processor: called as `processor(images=[...], text=[...], return_tensors="pt")`; gives `pixel_values`, `labels`
            (int64 (batch, tokens), ended, padded with -100) and, where lines are padded, `pixel_mask`.
        model: for Trainer's own label smoothing (`label_smoothing_factor`), which takes the labels away from the model:
            its `prepare_decoder_input_ids_from_labels` adds `decoder_input_ids` (int64, like `labels`).

    Raises:
        ValueError: if the model has a loss of its own besides plain cross-entropy, which Trainer's would replace.
    """

    def __init__(self, processor: Callable[..., Mapping[str, Any]], model: Any = None) -> None:
        for name in ("label_smoothing", "ctc_loss_weight"):
            if value := getattr(getattr(model, "config", None), name, 0):
                raise ValueError(
                    f"The loss is wanted from model or Trainer, got `{name}`={value} in the model's config beside "
                    "Trainer's `label_smoothing_factor`. Set one of the two to 0."
                )
        self.processor = processor
        self.model = model

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these examples.

        Raises:
            ValueError: if an example lacks its picture or text.
        """
        for index, example in enumerate(examples):
            if missing := [key for key in ("image", "text") if example.get(key) is None]:
                raise ValueError(
                    f"Every example must have `image` and `text`, got example {index} of the batch without "
                    f"{' and '.join(missing)}. Set `remove_unused_columns=False`, or rename the columns."
                )
        batch = dict(
            self.processor(
                images=[example["image"] for example in examples],
                text=[example["text"] for example in examples],
                return_tensors="pt",
            )
        )
        if self.model is not None:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        return batch
