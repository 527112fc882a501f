"""A saved model as benchmarks ask it: pictures and a text in, an answer out, or how unlikely it finds a given one.

    LLaVA: conversations -> the processor's chat template -> tokens padded at the left, pixels -> `generate`
    TrOCR, CNN + LSTM: one picture -> pixels (and a question, where the decoder goes on from one) -> `generate`

A benchmark's harness is put on top: `lmms_eval.py`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from hf_vlm.blocks.token_loss import IGNORE_INDEX
from hf_vlm.training.scores.conversation_evaluation import is_visual_chat, load_visual_chat
from hf_vlm.training.scores.task_evaluation import architecture_of, check_start_token, load_answerer

Messages = list[dict[str, Any]]


class BenchmarkModel:
    """A model of ours and its processor, asked in batches.

    Args:
        name_or_folder: of a LLaVA, a TrOCR or a CNN + LSTM captioner, or of an adapter.
        device: where it computes, such as `cuda:0`; the first GPU by default, else the CPU.
        dtype: of its weights, such as `bfloat16`.

    Raises:
        ValueError: if it is another kind of model, or there is no such dtype.
    """

    def __init__(self, name_or_folder: str, device: str | None = None, dtype: str = "float32") -> None:
        precision = getattr(torch, dtype, None)
        if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
            raise ValueError(f"`dtype` must be `float32`, `bfloat16` or `float16`, got {dtype!r}. Choose one.")
        self.is_chat = is_visual_chat(name_or_folder)
        if self.is_chat:
            self.model, self.processor = load_visual_chat(name_or_folder)
        else:
            if (architecture := architecture_of(name_or_folder)) is None:
                raise ValueError(
                    f"A model that writes is wanted, a LLaVA, a TrOCR or a CNN + LSTM, got {name_or_folder}, which is none. "
                    "Name another."
                )
            self.model, self.processor = load_answerer(name_or_folder, "ocr" if architecture == "trocr" else "caption")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = self.model.to(device=self.device, dtype=precision).eval()
        self._told: set[str] = set()

    def answer(self, conversations: Sequence[Messages], settings: Mapping[str, Any] | None = None) -> list[str]:
        """What the model says to each conversation: greedy unless the settings say otherwise, blanks at its ends left out.

        Args:
            conversations: each from `as_messages`, or several turns of that form; the last is the user's.
            settings: of `generate`; `until`, a text or several, ends an answer before the first of them. Where none says how
                long an answer may be, the model's own settings do. What `generate` doesn't know is left out, with a warning.

        Raises:
            ValueError: if the model is no chat and a conversation has not one picture; or it is asked what it can't take.
        """
        settings = dict(settings or {})
        until = settings.pop("until", None) or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        generation = self._generation_settings(settings)
        said = (self._answer_chats if self.is_chat else self._answer_pictures)(conversations, generation)
        return [cut_at(text, stops).strip() for text in said]

    def losses(self, conversations: Sequence[Messages]) -> list[tuple[float, bool]]:
        """How unlikely the model finds the last message of each conversation, the assistant's.

        Returns: nats a token, its mean over the answer and the end of the turn as in training; and whether the model, going
            on greedily, would say just that.

        Raises:
            ValueError: if the model is no chat, or a conversation doesn't end with the assistant.
        """
        if not self.is_chat:
            raise ValueError(
                f"Answers are weighed by a chat model, got `{type(self.model).__name__}`. Use a LLaVA, or tasks that generate."
            )
        encoded = [self.processor.encode_conversation(_without_pictures(messages)) for messages in conversations]
        longest = max(len(row["input_ids"]) for row in encoded)
        input_ids = torch.full((len(encoded), longest), self.processor.tokenizer.pad_token_id)
        attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, IGNORE_INDEX)
        for row, tokens in enumerate(encoded):  # padded at the right, which no answer sees
            length = len(tokens["input_ids"])
            input_ids[row, :length] = torch.tensor(tokens["input_ids"])
            labels[row, :length] = torch.tensor(tokens["labels"])
            attention_mask[row, :length] = 1
        inputs: dict[str, torch.Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if pictures := [picture for messages in conversations for picture in pictures_of(messages)]:
            inputs["pixel_values"] = self.processor.prepare_images(pictures)
        with torch.inference_mode():
            logits = self.model(**{name: value.to(self.device) for name, value in inputs.items()}).logits
        results = []
        for row in range(len(encoded)):
            (places,) = (labels[row, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
            wanted = labels[row, 1:][places].to(logits.device)
            predicted = logits[row, :-1][places.to(logits.device)].float()
            loss = torch.nn.functional.cross_entropy(predicted, wanted)
            results.append((float(loss), bool((predicted.argmax(dim=-1) == wanted).all())))
        return results

    def _answer_chats(self, conversations: Sequence[Messages], generation: dict[str, Any]) -> list[str]:
        inputs = self.processor.apply_chat_template(
            list(conversations),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.device)
        generation = {"do_sample": False, **generation}
        with torch.inference_mode():
            token_ids = self.model.generate(**inputs, **generation)
        new_ids = token_ids[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new_ids, skip_special_tokens=True)

    def _answer_pictures(self, conversations: Sequence[Messages], generation: dict[str, Any]) -> list[str]:
        """Of a model that writes about one picture; the question is put in front of what it writes, if it takes one."""
        pictures = [pictures_of(messages) for messages in conversations]
        if others := [len(row) for row in pictures if len(row) != 1]:
            raise ValueError(
                f"`{type(self.model).__name__}` writes about one picture, got {others[0]}. Use a LLaVA, or another task."
            )
        questions = [_text_of(messages[-1]) for messages in conversations]
        asks = self.processor.takes_prompt and any(questions)
        if not asks:
            return self._write([row[0] for row in pictures], None, generation)
        check_start_token(self.model, self.processor)
        tokens = self.processor.tokenizer(questions, add_special_tokens=False)["input_ids"]
        said = [""] * len(questions)
        for length in sorted(
            {len(row) for row in tokens}
        ):  # a padded question would stand elsewhere than it was learnt
            alike = [row for row, ids in enumerate(tokens) if len(ids) == length]
            texts = self._write([pictures[row][0] for row in alike], [questions[row] for row in alike], generation)
            for row, text in zip(alike, texts, strict=True):
                said[row] = text
        return said

    def _write(self, pictures: list[Image.Image], questions: list[str] | None, generation: dict[str, Any]) -> list[str]:
        prompt = {} if questions is None else {"prompt": questions}
        inputs = self.processor(images=pictures, return_tensors="pt", **prompt).to(self.device)
        begun = 0 if questions is None else inputs["decoder_input_ids"].shape[1]
        with torch.inference_mode():
            token_ids = self.model.generate(**inputs, **generation)
        return self.processor.batch_decode(token_ids[:, begun:], skip_special_tokens=True)

    def _generation_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What `generate` is called with: what it knows, sampling only at a temperature above 0."""
        known = vars(GenerationConfig())
        generation = {name: value for name, value in settings.items() if name in known and value is not None}
        for name in sorted(set(settings) - set(known) - self._told):
            warnings.warn(f"`generate` has no setting `{name}`: a task's is left out.", stacklevel=3)
            self._told.add(name)
        if generation.get("temperature") == 0 or generation.get("do_sample") is False:
            generation["do_sample"] = False
            for name in ("temperature", "top_p", "top_k"):
                generation.pop(name, None)
        elif "temperature" in generation:
            generation.setdefault("do_sample", True)
        return generation


def as_messages(text: str, pictures: Sequence[Image.Image], image_token: str = "<image>") -> Messages:
    """One turn of the user: the pictures where the text has places for all of them, else in front of it.

    Args:
        text: with or without `image_token`, which some benchmarks write and others don't.
    """
    pieces = text.split(image_token)
    if len(pieces) != len(pictures) + 1:
        first: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        return [{"role": "user", "content": [*first, {"type": "text", "text": "".join(pieces).strip()}]}]
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        if index:
            parts.append({"type": "image", "image": pictures[index - 1]})
        if piece.strip() or not (index or pictures):
            parts.append({"type": "text", "text": piece.strip()})
    return [{"role": "user", "content": parts}]


def pictures_of(messages: Messages) -> list[Image.Image]:
    """The pictures of a conversation, in the order of their places."""
    return [part["image"] for message in messages for part in _parts(message) if part["type"] == "image"]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops` that it holds."""
    ends = [text.find(stop) for stop in stops]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text_of(message: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text").strip()


def _without_pictures(messages: Messages) -> Messages:
    """Places for pictures alone, as training data has them."""
    return [
        {
            "role": message["role"],
            "content": [{"type": "image"} if part["type"] == "image" else part for part in _parts(message)],
        }
        for message in messages
    ]
