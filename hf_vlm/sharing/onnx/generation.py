"""What a runtime without transformers must know of a model's generation config, and decoders with caches as tensors."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hf_vlm.sharing.onnx.decoding import RULES

# Settings that would make `generate` write something else, and the values with which they don't.
_UNKNOWN: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
    "watermarking_config": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
    "dola_layers": (None,),
}


def generation_settings(model: Any, *, prompt_length: int | None) -> tuple[dict[str, Any], list[str]]:
    """The settings of a runtime's `generate` and their saved values, and notes in plain words.

    Args:
        prompt_length: tokens that every text begins with and a saved `max_length` counts; None where prompts differ, and it
            must not be set.

    Raises:
        ValueError: if a setting is saved that the runtime does not know; it is named.
    """
    config, notes = model.generation_config, []
    for name, harmless in _UNKNOWN.items():
        if (value := getattr(config, name, None)) not in harmless:
            raise ValueError(
                f"Generation settings that the ONNX runtime knows are wanted, got `{name}`={value!r} in the model's "
                f"`generation_config.json`. Set it to {harmless[0]!r} there, or run the model by transformers."
            )
    if config.do_sample:
        notes.append("the model samples (`do_sample`); the runtime takes the likeliest token, or searches by beams")
    settings: dict[str, Any] = {name: getattr(config, name, None) for name in (*RULES, "pad_token_id")}
    end = config.eos_token_id
    settings["eos_token_ids"] = [] if end is None else end if isinstance(end, list) else [end]
    if settings["pad_token_id"] is None and settings["eos_token_ids"]:
        settings["pad_token_id"] = settings["eos_token_ids"][0]  # as transformers does
    most = config.max_new_tokens
    if most is None and config.max_length is not None and prompt_length is not None:
        most = config.max_length - prompt_length
    settings["max_new_tokens"] = 20 if most is None else most  # transformers' own limit
    settings["num_beams"] = config.num_beams or 1
    settings["length_penalty"] = 1.0 if config.length_penalty is None else config.length_penalty
    settings["early_stopping"] = config.early_stopping or False
    return settings, notes


def check_dynamic_cache(cache: Any, model_type: str) -> None:
    """Checks that a cache holds keys and values of every layer, one a token.

    Raises:
        ValueError: if a layer has a state of another kind, as in Mamba.
    """
    layers = list(getattr(cache, "layers", None) or ())
    if not layers or not all(isinstance(layer, DynamicLayer) and layer.keys is not None for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)})
        raise ValueError(
            f"A decoder that keeps keys and values of every layer is wanted, got `{model_type}`, whose cache has "
            f"{', '.join(f'`{kind}`' for kind in kinds) or 'none'}. Run it by transformers, or for a stock folder try "
            "`hf-vlm export-transformers` and then `optimum-cli export onnx`."
        )


def past_names(num_layers: int, kind: str) -> list[str]:
    """`past_key_0`, `past_value_0`, `past_key_1`, ... for the kind "past"."""
    return [f"{kind}_{part}_{layer}" for layer in range(num_layers) for part in ("key", "value")]


def cache_of(tensors: dict[str, torch.Tensor], kind: str) -> DynamicCache:
    """A cache of keys and values, each float (batch, heads, tokens, head_dim), by their names."""
    num_layers = sum(name.startswith(f"{kind}_key_") for name in tensors)
    pairs = [(tensors[f"{kind}_key_{layer}"], tensors[f"{kind}_value_{layer}"]) for layer in range(num_layers)]
    return DynamicCache(pairs)


def tensors_of(cache: Any, kind: str) -> dict[str, torch.Tensor]:
    """The keys and values of a cache by their names."""
    values = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return dict(zip(past_names(len(cache.layers), kind), values, strict=True))
