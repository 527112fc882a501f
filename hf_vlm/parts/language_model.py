"""Any causal language model of the Hub as a reader of embeddings: the only place that knows how language models differ.

    inputs_embeds (batch, tokens, hidden_size) -> logits (batch, tokens, vocab_size)

What a model takes is read from its `forward`; what it can do (packed samples in a row, the head apart from the body) is
tried on a few random tokens, once, where it is needed. Nothing is decided by the spelling of a name.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.masking_utils import create_masks_for_generate

from ..blocks.weight_placement import computing_device
from .checkpoint_files import naming_faults, read_config

PACKING_TOLERANCE = 1e-4

PackingWay = Literal["positions", "mask"]


def accepted_arguments(model: nn.Module) -> set[str]:
    """Names that a model's `forward` takes."""
    return set(inspect.signature(model.forward).parameters)


def check_language_model(config: PreTrainedConfig) -> None:
    """Checks, without its weights, that a model can read pictures among words.

    Raises:
        ValueError: if it is no causal language model, takes no embeddings, or wants more than embeddings; the message says
            which.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"`text` must be a causal language model (`AutoModelForCausalLM`), got `{config.model_type}`. Use a decoder such "
            "as Llama, Qwen or Gemma; encoder-only text models are for the reader model, TrOCR."
        )
    if config.get_text_config() is not config or getattr(config, "vision_config", None) is not None:
        raise ValueError(
            f"`text` must be a language model alone, got `{config.model_type}`, a whole with parts of its own beside it. Load "
            "the language model out of it by its own class (such as `Gemma3ForCausalLM`), and pass that or save it to a folder."
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"`text` must read from left to right, got `{config.model_type}`, an encoder, which reads both ways. Use a decoder "
            "such as Llama, or a checkpoint that was trained with `is_decoder=True`; encoders are for the reader model, TrOCR."
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ValueError(
            f"`text` must work from embeddings alone, got `{config.model_type}`, which looks each token up anew in every "
            "layer (`hidden_size_per_layer_input`), where a picture has none. Use another language model."
        )
    config = type(config).from_dict(config.to_dict())  # a model notes its attention in the config that it is made of
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    accepted = accepted_arguments(model)
    if not {"inputs_embeds", "attention_mask", "cache"} <= accepted:
        raise ValueError(
            "`text` must take `inputs_embeds`, `attention_mask` and a `cache`, got "
            f"`{config.model_type}`, which doesn't: padding would enter its state. Use another language model."
        )
    if not model._supports_default_dynamic_cache():
        raise ValueError(
            f"`text` must work with transformers' `DynamicCache`, got `{config.model_type}`, which wants a cache of its own. Use "
            "another language model."
        )
    if "encoder_hidden_states" in accepted and "position_ids" not in accepted:
        raise ValueError(
            f"`text` must take `position_ids` or need none, got `{config.model_type}`, a decoder that counts its positions "
            "itself, wrongly where a batch is padded. Use it as `text` of the reader model, TrOCR."
        )


def load_language_model(text: str | PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
    """A pretrained causal language model, every tensor from its checkpoint.

    Args:
        text: Hub name, folder, or a loaded model, of which a copy is given back.
        kwargs: as for `AutoModelForCausalLM.from_pretrained`; fp32 unless `dtype` says otherwise.

    Raises:
        ValueError: if a tensor is not in the checkpoint, or the model doesn't read embeddings from left to right.
    """
    if isinstance(text, PreTrainedModel):
        check_reading(text)
        return copy.deepcopy(text)
    kwargs.setdefault("dtype", torch.float32)
    read_config(text)  # says what is wrong where there is none
    with naming_faults(text):
        model, info = AutoModelForCausalLM.from_pretrained(text, output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"Every weight of the language model must come from {text}, got none for {len(missing)} tensors, the first "
            f"`{missing[0]}`. Check that the folder holds a causal language model, head included."
        )
    check_reading(model)
    return model


# What only a trial tells


def check_reading(model: Any) -> None:
    """Checks on four tokens that a model reads embeddings as it reads ids, and never a later token than the one it is at.

    Raises:
        ValueError: if a later token changes earlier logits (BERT, unless its config says `is_decoder`), or the embeddings of
            words at positions 0, 1, 2, ... give other logits than the words (RoBERTa begins at another number).
    """
    words = model.get_input_embeddings()
    allowed = [token for token in range(min(words.num_embeddings, 8)) if token != words.padding_idx]
    ids = torch.tensor([allowed[1:5]], device=computing_device(model))
    changed = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    with _trial(model):
        by_ids = model(input_ids=ids, use_cache=False).logits.float()
        if not _agree(model(input_ids=changed, use_cache=False).logits.float()[:, :-1], by_ids[:, :-1], model.dtype):
            raise ValueError(
                f"`text` must read from left to right, got `{model.config.model_type}`, whose word depends on those behind it. "
                "If it was trained as a decoder, set `is_decoder=True` in its config; otherwise use a decoder such as Llama."
            )
        arguments: dict[str, Any] = {"inputs_embeds": words(ids), "attention_mask": torch.ones_like(ids)}
        if "position_ids" in accepted_arguments(model):
            arguments["position_ids"] = torch.arange(ids.shape[1], device=computing_device(model))[None]
        if not _agree(model(**arguments, use_cache=False).logits.float(), by_ids, model.dtype):
            raise ValueError(
                "`text` must make of embeddings at positions 0, 1, 2, ... what it makes of their tokens, got "
                f"`{model.config.model_type}`, which doesn't. Use another language model."
            )


def reads_padding(model: Any) -> bool:
    """Whether padding in front changes what is made of the tokens behind it, though the attention mask hides it.

    RecurrentGemma's convolutions look there.
    """
    with _trial(model):
        alone = _random_embeddings(model, 4)
        padded = torch.cat([torch.zeros_like(alone[:, :3]), alone], dim=1)
        mask = torch.tensor([[0] * 3 + [1] * 4], device=computing_device(model))
        arguments: dict[str, Any] = {"inputs_embeds": padded, "attention_mask": mask}
        if "position_ids" in accepted_arguments(model):
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        wanted = model(inputs_embeds=alone, use_cache=False).logits.float()
        return not _agree(model(**arguments, use_cache=False).logits.float()[:, 3:], wanted, model.dtype)


def check_static_cache(model: Any, max_cache_len: int) -> None:
    """Checks on four tokens, the last of them as a step of its own, that a model works with a cache of fixed size.

    Args:
        max_cache_len: tokens that the cache has room for; some models fail from a size on.

    Raises:
        ValueError: if it fails or gives other logits than without a cache, as GPT-Neo does, and Falcon with ALiBi.
    """
    config = model.config.get_text_config(decoder=True)
    make_masks = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    with _trial(model):
        embeds = _random_embeddings(model, 4)
        wanted = model(inputs_embeds=embeds, use_cache=False).logits.float()
        cache = StaticCache(config=config, max_cache_len=max(max_cache_len, 4))
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=computing_device(model))
        logits = []
        try:
            for start, end in ((0, 3), (3, 4)):
                arguments: dict[str, Any] = {"inputs_embeds": embeds[:, start:end], "cache": cache, "use_cache": True}
                positions = torch.arange(start, end, device=computing_device(model))[None]
                if "position_ids" in accepted_arguments(model):
                    arguments["position_ids"] = positions
                if not all(cache.is_linear):
                    arguments["attention_mask"] = make_masks(
                        config=config,
                        inputs_embeds=arguments["inputs_embeds"],
                        attention_mask=mask[:, :end],
                        cache=cache,
                        position_ids=positions,
                    )
                logits.append(model(**arguments).logits.float())
            agree = _agree(torch.cat(logits, dim=1), wanted, model.dtype)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
            agree = False
    if not agree:
        raise ValueError(
            f"A static cache is wanted of `{model.config.model_type}`, which gives other answers with one, or none. Leave "
            "`cache_implementation` out; the dynamic cache is right for every model."
        )


def _agree(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two logits are the same but for rounding, judged against the largest."""
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2
    return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max())


# The head apart from the body: logits of a few tokens at a time


def separate_head(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What makes logits, float (tokens, vocab_size), of the body's output, float (tokens, hidden_size); None if not known.

    Beside the output layer some models scale the logits or squeeze them into a range: what a config says of it is tried,
    and kept if it gives on two random tokens what the whole model gives.
    """
    output_layer = model.get_output_embeddings()
    if output_layer is None or model.base_model is model:
        return None
    config = model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = scale / config.logits_scaling

    def head(hidden_states: torch.Tensor) -> torch.Tensor:
        logits = output_layer.forward(hidden_states)  # without hooks: `inside_call` runs them once for all tokens
        if scale != 1:
            logits = logits * scale
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    with _trial(model):
        embeds = _random_embeddings(model, 2)
        whole = model(inputs_embeds=embeds, use_cache=False, return_dict=True).logits
        try:
            body = model.base_model(inputs_embeds=embeds, use_cache=False, return_dict=True).last_hidden_state
            by_parts = head(body)
        except (RuntimeError, AttributeError, TypeError):
            return None
        agree = by_parts.shape == whole.shape and torch.allclose(by_parts, whole, rtol=1e-4, atol=1e-4)
    return head if agree else None


# Packing: several samples in one row


def packing_way(model: Any) -> PackingWay | None:
    """How samples that lie one behind the other in a row are kept apart; None if this model mixes them.

    "positions": `position_ids` that start again at 0 tell transformers' masks where a sample begins. "mask": the model
    wants a mask of blocks, which may not stand in the place of a sliding window's. Each way is tried on two short samples of
    random tokens: their logits must be those of the samples alone, to 1e-4.
    """
    if "position_ids" not in accepted_arguments(model):
        return None
    lengths = (5, 4)
    has_window = bool(getattr(model.config, "sliding_window", None)) or len(set(_layer_types(model.config))) > 1
    ways: tuple[PackingWay, ...] = ("positions",) if has_window else ("positions", "mask")
    with _trial(model):
        samples = [_random_embeddings(model, length) for length in lengths]
        wanted = torch.cat([model(inputs_embeds=sample, use_cache=False).logits for sample in samples], dim=1)
        position_ids = torch.cat([torch.arange(length, device=computing_device(model)) for length in lengths])[None]
        for way in ways:
            mask = block_mask(position_ids, model) if way == "mask" else None
            try:
                packed = model(
                    inputs_embeds=torch.cat(samples, dim=1),
                    attention_mask=mask,
                    position_ids=position_ids,
                    use_cache=False,
                ).logits
            except (RuntimeError, ValueError, IndexError):
                continue
            if torch.allclose(packed, wanted, rtol=PACKING_TOLERANCE, atol=PACKING_TOLERANCE):
                return way
    return None


def block_mask(position_ids: torch.Tensor, model: Any) -> torch.Tensor:
    """Which tokens of packed rows may look at which, as the model's attention takes it.

    Args:
        position_ids: int64 (rows, tokens), 0 at the first token of every sample.

    Returns: (rows, 1, tokens, tokens), bool with True for may, or float to be added to the scores.
    """
    samples = position_ids.eq(0).cumsum(dim=1)
    may_look = samples[:, :, None].eq(samples[:, None, :]).tril()[:, None]
    if model.config._attn_implementation != "eager":
        return may_look
    scores = torch.zeros(may_look.shape, dtype=model.dtype, device=position_ids.device)
    return scores.masked_fill(~may_look, torch.finfo(model.dtype).min)


def _layer_types(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config, "layer_types", None) or ())


def _random_embeddings(model: Any, num_tokens: int) -> torch.Tensor:
    """Words drawn by a generator of their own, float (1, tokens, hidden_size): the process's random state stays."""
    generator = torch.Generator().manual_seed(num_tokens)
    words = model.get_input_embeddings()
    ids = torch.randint(words.num_embeddings, (1, num_tokens), generator=generator)
    return words(ids.to(computing_device(model)))


@contextlib.contextmanager
def _trial(model: nn.Module) -> Iterator[None]:
    """No gradient, no dropout, no autocast; the modes of the modules afterwards as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(computing_device(model).type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
