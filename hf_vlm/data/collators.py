"""Examples in, a batch out: the processor is handed in, so that data never imports a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch


class LineCollator:
    """Turns `{"image", "text"}` examples into a batch for a model that writes about a picture: pixels, their mask, labels.

    An example may have `prompt`, a question that its text goes on from, and `image_features`, float (tokens, width), in place of
    `image`; all of a batch or none. Where examples have a `source`, the file and row that they are, the batch has them as
    `sources`.

    Args:
        processor: called as `processor(images=[...], text=[...], prompt=[...], return_tensors="pt")`; gives `pixel_values`,
            `labels` (int64 (batch, tokens), ended, padded with -100), where lines are padded `pixel_mask`, and with
            prompts `decoder_input_ids`.
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
            picture = "image_features" if "image_features" in example else "image"
            if missing := [key for key in (picture, "text") if example.get(key) is None]:
                raise ValueError(
                    f"Every example must have `image` and `text`, got example {index} of the batch without "
                    f"{' and '.join(missing)}. Set `remove_unused_columns=False`, or rename the columns."
                )
        columns = {"images": "image", "text": "text", "prompt": "prompt"}
        given = {
            argument: [example[key] for example in examples] for argument, key in columns.items() if key in examples[0]
        }
        batch = dict(self.processor(**given, return_tensors="pt"))
        if "image_features" in examples[0]:
            batch["image_features"] = torch.stack([example["image_features"] for example in examples])
        if self.model is not None and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        if "source" in examples[0]:
            batch["sources"] = [_source(example) for example in examples]
        return batch


class ConversationCollator:
    """Encoded conversations in, a batch out: padded rows, or one packed row.

    Args:
        pad_token_id: what fills padded rows up.
        is_packed: whether all conversations of a batch lie one behind the other in one row, without padding.
        padding_side: where padded rows are filled up.
        pad_to_multiple_of: padded rows' length is one of its multiples; None for the longest conversation's.
        keep_sources: whether the conversations' names come along, under `sources`.

    Raises:
        ValueError: if a packed row is to be padded, or `padding_side` is neither left nor right.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        is_packed: bool,
        padding_side: Literal["left", "right"] = "right",
        pad_to_multiple_of: int | None = None,
        keep_sources: bool = False,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f'`padding_side` must be "left" or "right", got {padding_side!r}. Training takes "right".')
        if pad_to_multiple_of is not None and (is_packed or pad_to_multiple_of < 1):
            raise ValueError(
                f"`pad_to_multiple_of` must be 1 or more, and is for padded rows only, got {pad_to_multiple_of} with "
                f"`is_packed={is_packed}`. Leave it out."
            )
        self.pad_token_id, self.is_packed, self.padding_side = pad_token_id, is_packed, padding_side
        self.pad_to_multiple_of, self.keep_sources = pad_to_multiple_of, keep_sources

    def __call__(self, items: Sequence[Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """The batch of these items, each an encoded conversation or a list of them.

        Returns: `input_ids` and `labels`, int64 (rows, tokens). Padded: `attention_mask`, int64 (rows, tokens); labels of
            padding are -100. Packed: one row, and `position_ids`, int64 (1, tokens), which start again at 0 with every
            conversation; its first label is -100, as it would be learnt from the conversation before. There is no mask: with
            one, models would not look at the positions. Where there are pictures, `pixel_values`, float (pictures, channels,
            height, width), or `image_features`, float (pictures, tokens, width), of all conversations in order.

        Raises:
            ValueError: if some conversations come with pixels and others with features.
        """
        examples = [example for item in items for example in ([item] if isinstance(item, Mapping) else item)]
        batch = self._packed(examples) if self.is_packed else self._padded(examples)
        with_kind = {
            kind: [example for example in examples if kind in example] for kind in ("pixel_values", "image_features")
        }
        if all(with_kind.values()):
            pixels, features = (", ".join(map(_source, of_kind)) for of_kind in with_kind.values())
            raise ValueError(
                f"A batch's pictures must all be `pixel_values` or all `image_features`, got pixels of {pixels}, and features of "
                f"{features}. Compute the features of all sets, or of none."
            )
        for kind, of_kind in with_kind.items():
            if of_kind:
                batch[kind] = torch.cat([example[kind] for example in of_kind])
        if self.keep_sources:
            batch["sources"] = [_source(example) for example in examples]
        return batch

    def _packed(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        labels = torch.cat([example["labels"] for example in examples])  # a copy: the examples' own stay as they are
        position_ids = torch.cat([torch.arange(len(example["input_ids"])) for example in examples])
        labels[position_ids == 0] = -100
        input_ids = torch.cat([example["input_ids"] for example in examples])
        return {"input_ids": input_ids[None], "labels": labels[None], "position_ids": position_ids[None]}

    def _padded(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        multiple = self.pad_to_multiple_of or 1
        longest = math.ceil(max(len(example["input_ids"]) for example in examples) / multiple) * multiple
        batch = {
            "input_ids": torch.full((len(examples), longest), self.pad_token_id),
            "labels": torch.full((len(examples), longest), -100),
            "attention_mask": torch.zeros(len(examples), longest, dtype=torch.int64),
        }
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            real = slice(longest - length, longest) if self.padding_side == "left" else slice(length)
            batch["input_ids"][row, real] = example["input_ids"]
            batch["labels"][row, real] = example["labels"]
            batch["attention_mask"][row, real] = 1
        return batch


def _source(example: Mapping[str, Any]) -> str:
    return str(example.get("source", "a row without a source"))
