"""Conversations as a model reads them: tokens, which of them are learnt, and pictures, opened when an item is asked for."""

import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from hf_vlm.data.conversations.caption_requests import with_caption_request
from hf_vlm.data.conversations.conversation_order import weighted_rows
from hf_vlm.data.conversations.conversations import Conversations
from hf_vlm.data.worker_processes import work_on

logger = logging.getLogger(__name__)

_ENCODED = datasets.Features(  # arrays as bytes: of int32, and of bool
    {
        "tokens": datasets.Value("binary"),
        "learnt": datasets.Value("binary"),
        "is_cut": datasets.Value("bool"),
        "error": datasets.Value("string"),
    }
)


class EncodedConversations(Dataset):
    """Map-style: item i is row i, encoded. All texts are encoded at once, so that a wrong row is told before training.

    Args:
        rows: the conversations.
        processor: encodes them: `encode_conversation(messages, max_length=, chat_template=)`, `prepare_images(pictures)`.
        max_length: as in `encode_conversation`.
        context: None, "instruction" or "plain", see `LlavaDataSection`.
        seed: with the row's number decides the request of "instruction".
        features: (pictures, image tokens, width) of all rows' pictures in order, in place of their pixels; None for pixels.
        bad_pictures: "fail" raises at a picture that can't be read; "skip" gives the row with a black one and nothing to learn.
        skipped_file: where "skip" lists rows, one a line, each process those that it meets.
        num_proc: processes that encode; with 2 and more, what they made is kept in the cache of `datasets`, where the other
            processes of a run, and later runs on the same rows, find it.

    Attributes:
        lengths: int64 (rows,), tokens.
        num_images: int64 (rows,), pictures.
        num_learnt: int64 (rows,), tokens that carry loss.
        num_cut: rows of which `max_length` took something.

    Raises:
        ValueError: if a row can't be encoded, naming it.
        ChildProcessError: if a process that encodes is killed.
    """

    def __init__(
        self,
        rows: Conversations,
        processor: Any,
        *,
        max_length: int | None = None,
        context: Literal["instruction", "plain"] | None = None,
        seed: int = 0,
        features: np.ndarray | None = None,
        bad_pictures: Literal["fail", "skip"] = "fail",
        skipped_file: Path | None = None,
        num_proc: int = 1,
    ) -> None:
        self.rows, self.processor, self.features = rows, processor, features
        self.bad_pictures, self.skipped_file = bad_pictures, skipped_file
        self.num_cut = 0
        self._noted: set[str] = set()
        settings: dict[str, Any] = {"max_length": max_length, "context": context, "seed": seed}
        encode = functools.partial(encode_rows, processor=processor, **settings)
        fingerprint = _fingerprint(rows, processor, settings) if num_proc > 1 else None
        tokens: list[np.ndarray] = []
        learnt: list[np.ndarray] = []
        made = work_on(rows, encode, _ENCODED, num_proc=num_proc, fingerprint=fingerprint, option="data.num_proc")
        for row in tqdm(made, "Encoding conversations", len(rows), leave=False, disable=len(rows) < 10_000):
            if row["error"]:
                raise ValueError(row["error"])
            tokens.append(np.frombuffer(row["tokens"], np.int32))
            learnt.append(np.frombuffer(row["learnt"], bool))
            self.num_cut += row["is_cut"]
        self.lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        self.num_learnt = np.array([row.sum() for row in learnt], dtype=np.int64)
        # Only pictures that a cut conversation still holds are shown.
        per_image = processor.num_image_tokens
        self.num_images = np.array(
            [(row == processor.image_token_id).sum() // per_image for row in tokens], dtype=np.int64
        )
        self._ends = np.cumsum(self.lengths)
        self._tokens = (
            np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        )  # one array: workers share its memory
        self._learnt = np.concatenate(learnt) if learnt else np.zeros(0, bool)
        self._first_picture = np.concatenate([[0], np.cumsum([rows.num_images(index) for index in range(len(rows))])])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: `input_ids` and `labels`, int64 (tokens,); `pixel_values` or `image_features`, where it has pictures;
        `source`.

        Raises:
            ValueError: if a picture can't be read and that is not to be skipped.
        """
        end, length = int(self._ends[index]), int(self.lengths[index])
        input_ids = torch.from_numpy(self._tokens[end - length : end].astype(np.int64))
        learnt = torch.from_numpy(self._learnt[end - length : end])
        item = {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(~learnt, -100),
            "source": self.rows.sources[index],
        }
        number = int(self.num_images[index])
        if number == 0:
            return item
        if self.features is not None:
            first = int(self._first_picture[index])
            item["image_features"] = torch.from_numpy(np.array(self.features[first : first + number]))
            return item
        try:
            item["pixel_values"] = self.processor.prepare_images(self.rows.images(index)[:number])
        except (ValueError, OSError) as error:
            if self.bad_pictures == "fail":
                raise
            self._note(str(error))
            height, width = self.processor.image_size
            item["pixel_values"] = torch.zeros(number, 3, height, width)
            item["labels"] = torch.full_like(input_ids, -100)
        return item

    def _note(self, message: str) -> None:
        if message in self._noted:  # every epoch comes by
            return
        self._noted.add(message)
        logger.warning("Nothing is learnt from a row: %s", message)
        if self.skipped_file is not None:
            with self.skipped_file.open("a", encoding="utf-8") as file:
                file.write(message.replace("\n", " ") + "\n")


def encode_rows(
    rows: Conversations,
    first: int,
    *,
    processor: Any,
    max_length: int | None,
    context: Literal["instruction", "plain"] | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The rows encoded, as `_ENCODED` has it; at one that can't be, what is wrong with it, and no more.

    Args:
        first: number of the first in the whole set.
        processor, max_length, context, seed: as in `EncodedConversations`.
    """
    template = "plain" if context == "plain" else None
    for index in range(len(rows)):
        try:
            messages = rows.messages(index)
            if context is not None:  # "plain" leaves the request out, but wants a caption too
                messages = with_caption_request(messages, seed, first + index)
            encoded = processor.encode_conversation(messages, chat_template=template)
            is_cut = max_length is not None and len(encoded["input_ids"]) > max_length
            if is_cut:
                encoded = processor.encode_conversation(messages, max_length=max_length, chat_template=template)
        except ValueError as error:
            yield {"tokens": b"", "learnt": b"", "is_cut": False, "error": f"{rows.sources[index]}: {error}"}
            return
        tokens = np.asarray(encoded["input_ids"], np.int32)
        learnt = np.asarray(encoded["labels"]) >= 0
        yield {"tokens": tokens.tobytes(), "learnt": learnt.tobytes(), "is_cut": is_cut, "error": None}


def _fingerprint(rows: Conversations, processor: Any, settings: Mapping[str, Any]) -> str:
    """Of all that tokens follow from: rows, tokenizer, templates, what makes a picture's tokens, and the code."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    code = [Path(inspect.getfile(kind)) for kind in type(processor).__mro__ if kind.__module__.startswith("hf_vlm.")]
    parts = [
        rows.hash_words(),
        json.dumps(dict(settings), sort_keys=True),
        backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())),
        repr([tokenizer.special_tokens_map, tokenizer.init_kwargs, tokenizer.chat_template, processor.chat_template]),
        json.dumps(processor.to_dict(), sort_keys=True, default=str),
        repr([processor.num_image_tokens, processor.image_token_id]),
        repr({package: importlib.metadata.version(package) for package in ("transformers", "tokenizers")}),
        *(file.read_text(encoding="utf-8") for file in [Path(__file__), *code]),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class JoinedConversations(Sequence[dict[str, Any]]):
    """Several sets of encoded conversations, one behind the other.

    Args:
        sets: the sets.
        weights: how often the rows of each come: 2.5 is twice, and every second row, chosen by the seed, once more; None is once.
        seed: of that choice.
    """

    def __init__(
        self, sets: Sequence[EncodedConversations], weights: Sequence[float] | None = None, *, seed: int = 0
    ) -> None:
        self.sets = list(sets)
        self._starts = np.concatenate([[0], np.cumsum([len(of_set) for of_set in sets])])
        chosen = []
        for index, weight in enumerate(weights if weights is not None else [1.0] * len(sets)):
            chosen.append(self._starts[index] + weighted_rows(len(self.sets[index]), weight, seed=seed, source=index))
        self._rows = np.concatenate(chosen)
        self.lengths, self.num_images, self.num_learnt = (
            np.concatenate([getattr(of_set, name) for of_set in sets])[self._rows]
            for name in ("lengths", "num_images", "num_learnt")
        )
        self.num_cut = sum(of_set.num_cut for of_set in sets)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = int(self._rows[index])
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.sets[which][int(row - self._starts[which])]
