"""An answer to a question about pictures, and how sure the model is of it: the task `picture-question-answering`.

pictures (path, URL, bytes or PIL picture) and a question -> `preprocess` opens the pictures, upright, in RGB
  -> `_forward` asks the questions of a batch: by the processor's chat template (LLaVA and its like), or as the words that the
     decoder has behind its start token (TrOCR)
  -> tokens of the answers, found by greedy decoding or beam search, or given as candidates, and the probability of each
  -> `postprocess`: answers of one question, best first
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import torch
from transformers import BatchFeature, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import ModelOutput

from hf_vlm.models.llava.assembly import check_processor
from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.pipelines.image_to_text import ImageToTextPipeline

_MAX_NEW_TOKENS = 256  # where neither the caller nor the model says how long an answer may be
_CANDIDATES_AT_ONCE = 64
_STAND_IN = "@answer@"  # for an answer, to see what a chat template puts around one


class PictureQuestionAnsweringPipeline(ImageToTextPipeline):
    """Answers to a question about one or several pictures: `[{"answer": str, "score": float}]`, best first.

    It serves every model of `image-text-to-text` whose processor has a chat template, ours or not, and our encoder-decoders
    whose processor takes a `prompt`, which the decoder reads before it answers.

    `score`, in [0, 1], is the probability that the model itself gives to exactly this answer: the product of the
    probabilities of its tokens, each given pictures, question and the tokens before it, the end token included. No logits
    processor changes it. An answer that was cut off has no end token: its score is that of all answers that begin so. Long
    answers have low scores, so compare the scores of answers to one question.

    Args:
        model: as for `ImageToTextPipeline`.
        settings: as for `Pipeline` (`processor`, `device`, `batch_size`, ...), and what every call may be given; what a call
            gives wins. Beside generation settings (decoding is greedy unless they say otherwise; `num_return_sequences` is
            `top_k` here) these are:
            top_k: how many answers at most, of different texts. More than one are found by beam search, of as many beams or
                `num_beams`, which ranks by the score itself unless a `length_penalty` is given; with `do_sample` they are
                draws. By default 1, and all where there are candidates.
            candidates: texts, which then are the answers: ranked by the probability of each, as above, divided by the sum
                over all of them. Generation settings then change nothing.
            prompt: text on a line of its own behind the question, such as "Answer the question using a single word or
                phrase."; None for none.

    Raises:
        ValueError: if there is no processor for the model, or one that can't put a question, or a setting is out of range.
        TypeError: if a setting is none that the pipeline or generation knows.
    """

    call_settings = frozenset({"prompt", "candidates"})
    _non_generation_params = ("top_k",)  # sampling has a setting of this name
    _default_generation_config = GenerationConfig(max_new_tokens=_MAX_NEW_TOKENS)

    def __init__(self, model: PreTrainedModel, *, dtype: str | torch.dtype | None = None, **settings: Any) -> None:
        super().__init__(model, dtype=dtype, **settings)
        name = self.model.name_or_path or type(self.model).__name__
        if self.processor is None:
            raise ValueError(
                f"A processor for {name} is wanted, got only its parts. Save one beside the model, or pass `processor=`."
            )
        self.asks_by_prefix = bool(getattr(self.processor, "takes_prompt", False))
        if not self.asks_by_prefix and not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"A processor with a chat template is wanted, to put a question to {name}, got "
                f"`{type(self.processor).__name__}` without one. Set its `chat_template`; a model that was not trained to "
                "answer questions reads or captions pictures."
            )
        start = self.model.generation_config.decoder_start_token_id
        if self.asks_by_prefix and self.processor.start_token_id != start:
            raise ValueError(
                f"Model and processor must begin a text with the same token, got {start} and {self.processor.start_token_id}. "
                "Make it the tokenizer's `bos_token`, as in training."
            )
        if isinstance(self.model, LlavaVisionLanguageForConditionalGeneration):
            check_processor(self.model.config, self.processor, self.model.config.num_image_tokens or 0)

    def __call__(self, image: Any = None, question: str | Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Answer a question, or many.

        Args:
            image: a picture (path, http(s) or data URL, bytes of a file, PIL picture), or a list of several that belong to
                one question; or an example `{"image": ..., "question": ...}`, its pictures also as `images`; or a list,
                generator, torch data set or other iterable of examples, or, with `question`, of pictures, unless a list.
            question: the question; a list of several asks each of them about `image`. Examples that have their own keep it.
            settings: as at construction; also `batch_size` and `num_workers`.

        Returns: answers to a question, `[{"answer": str, "score": float}]`; for a list of examples or questions a list of
            such results; for a generator, iterator or data set an iterator over them, which reads as it is asked.

        Raises:
            FileNotFoundError: if a picture is not there.
            ValueError: if a picture can't be read, which the message names, a question or its picture is missing or too long,
                or a setting is out of range.
            TypeError: if it is no picture, or a setting is none that the pipeline or generation knows.
        """
        return super().__call__(_examples(image, question), **settings)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        _, asking, _ = super()._sanitize_parameters(**settings)
        _check_settings(asking)
        return {name: asking.pop(name) for name in ("prompt",) if name in asking}, asking, {}

    def preprocess(self, example: Any, prompt: str | None = None) -> dict[str, Any]:
        """Open the pictures of one example, and complete its question.

        Raises:
            ValueError: if a picture is damaged or none at all, or picture or question are missing.
            OSError: if there is no such file.
            TypeError: if it is no example, or the question no text.
        """
        if not isinstance(example, Mapping):
            raise TypeError(
                f"An example must be `{{'image': ..., 'question': ...}}`, got {type(example).__name__}. Give a picture and "
                "`question=`, or such an example."
            )
        question = example.get("question")
        if question is not None and not isinstance(question, str):
            raise TypeError(f"`question` must be a text, got {type(question).__name__}. Ask one question an example.")
        if question is None or not question.strip():
            raise ValueError(f"A question is wanted, got {question!r}. Give `question='...'`, or an example with one.")
        question = f"{question.strip()}\n{prompt}" if prompt else question.strip()
        self._refuse_image_token("A question", question)
        pictures = example.get("image", example.get("images"))
        pictures = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not pictures or any(picture is None for picture in pictures):
            raise ValueError(f"A picture is wanted with the question {question!r}, got none. Give it as `image`.")
        if self.asks_by_prefix and len(pictures) != 1:
            raise ValueError(
                f"`{type(self.model).__name__}` sees one picture a question, got {len(pictures)}. Put them side by side in "
                "one picture, or use a chat model."
            )
        opened = [super(PictureQuestionAnsweringPipeline, self).preprocess(picture)["picture"] for picture in pictures]
        return {"pictures": opened, "question": question}

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        top_k: int | None = None,
        candidates: Sequence[str] | None = None,
        **generation: Any,
    ) -> dict[str, Any]:
        pictures, questions = model_inputs["pictures"], model_inputs["question"]
        if isinstance(questions, str):  # alone; in a batch each is a list
            pictures, questions = [pictures], [questions]
        if candidates is not None:
            ranked = [self._rank(*row, candidates) for row in zip(pictures, questions, strict=True)]
            return {"answers": [answers[:top_k] for answers in ranked]}
        results: list[Any] = [None] * len(questions)
        for indices in self._asked_together(questions):
            group = self._generate(
                [pictures[index] for index in indices], [questions[index] for index in indices], top_k or 1, generation
            )
            for index, answers in zip(indices, group, strict=True):
                results[index] = answers
        return {"answers": results}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to one question."""
        answers = model_outputs["answers"]
        if isinstance(answers[0], list):  # as `_forward` gave it; out of a batch it comes alone
            (answers,) = answers
        return answers

    # Putting a question

    def _asked_together(self, questions: list[str]) -> list[list[int]]:
        """Which of a batch may share a forward pass: all, or those of as many tokens where a decoder reads them."""
        if not self.asks_by_prefix:
            return [list(range(len(questions)))]
        lengths = [len(ids) for ids in self.processor.tokenizer(questions, add_special_tokens=False)["input_ids"]]
        return [[row for row, length in enumerate(lengths) if length == wanted] for wanted in sorted(set(lengths))]

    def _prepare(self, pictures: list[list[Any]], questions: list[str]) -> BatchFeature:
        """Model inputs: the tokens of the questions, int64 (batch, tokens), ready to be answered, and pixels."""
        if self.asks_by_prefix:
            inputs = self.processor(images=[row[0] for row in pictures], prompt=questions, return_tensors="pt")
        else:
            padding = {"padding": True, "padding_side": "left"} if len(questions) > 1 else {}
            inputs = self._render(
                [self._messages(*row) for row in zip(pictures, questions, strict=True)],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=padding,
            )
        return inputs.to(self.device, self.dtype)

    @property
    def _ids_name(self) -> str:
        return "decoder_input_ids" if self.asks_by_prefix else "input_ids"

    def _messages(self, pictures: list[Any], question: str) -> list[dict[str, Any]]:
        parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
        return [{"role": "user", "content": parts}]

    def _render(self, conversations: Any, **settings: Any) -> Any:
        try:
            return self.processor.apply_chat_template(conversations, **{"add_generation_prompt": True, **settings})
        except jinja2.TemplateError as error:
            raise ValueError(
                f"The model's chat template must accept a question, got its refusal ({error}). Use another template."
            ) from error

    def _refuse_image_token(self, what: str, text: str) -> None:
        image_token = getattr(self.processor, "image_token", None)
        if image_token and image_token in text:
            raise ValueError(
                f"{what} must not hold `{image_token}`, which stands for a picture, got {text!r}. Take it out; the pictures "
                "are put before the question."
            )

    def _room(self, num_tokens: int, num_wanted: int = 1) -> int | None:
        """How many tokens an answer may have behind a question of so many; None for any number.

        Raises:
            ValueError: if it is fewer than wanted.
        """
        positions = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if positions is None:
            return None
        if num_tokens + num_wanted > positions:
            raise ValueError(
                f"A question and its answer must fit into the model's {positions} positions, got {num_tokens} tokens, "
                f"pictures included, and {num_wanted} for the answer. Ask in fewer words or about fewer pictures."
            )
        return positions - num_tokens

    # Answers that the model finds

    def _generate(
        self, pictures: list[list[Any]], questions: list[str], top_k: int, generation: dict[str, Any]
    ) -> list[list[dict[str, Any]]]:
        inputs = self._prepare(pictures, questions)
        num_tokens = inputs[self._ids_name].shape[1]
        settings = self._prepare_generate_kwargs(generation, **self._overrides(num_tokens, top_k, generation))
        # `stop_strings` want the tokenizer.
        generated = self.model.generate(**inputs, **settings, tokenizer=self.processor.tokenizer)
        tokens = generated.sequences[:, num_tokens:]  # (batch * top_k, tokens)
        rows = zip(tokens.tolist(), token_log_probs(generated, tokens).tolist(), strict=True)
        end_ids = self._end_ids({**self._given(generation), **settings})
        pad_id = self.processor.tokenizer.pad_token_id
        answers = [self._answer(ids, log_probs, end_ids, pad_id) for ids, log_probs in rows]
        return [_best(answers[first : first + top_k]) for first in range(0, len(answers), top_k)]

    def _answer(self, ids: list[int], log_probs: list[float], end_ids: list[int], pad_id: int | None) -> dict[str, Any]:
        length = next((place + 1 for place, token in enumerate(ids) if token in end_ids), None)
        if length is None:  # cut off, or stopped by a rule of the caller's
            length = len(ids)
            while length and ids[length - 1] == pad_id:
                length -= 1
        text = self.processor.tokenizer.decode(ids[:length], skip_special_tokens=True)
        return {"answer": text.strip(), "score": float(np.exp(sum(log_probs[:length])))}

    def _given(self, generation: dict[str, Any]) -> dict[str, Any]:
        """What the caller said: at this call, or, unless a whole `generation_config` came, at construction."""
        return generation if "generation_config" in generation else {**self._generate_kwargs, **generation}

    def _asked(self, generation: dict[str, Any], name: str) -> tuple[Any, bool]:
        """A generation setting, and whether the caller said it; otherwise it is the model's."""
        given = self._given(generation)
        config = given.get("generation_config")
        if given.get(name) is not None:
            return given[name], True
        if getattr(config, name, None) is not None:
            return getattr(config, name), True
        return getattr(self.model.generation_config, name, None), False

    def _overrides(self, num_tokens: int, top_k: int, generation: dict[str, Any]) -> dict[str, Any]:
        """Settings of `generate` that follow from the pipeline's own."""
        settings: dict[str, Any] = {
            "return_dict_in_generate": True,
            "output_logits": True,
            "num_return_sequences": top_k,
        }
        samples, is_said = self._asked(generation, "do_sample")
        settings["do_sample"] = bool(samples and is_said)
        if not settings["do_sample"]:
            num_beams, is_said = self._asked(generation, "num_beams")
            if is_said and num_beams < top_k:
                raise ValueError(
                    f"`num_beams` must be `top_k` or more, got {num_beams} for {top_k} answers. Leave it out, or raise it."
                )
            settings["num_beams"] = max(num_beams or 1, top_k)
            if settings["num_beams"] > 1 and not self._asked(generation, "length_penalty")[1]:
                settings["length_penalty"] = 0.0  # ranks by the probability itself
        longest, _ = self._asked(generation, "max_new_tokens")
        if longest is None:
            in_all, _ = self._asked(generation, "max_length")
            longest = _MAX_NEW_TOKENS if in_all is None else in_all - num_tokens
        room = self._room(num_tokens)
        if room is not None and longest > room:
            settings["max_new_tokens"] = room
        return settings

    def _end_ids(self, settings: dict[str, Any]) -> list[int]:
        """Tokens that end an answer, at least one."""
        config = settings.get("generation_config")
        for ids in (
            settings.get("eos_token_id"),
            getattr(config, "eos_token_id", None),
            self.model.generation_config.eos_token_id,
            self.processor.tokenizer.eos_token_id,
        ):
            if ids is not None:
                return list(ids) if isinstance(ids, list | tuple) else [ids]
        raise ValueError(
            "The model must have an end token, to know where an answer ends, got none. Set `eos_token_id` in its "
            "`generation_config`."
        )

    # Answers that are given

    def _rank(self, pictures: list[Any], question: str, candidates: Sequence[str]) -> list[dict[str, Any]]:
        """Every candidate, the likeliest first."""
        for candidate in candidates:
            self._refuse_image_token("A candidate", candidate)
        answers = self._candidate_ids(pictures, question, candidates)
        for candidate, ids in zip(candidates, answers, strict=True):
            if len(ids) < 2:
                raise ValueError(
                    f"A candidate must have tokens of the model's vocabulary, got none for {candidate!r}. Leave it out."
                )
        log_probs = self._log_probs(self._prepare([pictures], [question]), answers)
        ranked = zip(candidates, log_probs.softmax(dim=0).tolist(), strict=True)
        return _best([{"answer": candidate, "score": score} for candidate, score in ranked])

    def _candidate_ids(self, pictures: list[Any], question: str, candidates: Sequence[str]) -> list[list[int]]:
        """The tokens of each candidate as an answer to the question, its end token last."""
        tokenizer = self.processor.tokenizer
        if self.asks_by_prefix:
            return self.processor.labels(list(candidates), return_tensors=None)
        messages = self._messages(pictures, question)
        asked = self._render(messages, tokenize=False)
        said = {"role": "assistant", "content": [{"type": "text", "text": _STAND_IN}]}
        whole = self._render([*messages, said], tokenize=False, add_generation_prompt=False)
        before, behind = "", ""
        if whole.startswith(asked) and _STAND_IN in whole[len(asked) :]:
            before, _, behind = whole[len(asked) :].partition(_STAND_IN)  # a blank, and the end of the turn
        end_ids = self._end_ids(self._generate_kwargs)

        def tokens(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        if not set(tokens(behind)) & set(end_ids):  # the template leaves the end to the model
            behind = ""
        prompt_ids = tokens(asked)
        answers = []
        for candidate in candidates:
            answer = before + candidate.strip() + behind
            ids = tokens(asked + answer)
            if ids[: len(prompt_ids)] == prompt_ids:
                ids = ids[len(prompt_ids) :]
            else:  # the tokenizer would join its beginning with the question's end, which the model can't
                ids = tokens(answer)
            length = next((place for place, token in enumerate(ids) if token in end_ids), None)
            answers.append([*ids, end_ids[0]] if length is None else ids[: length + 1])
        return answers

    def _log_probs(self, inputs: BatchFeature, answers: list[list[int]]) -> torch.Tensor:
        """Natural logarithms of the probabilities of answers to one question, float32 (answers,).

        Args:
            inputs: of the one question.
            answers: tokens of each, of any number.
        """
        self._room(inputs[self._ids_name].shape[1], max(map(len, answers)) - 1)  # the last is not read
        lengths = torch.tensor([len(ids) for ids in answers], device=self.device)
        width = int(lengths.max())
        # What follows an answer's end is not seen by it and not counted: any token will do.
        tokens = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in answers], device=self.device)
        is_real = torch.arange(width, device=self.device) < lengths[:, None]
        if self.asks_by_prefix:
            logits_of = self._behind_prefix(inputs)
        elif isinstance(self.model, LlavaVisionLanguageForConditionalGeneration):
            logits_of = self._behind_cache(inputs)
        else:
            logits_of = self._behind_question(inputs)
        sums = []
        for rows, real in zip(tokens.split(_CANDIDATES_AT_ONCE), is_real.split(_CANDIDATES_AT_ONCE), strict=True):
            logits = logits_of(rows)[:, -width:].float()  # (answers, tokens, vocab_size)
            log_probs = logits.gather(2, rows[..., None])[..., 0] - logits.logsumexp(dim=-1)
            sums.append((log_probs * real).sum(dim=1))
        return torch.cat(sums)

    def _behind_question(self, inputs: BatchFeature) -> Any:
        """A function of answers, int64 (answers, tokens), to logits, of which the last as many are theirs.

        The question is read with every answer, which all models do alike.
        """
        keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

        def logits_of(answers: torch.Tensor) -> torch.Tensor:
            read = answers[:, :-1]
            # Rows, pictures or patches: with one question, copies in a row are in their order, whichever it is.
            copies = {
                name: value.repeat(len(answers), *[1] * (value.dim() - 1)) if torch.is_tensor(value) else value
                for name, value in inputs.items()
            }
            copies["input_ids"] = torch.cat([copies["input_ids"], read], dim=1)
            for name in copies:
                if name.endswith("token_type_ids"):
                    copies[name] = torch.cat([copies[name], torch.zeros_like(read)], dim=1)
            copies["attention_mask"] = torch.ones_like(copies["input_ids"])
            if keeps:
                copies["logits_to_keep"] = answers.shape[1]
            return self.model(**copies, use_cache=False).logits

        return logits_of

    def _behind_cache(self, inputs: BatchFeature) -> Any:
        """As `_behind_question`; pictures and question are read once, where the language model keeps them as keys and values."""
        asked = self.model(**inputs, use_cache=True, logits_to_keep=1)
        if not _can_be_copied(asked.cache):
            return self._behind_question(inputs)

        def logits_of(answers: torch.Tensor) -> torch.Tensor:
            first = asked.logits.expand(len(answers), -1, -1)
            if answers.shape[1] == 1:
                return first
            cache = copy.deepcopy(asked.cache)
            cache.batch_repeat_interleave(len(answers))
            return torch.cat([first, self.model(input_ids=answers[:, :-1], cache=cache).logits], dim=1)

        return logits_of

    def _behind_prefix(self, inputs: BatchFeature) -> Any:
        """As `_behind_question`, for a decoder that reads the question; the picture is encoded once."""
        prefix = inputs["decoder_input_ids"]
        names = inspect.signature(self.model.get_encoder().forward).parameters
        seen = self.model.get_encoder()(**{name: value for name, value in inputs.items() if name in names})

        def logits_of(answers: torch.Tensor) -> torch.Tensor:
            read = torch.cat([prefix.expand(len(answers), -1), answers[:, :-1]], dim=1)
            copies: ModelOutput = type(seen)(
                **{name: value.expand(len(answers), *value.shape[1:]) for name, value in seen.items()}
            )
            return self.model(encoder_outputs=copies, decoder_input_ids=read, use_cache=False).logits

        return logits_of


def token_log_probs(generated: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability that the model gave each generated token, float32 (sequences, tokens); of no meaning behind the end.

    Args:
        generated: what `generate` gave with `output_logits`.
        tokens: int64 (sequences, tokens), the generated ones.
    """
    beams = getattr(generated, "beam_indices", None)  # int64 (sequences, tokens), -1 behind the end
    columns = []
    for place in range(tokens.shape[1]):
        logits = generated.logits[place].float()  # (batch * beams, vocab_size)
        if beams is not None:
            logits = logits[beams[:, place].clamp(min=0)]
        columns.append(logits.gather(1, tokens[:, place : place + 1])[:, 0] - logits.logsumexp(dim=-1))
    return torch.stack(columns, dim=1)


def _best(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The likeliest answer first, each text once."""
    kept: dict[str, dict[str, Any]] = {}
    for answer in sorted(answers, key=lambda answer: -answer["score"]):
        kept.setdefault(answer["answer"], answer)
    return list(kept.values())


def _can_be_copied(cache: Cache | None) -> bool:
    """Whether a cache holds keys and values alone; of recurrences' states rows can't be copied alike."""
    copied = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, DynamicCache) and all(type(layer) in copied for layer in cache.layers)


def _examples(image: Any, question: Any) -> Any:
    """What a call was given, as an example, a list of them, or something that gives them one by one."""
    if isinstance(image, Mapping):
        several = isinstance(question, list | tuple)
        return [_example(image, asked) for asked in question] if several else _example(image, question)
    if isinstance(image, list | tuple):
        if image and any(isinstance(item, Mapping) for item in image):
            return [_example(item, question) for item in image]
        if not image and question is None:
            return []
    elif _is_stream(image):
        if question is None and isinstance(image, torch.utils.data.Dataset):
            return image
        return (_example(item, question) for item in _items(image))
    if isinstance(question, list | tuple):
        return [{"image": image, "question": asked} for asked in question]
    return {"image": image, "question": question}


def _example(item: Any, question: Any) -> Any:
    if not isinstance(item, Mapping):
        return item if question is None else {"image": item, "question": question}
    return item if item.get("question") is not None else {**item, "question": question}


def _is_stream(image: Any) -> bool:
    if isinstance(image, str | bytes | bytearray | memoryview | np.ndarray | torch.Tensor):
        return False
    return isinstance(image, Iterable | torch.utils.data.Dataset)


def _items(stream: Any) -> Iterator[Any]:
    if hasattr(stream, "__getitem__") and hasattr(stream, "__len__"):  # a torch data set need not end by itself
        return (stream[index] for index in range(len(stream)))
    return iter(stream)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Checks the pipeline's own settings.

    Raises:
        ValueError: if `top_k` is below 1, or candidates are none, empty or the same.
        TypeError: if they are of another kind.
    """
    if settings.get("num_return_sequences") is not None:
        raise ValueError(
            f"How many answers are wanted is said by `top_k`, got `num_return_sequences={settings['num_return_sequences']}`. "
            "Give `top_k`."
        )
    top_k = settings.get("top_k")
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"`top_k` must be a whole number of answers, got {top_k!r}. Give 1 or more.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be 1 or more answers, got {top_k}. Give 1 for the best alone.")
    prompt = settings.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"`prompt` must be a text, got {type(prompt).__name__}. Give None for none.")
    candidates = settings.get("candidates")
    if candidates is None:
        return
    if not isinstance(candidates, list | tuple) or any(not isinstance(candidate, str) for candidate in candidates):
        raise TypeError(f"`candidates` must be a list of texts, got {candidates!r}. Give ['yes', 'no'].")
    if not candidates or any(not candidate.strip() for candidate in candidates):
        raise ValueError(
            f"`candidates` must hold texts to choose from, got {candidates!r}. Give them, or leave `candidates` out."
        )
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"`candidates` must differ, got {candidates!r}. Leave out what is there twice.")
