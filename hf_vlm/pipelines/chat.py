"""A conversation about pictures, answered as the words come: `hf-vlm chat`.

question and pictures -> `ChatSession.ask` checks them and opens the pictures
  -> the processor's chat template over all that was said       input_ids (1, tokens), pixel_values (pictures, ...)
  -> `generate`, in a thread of its own -> pieces of text, as they come
  -> question, pictures and answer become part of the history
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.data.pictures import open_picture
from hf_vlm.models.llava.assembly import check_processor
from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.weights_llava import is_original_layout
from hf_vlm.parts.adapter_loading import base_of_adapter, load_with_adapter
from hf_vlm.parts.checkpoint_files import naming_faults, processor_source, read_config
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.pipelines.answer_stream import Generation, check_generation_settings, surely_said, without_stop

_MAX_NEW_TOKENS = 256  # where neither the caller nor the model says how long an answer may be


@dataclass
class ChatPicture:
    """A picture of a conversation.

    Attributes:
        image: of mode `RGB`, upright.
        source: path or URL; None for a picture that came as such.
    """

    image: Image.Image
    source: str | None = None


def open_chat_picture(source: str | Path | bytes | Image.Image | ChatPicture) -> ChatPicture:
    """The picture at a path or URL, or the given one.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is no picture.
        ValueError: if it can't be read; the message names it.
    """
    if isinstance(source, ChatPicture):
        return source
    picture = open_picture(source)
    name = str(source) if isinstance(source, str | Path) else None
    try:
        picture.load()
        upright = to_rgb(picture)
    except (OSError, ValueError) as error:  # a PIL picture that was opened, but not read before
        told = name or getattr(picture, "filename", "") or repr(picture)
        raise ValueError(
            f"{told}: wanted a whole picture, got an error from Pillow ({error}). Save or copy it again."
        ) from error
    return ChatPicture(upright.copy() if upright is source else upright, name)  # the caller may go on drawing


@dataclass
class _Exchange:
    """A question, its content as in the example schema, the pictures of its parts, and the answer."""

    question: str | list[dict[str, str]]
    pictures: list[ChatPicture]
    answer: str = ""


class ChatSession:
    """A model, its processor, and what was said so far.

    `for piece in session.ask("What is it?", ["cat.png"]): print(piece, end="")`, then `session.ask("Where?")`.

    Args:
        model: one that generates from text and pictures; it is put into evaluation mode.
        processor: the one that belongs to it, with a chat template.
        system: text that stands before every conversation.
        generation: settings for every answer, as for `generate`: `max_new_tokens`, `do_sample`, `temperature`, ...

    Raises:
        ValueError: if the processor has no chat template, or does not fit the model.
        TypeError: if a setting is none that generation knows.
    """

    def __init__(self, model: Any, processor: Any, *, system: str | None = None, **generation: Any) -> None:
        check_generation_settings(generation)
        if getattr(processor, "tokenizer", None) is None or not getattr(processor, "chat_template", None):
            raise ValueError(
                f"A processor with a tokenizer and a chat template is wanted, got `{type(processor).__name__}`. Save the "
                "model's own processor beside it; a model without one reads or captions pictures, it can't chat."
            )
        if isinstance(model.config, LlavaVisionLanguageConfig):
            check_processor(model.config, processor, model.config.num_image_tokens or 0)
        self.model = model.eval()
        self.processor = processor
        self.system = system
        self.generation = generation
        self._exchanges: list[_Exchange] = []
        self._answer: Any = None  # the generator of the last `ask`
        self._own_file: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike,
        *,
        system: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **generation: Any,
    ) -> "ChatSession":
        """Load model and processor.

        Args:
            name_or_folder: folder or Hub name of a model, or of a PEFT adapter that names its base; the processor lies beside.
            device: by default a GPU where there is one.
            dtype: of the weights; by default float32 on a CPU, where half precision is slow, and as stored on a GPU.
            system, generation: as for the class.

        Raises:
            OSError: if there is no such model, or the base of an adapter is missing.
            ValueError: if its files are damaged, it is no model of pictures and text, or has no processor.
            TypeError: if a setting is none that generation knows.
        """
        check_generation_settings(generation)
        name = str(name_or_folder)
        base = base_of_adapter(name)
        _check_task(base or name)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")
        with naming_faults(base or name):
            model = load_with_adapter(AutoModelForImageTextToText, name, dtype=dtype)
        try:
            processor = AutoProcessor.from_pretrained(processor_source(name, base) or name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} must hold a processor beside the model, got none that loads ({str(error).splitlines()[0]}). Write it "
                "there with the processor's `save_pretrained`."
            ) from error
        return cls(model.to(device), processor, system=system, **generation)

    # What was said

    @property
    def num_exchanges(self) -> int:
        """Questions with an answer so far."""
        return len(self._exchanges)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in the example schema; its pictures, in reading order, are `images`."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self._exchanges:
            question = exchange.question
            content = question if isinstance(question, str) else [dict(part) for part in question]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": exchange.answer}]
        return messages

    @property
    def images(self) -> list[Image.Image]:
        """The pictures of the conversation, in reading order."""
        return [picture.image for picture in self._pictures]

    @property
    def _pictures(self) -> list[ChatPicture]:
        return [picture for exchange in self._exchanges for picture in exchange.pictures]

    def reset(self) -> None:
        """Begin a new conversation; the system text stays."""
        self._end_answer()
        self._exchanges.clear()

    def undo(self) -> None:
        """Take back the last question, its pictures and its answer.

        Raises:
            ValueError: if nothing was said.
        """
        self._end_answer()
        if not self._exchanges:
            raise ValueError("An exchange to take back is wanted, got an empty conversation. Ask first.")
        self._exchanges.pop()

    # Answers

    def ask(
        self,
        text: str,
        pictures: Any = (),
        **generation: Any,
    ) -> Iterator[str]:
        """The answer, in pieces as they come; `"".join(session.ask(...))` is all of it.

        Whatever is wrong with the question is told by the call itself, and the history stays. The exchange enters it when
        the last piece was taken. An answer that the caller stops taking, as by Ctrl-C, enters as far as it was taken, and
        the model stops at its next token; an answer without a word, or one that ends in an error, does not enter.

        Args:
            text: the question.
            pictures: path, http(s) or data URL, bytes of a file, PIL picture or `ChatPicture`, or a sequence of them, shown
                before the question, in this order.
            generation: settings for this answer, over those of the session. With several beams the answer comes whole.

        Raises:
            FileNotFoundError: if a picture is not there.
            ValueError: if the question is empty or holds the image token, a picture can't be read, or conversation and
                answer are too long for the language model.
            TypeError: if a setting is none that generation knows, or a picture is none.
        """
        self._end_answer()
        check_generation_settings(generation)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"A question is wanted, got {text!r}. Write one.")
        image_token = getattr(self.processor, "image_token", None)
        if image_token and image_token in text:
            raise ValueError(
                f"A question must not hold `{image_token}`, which stands for a picture, got {text!r}. Take it out, and give "
                "the picture by itself."
            )
        if isinstance(pictures, str | Path | bytes | Image.Image | ChatPicture):
            pictures = [pictures]
        opened = [open_chat_picture(picture) for picture in pictures]
        content: Any = [*({"type": "image"} for _ in opened), {"type": "text", "text": text}] if opened else text
        exchange = _Exchange(content, opened)
        inputs = self._encode(exchange)
        settings = self._settings(inputs["input_ids"].shape[1], {**self.generation, **generation})
        self._answer = self._stream(exchange, inputs, settings)
        return self._answer

    def _encode(self, exchange: _Exchange) -> Any:
        """Model inputs for the conversation so far and a new question."""
        pictures = iter([*self.images, *(picture.image for picture in exchange.pictures)])
        messages = [
            {"role": message["role"], "content": _with_pictures(message["content"], pictures)}
            for message in [*self.messages, {"role": "user", "content": exchange.question}]
        ]
        try:
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except jinja2.TemplateError as error:
            advice = "Leave the system text out." if self.system else "Use another template."
            raise ValueError(
                f"The model's chat template must accept the conversation, got its refusal ({error}). {advice}"
            ) from error
        return inputs.to(self.model.device, self.model.dtype)

    def _settings(self, num_tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of `generate`, with a length limit, for a prompt of so many tokens.

        Raises:
            ValueError: if prompt and answer have no room.
        """
        given = settings.get("generation_config") or self.model.generation_config
        longest = settings.get("max_new_tokens", getattr(given, "max_new_tokens", None))
        if longest is None:
            in_all = settings.get("max_length", getattr(given, "max_length", None))
            if in_all is not None and in_all <= num_tokens:
                raise ValueError(
                    f"`max_length` must leave room for an answer, got {in_all} for a prompt of {num_tokens} tokens. Set "
                    "`max_new_tokens` instead, or take back an exchange by `undo`."
                )
            longest = _MAX_NEW_TOKENS if in_all is None else in_all - num_tokens
            if in_all is None:
                settings = {**settings, "max_new_tokens": longest}
        stops = settings.get("stop_strings", getattr(given, "stop_strings", None)) or []
        if stops:
            stops = [stops] if isinstance(stops, str) else list(stops)
            settings = {"tokenizer": self.processor.tokenizer, **settings, "stop_strings": stops}
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and num_tokens + longest > positions:
            advice = "Ask in fewer words or with fewer pictures"
            if self._exchanges:
                advice = "Take back the last exchange with `undo`, begin anew with `reset`"
            raise ValueError(
                f"A conversation and its answer must fit into the language model's {positions} positions, got {num_tokens} "
                f"tokens, pictures included, and an answer of up to {longest}. {advice}, or lower `max_new_tokens`."
            )
        return settings

    def _stream(self, exchange: _Exchange, inputs: Any, settings: dict[str, Any]) -> Iterator[str]:
        """Pieces of an answer, without blanks around the whole or what stops it; the exchange is kept at the end."""
        generation = Generation(self.model, self.processor.tokenizer, inputs, settings)
        held = ""  # may turn out to be blanks at the end, or what stops the answer
        try:
            for piece in generation:
                text = held + piece if exchange.answer else (held + piece).lstrip()
                kept = surely_said(text, settings.get("stop_strings", ()))
                held = text[len(kept) :]
                if kept:
                    exchange.answer += kept
                    yield kept
            if last := without_stop(held, settings.get("stop_strings", ())).rstrip():
                exchange.answer += last
                yield last
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(exchange)
            raise
        else:
            self._keep(exchange)
        finally:
            generation.stop()

    def _keep(self, exchange: _Exchange) -> None:
        if exchange.answer:
            self._exchanges.append(exchange)

    def _end_answer(self) -> None:
        """Stop an answer that is still coming."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    # Files

    def save(self, path: str | os.PathLike) -> None:
        """Write the conversation in the example schema, as `read_conversations` and `load` read it.

        Pictures in the file's folder are named; all others are written beside it, `NAME-pictures/1.png` and so on.

        Args:
            path: a file .json, a list of this one conversation, or .jsonl, a line. It must be new, or the one that this
                session was saved in or loaded from.

        Raises:
            OSError: if the file is there already, or can't be written.
            ValueError: if nothing was said, or the suffix is another.
        """
        self._end_answer()
        file = Path(path)
        if file.suffix.lower() not in (".json", ".jsonl"):
            raise ValueError(f"A file .json or .jsonl to save in is wanted, got {file}. Name one.")
        if not self._exchanges:
            raise ValueError("A conversation to save is wanted, got an empty one. Ask first.")
        if file.exists() and file.resolve() != self._own_file:
            raise FileExistsError(f"A new file to save in is wanted, got {file}, which is there. Name another.")
        names = []
        for number, picture in enumerate(self._pictures, start=1):
            name = _name_in_folder(picture.source, file.parent)
            if name is None:
                name = f"{file.stem}-pictures/{number}.png"
                (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
                picture.image.save(file.parent / name)
            names.append(name)
        row = {"messages": self.messages, "images": names}
        is_list = file.suffix.lower() == ".json"
        text = json.dumps([row], ensure_ascii=False, indent=2) if is_list else json.dumps(row, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
        self._own_file = file.resolve()

    def load(self, path: str | os.PathLike) -> None:
        """Go on with a conversation that was saved, its system text included; the present one is forgotten.

        Args:
            path: a file that `read_conversations` reads, of one conversation.

        Raises:
            OSError: if the file or a picture is missing.
            ValueError: if it is damaged, holds more than one conversation, or a picture can't be read. The present
                conversation then stays.
        """
        self._end_answer()
        stored = read_conversations(Path(path))
        if len(stored) != 1:
            raise ValueError(
                f"{path} must hold one conversation, got {len(stored)}. Take one out into a file of its own."
            )
        row = stored[0]
        pictures = iter([open_chat_picture(picture) for picture in row["images"]])
        system = None
        exchanges: list[_Exchange] = []
        for message in row["messages"]:
            if message["role"] == "system":
                system = _words(message["content"])
            elif message["role"] == "user":
                content = message["content"]
                parts = [] if isinstance(content, str) else content
                exchanges.append(_Exchange(content, [next(pictures) for part in parts if part["type"] == "image"]))
            else:
                exchanges[-1].answer = _words(message["content"])
        self.system, self._exchanges, self._own_file = system, exchanges, Path(path).resolve()


def _check_task(name: str) -> None:
    """Raises ValueError for a model that is not of pictures and text, in fewer words than `AutoModel` has for it."""
    stored = read_config(name)
    if is_original_layout(stored):
        raise ValueError(
            f"{name} must be a whole model, got LLaVA's original layout, which leaves the vision encoder out. Load it with "
            f"`LlavaVisionLanguageForConditionalGeneration.from_pretrained(..., vision={stored.get('mm_vision_tower')!r})`, and "
            "save it in a folder with its processor."
        )
    with naming_faults(name):
        config = AutoConfig.from_pretrained(name)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{name} must be a model of pictures and text (`AutoModelForImageTextToText`), got `{config.model_type}`. Assemble "
            "one with `LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts`."
        )


def _with_pictures(content: str | Sequence[Mapping[str, Any]], pictures: Iterator[Image.Image]) -> list[dict[str, Any]]:
    """A message's content as parts, as every template takes it, pictures in their places."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{**part, "image": next(pictures)} if part["type"] == "image" else dict(part) for part in content]


def _words(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _name_in_folder(source: str | None, folder: Path) -> str | None:
    """A picture file's name relative to a folder that it lies in or below; None if it doesn't."""
    if source is None or not Path(source).is_file():
        return None
    file, folder = Path(source).resolve(), folder.resolve()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else None
