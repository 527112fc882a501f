"""Examples in, a batch out: the processor is handed in, so that data never imports a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


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


class ConversationCollator:
    """Encoded conversations in, a batch out: padded rows, or one packed row.

    Args:
        pad_token_id: what fills rows up.
        is_packed: whether all conversations of a batch lie one behind the other in one row.
        pad_to_multiple_of: of padded rows' length.
        keep_sources: whether the rows' names come along, under `sources`.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        is_packed: bool,
        pad_to_multiple_of: int | None = None,
        keep_sources: bool = False,
    ) -> None:
        self.pad_token_id, self.is_packed = pad_token_id, is_packed
        self.pad_to_multiple_of, self.keep_sources = pad_to_multiple_of, keep_sources

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """The batch of these items, each an encoded conversation or a list of them.

        Returns: `input_ids` and `labels`, int64 (rows, tokens); padded `attention_mask`, int64; packed `position_ids`, int64,
            which start again at 0 with every conversation, whose first label carries no loss: the token before it is another
            conversation's. `pixel_values` or `image_features` of all pictures in order, where there are some.

        Raises:
            ValueError: if some conversations come with pixels and others with features.
        """
        examples = [example for item in items for example in (item if isinstance(item, list) else [item])]
        if self.is_packed:
            labels = [example["labels"].clone() for example in examples]
            for of_example in labels:
                of_example[:1] = -100
            batch: dict[str, Any] = {
                "input_ids": torch.cat([example["input_ids"] for example in examples])[None],
                "labels": torch.cat(labels)[None],
                "position_ids": torch.cat([torch.arange(len(of_example)) for of_example in labels])[None],
            }
        else:
            longest = max(len(example["input_ids"]) for example in examples)
            if self.pad_to_multiple_of is not None:
                longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
            batch = {
                "input_ids": torch.full((len(examples), longest), self.pad_token_id),
                "labels": torch.full((len(examples), longest), -100),
                "attention_mask": torch.zeros(len(examples), longest, dtype=torch.int64),
            }
            for row, example in enumerate(examples):
                length = len(example["input_ids"])
                batch["input_ids"][row, :length] = example["input_ids"]
                batch["labels"][row, :length] = example["labels"]
                batch["attention_mask"][row, :length] = 1
        kinds = [name for name in ("pixel_values", "image_features") if any(name in example for example in examples)]
        if len(kinds) > 1:
            names = ", ".join(str(example.get("source")) for example in examples)
            raise ValueError(
                f"A batch's pictures must all be pixels or all features, got both in {names}. Keep features of all sets or none."
            )
        for name in kinds:
            batch[name] = torch.cat([example[name] for example in examples if name in example])
        if self.keep_sources:
            batch["sources"] = [str(example.get("source")) for example in examples]
        return batch
