"""Our models under lmms-eval, the harness of some hundred benchmarks of pictures and text.

    pip install hf-vlm lmms-eval          # lmms-eval 0.7.3
    lmms-eval --model hf_vlm --model_args pretrained=FOLDER --tasks mme,pope,gqa --batch_size 16

`FOLDER` is a folder or Hub name of a LLaVA, of an adapter, or, for tasks about one picture such as captions or lines of text,
of a TrOCR or CNN + LSTM. Further `--model_args`: `device=cuda:0`, `dtype=bfloat16`, `system_prompt=TEXT`. Tasks of your own
are found by `--include_path FOLDER`, a folder of YAML files. With several GPUs: `accelerate launch -m lmms_eval ...`.

Tasks with `output_type: multiple_choice` or `loglikelihood` want `--force_simple`: lmms-eval asks models of conversations for
text alone. For those it expects a loss, and takes the choice of the least (nats a token here, the end of the turn included, as
of its own LLaVA), whatever its documentation says of probabilities.

How lmms-eval finds it: the entry point `hf_vlm` in the group `lmms_eval.models`, which names `manifest`.

Source: K. Zhang et al. 2024, https://arxiv.org/abs/2407.12772; https://github.com/EvolvingLMMs-Lab/lmms-eval
"""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from hf_vlm.sharing.benchmark_model import BenchmarkModel, Messages, as_messages, pictures_of

try:
    from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
    from lmms_eval.api.model import lmms
except ImportError:  # who has no lmms-eval may look, as documentation and tests do; it alone makes use of the classes
    lmms = object


class HfVlmChat(lmms):
    """A model that is asked by conversations, as `doc_to_messages` of a task makes them. Requests are lmms-eval's `Instance`s.

    Args:
        pretrained: folder or Hub name.
        batch_size: questions at a time.
        device, dtype: as for `BenchmarkModel`.
        system_prompt: a text, or a file with one, that every conversation begins with.
        max_batch_size: not used; lmms-eval passes it.

    Raises:
        ValueError: as `BenchmarkModel`; or if `batch_size` is no number above 0.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "float32",
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(
                f"`batch_size` must be a number above 0, got {batch_size!r}. lmms-eval's `auto` is for others."
            )
        self.accelerator = Accelerator()  # lmms-eval gathers what several processes found by it
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1:
            device = str(self.accelerator.device)
        self.batch_size = int(batch_size)
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.asked = BenchmarkModel(pretrained, device, dtype)

    @property
    def device(self) -> Any:
        """Where the model computes."""
        return self.asked.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers, in the requests' order."""
        arguments = [self._generation_arguments(request) for request in requests]
        return self._in_batches(arguments, [str(settings) for _, settings in arguments])

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """The loss of each given answer, nats a token, and whether it is what the model would say: (float, bool)."""
        conversations = [self._weighed(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: _length(conversations[index]))
        results: list[Any] = [None] * len(requests)
        for first in tqdm(range(0, len(order), self.batch_size), desc="Weighing", disable=self.rank != 0):
            rows = order[first : first + self.batch_size]
            for row, result in zip(rows, self.asked.losses([conversations[row] for row in rows]), strict=True):
                results[row] = _kept_apart(result)
        return results

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not done.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Tasks of one round are wanted, got one of several. Leave it out of `--tasks`.")

    def _in_batches(self, arguments: Sequence[tuple[Messages, dict[str, Any]]], kinds: Sequence[str]) -> list[str]:
        """Answers to conversations; those that share a batch are asked with the same settings, and are of like length."""
        order = sorted(range(len(arguments)), key=lambda index: (kinds[index], _length(arguments[index][0])))
        batches: list[list[int]] = []
        for index in order:
            if not batches or len(batches[-1]) == self.batch_size or kinds[batches[-1][-1]] != kinds[index]:
                batches.append([])
            batches[-1].append(index)
        answers = [""] * len(arguments)
        for rows in tqdm(batches, desc="Answering", disable=self.rank != 0):
            conversations = [self._with_system_prompt(arguments[row][0]) for row in rows]
            for row, answer in zip(rows, self.asked.answer(conversations, arguments[rows[0]][1]), strict=True):
                answers[row] = answer
        return answers

    def _with_system_prompt(self, messages: Messages) -> Messages:
        return self._apply_system_prompt(list(messages), self.system_prompt) if self.system_prompt else messages

    def _generation_arguments(self, request: Any) -> tuple[Messages, dict[str, Any]]:
        _, doc_to_messages, settings, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return [self._own_message(message) for message in messages], settings

    def _own_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of lmms-eval's, whose pictures stand under `url`, as our processors take it."""
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] not in ("text", "image"):
                raise ValueError(
                    f"Tasks of pictures and text are wanted, got {part['type']}. Leave it out of `--tasks`."
                )
            if part["type"] == "image":
                parts.append({"type": "image", "image": _opened(part["url"])})
            else:  # a word that stands for a picture has no picture here
                parts.append({"type": "text", "text": part["text"].replace(self._image_token, "")})
        return {"role": message["role"], "content": parts}

    @property
    def _image_token(self) -> str:
        return getattr(self.asked.processor, "image_token", "<image>")

    def _weighed(self, request: Any) -> Messages:
        """A question and the answer that is to be weighed."""
        context, target, *rest = request.args
        pictures: list[Image.Image] = []
        if rest:  # the likelihood of an answer to nothing comes without
            doc_to_visual, doc_id, task, split = rest
            row = self.task_dict[task][split][doc_id]
            pictures = [_opened(picture) for picture in doc_to_visual(row) or []]
            target = target(row) if callable(target) else target
        asked = self._with_system_prompt(as_messages(context, pictures, self._image_token))
        # The chat template writes the blank between question and answer itself.
        return [*asked, {"role": "assistant", "content": [{"type": "text", "text": str(target).strip()}]}]


class HfVlmSimple(HfVlmChat):
    """A model that is asked by a text and pictures, as `doc_to_text` and `doc_to_visual` of a task make them."""

    is_simple = True

    def _generation_arguments(self, request: Any) -> tuple[Messages, dict[str, Any]]:
        context, settings, doc_to_visual, doc_id, task, split = request.args
        pictures = [_opened(picture) for picture in doc_to_visual(self.task_dict[task][split][doc_id]) or []]
        return as_messages(context, pictures, self._image_token), settings


def manifest() -> Any:
    """What lmms-eval is told of the model `hf_vlm`; the entry point in the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # it is importing its models while it asks

    return ModelManifest(
        model_id="hf_vlm",
        simple_class_path=f"{HfVlmSimple.__module__}.{HfVlmSimple.__name__}",
        chat_class_path=f"{HfVlmChat.__module__}.{HfVlmChat.__name__}",
    )


def _kept_apart(pair: tuple[float, bool]) -> Any:
    """A loss and a flag as lmms-eval hands them on to its tasks: version 0.7.3 makes text of all but its own class."""
    return pair if unwrap_generation_output(pair)[0] == pair else GenerationResult(text=pair)


def _length(messages: Messages) -> tuple[int, int]:
    """For sorting: pictures, then characters."""
    words = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    return len(pictures_of(messages)), sum(map(len, words))


def _opened(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str):
        return Image.open(picture)
    raise ValueError(
        f"A picture, or the path of one, is wanted of a task, got {type(picture).__name__}. Correct the task."
    )
