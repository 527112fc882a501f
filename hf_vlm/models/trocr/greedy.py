"""Greedy decoding: the tokens of `generate(num_beams=1, do_sample=False)`, sooner, and how likely each of them was.

transformers' loop serves every model and setting. It pays for that at every token: inputs and masks are prepared anew, each
cache is copied to become one token longer, and a text that has ended is computed on until the longest of its batch has. Here
a step is the decoder's layers and little else:

- on any device, caches have room ahead, and texts that have ended leave the batch;
- on CUDA, where starting a kernel costs more than running it, all kernels of a step are recorded once a shape and played back
  (a CUDA graph), and whether all texts have ended is asked once in `STEPS_BETWEEN_LOOKS` tokens.

What these loops do not know, such as streamers or other stopping rules, is left to transformers' (`covers`).
"""

import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache, StaticCache
from transformers.generation import logits_process as processors
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from .text_decoder import (
    TrOCREncoderDecoderForCausalLM,
    TrOCREncoderDecoderTextLayer,
    TrOCREncoderDecoderTextModel,
)

if TYPE_CHECKING:
    from .modeling_trocr import TrOCREncoderDecoderForConditionalGeneration

STEPS_BETWEEN_LOOKS = 8

# Those that judge each text by itself, wherever in the batch it stands.
_ROW_WISE = {
    processors.ForcedBOSTokenLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.NoBadWordsLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.RepetitionPenaltyLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.SuppressTokensLogitsProcessor,
}
_KNOWN_INPUTS = {
    "encoder_outputs",
    "cache",
    "use_cache",
    "pixel_values",
    "pixel_mask",
    "interpolate_pos_encoding",
    "labels",  # Seq2SeqTrainer hands them over when it evaluates; no reading depends on them
}


class TokenLogProbs(StoppingCriteria):
    """Given to `generate` among the stopping criteria, stops nothing, and knows afterwards how likely each token was.

    Attributes:
        log_probs: float32 (batch, tokens), natural logarithm of the probability that the model itself gave each token,
            whatever a logits processor made of it; behind the end of no meaning. None if transformers' loops decoded.
    """

    log_probs: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool (batch,), all False."""
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def covers(
    model: "TrOCREncoderDecoderForConditionalGeneration",
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **inputs: Any,
) -> bool:
    """Whether `decode_greedily` gives what transformers' loop would; takes what `GenerationMixin._sample` takes."""
    decoder = model.decoder
    if type(decoder) is not TrOCREncoderDecoderForCausalLM or type(decoder.model) is not TrOCREncoderDecoderTextModel:
        return False
    on_the_way = (model, decoder, decoder.model)  # their `forward` is passed by, and what hangs on it
    cache = inputs.get("cache")
    given = {name for name, value in inputs.items() if value is not None and value is not False}
    return (
        not generation_config.do_sample
        and not generation_config.return_dict_in_generate
        and generation_config.cache_implementation is None
        and input_ids.shape[1] == 1
        and given - {"synced_gpus", "streamer"} == given <= _KNOWN_INPUTS
        and {"cache", "use_cache"} <= given
        and type(cache) is EncoderDecoderCache
        and not getattr(cache, "_is_user_defined", False)
        and {type(processor) for processor in logits_processor} <= _ROW_WISE
        and {type(rule) for rule in stopping_criteria} <= {EosTokenCriteria, MaxLengthCriteria, TokenLogProbs}
        and stopping_criteria.max_length is not None
        and stopping_criteria.max_length - 1 <= decoder.config.max_position_embeddings
        and decoder.config._attn_implementation in ("eager", "sdpa")
        and not model.training
        and not hasattr(model, "hf_device_map")
        and not any(is_intercepted(module) for module in on_the_way)
    )


def is_intercepted(module: torch.nn.Module) -> bool:
    """Whether a call of the module runs more, or other code, than its class's `forward`."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or "forward" in vars(module) or module._compiled_call_impl)


@torch.no_grad()
def decode_greedily(
    model: "TrOCREncoderDecoderForConditionalGeneration",
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    *,
    encoder_outputs: Any,
    **inputs: Any,
) -> torch.Tensor:
    """Write the likeliest token until each text has ended, where `covers` says that this gives what was asked for.

    Args:
        input_ids: int64 (batch, 1), the start token.
        encoder_outputs: of the model's picture encoder, with `last_hidden_state` and, where pictures are padded,
            `attention_mask`.
        others: as for `GenerationMixin._sample`.

    Returns: int64 (batch, 1 + tokens), the start token first, padded behind the end.
    """
    tellers = [rule for rule in stopping_criteria if isinstance(rule, TokenLogProbs)]
    end_rules = [rule for rule in stopping_criteria if isinstance(rule, EosTokenCriteria)]
    device = input_ids.device
    end_ids = torch.cat([rule.eos_token_id.to(device) for rule in end_rules]) if end_rules else input_ids.new_empty(0)
    pad = generation_config._pad_token_tensor
    pad_id = int(pad) if pad is not None else 0
    max_length = stopping_criteria.max_length
    tokens = encoder_outputs.last_hidden_state
    mask = added_mask(getattr(encoder_outputs, "attention_mask", None), tokens.dtype)
    decoder = model.decoder
    if not logits_processor and not generation_config.disable_compile and can_be_recorded(decoder, tokens):
        with _one_at_a_time:
            steps = recorded_steps(decoder, tokens, mask, max_length, end_ids)
            sequences, log_probs = steps.decode(decoder, input_ids, tokens, mask, pad_id)
        for teller in tellers:
            teller.log_probs = log_probs
        return sequences

    sequences = input_ids.new_full((len(input_ids), max_length), pad_id)
    sequences[:, :1] = input_ids
    log_probs = torch.zeros(len(input_ids), max_length - 1, device=device)
    rows = torch.arange(len(input_ids), device=device)  # whose text each row of the shrinking batch is
    unfinished = torch.ones_like(rows, dtype=torch.bool)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache.layer_class_to_replicate = RoomyLayer
    for length in range(1, max_length):
        newest = sequences[rows, length - 1 : length]  # (rows, 1)
        position = torch.full((1, 1), length - 1, device=device)
        logits = decoder.next_logits(newest, position, cache, tokens, mask)  # (rows, vocab_size)
        scores = logits_processor(sequences[rows, :length], logits.clone()) if logits_processor else logits
        chosen = scores.argmax(dim=-1)
        sequences[rows, length] = chosen.where(unfinished, pad_id)
        if tellers:
            log_probs[rows, length - 1] = log_prob(logits, chosen)
        unfinished = unfinished & ~is_any(chosen, end_ids)
        num_unfinished = int(unfinished.sum())
        if num_unfinished == 0:
            break
        if num_unfinished <= 0.75 * len(rows):  # taking rows out copies the caches: not for every single one
            kept = unfinished.nonzero()[:, 0]
            rows, unfinished, tokens = rows[kept], unfinished[kept], tokens[kept]
            mask = None if mask is None else mask[kept]
            cache.batch_select_indices(kept)
    for teller in tellers:
        teller.log_probs = log_probs[:, :length]
    return sequences[:, : length + 1]


def added_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Bool (batch, tokens) -> float (batch, 1, 1, tokens) to add to attention's scores; None stays None."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask.bool(), torch.finfo(dtype).min)[
        :, None, None
    ]


def log_prob(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Float32 (batch,) log-probabilities of int64 (batch,) tokens, for float32 (batch, vocab_size)."""
    return logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)


def is_any(chosen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Bool (batch,): which of int64 (batch,) are among int64 (ids,). `torch.isin` may make the CPU wait for the GPU."""
    return (chosen[:, None] == ids).any(dim=1)


class RoomyLayer(DynamicLayer):
    """A cache that grows by doubling: a new token is written behind the others, which stay where they are."""

    keys: torch.Tensor
    values: torch.Tensor
    room: torch.Tensor  # float (2, batch, heads, capacity, head_dim), keys and values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens, each float (batch, heads, new tokens, head_dim); gives all so far."""
        seen = self.get_seq_length()
        end = seen + key_states.shape[2]
        if not self.is_initialized or end > self.room.shape[3]:
            grown = key_states.new_empty(2, *key_states.shape[:2], max(2 * seen, end, 16), key_states.shape[3])
            if self.is_initialized:
                grown[0, :, :, :seen], grown[1, :, :, :seen] = self.keys, self.values
            else:
                self.lazy_initialization(key_states, value_states)
            self.room = grown
        self.room[0, :, :, seen:end], self.room[1, :, :, seen:end] = key_states, value_states
        self.keys, self.values = self.room[0, :, :, :end], self.room[1, :, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        seen = self.get_seq_length()
        self.room = self.room[:, indices]
        self.keys, self.values = self.room[0, :, :, :seen], self.room[1, :, :, :seen]


# Recorded steps


def can_be_recorded(decoder: TrOCREncoderDecoderForCausalLM, tokens: torch.Tensor) -> bool:
    """Whether a step may be played back: on CUDA, and nothing on the way that could do another thing the next time."""
    if tokens.device.type != "cuda" or torch.is_autocast_enabled("cuda"):
        return False
    packages = {type(module).__module__.split(".")[0] for module in decoder.modules()}
    return (
        packages <= {"torch", "transformers", __name__.split(".")[0]}  # an adapter can be switched off
        and not any(is_intercepted(module) for module in decoder.modules())
        and all(type(parameter) is torch.nn.Parameter for parameter in decoder.parameters())  # quantised ones are not
    )


def recorded_steps(
    decoder: TrOCREncoderDecoderForCausalLM,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    max_length: int,
    end_ids: torch.Tensor,
) -> "RecordedSteps":
    """The decoder's recorded step for this shape; one is kept a decoder, as its caches take memory."""
    kept = _recorded.get(decoder)
    # Lines come in many widths: with a mask one recording serves a span of them.
    num_tokens = tokens.shape[1] if mask is None else -(-tokens.shape[1] // 64) * 64
    key = (
        (len(tokens), num_tokens, max_length, tokens.dtype, tokens.device, mask is None, decoder.dtype),
        (decoder.config._attn_implementation, *end_ids.tolist()),
        tuple(tensor.data_ptr() for tensor in (*decoder.parameters(), *decoder.buffers())),  # what a recording reads
    )
    if kept is None or kept.key != key:
        _recorded.pop(decoder, None)  # its memory is free before the next takes some
        with torch.inference_mode(False):  # tensors made in it could not be written outside of it
            kept = _recorded[decoder] = RecordedSteps(decoder, key, end_ids.clone())
    return kept


_one_at_a_time = threading.Lock()
_recorded: "weakref.WeakKeyDictionary[TrOCREncoderDecoderForCausalLM, RecordedSteps]" = weakref.WeakKeyDictionary()


class RecordedSteps:
    """A decoding step whose inputs, caches and results stay at one place in memory, so that it can be played back.

    Args:
        key: the shape, as `recorded_steps` makes it.
        end_ids: int64 (end tokens,).
    """

    def __init__(self, decoder: TrOCREncoderDecoderForCausalLM, key: tuple, end_ids: torch.Tensor) -> None:
        (batch, num_tokens, max_length, dtype, device, whole, text_dtype), *_ = key
        self.key, self.end_ids = key, end_ids
        self.graph: torch.cuda.CUDAGraph | None = None
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.newest = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.unfinished = torch.ones(batch, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.pad_id = torch.zeros((), dtype=torch.long, device=device)
        num_places = -(-(max_length - 1) // 8) * 8  # of the text; attention kernels like multiples of 8
        self.places = torch.arange(num_places, device=device)
        self.all_seen = torch.zeros(1, 1, 1, num_places, dtype=text_dtype, device=device)
        self.sequences = torch.zeros(batch, max_length, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(batch, max_length - 1, device=device)
        self.tokens = torch.zeros(0, device=device)  # the pictures are in the cache
        self.mask = None if whole else torch.zeros(batch, 1, 1, num_tokens, dtype=dtype, device=device)
        config = decoder.config
        self.cache = EncoderDecoderCache(
            StaticCache(config=config, max_cache_len=num_places), StaticCache(config=config, max_cache_len=num_tokens)
        )
        heads = config.num_attention_heads
        sizes = {"num_heads": heads, "head_dim": config.hidden_size // heads, "dtype": text_dtype, "device": device}
        self.cache.self_attention_cache.early_initialization(batch_size=batch, **sizes)
        self.cache.cross_attention_cache.early_initialization(batch_size=batch, **sizes)
        self.cache.is_updated = dict.fromkeys(range(config.num_hidden_layers), True)

    def step(self, decoder: TrOCREncoderDecoderForCausalLM) -> None:
        """Write the next token of every text. Nothing here is looked at by the CPU."""
        later = self.places > self.position
        text_mask = self.all_seen.masked_fill(later, torch.finfo(self.all_seen.dtype).min)
        logits = decoder.next_logits(
            self.newest, self.position[None], self.cache, self.tokens, self.mask, text_mask=text_mask
        )
        chosen = logits.argmax(dim=-1)
        self.lengths += self.unfinished
        self.log_probs.index_copy_(1, self.position, log_prob(logits, chosen)[:, None])
        self.newest.copy_(torch.where(self.unfinished, chosen, self.pad_id)[:, None])
        self.unfinished &= ~is_any(chosen, self.end_ids)
        self.position += 1
        self.sequences.index_copy_(1, self.position, self.newest)

    def decode(
        self,
        decoder: TrOCREncoderDecoderForCausalLM,
        input_ids: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        pad_id: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequences and log-probabilities for a batch of the recorded shape; arguments as in `decode_greedily`."""
        seen = tokens.shape[1]
        for layer, held in zip(decoder.model.layers, self.cache.cross_attention_cache.layers, strict=True):
            assert isinstance(layer, TrOCREncoderDecoderTextLayer)
            keys, values = layer.cross_attention.keys_and_values(tokens)
            held.keys[:, :, :seen], held.values[:, :, :seen] = keys, values
            held.keys[:, :, seen:], held.values[:, :, seen:] = 0, 0  # see `_start`
        if self.mask is not None and mask is not None:
            self.mask.fill_(torch.finfo(self.mask.dtype).min)[..., :seen] = mask
        self.pad_id.fill_(pad_id)
        if self.graph is None and tokens.device.type == "cuda":
            self._start(input_ids)
            with torch.cuda.device(tokens.device):
                self.graph = self._record(decoder)
        self._start(input_ids)
        max_new_tokens = self.log_probs.shape[1]
        for done in range(1, max_new_tokens + 1):
            if self.graph is None:
                self.step(decoder)
            else:
                self.graph.replay()
            if done % STEPS_BETWEEN_LOOKS == 0 and not self.unfinished.any():
                break
        length = int(self.lengths.max())
        return self.sequences[:, : length + 1].clone(), self.log_probs[:, :length].clone()

    def _start(self, input_ids: torch.Tensor) -> None:
        self.newest.copy_(input_ids)
        self.sequences.fill_(self.pad_id)[:, :1] = input_ids
        self.position.zero_()
        self.lengths.zero_()
        self.unfinished.fill_(True)
        for layer in self.cache.self_attention_cache.layers:
            layer.cumulative_length.zero_()
            # Places that are not written yet weigh nothing, but nothing times a NaN of an earlier batch is a NaN.
            layer.keys.zero_()
            layer.values.zero_()

    def _record(self, decoder: TrOCREncoderDecoderForCausalLM) -> torch.cuda.CUDAGraph:
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # kernels are chosen outside the recording
            self.step(decoder)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        # cuBLAS keeps a workspace a stream, and whoever compiles with CUDA graphs frees all of them: one that was made before the
        # recording would be gone when it is played back. On a stream of its own the recording makes one in its own memory.
        recording = torch.cuda.Stream(priority=-1)
        # Other threads, such as one that pins the next batch, may go on; torch's own stream for recordings is of one device.
        with torch.cuda.graph(graph, stream=recording, capture_error_mode="thread_local"):
            self.step(decoder)
        return graph
