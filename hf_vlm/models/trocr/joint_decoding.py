"""Reading by two judges, the decoder and the CTC head (hybrid CTC/attention decoding), sooner than by the decoder alone.

picture tokens float (batch, places, width)
  -> CTC head: the likeliest token or blank at each place   a draft of each text, all of it at once
  -> decoder, all tokens of the drafts at once              where it would have written just that, the draft is its reading
  -> decoder, token by token (greedy.py)                    its reading of the other pictures
  -> of draft and reading, the one that is likelier to both judges together

A decoder may lose its place in a line, and write a word twice or leave one out; the CTC head can't, but knows no language.

Source: Watanabe et al. 2017, section III-C (rescoring), https://doi.org/10.1109/JSTSP.2017.2763455; to check a draft in one
pass is an idea of Stern et al. 2018, https://arxiv.org/abs/1811.03115
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria

from ...blocks.token_loss import IGNORE_INDEX, shift_right
from .greedy import TokenLogProbs, can_be_recorded, decode_greedily, is_any

if TYPE_CHECKING:
    from .modeling_trocr import TrOCREncoderDecoderForConditionalGeneration


@torch.no_grad()
def decode_jointly(
    model: "TrOCREncoderDecoderForConditionalGeneration",
    input_ids: torch.Tensor,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    *,
    encoder_outputs: Any,
) -> torch.Tensor:
    """For each picture the likelier of the decoder's greedy reading and the CTC head's.

    A text's score is (1 - w) log p_decoder + w log p_CTC in nats, w being `config.ctc_decoding_weight`. A draft that is too
    long for what was asked is not chosen.

    Args:
        others: as for `decode_greedily`; among the criteria there is an end token.

    Returns: int64 (batch, 1 + tokens), the start token first, padded behind the end.
    """
    tokens, mask = encoder_outputs.last_hidden_state, getattr(encoder_outputs, "attention_mask", None)
    end_ids = torch.cat([rule.eos_token_id for rule in stopping_criteria if isinstance(rule, EosTokenCriteria)])
    end_ids = end_ids.to(tokens.device)
    tellers = [rule for rule in stopping_criteria if isinstance(rule, TokenLogProbs)]
    blank, weight = model.config.pad_token_id or 0, model.config.ctc_decoding_weight
    spelling = model.ctc_head(tokens).float().log_softmax(dim=-1)  # (batch, places, vocab_size)
    num_places = mask.sum(dim=1) if mask is not None else torch.full_like(input_ids[:, 0], tokens.shape[1])

    texts = best_paths(spelling.index_fill(2, end_ids, -torch.inf), num_places, blank)
    longest = stopping_criteria.max_length - 2  # start and end token count
    fits = [len(text) <= longest for text in texts]
    texts = [torch.cat([text[:longest], end_ids[:1]]) for text in texts]
    labels = pad_sequence(texts, batch_first=True, padding_value=IGNORE_INDEX)  # (batch, tokens)
    logits = model.decoder(
        input_ids=shift_right(labels, start_token_id=int(input_ids[0, 0]), pad_token_id=blank),
        encoder_hidden_states=tokens,
        encoder_attention_mask=mask,
        use_cache=False,
    ).logits.float()  # (batch, tokens, vocab_size)
    is_text = labels != IGNORE_INDEX
    agrees = ((logits.argmax(dim=-1) == labels) | ~is_text).all(dim=1)  # (batch,)
    log_probs = logits.log_softmax(dim=-1).gather(2, labels.clamp(min=0)[..., None])[..., 0] * is_text
    told = [row[: len(text)] for row, text in zip(log_probs, texts, strict=True)]

    rest = torch.tensor([not (same and fit) for same, fit in zip(agrees.tolist(), fits, strict=True)])
    if rest.any():
        if can_be_recorded(model.decoder, tokens):  # a recorded step is of one batch size
            rest[:] = True
        places = rest.nonzero()[:, 0]
        rows = places.to(tokens.device)
        teller = TokenLogProbs()
        kept = [rule for rule in stopping_criteria if rule not in tellers]
        readings = decode_greedily(
            model,
            input_ids[rows],
            LogitsProcessorList(),
            StoppingCriteriaList([*kept, teller]),
            generation_config,
            encoder_outputs=type(encoder_outputs)(
                last_hidden_state=tokens[rows], **({} if mask is None else {"attention_mask": mask[rows]})
            ),
        )[:, 1:]
        assert teller.log_probs is not None
        lengths = (~is_any(readings.flatten(), end_ids).view_as(readings).cumsum(dim=1).bool()).sum(dim=1) + 1
        read = [text[:length] for text, length in zip(readings, lengths.tolist(), strict=True)]  # the end token last
        read_told = [row[: len(text)] for row, text in zip(teller.log_probs, read, strict=True)]
        scores = [
            (1 - weight) * torch.stack([row.sum() for row in of_decoder])
            + weight * spelled_log_probs(spelling[rows], num_places[rows], some, end_ids, blank)
            for some, of_decoder in (
                (read, read_told),
                ([texts[place] for place in places], [told[place] for place in places]),
            )
        ]
        takes_draft = (scores[1] > scores[0]).tolist()
        for index, place in enumerate(places.tolist()):
            if not (takes_draft[index] and fits[place]):
                texts[place], told[place] = read[index], read_told[index]

    for one in tellers:
        one.log_probs = pad_sequence(told, batch_first=True)
    pad = generation_config._pad_token_tensor
    sequences = pad_sequence(texts, batch_first=True, padding_value=int(pad) if pad is not None else 0)
    return torch.cat([input_ids, sequences], dim=1)


def best_paths(log_probs: torch.Tensor, num_places: torch.Tensor, blank: int) -> list[torch.Tensor]:
    """What the likeliest token at each place spells: repeated tokens are one, then blanks nothing.

    Args:
        log_probs: float (batch, places, vocab_size).
        num_places: int64 (batch,), real places, which come first.

    Returns: for each row its tokens, int64 (tokens,).

    Source: Graves et al. 2006, section 3.2, https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    path = log_probs.argmax(dim=-1)  # (batch, places)
    is_new = path != F.pad(path[:, :-1], (1, 0), value=blank)
    is_real = torch.arange(path.shape[1], device=path.device) < num_places[:, None]
    return [row[kept] for row, kept in zip(path, is_new & is_real & (path != blank), strict=True)]


def spelled_log_probs(
    log_probs: torch.Tensor,
    num_places: torch.Tensor,
    texts: list[torch.Tensor],
    end_ids: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """How likely the places spell each text, its end token apart: float (batch,), -inf where they are too few for it."""
    labels = [text[~is_any(text, end_ids)] for text in texts]
    return -F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.cat(labels),
        num_places,
        torch.tensor([len(label) for label in labels], device=log_probs.device),
        blank=blank,
        reduction="none",
    )
