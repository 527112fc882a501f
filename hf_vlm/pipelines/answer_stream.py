"""An answer as its words come: `generate` in a thread of its own, and where an answer ends."""

import difflib
import inspect
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

_LOOK_SECONDS = 0.2  # between looks for a Ctrl-C, which some systems don't deliver to a waiting thread
_OWN_SETTINGS = {"self", "inputs", "streamer", "kwargs", "num_return_sequences", "return_dict_in_generate"}


class _Stop(StoppingCriteria):
    """Ends an answer at the token at which an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Generation:
    """`generate` in a thread of its own; iterating gives text as it comes, and raises what it raised."""

    def __init__(self, model: Any, tokenizer: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._streamer = TextIteratorStreamer(
            tokenizer, skip_prompt=True, timeout=_LOOK_SECONDS, skip_special_tokens=True
        )
        self._stop = threading.Event()
        self._error: BaseException | None = None
        arguments: dict[str, Any] = {**inputs, **settings, "num_return_sequences": 1, "return_dict_in_generate": False}
        arguments["stopping_criteria"] = StoppingCriteriaList(
            [*(settings.get("stopping_criteria") or ()), _Stop(self._stop)]
        )
        given = settings.get("generation_config") or model.generation_config
        streams = (settings.get("num_beams", getattr(given, "num_beams", None)) or 1) == 1
        self._thread = threading.Thread(target=self._run, args=(model, tokenizer, arguments, streams), daemon=True)
        self._thread.start()

    def _run(self, model: Any, tokenizer: Any, arguments: dict[str, Any], streams: bool) -> None:
        try:
            if streams:
                model.generate(**arguments, streamer=self._streamer)
            else:  # of beams, what was said first is known at the end
                (tokens,) = model.generate(**arguments)
                answer = tokens[arguments["input_ids"].shape[1] :]
                self._streamer.on_finalized_text(tokenizer.decode(answer, skip_special_tokens=True))
        except BaseException as error:  # raised where the text is taken
            self._error = error
        finally:
            self._streamer.on_finalized_text("", stream_end=True)

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                yield next(self._streamer)
            except queue.Empty:
                continue
            except StopIteration:
                break
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End at the next token, and wait for it."""
        self._stop.set()
        self._thread.join()


def check_generation_settings(settings: Mapping[str, Any]) -> None:
    """Checks that generation knows every setting.

    Raises:
        TypeError: if not, or if it is one that a session sets itself.
    """
    known = {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters} - _OWN_SETTINGS
    for name in sorted(settings.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"Did you mean `{near[0]}`?" if near else "See `transformers.GenerationConfig`."
        raise TypeError(f"A setting of generation is wanted, got `{name}`. {advice}")


def without_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the strings that stop an answer."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def surely_said(text: str, stops: Sequence[str]) -> str:
    """A text without what stops it, without an end that may be the beginning of such a string, and blanks before these."""
    text = without_stop(text, stops)
    unsure = [number for stop in stops for number in range(1, len(stop)) if text.endswith(stop[:number])]
    return text[: len(text) - max(unsure, default=0)].rstrip()
