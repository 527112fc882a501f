"""From pictures to text with a confidence for every word.

A confidence is a probability of the model itself: the product of the probabilities of the word's tokens, each given the
picture and the text before it, whether greedy decoding, beam search or sampling chose it, and no logits processor distorts it.
Greedy decoding tells it with each token; what another search chose is scored once more in one pass over all its tokens.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .greedy import TokenLogProbs

if TYPE_CHECKING:
    from .modeling_trocr import TrOCREncoderDecoderForConditionalGeneration


@dataclass
class RecognizedText:
    """What a picture says.

    Attributes:
        text: the text; empty where the model abstained.
        score: exp of the mean log-probability a token, end token included; in [0, 1].
        words: one `{"word": str, "confidence": float}` a word of the text read, in order, also where the model abstained.
        abstained: whether the score lay below the asked threshold.
    """

    text: str
    score: float
    words: list[dict[str, Any]] = field(default_factory=list)
    abstained: bool = False


@torch.no_grad()
def recognize(
    model: "TrOCREncoderDecoderForConditionalGeneration",
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None = None,
    *,
    tokenizer: Any,
    abstain_below: float | None = None,
    interpolate_pos_encoding: bool = False,
    **generate_kwargs: Any,
) -> list[RecognizedText]:
    """Read a batch of pictures.

    Args:
        pixel_values: float (batch, channels, height, width).
        pixel_mask: int64 (batch, height, width), 0 for padding.
        tokenizer: of the processor that made the pictures.
        abstain_below: give no text where the score is lower; in [0, 1].
        generate_kwargs: as for `generate`: `num_beams`, `max_new_tokens`, `do_sample`, ...

    Returns: one `RecognizedText` a picture.

    Raises:
        ValueError: if `abstain_below` is no probability, or more than one text a picture was asked for.
    """
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise ValueError(f"`abstain_below` must be a probability in [0, 1], got {abstain_below}. Give 0.9, not 90.")
    settings = generate_kwargs.get("generation_config") or model.generation_config
    asked = generate_kwargs.get("num_return_sequences", settings.num_return_sequences) or 1
    if asked != 1:
        raise ValueError(
            f"`recognize` gives one text a picture, got `num_return_sequences={asked}`. Call `generate` for several."
        )
    encoder_outputs = model.encoder(pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding)
    kept = {
        name: value for name, value in encoder_outputs.items()
    }  # beam search expands the output it is handed in place
    told = TokenLogProbs()
    generate_kwargs["stopping_criteria"] = [*(generate_kwargs.get("stopping_criteria") or ()), told]
    generated = model.generate(encoder_outputs=type(encoder_outputs)(**kept), **generate_kwargs)
    sequences = generated if isinstance(generated, torch.Tensor) else generated.sequences  # int64 (batch, 1 + tokens)
    tokens = sequences[:, 1:]
    log_probs = told.log_probs  # float32 (batch, tokens)
    if log_probs is None:
        logits = model(encoder_outputs=encoder_outputs, decoder_input_ids=sequences[:, :-1], use_cache=False).logits
        log_probs = logits.float().log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]

    end_ids = generate_kwargs.get("eos_token_id", settings.eos_token_id)
    if end_ids is None:  # `generate` takes it from the model then
        end_ids = model.generation_config.eos_token_id
    end_ids = set(end_ids if isinstance(end_ids, list) else [end_ids])
    results = []
    for ids, scores in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = next((place + 1 for place, token in enumerate(ids) if token in end_ids), len(ids))
        ids, scores = ids[:length], scores[:length]
        score = math.exp(sum(scores) / len(scores))
        words = word_confidences(tokenizer, ids, scores)
        abstained = abstain_below is not None and score < abstain_below
        text = "" if abstained else tokenizer.decode(ids, skip_special_tokens=True).strip()
        results.append(RecognizedText(text, score, words, abstained))
    return results


def word_confidences(tokenizer: Any, ids: list[int], log_probs: list[float]) -> list[dict[str, Any]]:
    """Split tokens into words where the decoded text has white space, and multiply the probabilities within a word.

    Args:
        ids: token ids of one text.
        log_probs: log-probability of each.

    Returns: one `{"word", "confidence"}` a word; joined by spaces they are the text, its spaces made single.
    """
    special = set(tokenizer.all_special_ids)
    words: list[dict[str, Any]] = []
    word_ids: list[int] = []
    word, total = "", 0.0  # what the ids of the word say, with white space

    def close() -> None:
        if word.strip():
            words.append({"word": word.strip(), "confidence": math.exp(total)})

    for token, log_prob in zip(ids, log_probs, strict=True):
        if token in special:
            continue
        text = tokenizer.decode([*word_ids, token], skip_special_tokens=True)
        if word.strip() and len(text.split()) + text[-1:].isspace() > 1:
            close()
            word_ids, total = [], 0.0
            text = tokenizer.decode([token], skip_special_tokens=True)
        word_ids.append(token)
        word, total = text, total + log_prob
    close()
    return words
